"""The schedule: which phase, learning rate and share of the samples hold at a step."""

import math
from dataclasses import FrozenInstanceError
from itertools import pairwise

import pytest

from edgestill.errors import UserError
from edgestill.schedule import FIRST_ADMITTED, Phase, Schedule


def phase(name: str = "distill", share: float = 1.0, **options) -> Phase:
    return Phase(name, share, **{"alpha": 0.9, "temperature": 4.0, "lr": 0.1} | options)


THREE = (
    phase("warmup", 0.2, order="easiest-first", terms=("hint/a",)),
    phase("distill", 0.6, temperature=2.0, terms=("hint/a", "hint/b")),
    phase("finetune", 0.2, alpha=0.0, lr=0.01),
)


def steps_by_phase(schedule: Schedule) -> dict[str, int]:
    names = [schedule.at(step).phase.name for step in range(schedule.steps)]
    assert sorted(names, key=[part.name for part in schedule.phases].index) == names  # in order, each in one stretch
    return {name: names.count(name) for name in names}


def test_phases_take_their_shares_of_the_steps():
    schedule = Schedule(THREE, steps=100)
    assert steps_by_phase(schedule) == {"warmup": 20, "distill": 60, "finetune": 20}
    assert schedule.starts() == [0, 20, 80, 100]
    assert [schedule.at(step).phase.name for step in (19, 20, 79, 80)] == ["warmup", "distill", "distill", "finetune"]


@pytest.mark.parametrize("shares", [(0.2, 0.6, 0.2), (1 / 3, 1 / 3, 1 / 3), (0.001, 0.998, 0.001), (0.9, 0.05, 0.05)])
@pytest.mark.parametrize("steps", [3, 4, 5, 7, 11, 12, 100, 999])
def test_every_phase_gets_a_step_and_together_they_get_all(shares, steps):
    schedule = Schedule(tuple(phase(f"p{i}", share) for i, share in enumerate(shares)), steps)
    counts = steps_by_phase(schedule)
    assert len(counts) == len(shares)
    assert sum(counts.values()) == steps
    for count, share in zip(counts.values(), shares, strict=True):
        assert abs(count - share * steps) <= len(shares)


def test_shares_that_only_rounding_keeps_from_one_leave_no_step_over():
    phases = tuple(phase(f"p{i}", 0.1) for i in range(10))
    assert sum(part.share for part in phases) != 1
    assert list(steps_by_phase(Schedule(phases, 1000)).values()) == [100] * 10
    assert Schedule((phase("a", 0.5), phase("b", 0.4999992)), 10**7).starts() == [0, 5 * 10**6, 10**7]


def test_fewer_steps_than_phases_are_refused():
    with pytest.raises(UserError, match="3 phases need at least as many steps; the training has 2"):
        Schedule(THREE, steps=2)


def test_a_step_has_what_its_phase_says():
    schedule = Schedule(THREE, steps=100, shape="constant")
    warmup, distill, finetune = (schedule.at(step) for step in (10, 50, 90))
    assert (warmup.alpha, warmup.temperature, warmup.lr, warmup.terms) == (0.9, 4.0, 0.1, ("hint/a",))
    assert (distill.alpha, distill.temperature, distill.lr, distill.terms) == (0.9, 2.0, 0.1, ("hint/a", "hint/b"))
    assert (finetune.alpha, finetune.temperature, finetune.lr, finetune.terms) == (0.0, 4.0, 0.01, ())


def test_what_holds_at_a_step_depends_on_the_step_alone():
    schedule = Schedule(THREE, steps=100, ramp=0.1)
    forward = [schedule.at(step) for step in range(100)]
    assert [schedule.at(step) for step in reversed(range(100))] == forward[::-1]
    assert [Schedule(THREE, steps=100, ramp=0.1).at(step) for step in range(100)] == forward
    with pytest.raises(FrozenInstanceError):
        schedule.steps = 3


def test_the_teacher_is_needed_for_alpha_or_terms_alone():
    assert phase(alpha=0.1).needs_teacher
    assert phase(alpha=0.0, terms=("hint/a",)).needs_teacher
    assert not phase(alpha=0.0).needs_teacher


def test_without_a_ramp_the_learning_rate_is_half_a_cosine():
    schedule = Schedule((phase(),), steps=4)
    expected = [0.1, 0.05 * (1 + math.sqrt(0.5)), 0.05, 0.05 * (1 - math.sqrt(0.5))]
    assert [schedule.at(step).lr for step in range(4)] == pytest.approx(expected)


def test_the_learning_rate_ramps_up_in_equal_steps_and_then_falls():
    schedule = Schedule((phase(),), steps=20, ramp=0.2)
    lrs = [schedule.at(step).lr for step in range(20)]
    assert lrs[:5] == pytest.approx([0.02, 0.04, 0.06, 0.08, 0.1])
    assert lrs[12] == pytest.approx(0.05)  # half of the 16 steps behind the ramp
    assert lrs[4:] == sorted(lrs[4:], reverse=True)
    assert 0 < lrs[-1] < 0.001


def test_a_constant_learning_rate_stays_behind_the_ramp():
    schedule = Schedule((phase(),), steps=10, ramp=0.3, shape="constant")
    assert [schedule.at(step).lr for step in range(10)] == pytest.approx([0.025, 0.05, 0.075] + [0.1] * 7)


@pytest.mark.parametrize("ramp", [0.0, 0.013, 0.5, 1.0])
def test_the_learning_rate_is_never_zero_nor_above_its_peak(ramp):
    schedule = Schedule((phase(),), steps=77, ramp=ramp)
    assert all(0 < schedule.at(step).lr <= 0.1 for step in range(77))


def test_the_shape_runs_over_all_steps_whatever_the_phases():
    one, several = Schedule((phase(),), steps=50), Schedule((phase("a", 0.4), phase("b", 0.6)), steps=50)
    assert [one.at(step).lr for step in range(50)] == [several.at(step).lr for step in range(50)]


def test_an_easiest_first_phase_admits_ever_more_in_equal_steps_up_to_all():
    schedule = Schedule(THREE, steps=100)
    admitted = [schedule.at(step).admitted for step in range(20)]
    gains = [later - earlier for earlier, later in pairwise(admitted)]
    assert admitted[0] == FIRST_ADMITTED
    assert gains == pytest.approx([(1 - FIRST_ADMITTED) / 20] * 19)
    assert admitted[-1] + gains[0] == pytest.approx(1)


def test_a_uniform_phase_admits_all():
    schedule = Schedule(THREE, steps=100)
    assert {schedule.at(step).admitted for step in range(20, 100)} == {1.0}


def test_an_easiest_first_phase_later_on_begins_anew():
    schedule = Schedule((phase("a", 0.5), phase("b", 0.5, order="easiest-first")), steps=10)
    assert [schedule.at(step).admitted for step in range(3, 7)] == pytest.approx([1.0, 1.0, 0.25, 0.4])
