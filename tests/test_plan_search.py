"""The arithmetic of the planner: limits, rungs, time, proposals, the front."""

from collections.abc import Iterator, Mapping

import pytest

from edgestill.plan.fits import Limit, best_file, judged, missed_by, needed
from edgestill.plan.front import Tried, fell_out, front
from edgestill.plan.halving import Rung, affordable, halving, rungs, seconds_of
from edgestill.plan.proposing import Traits, proposed

QUALITY = {"a": (0.2, 0.9), "b": (0.3, 0.4), "c": (0.5, 0.6), "d": (0.4, 0.8)}


def in_order(found: Mapping[str, float]) -> Iterator[str]:
    return iter(QUALITY)


def highest(name: str, quality: float) -> tuple[float, ...]:
    return (-quality,)


def test_the_headroom_is_taken_off_and_asked_for_again() -> None:
    limits = [Limit("size", 100), Limit("latency", 2.0, headroom=0.25)]
    assert missed_by(judged({"size": 100, "latency": 1.5}, limits)) == 0
    found = judged({"size": 100, "latency": 1.8}, limits)
    assert missed_by(found) == pytest.approx(0.2)
    assert needed(found) == {"latency": pytest.approx(2.4)}
    name, _ = best_file({"float": {"size": 80, "latency": 1}, "int8": {"size": 30, "latency": 1.4}}, limits)
    assert name == "int8"


def test_rungs_grow_as_candidates_fall() -> None:
    assert rungs(9, 0.3, 3) == [Rung(9, pytest.approx(0.1)), Rung(3, pytest.approx(0.3))]
    assert rungs(2, 0.3, 3) == [Rung(2, 0.3)]
    assert rungs(10, 0.3, 3, least=0.1) == [Rung(10, pytest.approx(0.1)), Rung(4, 0.3)]  # no third, of 0.033
    assert rungs(10, 0.3, 3, least=0.2) == [Rung(10, 0.3)]


def test_the_best_of_a_rung_go_on_and_the_last_decides() -> None:
    trained: list[tuple[str, int]] = []

    def train(name: str, rung: int) -> float:
        trained.append((name, rung))
        return QUALITY[name][rung]

    assert halving([Rung(4, 0.1), Rung(2, 0.3)], in_order, train, highest) == "d"
    assert trained == [("a", 0), ("b", 0), ("c", 0), ("d", 0), ("c", 1), ("d", 1)]


def test_a_rung_for_which_time_ends_decides_nothing() -> None:
    def train(name: str, rung: int) -> float:
        return QUALITY[name][rung]

    plan = [Rung(4, 0.1), Rung(2, 0.3)]
    assert halving(plan, in_order, train, highest, lambda name, rung: (name, rung) != ("d", 1)) == "c"
    assert halving(plan[:1], in_order, train, highest, lambda name, rung: name != "c") == "b"


def test_one_that_cannot_be_trained_is_passed_over() -> None:
    assert halving([Rung(4, 0.1)], in_order, lambda name, _: None if name == "c" else QUALITY[name][0], highest) == "d"
    assert halving([Rung(4, 0.1)], in_order, lambda name, _: None, highest) is None


def test_as_many_enter_as_there_is_time_for() -> None:
    def seconds(name: str, share: float) -> float:
        return 100 * share

    def plan(count: int) -> list[Rung]:
        return rungs(count, 0.3, 3)

    names = list("abcdefghi")
    assert seconds_of(plan(9), names, seconds) == pytest.approx(9 * 10 + 3 * 30)
    assert affordable(plan, names, seconds, 180.1) == 9
    assert affordable(plan, names, seconds, 120) == 6  # six for 10 s each, then two for 30 s
    assert affordable(plan, names, seconds, 59) == 0


def test_proposals_follow_what_is_known() -> None:
    """Quality grows with size: of 40 candidates, those that are proposed are larger than those that were spread."""
    traits = {str(size): Traits(1000 * size, 10 * size) for size in range(1, 41)}
    found: dict[str, float] = {}
    asked = []
    for name in proposed(traits, 16, found, higher_is_better=True):
        found[name] = float(name)
        asked.append(int(name))
    assert len({*asked}) == 16
    assert asked[:8] == [1, 7, 12, 18, 23, 29, 34, 40]
    assert sum(asked[8:]) / 8 > 26
    again: dict[str, float] = {}
    for name in proposed(traits, 16, again, higher_is_better=True):
        again[name] = float(name)
    assert [*again] == [*found]


def test_the_front_compares_where_both_were() -> None:
    tried = {"long": Tried((5, 5), (0.6, 0.9)), "short": Tried((4, 5), (0.6,)), "dear": Tried((6, 6), (0.5,))}
    assert front(tried, higher_is_better=True) == ["short"]
    assert front({name: tried[name] for name in ("long", "dear")}, higher_is_better=True) == ["long"]
    assert fell_out({"a": (3.0,), "b": (2.0, 1.0)}, "b", higher_is_better=False) == {"a": (0, 3.0, 2.0)}
