"""Cases of the losses over relations, scales and attention: references written from the papers' formulas in NumPy,
float64, pair by pair and triple by triple.

Shapes: B batch, D width.
"""

from functools import partial
from itertools import permutations, product
from math import exp, factorial

import numpy as np

from edgestill.losses import attention_kl, cc, cka, cwd, noise_contrast, nst, pkt, pyramid, rkd, sp
from edgestill.losses.reduce import wide
from loss_checks import B, Case, random


def embeddings(features: np.ndarray) -> np.ndarray:
    axes = {2: (), 3: (1,), 4: (2, 3)}[features.ndim]
    return features.mean(axes)


def cosine(x: np.ndarray, y: np.ndarray) -> float:
    return x @ y / np.linalg.norm(x) / np.linalg.norm(y)


def huber(x: float, y: float) -> float:
    return (x - y) ** 2 / 2 if abs(x - y) <= 1 else abs(x - y) - 1 / 2


def sp_reference(student: np.ndarray, teacher: np.ndarray) -> np.ndarray:
    rows = []
    for features in (student.reshape(len(student), -1), teacher.reshape(len(teacher), -1)):
        gram = np.array([[x @ y for y in features] for x in features])
        rows.append(np.array([row / np.sqrt((row**2).sum()) for row in gram]))
    return np.asarray(((rows[0] - rows[1]) ** 2).mean())


def rkd_reference(student: np.ndarray, teacher: np.ndarray, distance: float = 25.0, angle: float = 50.0) -> np.ndarray:
    student, teacher = embeddings(student), embeddings(teacher)
    pairs, triples = (list(permutations(range(len(student)), n)) for n in (2, 3))
    lengths = [np.array([np.linalg.norm(x[i] - x[j]) for i, j in pairs]) for x in (student, teacher)]
    first = [huber(s, t) for s, t in zip(*(values / values.mean() for values in lengths), strict=True)]
    angles = [[cosine(x[i] - x[j], x[k] - x[j]) for i, j, k in triples] for x in (student, teacher)]
    second = [huber(s, t) for s, t in zip(*angles, strict=True)]
    return np.asarray(distance * np.mean(first) + angle * np.mean(second))


def pkt_reference(student: np.ndarray, teacher: np.ndarray) -> np.ndarray:
    student, teacher = embeddings(student), embeddings(teacher)
    total = 0.0
    for i in range(len(student)):
        others = [j for j in range(len(student)) if j != i]
        kernels = [np.array([(cosine(x[i], x[j]) + 1) / 2 for j in others]) for x in (student, teacher)]
        q, p = (kernel / kernel.sum() for kernel in kernels)
        total += (p * np.log(p / q)).sum()
    return np.asarray(total / len(student))


def cc_reference(student: np.ndarray, teacher: np.ndarray, gamma: float = 0.4, order: int = 2) -> np.ndarray:
    def kernel(x: np.ndarray, y: np.ndarray) -> float:
        return sum(exp(-2 * gamma) * (2 * gamma) ** p / factorial(p) * cosine(x, y) ** p for p in range(order + 1))

    student, teacher = embeddings(student), embeddings(teacher)
    places = product(range(len(student)), repeat=2)
    return np.asarray(np.mean([(kernel(*student[[i, j]]) - kernel(*teacher[[i, j]])) ** 2 for i, j in places]))


def cka_reference(student: np.ndarray, teacher: np.ndarray) -> np.ndarray:
    """By covariances of features, not by Gram matrices: ‖YᵀX‖² / (‖XᵀX‖·‖YᵀY‖)."""
    x, y = (features.reshape(len(features), -1) for features in (student, teacher))
    x, y = x - x.mean(0), y - y.mean(0)
    return np.asarray(1 - (np.linalg.norm(y.T @ x) ** 2) / np.linalg.norm(x.T @ x) / np.linalg.norm(y.T @ y))


def pyramid_reference(student: np.ndarray, teacher: np.ndarray) -> np.ndarray:
    H, W = student.shape[2:]
    values = [((student - teacher) ** 2).mean((1, 2, 3))]
    weights = [1.0]
    for side in (4, 2, 1):
        if side < H:
            blocks = (student - teacher).reshape(*student.shape[:2], side, H // side, side, W // side).mean((3, 5))
            values.append((blocks**2).mean((1, 2, 3)))
            weights.append(0.5 ** len(weights))
    return sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)


def attention_kl_reference(student: np.ndarray, teacher: np.ndarray) -> np.ndarray:
    if student.shape[1] != teacher.shape[1]:
        student, teacher = student.mean(1, keepdims=True), teacher.mean(1, keepdims=True)
    return (teacher * np.log(teacher / student)).sum(3).mean((1, 2))


