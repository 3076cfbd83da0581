"""Finding: what of a model is worth tapping, told from its structure and from one forward pass, never from its name.

Shapes: B batch, C channels, H height, W width, T tokens, D width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edgestill.taps.tracing import Node, begun, trace


@dataclass(frozen=True)
class Tap:
    """A place that can be tapped.

    path: what `record` takes. shape: of what is recorded there, for the example. kind: `stage` (the end of a
    resolution), `block`, `attention`, or `module` for any other. parameters: how many the model has up to there.
    """

    path: str
    shape: tuple[int, ...]
    kind: str
    parameters: int


def stages(model: nn.Module, example: Tensor) -> list[str]:
    """The taps of a model that a layer map pairs by default: the ends of its resolution stages, or, where the whole
    model works at one resolution, as a plain transformer does, its blocks. `example` is one input batch.

    >>> stages(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 2, stride=2)), torch.zeros(1, 3, 8, 8))
    ['1', '2']
    """
    taps = found(model, example)
    kind = "stage" if any(tap.kind == "stage" for tap in taps) else "block"
    return [tap.path for tap in taps if tap.kind == kind]


def found(model: nn.Module, example: Tensor, *, every: bool = False) -> list[Tap]:
    """The stages, blocks and attentions of a model in the order in which they are computed, and with `every` all other
    modules that put out a tensor. `example` is one input batch: images [B, C, H, W] or token ids [B, T].

    A stage is the last large module at one resolution; feature maps may be [B, C, H, W], [B, H, W, C] or [B, T, D],
    and maps of a single position do not count. Blocks are the repeated parts of a stage, or of the model.

    >>> layer = nn.TransformerEncoderLayer(8, nhead=2, batch_first=True)
    >>> model = nn.TransformerEncoder(layer, 1)
    >>> [(tap.kind, tap.path) for tap in found(model, torch.zeros(2, 5, 8))]
    [('attention', 'layers.0.self_attn@attention'), ('block', 'layers.0')]
    """
    if len(example) == 1:
        example = torch.cat([example, example])  # a leading 1 is also that of what no batch passes through
    nodes, attentions = trace(model, example)
    ends, blocks = _layout(nodes)
    kinds = {node.path: "block" for node in blocks} | {node.path: "stage" for node in ends}
    if every:
        kinds = {path: "module" for path, node in nodes.items() if path and node.shape} | kinds
    taps = [(nodes[path].ended, path, nodes[path].shape or (), kind) for path, kind in kinds.items()]
    taps += [(clock, f"{path}@attention", shape, "attention") for path, (clock, shape) in attentions.items()]
    starts = begun(model, nodes)
    return [
        Tap(path, shape, kind, sum(count for began, count in starts if began <= clock))
        for clock, path, shape, kind in sorted(taps)
    ]


def _runs(nodes: list[Node]) -> list[list[Node]]:
    """Those that put out maps, split where the resolution changes: where there are half as many positions or fewer, or
    twice as many or more. A border or a class token that comes or goes is no change."""
    runs: list[list[Node]] = []
    for node in nodes:
        if node.positions is None:
            continue
        start = runs[-1][0].positions if runs else None
        if start is not None and 0.5 < node.positions / start < 2:
            runs[-1].append(node)
        else:
            runs.append([node])
    return runs


def _alike(first: Node, second: Node) -> bool:
    return len(_runs([first, second])) == 1


def _spans(node: Node) -> bool:
    """Whether a module contains whole stages: it steps down through resolutions, more than once, or once behind blocks
    that keep the shape of its input. A block that steps down, or a convolution with its pooling, does not."""
    runs = _runs(node.children)
    if len(runs) > 1:
        sizes = [run[0].positions or 0 for run in runs]
        if sizes != sorted(sizes, reverse=True) or not (node.positions is None or _alike(runs[-1][0], node)):
            return False  # a detour through other resolutions, as in attention over pooled keys
        if len(runs) > 2 or any(part.depth > 1 and part.shape == node.taken for part in runs[0]):
            return True
    return any(map(_spans, node.children))


def _units(node: Node) -> list[Node]:
    """What the data passes one after another: modules as large as they can be without containing whole stages."""
    return [unit for child in node.children for unit in (_units(child) if _spans(child) else [child])]


def _layout(nodes: dict[str, Node]) -> tuple[list[Node], list[Node]]:
    """The ends of the stages, and the blocks; no stages where all that is large works at one resolution, in blocks.

    Of the modules at one resolution, those made of parts of parts go first, then those made of parts: a stem of single
    layers is no stage beside stages of blocks.
    """
    units = _units(nodes[""])
    groups = _groups(nodes)
    ends: list[Node] = []
    runs = [run for run in _runs(units) if any(unit.weighs for unit in run)]  # a pooling alone is no stage
    for depth in (2, 1, 0):
        large = [[unit for unit in run if unit.depth >= depth] for run in runs]
        ends = [run[-1] for run in large if run]
        if len(ends) == 1 and groups:
            return [], max(groups, key=_weight)
        if len(ends) > 1:
            break
    staged = [unit for run in runs if any(end in run for end in ends) for unit in run]
    return ends, [block for unit in staged for block in _blocks(unit, staged, groups)]


def _groups(nodes: dict[str, Node]) -> list[list[Node]]:
    """Modules of one class, made of parts, that stand side by side and put out maps of one shape."""
    siblings: dict[tuple[str, type[nn.Module]], list[Node]] = {}
    for path, node in nodes.items():
        if path and node.positions and node.depth:
            siblings.setdefault((node.parent, type(node.module)), []).append(node)
    return [
        group
        for (_, kind), group in siblings.items()
        if (group[0].listed or (len(group) > 1 and kind is not nn.Sequential))
        and len({node.shape for node in group}) == 1
    ]


def _weight(group: list[Node]) -> tuple[bool, bool, int]:
    """Blocks are made of parts of parts, repeated, and most of the model."""
    return group[0].depth > 1, len(group) > 1, sum(node.weighs for node in group)


def _blocks(unit: Node, units: list[Node], groups: list[list[Node]]) -> list[Node]:
    """The blocks of a unit: the outermost groups in it of its size, or, with its like beside it, the unit itself."""
    inside = [group for group in groups if f"{group[0].parent}.".startswith(f"{unit.path}.")]
    outermost = [
        group
        for group in inside
        if not any(group[0].path.startswith(f"{node.path}.") for other in inside for node in other)
    ]
    blocks = [node for group in outermost if group[0].size == unit.size for node in group]
    if blocks or not unit.depth or type(unit.module) is nn.Sequential:
        return blocks
    alike = (type(unit.module), unit.parent, unit.shape)
    like = [other for other in units if (type(other.module), other.parent, other.shape) == alike]
    return [unit] if len(like) > 1 else []
