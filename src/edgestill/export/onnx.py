"""A module to one plain ONNX file.

Shapes: N samples.
"""

import contextlib
import copy
import logging
import os
import re
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgestill.errors import UserError, first_line
from edgestill.export.program import UnsupportedOperator, operator_in


def export(module: nn.Module, example: Tensor, path: str | Path, names: Sequence[str] = ()) -> None:
    """Write `module`, as it answers in evaluation mode, to one ONNX file for the CPU: in float32, or, of a module with
    quantize and dequantize operators (`edgestill.quantize.integer`), as int8 with QuantizeLinear and DequantizeLinear.

    `example` is float32 [1 or more, ...]: its first axis is the batch and becomes dynamic, its other axes are fixed.
    The file's input is `input`, its output `logits`, or what the module's attribute `output` says; weights lie inside,
    and no names of the exporting machine.
    Of a text model `example` is int64 [1 or more, inputs, T] with an input for each of `names`: the module takes them
    one by one, [B, T] each, and the length T becomes dynamic too.
    The module is left as it was, its training mode included. An interrupted export leaves no file.

    Raises UnsupportedOperator for an operator that ONNX lacks, UserError for a module whose operators depend on the
    values of tensors.

    >>> export(student, torch.zeros(1, 3, 32, 32), "student.onnx")  # doctest: +SKIP
    """
    plain = copy.deepcopy(module).to("cpu", torch.float32).eval()
    plain.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    # Two rows: torch.export may take an axis of size one for a constant.
    rows = example[:1].detach().to("cpu").expand(2, *example.shape[1:]).contiguous()
    inputs = rows.unbind(1) if names else (rows.float(),)
    open_axes = dict.fromkeys(range(2 if names else 1), torch.export.Dim.DYNAMIC)
    try:
        with _quiet_exporter(), torch.no_grad():
            program = torch.onnx.export(
                plain,
                inputs,
                dynamo=True,
                input_names=[*names] or ["input"],
                output_names=[getattr(module, "output", "logits")],
                # a module that takes any number of inputs has one parameter for all of them
                dynamic_shapes=(tuple(open_axes for _ in inputs),) if names else (open_axes,),
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        cause = error.__cause__ or error
        operator = operator_in(str(cause)) if "translating node" in str(cause) else None
        if operator is not None:
            raise UnsupportedOperator(operator, "ONNX") from error
        raise UserError(
            f"{type(module).__name__} cannot be exported to ONNX: {first_line(cause)}; a forward pass without "
            "branches on the values of tensors can"
        ) from error
    assert program is not None
    model = program.model_proto
    _name_axes(model)
    if any(node.op_type == "QuantizeLinear" for node in model.graph.node):
        _compact(model)
    _write(model, Path(path))


def quantize_dynamic(path: str | Path, output: str | Path) -> None:
    """Write the float32 ONNX file at `path` with int8 weights to `output`; activations get their scale anew in each
    call. It needs no calibration, and pays where weights are most of the time.

    >>> quantize_dynamic("student.onnx", "student-int8.onnx")  # doctest: +SKIP
    """
    import onnx

    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # onnxruntime sends usage data unless told before its import
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization import quantize_dynamic as quantize

    model = onnx.load(os.fspath(path))
    # Without this mark onnxruntime warns that the graph was not optimised; the exporter has already folded it.
    onnx.helper.set_model_props(model, {"onnx.quant.pre_process": "onnxruntime.quant"})
    with tempfile.TemporaryDirectory() as folder:
        quantized = Path(folder) / "int8.onnx"
        # Unsigned: onnxruntime's dynamic convolution takes no signed weights on x86.
        quantize(model, quantized, weight_type=QuantType.QUInt8)
        model = onnx.load(quantized)
        _shorten(model)
        _write(model, Path(output))


def write_empty(path: str | Path, example: Tensor, names: Sequence[str] = ()) -> None:
    """A file for inputs like `example`, as `export` takes it, that answers with its first input: what the runtime needs
    by itself."""
    from onnx import TensorProto, helper

    kind = TensorProto.INT64 if names else TensorProto.FLOAT
    shape = ["batch", "length"] if names else ["batch", *example.shape[1:]]
    taken = [*names] or ["input"]
    inputs = [helper.make_tensor_value_info(name, kind, shape) for name in taken]
    output = helper.make_tensor_value_info("output", kind, shape)
    graph = helper.make_graph([helper.make_node("Identity", taken[:1], ["output"])], "empty", inputs, [output])
    _write(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), Path(path))


