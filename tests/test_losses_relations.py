"""Losses over relations, scales and attention: values by hand, limits, degenerate batches, authors' figures."""

import numpy as np
import pytest
import torch

from edgestill.errors import UserError
from edgestill.losses import (
    CHANNEL_FREE,
    attention_kl,
    cc,
    cka,
    crd,
    cwd,
    noise_contrast,
    nst,
    pkt,
    pyramid,
    relations,
    review,
    rkd,
    sp,
)
from loss_cases_relations import noise_contrast_reference, rkd_reference
from loss_checks import CHECKS, VALID, B, Case, check_gradient, random

RELATIONS = (sp, rkd, pkt, cc, cka)
each_relation = pytest.mark.parametrize("loss", RELATIONS, ids=lambda loss: loss.__name__)


@each_relation
@pytest.mark.parametrize("of", ["dead", "one sample for all", "two at one place", "dead and alive"])
def test_degenerate_batches_have_a_finite_value_and_a_moderate_gradient(loss, of):
    """No root at zero, no division by a norm of zero: nor by something tiny in its place."""
    student, teacher = random(B, 3, 4, 4).float(), random(B, 7, 4, 4, seed=1).float()
    if of == "dead":
        student.zero_()
    elif of == "one sample for all":
        student[:] = student[0].clone()
    elif of == "two at one place":
        student[1] = student[0]
    else:
        student[:2] = 0
    for target in (teacher, torch.zeros_like(teacher), teacher[:1].expand_as(teacher)):
        features = student.clone().requires_grad_()
        value = loss(features, target)
        value.backward()
        assert torch.isfinite(value)
        assert torch.isfinite(features.grad).all()
        assert features.grad.abs().max() < 1e4


@each_relation
@pytest.mark.parametrize("size", [0, 1, 2])
def test_the_smallest_batches_are_finite(loss, size):
    student = random(size, 4).requires_grad_()
    value = loss(student, random(size, 7, seed=1))
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(student.grad).all()
    assert size > 0 or value.item() == 0


@each_relation
def test_relations_do_not_see_scale_or_rotation(loss):
    student = random(B, 5)
    rotation, _ = torch.linalg.qr(random(5, 5, seed=2))
    assert loss(student, 3 * student @ rotation).item() == pytest.approx(0, abs=1e-12)
    assert loss(student, student @ random(5, 5, seed=3)).item() > 1e-3


def test_what_a_shift_does():
    """Distances, angles and centred features do not see it; cosines do."""
    student = random(B, 5)
    shifted = student + random(5, seed=2)
    for loss in (rkd, cka):
        assert loss(student, shifted).item() == pytest.approx(0, abs=1e-12)
    for loss in (sp, pkt, cc):
        assert loss(student, shifted).item() > 1e-3


@each_relation
def test_relations_are_those_of_the_valid_samples(loss):
    student, teacher = random(B, 4), random(B, 7, seed=1)
    torch.testing.assert_close(loss(student, teacher, mask=VALID), loss(student[VALID], teacher[VALID]))


@each_relation
def test_relations_refuse_batches_that_differ(loss):
    with pytest.raises(UserError, match=rf"{loss.__name__} needs .* \[4, 3\] and \[5, 3\] came"):
        loss(torch.zeros(4, 3), torch.zeros(5, 3))


def test_relations_need_no_aligner():
    assert set(RELATIONS) <= CHANNEL_FREE


