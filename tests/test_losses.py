"""Losses against references written from their formulas in NumPy, float64; and what every loss promises besides.

Shapes: B batch, C classes or channels, H height, W width.
"""

from functools import partial

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax
from torch import nn

from edgestill.errors import UserError
from edgestill.losses import (
    CHANNEL_FREE,
    SOFT_LOSSES,
    TERM_LOSSES,
    attention_transfer,
    cross_entropy,
    hint,
    kl,
)
from edgestill.losses.reduce import masked_mean
from loss_cases_logits import LOGITS
from loss_cases_relations import RELATIONS
from loss_checks import CHECKS, LABELS, VALID, B, C, Case, random


def kl_reference(student: np.ndarray, teacher: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    p, q = softmax(teacher / temperature, axis=-1), softmax(student / temperature, axis=-1)
    return temperature**2 * (p * np.log(p / q)).sum(-1)


def cross_entropy_reference(student: np.ndarray, labels: np.ndarray, smoothing: float = 0.0) -> np.ndarray:
    if labels.ndim == 1:
        labels = np.eye(student.shape[-1])[np.maximum(labels, 0)]
    target = (1 - smoothing) * labels + smoothing / student.shape[-1]
    return -(target * log_softmax(student, axis=-1)).sum(-1)


def hint_reference(student: np.ndarray, teacher: np.ndarray) -> np.ndarray:
    return ((student - teacher) ** 2).reshape(len(student), -1).mean(1)


def attention_reference(student: np.ndarray, teacher: np.ndarray, power: float = 2.0) -> np.ndarray:
    maps = []
    for features in (student, teacher):
        pooled = (np.abs(features) ** power).sum(1).reshape(len(features), -1)
        maps.append(pooled / np.linalg.norm(pooled, axis=1, keepdims=True))
    return ((maps[0] - maps[1]) ** 2).sum(1)


def rows_of_probabilities(student: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    return (PROBABILITIES if student.dtype == torch.float64 else PROBABILITIES.float())[places.long()[:, 0]]


PROBABILITIES = torch.from_numpy(softmax(random(B, C, seed=7).numpy(), axis=-1))
BASIC = {
    "kl": Case(partial(kl, temperature=3.0), partial(kl_reference, temperature=3.0), (B, C), (B, C)),
    "hint": Case(hint, hint_reference, (B, 3, 4, 4), (B, 3, 4, 4)),
    "hint of vectors": Case(hint, hint_reference, (B, C), (B, C)),
    "attention_transfer": Case(attention_transfer, attention_reference, (B, 3, 4, 4), (B, 7, 4, 4)),
    "attention_transfer, power 3": Case(
        partial(attention_transfer, power=3.0), partial(attention_reference, power=3.0), (B, 3, 4, 4), (B, 7, 4, 4)
    ),
    "cross_entropy of probabilities": Case(
        lambda s, t, **k: cross_entropy(s, rows_of_probabilities(s, t), smoothing=0.1, **k),
        lambda s, t: cross_entropy_reference(s, PROBABILITIES.numpy()[t.astype(int)[:, 0]], 0.1),
        (B, C),
        (B, 1),
        equal=None,
        # the row of PROBABILITIES that each sample has for its label, so that rows can be moved and masked
        make_teacher=lambda: torch.arange(B, dtype=torch.float64)[:, None],
    ),
}
CASES = BASIC | LOGITS | RELATIONS


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
@pytest.mark.parametrize("name", CASES)
def test_every_loss(name, check):
    check(CASES[name])


def test_bf16_inputs_cost_a_percent():
    """What autocast costs: student and teacher rounded to bf16's eight bits."""
    student, teacher = random(512, 10), random(512, 10, seed=1)
    rounded = kl(student.bfloat16(), teacher.bfloat16(), temperature=4.0)
    np.testing.assert_allclose(rounded.item(), kl_reference(student.numpy(), teacher.numpy(), 4.0).mean(), rtol=0.01)


def test_large_logits_stay_finite():
    student = torch.tensor([[1e4, -1e4], [0.0, 0.0]], requires_grad=True)
    teacher = torch.tensor([[-1e4, 1e4], [3e4, 0.0]])
    value = kl(student, teacher) + cross_entropy(student, torch.tensor([1, 0]))
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(student.grad).all()


def test_kl_is_summed_over_classes_with_the_teacher_first():
    """Two classes by hand: teacher (3/4, 1/4), student (1/2, 1/2)."""
    teacher, student = torch.tensor([[3.0, 1.0]]).log(), torch.zeros(1, 2)
    expected = 0.75 * np.log(1.5) + 0.25 * np.log(0.5)
    assert kl(student, teacher).item() == pytest.approx(expected, rel=1e-6)
    assert kl(teacher, student).item() == pytest.approx(0.5 * np.log(2 / 3) + 0.5 * np.log(2), rel=1e-6)


def test_kl_agrees_with_torchs_batchmean():
    student, teacher = random(B, C), random(B, C, seed=1)
    divergence = nn.KLDivLoss(reduction="batchmean", log_target=True)
    expected = 4.0 * divergence((student / 2).log_softmax(-1), (teacher / 2).log_softmax(-1))
    torch.testing.assert_close(kl(student, teacher, temperature=2.0), expected)


def test_the_gradient_of_kl_keeps_its_size_when_the_temperature_rises():
    """Without T² it would fall with T²: from T = 20 to T = 80 by sixteen."""
    student, teacher = random(64, C).requires_grad_(), random(64, C, seed=1)
    norms = []
    for temperature in (20.0, 80.0):
        (gradient,) = torch.autograd.grad(kl(student, teacher, temperature=temperature), student)
        norms.append(gradient.norm().item())
    assert norms[0] == pytest.approx(norms[1], rel=0.1)
    # Hinton et al., equation 4: in the limit the gradient is that of matching centred logits, (z − v) / C
    centred = (student - student.mean(1, keepdim=True)) - (teacher - teacher.mean(1, keepdim=True))
    (gradient,) = torch.autograd.grad(kl(student, teacher, temperature=1e4), student)
    torch.testing.assert_close(gradient, centred.detach() / C / 64, rtol=1e-3, atol=1e-6)


def test_kl_takes_any_leading_dimensions():
    student, teacher, mask = random(2, 3, C), random(2, 3, C, seed=1), VALID.reshape(2, 3)
    flat = kl(student.reshape(6, C), teacher.reshape(6, C), mask=VALID)
    torch.testing.assert_close(kl(student, teacher, mask=mask), flat)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.7])
