"""Run an ONNX file with ONNX Runtime. Needs numpy and onnxruntime only; copied to a device, this file runs there alone.

    predict = load("student.onnx", threads=1)
    logits = predict(images)                 # float32 [B, ...] -> the file's first output [B, ...]
    logits = predict(tokens)                 # int64 [B, inputs, T]: a row for each of the file's inputs, in its order

Shapes: B batch, T tokens.
"""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

# ONNX Runtime 1.32 sends usage data and keeps a device id in the home folder, from its import on, unless told before.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

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
    """A function from float32 [B, ...], or int64 [B, inputs, T], to the file's first output, on the CPU with `threads`
    threads.

    `optimize=False` runs the graph as it is written. On x86 without VNNI that is the int8 answer of the device:
    the fused int8 kernels saturate there.

    Raises ValueError, one line that names the path, for a file that is missing, cut short or not ONNX; the function
    raises it for inputs of another shape.
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
        raise ValueError(f"{os.fspath(path)} is not a complete ONNX file for {RUNTIME}: {_first_line(error)}") from None
    taken, output = session.get_inputs(), session.get_outputs()[0].name

    def predict(inputs: np.ndarray) -> np.ndarray:
        if np.issubdtype(inputs.dtype, np.integer):
            rows = [np.ascontiguousarray(inputs[:, place], dtype=np.int64) for place in range(inputs.shape[1])]
        else:
            rows = [np.ascontiguousarray(inputs, dtype=np.float32)]
        try:
            return np.asarray(session.run([output], {end.name: row for end, row in zip(taken, rows)})[0])  # noqa: B905
        except (*RUNTIME_ERRORS, ValueError) as error:  # the latter where an input is missing
            expected = " and ".join(_shape(end.shape) for end in taken)
            shapes = f"it takes inputs of shape {expected}, came {' and '.join(_shape(row.shape) for row in rows)}"
            raise ValueError(f"{os.fspath(path)} could not be run; {shapes}: {_first_line(error)}") from None

    return predict


def _shape(sizes: object) -> str:
    return "[" + ", ".join(str(size) for size in sizes) + "]" if isinstance(sizes, (list, tuple)) else "of any size"


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