def test_rkd_by_hand():
    """Three in a row against a right angle: distances 1, 1, 2 over their mean 4/3 and 1, 1, √2 over (2 + √2)/3;
    cosines at the three points 1, −1, 1 and 1/√2, 0, 1/√2."""
    line, corner = torch.tensor([[0.0, 0], [1, 0], [2, 0]]), torch.tensor([[0.0, 0], [1, 0], [1, 1]])
    mean = (2 + np.sqrt(2)) / 3
    steps, far = 3 / 4 - 1 / mean, 3 / 2 - np.sqrt(2) / mean
    expected = (2 * steps**2 / 2 + far**2 / 2) / 3
    assert rkd(corner, line, distance=1, angle=0).item() == pytest.approx(expected, rel=1e-5)
    expected = (2 * (1 - np.sqrt(1 / 2)) ** 2 / 2 + 1 / 2) / 3
    assert rkd(corner, line, distance=0, angle=1).item() == pytest.approx(expected, rel=1e-5)
    both = 3 * rkd(corner, line, distance=1, angle=0) + 7 * rkd(corner, line, distance=0, angle=1)
    torch.testing.assert_close(rkd(corner, line, distance=3, angle=7), both)


def test_rkd_of_close_samples_far_from_zero_loses_nothing_to_cancellation():
    """Embeddings near 1000 and 0.1 apart: from squares and products float32 would keep no digit."""
    student, teacher = 1000 + random(16, 8, scale=0.1).float(), random(16, 8, seed=1).float()
    np.testing.assert_allclose(rkd(student, teacher).item(), rkd(student.double(), teacher.double()).item(), rtol=1e-5)


def test_rkd_computes_the_angles_of_a_large_batch_in_blocks(monkeypatch):
    student, teacher = random(13, 3).requires_grad_(), random(13, 2, seed=1)
    values = []
    for size in (64, 5, 13, 1):
        monkeypatch.setattr(relations, "BLOCK", size)
        value = rkd(student, teacher, distance=0)
        values.append((value, *torch.autograd.grad(value, student)))
    np.testing.assert_allclose(values[0][0].item(), rkd_reference(student.detach().numpy(), teacher.numpy(), 0))
    for value in values[1:]:
        torch.testing.assert_close(value, values[0], rtol=1e-10, atol=1e-14)


def test_pkt_leaves_a_sample_out_of_its_own_neighbours():
    """Of two samples each has one neighbour, whatever the features: with itself counted the value would not be 0."""
    assert pkt(torch.eye(2), torch.ones(2, 3)).item() == 0


def test_pkt_of_opposite_samples_is_finite():
    """The student's kernel is zero where the teacher's is not."""
    student = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]], requires_grad=True)
    value = pkt(student, torch.ones(3, 2))
    value.backward()
    assert torch.isfinite(value)
    assert value > 1
    assert torch.isfinite(student.grad).all()


def test_the_series_of_cc_approaches_the_gaussian_kernel():
    student, teacher = random(B, 4), random(B, 7, seed=1)
    kernels = []
    for features in (student.numpy(), teacher.numpy()):
        unit = features / np.linalg.norm(features, axis=1, keepdims=True)
        kernels.append(np.exp(-0.4 * ((unit[:, None] - unit[None]) ** 2).sum(2)))
    expected = ((kernels[0] - kernels[1]) ** 2).mean()
    errors = [abs(cc(student, teacher, order=order).item() - expected) for order in (1, 2, 4, 8)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-5 * expected


def test_cc_of_order_zero_is_refused():
    with pytest.raises(UserError, match="order of 1 or more"):
        cc(torch.eye(2), torch.eye(2), order=0)


def test_cka_is_one_for_unrelated_features():
    """Orthogonal after centring: the student tells apart what the teacher holds alike, and the reverse."""
    student, teacher = torch.tensor([[1.0], [1], [-1], [-1]]), torch.tensor([[1.0], [-1], [1], [-1]])
    assert cka(student, teacher).item() == pytest.approx(1)
    assert cka(student, 5 * student + 3).item() == pytest.approx(0, abs=1e-6)


def test_pyramid_by_hand():
    """A checkerboard is gone after pooling, and a constant stays: 1 at full size, then 0 or 1 at 4, 2 and 1."""
    board = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(4, 4).expand(2, 3, 8, 8)
    assert pyramid(board, torch.zeros_like(board)).item() == pytest.approx(8 / 15)
    assert pyramid(torch.ones(2, 3, 8, 8), torch.zeros(2, 3, 8, 8)).item() == pytest.approx(1)
    assert pyramid(board[..., :2, :2], torch.zeros(2, 3, 2, 2)).item() == pytest.approx(2 / 3)
    assert pyramid(board[..., :1, :1], torch.zeros(2, 3, 1, 1)).item() == pytest.approx(1)
    wide = board[:, :, :4, :8]  # scales of 2 and 1 alone: 4 is no smaller than its lower side
    assert pyramid(wide, torch.zeros_like(wide)).item() == pytest.approx(4 / 7)


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (2, 1, 4, 4), (2, 3)])
def test_pyramid_refuses_what_is_not_of_one_shape(shape):
    with pytest.raises(UserError, match="maps of one shape"):
        pyramid(torch.zeros(2, 3, 4, 4), torch.zeros(shape))
    with pytest.raises(UserError, match="maps of one shape"):
        pyramid(torch.zeros(2, 3), torch.zeros(2, 3))


