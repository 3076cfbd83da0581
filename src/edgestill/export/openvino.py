"""A module to OpenVINO's two files, STUDENT.xml and STUDENT.bin beside it, and those to int8.

Shapes: N samples, B batch.
"""

import collections
import contextlib
import io
import logging
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgestill.errors import UserError, first_line
from edgestill.export.program import UnsupportedOperator, exported, operator_in, quiet

FORM = "OpenVINO"
LARGEST_BATCH = 64
"""Of the example alone; the file takes any."""


def export(module: nn.Module, example: Tensor, path: str | Path, half: bool = False) -> None:
    """Write `module`, as it answers in evaluation mode, to `path` (.xml) and its weights to the .bin beside it.

    `example` is float32 [1 or more, ...]: its first axis becomes the dynamic batch, its other axes are fixed. The input
    is `input`, the output `logits`, both float32; `half` stores the weights as float16. No names of the exporting
    machine lie inside. The module is left as it was, and an interrupted export leaves no .xml.

    Raises UnsupportedOperator for an operator that OpenVINO lacks, UserError for a module whose operators depend on the
    values of tensors.

    >>> export(student, torch.zeros(1, 3, 32, 32), "student.xml")  # doctest: +SKIP
    """
    openvino = _openvino()
    program = exported(module, example, FORM, batch=LARGEST_BATCH, dynamic=True)
    try:
        with quiet("torch", "openvino"), torch.no_grad():
            model = openvino.convert_model(program)
    except Exception as error:
        operator = operator_in(str(error))
        if operator is not None:
            raise UnsupportedOperator(operator, FORM) from error
        raise UserError(f"{type(module).__name__} cannot be exported to {FORM}: {first_line(error)}") from error
    model.inputs[0].get_node().set_friendly_name("input")
    model.inputs[0].set_names({"input"})
    model.outputs[0].set_names({"logits"})
    model.reshape({"input": openvino.PartialShape([-1, *example.shape[1:]])})
    _write(model, Path(path), half)


def quantize_int8(path: str | Path, calibration: np.ndarray, output: str | Path) -> None:
    """Write the float32 model at `path` (.xml) in int8 to `output` (.xml) and the .bin beside it, by NNCF.

    Weights get one scale a channel, activations one scale and zero point a tensor, from the smallest and largest value
    seen over `calibration`: float32 [N, ...], preprocessed as in evaluation, 200 to 500 samples as a rule.

    Raises UserError when `calibration` has fewer than two samples, or a value that is not finite.

    >>> quantize_int8("student.xml", images[:300], "student-int8.xml")  # doctest: +SKIP
    """
    if len(calibration) < 2:
        raise UserError(
            f"int8 needs at least 2 calibration samples, got {len(calibration)}: give 200 to 500 training samples"
        )
    if not np.isfinite(calibration).all():
        raise UserError("int8 calibration samples must be finite numbers, some are NaN or infinite: check the data")
    openvino = _openvino()
    with quiet("nncf"), contextlib.redirect_stdout(io.StringIO()):  # its bars have no other switch
        import nncf
        from nncf.quantization.range_estimator import RangeEstimatorParametersSet

        nncf.set_log_level(logging.ERROR)
        samples = nncf.Dataset([np.asarray(row[None], dtype=np.float32) for row in calibration])
        model = nncf.quantize(
            openvino.Core().read_model(os.fspath(path)),
            samples,
            # Symmetric weights, activations with a zero point.
            preset=nncf.QuantizationPreset.MIXED,
            subset_size=len(calibration),
            # NNCF's own choice, mean ranges and corrected biases, cuts logits off: on ResNet-20 its squared error is
            # thirteen times as large.
            advanced_parameters=nncf.AdvancedQuantizationParameters(
                activations_range_estimator_params=RangeEstimatorParametersSet.MINMAX, disable_bias_correction=True
            ),
        )
    _write(model, Path(output), half=False)


def write_empty(path: str | Path, example: Tensor) -> None:
    """A model for inputs like `example` [1, ...] that answers with its input: what the runtime needs by itself."""
    openvino = _openvino()
    given = openvino.opset8.parameter([-1, *example.shape[1:]], np.float32, name="input")
    _write(openvino.Model([openvino.opset8.result(given)], [given], "empty"), Path(path), half=False)


def describe(path: str | Path) -> dict[str, Any]:
    """What the model at `path` (.xml) holds: `operators` (name: count; constants are not counted), `inputs` and
    `outputs` (each with name, shape, dtype).

    >>> describe("student.xml")["operators"]  # doctest: +SKIP
    {'Convolution': 9, 'Add': 12, 'Relu': 7, …}
    """
    model = _openvino().Core().read_model(os.fspath(path))
    kinds = [node.get_type_name() for node in model.get_ordered_ops()]
    counts = collections.Counter(kind for kind in kinds if kind not in ("Constant", "Parameter", "Result"))
    return {
        "operators": dict(counts),
        "inputs": [_end(end) for end in model.inputs],
        "outputs": [_end(end) for end in model.outputs],
    }


def _openvino() -> Any:
    # OpenVINO and NNCF report their use over the network, from the import on; without this module they do not.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    return openvino


def _end(end: Any) -> dict[str, Any]:
    shape = ["batch" if size.is_dynamic else size.get_length() for size in end.get_partial_shape()]
    return {"name": end.get_any_name(), "shape": shape, "dtype": end.get_element_type().to_dtype().name}


def _write(model: Any, path: Path, half: bool) -> None:
    partial = path.with_name(f".{path.stem}.{os.getpid()}.xml")
    weights = partial.with_suffix(".bin")
    try:
        _openvino().save_model(model, partial, compress_to_fp16=half)
        # Never one model's .xml beside another's .bin.
        path.unlink(missing_ok=True)
        os.replace(weights, path.with_suffix(".bin"))
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
        weights.unlink(missing_ok=True)
