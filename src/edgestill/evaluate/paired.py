"""Differences between arms, with their intervals. S seeds, N samples."""

from dataclasses import dataclass
from math import sqrt

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Difference:
    """Mean of student − baseline with a 95 % interval over seeds, or over test samples where there is one seed."""

    mean: float
    interval: tuple[float, float] | None
    over: str


def over_seeds(student: list[float], baseline: list[float]) -> Difference:
    """Student's t interval of the differences paired by seed: two lists [S], S ≥ 2."""
    from scipy.stats import t

    differences = np.asarray(student) - np.asarray(baseline)
    mean = float(differences.mean())
    half = float(t.ppf(0.975, len(differences) - 1)) * float(differences.std(ddof=1)) / sqrt(len(differences))
    return Difference(mean, (mean - half, mean + half), "seeds")


def over_samples(student: NDArray[np.generic], baseline: NDArray[np.generic]) -> Difference:
    """Normal interval of the paired difference of scores over test samples [N], whose mean is the quality: it holds for
    these two trainings, and says nothing of other seeds."""
    differences = student.astype(np.float64) - baseline.astype(np.float64)
    mean = float(differences.mean())
    if len(differences) < 2:
        return Difference(mean, None, "test samples")
    half = 1.96 * float(differences.std(ddof=1)) / sqrt(len(differences))
    return Difference(mean, (mean - half, mean + half), "test samples")


def retained(student: float, teacher: float, chance: float) -> float:
    """`(student − chance) / (teacher − chance)`.

    >>> retained(0.82, 0.9, 0.1)
    0.9
    """
    return round((student - chance) / (teacher - chance), 12)
