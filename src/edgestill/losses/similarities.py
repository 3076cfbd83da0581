"""How alike the texts of a batch are. Shapes: N texts, D width, B pairs: texts 0…B−1 and, in their order, B…2B−1."""

import torch
from torch import Tensor
from torch.nn import functional

from edgestill.losses.reduce import masked_mean, wide


def similarities(embeddings: Tensor) -> Tensor:
    """The cosine of each text to all the others: [N, D] -> [N, N − 1]. Not a loss.

    The diagonal is left out: it is 1 whatever is learned, and in a softmax it would drown the rest. Student and teacher
    may be of different widths: their rows are distributions over the same texts, which every loss over logits takes.

    In float32 even under autocast: bfloat16's eight bits are 0.004 of a cosine, a tenth of a temperature of 0.05.

    Source: Fang et al. 2021 (SEED), arXiv 2101.04731, section 3, whose other texts are those of a queue.

    >>> similarities(torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 0.0]]))
    tensor([[0., 1.],
            [0., 0.],
            [1., 0.]])
    """
    with torch.autocast(embeddings.device.type, enabled=False):
        units = functional.normalize(wide(embeddings), dim=-1)
        cosines = units @ units.T
    N = len(cosines)
    # A row and its diagonal entry are N + 1 entries long, counted from behind the first diagonal entry.
    return cosines.flatten()[1:].view(N - 1, N + 1)[:, :-1].reshape(N, N - 1)


def pair_regression(
    student: Tensor, labels: Tensor, *, mask: Tensor | None = None, count: Tensor | float | None = None
) -> Tensor:
    """`mean_B (cos(text, its pair) − label)²`, of the `similarities` of a batch of pairs. Zero at equality.

    Args:
        student: [2B, 2B − 1]; of texts without a pair, [B, B − 1], of which nothing is valid.
        labels: how alike the texts of each pair are [B], as a cosine.
        mask: pairs [B] that have a label.
        count: what to divide by instead of the number of valid pairs.

    Source: Reimers and Gurevych 2019 (Sentence-BERT), arXiv 1908.10084, section 3, its regression objective.

    >>> alike = similarities(torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
    >>> float(pair_regression(alike, torch.tensor([0.5])))
    0.25
    """
    B = len(labels)
    if len(student) != 2 * B:
        return masked_mean(wide(student[:, :1]), torch.zeros_like(student[:, :1], dtype=torch.bool), count)
    first = torch.arange(B, device=student.device)
    cosines = student[first, first + B - 1]  # one place to the left: the diagonal is left out
    return masked_mean((wide(cosines, mask) - wide(labels, mask)) ** 2, mask, count)
