"""Losses over intermediate features. Shapes: B batch, C channels, T positions (pixels H×W, or tokens), D width."""

from torch import Tensor

from edgestill.errors import UserError
from edgestill.losses.reduce import masked_mean, wide


def hint(
    student: Tensor, teacher: Tensor, *, mask: Tensor | None = None, count: Tensor | float | None = None
) -> Tensor:
    """`mean_B mean_{C,T} (student − teacher)²`: FitNet hints. Zero at equality.

    The mean over channels and positions keeps one weight meaningful for layers of any size; the paper sums and halves.

    Args:
        student, teacher: features of one shape [B, …]: brought to it by an aligner where the widths differ.
            The teacher gets no gradient.
        mask: valid samples [B].
        count: what to divide by instead of the number of valid samples.

    Source: Romero et al. 2015, arXiv 1412.6550, equation 3.

    >>> float(hint(torch.zeros(2, 3, 4, 4), torch.ones(2, 3, 4, 4)))
    1.0
    """
    if student.shape != teacher.shape:
        raise UserError(
            f"hint needs student and teacher features of one shape; {[*student.shape]} and {[*teacher.shape]} came: "
            "align them with `map: width` or `map: depth`"
        )
    squared = (wide(student, mask) - wide(teacher.detach(), mask)).square()
    return masked_mean(squared.flatten(1).mean(1), mask, count)
