"""Correlation of predictions. Shapes: B batch (any leading dimensions), C classes; N rows, K columns."""

import torch
from torch import Tensor

from edgestill.losses.logits import tempered
from edgestill.losses.reduce import masked_mean

SMALLEST = 1e-8
CONSTANT = 1e-6


def dist(
    student: Tensor,
    teacher: Tensor,
    *,
    inter: float = 1.0,
    intra: float = 1.0,
    temperature: float = 1.0,
    mask: Tensor | None = None,
    count: Tensor | float | None = None,
) -> Tensor:
    """`T²·[inter·mean_B (1 − ρ of a sample's classes) + intra·mean_C (1 − ρ of a class's samples)]`. Zero at equality.

    ρ is Pearson's correlation of softmax(student/T) with softmax(teacher/T). It does not see scale, so that the
    gradient, unlike that of `kl`, grows with T². What is the same throughout has no correlation: where the teacher's
    row or column is, it adds nothing; where only the student's is, it adds 1 with a gradient of zero.

    A relation: `intra` compares the samples of one batch, under accumulation those of one piece.

    Args:
        student, teacher: logits [B, C]; the teacher gets no gradient.
        inter, intra: the authors' beta and gamma.
        temperature: T > 0.
        mask: valid samples [B]; others are left out.
        count: what to divide by instead of the number of valid samples; `intra` counts for that number of them.

    Source: Huang et al. 2022, arXiv 2205.10536, section 4. Authors' code: hunto/image_classification_sota (the
    submodule of hunto/DIST_KD), lib/models/losses/dist_kd.py, the same but for 1e-8 added to the denominator. They take
    CE + 2·dist, T = 4 for CIFAR-100 and 1 for ImageNet: 3 times what alpha = 2/3 gives.

    >>> logits = torch.tensor([[1.0, 2.0, 0.0], [0.0, 0.0, 3.0]])
    >>> round(float(dist(logits, logits)), 6)
    0.0
    """
    C = student.shape[-1]
    student, teacher = student.reshape(-1, C), teacher.detach().reshape(-1, C)
    if mask is not None:
        rows = mask.reshape(-1)
        student, teacher = student[rows], teacher[rows]
    student, teacher = tempered(student, temperature).softmax(1), tempered(teacher, temperature).softmax(1)
    B = len(student)
    if B == 0:
        return student.sum()
    of_classes = _decorrelation(student, teacher)
    of_samples = _decorrelation(student.T, teacher.T).mean()
    return temperature**2 * masked_mean(inter * of_classes + intra * of_samples, None, count)


def _decorrelation(student: Tensor, teacher: Tensor) -> Tensor:
    """`1 − ρ` of each row [N, K] -> [N]."""
    zero = student.new_zeros(())
    told, silent = ~_constant(teacher), _constant(student)
    student = torch.where(silent.unsqueeze(1), zero, student - student.mean(1, keepdim=True))
    teacher = teacher - teacher.mean(1, keepdim=True)
    product = torch.linalg.vector_norm(student, dim=1) * torch.linalg.vector_norm(teacher, dim=1)
    correlation = (student * teacher).sum(1) / product.clamp(min=SMALLEST)
    return torch.where(told, 1 - correlation, zero)


def _constant(rows: Tensor) -> Tensor:
    """Whether nothing but rounding varies in a row: its correlation would be noise, with a gradient without bound."""
    highest = rows.detach().amax(1)
    return highest - rows.detach().amin(1) <= CONSTANT * highest
