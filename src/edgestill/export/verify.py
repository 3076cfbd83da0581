"""Does an exported file answer as its model does? Asked on real inputs, in a process that cannot import torch.

Shapes: N samples, C classes.
"""

import contextlib
import copy
import functools
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from edgestill.errors import UserError
from edgestill.runtimes.measure import RuntimeProcess

PART = 64  # Samples answered at the smaller batch sizes; all are answered at the largest.


@dataclass(frozen=True)
class Parity:
    """How far an artifact's answers are from its model's.

    `agreement`: share of samples with the same largest class; of embeddings the mean over samples of the cosine of the
    two. `max_abs_error`: of the outputs, over every batch size tried; NaN where the artifact answers NaN. `divergence`:
    mean over samples of KL(softmax(model) ‖ softmax(artifact)), in nats; None of embeddings, which are no classes.
    """

    samples: int
    agreement: float
    max_abs_error: float
    divergence: float | None


def outputs(
    answer: Callable[[np.ndarray, int], np.ndarray], inputs: np.ndarray, batches: Sequence[int]
) -> list[np.ndarray]:
    """What an artifact answers: to all `inputs` at the largest of `batches`, and to the first 64 at each other one."""
    largest, *others = sorted(batches, reverse=True)
    return [answer(inputs, largest), *(answer(inputs[:PART], batch) for batch in others)]


def parity(
    expected: np.ndarray, answers: Sequence[np.ndarray], path: str | Path, *, embeddings: bool = False
) -> Parity:
    """How far an artifact's `outputs` are from a model's, [N, C], or [N, T, V] with a sample for each token; or vectors
    [N, D], where they are `embeddings`. UserError where they have another shape."""
    whole = answers[0]
    if whole.shape != expected.shape:
        raise UserError(f"{path} answers in shape {whole.shape}, its model in {expected.shape}: it is another model's")
    errors = [np.abs(answered - expected[: len(answered)]).max() for answered in answers]
    return Parity(
        samples=int(np.prod(expected.shape[:-1])),
        agreement=_cosine(expected, whole) if embeddings else float((whole.argmax(-1) == expected.argmax(-1)).mean()),
        max_abs_error=float(np.max(errors)),
        divergence=None if embeddings else _divergence(expected, whole),
    )


def together(parts: Sequence[Parity]) -> Parity:
    """Of several sets of samples, as one."""
    counts = [part.samples for part in parts]
    divergences = [part.divergence for part in parts if part.divergence is not None]
    return Parity(
        samples=sum(counts),
        agreement=float(np.average([part.agreement for part in parts], weights=counts)),
        max_abs_error=float(np.max([part.max_abs_error for part in parts])),
        divergence=float(np.average(divergences, weights=counts)) if divergences else None,
    )


def artifact_outputs(
    path: str | Path,
    inputs: np.ndarray,
    *,
    runtime: Path,
    batch: int = 64,
    threads: int = 1,
    optimize: bool = True,
    torch: bool = False,
) -> np.ndarray:
    """The first output of the file at `path` for float32 `inputs` [N, ...], from a process of its own, in which torch
    cannot be imported unless `torch` allows it. `runtime` and errors are those of `opened`."""
    with opened(path, runtime, threads, optimize, torch) as answer:
        return answer(inputs, batch)


@torch.no_grad()
def module_outputs(module: nn.Module, inputs: np.ndarray, batch: int = 64) -> np.ndarray:
    """What a copy of `module` answers in evaluation mode, on the CPU in float32: [N, ...] -> [N, C]. Of texts
    it takes int64 [N, inputs, T], its inputs one by one."""
    # one memory layout, whatever the training left: layouts round differently
    plain = copy.deepcopy(module).to("cpu", torch.float32).eval()
    plain.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    rows = torch.split(torch.from_numpy(_as_taken(inputs)), batch)
    return torch.cat([plain(*part.unbind(1)) if part.dtype == torch.int64 else plain(part) for part in rows]).numpy()


def _as_taken(inputs: np.ndarray) -> np.ndarray:
    """float32, or, of texts, int64 [N, inputs, T]."""
    kind = np.int64 if np.issubdtype(inputs.dtype, np.integer) else np.float32
    return np.ascontiguousarray(inputs, dtype=kind)


@contextlib.contextmanager
def opened(
    path: str | Path, runtime: Path, threads: int, optimize: bool, torch: bool
) -> Iterator[Callable[[np.ndarray, int], np.ndarray]]:
    """A function of samples, float32 [N, ...], and batch size, answered by the file at `path` in a process of its own.

    `runtime` is the runtime's file, as those in `edgestill.runtimes`; `torch` says that it cannot do without torch,
    which no other can import. `optimize` is that of the runtime's `load`.

    Raises UserError for a file that cannot be opened or refuses the samples, and for a runtime that is not installed.

    >>> with opened("student.onnx", Path("onnx_runtime.py"), 1, True, False) as answer:  # doctest: +SKIP
    ...     parity(module_outputs(student, images), outputs(answer, images, (1, 64)), "student.onnx")
    Parity(samples=1000, agreement=1.0, max_abs_error=7.2e-07, divergence=1.1e-14)
    """
    with tempfile.TemporaryDirectory() as folder:
        with _refusals():
            process = RuntimeProcess(path, runtime, threads=threads, optimize=optimize, torch=torch)
        with process:
            yield functools.partial(_answer, process, Path(folder))


@contextlib.contextmanager
def _refusals() -> Iterator[None]:
    """What a runtime's process refuses, or that it ended, as the user's error; nothing of this process's own."""
    try:
        yield
    except (ValueError, ImportError, RuntimeError) as error:
        raise UserError(str(error)) from None


def _answer(process: RuntimeProcess, folder: Path, inputs: np.ndarray, batch: int) -> np.ndarray:
    np.save(folder / "inputs.npy", _as_taken(inputs))
    with _refusals():
        process.ask(predict=str(folder / "inputs.npy"), output=str(folder / "outputs.npy"), batch=batch)
    return np.asarray(np.load(folder / "outputs.npy"))


def _cosine(expected: np.ndarray, outputs: np.ndarray) -> float:
    first, second = (
        rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12) for rows in (expected, outputs)
    )
    return min(1.0, float((first.astype(np.float64) * second).sum(1).mean()))  # 1 + 5e-8 by rounding


def _divergence(expected: np.ndarray, outputs: np.ndarray) -> float:
    model, artifact = (torch.from_numpy(logits).double().log_softmax(-1) for logits in (expected, outputs))
    return float((model.exp() * (model - artifact)).sum(-1).mean())