def test_cross_entropy_of_class_numbers_skips_missing_labels(smoothing):
    student = random(B, C)
    labelled = (LABELS >= 0).numpy()
    rows = cross_entropy_reference(student.numpy(), LABELS.numpy(), smoothing)
    value = cross_entropy(student, LABELS, smoothing=smoothing)
    np.testing.assert_allclose(value.item(), rows[labelled].mean(), rtol=1e-12)
    both = labelled & VALID.numpy()
    value = cross_entropy(student, LABELS, smoothing=smoothing, mask=VALID)
    np.testing.assert_allclose(value.item(), rows[both].mean(), rtol=1e-12)
    assert torch.autograd.gradcheck(lambda s: cross_entropy(s, LABELS, smoothing=smoothing), student.requires_grad_())


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_agrees_with_torchs(smoothing):
    student = random(B, C)
    expected = nn.functional.cross_entropy(student, LABELS, ignore_index=-1, label_smoothing=smoothing)
    torch.testing.assert_close(cross_entropy(student, LABELS, smoothing=smoothing), expected)
    expected = nn.functional.cross_entropy(student, PROBABILITIES, label_smoothing=smoothing)
    torch.testing.assert_close(cross_entropy(student, PROBABILITIES, smoothing=smoothing), expected)


def test_class_numbers_and_their_one_hot_probabilities_are_one():
    student = random(B, C)
    hot = nn.functional.one_hot(LABELS.clamp(min=0), C).double()
    expected = cross_entropy(student, LABELS, smoothing=0.2)
    torch.testing.assert_close(cross_entropy(student, hot, smoothing=0.2, mask=LABELS >= 0), expected)


