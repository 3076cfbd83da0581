"""The heads of attentions, by the projections around them, told from one forward pass and never from a family's name.

Shapes: B batch, N heads of queries, K heads of keys and of values, T tokens, D width of a head.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from edgestill.errors import UserError
from edgestill.models import forward
from edgestill.taps.attention import Attention, watch


@dataclass(frozen=True)
class Heads:
    """One attention: the linear layers in front of it and the one behind it. Its heads are cut in `count` units, each
    with its key, its value and the queries that see them: with grouped queries a group, else one head."""

    count: int
    queries: int
    """Heads of queries in all."""
    size: int
    """D."""
    rows: dict[str, tuple[tuple[int, ...], ...]]
    """By the path of a projection in front: for each unit, the outputs that are its own."""
    behind: str
    columns: tuple[tuple[int, ...], ...]
    """For each unit, the inputs of the layer behind that are its own."""


def is_linear(module: nn.Module) -> bool:
    """A layer with one matrix, as torch.nn.Linear or the transposed one of GPT-2."""
    weight = getattr(module, "weight", None)
    return (
        isinstance(weight, Tensor)
        and weight.dim() == 2
        and not isinstance(module, nn.Embedding)
        and not any(module.children())
    )


def transposed(module: nn.Module) -> bool:
    """Whether a linear layer keeps its matrix as [inputs, outputs]."""
    return not isinstance(module, nn.Linear)


def heads_of(module: nn.Module, probe: Tensor) -> list[Heads]:
    """The attentions of a model in the order in which they run.

    Raises UserError for one whose queries, keys and values do not each come from linear layers of their own or one of
    all three.
    """
    found: list[Heads] = []
    waiting: list[tuple[str, int, int, list[tuple[str, Tensor]], Tensor]] = []
    ran: list[tuple[str, Tensor]] = []
    layers = dict(module.named_modules())

    def linear(path: str, _module: nn.Module, inputs: Any, output: Tensor) -> None:
        if waiting:
            place, count, size, before, values = waiting.pop()
            if inputs[0].shape[-1] != count * size:
                raise UserError(f"student.from_teacher.width: behind the attention {place} stands no layer of its size")
            found.append(_heads(place, count, size, before, values, path))
        ran.append((path, output))

    def seen(attention: Attention, inside: tuple[str, ...]) -> None:
        around = ["", *(path for path in inside if any(layers[path].children()))][-1]
        if not attention.fused:
            raise UserError(
                f"student.from_teacher.width: the attention {around} does not call scaled_dot_product_attention, by "
                "which its heads are told: load the model with attn_implementation sdpa"
            )
        before = [(path, output) for path, output in ran if path.startswith(f"{around}.")]
        waiting.append((around, attention.shape[1], attention.size, before, attention.parts["values"]()))
        ran.clear()

    handles = [layer.register_forward_hook(partial(linear, path)) for path, layer in layers.items() if is_linear(layer)]
    try:
        with torch.no_grad(), watch({path: layer for path, layer in layers.items() if path}, seen):
            forward(module, probe)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _heads(place: str, count: int, size: int, before: list[tuple[str, Tensor]], values: Tensor, behind: str) -> Heads:
    sizes = [output.shape[-1] // size for _, output in before]
    if len(before) == 3 and count in sizes:
        units = min(sizes)
        rows = {path: _units(0, output.shape[-1] // size, units, size) for path, output in before}
        fits = count % units == 0 and sorted(sizes) == [units, units, count]
    elif len(before) == 1 and (sizes[0] - count) % 2 == 0 and sizes[0] > count:
        units = (sizes[0] - count) // 2
        path, output = before[0]
        parts = [_units(0, count, units, size)]
        parts += [_units((count + units * place) * size, units, units, size) for place in (0, 1)]
        rows = {path: tuple(sum(unit, ()) for unit in zip(*parts, strict=True))}
        kept = output[..., (count + units) * size :]
        expected = kept.reshape(*kept.shape[:-1], units, size).transpose(-2, -3)
        fits = count % units == 0 and torch.equal(expected.repeat_interleave(count // units, -3), values)
    else:
        fits = False
    if not fits:
        raise UserError(
            f"student.from_teacher.width: the queries, keys and values of the attention {place} do not come from one "
            "linear layer each, or from one of all three in this order: its heads cannot be told apart"
        )
    return Heads(units, count, size, rows, behind, _units(0, count, units, size))


def _units(start: int, heads: int, units: int, size: int) -> tuple[tuple[int, ...], ...]:
    """The places of each of `units`, of as many heads as it has, from `start`."""
    wide = heads // units * size
    return tuple(tuple(range(start + unit * wide, start + (unit + 1) * wide)) for unit in range(units))


class Join(nn.Module):
    """Stands for an attention in the graph of a model: what goes in and what comes out, no channel of which is followed
    through it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, result: Tensor, *sources: Tensor) -> Tensor:
        return _Joined.apply(result, *sources)  # type: ignore[no-any-return, no-untyped-call]


class _Joined(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, result: Tensor, *sources: Tensor) -> Tensor:
        ctx.shapes = [source.shape for source in sources]
        return result.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return (None, *(gradients[0].new_zeros(shape) for shape in ctx.shapes))


@contextmanager
def joined(module: nn.Module, found: list[Heads]) -> Iterator[None]:
    """While it lasts, a Join stands in the model in place of what each attention computes."""
    if not found:
        yield
        return
    joins = nn.ModuleList(Join(heads.queries * heads.size) for heads in found)
    outputs: dict[str, Tensor] = {}
    handles = []

    def keep(path: str, _module: nn.Module, _inputs: Any, output: Tensor) -> None:
        outputs[path] = output

    def replace(join: nn.Module, paths: tuple[str, ...], _module: nn.Module, inputs: Any) -> Any:
        return (join(inputs[0].detach(), *(outputs[path] for path in paths)), *inputs[1:])

    module.add_module("_joins", joins)
    try:
        for join, heads in zip(joins, found, strict=True):
            for path in heads.rows:
                handles.append(module.get_submodule(path).register_forward_hook(partial(keep, path)))
            before = partial(replace, join, tuple(heads.rows))
            handles.append(module.get_submodule(heads.behind).register_forward_pre_hook(before))
        yield
    finally:
        for handle in handles:
            handle.remove()
        del module._joins
