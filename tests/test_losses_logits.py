"""Losses over logits: authors' own numbers, examples by hand, limits, and what is extreme.

Shapes: B batch, C classes.
"""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import entr, softmax

from edgestill.errors import UserError
from edgestill.losses import (
    binary_kl,
    dist,
    dkd,
    jensen_shannon,
    kl,
    nkd,
    regression,
    reverse_kl,
    skewed_kl,
    skewed_reverse_kl,
    standardize,
)
from loss_cases_logits import (
    binary_kl_reference,
    dkd_reference,
    jensen_shannon_reference,
    kl_reference,
    nkd_reference,
    normalized_others,
    skewed_kl_reference,
    skewed_reverse_kl_reference,
    standardized_kl,
)
from loss_checks import LABELS, VALID, B, C, random

AUTHORS = json.loads((Path(__file__).parent / "fixtures/authors_logits.json").read_text())
SOFTMAX = {
    "kl": (kl, kl_reference),
    "jensen_shannon": (jensen_shannon, jensen_shannon_reference),
    "skewed_kl": (skewed_kl, skewed_kl_reference),
    "skewed_reverse_kl": (skewed_reverse_kl, skewed_reverse_kl_reference),
    "dkd": (dkd, dkd_reference),
    "nkd": (nkd, nkd_reference),
    "binary_kl": (binary_kl, binary_kl_reference),
}
"""Losses that are finite where the teacher alone finds a class impossible."""
TEMPERED = {name: loss for name, (loss, _) in SOFTMAX.items()} | {"reverse_kl": reverse_kl, "dist": dist}
ALL = TEMPERED | {"regression": regression, "kl of standardized logits": standardized_kl}


def value_and_gradient(loss, student, teacher, **options):
    student = student.clone().requires_grad_()
    value = loss(student, teacher, **options)
    value.backward()
    return value.detach(), student.grad


def what_theirs_adds(row, teacher: np.ndarray) -> float:
    """What the teacher alone decides: authors' cross-entropies are larger than the divergences by it."""
    if row["adds"] == "nothing":
        return 0.0
    probability = softmax(teacher, axis=-1)
    if row["adds"] == "entropy":
        return entr(probability).sum(-1).mean()
    options, soft = row["options"], softmax(teacher / row["options"]["temperature"], axis=-1)
    target = np.array([p[label] for p, label in zip(probability, row["labels"], strict=True)])
    others = [entr(normalized_others(p, label)).sum() for p, label in zip(soft, row["labels"], strict=True)]
    return (entr(target) + options["other_weight"] * options["temperature"] ** 2 * np.array(others)).mean()


@pytest.mark.parametrize("row", AUTHORS["cases"], ids=lambda r: f"{r['loss']}, {r['function']}, {r['their_options']}")
def test_authors_own_code_gives_these_numbers(row):
    made = AUTHORS["inputs"]
    student = random(*made["shape"], seed=made["student_seed"], scale=made["scale"])
    teacher = random(*made["shape"], seed=made["teacher_seed"], scale=made["scale"])
    labels = {"labels": torch.tensor(row["labels"])} if "labels" in row else {}
    value, gradient = value_and_gradient(ALL[row["loss"]], student, teacher, **labels, **row["options"])
    rtol = 1e-5 if row["float32"] else 1e-6
    expected = row["factor"] * (row["value"] - what_theirs_adds(row, teacher.numpy()))
    np.testing.assert_allclose(value.item(), expected, rtol=rtol)
    np.testing.assert_allclose(gradient.norm().item(), row["factor"] * row["gradient_norm"], rtol=rtol)


def test_every_loss_of_logits_stands_beside_authors_code_or_a_plain_formula():
    assert set(ALL) - {row["loss"] for row in AUTHORS["cases"]} == {"binary_kl", "regression"}


