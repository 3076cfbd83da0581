"""Which channels of a model belong together: what must be cut out of every layer along with a channel of one.

The graph is Torch-Pruning's (Fang et al. 2023, arXiv 2301.12900), in which each attention stands as one layer: its
heads are cut whole.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from edgestill.errors import UserError, first_line
from edgestill.models import forward
from edgestill.students.heads import Heads, Join, is_linear, joined

KEY = "student.from_teacher.width"
OUTPUTS, INPUTS, PARAMETER = "outputs", "inputs", "parameter"
Place = tuple[str, str]
"""Of a layer by its path its outputs or its inputs, or a parameter by its name."""


@dataclass(frozen=True)
class Group:
    """Units that can be cut one by one, each out of all these places: heads of one attention, or channels."""

    places: dict[Place, tuple[tuple[int, ...], ...]]
    """For each unit, the channels there that are its own."""
    heads: bool = False

    @property
    def count(self) -> int:
        return len(next(iter(self.places.values())))


def groups_of(module: nn.Module, probe: Tensor, attentions: list[Heads]) -> list[Group]:
    """What can be cut of a model, whose gradients must be on: the heads of its attentions, and its channels but those
    that are its answer. UserError for a model whose graph cannot be traced."""
    found = [
        Group(
            {(path, OUTPUTS): rows for path, rows in heads.rows.items()} | {(heads.behind, INPUTS): heads.columns}, True
        )
        for heads in attentions
    ]
    with joined(module, attentions):
        try:
            graph = _graph(module, probe)
        except Exception as error:
            raise UserError(
                f"{KEY}: the graph of {type(module).__name__} cannot be traced: {first_line(error)}"
            ) from error
        covered: dict[Any, set[int]] = {}
        for layer in [layer for layer in module.modules() if layer in graph.module2node and _is_root(layer)]:
            every = range(graph.get_out_channels(layer))
            if free := [place for place in every if place not in covered.get(layer, ())]:
                reached = _reached(graph, layer, free)
                for (node, step), pairs in reached.items():
                    if _side(graph, node.module, step) == OUTPUTS:
                        covered.setdefault(node.module, set()).update(idx for idx, _ in pairs)
                found += _groups(graph, reached, free)
    return found


def _is_root(layer: nn.Module) -> bool:
    return is_linear(layer) or isinstance(layer, nn.Embedding | nn.Conv1d | nn.Conv2d | nn.Conv3d)


def _graph(module: nn.Module, probe: Tensor) -> Any:
    tp = torch_pruning()
    pads: dict[Any, tuple[int, int]] = {}
    graph = tp.DependencyGraph().build_dependency(
        module,
        probe,
        forward_fn=lambda model, inputs: _watched(model, inputs, pads),
        customized_pruners=_customized(module, tp),
        verbose=False,
    )
    for node in graph.module2node.values():
        if node.grad_fn in pads:  # channels of zeros before and behind, as of a ResNet's shortcut without weights
            offset = pads[node.grad_fn]
            for before in node.inputs:
                for edge in before.dependencies:
                    if edge.target is node:
                        edge.index_mapping[0] = _Shifted(*offset, back=False)
                for edge in node.dependencies:
                    if edge.target is before:
                        edge.index_mapping[0] = _Shifted(*offset, back=True)
    return graph


def torch_pruning() -> Any:
    try:
        import torch_pruning
    except ImportError as error:
        raise UserError(
            f"{KEY}: needs Torch-Pruning, which is not installed: pip install 'edgestill[width]'"
        ) from error
    return torch_pruning


class _Pads(TorchFunctionMode):
    """Notes by how many channels each padding shifts those of its input, and how many these are."""

    def __init__(self, pads: dict[Any, tuple[int, int]]) -> None:
        super().__init__()
        self.pads = pads

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is functional.pad and isinstance(result, Tensor):
            before, after = result.shape, args[0].shape
            widths = (kwargs or {}).get("pad", args[1] if len(args) > 1 else ())
            place = 2 * (result.dim() - 2)  # widths come from the last dimension on
            if before[1] != after[1] and len(widths) > place:
                self.pads[result.grad_fn] = int(widths[place]), int(after[1])
        return result


def _watched(model: nn.Module, inputs: Tensor, pads: dict[Any, tuple[int, int]]) -> Tensor:
    with _Pads(pads):
        result = forward(model, inputs)
    if not result.requires_grad:
        raise RuntimeError("no gradient passes through it")
    return result * 1  # an operation behind the last layer, by which it is seen to be the last


@dataclass(frozen=True)
class _Shifted:
    """Places among channels behind a padding of `offset` channels in front of `count`, or back."""

    offset: int
    count: int
    back: bool

    def __call__(self, pairs: Any) -> Any:
        shift = -self.offset if self.back else self.offset
        moved = [pair._replace(idx=pair.idx + shift) for pair in pairs]
        return [pair for pair in moved if 0 <= pair.idx < self.count] if self.back else moved


def _customized(module: nn.Module, tp: Any) -> dict[type, Any]:
    """What the graph does not know: attentions, linear layers of other libraries, and layers whose parameters are all
    vectors of one length, as norms and scales."""

    class Joins(tp.BasePruningFunc):  # type: ignore[misc]
        def prune_out_channels(self, layer: Any, idxs: Any) -> Any: ...

        def prune_in_channels(self, layer: Any, idxs: Any) -> Any: ...

        def get_out_channels(self, layer: Any) -> int:
            return int(layer.channels)

        get_in_channels = get_out_channels

    class Matrices(Joins):
        def get_out_channels(self, layer: Any) -> int:
            return int(layer.weight.shape[1])

        def get_in_channels(self, layer: Any) -> int:
            return int(layer.weight.shape[0])

    class Vectors(Joins):
        def prune_out_channels(self, layer: Any, idxs: Any) -> Any: ...

        prune_in_channels = prune_out_channels

        def get_out_channels(self, layer: Any) -> int:
            return int(next(layer.parameters()).numel())

        get_in_channels = get_out_channels

    made: dict[type, Any] = {Join: Joins()}
    for layer in module.modules():
        own = list(layer.parameters(recurse=False))
        known = tp.ops.module2type(layer) not in (tp.ops.OPTYPE.ELEMENTWISE, tp.ops.OPTYPE.CUSTOMIZED)
        if known or any(layer.children()) or not own:
            continue
        if is_linear(layer):
            made[type(layer)] = Matrices()
        elif all(vector.dim() == 1 for vector in own) and len({len(vector) for vector in own}) == 1 < len(own[0]):
            made[type(layer)] = Vectors()
    return made


Reached = dict[tuple[Any, Any], set[Any]]


def _reached(graph: Any, layer: nn.Module, free: list[int]) -> Reached:
    """From outputs of a layer, what is to be cut with them: for each node of the graph and kind of cut, the pairs of a
    place there and the place in the layer that it goes with."""
    from torch_pruning._helpers import _HybridIndex

    start = graph.module2node[layer], graph.get_pruner_of_module(layer).prune_out_channels
    begun = {_HybridIndex(idx=place, root_idx=place) for place in free}
    reached: Reached = {start: begun}
    waiting = [(*start, begun)]
    while waiting:
        node, step, pairs = waiting.pop()
        for edge in node.dependencies:
            if not edge.is_triggered_by(step):
                continue
            mapped: Any = list(pairs)
            for mapping in edge.index_mapping:
                mapped = mapped if mapping is None else mapping(mapped)
            known = reached.setdefault((edge.target, edge.handler), set())
            if new := set(mapped) - known:
                known |= new
                waiting.append((edge.target, edge.handler, new))
    return reached


def _groups(graph: Any, reached: Reached, free: list[int]) -> Iterator[Group]:
    """The units of what a layer's outputs reach, those side by side that reach the same places in one group."""
    unit = {place: place for place in free}

    def first(place: int) -> int:
        while unit[place] != place:
            place = unit[place]
        return place

    owners: dict[Place, dict[int, int]] = {}
    fixed: set[int] = set()
    for (node, step), pairs in reached.items():
        side = _side(graph, node.module, step)
        if side is None:
            fixed |= {pair.root_idx for pair in pairs}
        elif side:
            places = owners.setdefault((_name(graph, node.module), side), {})
            for idx, root in pairs:  # what one place goes with is one unit, as the two halves of a gate
                one, other = first(places.setdefault(idx, root)), first(root)
                unit[max(one, other)] = min(one, other)
    units: dict[int, dict[Place, list[int]]] = {}
    for place, found in owners.items():
        for idx, root in sorted(found.items()):
            units.setdefault(first(root), {}).setdefault(place, []).append(idx)
    fixed = {first(root) for root in fixed}
    row: list[dict[Place, list[int]]] = []
    last = None
    for root in sorted(units):
        if row and (root in fixed or units[root].keys() != row[-1].keys() or (last is not None and last + 1 != root)):
            yield _group(row)
            row = []
        if root not in fixed:
            row.append(units[root])
        last = root
    if row:
        yield _group(row)


