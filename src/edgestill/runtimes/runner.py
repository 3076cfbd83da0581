"""Open one artifact in one runtime and answer commands about it. Needs numpy and the runtime's file only.

    python runner.py RUNTIME_FILE ARTIFACT [--threads 1] [--no-optimize]

RUNTIME_FILE is a Python file with `RUNTIME`, a name with its version, and `load(path, threads)`, like those beside this
one. The answers are one JSON object a line, until the input ends:

    (on start)                                              {"runtime": "onnxruntime 1.32.0", "load_seconds": 0.01}
    {"predict": "in.npy", "output": "out.npy", "batch": 64} {"samples": 1000}
    {"time": 50, "inputs": "in.npy", "start": 0}            {"seconds": [0.0004, …]}
    {"memory": true}                                        {"peak_bytes": 41943040}

`predict` answers all rows, `batch` a call. `time` is the number of calls to time, each with `batch` rows (one unless
told), from row `start` on and around the end; "warmup" says how many untimed calls go before, and "powercap" names the
folder of the energy counters: the answer then has "joules", what they counted during the timed calls, or no such key
where they cannot be read. `memory` is the peak since the process began. A line that cannot be served is answered by
{"error": "one line"}.

An artifact that cannot be opened is answered so on start, and the script ends with exit code 2. So is a runtime that
cannot be imported; {"missing": "name"} beside the error is the module that is not there. Nothing but these answers is
written to standard output.

Shapes: B batch.
"""

import argparse
import importlib.util
import json
import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

Predict = Callable[[np.ndarray], np.ndarray]


def load_runtime(file: str) -> ModuleType:
    """The module of a runtime's file, wherever it lies."""
    spec = importlib.util.spec_from_file_location(Path(file).stem, file)
    if spec is None or spec.loader is None:
        raise ImportError(f"a runtime is a Python file; came {file}")
    runtime = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(runtime)
    return runtime


def peak_bytes() -> int:
    """The largest resident size of this process so far, in bytes.

    Linux hands the parent's `ru_maxrss` on to a started program, so that a small child of a large parent shows the
    parent's size; VmHWM begins anew. `ru_maxrss` is the fallback of other systems (bytes on macOS).
    """
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def energy_counters(powercap: str) -> dict[str, tuple[int, int]]:
    """Each processor package's counter in microjoules and the value after which it begins again at 0.

    Empty where the host has none or does not let this user read them. Parts of a package are in its own count already,
    and so is the package in the count of the whole platform ("psys").
    """
    counters = {}
    try:
        for zone in sorted(Path(powercap).glob("intel-rapl:*")):
            if re.fullmatch(r"intel-rapl:\d+", zone.name) and (zone / "name").read_text().strip() != "psys":
                counters[zone.name] = (
                    int((zone / "energy_uj").read_text()),
                    int((zone / "max_energy_range_uj").read_text()),
                )
    except (OSError, ValueError):
        return {}
    return counters


def joules_between(before: dict[str, tuple[int, int]], after: dict[str, tuple[int, int]]) -> float | None:
    """What was counted between two readings, in joules; None without counters.

    >>> joules_between({"intel-rapl:0": (999_000, 999_999)}, {"intel-rapl:0": (1_999, 999_999)})
    0.002998
    """
    if not before or before.keys() != after.keys():
        return None
    counted = 0
    for zone, (start, largest) in before.items():
        end = after[zone][0]
        counted += end - start if end >= start else end - start + largest
    return counted / 1e6


def predict_file(predict: Predict, inputs: str, output: str, batch: int) -> int:
    """Answer all rows of one .npy file into another, `batch` at a time; the number of rows."""
    rows = np.load(inputs, mmap_mode="r")
    np.save(output, np.concatenate([predict(rows[i : i + batch]) for i in range(0, len(rows), batch)]))
    return len(rows)


def time_calls(
    predict: Predict,
    inputs: str,
    repeats: int,
    start: int = 0,
    warmup: int = 1,
    batch: int = 1,
    powercap: str | None = None,
) -> tuple[list[float], float | None]:
    """Seconds of `repeats` calls, each with `batch` rows, after `warmup` untimed ones; and joules of all of them."""
    rows = np.load(inputs, mmap_mode="r")
    seconds = []
    before: dict[str, tuple[int, int]] = {}
    for call in range(-warmup, repeats):
        first = start + max(call, 0) * batch
        chosen = np.array(rows[np.arange(first, first + batch) % len(rows)])
        if call == 0 and powercap is not None:
            before = energy_counters(powercap)
        began = time.perf_counter()
        predict(chosen)
        if call >= 0:
            seconds.append(time.perf_counter() - began)
    return seconds, joules_between(before, energy_counters(powercap)) if powercap is not None else None


def answer(predict: Predict, command: dict[str, Any]) -> dict[str, Any]:
    if "predict" in command:
        batch = int(command.get("batch", 64))
        return {"samples": predict_file(predict, command["predict"], command["output"], batch)}
    if "time" in command:
        seconds, joules = time_calls(
            predict,
            command["inputs"],
            int(command["time"]),
            start=int(command.get("start", 0)),
            warmup=int(command.get("warmup", 1)),
            batch=int(command.get("batch", 1)),
            powercap=command.get("powercap"),
        )
        return {"seconds": seconds} | ({} if joules is None else {"joules": joules})
    if "memory" in command:
        return {"peak_bytes": peak_bytes()}
    raise ValueError(f"a command is one of predict, time, memory; came: {', '.join(command)}")


def first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def main() -> int:
    parser = argparse.ArgumentParser(description="Run an artifact; one JSON command a line, see the top of this file.")
    parser.add_argument("runtime", help="a Python file with RUNTIME and load(path, threads)")
    parser.add_argument("artifact")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--no-optimize", dest="optimize", action="store_false", help="run the graph as it is written")
    options = parser.parse_args()
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # What a library prints, also from C, must not fall between the answers.

    def reply(message: dict[str, Any]) -> None:
        print(json.dumps(message), file=answers, flush=True)

    try:
        runtime = load_runtime(options.runtime)
        began = time.perf_counter()
        # Only ONNX Runtime's file has the option.
        predict = runtime.load(options.artifact, options.threads, **({} if options.optimize else {"optimize": False}))
    except ImportError as error:
        needs = f"{Path(options.runtime).name} cannot be imported with {sys.executable}: {first_line(error)}"
        reply({"error": needs, "missing": error.name if isinstance(error, ModuleNotFoundError) else None})
        return 2
    except ValueError as error:
        reply({"error": first_line(error)})
        return 2
    reply({"runtime": runtime.RUNTIME, "load_seconds": time.perf_counter() - began})
    for line in sys.stdin:
        try:
            reply(answer(predict, json.loads(line)))
        except (ValueError, KeyError, TypeError, OSError) as error:
            reply({"error": first_line(error)})
    return 0


if __name__ == "__main__":
    sys.exit(main())