@pytest.mark.parametrize("name", ALL)
def test_large_logits_stay_finite(name):
    student = torch.tensor([[1e4, -1e4, 0.0], [0.0, 0.0, 0.0], [1e4, 1e4, -1e4]])
    for teacher in (-student, student, torch.tensor([[-1e4, 1e4, 3e4], [3e4, 0.0, 0.0], [0.0, 1e4, 2e4]])):
        value, gradient = value_and_gradient(ALL[name], student, teacher)
        assert torch.isfinite(value)
        assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("name", TEMPERED)
def test_the_gradient_keeps_its_size_when_the_temperature_rises(name):
    """From T = 20 to T = 80 a gradient without T² falls by sixteen. A correlation's does not: with T² it rises so."""
    student, teacher = random(64, C), random(64, C, seed=1)
    norms = [value_and_gradient(TEMPERED[name], student, teacher, temperature=T)[1].norm().item() for T in (20.0, 80.0)]
    assert norms[1] / norms[0] == pytest.approx(16 if name == "dist" else 1, rel=0.15)


@pytest.mark.parametrize("name", TEMPERED)
def test_any_leading_dimensions(name):
    student, teacher, mask = random(2, 3, C), random(2, 3, C, seed=1), VALID.reshape(2, 3)
    labels = {"labels": LABELS} if name in ("dkd", "nkd") else {}
    flat = TEMPERED[name](student.reshape(6, C), teacher.reshape(6, C), mask=VALID, **labels)
    shaped = {key: value.reshape(2, 3) for key, value in labels.items()}
    torch.testing.assert_close(TEMPERED[name](student, teacher, mask=mask, **shaped), flat)


@pytest.mark.parametrize("name", [name for name in TEMPERED if name != "dist"])
def test_a_class_that_neither_can_be_changes_nothing(name):
    """As the padding of a vocabulary: logits of -inf on both sides."""
    student, teacher = random(B, C), random(B, C, seed=1)
    value, gradient = value_and_gradient(TEMPERED[name], student, teacher)
    impossible = torch.full((B, 2), -torch.inf)
    padded, padded_gradient = value_and_gradient(
        TEMPERED[name], torch.cat([student, impossible], 1), torch.cat([teacher, impossible], 1)
    )
    torch.testing.assert_close(padded, value)
    torch.testing.assert_close(padded_gradient[:, :C], gradient)
    assert (padded_gradient[:, C:] == 0).all()


@pytest.mark.parametrize("name", SOFTMAX)
def test_a_class_that_the_teacher_excludes_has_probability_zero(name):
    student, teacher = random(B, C), random(B, C, seed=1)
    teacher[:, 1] = -torch.inf
    loss, reference = SOFTMAX[name]
    expected = reference(student.numpy(), teacher.numpy()).mean()
    value, gradient = value_and_gradient(loss, student, teacher)
    np.testing.assert_allclose(value.item(), expected, rtol=1e-10)
    assert torch.isfinite(gradient).all()
    assert (gradient[:, 1] > 0).all()  # the student is driven away from it
    low, gradient = value_and_gradient(loss, student.float(), teacher.float())
    np.testing.assert_allclose(low.item(), expected, rtol=1e-5)
    assert torch.isfinite(gradient).all()


def test_correlation_and_reverse_kl_of_a_class_that_the_teacher_excludes():
    student, teacher = random(B, C), random(B, C, seed=1)
    teacher[:, 1] = -torch.inf
    value, gradient = value_and_gradient(dist, student, teacher)
    assert torch.isfinite(value)
    assert torch.isfinite(gradient).all()
    assert reverse_kl(student, teacher) > 1e30  # it is infinite


@pytest.mark.parametrize("name", ALL)
def test_the_callers_logits_are_left_as_they_are(name):
    """-inf is made finite in a copy, also at a temperature of 1."""
    student, teacher = random(B, C).float(), random(B, C, seed=1).float()
    if name not in ("regression", "kl of standardized logits"):
        student[:, 1], teacher[:, 1] = -torch.inf, -torch.inf
    before = student.clone(), teacher.clone()
    ALL[name](student, teacher)
    assert torch.equal(student, before[0])
    assert torch.equal(teacher, before[1])


