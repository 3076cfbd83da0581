"""A module as the graph of its operators: what is quantized are values in it, wherever the module computes them.

Shapes: B batch, C channels, H height, W width.
"""

import copy
import io
import logging
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stderr
from operator import attrgetter, getitem
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node
from torch.fx.graph import CodeGen

from edgestill.errors import UserError, closest, first_line

aten = torch.ops.aten
CONVOLUTIONS = (aten.conv2d.default, aten.conv2d.padding, aten.conv1d.default, aten.conv1d.padding)
LAYERS = (*CONVOLUTIONS, aten.linear.default)
"""Operators with a weight whose first axis is their output channels."""
OUTPUT_OF = "edgestill_output_of"
"""In a node's `meta`: paths of the modules that put it out."""


class Place(nn.Module):
    """A module's place in a graph. It holds what the module held, and where it is tapped it hands the module's output
    on, so that `record` finds it there."""

    def forward(self, value: Tensor) -> Tensor:
        return value


def capture(module: nn.Module, example: Tensor, prefix: str = "") -> GraphModule:
    """The operators of a copy of `module` in evaluation mode, on the CPU in float32, as a graph with the parameters at
    their paths; batch norms behind a convolution or linear layer are folded into it, and nothing works in place.

    `example` is a batch [1 or more, ...]; its first axis stays open. `prefix` is taken off all paths.

    Raises UserError for a module whose operators depend on the values of tensors, or that changes a part of a tensor in
    place.

    >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
    >>> graph = capture(net, torch.zeros(1, 1, 8, 8)).graph
    >>> [str(node.target) for node in graph.nodes if node.op == "call_function"]
    ['aten.conv2d.default', 'aten.relu.default']
    """
    exported = export_program(module, example).module(check_guards=False)
    assert isinstance(exported, GraphModule)
    _unwrap_output(exported.graph)
    _name_outputs(exported.graph, prefix)
    _avoid_in_place(exported.graph)
    root, first = Place(), dict[int, Node]()
    for node in list(exported.graph.nodes):
        if node.op == "get_attr":
            value = attrgetter(str(node.target))(exported)
            if (same := first.setdefault(id(value), node)) is not node:  # one parameter with two paths stays one
                node.replace_all_uses_with(same)
                exported.graph.erase_node(node)
                continue
            node.target = str(node.target).removeprefix(prefix)
            put(root, node.target, value)
    captured = GraphModule(root, exported.graph)
    _fold_batch_norms(captured)
    return rebuilt(captured, captured.graph)


def export_program(module: nn.Module, example: Tensor) -> torch.export.ExportedProgram:
    """torch.export of a copy of `module` as it answers in evaluation mode, with an open batch axis.

    Raises UserError for a module whose operators depend on the values of tensors."""
    plain = copy.deepcopy(module).to("cpu", torch.float32).eval()
    plain.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    # Two rows: torch.export may take an axis of size one for a constant.
    rows = example[:1].detach().to("cpu", torch.float32).expand(2, *example.shape[1:]).contiguous()
    try:
        with _quiet_export():
            return torch.export.export(plain, (rows,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},), strict=False)
    except Exception as error:
        raise UserError(
            f"{type(module).__name__} has no fixed graph of operators: {first_line(error)}; a forward pass without "
            "branches on the values of tensors has one"
        ) from error


@contextmanager
def _quiet_export() -> Iterator[None]:
    """Without warnings, and without the half-made graph that torch.export prints when it fails."""
    log = logging.getLogger("torch")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


def rebuilt(root: nn.Module, graph: Graph) -> GraphModule:
    """A GraphModule of what the graph uses of `root`, and of nothing else."""
    graph.eliminate_dead_code()
    return GraphModule(root, graph)


