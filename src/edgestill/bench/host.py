"""Measure artifacts on this host, each in a fresh process of its runtime.

Shapes: N samples.
"""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgestill.errors import UserError
from edgestill.runtimes.measure import Track, artifact_files, measure


@dataclass(frozen=True)
class Artifact:
    """A file and what runs it.

    `runtime`: the runtime's file, as those in `edgestill.runtimes`. `empty`: an artifact of that runtime that takes the
    same inputs and does nothing, over which memory is measured. `torch`: whether the runtime cannot do without torch.
    `batched`: whether the file answers many samples in one call.
    """

    path: Path
    runtime: Path
    empty: Path
    torch: bool = False
    batched: bool = True


@dataclass(frozen=True)
class Measurement:
    """One artifact in its runtime: seconds of a single sample after warm-up (percentiles over `repeats` calls), samples
    a second in calls of `throughput_batch` samples, seconds to load, bytes of the file with what belongs to it, and
    peak memory in bytes over an empty model in the same runtime.

    `energy_joules` is what the processor packages took during a single-sample call, all that ran on them included; None
    where the host has no counter for it, or does not let this user read it.
    """

    p50: float
    p90: float
    p99: float
    throughput: float
    throughput_batch: int
    load_seconds: float
    bytes: int
    peak_memory_bytes: int
    runtime: str
    threads: int
    repeats: int
    energy_joules: float | None = None


def bench(
    artifacts: Mapping[str, Artifact],
    inputs: Mapping[str, np.ndarray],
    *,
    threads: int = 1,
    track: Track = lambda items, *_: items,
) -> dict[str, Measurement]:
    """Measure each of `artifacts` on its own samples, `inputs[name]`: float32 [N, ...].

    The runtime has `threads` threads. Memory first, then latency and throughput by turns: about three seconds an
    artifact (`edgestill.runtimes.measure`).

    Raises UserError for a file that cannot be opened or refuses its inputs, and for a runtime that is not installed.

    >>> student = Artifact(Path("student.onnx"), Path("onnx_runtime.py"), empty=Path("empty.onnx"))
    >>> bench({"student": student}, {"student": images[:100]}, threads=1)["student"].p50  # doctest: +SKIP
    0.00014
    """
    refuse_missing(artifacts, inputs)
    if not artifacts:
        return {}
    with tempfile.TemporaryDirectory() as folder:
        try:
            measured = measure(describe(artifacts, inputs, Path(folder)), threads, track)
        except (ValueError, ImportError, RuntimeError) as error:
            raise UserError(str(error)) from None
    return {name: measurement(values) for name, values in measured.items()}


def refuse_missing(artifacts: Mapping[str, Artifact], inputs: Mapping[str, np.ndarray]) -> None:
    """UserError unless each artifact has samples to be measured on, and its files are there."""
    missing = sorted(name for name in artifacts if not len(inputs.get(name, ())))
    if missing:
        raise UserError(f"every artifact needs samples to be measured on, none came for: {', '.join(missing)}")
    for name, artifact in artifacts.items():
        for file in (*artifact_files(artifact.path), *artifact_files(artifact.empty)):
            if not file.is_file():
                raise UserError(f"a file is needed to measure {name}, but there is no file {file}")


def describe(
    artifacts: Mapping[str, Artifact], inputs: Mapping[str, np.ndarray], folder: Path
) -> dict[str, dict[str, Any]]:
    """What `edgestill.runtimes.measure` takes, its samples and empty models written into `folder`."""
    written: dict[int, Path] = {}
    described = {}
    for name, artifact in artifacts.items():
        rows = inputs[name]
        if id(rows) not in written:  # most artifacts share their samples, and may be sent far with them
            written[id(rows)] = folder / f"inputs-{len(written)}.npy"
            integers = np.issubdtype(np.asarray(rows).dtype, np.integer)
            np.save(written[id(rows)], np.asarray(rows, dtype=np.int64 if integers else np.float32))
        described[name] = {
            "path": str(artifact.path),
            "runtime": str(artifact.runtime),
            "inputs": str(written[id(rows)]),
            "empty": str(artifact.empty),
            "torch": artifact.torch,
            "batched": artifact.batched,
        }
    return described


def measurement(values: Mapping[str, Any]) -> Measurement:
    """A `Measurement` from what `edgestill.runtimes.measure` answers about one artifact."""
    named = dict(values)
    return Measurement(energy_joules=named.pop("energy_joules_per_call", None), **named)