def test_attention_kl_agrees_with_torchs_kl_of_each_query():
    student, teacher = random(B, 2, 3, 4).softmax(-1), random(B, 2, 3, 4, seed=1).softmax(-1)
    rows = student.log().flatten(0, 2), teacher.log().flatten(0, 2)  # batchmean over samples, heads and queries
    expected = torch.nn.functional.kl_div(*rows, reduction="batchmean", log_target=True)
    torch.testing.assert_close(attention_kl(student, teacher), expected)


def test_attention_kl_does_not_move_a_student_that_attends_as_its_teacher_does():
    scores = random(B, 2, 3, 4).requires_grad_()
    attention_kl(scores.softmax(-1), scores.detach().softmax(-1)).backward()
    assert scores.grad.abs().max() < 1e-12
    other = random(B, 2, 3, 4, seed=2).softmax(-1)
    assert attention_kl(other, scores.softmax(-1)) > 0.1


def test_attention_of_other_heads_is_averaged_over_heads():
    student, teacher = random(B, 2, 3, 4).softmax(-1), random(B, 6, 3, 4, seed=1).softmax(-1)
    expected = attention_kl(student.mean(1, keepdim=True), teacher.mean(1, keepdim=True))
    torch.testing.assert_close(attention_kl(student, teacher), expected)
    order = torch.tensor([1, 0])
    torch.testing.assert_close(attention_kl(student[:, order], teacher), expected)


def test_attention_of_zero_is_finite():
    """Masked keys on either side; a padded query that attends to nothing adds nothing."""
    teacher = torch.tensor([[[[0.5, 0.5, 0.0], [0.0, 0.0, 0.0]]]])
    student = torch.tensor([[[[0.5, 0.0, 0.5], [0.0, 0.0, 0.0]]]], requires_grad=True)
    value = attention_kl(student, teacher)
    value.backward()
    assert value.item() == pytest.approx(0.25 * (np.log(0.5) - np.log(1e-12)), rel=1e-5)
    assert torch.isfinite(student.grad).all()


@pytest.mark.parametrize("shape", [(2, 2, 3, 5), (2, 2, 4, 4), (2, 3, 4)])
def test_attention_over_other_tokens_is_refused(shape):
    with pytest.raises(UserError, match="over the same tokens"):
        attention_kl(torch.ones(2, 2, 3, 4), torch.ones(shape))


def test_review_is_the_sum_of_its_levels():
    students = [random(B, 3, 8, 8), random(B, 5, 4, 4, seed=1)]
    teachers = [random(B, 3, 8, 8, seed=2), random(B, 5, 4, 4, seed=3)]
    expected = [pyramid(s, t, mask=VALID, count=7) for s, t in zip(students, teachers, strict=True)]
    torch.testing.assert_close(review(students, teachers, mask=VALID, count=7), expected[0] + expected[1])
    with pytest.raises(UserError, match="2 and 1 came"):
        review(students, teachers[:1])


