"""Losses over relations: how the samples of one batch stand to each other. Student and teacher may differ in width.

Under gradient accumulation the relations are seen within a piece; a piece then counts by its samples.

Shapes: B batch, D width, C channels, H height, W width of a map, T tokens.
"""

from math import exp, factorial

import torch
from torch import Tensor
from torch.nn import functional

from edgestill.errors import UserError
from edgestill.losses.reduce import length, over, pooled, unit, wide

BLOCK = 8
"""Samples at which `rkd` computes the angles at a time: as many as the cache holds."""
SMALLEST_KERNEL = 1e-7
"""What `pkt` takes for a kernel of zero, of which there is no logarithm."""


def sp(student: Tensor, teacher: Tensor, *, mask: Tensor | None = None, count: Tensor | float | None = None) -> Tensor:
    """`mean_i mean_j (Gˢᵢⱼ − Gᵗᵢⱼ)²`, `G` the rows of `F·Fᵀ`, each divided by its norm: similarity preserving.

    Zero at equality, and for features that differ by one factor or a rotation.

    Args:
        student [B, …], teacher [B, …]: features, flattened to one row a sample; the teacher gets no gradient.
        mask: valid samples [B].
        count: what to divide the sum over samples by instead of the number of valid samples.

    Source: Tung and Mori 2019, arXiv 1907.09682, section 3. RepDistiller's distiller_zoo/SP.py has this scale.

    >>> features = torch.eye(2)
    >>> round(float(sp(features, torch.ones(2, 3))), 4)  # the student's row (1, 0), the teacher's (1, 1)/√2: 1 − 1/√2
    0.2929
    """
    student, teacher = _valid("sp", student, teacher, mask)
    student, teacher = student.flatten(1), teacher.flatten(1)
    difference = unit(student @ student.T) - unit(teacher @ teacher.T)
    return _of_batch(difference.square().sum() / max(len(student), 1) ** 2, len(student), count)


def rkd(
    student: Tensor,
    teacher: Tensor,
    *,
    distance: float = 25.0,
    angle: float = 50.0,
    mask: Tensor | None = None,
    count: Tensor | float | None = None,
) -> Tensor:
    """`distance·mean_{i≠j} h(dˢᵢⱼ − dᵗᵢⱼ) + angle·mean_{i≠j≠k≠i} h(cˢᵢⱼₖ − cᵗᵢⱼₖ)`: relational distillation.

    d are Euclidean distances over their mean, cᵢⱼₖ is the cosine of the angle at j between i and k, h the Huber loss.
    Zero at equality, and for features that differ by one factor, a rotation or a shift. Where i or k lies where j does,
    the cosine is 0.
    Memory: B²·D numbers, 4 MB a tensor at B = 128 and D = 64. Time: B³·D. The angles have a first derivative only.

    Args:
        student, teacher: embeddings [B, D]; maps [B, C, H, W] and tokens [B, T, D] are averaged over their positions,
            as the papers compare embeddings. The teacher gets no gradient.
        distance, angle: weights of the two parts; a part of weight zero is not computed.
        mask: valid samples [B].
        count: what to divide the sum over samples by instead of the number of valid samples.

    Source: Park et al. 2019, arXiv 1904.05068, sections 3.2.1 and 3.2.2. The authors' code (lenscloth/RKD,
    metric/loss.py) averages over all B² pairs and B³ triples, a sample with itself included: its values are (B−1)/B
    and (B−1)(B−2)/B² of these.

    >>> line, corner = torch.tensor([[0.0, 0], [1, 0], [2, 0]]), torch.tensor([[0.0, 0], [1, 0], [1, 1]])
    >>> float(rkd(3 * line, line)), round(float(rkd(corner, line, distance=0, angle=1)), 4)
    (0.0, 0.1953)
    """
    student, teacher = _valid("rkd", student, teacher, mask)
    between_s, between_t = _between(pooled(student)), _between(pooled(teacher))  # [B, B, D]
    distances_s, distances_t = length(between_s), length(between_t)  # [B, B]
    B = len(student)
    pairs, triples = max(B * (B - 1), 1), max(B * (B - 1) * (B - 2), 1)
    value = distances_s.sum() * 0
    if distance:
        scaled_s, scaled_t = (over(distances, distances.sum() / pairs) for distances in (distances_s, distances_t))
        value = value + distance / pairs * functional.smooth_l1_loss(scaled_s, scaled_t, reduction="sum")
    if angle:
        directions_s = between_s * over(torch.ones_like(distances_s), distances_s)[:, :, None]
        directions_t = between_t * over(torch.ones_like(distances_t), distances_t)[:, :, None]
        value = value + angle / triples * _angles(directions_s, directions_t)
    return _of_batch(value, B, count)


