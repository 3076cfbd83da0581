"""Losses over attention. Shapes: B batch, C channels, H height, W width of a map; A heads, T queries, K keys."""

import torch
from torch import Tensor
from torch.nn import functional

from edgestill.errors import UserError
from edgestill.losses.reduce import masked_mean, of_one_size, wide


def attention_transfer(
    student: Tensor,
    teacher: Tensor,
    *,
    power: float = 2.0,
    mask: Tensor | None = None,
    count: Tensor | float | None = None,
) -> Tensor:
    """`mean_B ‖Q(student) − Q(teacher)‖²`, `Q = q/‖q‖₂`, `q = Σ_C |A|^power` over the H×W positions. Zero at equality.

    Channels are summed away, so that the widths may differ; the larger map is averaged down to the smaller.
    The authors' code (szagoruyko/attention-transfer, utils.py) also averages over the H·W positions: its weight of
    1000 is 1000/(H·W) here, 15.6 at 8×8.

    Args:
        student [B, C, H, W], teacher [B, C', H', W']: feature maps; the teacher gets no gradient.
        power: p of the paper's F^p_sum.
        mask: valid samples [B].
        count: what to divide by instead of the number of valid samples.

    Source: Zagoruyko and Komodakis 2017, arXiv 1612.03928, equation 2, with the squared norm of the authors' code.

    >>> features = torch.rand(2, 3, 4, 4)
    >>> float(attention_transfer(features, 4 * features))  # scale does not matter
    0.0
    """
    if student.dim() != 4 or teacher.dim() != 4:
        raise UserError(
            f"attention_transfer needs feature maps [B, C, H, W]; {[*student.shape]} and {[*teacher.shape]} came"
        )
    student, teacher = wide(student, mask), wide(teacher.detach(), mask)
    if power == 2:  # the default, at two thirds of the time
        student_map, teacher_map = student.square().sum(1), teacher.square().sum(1)  # [B, H, W]
    else:
        student_map, teacher_map = student.abs().pow(power).sum(1), teacher.abs().pow(power).sum(1)
    student_map, teacher_map = of_one_size(student_map, teacher_map)
    difference = functional.normalize(student_map.flatten(1), dim=1) - functional.normalize(
        teacher_map.flatten(1), dim=1
    )
    return masked_mean(difference.square().sum(1), mask, count)


def attention_kl(
    student: Tensor, teacher: Tensor, *, mask: Tensor | None = None, count: Tensor | float | None = None
) -> Tensor:
    """`mean_{B,A,T} KL(teacher ‖ student)` over the keys of each query: transformers' attention. Zero at equality.

    Where the numbers of heads differ, both are averaged over their heads first. A student's probability below 1e-12
    counts as 1e-12. Queries are all counted, those of padding too.

    Args:
        student, teacher: attention probabilities [B, A, T, K], [B, A', T, K], after the softmax. The teacher gets no
            gradient.
        mask: valid samples [B].
        count: what to divide by instead of the number of valid samples.

    Source: Wang et al. 2020 (MiniLM), arXiv 2002.10957, equation 2.

    >>> teacher, student = torch.tensor([[[[1.0, 0.0]]]]), torch.tensor([[[[0.5, 0.5]]]])
    >>> round(float(attention_kl(student, teacher)), 4)  # log 2
    0.6931
    """
    if student.dim() != 4 or teacher.dim() != 4 or student.shape[2:] != teacher.shape[2:]:
        raise UserError(
            "attention_kl needs attention probabilities [B, heads, queries, keys] over the same tokens; "
            f"{[*student.shape]} and {[*teacher.shape]} came"
        )
    student, teacher = wide(student, mask), wide(teacher.detach(), mask)
    if student.shape[1] != teacher.shape[1]:
        student, teacher = student.mean(1, keepdim=True), teacher.mean(1, keepdim=True)
    divergence = torch.xlogy(teacher, teacher) - teacher * student.clamp(min=1e-12).log()
    return masked_mean(divergence.sum(3).flatten(1).mean(1), mask, count)
