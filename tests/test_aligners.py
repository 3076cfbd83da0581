"""Aligners bring a student tap to a teacher tap's shape, and stay out of the student."""

import pytest
import torch
from torch import nn

from edgestill.aligners import MapAligner, aligner_for
from edgestill.errors import UserError
from edgestill.losses import hint
from edgestill.objective import Objective, Term
from edgestill.signals import Signal

LOGITS = torch.zeros(4, 3)


@pytest.mark.parametrize(
    ("student", "teacher"),
    [
        ((4, 8, 6, 6), (4, 16, 6, 6)),
        ((4, 8, 3, 3), (4, 16, 6, 6)),
        ((4, 16, 6, 6), (4, 8, 3, 3)),
        ((4, 8, 6, 4), (4, 8, 5, 7)),
        ((4, 8), (4, 16)),
        ((4, 5, 8), (4, 5, 16)),
        ((4, 6, 6, 8), (4, 6, 6, 16)),  # channels last, as in Swin
        ((4, 8, 6, 6), (4, 3, 3, 16)),
        ((4, 8, 6, 6), (4, 17, 12)),  # a class token and 4×4 patches
        ((4, 17, 12), (4, 8, 6, 6)),
        ((4, 17, 12), (4, 10, 8)),
    ],
)
def test_an_aligner_puts_out_the_teachers_shape_and_takes_a_gradient(student, teacher):
    aligner = aligner_for(torch.Size(student), torch.Size(teacher))
    features = torch.randn(student, requires_grad=True)
    aligned = aligner(features)
    assert aligned.shape == teacher
    aligned.square().sum().backward()
    assert features.grad.abs().sum() > 0
    assert all(parameter.grad is not None for parameter in aligner.parameters())


@pytest.mark.parametrize("shape", [(8, 6, 6), (8,), (5, 8)])
def test_equal_shapes_need_no_aligner_whatever_the_batch(shape):
    for kind in ("auto", "none", "interpolate"):
        assert isinstance(aligner_for(torch.Size((2, *shape)), torch.Size((7, *shape)), kind), nn.Identity)


def test_the_kind_of_an_aligner_can_be_chosen():
    same, wider, smaller = torch.Size((2, 8, 6, 6)), torch.Size((2, 16, 6, 6)), torch.Size((2, 8, 3, 3))
    batch_norms = [
        sum(isinstance(module, nn.BatchNorm2d) for module in aligner_for(same, wider, kind).modules())
        for kind in ("auto", "conv", "linear")
    ]
    assert batch_norms == [1, 1, 0]
    assert [*aligner_for(same, same, "conv").parameters()]
    resize = aligner_for(same, smaller, "interpolate")
    assert not [*resize.parameters()]
    assert resize(torch.ones(same)).shape == smaller
    with pytest.raises(UserError, match="8 and 16 channels came: use conv"):
        aligner_for(same, wider, "interpolate")
    with pytest.raises(UserError, match=r"\[8, 6, 6\] and \[16, 6, 6\] came"):
        aligner_for(same, wider, "none")


def test_tokens_before_the_grid_are_made_of_the_mean_of_the_map():
    aligner = MapAligner(torch.Size((1, 2, 3, 3)), torch.Size((1, 11, 2)), "interpolate")
    features = torch.randn(1, 2, 3, 3)
    tokens = aligner(features)
    torch.testing.assert_close(tokens[:, 2:], features.flatten(2).transpose(1, 2))  # row by row, as patches stand
    torch.testing.assert_close(tokens[:, 1], features.mean((2, 3)))
    back = MapAligner(torch.Size((1, 11, 2)), torch.Size((1, 2, 3, 3)), "interpolate")
    torch.testing.assert_close(back(tokens), features)


@pytest.mark.parametrize(
    ("student", "teacher"), [((2, 8), (2, 8, 4, 4)), ((2, 15, 8), (2, 6, 8)), ((2, 3, 4, 5, 6), (2, 3, 4, 5, 7))]
)
def test_shapes_that_nothing_joins_are_refused_with_both(student, teacher):
    with pytest.raises(UserError) as refused:
        aligner_for(torch.Size(student), torch.Size(teacher))
    assert str([*student[1:]]) in str(refused.value)
    assert str([*teacher[1:]]) in str(refused.value)


def test_a_map_of_the_same_size_is_only_projected():
    aligner = MapAligner(torch.Size((1, 2, 4, 4)), torch.Size((1, 3, 4, 4)), "conv").eval()
    features = torch.randn(1, 2, 4, 4)
    expected = torch.einsum("bchw,dc->bdhw", features, aligner.project[0].weight[:, :, 0, 0])
    torch.testing.assert_close(aligner(features), expected / (1 + 1e-5) ** 0.5)


def test_a_map_of_another_size_is_interpolated_between_pixels():
    aligner = MapAligner(torch.Size((1, 1, 2, 4)), torch.Size((1, 1, 2, 2)), "interpolate")
    rows = [[0.0, 1.0, 2.0, 3.0], [4.0, 4.0, 8.0, 8.0]]
    assert aligner(torch.tensor([[rows]])).tolist() == [[[[0.5, 2.5], [4.0, 8.0]]]]


def test_what_is_learned_with_an_aligner_leaves_the_student_a_plain_model():
    torch.manual_seed(0)
    student = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU())
    names = {*student.state_dict()}
    taps = {"0": student[0](torch.randn(4, 3, 2, 2))}
    signal = {"t": torch.randn(4, 9, 2, 2)}
    objective = Objective(alpha=0.0, terms={"hint/0": Term(hint, "0", "t")}, examples=(taps, signal))
    objective(LOGITS, torch.zeros(4, dtype=torch.long), Signal(LOGITS, signal), taps).loss.backward()
    assert {*student.state_dict()} == names
    assert not student._forward_hooks
    own, aligners = {id(p) for p in student.parameters()}, {id(p) for p in objective.parameters()}
    assert aligners
    assert own.isdisjoint(aligners)
    assert student[0].weight.grad.abs().sum() > 0