def _group(row: list[dict[Place, list[int]]]) -> Group:
    return Group({place: tuple(tuple(unit[place]) for unit in row) for place in row[0]})


def _side(graph: Any, layer: Any, step: Any) -> str | None:
    """What a kind of cut cuts of a layer: nothing where it has no weights, and None for what must stay as it is."""
    kinds = torch_pruning().ops.OPTYPE
    kind = torch_pruning().ops.module2type(layer)
    if isinstance(layer, Join) or kind == kinds.OUTPUT:
        return None
    if kind == kinds.PARAMETER:
        return PARAMETER
    if not isinstance(layer, nn.Module) or not any(True for _ in layer.parameters(recurse=False)):
        return ""
    return OUTPUTS if step == graph.get_pruner_of_module(layer).prune_out_channels else INPUTS


def _name(graph: Any, layer: Any) -> str:
    name = graph._param_to_name[layer] if isinstance(layer, nn.Parameter) else graph._module2name[layer]
    return str(name)


@contextmanager
def with_gradients(module: nn.Module) -> Iterator[None]:
    """The graph is that of the gradients: while it lasts, all parameters have one."""
    without = [parameter for parameter in module.parameters() if not parameter.requires_grad]
    try:
        with torch.enable_grad():
            for parameter in without:
                parameter.requires_grad_(True)
            yield
    finally:
        for parameter in without:
            parameter.requires_grad_(False)
