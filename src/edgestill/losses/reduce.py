"""The only normalisation in the project: a masked sum divided by a count of valid positions; and what losses share."""

import torch
from torch import Tensor
from torch.nn import functional


def wide(tensor: Tensor, mask: Tensor | None = None) -> Tensor:
    """`tensor` in float32 (float64 stays), with zeros where `mask` is false.

    What stands at a masked position may be NaN: it must reach neither the sum nor, through `0 · NaN`, the gradient.

    >>> wide(torch.tensor([1.0, torch.nan]), torch.tensor([True, False]))
    tensor([1., 0.])
    """
    if tensor.dtype != torch.float64:
        tensor = tensor.float()
    if mask is None:
        return tensor
    mask = mask.reshape(mask.shape + (1,) * (tensor.dim() - mask.dim()))
    return torch.where(mask, tensor, tensor.new_zeros(()))


def masked_mean(values: Tensor, mask: Tensor | None = None, count: Tensor | float | None = None) -> Tensor:
    """`sum(values[mask]) / count`; zero, with a gradient of zero, when nothing is valid.

    Args:
        values: one loss value a position, any shape.
        mask: true where a position counts; broadcast over trailing dimensions of `values`. All, when None.
        count: number of valid positions to divide by: the global one under gradient accumulation or several
            processes. Those of this mask, when None.

    >>> float(masked_mean(torch.tensor([1.0, 2.0, 9.0]), torch.tensor([True, True, False])))
    1.5
    """
    if mask is not None:
        mask = mask.reshape(mask.shape + (1,) * (values.dim() - mask.dim())).expand_as(values)
    return over_valid(wide(values, mask).sum() if mask is not None else values.sum(), values.numel(), mask, count)


def over_valid(total: Tensor, samples: int, mask: Tensor | None = None, count: Tensor | float | None = None) -> Tensor:
    """`total / count`, where a sum over valid samples is already made: by the number of them unless `count` is given.

    >>> float(over_valid(torch.tensor(6.0), 4, torch.tensor([True, True, False, False])))
    3.0
    """
    if count is not None:
        return total / count
    return total / (max(samples, 1) if mask is None else mask.sum().clamp(min=1))


def pooled(features: Tensor) -> Tensor:
    """An embedding [B, D] of each sample: maps [B, C, H, W] and tokens [B, T, D] averaged over their positions.

    >>> pooled(torch.ones(2, 3, 4, 4)).shape, pooled(torch.ones(2, 5, 3)).shape, pooled(torch.ones(2, 3)).shape
    (torch.Size([2, 3]), torch.Size([2, 3]), torch.Size([2, 3]))
    """
    if features.dim() == 3:
        return features.mean(1)
    return features.flatten(2).mean(2) if features.dim() > 3 else features


def channels_first(features: Tensor) -> Tensor:
    """Maps with the channels last [B, H, W, C], told by their equal sides, as [B, C, H, W]; what else comes stays.

    >>> channels_first(torch.ones(2, 4, 4, 3)).shape, channels_first(torch.ones(2, 3, 4, 4)).shape
    (torch.Size([2, 3, 4, 4]), torch.Size([2, 3, 4, 4]))
    """
    last = features.dim() == 4 and features.shape[1] == features.shape[2] != features.shape[3]
    return features.permute(0, 3, 1, 2) if last else features


def of_one_size(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Maps [B, …, H, W], on each side the larger averaged down to the smaller.

    >>> [tuple(maps.shape) for maps in of_one_size(torch.ones(2, 8, 4), torch.ones(2, 4, 8))]
    [(2, 4, 4), (2, 4, 4)]
    """
    if student.shape[-2:] == teacher.shape[-2:]:
        return student, teacher
    H, W = (min(sides) for sides in zip(student.shape[-2:], teacher.shape[-2:], strict=True))
    return functional.adaptive_avg_pool2d(student, (H, W)), functional.adaptive_avg_pool2d(teacher, (H, W))


def over(values: Tensor, size: Tensor) -> Tensor:
    """`values / size`, zero where the size is: with no division by zero in the gradient either.

    >>> over(torch.tensor([3.0, 3.0]), torch.tensor([2.0, 0.0]))
    tensor([1.5000, 0.0000])
    """
    return torch.where(size > 0, values, 0) / torch.where(size > 0, size, 1)


def length(vectors: Tensor) -> Tensor:
    """Euclidean norm over the last dimension, with a gradient of zero at zero."""
    norm: Tensor = torch.linalg.vector_norm(vectors, dim=-1)
    return norm


def unit(vectors: Tensor) -> Tensor:
    """`vectors` over their length, along the last dimension; zero stays zero, with a moderate gradient."""
    return over(vectors, length(vectors)[..., None])
