"""Modules to LiteRT files (.tflite), by a converter that has an environment of its own.

The converter, litert-torch, needs 2 GB and other versions of what edgestill needs; it is run there as a process, once
for all files, since it starts slowly.

Shapes: B batch, C channels, H height, W width.
"""

import collections
import json
import os
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import Graph, GraphModule, Node

from edgestill.errors import UserError
from edgestill.export.program import (
    UnsupportedOperator,
    aten,
    call,
    exported,
    operator_in,
    pool_maps,
    quiet,
    whole,
)

FORM = "LiteRT"
VARIABLE = "EDGESTILL_LITERT_PYTHON"
ENVIRONMENT = "~/.cache/edgestill/litert"
CONVERTER = Path(__file__).with_name("litert_convert.py")
TIMEOUT = 1800.0
"""Seconds for all files of one call. A small one takes 10 to 30."""
ALIGNMENT = 16
"""Of weights in the file, in bytes: kernels read them where they lie."""


@dataclass(frozen=True)
class Job:
    """One file to be made: `module` for one sample shaped like `example` [1 or more, C, H, W], written to `path`.

    A GraphModule with int8 weights and quantize and dequantize operators of `torch.ops.quantized_decomposed`
    (activations as int8) becomes an integer file, with the module's own scales.
    """

    module: nn.Module
    example: Tensor
    path: Path


def python() -> Path:
    """The Python of the converter's environment: `EDGESTILL_LITERT_PYTHON`, or that of ~/.cache/edgestill/litert.

    Raises UserError with the commands that make it, where there is none or litert-torch is missing in it.
    """
    given = os.environ.get(VARIABLE)
    path = Path(given or f"{ENVIRONMENT}/bin/python").expanduser()
    make = (
        f"python -m venv {ENVIRONMENT} && {ENVIRONMENT}/bin/pip install "
        f"torch=={torch.__version__.partition('+')[0]} 'litert-torch==0.10.*'"
    )
    if not path.is_file():
        raise UserError(
            f"LiteRT files need litert-torch in an environment of its own, but there is no {path}: make it with "
            f"{make}, or name its Python in {VARIABLE}"
        )
    look = "import importlib.util, sys; sys.exit(importlib.util.find_spec('litert_torch') is None)"
    try:
        lacking = subprocess.run([path, "-I", "-c", look], capture_output=True).returncode != 0
    except OSError as error:
        raise UserError(
            f"{VARIABLE}: {path} is no Python that can be run: {error.strerror}; make one with {make}"
        ) from None
    if lacking:
        raise UserError(f"LiteRT files need litert-torch, which {path} does not have: {make}")
    return path


def convert(jobs: Sequence[Job], timeout: float = TIMEOUT) -> None:
    """Write the LiteRT file of every job, each for one sample a call.

    Input `input` and output `logits` are float32, also of integer files. The modules are left as they were; after an
    error none of the files is there. At most `timeout` seconds.

    Raises UnsupportedOperator for an operator that LiteRT lacks; UserError for a module whose operators depend on the
    values of tensors, a converter that is missing, fails or takes longer.

    >>> convert([Job(student, torch.zeros(1, 3, 32, 32), Path("student.tflite"))])  # doctest: +SKIP
    """
    interpreter = python()
    with tempfile.TemporaryDirectory() as folder:
        for index, job in enumerate(jobs):
            with quiet("torch"):
                torch.export.save(_program(job), Path(folder, f"{index:03}.pt2"))
        _run(interpreter, Path(folder), [type(job.module).__name__ for job in jobs], timeout)
        files = [_finished(Path(folder, f"{index:03}.tflite").read_bytes()) for index in range(len(jobs))]
    for job, file in zip(jobs, files, strict=True):
        with whole(job.path) as partial:
            partial.write_bytes(file)


