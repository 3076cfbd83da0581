"""Successive halving (Jamieson, Talwalkar, arXiv 1502.07943): many short trainings, few longer ones.

All candidates are trained for a small share of the whole training, the best of them again for a longer one, and so on.
Each training is whole, with its own phases and learning rates: a candidate is ranked by where a short distillation
ends, not by where a long one passes. All of a rung have the same steps, seeds and batches.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import ceil


@dataclass(frozen=True)
class Rung:
    """How many candidates are trained, for which share of the whole training."""

    entrants: int
    share: float


def rungs(count: int, last: float, reduction: int, least: float = 0.0) -> list[Rung]:
    """The rungs of `count` candidates. One in `reduction` goes on, to a training that is `reduction` times as long; the
    last rung has the share `last` and, unless an earlier one had less than the share `least`, at most `reduction`
    candidates. Shorter trainings rank wrongly: what is large, or was cut deeply, is behind in them.

    >>> [(rung.entrants, round(rung.share, 3)) for rung in rungs(14, last=1 / 3, reduction=3, least=0.1)]
    [(14, 0.111), (5, 0.333)]
    """
    counts, first = [count], last
    while counts[-1] > reduction and first / reduction >= least * (1 - 1e-9):
        counts.append(ceil(counts[-1] / reduction))
        first /= reduction
    return [Rung(one, last / reduction ** (len(counts) - 1 - place)) for place, one in enumerate(counts)]


def seconds_of(plan: Sequence[Rung], names: Sequence[str], seconds: Callable[[str, float], float]) -> float:
    """At most, what the trainings of all rungs take: the slowest candidates go on. `seconds(name, share)`: of one."""
    return sum(
        sum(sorted((seconds(name, rung.share) for name in names), reverse=True)[: rung.entrants]) for rung in plan
    )


def affordable(
    plan: Callable[[int], list[Rung]], names: Sequence[str], seconds: Callable[[str, float], float], time: float
) -> int:
    """How many candidates may enter so that all trainings take at most `time` seconds; 0 where not even two may.
    `plan`: the rungs of so many."""
    for count in range(len(names), 1, -1):
        if seconds_of(plan(count), names, seconds) <= time:
            return count
    return 0


def halving(
    plan: Sequence[Rung],
    entrants: Callable[[Mapping[str, float]], Iterator[str]],
    train: Callable[[str, int], float | None],
    better: Callable[[str, float], tuple[float, ...]],
    time_for: Callable[[str, int], bool] = lambda name, number: True,
) -> str | None:
    """The candidate that is best in the last rung; None where none could be trained.

    Args:
        entrants: gives the first rung's candidates one by one, told the qualities that are known by then.
        train: a candidate's quality in a rung, by the rung's number; None where it cannot be trained.
        better: sorts candidates by name and quality, the best first.
        time_for: whether there is time for such a training. Where there is not, no more candidates enter; of a later
            rung that is then not whole, the one before decides.
    """
    found: dict[str, float] = {}

    def order(name: str) -> tuple[float, ...]:
        return better(name, found[name])

    for name in entrants(found):
        if found and not time_for(name, 0):
            break
        if (quality := train(name, 0)) is not None:
            found[name] = quality
    for number, rung in enumerate(plan[1:], start=1):
        reached: dict[str, float] = {}
        for name in sorted(found, key=order)[: rung.entrants]:
            if not time_for(name, number):
                return min(found, key=order)
            if (quality := train(name, number)) is not None:
                reached[name] = quality
        found = reached
    return min(found, key=order) if found else None