def test_without_any_label_cross_entropy_is_zero_with_a_gradient_of_zero():
    student = random(B, C).requires_grad_()
    value = cross_entropy(student, torch.full((B,), -1), smoothing=0.1)
    value.backward()
    assert value.item() == 0
    assert torch.equal(student.grad, torch.zeros_like(student))


def test_a_diverged_sample_without_a_label_does_not_reach_the_hard_part():
    student = random(B, C)
    student[2] = float("nan")  # its label is missing
    student.requires_grad_()
    value = cross_entropy(student, LABELS)
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(student.grad).all()


def test_a_diverged_valid_sample_is_seen():
    """The mask must not hide what counts: the training stops on it."""
    student = random(B, C)
    student[0, 0] = float("nan")
    assert torch.isnan(kl(student, random(B, C, seed=1), mask=VALID))
    assert torch.isnan(cross_entropy(student, LABELS))


def test_hint_weighs_layers_of_every_size_alike():
    for shape in ((2, 3), (2, 3, 4), (2, 3, 4, 8)):
        assert hint(torch.zeros(shape), torch.full(shape, 2.0)).item() == 4.0


def test_hint_refuses_shapes_that_broadcast():
    with pytest.raises(UserError, match=r"\[2, 3, 4, 4\] and \[2, 1, 4, 4\] came"):
        hint(torch.zeros(2, 3, 4, 4), torch.zeros(2, 1, 4, 4))


def test_attention_transfer_averages_the_larger_map_down():
    student, teacher = random(B, 3, 4, 8), random(B, 5, 8, 8, seed=1)
    q = (teacher.numpy() ** 2).sum(1).reshape(B, 4, 2, 8).mean(2)  # the teacher's Σ_C A² over windows of 2×1
    expected = attention_reference(student.numpy(), np.sqrt(q)[:, None])
    np.testing.assert_allclose(attention_transfer(student, teacher).item(), expected.mean(), rtol=1e-12)
    np.testing.assert_allclose(attention_transfer(teacher, student).item(), expected.mean(), rtol=1e-12)
    student, teacher = random(B, 3, 4, 8), random(B, 5, 8, 2, seed=1)  # each is the larger on one side
    small = [
        (student.numpy() ** 2).sum(1).reshape(B, 4, 2, 4).mean(3),
        (teacher.numpy() ** 2).sum(1).reshape(B, 4, 2, 2).mean(2),
    ]
    expected = attention_reference(*(np.sqrt(q)[:, None] for q in small))
    np.testing.assert_allclose(attention_transfer(student, teacher).item(), expected.mean(), rtol=1e-12)


def test_attention_transfer_does_not_see_scale_or_sign():
    student, teacher = random(B, 3, 4, 4), random(B, 5, 4, 4, seed=1)
    torch.testing.assert_close(attention_transfer(-7 * student, 0.1 * teacher), attention_transfer(student, teacher))


def test_dead_maps_have_a_finite_gradient():
    student = torch.zeros(2, 3, 4, 4, requires_grad=True)
    value = attention_transfer(student, torch.zeros(2, 3, 4, 4)) + attention_transfer(student, torch.ones(2, 3, 4, 4))
    value.backward()
    assert value.item() == pytest.approx(1.0)
    assert torch.isfinite(student.grad).all()


def test_attention_transfer_refuses_what_is_no_map():
    with pytest.raises(UserError, match=r"needs feature maps \[B, C, H, W\]; \[2, 8\] and \[2, 3, 4, 4\] came"):
        attention_transfer(torch.zeros(2, 8), torch.zeros(2, 3, 4, 4))


def test_masked_mean_broadcasts_the_mask_over_trailing_dimensions():
    values = torch.arange(6.0).reshape(2, 3)
    assert masked_mean(values, torch.tensor([False, True])).item() == 4.0
    assert masked_mean(values).item() == 2.5


def test_the_tables_name_functions_by_their_own_names():
    for table in (SOFT_LOSSES, TERM_LOSSES):
        for name, loss in table.items():
            assert loss.__name__ == name
    assert set(TERM_LOSSES.values()) >= CHANNEL_FREE
