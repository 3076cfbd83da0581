"""Run an ONNX file with ONNX Runtime. Needs numpy and onnxruntime only; copied to a device, this file runs there alone.

As a module:

    predict = load("student.onnx", threads=1)
    logits = predict(images)                 # float32 [B, ...] -> the file's first output [B, ...]

As a script, it opens one file and answers one JSON object a line, until its input ends:

    python onnx_runtime.py student.onnx [--threads 1] [--no-optimize]

    (on start)                                              {"runtime": "onnxruntime 1.32.0", "load_seconds": 0.01}
    {"predict": "in.npy", "output": "out.npy", "batch": 64} {"samples": 1000}
    {"time": 50, "inputs": "in.npy", "start": 0}            {"seconds": [0.0004, …]}
    {"memory": true}                                        {"peak_bytes": 41943040}

`predict` answers all rows, `batch` a call. `time` is the number of calls to time, one row each, from row `start` on and
around the end; "warmup" says how many untimed ones go before. `memory` is the peak since the process began.
A line that cannot be served is answered by {"error": "one line"}. A file that cannot be opened is answered so on start,
and the script ends with exit code 2. Nothing but these answers is written to standard output.

Shapes: B batch.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

Predict = Callable[[np.ndarray], np.ndarray]

RUNTIME = f"onnxruntime {onnxruntime.__version__}"
RUNTIME_ERRORS = (
    ort_errors.Fail,
    ort_errors.InvalidArgument,
    ort_errors.InvalidGraph,
    ort_errors.InvalidProtobuf,
    ort_errors.NoSuchFile,
    ort_errors.NotImplemented,
    ort_errors.RuntimeException,
)


def load(path: str | os.PathLike[str], threads: int = 1, optimize: bool = True) -> Predict:
    """A function from float32 [B, ...] to the file's first output, on the CPU with `threads` threads.

    `optimize=False` runs the graph as it is written. On x86 without VNNI that is the int8 answer of the device:
    the fused int8 kernels saturate there.

    Raises ValueError, one line that names the path, for a file that is missing, cut short or not ONNX.
    """
    if not Path(path).is_file():
        raise ValueError(f"an ONNX file is needed, but there is no file {os.fspath(path)}")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Idle threads that spin would take the cores from the next process in an interleaved measurement.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = onnxruntime.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])
    except RUNTIME_ERRORS as error:
        raise ValueError(f"{os.fspath(path)} is not a complete ONNX file for {RUNTIME}: {first_line(error)}") from None
    name, output = session.get_inputs()[0].name, session.get_outputs()[0].name

    def predict(inputs: np.ndarray) -> np.ndarray:
        return np.asarray(session.run([output], {name: np.ascontiguousarray(inputs, dtype=np.float32)})[0])

    return predict


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


def first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def predict_file(predict: Predict, inputs: str, output: str, batch: int) -> int:
    """Answer all rows of one .npy file into another, `batch` at a time; the number of rows."""
    rows = np.load(inputs, mmap_mode="r")
    np.save(output, np.concatenate([predict(rows[i : i + batch]) for i in range(0, len(rows), batch)]))
    return len(rows)


def time_calls(predict: Predict, inputs: str, repeats: int, start: int = 0, warmup: int = 1) -> list[float]:
    """Seconds of `repeats` calls, each with one row, after `warmup` untimed ones."""
    rows = np.load(inputs, mmap_mode="r")
    seconds = []
    for call in range(-warmup, repeats):
        row = np.array(rows[(start + max(call, 0)) % len(rows)])[None]
        began = time.perf_counter()
        predict(row)
        if call >= 0:
            seconds.append(time.perf_counter() - began)
    return seconds


def answer(predict: Predict, command: dict[str, Any]) -> dict[str, Any]:
    if "predict" in command:
        batch = int(command.get("batch", 64))
        return {"samples": predict_file(predict, command["predict"], command["output"], batch)}
    if "time" in command:
        start, warmup = int(command.get("start", 0)), int(command.get("warmup", 1))
        return {"seconds": time_calls(predict, command["inputs"], int(command["time"]), start, warmup)}
    if "memory" in command:
        return {"peak_bytes": peak_bytes()}
    raise ValueError(f"a command is one of predict, time, memory; came: {', '.join(command)}")


def main() -> int:
    parser = argparse.ArgumentParser(description="Run an ONNX file; one JSON command a line, see the top of this file.")
    parser.add_argument("path")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--no-optimize", dest="optimize", action="store_false", help="run the graph as it is written")
    options = parser.parse_args()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # What a library prints, also from C, must not fall between the answers.

    def reply(message: dict[str, Any]) -> None:
        print(json.dumps(message), file=answers, flush=True)

    began = time.perf_counter()
    try:
        predict = load(options.path, options.threads, options.optimize)
    except ValueError as error:
        reply({"error": first_line(error)})
        return 2
    reply({"runtime": RUNTIME, "load_seconds": time.perf_counter() - began})
    for line in sys.stdin:
        try:
            reply(answer(predict, json.loads(line)))
        except (ValueError, KeyError, TypeError, OSError, *RUNTIME_ERRORS) as error:
            reply({"error": first_line(error)})
    return 0


if __name__ == "__main__":
    sys.exit(main())