def write_empty(path: str | Path, example: Tensor) -> None:
    """A file for inputs like `example` [1, ...] that answers with its input: what the runtime needs by itself."""
    from ai_edge_litert import schema_py_generated as schema

    given = schema.TensorT(
        name="input", type=schema.TensorType.FLOAT32, shape=[1, *example.shape[1:]], buffer=0, hasRank=True
    )
    graph = schema.SubGraphT(tensors=[given], inputs=[0], outputs=[0], operators=[])
    model = schema.ModelT(version=3, subgraphs=[graph], buffers=[schema.BufferT()], operatorCodes=[])
    with whole(path) as partial:
        partial.write_bytes(_packed(model))


def describe(path: str | Path) -> dict[str, Any]:
    """What a .tflite file holds: `operators` (name: count), `inputs` and `outputs` (each with name, shape, dtype).

    >>> describe("student.tflite")["operators"]  # doctest: +SKIP
    {'TRANSPOSE': 1, 'CONV_2D': 9, 'ADD': 3, …}
    """
    from ai_edge_litert import schema_py_generated as schema

    model = _unpacked(Path(path).read_bytes())
    graph = model.subgraphs[0]
    operators = {number: name for name, number in vars(schema.BuiltinOperator).items() if not name.startswith("_")}
    types = {number: name.lower() for name, number in vars(schema.TensorType).items() if not name.startswith("_")}
    codes = [operators[code.builtinCode] for code in model.operatorCodes]
    signature = (model.signatureDefs or [schema.SignatureDefT(inputs=[], outputs=[])])[0]

    def ends(indices: Iterable[int], named: list[Any]) -> list[dict[str, Any]]:
        names = {one.tensorIndex: one.name.decode() for one in named}
        tensors = [(index, graph.tensors[index]) for index in indices]
        return [
            {
                "name": names.get(index, tensor.name.decode()),
                "shape": [int(size) for size in tensor.shape],
                "dtype": types[tensor.type],
            }
            for index, tensor in tensors
        ]

    return {
        "operators": dict(collections.Counter(codes[one.opcodeIndex] for one in graph.operators)),
        "inputs": ends(graph.inputs, signature.inputs),
        "outputs": ends(graph.outputs, signature.outputs),
    }


