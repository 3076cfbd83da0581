"""Does an exported file answer as its model does? Asked on real inputs, in a process that cannot import torch.

Shapes: N samples, C classes.
"""

import copy
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from edgestill.errors import UserError
from edgestill.runtimes.process import RuntimeProcess

PART = 64  # Samples answered at the smaller batch sizes; all are answered at the largest.


@dataclass(frozen=True)
class Parity:
    """How far an artifact's answers are from its model's.

    `agreement`: share of samples with the same largest class. `max_abs_error`: of the logits, over every batch size
    tried; NaN where the artifact answers NaN. `divergence`: mean over samples of
    KL(softmax(model) ‖ softmax(artifact)), in nats.
    """

    samples: int
    agreement: float
    max_abs_error: float
    divergence: float


def verify(
    path: str | Path,
    module: nn.Module,
    inputs: np.ndarray,
    *,
    threads: int = 1,
    optimize: bool = True,
    batches: Sequence[int] = (1, 64),
) -> Parity:
    """Compare the ONNX file at `path` with `module`, in evaluation mode on the CPU, on `inputs`: float32 [N, ...].

    The file answers all samples at the largest of `batches` and the first 64 at each other one. The module is left
    as it was.

    Raises UserError for a file that cannot be opened, refuses the inputs, or answers in another shape.

    >>> verify("student.onnx", student, images[:1000])  # doctest: +SKIP
    Parity(samples=1000, agreement=1.0, max_abs_error=7.2e-07, divergence=1.1e-14)
    """
    if len(inputs) == 0:
        raise UserError(f"verifying {path} needs at least one sample, got none: give real inputs")
    expected = module_outputs(module, inputs, max(batches))
    outputs, *parts = _answers(path, inputs, sorted(batches, reverse=True), threads, optimize)
    if outputs.shape != expected.shape:
        raise UserError(
            f"{path} answers in shape {outputs.shape}, its model in {expected.shape}: it is another model's"
        )
    errors = [np.abs(answered - expected[: len(answered)]).max() for answered in (outputs, *parts)]
    return Parity(
        samples=len(inputs),
        agreement=float((outputs.argmax(-1) == expected.argmax(-1)).mean()),
        max_abs_error=float(np.max(errors)),
        divergence=_divergence(expected, outputs),
    )


def artifact_outputs(
    path: str | Path, inputs: np.ndarray, *, batch: int = 64, threads: int = 1, optimize: bool = True
) -> np.ndarray:
    """The first output of the ONNX file at `path` for float32 `inputs` [N, ...], from a process without torch."""
    with tempfile.TemporaryDirectory() as folder, RuntimeProcess(path, threads=threads, optimize=optimize) as process:
        return _answer(process, Path(folder), inputs, batch)


@torch.no_grad()
def module_outputs(module: nn.Module, inputs: np.ndarray, batch: int = 64) -> np.ndarray:
    """What a copy of `module` answers in evaluation mode, on the CPU in float32: [N, ...] -> [N, C]."""
    # one memory layout, whatever the training left: layouts round differently
    plain = copy.deepcopy(module).to("cpu", torch.float32).eval()
    plain.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    rows = torch.from_numpy(np.ascontiguousarray(inputs, dtype=np.float32))
    return torch.cat([plain(rows[i : i + batch]) for i in range(0, len(rows), batch)]).numpy()


def _answers(
    path: str | Path, inputs: np.ndarray, batches: Sequence[int], threads: int, optimize: bool
) -> list[np.ndarray]:
    with tempfile.TemporaryDirectory() as folder, RuntimeProcess(path, threads=threads, optimize=optimize) as process:
        largest, *others = batches
        answers = [_answer(process, Path(folder), inputs, largest)]
        return answers + [_answer(process, Path(folder), inputs[:PART], batch) for batch in others]


def _answer(process: RuntimeProcess, folder: Path, inputs: np.ndarray, batch: int) -> np.ndarray:
    np.save(folder / "inputs.npy", np.asarray(inputs, dtype=np.float32))
    process.ask(predict=str(folder / "inputs.npy"), output=str(folder / "outputs.npy"), batch=batch)
    return np.asarray(np.load(folder / "outputs.npy"))


def _divergence(expected: np.ndarray, outputs: np.ndarray) -> float:
    model, artifact = (torch.from_numpy(logits).double().log_softmax(-1) for logits in (expected, outputs))
    return float((model.exp() * (model - artifact)).sum(-1).mean())
