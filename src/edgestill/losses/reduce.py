"""The only normalisation in the project: a masked sum divided by a count of valid positions."""

import torch
from torch import Tensor


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
    if mask is None:
        return values.sum() / (values.numel() if count is None else count)
    mask = mask.reshape(mask.shape + (1,) * (values.dim() - mask.dim())).expand_as(values)
    # where, not multiplication: a non-finite value at a masked position must not reach the sum or its gradient
    total = torch.where(mask, values, values.new_zeros(())).sum()
    return total / (mask.sum().clamp(min=1) if count is None else count)