def noise_contrast_reference(
    anchor: np.ndarray, positive: np.ndarray, negatives: np.ndarray, temperature: float, population: float
) -> np.ndarray:
    def h(x: np.ndarray, y: np.ndarray) -> float:
        score = np.exp(x @ y / temperature)
        return score / (score + len(negatives) / population)

    return np.array(
        [
            -np.log(h(a, p)) - sum(np.log(1 - h(a, negative)) for negative in negatives)
            for a, p in zip(anchor, positive, strict=True)
        ]
    )


def nst_reference(student: np.ndarray, teacher: np.ndarray) -> np.ndarray:
    values = []
    for maps in zip(student, teacher, strict=True):
        s, t = ([channel.ravel() / np.linalg.norm(channel) for channel in features] for features in maps)
        means = [np.mean([(x @ y) ** 2 for x in first for y in second]) for first, second in ((s, s), (t, t), (s, t))]
        values.append(means[0] + means[1] - 2 * means[2])
    return np.array(values)


def cwd_reference(student: np.ndarray, teacher: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    def share(channel: np.ndarray) -> np.ndarray:
        return np.exp(channel / temperature) / np.exp(channel / temperature).sum()

    def divergence(s: np.ndarray, t: np.ndarray) -> float:
        return temperature**2 * (share(t) * np.log(share(t) / share(s))).sum()

    pairs = (zip(s, t, strict=True) for s, t in zip(student, teacher, strict=True))
    return np.array([np.mean([divergence(s, t) for s, t in channels]) for channels in pairs])


NEGATIVES = random(9, 4, seed=5)
CONTRAST = {"temperature": 3.0, "population": 50.0}
MAP, WIDER = (B, 3, 4, 4), (B, 7, 4, 4)
RELATIONS: dict[str, Case] = {
    "sp": Case(sp, sp_reference, MAP, WIDER, relation=True),
    "sp of maps of other sizes": Case(sp, sp_reference, MAP, (B, 7, 2, 2), relation=True),
    "rkd": Case(rkd, rkd_reference, (B, 4), (B, 9), relation=True),
    "rkd of maps": Case(rkd, rkd_reference, MAP, WIDER, relation=True),
    "rkd, distances": Case(partial(rkd, angle=0), partial(rkd_reference, angle=0), (B, 4), (B, 9), relation=True),
    "rkd, angles": Case(
        partial(rkd, distance=0, angle=1), partial(rkd_reference, distance=0, angle=1), (B, 4), (B, 9), relation=True
    ),
    "pkt": Case(pkt, pkt_reference, (B, 4), (B, 9), relation=True),
    "pkt of tokens": Case(pkt, pkt_reference, (B, 5, 4), (B, 3, 9), relation=True),
    "cc": Case(cc, cc_reference, (B, 4), (B, 9), relation=True),
    "cc of maps, order 4": Case(
        partial(cc, gamma=1.5, order=4), partial(cc_reference, gamma=1.5, order=4), MAP, WIDER, relation=True
    ),
    "cka": Case(cka, cka_reference, MAP, WIDER, relation=True),
    "cka of vectors": Case(cka, cka_reference, (B, 4), (B, 9), relation=True),
    "pyramid": Case(pyramid, pyramid_reference, (B, 2, 8, 8), (B, 2, 8, 8)),
    "pyramid of small maps": Case(pyramid, pyramid_reference, MAP, MAP),
    "attention_kl": Case(
        attention_kl, attention_kl_reference, (B, 2, 3, 4), (B, 2, 3, 4), minimal=False, domain=lambda x: x.softmax(-1)
    ),
    "attention_kl of other heads": Case(
        attention_kl, attention_kl_reference, (B, 2, 3, 4), (B, 6, 3, 4), equal=None, domain=lambda x: x.softmax(-1)
    ),
    "nst": Case(nst, nst_reference, MAP, WIDER),
    "cwd": Case(cwd, cwd_reference, MAP, MAP),
    "cwd, temperature 4": Case(partial(cwd, temperature=4.0), partial(cwd_reference, temperature=4.0), MAP, MAP),
    "noise_contrast": Case(
        lambda s, t, **k: noise_contrast(s, t.detach(), NEGATIVES.to(wide(s).dtype), **CONTRAST, **k),
        lambda s, t: noise_contrast_reference(s, t, NEGATIVES.numpy(), **CONTRAST),
        (B, 4),
        (B, 4),
        equal=None,
    ),
}