@pytest.mark.parametrize("name", ALL)
def test_a_diverged_valid_sample_is_seen(name):
    student, teacher = random(B, C), random(B, C, seed=1)
    student[0, 0] = float("nan")
    assert torch.isnan(ALL[name](student, teacher, mask=VALID))


def test_reverse_kl_by_hand():
    """Teacher (3/4, 1/4), student (1/2, 1/2)."""
    teacher, student = torch.tensor([[3.0, 1.0]]).log(), torch.zeros(1, 2)
    assert reverse_kl(student, teacher).item() == pytest.approx(0.5 * np.log(2 / 3) + 0.5 * np.log(2), rel=1e-6)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.8])
def test_mixtures_of_answers_that_exclude_each_other(share):
    """KL(t ‖ share·t + …) is log 1/share where s is zero."""
    student, teacher = torch.tensor([[-99.0, 99.0]]).double(), torch.tensor([[99.0, -99.0]]).double()
    bound = -np.log(share)
    assert skewed_kl(student, teacher, skew=share).item() == pytest.approx(bound)
    assert skewed_reverse_kl(student, teacher, skew=share).item() == pytest.approx(bound)
    entropy = share * bound - (1 - share) * np.log(1 - share)
    assert jensen_shannon(student, teacher, beta=share).item() == pytest.approx(entropy)
    assert jensen_shannon(student, teacher, beta=share, temperature=2.0).item() == pytest.approx(4 * entropy)


def test_jensen_shannon_becomes_kl_and_reverse_kl():
    student, teacher = random(B, C), random(B, C, seed=1)
    near = partial(torch.testing.assert_close, rtol=1e-3, atol=0)
    near(jensen_shannon(student, teacher, beta=1e-5) / 1e-5, kl(student, teacher))
    near(jensen_shannon(student, teacher, beta=1 - 1e-5) / 1e-5, reverse_kl(student, teacher))
    torch.testing.assert_close(jensen_shannon(student, teacher), jensen_shannon(teacher, student))


def test_skewed_divergences_become_plain_ones():
    student, teacher = random(B, C), random(B, C, seed=1)
    near = partial(torch.testing.assert_close, rtol=1e-4, atol=0)
    near(skewed_kl(student, teacher, skew=1e-7), kl(student, teacher))
    near(skewed_reverse_kl(student, teacher, skew=1e-7), reverse_kl(student, teacher))


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, 2, float("nan")])
def test_shares_that_make_no_mixture_are_refused(share):
    logits = torch.zeros(1, 2)
    with pytest.raises(UserError, match=f"needs a beta between 0 and 1, both excluded; {share} came"):
        jensen_shannon(logits, logits, beta=share)
    for loss in (skewed_kl, skewed_reverse_kl):
        with pytest.raises(UserError, match=f"needs a skew between 0 and 1, both excluded; {share} came"):
            loss(logits, logits, skew=share)


TEACHER = torch.tensor([[0.5, 0.25, 0.25]]).log()
STUDENT = torch.tensor([[0.25, 0.25, 0.5]]).log()
OTHERS = 0.5 * np.log(1.5) + 0.5 * np.log(0.75)  # (1/2, 1/2) from (1/3, 2/3)


def test_dkd_by_hand():
    """The target's (1/2, 1/2) from (1/4, 3/4)."""
    value = dkd(STUDENT, TEACHER, target_weight=3.0, other_weight=2.0).item()
    assert value == pytest.approx(3 * (0.5 * np.log(2) + 0.5 * np.log(2 / 3)) + 2 * OTHERS, rel=1e-6)


def test_nkd_by_hand():
    value = nkd(STUDENT, TEACHER, other_weight=2.0).item()
    assert value == pytest.approx(0.5 * np.log(2) + 2 * OTHERS, rel=1e-6)
    # the target's part has no temperature
    assert nkd(STUDENT, TEACHER, other_weight=0.0, temperature=4.0).item() == pytest.approx(0.5 * np.log(2), rel=1e-6)


