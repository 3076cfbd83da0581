"""Run a LiteRT file (.tflite). Needs numpy and ai-edge-litert only; copied to a device, this file runs there alone.

    predict = load("student.tflite", threads=1)
    logits = predict(images)                 # float32 [B, ...] -> the file's first output [B, ...]

Shapes: B batch.
"""

import importlib.metadata
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter

Predict = Callable[[np.ndarray], np.ndarray]

RUNTIME = f"ai-edge-litert {importlib.metadata.version('ai-edge-litert')}"


def load(path: str | os.PathLike[str], threads: int = 1) -> Predict:
    """A function from float32 [B, ...] to the file's first output, on the CPU with `threads` threads.

    The file takes one sample: the rows of a batch are answered one after the other. Integer inputs and outputs, which
    other tools write, are quantized and dequantized here, by the scales in the file.

    Raises ValueError, one line that names the path, for a file that is missing, cut short or not LiteRT's; the function
    raises it for inputs of another shape.
    """
    if not Path(path).is_file():
        raise ValueError(f"a LiteRT file is needed, but there is no file {os.fspath(path)}")
    try:
        interpreter = Interpreter(os.fspath(path), num_threads=threads)
        interpreter.allocate_tensors()
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"{os.fspath(path)} is not a complete LiteRT file for {RUNTIME}: {_reason(error)}") from None
    given, made = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    shape = [int(size) for size in given["shape"]]

    def predict(inputs: np.ndarray) -> np.ndarray:
        rows = np.asarray(inputs, dtype=np.float32)
        if list(rows.shape[1:]) != shape[1:]:
            wanted = ", ".join(["B", *map(str, shape[1:])])
            raise ValueError(f"{os.fspath(path)} takes inputs of shape [{wanted}], came {list(rows.shape)}")
        outputs = np.empty((len(rows), *made["shape"][1:]), np.float32)
        for index in range(len(rows)):
            try:
                interpreter.set_tensor(given["index"], _quantized(rows[index : index + 1], given))
                interpreter.invoke()
            except (ValueError, RuntimeError) as error:
                raise ValueError(f"{os.fspath(path)} could not be run: {_reason(error)}") from None
            outputs[index] = _real(interpreter.get_tensor(made["index"]), made)[0]
        return outputs

    return predict


def _quantized(values: np.ndarray, end: dict[str, Any]) -> np.ndarray:
    if end["dtype"] == np.float32:
        return values
    (scale, zero_point), limits = end["quantization"], np.iinfo(end["dtype"])
    levels = np.clip(np.round(values / scale) + zero_point, limits.min, limits.max)
    return np.asarray(levels, dtype=end["dtype"])


def _real(values: np.ndarray, end: dict[str, Any]) -> np.ndarray:
    if end["dtype"] == np.float32:
        return values
    scale, zero_point = end["quantization"]
    return np.asarray((values.astype(np.float32) - zero_point) * scale, dtype=np.float32)


def _reason(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
