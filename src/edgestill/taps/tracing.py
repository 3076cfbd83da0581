"""Tracing: what ran in one forward pass of a model, when, and what it put out.

Shapes: B batch, C channels, H height, W width, T tokens, D width.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from math import log, prod

import torch
from torch import Tensor, nn

from edgestill.taps.attention import Attention, watch
from edgestill.taps.recording import tensor_of


@dataclass(eq=False)
class Node:
    """A module that ran: when, what it put out, and the modules that ran inside it, in order."""

    path: str
    module: nn.Module
    began: int
    taken: tuple[int, ...] | None
    """Shape of its input."""
    runs: int = 0
    ended: int = 0
    shape: tuple[int, ...] | None = None
    positions: int | None = None
    """H·W or T of its output; None where that is no map, or one of a single position."""
    children: list["Node"] = field(default_factory=list)

    @property
    def weighs(self) -> int:
        return sum(parameter.numel() for parameter in self.module.parameters())

    @property
    def depth(self) -> int:
        """0 for a single layer, 1 for what is made of layers, 2 for what is made of such parts. What has no weights is
        no part, and what wraps a single part adds nothing, unless it is a list that happens to hold one."""
        parts = [child for child in self.children if child.weighs]
        wraps = len(parts) == 1 and not parts[0].listed
        return max((part.depth for part in parts), default=-1) + (not wraps)

    @property
    def size(self) -> int:
        return prod(self.shape or ())

    @property
    def listed(self) -> bool:
        """Whether it stands in a Sequential or a ModuleList."""
        return self.path.rpartition(".")[2].isdigit()

    @property
    def parent(self) -> str:
        return self.path.rpartition(".")[0]


def trace(model: nn.Module, example: Tensor) -> tuple[dict[str, Node], dict[str, tuple[int, tuple[int, ...]]]]:
    """One forward pass: every module that ran, by path; when and with what shape each single attention was computed,
    by the path of the innermost module around it that has parts."""
    nodes: dict[str, Node] = {}
    calls: dict[tuple[str, int], list[tuple[bool, int, tuple[int, ...]]]] = {}
    modules = dict(model.named_modules())
    clock = iter(range(1 << 62))

    def begin(path: str, module: nn.Module, inputs: object) -> None:
        value = tensor_of(inputs)
        node = Node(path, module, next(clock), tuple(value.shape) if value is not None else None)
        nodes.setdefault(path, node).runs += 1

    def end(path: str, _module: nn.Module, _inputs: object, output: object) -> None:
        value = tensor_of(output)
        node = nodes[path]
        node.ended, node.shape = next(clock), tuple(value.shape) if value is not None else None
        node.positions = _positions(node.shape, example) if value is not None else None

    def seen(attention: Attention, inside: tuple[str, ...]) -> None:
        around = [path for path in inside if any(modules[path].children())] or [""]
        key = around[-1], nodes[around[-1]].runs  # layers that share their weights run several times
        calls.setdefault(key, []).append((attention.fused, next(clock), attention.shape))

    with ExitStack() as block:
        for path, module in modules.items():
            block.callback(module.register_forward_pre_hook(partial(begin, path)).remove)
            block.callback(module.register_forward_hook(partial(end, path)).remove)
        block.enter_context(watch(modules, seen))
        block.enter_context(_evaluating(model))
        model(example)
    for path, node in nodes.items():
        if path:
            around = node.parent
            while around and around not in nodes:  # a container that is not called itself
                around = around.rpartition(".")[0]
            nodes[around].children.append(node)
    attentions = {}
    for (path, _), its in calls.items():
        fused = [call for call in its if call[0]] or its
        if len(fused) == 1 and path:
            attentions[path] = fused[0][1:]
    return nodes, attentions


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Without gradients, and in evaluation mode: in training mode, a batch norm would take the example in."""
    training = [module for module in model.modules() if module.training]
    try:
        with torch.no_grad():
            model.eval()
            yield
    finally:
        for module in training:
            module.training = True


def begun(model: nn.Module, nodes: dict[str, Node]) -> list[tuple[int, int]]:
    """For each parameter, when the module that has it began, and how many numbers it is."""
    starts = []
    for name, parameter in model.named_parameters():
        owner = name.rpartition(".")[0]
        while owner not in nodes:  # used by the module around it, which calls it by no forward of its own
            owner = owner.rpartition(".")[0]
        starts.append((nodes[owner].began, parameter.numel()))
    return starts


def _positions(shape: tuple[int, ...] | None, example: Tensor) -> int | None:
    """Of a map [B, C, H, W] or [B, H, W, C], whichever has the image's proportions, or of tokens [B, T, D]."""
    if shape is None or shape[0] != len(example) or 0 in shape:
        return None
    count = 1
    if len(shape) == 3 and shape[2] > 1:  # [B, D, 1] are tokens pooled away
        count = shape[1]
    elif len(shape) == 4 and example.dim() == 4:
        image = log(example.shape[2] / example.shape[3])
        first, last = (abs(log(height / width) - image) for height, width in (shape[2:], shape[1:3]))
        count = shape[1] * shape[2] if last < first else shape[2] * shape[3]
    return count if count > 1 else None
