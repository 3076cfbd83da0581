"""Feature maps compared at several scales. Shapes: B batch, C channels, H height, W width."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from edgestill.errors import UserError
from edgestill.losses.reduce import masked_mean, wide


def pyramid(
    student: Tensor, teacher: Tensor, *, mask: Tensor | None = None, count: Tensor | float | None = None
) -> Tensor:
    """`mean_B Σ_l w_l·mean_{C,H,W} (pool_l(student) − pool_l(teacher))² / Σ_l w_l`: multi-scale hints.

    At full size with w = 1, then averaged down to 4×4, 2×2 and 1×1, each with half the weight of the one before;
    a scale that is not smaller than the map is left out. Zero at equality.

    Args:
        student, teacher: feature maps of one shape [B, C, H, W]: brought to it by an aligner where they differ.
            The teacher gets no gradient.
        mask: valid samples [B].
        count: what to divide by instead of the number of valid samples.

    Source: the hierarchical context loss (HCL) of Chen et al. 2021, arXiv 2104.09044, section 3.3, with the weights of
    the authors' code (dvlab-research/ReviewKD, CIFAR-100/model/reviewkd.py, `hcl`), which has this scale.

    >>> float(pyramid(torch.zeros(2, 3, 8, 8), torch.ones(2, 3, 8, 8)))  # a constant differs at all scales
    1.0
    """
    if student.shape != teacher.shape or student.dim() != 4:
        raise UserError(
            f"pyramid needs student and teacher maps of one shape [B, C, H, W]; {[*student.shape]} and "
            f"{[*teacher.shape]} came: align them with `map: width` or `map: depth`"
        )
    difference = wide(student, mask) - wide(teacher.detach(), mask)
    values, weight, total = difference.square().flatten(1).mean(1), 1.0, 1.0
    for side in (4, 2, 1):
        if side < min(difference.shape[2:]):
            weight /= 2
            total += weight
            pooled = functional.adaptive_avg_pool2d(difference, side)
            values = values + weight * pooled.square().flatten(1).mean(1)
    return masked_mean(values / total, mask, count)


def review(
    students: Sequence[Tensor],
    teachers: Sequence[Tensor],
    *,
    mask: Tensor | None = None,
    count: Tensor | float | None = None,
) -> Tensor:
    """`Σ_levels pyramid(student, teacher)`: knowledge review. Zero at equality.

    Args:
        students, teachers: a feature map [B, C, H, W] a level, of one shape on both sides: what
            `aligners.ReviewFusion` makes of the student's. The teacher gets no gradient.
        mask: valid samples [B].
        count: what to divide by instead of the number of valid samples.

    Source: Chen et al. 2021, arXiv 2104.09044, equation 6. The authors' code (dvlab-research/ReviewKD) has this scale.

    >>> levels = [torch.zeros(2, 3, 8, 8), torch.zeros(2, 5, 4, 4)]
    >>> float(review(levels, [level + 1 for level in levels]))
    2.0
    """
    if len(students) != len(teachers) or not students:
        raise UserError(
            f"review needs as many student levels as teacher levels; {len(students)} and {len(teachers)} came"
        )
    levels = zip(students, teachers, strict=True)
    return torch.stack([pyramid(student, teacher, mask=mask, count=count) for student, teacher in levels]).sum()