CONTRAST = {"temperature": 3.0, "population": 50.0}
NEGATIVES = random(9, 4, seed=5), random(9, 4, seed=6)


def of_both(student, teacher, **options):
    negatives = (part if student.dtype == torch.float64 else part.float() for part in NEGATIVES)
    return crd(student, teacher.detach(), *negatives, **CONTRAST, **options)


def of_both_reference(student: np.ndarray, teacher: np.ndarray) -> np.ndarray:
    first = noise_contrast_reference(student, teacher, NEGATIVES[1].numpy(), **CONTRAST)
    return first + noise_contrast_reference(teacher, student, NEGATIVES[0].numpy(), **CONTRAST)


# each direction takes the other side as given, so that the gradient is not the derivative of the value: tested below
@pytest.mark.parametrize("check", [check for check in CHECKS if check is not check_gradient], ids=lambda c: c.__name__)
def test_crd_promises_what_every_loss_does(check):
    check(Case(of_both, of_both_reference, (B, 4), (B, 4), equal=None))


def test_each_direction_of_crd_moves_its_anchor_alone():
    student, teacher = random(B, 4).requires_grad_(), random(B, 4, seed=1).requires_grad_()
    gradients = torch.autograd.grad(crd(student, teacher, *NEGATIVES, **CONTRAST), (student, teacher))
    alone = (
        noise_contrast(student, teacher.detach(), NEGATIVES[1], **CONTRAST),
        noise_contrast(teacher, student.detach(), NEGATIVES[0], **CONTRAST),
    )
    torch.testing.assert_close(gradients, torch.autograd.grad(sum(alone), (student, teacher)))
    only = torch.autograd.grad(noise_contrast(student, teacher.detach(), NEGATIVES[1], **CONTRAST), student)
    torch.testing.assert_close(gradients[:1], only)


def test_crd_stays_finite_at_a_low_temperature():
    student = torch.eye(4)[:2].requires_grad_()
    value = crd(student, torch.eye(4)[2:], -torch.eye(4)[:2], torch.eye(4)[:2], temperature=1e-3)
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(student.grad).all()


def test_nst_does_not_see_the_order_or_the_size_of_channels():
    student = random(B, 5, 4, 4)
    mixed = student[:, torch.tensor([3, 1, 4, 0, 2])] * random(5, 1, 1, seed=2)
    assert nst(student, mixed).item() == pytest.approx(0, abs=1e-12)
    twice = torch.cat([student, student], 1)  # the same channels, each twice
    assert nst(student, twice).item() == pytest.approx(0, abs=1e-12)


def test_nst_averages_the_larger_map_down():
    student, teacher = random(B, 3, 4, 8), random(B, 5, 8, 2, seed=1)
    small = student.reshape(B, 3, 4, 2, 4).mean(4), teacher.reshape(B, 5, 4, 2, 2).mean(3)
    torch.testing.assert_close(nst(student, teacher), nst(*small))


def test_dead_channels_have_a_moderate_gradient_in_nst():
    student = random(B, 3, 4, 4)
    student[:, 1] = 0
    student.requires_grad_()
    nst(student, random(B, 7, 4, 4, seed=1)).backward()
    assert student.grad.abs().max() < 10


def test_cwd_does_not_see_a_constant_of_a_channel():
    student = random(B, 3, 4, 4)
    assert cwd(student, student + random(3, 1, 1, seed=2)).item() == pytest.approx(0, abs=1e-12)
    assert cwd(student, 2 * student).item() > 0.1


def test_what_are_not_maps_is_refused():
    with pytest.raises(UserError, match="nst needs feature maps"):
        nst(torch.zeros(2, 8), torch.zeros(2, 3, 4, 4))
    with pytest.raises(UserError, match=r"cwd needs .* of one shape"):
        cwd(torch.zeros(2, 3, 4, 4), torch.zeros(2, 1, 4, 4))