class _Named(nn.Module):
    """Names for the ends of a module: the converter takes them from the program's keyword and its dictionary."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, input: Tensor) -> dict[str, Tensor]:
        return {"logits": self.module(input)}


def _program(job: Job) -> ExportedProgram:
    program = exported(job.module, job.example, FORM, batch=1, dynamic=False)
    pool_maps(program, _average)
    plain = program.module(check_guards=False)
    assert isinstance(plain, GraphModule)
    _real_weights(plain)
    return torch.export.export(_Named(plain), (), {"input": torch.zeros(1, *job.example.shape[1:])})


def _average(graph: Graph, maps: Node) -> Node:
    """The mean that the converter keeps in its layout, channels last."""
    return call(graph, aten.avg_pool2d.default, maps, [int(size) for size in maps.meta["val"].shape[2:]])


def _real_weights(module: GraphModule) -> None:
    """int8 weights → float32 weights and a quantize operator: the converter makes the same int8 weights of these, and
    takes no others.
    """
    graph = module.graph
    for node in list(graph.nodes):
        levels = node.args[0] if str(node.target) == "quantized_decomposed.dequantize_per_channel.default" else None
        if levels is None or levels.op != "get_attr":
            continue
        constants = [attrgetter(str(one.target))(module) for one in node.args[:3]]
        above, _, name = str(levels.target).rpartition(".")
        weight = node.target(*constants, *node.args[3:])
        module.get_submodule(above).register_buffer(f"{name}_real", weight)
        with graph.inserting_before(node):
            real = graph.get_attr(f"{levels.target}_real")
            quantize = torch.ops.quantized_decomposed.quantize_per_channel.default
            again = graph.call_function(quantize, (real, *node.args[1:]))
        node.replace_input_with(levels, again)
    graph.eliminate_dead_code()
    module.recompile()


def _run(interpreter: Path, folder: Path, names: list[str], timeout: float) -> None:
    with tempfile.TemporaryFile("w+", errors="replace") as log:
        command = [str(interpreter), "-I", str(CONVERTER), str(folder)]
        try:
            code = subprocess.run(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, timeout=timeout).returncode
        except subprocess.TimeoutExpired:
            raise UserError(f"the {FORM} converter took longer than {timeout:g} seconds and was stopped") from None
        if code == 0:
            return
        log.seek(0)
        last = (log.read().strip().splitlines() or ["it wrote nothing"])[-1]
    failed = folder / "error.json"
    if not failed.exists():
        raise UserError(f"the {FORM} converter, run by {interpreter}, ended with exit code {code}: {last}")
    said = json.loads(failed.read_text())
    operator = operator_in(said["error"])
    if operator is not None:
        raise UnsupportedOperator(operator, FORM)
    raise UserError(f"{names[int(said['name'])]} cannot be exported to {FORM}: {said['error'].splitlines()[0]}")


def _finished(content: bytes) -> bytes:
    """The converter's file with float32 ends, and short names for the values that only pass between operators."""
    from ai_edge_litert import schema_py_generated as schema

    model = _unpacked(content)
    graph, signature = model.subgraphs[0], model.signatureDefs[0]
    for index, tensor in enumerate(graph.tensors):
        tensor.name = f"v{index}"
    graph.tensors[graph.inputs[0]].name, graph.tensors[graph.outputs[0]].name = "input", "logits"
    if graph.tensors[graph.inputs[0]].type == schema.TensorType.INT8:
        index = _float_end(model, graph.inputs[0])
        graph.operators.insert(0, _operator(model, schema.BuiltinOperator.QUANTIZE, index, graph.inputs[0]))
        graph.inputs, signature.inputs[0].tensorIndex = [index, *graph.inputs[1:]], index
    if graph.tensors[graph.outputs[0]].type == schema.TensorType.INT8:
        index = _float_end(model, graph.outputs[0])
        graph.operators.append(_operator(model, schema.BuiltinOperator.DEQUANTIZE, graph.outputs[0], index))
        graph.outputs, signature.outputs[0].tensorIndex = [index, *graph.outputs[1:]], index
    return _packed(model)


def _float_end(model: Any, index: int) -> int:
    """The number of a new float32 tensor, of the shape and name of the integer one, which gets another name."""
    from ai_edge_litert import schema_py_generated as schema

    tensors = model.subgraphs[0].tensors
    integer = tensors[index]
    real = schema.TensorT(
        name=integer.name, type=schema.TensorType.FLOAT32, shape=integer.shape, buffer=0, hasRank=True
    )
    integer.name = f"{integer.name}_int8"
    tensors.append(real)
    return len(tensors) - 1


def _operator(model: Any, builtin: int, given: int, made: int) -> Any:
    from ai_edge_litert import schema_py_generated as schema

    model.operatorCodes.append(schema.OperatorCodeT(deprecatedBuiltinCode=builtin, builtinCode=builtin, version=2))
    return schema.OperatorT(opcodeIndex=len(model.operatorCodes) - 1, inputs=[given], outputs=[made])


def _unpacked(content: bytes) -> Any:
    from ai_edge_litert import schema_py_generated as schema

    return schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(content, 0))


def _packed(model: Any) -> bytes:
    """The bytes of a model, its weights aligned, which the packing of its schema leaves to chance."""
    import flatbuffers  # type: ignore[import-untyped]
    from ai_edge_litert import schema_py_generated as schema

    class Aligned(schema.BufferT):  # type: ignore[misc]
        def Pack(self, builder: Any) -> Any:  # noqa: N802
            builder.StartVector(1, len(self.data), ALIGNMENT)
            builder.head -= len(self.data)
            builder.Bytes[builder.head : builder.head + len(self.data)] = bytes(self.data)
            vector = builder.EndVector()
            schema.BufferStart(builder)
            schema.BufferAddData(builder, vector)
            return schema.BufferEnd(builder)

    model.buffers = [one if one.data is None else Aligned(data=one.data) for one in model.buffers]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())
