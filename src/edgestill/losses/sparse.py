"""What a teacher's logits are compared by where not all of them are kept. Shapes: N positions, V classes, K kept.

Two forms: the K most probable classes with all others as one bucket, on which any divergence is a lower bound of the
whole one; and classes drawn from the teacher's distribution, which give forward KL without bias.
"""

import torch
from torch import Tensor

from edgestill.losses.logits import FLOOR, log_probabilities, tempered
from edgestill.losses.reduce import masked_mean


def bucketed(student: Tensor, ids: Tensor, temperature: float) -> Tensor:
    """Logits [N, K + 1] of the classes `ids` and of all others together, whose softmax at `temperature` is that of all
    classes with the others' probabilities added up.

    By the data-processing inequality a divergence of two distributions over buckets is at most that of the two over
    classes, and never negative; it is equal where the K classes are all but one.

    Args:
        student: logits [N, V].
        ids: class numbers [N, K], no class twice.
        temperature: T of the softmax: the others' logit is `T · log Σ exp(logit / T)`.

    >>> bucketed(torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([[0]]), 1.0)
    tensor([[1.0000, 0.6931]])
    """
    scaled = tempered(student, temperature)
    others = scaled.scatter(-1, ids, FLOOR).logsumexp(-1, keepdim=True)
    return temperature * torch.cat([scaled.gather(-1, ids), others], -1)


def drawn_kl(
    student: Tensor,
    ids: Tensor,
    shares: Tensor,
    entropy: Tensor,
    *,
    temperature: float = 1.0,
    mask: Tensor | None = None,
    count: Tensor | float | None = None,
) -> Tensor:
    """`T²·mean_N [−Σ_K shares·log softmax(student/T) − entropy]`: `kl` from classes that the teacher drew.

    Its mean over draws is `kl`, and so is that of its gradient; a single one may be below zero.

    Args:
        student: logits [N, V].
        ids: the classes drawn [N, K]; where fewer were, any class with a share of 0.
        shares: how often each was drawn, as shares of all draws of its position [N, K].
        entropy: of the teacher's softmax at `temperature` [N], in nats.
        temperature: T at which the classes were drawn.
        mask: valid positions [N].
        count: what to divide by instead of the number of valid positions.

    Source: Anshumann et al. 2025, arXiv 2503.16870, whose draws are independent.

    >>> round(float(drawn_kl(torch.zeros(1, 2), torch.tensor([[0, 1]]), torch.tensor([[0.5, 0.5]]),
    ...                      torch.tensor([2.0]).log())), 6)
    0.0
    """
    chosen = log_probabilities(student, temperature, mask).gather(-1, ids)
    return temperature**2 * masked_mean(-(shares * chosen).sum(-1) - entropy, mask, count)
