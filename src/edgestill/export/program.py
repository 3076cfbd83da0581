"""A module as one torch.export program, and what the backends that begin with one share: small changes to its graph,
an operator that a format lacks, and files that are written whole.

Shapes: B batch, C channels, H height, W width.
"""

import contextlib
import copy
import io
import logging
import os
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx import Graph, Node

from edgestill.errors import UserError, first_line

aten = torch.ops.aten
RESHAPES = (aten.flatten.using_ints, aten.view.default, aten.reshape.default)

QUANTIZE = "quantized_decomposed.quantize_per_tensor.default"
DEQUANTIZE = "quantized_decomposed.dequantize_per_tensor.default"


class UnsupportedOperator(UserError):  # noqa: N818
    """A format without an operator of the module. `operator` is its name in torch, such as `aten.median.dim`."""

    def __init__(self, operator: str, form: str) -> None:
        super().__init__(
            f"{form} has no operator {operator}, which the module needs: use another one, or another format"
        )
        self.operator = operator


def exported(module: nn.Module, example: Tensor, form: str, *, batch: int, dynamic: bool) -> ExportedProgram:
    """The program of a copy of `module`, as it answers in evaluation mode on the CPU in float32.

    `example` is float32 [1 or more, ...], of which only the shape behind the first axis counts. The program takes
    `batch` rows, or any number from 1 to `batch` if `dynamic`.

    Raises UserError, with the name `form` of the format, for a module whose operators depend on the values of tensors.
    """
    plain = copy.deepcopy(module).to("cpu", torch.float32).eval()
    plain.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    # As many rows as the largest batch: ExecuTorch plans its memory for the example, whatever the bound says.
    rows = torch.zeros(batch, *example.shape[1:])
    shapes = ({0: Dim("batch", min=1, max=batch)},) if dynamic and batch > 1 else None
    try:
        # torch prints the operators so far where it fails, however quiet its loggers are
        with quiet("torch"), contextlib.redirect_stderr(io.StringIO()), torch.no_grad():
            return torch.export.export(plain, (rows,), dynamic_shapes=shapes)
    except Exception as error:
        raise UserError(
            f"{type(module).__name__} cannot be exported to {form}: {first_line(error)}; a forward pass without "
            "branches on the values of tensors can"
        ) from error


def module_with(operator: str, module: nn.Module, example: Tensor) -> str:
    """The innermost module that an operator was called in, by path and class; empty where none is found."""
    program = exported(module, example, "torch", batch=2, dynamic=True)
    for nodes in (program.graph.nodes, program.run_decompositions().graph.nodes):  # exporters name either's operators
        for node in nodes:
            stack = list((node.meta.get("nn_module_stack") or {}).values())
            if stack and _name(node).startswith(operator):
                path, kind = stack[-1]
                return f"{path or 'the model itself'} ({str(getattr(kind, '__name__', kind)).rpartition('.')[2]})"
    return ""


def pool_maps(program: ExportedProgram, pool: Callable[[Graph, Node], Node]) -> None:
    """Turn every mean of feature maps [B, C, H, W] over H and W into `pool(graph, maps)` [B, C, 1, 1] and a view.

    Runtimes have a kernel for pooling; a mean that drops its axes falls back to a slow one. In a quantized program
    the view gets quantize and dequantize operators of the same grid, so that integers stay integers across it.
    """
    graph = program.graph
    for node in list(graph.nodes):
        if node.target != aten.mean.dim or node.kwargs or node in _outputs(graph):
            continue
        maps, axes, *keep = node.args
        if any(keep) or maps.meta["val"].dim() != 4 or sorted(axis % 4 for axis in axes) != [2, 3]:
            continue
        shape = [-1, int(maps.meta["val"].shape[1])]
        with graph.inserting_before(node):
            pooled = pool(graph, maps)
        users = list(node.users)
        if len(users) == 1 and _name(users[0]) == QUANTIZE:
            node.replace_all_uses_with(pooled)
            _quantized_view(graph, users[0], shape)
        else:
            with graph.inserting_before(node):
                node.replace_all_uses_with(call(graph, aten.view.default, pooled, shape))
        graph.erase_node(node)
    graph.lint()
    program.graph_module.recompile()


def share_grids(program: ExportedProgram) -> None:
    """Bring the integers that are concatenated to the grid of what comes out: XNNPACK joins those of one grid alone."""
    graph = program.graph
    for node in list(graph.nodes):
        if node.target != aten.cat.default or [_name(user) for user in node.users] != [QUANTIZE]:
            continue
        quantize = next(iter(node.users))
        for part in dict.fromkeys(node.args[0]):
            if _name(part) == DEQUANTIZE and part.args[1:] != quantize.args[1:]:
                with graph.inserting_before(node):
                    levels = call(graph, quantize.target, part, *quantize.args[1:])
                    node.replace_input_with(part, call(graph, part.target, levels, *quantize.args[1:]))
    program.graph_module.recompile()


def infer_batch(program: ExportedProgram) -> None:
    """Write reshapes that keep the batch as [-1, ...]: XNNPACK takes those, and none that name the batch's size."""
    for node in program.graph.nodes:
        # What has gaps in memory cannot be viewed; it keeps its reshape.
        if node.target in RESHAPES and node.args[0].meta["val"].is_contiguous():
            (_, *before), (batch, *after) = node.args[0].meta["val"].shape, node.meta["val"].shape
            if not isinstance(batch, int) and all(isinstance(size, int) for size in (*before, *after)):
                node.target, node.args = aten.view.default, (node.args[0], [-1, *after])
    program.graph.eliminate_dead_code()
    program.graph_module.recompile()


def call(graph: Graph, target: Any, *args: Any) -> Node:
    """A call with the shape of its result noted, as programs have it."""
    node = graph.call_function(target, args)
    node.meta["val"] = target(*torch.fx.map_arg(args, lambda one: one.meta["val"]))
    return node


def operator_in(message: str) -> str | None:
    """The first operator of torch that an exporter's message names.

    >>> operator_in("Lowering not found: aten.median.dim"), operator_in("out of memory")
    ('aten.median.dim', None)
    """
    found = re.search(r"\baten\.\w+(\.\w+)?", message)
    return found and found[0]


@contextlib.contextmanager
def whole(path: str | Path) -> Iterator[Path]:
    """A hidden path beside `path` to write to: it takes its place if nothing failed, and is gone if something did."""
    path = Path(path)
    partial = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def quiet(*names: str) -> Iterator[None]:
    """No warnings, nor remarks below an error by the loggers called `names`; exceptions stay."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _quantized_view(graph: Graph, quantize: Node, shape: list[int]) -> None:
    """Behind a quantized value whose shape has changed: dequantize, view, and the same grid again for its readers."""
    quantize.meta["val"] = quantize.target(*torch.fx.map_arg(quantize.args, lambda one: one.meta["val"]))  # type: ignore[operator]
    for dequantize in list(quantize.users):
        grid = dequantize.args[1:]
        dequantize.meta["val"] = dequantize.target(quantize.meta["val"], *grid)  # type: ignore[operator]
        readers = list(dequantize.users)
        with graph.inserting_before(readers[0]):
            view = call(graph, aten.view.default, dequantize, shape)
            levels = call(graph, quantize.target, view, *quantize.args[1:])
            again = call(graph, dequantize.target, levels, *grid)
        for reader in readers:
            reader.replace_input_with(dequantize, again)


def _outputs(graph: Graph) -> list[Node]:
    return [value for node in graph.nodes if node.op == "output" for value in node.all_input_nodes]


def _name(node: Node) -> str:
    return str(node.target)
