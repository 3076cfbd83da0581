"""Cases of the losses over logits: each with a reference written from its formula in NumPy, float64."""

from functools import partial

import numpy as np
import torch
from scipy.special import expit, rel_entr, softmax, xlogy
from torch import Tensor

from edgestill.losses import (
    binary_kl,
    dist,
    dkd,
    jensen_shannon,
    kl,
    nkd,
    regression,
    reverse_kl,
    skewed_kl,
    skewed_reverse_kl,
    standardize,
)
from loss_checks import B, C, Case


def probabilities(student: np.ndarray, teacher: np.ndarray, temperature: float) -> tuple[np.ndarray, np.ndarray]:
    return softmax(student / temperature, axis=-1), softmax(teacher / temperature, axis=-1)


def kl_reference(student, teacher, temperature=1.0):
    s, t = probabilities(student, teacher, temperature)
    return temperature**2 * rel_entr(t, s).sum(-1)


def reverse_kl_reference(student, teacher, temperature=1.0):
    s, t = probabilities(student, teacher, temperature)
    return temperature**2 * rel_entr(s, t).sum(-1)


def jensen_shannon_reference(student, teacher, beta=0.5, temperature=1.0):
    s, t = probabilities(student, teacher, temperature)
    m = beta * t + (1 - beta) * s
    return temperature**2 * (beta * rel_entr(t, m).sum(-1) + (1 - beta) * rel_entr(s, m).sum(-1))


def skewed_kl_reference(student, teacher, skew=0.1, temperature=1.0):
    s, t = probabilities(student, teacher, temperature)
    return temperature**2 * rel_entr(t, skew * t + (1 - skew) * s).sum(-1)


def skewed_reverse_kl_reference(student, teacher, skew=0.1, temperature=1.0):
    s, t = probabilities(student, teacher, temperature)
    return temperature**2 * rel_entr(s, skew * s + (1 - skew) * t).sum(-1)


def binary_kl_reference(student, teacher, temperature=1.0):
    s, t = expit(student / temperature), expit(teacher / temperature)
    return temperature**2 * (rel_entr(t, s) + rel_entr(1 - t, 1 - s)).sum(-1)


def regression_reference(student, teacher):
    return ((student - teacher) ** 2).reshape(len(student), -1).sum(1)


def normalized_others(probability: np.ndarray, target: int) -> np.ndarray:
    """The probabilities of all classes but the target, brought to a sum of 1."""
    others = np.delete(probability, target)
    return others / others.sum()


def dkd_reference(student, teacher, labels=None, target_weight=1.0, other_weight=8.0, temperature=1.0):
    labels = np.full(len(teacher), -1) if labels is None else labels
    values = []
    for s, t, label in zip(*probabilities(student, teacher, temperature), labels, strict=True):
        target = label if label >= 0 else t.argmax()
        binary = [np.array([p[target], 1 - p[target]]) for p in (t, s)]
        others = [normalized_others(p, target) for p in (t, s)]
        values.append(target_weight * rel_entr(*binary).sum() + other_weight * rel_entr(*others).sum())
    return temperature**2 * np.array(values)


def nkd_reference(student, teacher, labels=None, other_weight=1.5, temperature=1.0):
    """The paper's cross-entropies, less what they are where the student equals the teacher."""

    def paper(s, t, s_soft, t_soft, target):
        others = xlogy(normalized_others(t_soft, target), normalized_others(s_soft, target)).sum()
        return -t[target] * np.log(s[target]) - other_weight * temperature**2 * others

    labels = np.full(len(teacher), -1) if labels is None else labels
    values = []
    plain, soft = probabilities(student, teacher, 1.0), probabilities(student, teacher, temperature)
    for s, t, s_soft, t_soft, label in zip(*plain, *soft, labels, strict=True):
        target = label if label >= 0 else t.argmax()
        values.append(paper(s, t, s_soft, t_soft, target) - paper(t, t, t_soft, t_soft, target))
    return np.array(values)


