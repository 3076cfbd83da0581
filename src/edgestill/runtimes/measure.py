"""Measure artifacts, each in a fresh process of its runtime, all alive at once, timed by turns. Needs numpy only.

As a script it lies beside `runner.py`, reads a JSON file and writes JSON, one object a line:

    python measure.py spec.json

    {"threads": 1, "artifacts": {"student": {"path": "student.onnx", "runtime": "onnx_runtime.py", "inputs": "in.npy",
                                             "empty": "empty.onnx", "torch": false, "batched": true}}}

    {"doing": "measuring memory", "total": 1}        before every step, as many as `total`
    {"measured": {"student": {"p50": 0.0004, …}}, "hardware": {"machine": "aarch64", …}}

Paths are relative to the current folder. What cannot be measured is answered by {"error": "one line"} and exit code 2;
"missing" beside it names a module that is not there. `edgestill.bench` copies this file to other hosts: it runs with
Python 3.10 and imports nothing of edgestill.
"""

import contextlib
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

RUNNER = Path(__file__).with_name("runner.py")
POWERCAP = "/sys/class/powercap"

ROUNDS = 20
WARMUP_CALLS = 10
TURN_WARMUP_CALLS = 2  # The other artifacts' turns have emptied the caches.
TARGET_SECONDS, MOST_SECONDS = 1.5, 6.0
REPEATS = (20, 200, 2000)  # At least, at least if that takes no longer than MOST_SECONDS, at most.

THROUGHPUT_BATCH = 32
THROUGHPUT_ROUNDS = 5
THROUGHPUT_TURN_SECONDS, THROUGHPUT_TURN_CALLS = 0.1, 50

Track = Callable[[Iterable[Any], str, int], Iterable[Any]]