def pkt(student: Tensor, teacher: Tensor, *, mask: Tensor | None = None, count: Tensor | float | None = None) -> Tensor:
    """`mean_i KL(pᵗ(·|i) ‖ pˢ(·|i))`, `p(j|i) = Kᵢⱼ / Σ_{k≠i} Kᵢₖ`, `K = (cos + 1)/2`: probabilistic transfer.

    p(j|i) is how probably sample i picks another one, j, as its neighbour. Zero at equality, and for features that
    differ by a factor a sample or a rotation. A sample that is all zero has the cosine 0 with every other.

    Args:
        student, teacher: embeddings [B, D]; maps [B, C, H, W] and tokens [B, T, D] are averaged over their positions,
            as the paper compares embeddings. The teacher gets no gradient.
        mask: valid samples [B].
        count: what to divide the sum over samples by instead of the number of valid samples.

    Source: Passalis and Tefas 2018, arXiv 1803.10837, section 3, with the cosine kernel; the paper sums over i. The
    authors' code (passalis/probabilistic_kt, nn/pkt.py) keeps a sample as its own neighbour and also averages over j:
    where all Σ_{k≠i} Kᵢₖ are one number a, its value is a/(a + 1)/B of this one.

    >>> student = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    >>> float(pkt(student, 2 * student)), round(float(pkt(student, torch.ones(3, 1))), 4)
    (0.0, 0.0393)
    """
    student, teacher = _valid("pkt", student, teacher, mask)
    student_log, teacher_log = (_log_neighbours(pooled(features)) for features in (student, teacher))
    divergence = teacher_log.exp() * (teacher_log - student_log)
    return _of_batch(divergence.sum() / max(len(student), 1), len(student), count)


def cc(
    student: Tensor,
    teacher: Tensor,
    *,
    gamma: float = 0.4,
    order: int = 2,
    mask: Tensor | None = None,
    count: Tensor | float | None = None,
) -> Tensor:
    """`mean_i mean_j (Kˢᵢⱼ − Kᵗᵢⱼ)²`, `K = e^(−2γ) Σ_{p≤order} (2γ)^p/p!·cos^p`: correlation congruence.

    K is the Gaussian kernel `e^(−γ‖x − y‖²)` of unit features by its Taylor series. Zero at equality, and for features
    that differ by a factor a sample or a rotation.

    Args:
        student, teacher: embeddings [B, D]; maps [B, C, H, W] and tokens [B, T, D] are averaged over their positions,
            as the paper compares embeddings. The teacher gets no gradient.
        gamma, order: γ and the last power of the series, 0.4 and 2 in the paper.
        mask: valid samples [B].
        count: what to divide the sum over samples by instead of the number of valid samples.

    Source: Peng et al. 2019, arXiv 1904.01802, section 3. RepDistiller's distiller_zoo/CC.py is another loss: it
    multiplies the differences of consecutive samples.

    >>> round(float(cc(torch.eye(2), torch.ones(2, 3), order=1)), 4)  # two of four differ by 0.8·e^(−0.8)
    0.0646
    """
    if order < 1:
        raise UserError(f"cc needs an order of 1 or more: order 0 compares nothing; {order} came")
    student, teacher = _valid("cc", student, teacher, mask)
    unit_s, unit_t = unit(pooled(student)), unit(pooled(teacher))
    cosine_s, cosine_t = unit_s @ unit_s.T, unit_t @ unit_t.T
    difference = torch.zeros_like(cosine_s)
    for p in range(1, order + 1):  # the power 0 is the same constant on both sides
        difference = difference + (2 * gamma) ** p / factorial(p) * (cosine_s**p - cosine_t**p)
    squared = (exp(-2 * gamma) * difference).square()
    return _of_batch(squared.sum() / max(len(student), 1) ** 2, len(student), count)


