"""Contrastive losses: a sample's embeddings against those of others. Shapes: B batch, K negatives, D width."""

from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from edgestill.errors import UserError
from edgestill.losses.reduce import masked_mean, wide


def crd(
    student: Tensor,
    teacher: Tensor,
    student_negatives: Tensor,
    teacher_negatives: Tensor,
    *,
    temperature: float = 0.07,
    population: float = 1.0,
    mask: Tensor | None = None,
    count: Tensor | float | None = None,
) -> Tensor:
    """`mean_B −log h(tᵀs) − Σ_K log(1 − h(t⁻ᵀs)) − log h(sᵀt) − Σ_K log(1 − h(s⁻ᵀt))`: contrastive distillation.

    `h(x) = e^(x/T) / (e^(x/T) + K/population)`: how probably a pair is of one sample and not one of K chance pairs.
    Each direction moves its anchor alone: the other side counts as given, as the negatives are. The teacher's
    *embedding* therefore gets a gradient; give it detached features (`aligners.ContrastMemory` does).

    Args:
        student, teacher: unit embeddings [B, D].
        student_negatives, teacher_negatives: unit embeddings [K, D] of any samples, such as a memory's: every sample
            of the batch is compared with all K.
        temperature: T > 0.
        population: N in the paper, the number of training samples. With 1, e^(x/T) estimates the density ratio of
            pairs of one sample to chance pairs, which is near 1 for unrelated samples: their embeddings are to be
            orthogonal. With N it estimates that ratio over N, so that unrelated samples are to be opposite.
        mask: valid samples [B].
        count: what to divide by instead of the number of valid samples.

    Source: Tian, Krishnan and Isola 2020, arXiv 1910.10699, sections 3.1 and 3.4. The authors' code (RepDistiller,
    crd/) divides e^(x/T) by Z, N times its mean over the first batch: population = N/Z here, 0.45 for chance pairs of
    128 numbers. It takes the positive, too, from the memory, and draws K negatives for each sample by itself.

    >>> one, other = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    >>> round(float(crd(one, one, other, other, temperature=1)), 4)  # 2·(log((e + 1)/e) + log 2)
    2.0128
    """
    direction = partial(noise_contrast, temperature=temperature, population=population, mask=mask, count=count)
    return direction(student, teacher.detach(), teacher_negatives) + direction(
        teacher, student.detach(), student_negatives
    )


def noise_contrast(
    anchor: Tensor,
    positive: Tensor,
    negatives: Tensor,
    *,
    temperature: float = 0.07,
    population: float = 1.0,
    mask: Tensor | None = None,
    count: Tensor | float | None = None,
) -> Tensor:
    """`mean_B −log h(aᵀp) − Σ_K log(1 − h(aᵀn))`, one direction of `crd`.

    Args:
        anchor, positive: unit embeddings [B, D]; negatives: [K, D], which get no gradient.
        temperature, population, mask, count: as for `crd`.

    >>> axes = torch.eye(2)
    >>> round(float(noise_contrast(axes[:1], axes[:1], axes[1:], temperature=1)), 4)  # log((e + 1)/e) + log 2
    1.0064
    """
    if not temperature > 0:
        raise UserError(f"crd needs a temperature above 0; {temperature} came")
    anchor, positive, negatives = wide(anchor, mask), wide(positive, mask), wide(negatives.detach())
    # log h(x) = log σ(x/T − log(K/population)), log(1 − h(x)) = log σ of minus that: no overflow at any temperature
    offset = torch.log(anchor.new_tensor(max(len(negatives), 1) / population))
    anchor = anchor / temperature
    matching = functional.logsigmoid((anchor * positive).sum(1) - offset)
    strange = functional.logsigmoid(offset - anchor @ negatives.T).sum(1)
    return masked_mean(-matching - strange, mask, count)