def dist_reference(student, teacher, inter=1.0, intra=1.0, temperature=1.0):
    s, t = probabilities(student, teacher, temperature)
    of_classes = np.mean([1 - np.corrcoef(s[i], t[i])[0, 1] for i in range(len(s))])
    of_samples = np.mean([1 - np.corrcoef(s[:, j], t[:, j])[0, 1] for j in range(s.shape[1])])
    return temperature**2 * (inter * of_classes + intra * of_samples)


def standardized_kl(student: Tensor, teacher: Tensor, **keywords) -> Tensor:
    mask = keywords.get("mask")
    return kl(standardize(student, mask=mask), standardize(teacher, mask=mask), **keywords)


def standardized_kl_reference(student, teacher, temperature=1.0):
    scores = [(z - z.mean(-1, keepdims=True)) / (z.std(-1, ddof=1, keepdims=True) + 1e-7) for z in (student, teacher)]
    return kl_reference(*scores, temperature)


def labels_of(teacher: np.ndarray) -> np.ndarray:
    """Labels made of the teacher's rows, so that they move with them: often not its answer, and missing in places."""
    labels = np.argsort(teacher, axis=-1)[..., 1]
    return np.where(teacher[..., 0] > teacher[..., 1], -1, labels)


def labelled(loss, **options):
    def call(student: Tensor, teacher: Tensor, **keywords) -> Tensor:
        labels = torch.from_numpy(labels_of(teacher.detach().double().numpy()))
        return loss(student, teacher, labels=labels, **options, **keywords)

    return call


def labelled_reference(reference, **options):
    return lambda s, t: reference(s, t, labels=labels_of(t), **options)


def case(loss, reference, shape=(B, C), *, equal=0.0, minimal=True, relation=False, **options) -> Case:
    return Case(
        partial(loss, **options),
        partial(reference, **options),
        shape,
        shape,
        equal=equal,
        minimal=minimal,
        relation=relation,
    )


LOGITS: dict[str, Case] = {
    "reverse_kl": case(reverse_kl, reverse_kl_reference, temperature=3.0),
    "jensen_shannon": case(jensen_shannon, jensen_shannon_reference, beta=0.3, temperature=3.0),
    "jensen_shannon, beta 0.9": case(jensen_shannon, jensen_shannon_reference, beta=0.9),
    "skewed_kl": case(skewed_kl, skewed_kl_reference, skew=0.2, temperature=3.0),
    "skewed_reverse_kl": case(skewed_reverse_kl, skewed_reverse_kl_reference, skew=0.2, temperature=3.0),
    "dkd": case(dkd, dkd_reference, temperature=3.0),
    "dkd with labels": Case(
        labelled(dkd, target_weight=2.0, other_weight=3.0, temperature=3.0),
        labelled_reference(dkd_reference, target_weight=2.0, other_weight=3.0, temperature=3.0),
        (B, C),
        (B, C),
    ),
    "dkd of two classes": case(dkd, dkd_reference, (B, 2), temperature=3.0),
    "nkd": case(nkd, nkd_reference, temperature=3.0, minimal=False),
    "nkd with labels": Case(
        labelled(nkd, other_weight=2.0, temperature=3.0),
        labelled_reference(nkd_reference, other_weight=2.0, temperature=3.0),
        (B, C),
        (B, C),
        minimal=False,
    ),
    "dist": case(dist, dist_reference, relation=True, temperature=3.0),
    "dist, weighted": case(dist, dist_reference, relation=True, inter=0.5, intra=2.0),
    "binary_kl": case(binary_kl, binary_kl_reference, temperature=3.0),
    "regression": case(regression, regression_reference),
    "regression of maps": case(regression, regression_reference, (B, 2, 3)),
    "kl of standardized logits": case(standardized_kl, standardized_kl_reference, temperature=2.0, minimal=False),
}
