"""Whether files fit a budget, by how much they miss it, and what would have to give."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Limit:
    """A figure that a file may have at most, less the share that is left free for what varies from one measurement to
    the next.

    >>> Limit("latency", 0.002, headroom=0.15).allowed
    0.0017
    """

    name: str
    value: float
    headroom: float = 0.0

    @property
    def allowed(self) -> float:
        return self.value * (1 - self.headroom)


Judged = dict[str, dict[str, Any]]


def judged(file: Mapping[str, float], limits: Sequence[Limit]) -> Judged:
    """What each limit says of a file's figures: the limit, what is allowed of it, the value, and whether it fits."""
    return {
        limit.name: {
            "limit": limit.value,
            "allowed": limit.allowed,
            "value": file[limit.name],
            "fits": file[limit.name] <= limit.allowed,
        }
        for limit in limits
    }


def missed_by(found: Judged) -> float:
    """How far the limits are missed, each relative to what it allows; 0 for what fits.

    >>> missed_by(judged({"size": 150e3}, [Limit("size", 120e3)]))
    0.25
    """
    missed = [float(one["value"] / one["allowed"]) - 1 for one in found.values() if not one["fits"]]
    return sum(missed)


def best_file(files: Mapping[str, Mapping[str, float]], limits: Sequence[Limit]) -> tuple[str, Judged]:
    """The file that misses the limits by least, the smallest among equals, and what they say of it."""
    found = {name: judged(file, limits) for name, file in files.items()}
    name = min(found, key=lambda name: (missed_by(found[name]), files[name]["size"]))
    return name, found[name]


def needed(found: Judged) -> dict[str, float]:
    """What each limit that is missed would have to be for the file to fit, its headroom included.

    >>> needed(judged({"latency": 0.0034}, [Limit("latency", 0.002, headroom=0.15)]))
    {'latency': 0.004}
    """
    return {name: one["value"] * one["limit"] / one["allowed"] for name, one in found.items() if not one["fits"]}
