"""Run an OpenVINO model, an .xml file with its .bin beside it. Needs numpy and openvino only; copied to a device, this
file runs there alone.

    predict = load("student.xml", threads=1)
    logits = predict(images)                 # float32 [B, ...] -> the model's first output [B, ...]

Shapes: B batch.
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

# OpenVINO reports its use over the network, from its import on; without this module it does not.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

import openvino  # noqa: E402

Predict = Callable[[np.ndarray], np.ndarray]

RUNTIME = f"openvino {openvino.__version__.split('-')[0]}"


def load(path: str | os.PathLike[str], threads: int = 1) -> Predict:
    """A function from float32 [B, ...] to the model's first output, on the CPU with `threads` threads.

    It computes in float32 what the model does not compute in integers: on some processors OpenVINO would choose 16 bits
    by itself.

    Raises ValueError, one line that names the path, for a file that is missing, cut short or not OpenVINO's; the
    function raises it for inputs of another shape.
    """
    weights = Path(path).with_suffix(".bin")
    for file in (Path(path), weights):
        if not file.is_file():
            raise ValueError(f"an OpenVINO model is an .xml file and a .bin beside it, but there is no file {file}")
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
        # Models measured by turns would all be pinned to the same cores.
        "ENABLE_CPU_PINNING": False,
    }
    try:
        request = openvino.Core().compile_model(os.fspath(path), "CPU", settings).create_infer_request()
    except RuntimeError as error:
        raise ValueError(f"{os.fspath(path)} is not a complete model for {RUNTIME}: {_reason(error)}") from None

    def predict(inputs: np.ndarray) -> np.ndarray:
        rows = np.ascontiguousarray(inputs, dtype=np.float32)
        try:
            request.infer([rows], share_inputs=True)
        except RuntimeError as error:
            raise ValueError(f"{os.fspath(path)} could not be run on {list(rows.shape)}: {_reason(error)}") from None
        return np.array(request.get_output_tensor(0).data)

    return predict


def _reason(error: BaseException) -> str:
    """OpenVINO's messages begin with places in its source; what was wrong stands last."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()
