"""Differences between arms, with their intervals. S seeds, N samples."""

from collections.abc import Callable
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


def over_redraws(
    of: Callable[[NDArray[np.float64]], NDArray[np.float64]], count: int, draws: int = 2000
) -> tuple[float, float] | None:
    """95 % bootstrap interval: of `count` samples, drawn anew with replacement, the middle of what a statistic gives.

    `of` takes how often each sample was drawn [R, N] and gives a number for each draw [R]; NaN does not count. None
    with less than two samples, or where nothing but NaN came. (Efron 1979, the percentile method.)
    """
    if count < 2:
        return None
    generator, found = np.random.default_rng(0), []
    for _ in range(0, draws, 100):  # all at once would be as large as the data, 2,000 times
        found.append(of(generator.multinomial(count, np.full(count, 1 / count), 100).astype(np.float64)))
    values = np.concatenate(found)
    values = values[~np.isnan(values)]
    if not len(values):
        return None
    low, high = np.percentile(values, (2.5, 97.5))
    return float(low), float(high)


def retained(student: float, teacher: float, chance: float) -> float | None:
    """`(student − chance) / (teacher − chance)`; None of a teacher at chance, of which nothing is to be retained.

    >>> retained(0.82, 0.9, 0.1)
    0.9
    """
    if teacher == chance:
        return None
    return round((student - chance) / (teacher - chance), 12)
