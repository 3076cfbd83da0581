"""Divergences from a mixture of student and teacher. Shapes: B batch (any leading dimensions), C classes."""

import math

import torch
from torch import Tensor

from edgestill.errors import UserError
from edgestill.losses.logits import divergence, log_probabilities
from edgestill.losses.reduce import masked_mean


def jensen_shannon(
    student: Tensor,
    teacher: Tensor,
    *,
    beta: float = 0.5,
    temperature: float = 1.0,
    mask: Tensor | None = None,
    count: Tensor | float | None = None,
) -> Tensor:
    """`T²·mean_B [β·KL(t ‖ m) + (1 − β)·KL(s ‖ m)]`, `m = β·t + (1 − β)·s`. Zero at equality.

    s and t are softmax(student/T) and softmax(teacher/T). It is bounded by log 2 (times T²), finite whatever is
    impossible for one of the two. Divided by β it becomes `kl` as β falls to 0, divided by 1 − β `reverse_kl` as β
    rises to 1: with a small β the value is small.

    Args:
        student, teacher: logits [B, C]; the teacher gets no gradient.
        beta: β between 0 and 1, both excluded; ½ is the Jensen-Shannon divergence.
        temperature: T > 0.
        mask: valid positions [B].
        count: what to divide by instead of the number of valid positions.

    Source: Agarwal et al. 2024 (GKD), arXiv 2306.13649, equation 1; the T² as in `kl`. Code: huggingface/trl,
    trl/experimental/gkd/gkd_trainer.py, without T². jongwooko/distillm's `js_distance` has 1 − β for `lam`.

    >>> apart = jensen_shannon(torch.tensor([[-99.0, 99.0]]), torch.tensor([[99.0, -99.0]]))
    >>> round(float(apart), 4)  # log 2
    0.6931
    """
    share = _proper(beta, "jensen_shannon needs a beta", "kl, beta 1 reverse_kl")
    student_log = log_probabilities(student, temperature, mask)
    teacher_log = log_probabilities(teacher.detach(), temperature, mask)
    mixed_log = _mixture(teacher_log, student_log, share)
    of_teacher, of_student = divergence(teacher_log, mixed_log), divergence(student_log, mixed_log)
    return temperature**2 * masked_mean(share * of_teacher + (1 - share) * of_student, mask, count)


def skewed_kl(
    student: Tensor,
    teacher: Tensor,
    *,
    skew: float = 0.1,
    temperature: float = 1.0,
    mask: Tensor | None = None,
    count: Tensor | float | None = None,
) -> Tensor:
    """`T²·mean_B KL(t ‖ skew·t + (1 − skew)·s)`. Zero at equality; at most −log skew (times T²).

    s and t are softmax(student/T) and softmax(teacher/T). The teacher's share in the mixture bounds the gradient
    where the student finds a class impossible.

    Args:
        student, teacher: logits [B, C]; the teacher gets no gradient.
        skew: the share of the first in the mixture, between 0 and 1, both excluded.
        temperature: T > 0.
        mask: valid positions [B].
        count: what to divide by instead of the number of valid positions.

    Source: Ko et al. 2024 (DistiLLM), arXiv 2402.03898, section 3.1; the T² as in `kl`. Authors' code:
    jongwooko/distillm, distillm/losses.py `skewed_forward_kl`, `lam` the skew: a cross-entropy, larger by the
    teacher's entropy.

    >>> float(skewed_kl(torch.tensor([[0.0, 0.0]]), torch.tensor([[2.0, 2.0]])))
    0.0
    """
    share = _proper(skew, "skewed_kl needs a skew", "kl")
    student_log = log_probabilities(student, temperature, mask)
    teacher_log = log_probabilities(teacher.detach(), temperature, mask)
    mixed_log = _mixture(teacher_log, student_log, share)
    return temperature**2 * masked_mean(divergence(teacher_log, mixed_log), mask, count)


def skewed_reverse_kl(
    student: Tensor,
    teacher: Tensor,
    *,
    skew: float = 0.1,
    temperature: float = 1.0,
    mask: Tensor | None = None,
    count: Tensor | float | None = None,
) -> Tensor:
    """`T²·mean_B KL(s ‖ skew·s + (1 − skew)·t)`. Zero at equality; at most −log skew (times T²).

    As `skewed_kl` with student and teacher in each other's place.

    Args: as `skewed_kl`.

    Source: Ko et al. 2024 (DistiLLM), arXiv 2402.03898, section 3.1; the T² as in `kl`. Authors' code:
    jongwooko/distillm, distillm/losses.py `skewed_reverse_kl`, `lam` the skew, the same at T = 1.

    >>> float(skewed_reverse_kl(torch.tensor([[0.0, 0.0]]), torch.tensor([[2.0, 2.0]])))
    0.0
    """
    share = _proper(skew, "skewed_reverse_kl needs a skew", "reverse_kl")
    student_log = log_probabilities(student, temperature, mask)
    teacher_log = log_probabilities(teacher.detach(), temperature, mask)
    mixed_log = _mixture(student_log, teacher_log, share)
    return temperature**2 * masked_mean(divergence(student_log, mixed_log), mask, count)


def _mixture(first_log: Tensor, second_log: Tensor, share: float) -> Tensor:
    """`log(share·first + (1 − share)·second)`."""
    return torch.logaddexp(first_log + math.log(share), second_log + math.log1p(-share))


def _proper(share: float, needs: str, instead: str) -> float:
    if not 0 < share < 1:
        raise UserError(f"{needs} between 0 and 1, both excluded; {share} came: 0 would be {instead}")
    return share