def test_kl_is_dkd_with_the_others_weighed_by_their_probability():
    for seed in range(3):
        student, teacher = random(1, C, seed=seed), random(1, C, seed=seed + 9)
        for target in range(C):
            soft = softmax(teacher.numpy() / 2, axis=-1)[0]
            coupled = dkd(
                student, teacher, labels=torch.tensor([target]), other_weight=1 - soft[target], temperature=2.0
            )
            torch.testing.assert_close(coupled, kl(student, teacher, temperature=2.0))


def test_dkd_of_two_classes_is_kl_whatever_the_target():
    student, teacher = random(B, 2), random(B, 2, seed=1)
    for labels in (None, torch.zeros(B, dtype=torch.long), torch.ones(B, dtype=torch.long)):
        value, gradient = value_and_gradient(dkd, student, teacher, labels=labels, temperature=2.0)
        torch.testing.assert_close(value, kl(student, teacher, temperature=2.0))
        assert torch.isfinite(gradient).all()


def test_dkd_of_a_certain_target_is_not_lost_to_rounding():
    """1 − p_target is zero in float32 here, its logarithm is not."""
    student, teacher = torch.tensor([[40.0, 0.0, 1.0]]), torch.tensor([[2.0, 0.0, 1.0]])
    value, gradient = value_and_gradient(dkd, student, teacher)
    np.testing.assert_allclose(value.item(), dkd(student.double(), teacher.double()).item(), rtol=1e-6)
    assert value > 5
    assert gradient[0, 0] > 0.3  # the student is called back


@pytest.mark.parametrize("loss", [dkd, nkd])
def test_the_teachers_answer_stands_in_where_labels_are_missing(loss):
    student, teacher = random(B, C), random(B, C, seed=1)
    answers = teacher.argmax(-1)
    filled = torch.where(LABELS >= 0, LABELS, answers)
    assert not torch.equal(filled, answers)
    assert torch.equal(loss(student, teacher, labels=LABELS), loss(student, teacher, labels=filled))
    assert torch.equal(loss(student, teacher), loss(student, teacher, labels=answers))
    assert torch.equal(loss(student, teacher), loss(student, teacher, labels=torch.full((B,), -1)))
    assert not torch.equal(loss(student, teacher), loss(student, teacher, labels=filled))


@pytest.mark.parametrize("loss", [dkd, nkd])
def test_labels_that_are_probabilities_are_refused(loss):
    with pytest.raises(UserError, match=r"class numbers for labels; probabilities \[6, 5\] came"):
        loss(random(B, C), random(B, C), labels=torch.rand(B, C))


def test_nkd_drives_the_target_to_certainty():
    """Past the teacher's own probability, where the value falls below zero: to t·log t."""
    teacher = torch.tensor([[0.5, 0.25, 0.25]]).double().log()
    _, gradient = value_and_gradient(nkd, teacher, teacher)
    assert gradient[0, 0] < 0
    certain = teacher + torch.tensor([50.0, 0.0, 0.0])
    assert nkd(certain, teacher).item() == pytest.approx(0.5 * np.log(0.5))


def test_dist_by_hand():
    """Two classes correlate by 1 or −1; so do two samples."""
    student, teacher = torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.0, 3.0], [1.0, 0.0]])
    assert dist(student, teacher, intra=0.0).item() == pytest.approx(2)
    assert dist(student, teacher, inter=0.0).item() == pytest.approx(2)
    assert dist(student, teacher).item() == pytest.approx(4)
    teacher = torch.tensor([[1.0, 0.0], [2.0, 0.0]])  # right in the first sample, in the other way within each class
    assert dist(student, teacher, intra=0.0).item() == pytest.approx(1)
    assert dist(student, teacher, inter=0.0, temperature=3.0).item() == pytest.approx(9 * 2)


def test_dist_of_answers_that_do_not_vary():
    """No correlation is defined: the student's adds 1 without a gradient, the teacher's nothing."""
    flat, teacher = torch.full((B, C), 0.3), random(B, C, seed=1).float()
    value, gradient = value_and_gradient(dist, flat, teacher)
    assert value.item() == pytest.approx(2)
    assert (gradient == 0).all()
    value, gradient = value_and_gradient(dist, teacher, flat)
    assert value.item() == 0
    assert (gradient == 0).all()
    assert dist(flat, flat).item() == 0
    same = random(1, C).float().expand(B, C).clone()  # nothing varies between samples, yet between classes
    value, gradient = value_and_gradient(dist, same, teacher)
    assert value.item() == pytest.approx(1 + dist(same, teacher, intra=0.0).item())
    assert torch.isfinite(gradient).all()


