"""Which of a teacher's depths and widths a search begins with."""

from collections.abc import Mapping, Sequence
from itertools import combinations, pairwise
from math import log
from typing import TypeVar

Width = TypeVar("Width")
FEWEST, USUAL, MOST, A_SIDE = 2, 6, 8, 6
"""Candidates: at least, about, at most; and choices of one kind."""
SPAN = 1 / 16
"""The smallest size over the largest, where none is wanted: less than that is not looked for."""


def straddling(
    depths: Mapping[int, float], widths: Mapping[Width, float], wanted: float | None, *, room: bool = False
) -> tuple[list[int], list[Width]]:
    """Some depths and widths, of which every pair is a candidate, with sizes on both sides of `wanted` and near it.

    Args:
        depths: parameters by the number of blocks, at the whole width; the most blocks are the whole teacher.
        widths: share of the parameters that a width leaves, at the whole depth; 1 is the whole width.
        wanted: parameters that are allowed; None spreads over all.
        room: whether more than size limits a candidate, so that one of half of that is wanted too.

    Candidates are `FEWEST` to `MOST`, and none is the whole teacher; empty lists where that leaves too few.

    >>> straddling({1: 30.0, 2: 50.0, 3: 70.0, 4: 90.0}, {0.5: 0.3, 1.0: 1.0}, 40.0)
    ([1, 2, 3], [0.5, 1.0])
    """
    whole = max(depths.values())
    best: tuple[tuple[float, ...], list[int], list[Width]] | None = None
    for some in _some([*depths]):
        for chosen in _some([*widths]):
            sizes = [depths[depth] * widths[width] for depth in some for width in chosen]
            if not FEWEST <= len(sizes) <= MOST or max(sizes) >= whole:
                continue
            alone = (len(some) < min(2, len(depths))) + (len(chosen) < min(2, len(widths)))
            cost = _misses(sizes, wanted, room, alone)
            if best is None or cost < best[0]:
                best = cost, some, chosen
    return ([], []) if best is None else (best[1], best[2])


def _some(choices: Sequence[Width]) -> list[list[Width]]:
    return [list(some) for count in range(1, A_SIDE + 1) for some in combinations(choices, count)]


def _misses(sizes: Sequence[float], wanted: float | None, room: bool, alone: int) -> tuple[float, ...]:
    """How far some sizes are from what is wanted, the worst first; `alone`: of how many kinds there is no choice."""
    many = abs(len(sizes) - USUAL)
    if wanted is None:
        ordered = sorted(sizes)
        steps = max(more / less for less, more in pairwise(ordered))
        return alone, max(ordered[0] / ordered[-1], SPAN), round(steps, 1), many
    inside = [size for size in sizes if size <= wanted]
    outside = len(sizes) - len(inside)
    far = sum(abs(log(size / wanted)) for size in sizes) / len(sizes)
    return not inside, not outside, room and min(sizes) > wanted / 2, max(0, outside - 2), alone, far + 0.1 * many
