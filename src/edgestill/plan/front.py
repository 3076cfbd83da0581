"""Which candidates no other one beats in everything, and what became of each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Tried:
    """A candidate that was trained: its costs, less being better, and its quality by rung, from the first on."""

    costs: tuple[float, ...]
    qualities: tuple[float, ...]


def front(tried: Mapping[str, Tried], *, higher_is_better: bool) -> list[str]:
    """The candidates that none other beats: with no more of any cost and, in the last rung that both were in, no less
    quality, and better in one of these.

    >>> small, large, worse = Tried((1, 1), (0.7,)), Tried((2, 2), (0.8, 0.9)), Tried((2, 3), (0.7,))
    >>> front({"small": small, "large": large, "worse": worse}, higher_is_better=True)
    ['small', 'large']
    """

    def beats(one: Tried, other: Tried) -> bool:
        shared = min(len(one.qualities), len(other.qualities)) - 1
        gained = one.qualities[shared] - other.qualities[shared]
        gained = gained if higher_is_better else -gained
        apart = [theirs - ours for ours, theirs in zip(one.costs, other.costs, strict=True)] + [gained]
        return min(apart) >= 0 and max(apart) > 0

    return [
        name
        for name, one in tried.items()
        if not any(beats(other, one) for other in tried.values() if other is not one)
    ]


def fell_out(
    tried: Mapping[str, Sequence[float]], chosen: str, *, higher_is_better: bool
) -> dict[str, tuple[int, float, float]]:
    """Of each trained candidate but the chosen one, where it fell out: the rung, its quality there, and the least of
    those that went on, or of the last rung the chosen one's.

    >>> fell_out({"a": (0.7,), "b": (0.8, 0.9), "c": (0.8, 0.8)}, "b", higher_is_better=True)
    {'a': (0, 0.7, 0.8), 'c': (1, 0.8, 0.9)}
    """
    worst = min if higher_is_better else max
    found = {}
    for name, qualities in tried.items():
        if name != chosen:
            rung = len(qualities) - 1
            on = [other[rung] for other in tried.values() if len(other) > rung + 1]
            found[name] = (rung, qualities[rung], worst(on) if on else tried[chosen][rung])
    return found
