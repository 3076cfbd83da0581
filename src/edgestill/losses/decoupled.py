"""Losses that part the target class from the others. Shapes: B batch (any leading dimensions), C classes."""

import torch
from torch import Tensor
from torch.nn import functional

from edgestill.errors import UserError
from edgestill.losses.logits import FLOOR, bernoulli_divergence, divergence, log_probabilities, tempered
from edgestill.losses.reduce import masked_mean


def dkd(
    student: Tensor,
    teacher: Tensor,
    *,
    labels: Tensor | None = None,
    target_weight: float = 1.0,
    other_weight: float = 8.0,
    temperature: float = 1.0,
    mask: Tensor | None = None,
    count: Tensor | float | None = None,
) -> Tensor:
    """`T²·mean_B [target_weight·KL(b_t ‖ b_s) + other_weight·KL(o_t ‖ o_s)]`: decoupled distillation. Zero at equality.

    b is (p_target, 1 − p_target), o the softmax over the other classes, both of logits/T. `kl` is the same with
    weights 1 and the teacher's 1 − p_target; with two classes the second part is zero.

    Args:
        student, teacher: logits [B, C]; the teacher gets no gradient.
        labels: the targets, class numbers [B]; where negative, and where None, the teacher's most probable class.
        target_weight, other_weight: the authors' alpha and beta. They set beta by teacher and student: 0.5 to 8.
        temperature: T > 0.
        mask: valid positions [B].
        count: what to divide by instead of the number of valid positions.

    Source: Zhao et al. 2022, arXiv 2203.08679, section 3. Authors' code: megvii-research/mdistiller,
    mdistiller/distillers/DKD.py, the same; theirs subtracts 1000 from the target's logit, which is exact for logits
    far below 1000. They raise the weight of the whole from 0 over the first 20 epochs: a phase does that here.

    >>> float(dkd(torch.tensor([[1.0, 2.0, 0.0]]), torch.tensor([[1.0, 2.0, 0.0]]), labels=torch.tensor([0])))
    0.0
    """
    student, teacher = tempered(student, temperature, mask), tempered(teacher.detach(), temperature, mask)
    target = _targets(teacher, labels)
    student_margin, student_others = _parted(student, target)
    teacher_margin, teacher_others = _parted(teacher, target)
    of_target = bernoulli_divergence(teacher_margin, student_margin)
    of_others = divergence(teacher_others, student_others)
    return temperature**2 * masked_mean(target_weight * of_target + other_weight * of_others, mask, count)


def nkd(
    student: Tensor,
    teacher: Tensor,
    *,
    labels: Tensor | None = None,
    other_weight: float = 1.5,
    temperature: float = 1.0,
    mask: Tensor | None = None,
    count: Tensor | float | None = None,
) -> Tensor:
    """`mean_B [t·log(t / s) + other_weight·T²·KL(o_t ‖ o_s)]`: normalized distillation. Zero at equality, no minimum.

    t and s are the target's probabilities at temperature 1, o the softmax over the other classes of logits/T. The
    first part is the authors' −t·log s less its constant: it pulls s to 1, not to t, so that the value may fall to
    t·log t, below zero.

    Args:
        student, teacher: logits [B, C]; the teacher gets no gradient.
        labels: the targets, class numbers [B]; where negative, and where None, the teacher's most probable class.
        other_weight: the authors' gamma: 1.5 with T = 1 for ImageNet, 3.5 with T = 3 for CIFAR-100.
        temperature: T > 0, of the other classes.
        mask: valid positions [B].
        count: what to divide by instead of the number of valid positions.

    Source: Yang et al. 2023, arXiv 2303.13005, section 3. Authors' code: yzd-v/cls_KD, mmcls/models/dis_losses/nkd.py:
    cross-entropies in both parts, so larger by what the teacher alone decides; the gradient is the same.

    >>> float(nkd(torch.tensor([[1.0, 2.0, 0.0]]), torch.tensor([[1.0, 2.0, 0.0]]), labels=torch.tensor([0])))
    0.0
    """
    teacher = teacher.detach()
    student_others, teacher_others = tempered(student, temperature, mask), tempered(teacher, temperature, mask)
    target = _targets(teacher_others, labels)
    student_log = log_probabilities(student, 1.0, mask).gather(-1, target.unsqueeze(-1)).squeeze(-1)
    teacher_log = log_probabilities(teacher, 1.0, mask).gather(-1, target.unsqueeze(-1)).squeeze(-1)
    of_target = teacher_log.exp() * (teacher_log - student_log)
    of_others = divergence(_parted(teacher_others, target)[1], _parted(student_others, target)[1])
    return masked_mean(of_target + other_weight * temperature**2 * of_others, mask, count)


def _targets(teacher: Tensor, labels: Tensor | None) -> Tensor:
    likeliest = teacher.argmax(-1)
    if labels is None:
        return likeliest
    if labels.is_floating_point():
        raise UserError(
            f"dkd and nkd need class numbers for labels; probabilities {[*labels.shape]} came: pass `labels=None` to "
            "take the teacher's most probable class"
        )
    return torch.where(labels >= 0, labels, likeliest)


def _parted(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """The logit of the target against all others [B], and the log-probabilities among the others [B, C].

    Not 1 − p_target, which is lost to rounding where the target is certain.
    """
    index = target.unsqueeze(-1)
    others = logits.scatter(-1, index, FLOOR)
    margin = logits.gather(-1, index).squeeze(-1) - others.logsumexp(-1)
    return margin, functional.log_softmax(others, dim=-1)
