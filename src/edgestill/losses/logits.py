"""Losses over logits, or over what else a model puts out. Shapes: B batch (any leading dimensions), C classes."""

import torch
from torch import Tensor
from torch.nn import functional

from edgestill.errors import UserError
from edgestill.losses.reduce import masked_mean, over_valid, wide

FLOOR = torch.finfo(torch.float32).min
STANDARDIZE_EPSILON = 1e-7


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


def tempered(logits: Tensor, temperature: float, mask: Tensor | None = None) -> Tensor:
    """`logits / T` in float32 or wider, -inf made finite.

    Logits are -inf where a class cannot be, as in a padded vocabulary. Its probability is still exactly 0, and
    0 · log 0 is then 0, not NaN.

    >>> tempered(torch.tensor([2.0, -torch.inf]), 2.0).log_softmax(-1).exp()
    tensor([1., 0.])
    """
    logits = wide(logits, mask)
    if temperature == 1 and not (logits.requires_grad and torch.is_grad_enabled()):
        return logits.clamp(min=FLOOR)  # one pass, where nobody asks what the gradient at -inf is
    scaled = logits / temperature
    scaled.detach().clamp_(min=FLOOR)  # in place and outside the graph: the gradient there is that of softmax, 0
    return scaled


def log_probabilities(logits: Tensor, temperature: float, mask: Tensor | None = None) -> Tensor:
    """`log softmax(logits / T)`, finite also where the logits are -inf."""
    return functional.log_softmax(tempered(logits, temperature, mask), dim=-1)


def divergence(p_log: Tensor, q_log: Tensor) -> Tensor:
    """`KL(p ‖ q)` of each row, from log-probabilities [B, C] -> [B]."""
    return (p_log.exp() * (p_log - q_log)).sum(-1)


