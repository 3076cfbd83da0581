"""Measure artifacts on this host: a fresh process each, all alive at once, timed by turns.

Shapes: N samples.
"""

import contextlib
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgestill.errors import UserError
from edgestill.runtimes.process import RuntimeProcess

Track = Callable[[Iterable[Any], str, int], Iterable[Any]]

ROUNDS = 20
WARMUP_CALLS = 10
TURN_WARMUP_CALLS = 2  # The other artifacts' turns have emptied the caches.
TARGET_SECONDS, MOST_SECONDS = 1.5, 6.0
REPEATS = (20, 200, 2000)  # At least, at least if that takes no longer than MOST_SECONDS, at most.


@dataclass(frozen=True)
class Measurement:
    """One artifact in its runtime: seconds of a single sample after warm-up (percentiles over `repeats` calls),
    seconds to load, bytes of the file, and peak memory in bytes over an empty model in the same runtime.
    """

    p50: float
    p90: float
    p99: float
    load_seconds: float
    bytes: int
    peak_memory_bytes: int
    runtime: str
    threads: int
    repeats: int


def bench(
    artifacts: Mapping[str, str | Path],
    inputs: Mapping[str, np.ndarray],
    *,
    threads: int = 1,
    track: Track = lambda items, *_: items,
) -> dict[str, Measurement]:
    """Measure each ONNX file of `artifacts` on its own samples, `inputs[name]`: float32 [N, ...].

    The runtime has `threads` threads. Memory first, in a process of its own for each; then latency, in rounds that give
    every artifact a turn of single-sample calls, so that a slow minute of the host meets all of them alike. About two
    seconds an artifact.

    Raises UserError for a file that cannot be opened or refuses its inputs.

    >>> bench({"student": "student.onnx"}, {"student": images[:100]}, threads=1)["student"].p50  # doctest: +SKIP
    0.00014
    """
    missing = sorted(name for name in artifacts if not len(inputs.get(name, ())))
    if missing:
        raise UserError(f"every artifact needs samples to be measured on, none came for: {', '.join(missing)}")
    if not artifacts:
        return {}
    with tempfile.TemporaryDirectory() as folder:
        samples = {name: str(Path(folder) / f"{index}.npy") for index, name in enumerate(artifacts)}
        for name, file in samples.items():
            np.save(file, np.asarray(inputs[name], dtype=np.float32))
        memory = {
            name: _memory(artifacts[name], samples[name], Path(folder) / "empty.onnx", threads)
            for name in track(artifacts, "measuring memory", len(artifacts))
        }
        with contextlib.ExitStack() as alive:
            processes = {
                name: alive.enter_context(RuntimeProcess(path, threads=threads)) for name, path in artifacts.items()
            }
            seconds = _time_by_turns(processes, samples, track)
    return {
        name: _summary(artifacts[name], processes[name], seconds[name], memory[name], threads) for name in artifacts
    }


def _time_by_turns(
    processes: Mapping[str, RuntimeProcess], samples: Mapping[str, str], track: Track
) -> dict[str, list[float]]:
    """Seconds of every timed call of every artifact."""
    repeats = {}
    for name, process in processes.items():
        call = float(np.median(process.ask(time=WARMUP_CALLS, inputs=samples[name], warmup=WARMUP_CALLS)["seconds"]))
        repeats[name] = -(-repeats_for(call) // ROUNDS)
    seconds: dict[str, list[float]] = {name: [] for name in processes}
    for turn in track(range(ROUNDS), "measuring latency", ROUNDS):
        for name, process in processes.items():
            calls = repeats[name]
            answer = process.ask(time=calls, inputs=samples[name], start=turn * calls, warmup=TURN_WARMUP_CALLS)
            seconds[name] += answer["seconds"]
    return seconds


def repeats_for(call: float) -> int:
    """How many calls of `call` seconds to time: 1.5 seconds' worth, 200 to 2,000; fewer where 200 take over 6 seconds.

    >>> repeats_for(0.0001), repeats_for(0.002), repeats_for(0.02), repeats_for(0.1), repeats_for(2.0)
    (2000, 750, 200, 60, 20)
    """
    least, usual, most = REPEATS
    floor = max(least, min(usual, round(MOST_SECONDS / call)))
    return min(most, max(floor, round(TARGET_SECONDS / call)))


def _memory(artifact: str | Path, samples: str, empty: Path, threads: int) -> int:
    """Bytes at the peak of a process that loads and runs `artifact`, over those of one with an empty model."""
    _write_empty(empty)
    peak, base = (_peak(path, samples, threads) for path in (artifact, empty))
    return max(0, peak - base)


def _peak(path: str | Path, samples: str, threads: int) -> int:
    with RuntimeProcess(path, threads=threads) as process:
        process.ask(time=WARMUP_CALLS, inputs=samples)
        return int(process.ask(memory=True)["peak_bytes"])


def _write_empty(path: Path) -> None:
    """An ONNX file whose output is its input."""
    from onnx import TensorProto, helper

    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("input", "output")]
    graph = helper.make_graph([helper.make_node("Identity", ["input"], ["output"])], "empty", ends[:1], ends[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    path.write_bytes(model.SerializeToString())


def _summary(path: str | Path, process: RuntimeProcess, seconds: list[float], memory: int, threads: int) -> Measurement:
    p50, p90, p99 = (float(value) for value in np.percentile(seconds, [50, 90, 99]))
    return Measurement(
        p50=p50,
        p90=p90,
        p99=p99,
        load_seconds=process.load_seconds,
        bytes=Path(path).stat().st_size,
        peak_memory_bytes=memory,
        runtime=process.runtime,
        threads=threads,
        repeats=len(seconds),
    )
