"""Channels cut out of a model, and the proof that what is left computes what the whole model does without them.

Shapes: B batch, C channels.
"""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from edgestill.students.heads import transposed
from edgestill.students.structure import INPUTS, OUTPUTS, PARAMETER, Place

Removed = Mapping[Place, set[int]]
"""Of each place, the channels to be cut."""
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
SIZES = {
    OUTPUTS: ("out_features", "out_channels", "num_features", "num_channels", "embedding_dim", "nf"),
    INPUTS: ("in_features", "in_channels", "nx"),
}
"""What layers call their numbers of channels."""
ERROR = 1e-3
"""Largest difference between the two, as a share of the largest answer: float32 adds up in another order."""


def cut(module: nn.Module, removed: Removed) -> None:
    """Cuts the channels out of the layers of a model, in place. Shared weights stay shared."""
    made: dict[tuple[int, int, tuple[int, ...]], tuple[Tensor, nn.Parameter]] = {}

    def kept_of(tensor: Tensor, dimension: int, gone: set[int]) -> Any:
        kept = tuple(place for place in range(tensor.shape[dimension]) if place not in gone)
        chosen = tensor.detach().index_select(dimension, torch.tensor(kept, dtype=torch.long))
        if not isinstance(tensor, nn.Parameter):
            return chosen
        key = id(tensor), dimension, kept  # the tensor stays beside, so that no other gets its number
        return made.setdefault(key, (tensor, nn.Parameter(chosen, tensor.requires_grad)))[1]

    for (path, side), gone in removed.items():
        if side == PARAMETER:
            owner, _, name = path.rpartition(".")
            parameter = module.get_parameter(path)
            setattr(module.get_submodule(owner), name, kept_of(parameter, _last(parameter), gone))
            continue
        layer = module.get_submodule(path)
        tensors = [*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)]
        for name, tensor in tensors:
            dimension = _dimension(layer, tensor, side)
            if dimension is not None:
                setattr(layer, name, kept_of(tensor, dimension, gone))
        _resize(layer, side, len(gone))


def _dimension(layer: nn.Module, tensor: Tensor, side: str) -> int | None:
    """Where in a layer's tensor the channels of a side lie, if they do."""
    if tensor.dim() == 0 or (tensor.dim() == 1 and side == INPUTS):
        return None
    if tensor.dim() == 1:
        return 0
    if isinstance(layer, nn.Embedding):
        return 1
    if tensor.dim() == 2 and transposed(layer):
        return 1 if side == OUTPUTS else 0
    if getattr(layer, "groups", 1) > 1:  # one channel a group: its inputs are its outputs
        return 0
    return 0 if side == OUTPUTS else 1


def _resize(layer: nn.Module, side: str, less: int) -> None:
    alone = isinstance(layer, CONVOLUTIONS) and layer.groups > 1
    names = (*SIZES[OUTPUTS], *SIZES[INPUTS], "groups") if alone else SIZES[side]
    for name in names:
        if isinstance(value := getattr(layer, name, None), int):
            setattr(layer, name, value - less)
    shape = getattr(layer, "normalized_shape", None)
    if isinstance(shape, tuple) and len(shape) == 1:
        layer.normalized_shape = (shape[0] - less,)  # type: ignore[assignment]


def _last(tensor: Tensor) -> int:
    """Of a parameter of the model itself the channels are its last dimension."""
    return max(place for place, size in enumerate(tensor.shape) if size > 1)


def without(module: nn.Module, cut_module: nn.Module, removed: Removed) -> nn.Module:
    """A copy of a model of the same size that computes without the channels: their weights are zeros, and its norms
    leave them out."""
    masked = copy.deepcopy(module)
    for (path, side), gone in removed.items():
        places = sorted(gone)
        if side == PARAMETER:
            parameter = masked.get_parameter(path)
            parameter.data.index_fill_(_last(parameter), torch.tensor(places), 0.0)
            continue
        layer = masked.get_submodule(path)
        if not _mixes(layer):
            kept = [place for place in range(_size(layer)) if place not in gone]
            masked.set_submodule(path, _Kept(cut_module.get_submodule(path), kept, _size(layer)))
            continue
        for tensor in (*layer.parameters(recurse=False), *layer.buffers(recurse=False)):
            dimension = _dimension(layer, tensor, side)
            if dimension is not None:
                tensor.data.index_fill_(dimension, torch.tensor(places), 0.0)
    return masked


def _mixes(layer: nn.Module) -> bool:
    """Whether a layer has a matrix, and so keeps zeros apart from what they are added to; a norm does not."""
    return any(parameter.dim() > 1 for parameter in layer.parameters(recurse=False))


def _size(layer: nn.Module) -> int:
    return next(layer.parameters(recurse=False)).numel()


class _Kept(nn.Module):
    """A layer of fewer channels in the place of one of all: it sees those that it has, and puts out zeros else."""

    def __init__(self, layer: nn.Module, kept: list[int], count: int) -> None:
        super().__init__()
        self.layer, self.kept, self.count = layer, torch.tensor(kept), count

    def forward(self, inputs: Tensor) -> Tensor:
        flat = type(self.layer).__name__.endswith("2d") or inputs.shape[-1] != self.count  # [B, C, H, W]
        dimension = 1 if inputs.dim() == 4 and flat else inputs.dim() - 1
        found = self.layer(inputs.index_select(dimension, self.kept))
        return torch.zeros_like(inputs).index_copy(dimension, self.kept, found)


def agrees(found: Tensor, expected: Tensor) -> bool:
    """Whether two answers [B, …] are one up to rounding."""
    if found.shape != expected.shape:
        return False
    return bool((found - expected).abs().max() <= ERROR * expected.abs().max() + 1e-6)
