"""How much a model would miss each of its channels.

w weights of a channel, x what it is given, L the loss on real samples, all of them in one place.
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from edgestill.students.cutting import CONVOLUTIONS
from edgestill.students.heads import is_linear, transposed
from edgestill.students.structure import INPUTS, OUTPUTS, Group, Place

Importance = Literal["magnitude", "activation", "taylor"]
Scores = dict[Place, Tensor]


def scores(module: nn.Module, kind: Importance, losses: Callable[[], Iterable[Tensor]]) -> Scores:
    """For each layer with a matrix, one number a channel of its outputs and of its inputs:

    magnitude: Σ w² (Li et al. 2017, arXiv 1608.08710, which takes |w|). activation: Σ w²·E[x²], of the inputs alone
    (after Wanda, Sun et al. 2023, arXiv 2306.11695). taylor: the sum over batches of (Σ w·∂L/∂w)², what the loss
    changes by without them, to the first order (Molchanov et al. 2019, arXiv 1906.10771).

    `losses` makes the losses of some batches, one after another: of `activation` their forward passes alone count.
    """
    layers = {path: layer for path, layer in module.named_modules() if is_linear(layer) or _convolves(layer)}
    if kind == "taylor":
        return _taylor(module, layers, losses())
    worth = {path: _sums(layer, _weight(layer) ** 2) for path, layer in layers.items()}
    if kind == "magnitude":
        return {(path, side): sums for path, sides in worth.items() for side, sums in sides.items()}
    squares = _mean_squares(layers, losses)
    return {
        (path, INPUTS): sides[INPUTS] * squares[path]
        for path, sides in worth.items()
        if path in squares and INPUTS in sides
    }


def _mean_squares(layers: dict[str, nn.Module], passes: Callable[[], Iterable[Tensor]]) -> dict[str, Tensor]:
    """E[x²] of each input channel of the layers that ran."""
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}

    def note(path: str, layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        channels = 1 if _convolves(layer) else inputs[0].dim() - 1
        flat = inputs[0].transpose(0, channels).flatten(1)
        sums[path] = sums.get(path, torch.zeros(len(flat))) + flat.square().sum(1)
        counts[path] = counts.get(path, 0) + flat.shape[1]

    handles = [layer.register_forward_pre_hook(partial(note, path)) for path, layer in layers.items()]
    try:
        with torch.no_grad():
            for _ in passes():
                pass
    finally:
        for handle in handles:
            handle.remove()
    return {path: total / counts[path] for path, total in sums.items()}


def _taylor(module: nn.Module, layers: dict[str, nn.Module], losses: Iterable[Tensor]) -> Scores:
    found: Scores = {}
    for loss in losses:
        module.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        for path, layer in layers.items():
            gradient = layer.weight.grad
            if isinstance(gradient, Tensor):
                for side, sums in _sums(layer, _weight(layer) * gradient).items():
                    found[path, side] = found.get((path, side), torch.zeros(len(sums))) + sums.square()
    module.zero_grad()
    return found


def _weight(layer: nn.Module) -> Tensor:
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight.detach()


def _sums(layer: nn.Module, worth: Tensor) -> dict[str, Tensor]:
    """By side, the sum over each channel's part of something as large as the layer's weight."""
    worth = worth.transpose(0, 1) if worth.dim() == 2 and transposed(layer) else worth
    outputs = worth.flatten(1).sum(1)
    if getattr(layer, "groups", 1) > 1:
        return {OUTPUTS: outputs}
    return {OUTPUTS: outputs, INPUTS: worth.transpose(0, 1).flatten(1).sum(1)}


def _convolves(layer: nn.Module) -> bool:
    return isinstance(layer, CONVOLUTIONS)


def of_units(group: Group, found: Scores) -> Tensor:
    """One number a unit of the group: what its channels are worth, all places together."""
    total = torch.zeros(group.count, dtype=torch.float64)
    for place, units in group.places.items():
        if place in found:
            total += torch.stack([found[place][list(unit)].sum() for unit in units]).double()
    return total
