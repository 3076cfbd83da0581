"""A module to one ExecuTorch file (.pte) for the CPU, its operators delegated to XNNPACK.

Shapes: B batch.
"""

import collections
import json
import re
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgestill.errors import UserError, first_line
from edgestill.export.program import (
    UnsupportedOperator,
    aten,
    call,
    exported,
    infer_batch,
    operator_in,
    pool_maps,
    quiet,
    share_grids,
    whole,
)

FORM = "ExecuTorch"
LOGGERS = ("torch", "torchao", "executorch", "root", "torch.utils._pytree")


def export(module: nn.Module, example: Tensor, path: str | Path, largest_batch: int = 64) -> None:
    """Write `module`, as it answers in evaluation mode, to one .pte file, for batches of 1 to `largest_batch`.

    `example` is float32 [1 or more, ...]. A GraphModule with int8 weights and quantize and dequantize operators of
    `torch.ops.quantized_decomposed` (activations as int8) becomes integer operators of XNNPACK. Operators that XNNPACK
    lacks run in ExecuTorch's own kernels. Weights lie inside, and no names of the exporting machine. The module is left
    as it was, and an interrupted export leaves no file.

    Raises UnsupportedOperator for an operator that ExecuTorch has no kernel for, UserError for a module whose
    operators depend on the values of tensors.

    >>> export(student, torch.zeros(1, 3, 32, 32), "student.pte")  # doctest: +SKIP
    """
    with quiet(*LOGGERS):
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower
        from executorch.extension.pybindings.portable_lib import _get_operator_names
        from executorch.kernels import quantized  # noqa: F401  registers the kernels of what stays outside of XNNPACK

    program = exported(module, example, FORM, batch=largest_batch, dynamic=True)
    pool_maps(program, lambda graph, maps: call(graph, aten.mean.dim, maps, [2, 3], True))
    share_grids(program)
    infer_batch(program)
    try:
        with quiet(*LOGGERS), torch.no_grad():
            lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()]).to_executorch()
    except Exception as error:
        # Other messages name the operators around a mistake.
        lacking = re.search(r"Operator \S+ is not in Core ATen|Missing out variants: .*", str(error))
        operator = operator_in(lacking[0].replace("::", ".")) if lacking else None
        if operator is not None:
            raise UnsupportedOperator(operator, FORM) from error
        raise UserError(f"{type(module).__name__} cannot be exported to {FORM}: {first_line(error)}") from error
    known = set(_get_operator_names())
    for operator in _kernels(lowered.executorch_program):
        if operator not in known:
            raise UnsupportedOperator(operator.replace("::", "."), FORM)
    with whole(path) as partial:
        partial.write_bytes(lowered.buffer)


def write_empty(path: str | Path, example: Tensor) -> None:
    """A file for inputs like `example` [1, ...] that answers with its input: what the runtime needs by itself."""
    export(_Same(), example, path, largest_batch=len(example))


def describe(path: str | Path) -> dict[str, Any]:
    """What a .pte file holds: `operators` (name: count), `inputs` and `outputs` (each with name, shape, dtype), and the
    `largest_batch`.

    Operators of XNNPACK are called `xnnpack::Conv2d`, or `xnnpack::Conv2d.int8` where their result is 8-bit integers.
    ExecuTorch keeps no names of inputs and outputs: here they are `input` and `logits`.

    >>> describe("student.pte")["operators"]  # doctest: +SKIP
    {'xnnpack::Conv2d': 9, 'xnnpack::Add': 3, …}
    """
    with quiet(*LOGGERS):
        from executorch.exir._serialize._program import deserialize_pte_binary
        from executorch.exir.schema import DelegateCall, KernelCall

    file = deserialize_pte_binary(Path(path).read_bytes())
    plan = file.program.execution_plan[0]
    operators: collections.Counter[str] = collections.Counter()
    for step in plan.chains[0].instructions:
        if isinstance(step.instr_args, KernelCall):
            operator = plan.operators[step.instr_args.op_index]
            operators[f"{operator.name}.{operator.overload}" if operator.overload else operator.name] += 1
        elif isinstance(step.instr_args, DelegateCall):
            data = plan.delegates[step.instr_args.delegate_index].processed.index
            operators.update(_xnnpack_operators(bytes(file.program.backend_delegate_data[data].data)))
    (first, *_), _ = (ends := [[plan.values[index].val for index in side] for side in (plan.inputs, plan.outputs)])
    return {
        "operators": dict(operators),
        "inputs": [_end("input", value) for value in ends[0]],
        "outputs": [_end("logits", value) for value in ends[1]],
        "largest_batch": first.sizes[0],
    }


class _Same(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.clone()


def _end(name: str, value: Any) -> dict[str, Any]:
    batch = "batch" if value.shape_dynamism.name != "STATIC" else value.sizes[0]
    return {"name": name, "shape": [batch, *value.sizes[1:]], "dtype": f"{value.scalar_type.name.lower()}32"}


def _kernels(program: Any) -> list[str]:
    plan = program.execution_plan[0]
    return [f"{one.name}.{one.overload}" if one.overload else one.name for one in plan.operators]


def _xnnpack_operators(data: bytes) -> list[str]:
    """The operators of one part of a program that was delegated to XNNPACK."""
    from executorch.backends.xnnpack.serialization.xnnpack_graph_serialize import XNNHeader, _get_schema_bytes
    from executorch.exir._serialize._flatbuffer import _flatc_decompile

    header = XNNHeader.from_bytes(data[: XNNHeader.EXPECTED_LENGTH])
    begin = header.flatbuffer_offset
    with tempfile.TemporaryDirectory() as folder:
        schema, part = Path(folder, "schema.fbs"), Path(folder, "part.bin")
        schema.write_bytes(_get_schema_bytes())
        part.write_bytes(data[begin : begin + header.flatbuffer_size])
        _flatc_decompile(folder, str(schema), str(part), ["--raw-binary"])
        # flatc writes inf, which is no JSON; Python's reader calls it Infinity.
        graph = json.loads(re.sub(r": (-?)inf\b", r": \1Infinity", Path(folder, "part.json").read_text()))
    integer = set()
    for value in graph["xvalues"]:
        if value["xvalue_union_type"] == "XNNQuantizedTensorValue":
            integer.add(value["xvalue_union"]["tensor_value"]["id_out"])
    names = []
    for node in graph["xnodes"]:
        name = node["xnode_union_type"].removeprefix("XNN")
        names.append(f"xnnpack::{name}.int8" if node["xnode_union"]["output_id"] in integer else f"xnnpack::{name}")
    return names
