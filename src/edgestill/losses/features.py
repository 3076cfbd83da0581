"""Losses over intermediate features. Shapes: B batch, C channels, T positions (pixels H×W, or tokens), D width."""

from torch import Tensor
from torch.nn import functional

from edgestill.errors import UserError
from edgestill.losses.logits import divergence, log_probabilities
from edgestill.losses.reduce import masked_mean, of_one_size, over_valid, unit, wide


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
    # fused: squares of whole maps are not kept, and maps with the channels last are not copied
    total = functional.mse_loss(wide(student, mask), wide(teacher.detach(), mask), reduction="sum")
    return over_valid(total / max(student.shape[1:].numel(), 1), len(student), mask, count)


def nst(student: Tensor, teacher: Tensor, *, mask: Tensor | None = None, count: Tensor | float | None = None) -> Tensor:
    """`mean_B (mean k(t, t') + mean k(s, s') − 2·mean k(s, t))`, `k(x, y) = (xᵀy)²`: neuron selectivity transfer.

    The squared maximum mean discrepancy between the channels of both sides, each a unit vector over its positions; the
    means run over pairs of channels. Zero at equality, and for the same channels in another order. Widths may differ;
    the larger map is averaged down to the smaller.

    Args:
        student [B, C, H, W], teacher [B, C', H', W']: feature maps; the teacher gets no gradient.
        mask: valid samples [B].
        count: what to divide by instead of the number of valid samples.

    Source: Huang and Wang 2017, arXiv 1707.01219, with the polynomial kernel (d = 2, c = 0). RepDistiller's
    distiller_zoo/NST.py has this scale.

    >>> first = torch.tensor([1.0, 0.0]).reshape(1, 1, 1, 2)
    >>> float(nst(first, first.flip(3))), float(nst(5 * first, first))
    (2.0, 0.0)
    """
    if student.dim() != 4 or teacher.dim() != 4:
        raise UserError(f"nst needs feature maps [B, C, H, W]; {[*student.shape]} and {[*teacher.shape]} came")
    student, teacher = of_one_size(wide(student, mask), wide(teacher.detach(), mask))
    student, teacher = unit(student.flatten(2)), unit(teacher.flatten(2))
    pairs = ((student, student), (teacher, teacher), (student, teacher))
    of_student, of_teacher, between = ((first @ second.mT).square().flatten(1).mean(1) for first, second in pairs)
    return masked_mean(of_student + of_teacher - 2 * between, mask, count)


def cwd(
    student: Tensor,
    teacher: Tensor,
    *,
    temperature: float = 1.0,
    mask: Tensor | None = None,
    count: Tensor | float | None = None,
) -> Tensor:
    """`T²·mean_{B,C} KL(softmax(teacher/T) ‖ softmax(student/T))`, softmax over positions: channel-wise distillation.

    Where each channel looks. Zero at equality, and for channels that differ by a constant.

    Args:
        student, teacher: feature maps of one shape [B, C, H, W]; the teacher gets no gradient.
        temperature: T > 0.
        mask: valid samples [B].
        count: what to divide by instead of the number of valid samples.

    Source: Shu et al. 2021, arXiv 2011.13256, section 3.2. The authors' code (irfanICMLL/TorchDistiller,
    SemSeg-distill/utils/criterion.py) has this scale.

    >>> first = torch.tensor([100.0, 0.0]).reshape(1, 1, 1, 2)
    >>> round(float(cwd(torch.zeros_like(first), first)), 4)  # log 2
    0.6931
    """
    if student.shape != teacher.shape or student.dim() != 4:
        raise UserError(
            f"cwd needs student and teacher maps of one shape [B, C, H, W]; {[*student.shape]} and "
            f"{[*teacher.shape]} came: align them with `map: width` or `map: depth`"
        )
    if not temperature > 0:
        raise UserError(f"cwd needs a temperature above 0; {temperature} came")
    student_log = log_probabilities(student.flatten(2), temperature, mask)
    teacher_log = log_probabilities(teacher.detach().flatten(2), temperature, mask)
    return temperature**2 * masked_mean(divergence(teacher_log, student_log).mean(1), mask, count)