# None in sys.modules makes every import of that name fail, installed or not. The current folder is no place of modules.
LAUNCHER = """
import sys
sys.path[:] = [place for place in sys.path if place]
import runpy
sys.modules.update(dict.fromkeys(sys.argv[1].split(",")))
del sys.argv[:2]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


class RuntimeProcess:
    """An artifact open in a fresh process of its runtime; `ask` sends a command and returns the answer.

    Commands and answers are those at the top of `runner.py`; `runtime` is the runtime's file. The process can import
    neither torch nor edgestill; `torch=True` allows torch, for the runtime that is itself built on it. A context
    manager: its process ends with it.

    Raises ValueError, one line, for an artifact that the runtime refuses, or that refuses its inputs; ImportError where
    the runtime is not installed, with the missing module's `name`; RuntimeError for a process that ends unasked.

    >>> with RuntimeProcess("student.onnx", Path("onnx_runtime.py")) as process:  # doctest: +SKIP
    ...     process.ask(memory=True)
    {'peak_bytes': 41943040}
    """

    def __init__(
        self,
        artifact: str | Path,
        runtime: str | Path,
        *,
        threads: int = 1,
        optimize: bool = True,
        torch: bool = False,
        python: str = sys.executable,
    ) -> None:
        blocked = "edgestill" if torch else "edgestill,torch"
        command = [python, "-c", LAUNCHER, blocked, str(RUNNER), str(runtime), str(artifact), "--threads", str(threads)]
        self.artifact = artifact
        self.log = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 - closed by close()
        try:
            self.process = subprocess.Popen(
                command + ["--no-optimize"] * (not optimize),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self.log,
                text=True,
            )
        except BaseException:
            self.log.close()
            raise
        try:
            opened = self._answer()
            if "missing" in opened:
                raise ImportError(opened["error"], name=opened["missing"])
            if "error" in opened:
                raise ValueError(opened["error"])
        except BaseException:
            self.close()
            raise
        self.runtime: str = opened["runtime"]
        self.load_seconds: float = opened["load_seconds"]

    def ask(self, **command: Any) -> dict[str, Any]:
        assert self.process.stdin is not None
        try:
            print(json.dumps(command), file=self.process.stdin, flush=True)
        except BrokenPipeError:
            raise self._died() from None
        answer = self._answer()
        if "error" in answer:
            named = str(self.artifact) in answer["error"]
            raise ValueError(answer["error"] if named else f"{self.artifact} could not be run: {answer['error']}")
        return answer

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):  # Python's own start-up hooks may print.
                answer: dict[str, Any] = json.loads(line)
                return answer
        raise self._died()

    def _died(self) -> RuntimeError:
        code = self.process.wait()
        self.log.seek(0)
        last = (self.log.read().strip().splitlines() or ["it wrote nothing"])[-1]
        return RuntimeError(f"the process that ran {self.artifact} ended with exit code {code}: {last}")

    def close(self) -> None:
        """End the process; kill it if it does not end by itself within two seconds."""
        try:
            self.process.communicate(timeout=2)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()
        self.log.close()

    def __enter__(self) -> "RuntimeProcess":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def measure(
    artifacts: Mapping[str, Mapping[str, Any]],
    threads: int = 1,
    track: Track = lambda items, *_: items,
    powercap: str = POWERCAP,
) -> dict[str, dict[str, Any]]:
    """Measure each of `artifacts` with `threads` threads; what is measured is said where it is read: `Measurement` in
    `edgestill.bench.host`.

    Each has "path"; "runtime", the runtime's file; "inputs", a .npy file of float32 [N, ...]; "empty", an artifact of
    the same runtime that takes these inputs and does nothing; "torch", whether the runtime needs it; and "batched",
    whether the file answers many rows at once.

    Memory first, in processes of their own; then latency, in rounds that give every artifact a turn of single-sample
    calls, so that a slow minute of the host meets all of them alike; then, in rounds too, batches. About three seconds
    an artifact. "energy_joules_per_call" is there only where the host's counters in `powercap` are readable and moved:
    of the whole package, during the timed single-sample calls.

    Raises what `RuntimeProcess` raises.
    """
    bases: dict[tuple[Any, ...], int] = {}
    memory = {
        name: _memory(artifacts[name], threads, bases) for name in track(artifacts, "measuring memory", len(artifacts))
    }
    with contextlib.ExitStack() as alive:
        processes = {name: alive.enter_context(_open(one, one["path"], threads)) for name, one in artifacts.items()}
        inputs = {name: str(one["inputs"]) for name, one in artifacts.items()}
        latency = _time_by_turns(processes, inputs, powercap, track)
        batched = {name: process for name, process in processes.items() if artifacts[name]["batched"]}
        batches = _time_batches(batched, inputs, track) if batched else {}
    return {
        name: _summary(one["path"], processes[name], *latency[name], batches.get(name))
        | {"peak_memory_bytes": memory[name], "threads": threads}
        for name, one in artifacts.items()
    }


def _open(one: Mapping[str, Any], path: str, threads: int) -> RuntimeProcess:
    return RuntimeProcess(path, one["runtime"], threads=threads, torch=one["torch"])


def _time_by_turns(
    processes: Mapping[str, RuntimeProcess], inputs: Mapping[str, str], powercap: str, track: Track
) -> dict[str, tuple[list[float], float | None]]:
    """Seconds of every timed call of every artifact, and joules of all of its calls."""
    repeats = {}
    for name, process in processes.items():
        call = float(np.median(process.ask(time=WARMUP_CALLS, inputs=inputs[name], warmup=WARMUP_CALLS)["seconds"]))
        repeats[name] = -(-repeats_for(call) // ROUNDS)
    seconds: dict[str, list[float]] = {name: [] for name in processes}
    joules: dict[str, list[float | None]] = {name: [] for name in processes}
    for turn in track(range(ROUNDS), "measuring latency", ROUNDS):
        for name, process in processes.items():
            answer = process.ask(
                time=repeats[name],
                inputs=inputs[name],
                start=turn * repeats[name],
                warmup=TURN_WARMUP_CALLS,
                powercap=powercap,
            )
            seconds[name] += answer["seconds"]
            joules[name].append(answer.get("joules"))
    return {name: (seconds[name], _total(joules[name])) for name in processes}


def _total(joules: list[float | None]) -> float | None:
    """None where a reading is missing, or where a counter never moved: some virtual machines show one that stands."""
    known = [value for value in joules if value is not None]
    return sum(known) if len(known) == len(joules) and any(known) else None


def repeats_for(call: float) -> int:
    """How many calls of `call` seconds to time: 1.5 seconds' worth, 200 to 2,000; fewer where 200 take over 6 seconds.

    >>> repeats_for(0.0001), repeats_for(0.002), repeats_for(0.02), repeats_for(0.1), repeats_for(2.0)
    (2000, 750, 200, 60, 20)
    """
    least, usual, most = REPEATS
    floor = max(least, min(usual, round(MOST_SECONDS / call)))
    return min(most, max(floor, round(TARGET_SECONDS / call)))


def _time_batches(
    processes: Mapping[str, RuntimeProcess], inputs: Mapping[str, str], track: Track
) -> dict[str, list[float]]:
    """Seconds of every timed call with THROUGHPUT_BATCH rows."""
    calls = {}
    for name, process in processes.items():
        call = process.ask(time=1, inputs=inputs[name], batch=THROUGHPUT_BATCH)["seconds"][0]
        calls[name] = min(THROUGHPUT_TURN_CALLS, max(1, round(THROUGHPUT_TURN_SECONDS / call)))
    seconds: dict[str, list[float]] = {name: [] for name in processes}
    for _ in track(range(THROUGHPUT_ROUNDS), "measuring throughput", THROUGHPUT_ROUNDS):
        for name, process in processes.items():
            seconds[name] += process.ask(time=calls[name], inputs=inputs[name], batch=THROUGHPUT_BATCH)["seconds"]
    return seconds


def _memory(one: Mapping[str, Any], threads: int, bases: dict[tuple[Any, ...], int]) -> int:
    """Bytes at the peak of a process that loads and runs the artifact, over those of one with its empty model, which
    is measured once for all artifacts that share it."""
    base = tuple(str(one[key]) for key in ("empty", "runtime", "inputs", "torch"))
    if base not in bases:
        bases[base] = _peak(one, one["empty"], threads)
    return max(0, _peak(one, one["path"], threads) - bases[base])


def _peak(one: Mapping[str, Any], path: str, threads: int) -> int:
    with _open(one, path, threads) as process:
        process.ask(time=WARMUP_CALLS, inputs=str(one["inputs"]))
        return int(process.ask(memory=True)["peak_bytes"])


def artifact_files(path: str | Path) -> list[Path]:
    """The files that an artifact is made of: OpenVINO keeps the weights beside its .xml.

    >>> [file.name for file in artifact_files("student.xml")], [file.name for file in artifact_files("student.onnx")]
    (['student.xml', 'student.bin'], ['student.onnx'])
    """
    file = Path(path)
    return [file, file.with_suffix(".bin")] if file.suffix == ".xml" else [file]


def _summary(
    path: str, process: RuntimeProcess, seconds: list[float], joules: float | None, batches: list[float] | None
) -> dict[str, Any]:
    p50, p90, p99 = (float(value) for value in np.percentile(seconds, [50, 90, 99]))
    batch = 1 if batches is None else THROUGHPUT_BATCH
    summary = {
        "p50": p50,
        "p90": p90,
        "p99": p99,
        "throughput": batch / float(np.median(seconds if batches is None else batches)),
        "throughput_batch": batch,
        "load_seconds": process.load_seconds,
        "bytes": sum(file.stat().st_size for file in artifact_files(path)),
        "runtime": process.runtime,
        "repeats": len(seconds),
    }
    return summary if joules is None else summary | {"energy_joules_per_call": joules / len(seconds)}


def hardware() -> dict[str, Any]:
    """What this host is: {"machine": "aarch64", "cpu": …, "cores": 4, "memory_bytes": …, "system": …, "python": …}.

    `cores` are those that this process may use; `memory_bytes` is None where the system does not tell.
    """
    names = ("SC_PAGE_SIZE", "SC_PHYS_PAGES")
    known = set(names) <= set(getattr(os, "sysconf_names", {}))
    return {
        "machine": platform.machine(),
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": os.sysconf(names[0]) * os.sysconf(names[1]) if known else None,
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def _cpu() -> str:
    """The processor's name, or on ARM the board's: only that is in its /proc/cpuinfo."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "Model"))]
    return names[0] if names else platform.machine()


def main() -> int:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # What a library prints, also from C, must not fall between the answers.

    def reply(**message: Any) -> None:
        print(json.dumps(message), file=answers, flush=True)

    def track(items: Iterable[Any], doing: str, total: int) -> Iterator[Any]:
        for item in items:
            reply(doing=doing, total=total)
            yield item

    try:
        spec = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
        measured = measure(spec["artifacts"], spec["threads"], track)
    except ImportError as error:
        reply(error=str(error), missing=error.name)
        return 2
    except (ValueError, RuntimeError, OSError) as error:
        reply(error=str(error))
        return 2
    runtimes = sorted({one["runtime"] for one in measured.values()})
    reply(measured=measured, hardware=hardware() | {"runtimes": runtimes})
    return 0


if __name__ == "__main__":
    sys.exit(main())