def describe(path: str | Path) -> dict[str, Any]:
    """`operators`, each with its count, `inputs` and `outputs` with name, shape and type, as the file says them."""
    import onnx

    graph = onnx.load(os.fspath(path)).graph
    types = onnx.TensorProto.DataType

    def ends(values: Any) -> list[dict[str, Any]]:
        return [
            {
                "name": value.name,
                "shape": [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim],
                "dtype": types.Name(value.type.tensor_type.elem_type).lower().replace("float", "float32"),
            }
            for value in values
        ]

    operators = Counter(node.op_type for node in graph.node)
    return {"operators": dict(operators), "inputs": ends(graph.input), "outputs": ends(graph.output)}


def _name_axes(model: Any) -> None:
    """Call the open axes of the input, `s77` and the like after torch.export, `batch` and `length` throughout."""
    names = {
        dim.dim_param: name
        for value in model.graph.input
        for dim, name in zip(value.type.tensor_type.shape.dim, ("batch", "length"), strict=False)
    }
    for value in [*model.graph.input, *model.graph.output]:
        for dim in value.type.tensor_type.shape.dim:
            for axis, name in names.items():
                if axis and dim.dim_param:
                    dim.dim_param = re.sub(rf"\b{re.escape(axis)}\b", name, dim.dim_param)


def _compact(model: Any) -> None:
    """Drop what a quantized graph need not say, a tenth of a small file: zero points that are zero (the default), and
    names."""
    from onnx import numpy_helper

    graph = model.graph
    constants = {constant.name: constant for constant in graph.initializer}
    for_conv = {name for node in graph.node if node.op_type == "Conv" for name in node.input}
    for node in graph.node:
        # Only in front of a Conv: onnxruntime fuses a Gemm to int8 only if its zero points are written out.
        if node.op_type == "DequantizeLinear" and len(node.input) == 3 and node.output[0] in for_conv:
            constant, _, zero = node.input
            if constant in constants and not numpy_helper.to_array(constants[zero]).any():
                del node.input[2]
    used = {name for node in graph.node for name in node.input}
    kept = [constant for constant in graph.initializer if constant.name in used]
    graph.ClearField("initializer")
    graph.initializer.extend(kept)
    _shorten(model)


def _shorten(model: Any) -> None:
    """Short names for the values that only pass between nodes, and none for nodes."""
    graph = model.graph
    public = {value.name for value in (*graph.input, *graph.output)} | {""}
    passed = dict.fromkeys(name for node in graph.node for name in node.output if name not in public)
    short = {name: f"v{index}" for index, name in enumerate(passed)}
    for node in graph.node:
        node.ClearField("name")
        node.input[:] = [short.get(name, name) for name in node.input]
        node.output[:] = [short.get(name, name) for name in node.output]


def _strip(message: Any) -> None:
    """Clear all traces, notes and documentation in a protobuf message and what it holds; the graph stays."""
    for name in ("metadata_props", "doc_string"):
        if name in message.DESCRIPTOR.fields_by_name:
            message.ClearField(name)
    for field, value in message.ListFields():
        if field.message_type is not None:
            for part in [value] if hasattr(value, "ListFields") else value:
                _strip(part)


def _write(model: Any, path: Path) -> None:
    _strip(model)
    # Inferred again by every runtime when it loads the file.
    model.graph.ClearField("value_info")
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_bytes(model.SerializeToString())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Hide the exporter's remarks about its own insides and about torchvision; errors and exceptions stay."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"(torch|onnxscript|onnx_ir|copyreg)\b")
            yield
    finally:
        logger.setLevel(level)
