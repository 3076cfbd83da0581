"""Losses over logits. Shapes: B batch (any leading dimensions), C classes."""

from torch import Tensor
from torch.nn import functional

from edgestill.losses.reduce import masked_mean, wide


def cross_entropy(
    student: Tensor,
    labels: Tensor,
    *,
    smoothing: float = 0.0,
    mask: Tensor | None = None,
    count: Tensor | float | None = None,
) -> Tensor:
    """`mean_B −Σ_C q·log softmax(student)`, q the label, smoothed: `q = (1 − s)·onehot + s/C`.

    Args:
        student: logits [B, C].
        labels: class numbers [B] (negative: missing, adds nothing and is not counted), or probabilities [B, C].
        smoothing: s of Szegedy et al. 2016 (arXiv 1512.00567), section 7.
        mask: valid positions [B]; with class numbers, those with a label besides.
        count: what to divide by instead of the number of valid positions.

    >>> float(cross_entropy(torch.zeros(2, 4), torch.tensor([1, -1])))  # log 4
    1.3862943649291992
    """
    if labels.is_floating_point():
        log_probabilities = functional.log_softmax(wide(student, mask), dim=-1)
        target = wide(labels, mask) * (1 - smoothing) + smoothing / student.shape[-1]
        return masked_mean(-(target * log_probabilities).sum(-1), mask, count)
    valid = labels >= 0 if mask is None else mask & (labels >= 0)
    log_probabilities = functional.log_softmax(wide(student, valid), dim=-1)
    chosen = log_probabilities.gather(-1, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    loss = -(1 - smoothing) * chosen
    if smoothing:
        loss = loss - smoothing * log_probabilities.mean(-1)
    return masked_mean(loss, valid, count)


def kl(
    student: Tensor,
    teacher: Tensor,
    *,
    temperature: float = 1.0,
    mask: Tensor | None = None,
    count: Tensor | float | None = None,
) -> Tensor:
    """`T²·mean_B KL(softmax(teacher/T) ‖ softmax(student/T))`: soft labels. Zero at equality.

    T² keeps the gradient's size when T changes. Summed over classes, never averaged.

    Args:
        student, teacher: logits [B, C]; the teacher gets no gradient.
        temperature: T > 0.
        mask: valid positions [B].
        count: what to divide by instead of the number of valid positions.

    Source: Hinton, Vinyals, Dean 2015, arXiv 1503.02531, section 2.

    >>> float(kl(torch.tensor([[0.0, 0.0]]), torch.tensor([[2.0, 2.0]]), temperature=4))
    0.0
    """
    student_log = functional.log_softmax(wide(student, mask) / temperature, dim=-1)
    teacher_log = functional.log_softmax(wide(teacher.detach(), mask) / temperature, dim=-1)
    divergence = (teacher_log.exp() * (teacher_log - student_log)).sum(-1)
    return temperature**2 * masked_mean(divergence, mask, count)
