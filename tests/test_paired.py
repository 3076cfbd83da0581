"""Differences between arms, against examples worked out by hand."""

import numpy as np
import pytest

from edgestill.evaluate.paired import over_samples, over_seeds, retained


def test_the_interval_over_seeds_is_students_t_of_the_paired_differences():
    """Differences 0.03, 0.05, 0.01: mean 0.03, s = 0.02, t(0.975, 2) = 4.302653, half = t · 0.02 / √3 = 0.049683."""
    difference = over_seeds([0.90, 0.95, 0.88], [0.87, 0.90, 0.87])
    assert difference.over == "seeds"
    assert difference.mean == pytest.approx(0.03)
    assert difference.interval == pytest.approx((-0.019683, 0.079683), abs=1e-6)


def test_two_seeds_suffice_and_give_the_wide_interval_they_deserve():
    """Differences 0.02, 0.04: mean 0.03, standard error 0.01, t(0.975, 1) = 12.7062."""
    difference = over_seeds([0.92, 0.94], [0.90, 0.90])
    assert difference.mean == pytest.approx(0.03)
    assert difference.interval == pytest.approx((0.03 - 0.127062, 0.03 + 0.127062), abs=1e-6)


def test_seeds_are_paired():
    """Seeds that move both arms alike leave no doubt about their difference, which is negative here."""
    student, baseline = [0.1, 0.5, 0.9], [0.2, 0.6, 1.0]
    difference = over_seeds(student, baseline)
    assert difference.mean == pytest.approx(-0.1)
    assert difference.interval == pytest.approx((-0.1, -0.1))
    low, high = over_seeds(student, baseline[::-1]).interval
    assert high - low > 1


def test_the_interval_over_samples_is_of_the_paired_accuracies():
    """100 samples: both right 70, only the student 12, only the baseline 4, both wrong 14. Mean (12 − 4)/100 = 0.08;
    s² = (16 − 100 · 0.08²)/99; half = 1.96 · s / 10 = 0.077546."""
    student = np.array([True] * 70 + [True] * 12 + [False] * 4 + [False] * 14)
    baseline = np.array([True] * 70 + [False] * 12 + [True] * 4 + [False] * 14)
    difference = over_samples(student, baseline)
    half = 1.96 * np.sqrt((16 - 0.64) / 99) / 10
    assert half == pytest.approx(0.0772, abs=1e-4)
    assert difference.over == "test samples"
    assert difference.mean == pytest.approx(0.08)
    assert difference.interval == pytest.approx((0.08 - half, 0.08 + half))
    assert over_samples(baseline, student).mean == pytest.approx(-0.08)


def test_arms_that_agree_everywhere_differ_by_nothing():
    right = np.array([True, False, True])
    difference = over_samples(right, right)
    assert difference.mean == 0
    assert difference.interval == (0, 0)


@pytest.mark.parametrize(
    ("student", "teacher", "share"),
    [(0.9, 0.9, 1.0), (0.1, 0.9, 0.0), (0.5, 0.9, 0.5), (0.92, 0.9, 1.025), (0.06, 0.9, -0.05)],
)
def test_retained_is_what_is_left_of_the_teachers_lead_over_chance(student, teacher, share):
    assert retained(student, teacher, 0.1) == pytest.approx(share)