def put(root: nn.Module, path: str, value: Any) -> None:
    """Sets a parameter, buffer or module at a dotted path, with places for the modules above it."""
    *above, name = path.split(".")
    for part in above:
        if not hasattr(root, part):
            root.add_module(part, Place())
        root = getattr(root, part)
    if isinstance(value, nn.Module):
        root.add_module(name, value)
    elif isinstance(value, nn.Parameter):
        root.register_parameter(name, nn.Parameter(value.detach().clone(), value.requires_grad))
    else:
        root.register_buffer(name, value)


def layers(graph: Graph) -> dict[str, list[Node]]:
    """Convolutions and linear layers in running order, by the path of the module that holds their weight, or of the
    weight where it has another name; several for a weight that several share."""
    found: dict[str, list[Node]] = {}
    for node in graph.nodes:
        if node.target in LAYERS and is_constant(weight := argument(node, 1)):
            found.setdefault(str(weight.target).removesuffix(".weight"), []).append(node)
    return found


def is_constant(value: Any) -> bool:
    """Whether a value is a parameter or buffer of the module."""
    return isinstance(value, Node) and value.op == "get_attr"


def tapped(module: GraphModule, paths: Iterable[str]) -> GraphModule:
    """The module with places at `paths` that hand on what the model's modules put out there, in their last call.

    Raises UserError for a path that no module of the graph puts out: an attention, a module that returns several
    values, or a layer whose batch norm is folded into it."""
    graph, outputs = module.graph, _outputs(module.graph)
    for path in dict.fromkeys(paths):
        if path not in outputs:
            raise UserError(
                f"the quantized student has no tap {path!r}: terms there need a module that puts out one tensor; a "
                f"layer in front of a batch norm is one with it, so tap the batch norm{closest(path, outputs)}"
            )
        value = outputs[path]
        _make_place(module, path)
        tap = insert_behind(value, path)
        for other, node in outputs.items():
            outputs[other] = tap if node is value else node
    return rebuilt(module, graph)


def _make_place(module: nn.Module, path: str) -> None:
    """A place at `path`, with all that is there already."""
    there = dict(module.named_modules()).get(path)
    place = Place()
    if there is not None:
        for name, child in there.named_children():
            place.add_module(name, child)
        for name, parameter in there.named_parameters(recurse=False):
            place.register_parameter(name, parameter)
        for name, buffer in there.named_buffers(recurse=False):
            place.register_buffer(name, buffer)
    put(module, path, place)


def insert_behind(value: Node, path: str) -> Node:
    """A call of the module at `path` on a value, which from now on all others read in its place."""
    with value.graph.inserting_after(value):
        call = value.graph.call_module(path, (value,))
    value.replace_all_uses_with(call, delete_user_cb=lambda user: user is not call)
    return call


def argument(node: Node, place: int = 0) -> Any:
    """An operator's argument; None where it has its default."""
    return node.args[place] if place < len(node.args) else None


def module_of(node: Node) -> str:
    """Path of the innermost module that a node was computed in; empty for the model itself."""
    stack = [path for path, _ in (node.meta.get("nn_module_stack") or {}).values()]
    return str(stack[-1]) if stack else ""


def _outputs(graph: Graph) -> dict[str, Node]:
    return {path: node for node in graph.nodes for path in node.meta.get(OUTPUT_OF, ())}


def _unwrap_output(graph: Graph) -> None:
    """One tensor in, one tensor out, without torch.export's packing of arguments, which cannot be copied quietly."""
    graph.set_codegen(CodeGen())
    (output,) = (node for node in graph.nodes if node.op == "output")
    output.args = (output.args[0][0],)


def _name_outputs(graph: Graph, prefix: str) -> None:
    """Notes in `meta` which modules each node is the output of: the only node of a module's last call that others
    read."""
    calls: dict[str, str] = {}
    inside: dict[str, set[Node]] = {}
    for node in graph.nodes:
        # Of a module's calls, torch.export gives each a key of its own.
        for key, (path, _) in (node.meta.get("nn_module_stack") or {}).items():
            calls[str(path).removeprefix(prefix)] = key
            inside.setdefault(key, set()).add(node)
    for path, key in calls.items():
        read = [node for node in graph.nodes if node in inside[key] and not inside[key].issuperset(node.users)]
        if path and len(read) == 1 and isinstance(read[0].meta.get("val"), Tensor):
            read[0].meta[OUTPUT_OF] = [*read[0].meta.get(OUTPUT_OF, ()), path]