def bernoulli_divergence(p_logit: Tensor, q_logit: Tensor) -> Tensor:
    """`KL(Bernoulli(σ(p)) ‖ Bernoulli(σ(q)))` of each entry."""
    yes = p_logit.sigmoid() * (functional.logsigmoid(p_logit) - functional.logsigmoid(q_logit))
    no = (-p_logit).sigmoid() * (functional.logsigmoid(-p_logit) - functional.logsigmoid(-q_logit))
    return yes + no


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
        student, teacher: logits [B, C]; the teacher gets no gradient. A class whose logit is -inf has probability 0.
        temperature: T > 0.
        mask: valid positions [B].
        count: what to divide by instead of the number of valid positions.

    Source: Hinton, Vinyals, Dean 2015, arXiv 1503.02531, section 2.

    >>> float(kl(torch.tensor([[0.0, 0.0]]), torch.tensor([[2.0, 2.0]]), temperature=4))
    0.0
    """
    student_log = log_probabilities(student, temperature, mask)
    teacher_log = log_probabilities(teacher.detach(), temperature, mask)
    return temperature**2 * masked_mean(divergence(teacher_log, student_log), mask, count)


def reverse_kl(
    student: Tensor,
    teacher: Tensor,
    *,
    temperature: float = 1.0,
    mask: Tensor | None = None,
    count: Tensor | float | None = None,
) -> Tensor:
    """`T²·mean_B KL(softmax(student/T) ‖ softmax(teacher/T))`. Zero at equality.

    The student keeps to classes that the teacher finds likely, where `kl` has it cover all of them. Where the
    teacher's logit is -inf and the student's is not, the value is that of a probability of e^-3e38: mask such
    classes out of the student, or use `skewed_reverse_kl`.

    Args: as `kl`.

    Source: Gu et al. 2024 (MiniLLM), arXiv 2306.08543, whose divergence of sequences this is at one position; the T²
    as in `kl`. Code: jongwooko/distillm, distillm/losses.py `reverse_kl`, the same at T = 1.

    >>> float(reverse_kl(torch.tensor([[0.0, 0.0]]), torch.tensor([[2.0, 2.0]]), temperature=4))
    0.0
    """
    student_log = log_probabilities(student, temperature, mask)
    teacher_log = log_probabilities(teacher.detach(), temperature, mask)
    return temperature**2 * masked_mean(divergence(student_log, teacher_log), mask, count)


def binary_kl(
    student: Tensor,
    teacher: Tensor,
    *,
    temperature: float = 1.0,
    mask: Tensor | None = None,
    count: Tensor | float | None = None,
) -> Tensor:
    """`T²·mean_B Σ_C KL(Bernoulli(σ(teacher/T)) ‖ Bernoulli(σ(student/T)))`. Zero at equality.

    For outputs that are each a yes or no: binary and multi-label classification. With one output it is `kl` of the
    two logits (z, 0).

    Args:
        student, teacher: logits [B, C] before the sigmoid; the teacher gets no gradient.
        temperature: T > 0.
        mask: valid positions [B].
        count: what to divide by instead of the number of valid positions.

    Source: Yang et al. 2023 (multi-label distillation), arXiv 2308.06453, its loss of the logits; the T² as in `kl`.

    >>> float(binary_kl(torch.tensor([[0.0, 5.0]]), torch.tensor([[0.0, 5.0]])))
    0.0
    """
    student, teacher = tempered(student, temperature, mask), tempered(teacher.detach(), temperature, mask)
    return temperature**2 * masked_mean(bernoulli_divergence(teacher, student).sum(-1), mask, count)


def regression(
    student: Tensor, teacher: Tensor, *, mask: Tensor | None = None, count: Tensor | float | None = None
) -> Tensor:
    """`mean_B Σ (student − teacher)²`, the sum over all outputs of a sample. Zero at equality.

    For models that put out numbers, and for logits to be matched as they are. It has no temperature.

    Args:
        student, teacher: outputs of one shape [B, …]; the teacher gets no gradient.
        mask: valid samples [B].
        count: what to divide by instead of the number of valid samples.

    Source: Ba and Caruana 2014, arXiv 1312.6184, equation 1, which halves it.

    >>> float(regression(torch.zeros(2, 3), torch.ones(2, 3)))
    3.0
    """
    if student.shape != teacher.shape:
        raise UserError(
            f"regression needs outputs of one shape; the student's {[*student.shape]} and the teacher's "
            f"{[*teacher.shape]} came"
        )
    total = functional.mse_loss(wide(student, mask), wide(teacher.detach(), mask), reduction="sum")
    return over_valid(total, len(student), mask, count)


def standardize(logits: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """`(z − mean_C z) / (std_C z + 1e-7)`: the z-scores [B, C] of logits, std with C − 1. Not a loss.

    Applied to both student and teacher before a logit loss, it has the student learn the order and the relative
    distances of the teacher's logits, not their size. The temperature stays the loss's own. Logits that are all the
    same become zeros with a gradient of zero (the authors': a gradient of up to 1e7).

    Args:
        logits: [B, C], finite; at least two classes.
        mask: valid positions [B]; the others become zeros, whatever they were.

    Source: Sun et al. 2024, arXiv 2403.01268, algorithm 1. Authors' code: sunshangquan/logit-standardization-KD,
    mdistiller/distillers/KD.py `normalize`, the same. They take T = 2 and 0.1·CE + 9·kl, which is 9.1 times what
    alpha = 9/9.1 = 0.989 gives: with SGD, their learning rate times 9.1 and their weight decay through 9.1.

    >>> standardize(torch.tensor([[1.0, 2.0, 3.0], [5.0, 5.0, 5.0]]))
    tensor([[-1.0000,  0.0000,  1.0000],
            [ 0.0000,  0.0000,  0.0000]])
    """
    logits = wide(logits, mask)
    constant = (logits == logits[..., :1]).all(-1, keepdim=True)
    centred = logits - logits.mean(-1, keepdim=True)
    deviation = torch.linalg.vector_norm(centred, dim=-1, keepdim=True) / max(logits.shape[-1] - 1, 1) ** 0.5
    return torch.where(constant, torch.zeros_like(centred), centred / (deviation + STANDARDIZE_EPSILON))
