"""Mutants: losses that are wrong in the ways of known software must fail the checks that the right ones pass."""

from dataclasses import replace

import pytest
import torch

import loss_mutants_relations
from loss_checks import CHECKS, Case
from loss_mutants_logits import SPECIFIC as LOGITS_MUTANTS
from test_losses import CASES

BY_NAME = {check.__name__.removeprefix("check_"): check for check in CHECKS}


def no_detach(case: Case) -> Case:
    """The teacher gets a gradient: through a copy of the student's graph, as a forgotten detach would give it one."""
    return replace(case, loss=lambda s, t, **k: case.loss(s, t, **k) + 0 * t.sum())


def swapped(case: Case) -> Case:
    """Student and teacher in each other's place, the gradient still the student's."""
    return replace(case, loss=lambda s, t, **k: case.loss(t.detach(), s, **k) + 0 * s.sum())


def without_mask(case: Case) -> Case:
    return replace(case, loss=lambda s, t, mask=None, count=None: case.loss(s, t, count=count))


def over_classes(case: Case) -> Case:
    """Averaged over classes as well."""
    return replace(case, loss=lambda s, t, **k: case.loss(s, t, **k) / s.shape[-1])


GENERIC = {
    "teacher not detached": (no_detach, "no_gradient_to_the_teacher"),
    "mask dropped": (without_mask, "value"),
    "mean over classes": (over_classes, "value"),
}


@pytest.mark.parametrize("mutant", GENERIC)
@pytest.mark.parametrize("name", CASES)
def test_a_mutant_of_any_loss_is_caught(name, mutant):
    mutate, check = GENERIC[mutant]
    with pytest.raises((AssertionError, RuntimeError)):
        BY_NAME[check](mutate(CASES[name]))


@pytest.mark.parametrize(
    ("name", "wrong", "mutant", "check"), LOGITS_MUTANTS, ids=lambda value: value if isinstance(value, str) else ""
)
def test_a_mutant_of_one_loss_is_caught(name, wrong, mutant, check):
    with pytest.raises((AssertionError, RuntimeError)):
        BY_NAME[check](replace(CASES[name], loss=mutant))


SPECIFIC = loss_mutants_relations.SPECIFIC


@pytest.mark.parametrize(
    ("name", "wrong", "check"), SPECIFIC, ids=[f"{name}-{wrong.__name__}" for name, wrong, _ in SPECIFIC]
)
def test_a_wrong_form_of_a_method_is_caught(name, wrong, check):
    assert torch.isfinite(wrong(*CASES[name].inputs()))  # it fails for what it says, not because it does not run
    with pytest.raises((AssertionError, RuntimeError)):
        BY_NAME[check](replace(CASES[name], loss=wrong))