def _avoid_in_place(graph: Graph) -> None:
    """Operators that change their input become those that do not; whoever reads the input later reads the output.

    Raises UserError where a later operator reads the same memory by another name, such as the whole of a changed part.
    """
    order = {node: place for place, node in enumerate(graph.nodes)}
    memory: dict[Node, Node] = {}
    for node in graph.nodes:
        target = node.target
        changes = isinstance(target, torch._ops.OpOverload) and target._schema.is_mutable
        if changes or _is_view(target):
            memory[node] = memory.get(node.args[0], node.args[0])
        if not changes:
            continue
        packet = getattr(aten, target._schema.name.partition("::")[2].rstrip("_"), None)
        if packet is None or target._overloadname not in packet.overloads():
            continue
        changed = node.args[0]
        others = [one for one in order if one is not changed and memory.get(one, one) is memory[node]]
        if any(order[one] < order[node] < order[user] for one in others for user in one.users):
            raise UserError(
                f"int8 needs a forward pass that changes no part of a tensor in place, {target} in "
                f"{module_of(node) or 'the student'} does: make a new tensor there, as by torch.where"
            )
        node.target = getattr(packet, target._overloadname)
        changed.replace_all_uses_with(node, delete_user_cb=lambda user, node=node: order[user] > order[node])


def _is_view(target: Any) -> bool:
    """Whether what an operator returns may lie in the memory of its first argument; that of an idle dropout does."""
    return target in (getitem, aten.dropout.default) or (isinstance(target, torch._ops.OpOverload) and target.is_view)


def _fold_batch_norms(root: GraphModule) -> None:
    """conv → batch norm with its running statistics, as one convolution with a bias; linear layers likewise."""
    graph = root.graph
    for node in list(graph.nodes):
        layer = argument(node) if node.target == aten.batch_norm.default else None
        if layer is None or not _folds(node, layer):
            continue
        weight_node, bias = argument(layer, 1), argument(layer, 2)
        path = str(weight_node.target)
        bias_path = f"{path.removesuffix('weight')}bias" if bias is None else str(bias.target)
        weight = attrgetter(path)(root)
        old, gain, shift, mean, variance = (
            default if one is None else attrgetter(str(one.target))(root)
            for one, default in zip((bias, *node.args[1:5]), (0.0, 1.0, 0.0, 0.0, 1.0), strict=True)
        )
        factor = gain * torch.rsqrt(variance + node.args[7])
        folded = weight * factor.reshape(-1, *[1] * (weight.dim() - 1))
        put(root, path, nn.Parameter(folded, weight.requires_grad))
        put(root, bias_path, nn.Parameter((old - mean) * factor + shift, weight.requires_grad))
        if bias is None:
            with graph.inserting_before(layer):
                bias = graph.get_attr(bias_path)
        layer.args = (layer.args[0], layer.args[1], bias, *layer.args[3:])
        layer.meta[OUTPUT_OF] = node.meta.get(OUTPUT_OF, ())  # what the layer alone put out is nowhere now
        node.replace_all_uses_with(layer)
        graph.erase_node(node)


def _folds(norm: Node, layer: Node) -> bool:
    """Whether a batch norm can be one with the layer in front of it: nobody else reads that, nor its weights, and what
    the norm computes with is constant."""
    constants = [argument(layer, 1), *(one for one in (argument(layer, 2), *norm.args[1:5]) if one is not None)]
    return (
        layer.target in LAYERS
        and len(layer.users) == 1
        and all(map(is_constant, constants))
        and not any(len(one.users) > 1 for one in constants[: 1 + (argument(layer, 2) is not None)])
        and not norm.args[5]  # statistics of the batch
    )