def test_dist_of_one_sample_has_no_relation_between_samples():
    student, teacher = random(1, C), random(1, C, seed=1)
    value, gradient = value_and_gradient(dist, student, teacher)
    expected = 1 - np.corrcoef(softmax(student.numpy()[0]), softmax(teacher.numpy()[0]))[0, 1]
    assert value.item() == pytest.approx(expected)
    assert torch.isfinite(gradient).all()
    mask = torch.tensor([True, False, False])
    torch.testing.assert_close(
        dist(random(3, C), random(3, C, seed=1), mask=mask), dist(random(3, C)[:1], random(3, C, seed=1)[:1])
    )


def test_pieces_of_a_batch_weigh_in_dist_by_their_samples():
    student, teacher = random(B, C), random(B, C, seed=1)
    pieces = [(student[rows], teacher[rows]) for rows in (slice(4), slice(4, None))]
    total = sum(dist(s, t, count=B) for s, t in pieces)
    expected = (4 * dist(*pieces[0]) + 2 * dist(*pieces[1])) / B
    torch.testing.assert_close(total, expected)


def test_binary_kl_of_one_output_is_kl_of_two_classes():
    student, teacher = random(B, 1), random(B, 1, seed=1)
    as_classes = [torch.cat([z, torch.zeros_like(z)], 1) for z in (student, teacher)]
    torch.testing.assert_close(binary_kl(student, teacher, temperature=2.0), kl(*as_classes, temperature=2.0))
    outputs = binary_kl(random(B, C), random(B, C, seed=1))
    torch.testing.assert_close(
        outputs, sum(binary_kl(random(B, C)[:, [j]], random(B, C, seed=1)[:, [j]]) for j in range(C))
    )


def test_regression_sums_over_whatever_the_outputs_are():
    assert regression(torch.zeros(2), torch.tensor([1.0, 3.0])).item() == 5
    assert regression(torch.zeros(2, 3), torch.full((2, 3), 2.0)).item() == 12
    assert regression(torch.zeros(2, 3, 4), torch.ones(2, 3, 4)).item() == 12


def test_regression_refuses_shapes_that_broadcast():
    with pytest.raises(UserError, match=r"the student's \[4, 1\] and the teacher's \[4\] came"):
        regression(torch.zeros(4, 1), torch.zeros(4))


def test_standardized_logits_have_mean_zero_and_deviation_one():
    scores = standardize(random(B, C) * 5 + 3)
    torch.testing.assert_close(scores.mean(-1), torch.zeros(B, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(scores.std(-1), torch.ones(B, dtype=torch.float64), rtol=1e-6, atol=0)


def test_standardized_logits_do_not_tell_size_or_offset():
    student, teacher = random(B, C), random(B, C, seed=1)
    expected = standardized_kl(student, teacher, temperature=2.0)
    torch.testing.assert_close(standardized_kl(7 * student - 2, 0.3 * teacher + 9, temperature=2.0), expected)
    assert standardized_kl(5 * teacher, teacher).item() == pytest.approx(0, abs=1e-9)


def test_constant_logits_become_zeros_with_a_gradient_of_zero():
    """A head that starts at zero; and a constant whose mean is not it, by rounding."""
    for value in (0.0, 0.1, 1e4):
        logits = torch.cat([torch.full((1, 10), value), random(1, 10).float()]).requires_grad_()
        scores = standardize(logits)
        assert (scores[0] == 0).all()
        kl(scores, random(2, 10, seed=1).float()).backward()
        assert (logits.grad[0] == 0).all()
        assert torch.isfinite(logits.grad).all()
        assert logits.grad[1].abs().sum() > 0