def cka(student: Tensor, teacher: Tensor, *, mask: Tensor | None = None, count: Tensor | float | None = None) -> Tensor:
    """`1 − ⟨Kˢ, Kᵗ⟩ / (‖Kˢ‖·‖Kᵗ‖)`, `K = F·Fᵀ` of features centred over the batch: linear CKA. 0…1.

    Zero at equality, and for features that differ by one factor, a rotation or a shift; 1 where the samples of either
    side are all alike.

    Args:
        student [B, …], teacher [B, …]: features, flattened to one row a sample; the teacher gets no gradient.
        mask: valid samples [B].
        count: the value is multiplied by the number of valid samples and divided by this, where it is given.

    Source: Kornblith et al. 2019, arXiv 1905.00414, section 3 (the biased estimate, over the samples of the
    batch); as a loss: Saha, Bialkowski and Khalifa, BMVC 2022.

    >>> points = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    >>> round(float(cka(points, points[:, :1])), 4)  # 1 − 1/√2: the teacher sees one of the two directions
    0.2929
    """
    student, teacher = _valid("cka", student, teacher, mask)
    grams = []
    for features in (student.flatten(1), teacher.flatten(1)):
        centred = features - features.sum(0) / max(len(features), 1)
        grams.append(unit((centred @ centred.T).flatten()[None]))
    return _of_batch(1 - (grams[0] * grams[1]).sum(), len(student), count)


def _valid(name: str, student: Tensor, teacher: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """The valid samples in float32 or float64, the teacher's without its graph."""
    if min(student.dim(), teacher.dim()) < 2 or len(student) != len(teacher):
        raise UserError(
            f"{name} needs features [B, …] of the same samples; {[*student.shape]} and {[*teacher.shape]} came"
        )
    teacher = teacher.detach()
    if mask is not None:
        student, teacher = student[mask], teacher[mask]
    return wide(student), wide(teacher)


def _of_batch(value: Tensor, samples: int, count: Tensor | float | None) -> Tensor:
    """A value of `samples` valid samples as their part of `count`. Of no sample: zero, with a gradient of zero."""
    return value * (samples / (max(samples, 1) if count is None else count))


def _between(points: Tensor) -> Tensor:
    """[B, D] -> [B, B, D]: from each point to each other. Differences, as the difference of squares would cancel."""
    return points[None] - points[:, None]


def _angles(student: Tensor, teacher: Tensor) -> Tensor:
    """Sum of `h(cˢᵢⱼₖ − cᵗᵢⱼₖ)` over all i ≠ k. Unit directions [B, B, D] come, from j to i.

    The gradient is made along with the value, a few j at a time, so that the B³ cosines are never kept: with
    `x = cˢ − cᵗ` and `y = clamp(x, −1, 1)`, `h(x) = y·(x − y/2)` and `h'(x) = y`.
    """
    total, gradients = student.new_zeros(()), []
    with torch.no_grad():
        for near_s, near_t in zip(student.split(BLOCK), teacher.split(BLOCK), strict=True):  # type: ignore[no-untyped-call]
            difference = torch.baddbmm(near_t @ near_t.mT, near_s, near_s.mT, beta=-1)
            difference.diagonal(dim1=1, dim2=2).zero_()
            slope = difference.clamp(-1, 1)
            total += (slope * (difference - slope / 2)).sum()
            gradients.append(2 * slope @ near_s)
    return total + ((student - student.detach()) * torch.cat(gradients)).sum()


def _log_neighbours(embeddings: Tensor) -> Tensor:
    """[B, D] -> log p(j|i) [B, B−1], itself left out."""
    B = len(embeddings)
    directions = unit(embeddings)
    kernel = ((directions @ directions.T + 1) / 2).clamp(min=SMALLEST_KERNEL)
    others = kernel[~torch.eye(B, dtype=torch.bool, device=kernel.device)].reshape(B, max(B - 1, 0))
    return others.log() - others.sum(1, keepdim=True).log()
