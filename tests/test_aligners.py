"""Aligners bring a student tap to a teacher tap's shape, and stay out of the student."""

import pytest
import torch
from torch import nn
from torch.nn.functional import normalize

from edgestill.aligners import ContrastMemory, MapAligner, ReviewFusion, aligner_for
from edgestill.errors import UserError
from edgestill.losses import crd, hint, review
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
        ((4, 6, 6, 8), (4, 6, 6, 16)),
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


STUDENTS = [(4, 4, 8, 8), (4, 6, 4, 4), (4, 8, 2, 2)]


@pytest.mark.parametrize(
    "teachers",
    [
        [(4, 5, 8, 8), (4, 7, 4, 4), (4, 9, 2, 2)],
        [(4, 5, 16, 16), (4, 7, 6, 3), (4, 9, 1, 1)],
    ],
)
def test_a_fusion_puts_out_the_teachers_shapes_and_each_level_learns_from_all_that_are_shallower(teachers):
    fusion = ReviewFusion(STUDENTS, teachers)
    maps = [torch.randn(shape, requires_grad=True) for shape in STUDENTS]
    levels, _ = fusion(maps, maps)
    assert [tuple(level.shape) for level in levels] == teachers
    for level, output in enumerate(levels):
        used = torch.autograd.grad(output.square().sum(), maps, retain_graph=True, allow_unused=True)
        assert [gradient is not None for gradient in used] == [source >= level for source in range(3)]
    review(levels, [torch.randn(shape) for shape in teachers]).backward()
    assert all(parameter.grad is not None for parameter in fusion.parameters())


def test_a_fusion_of_one_level_has_nothing_to_fuse():
    fusion = ReviewFusion(STUDENTS[:1], STUDENTS[:1], width=3)
    assert len(fusion.attend) == 0
    levels, _ = fusion([torch.randn(STUDENTS[0])], [])
    assert levels[0].shape == STUDENTS[0]
    assert fusion.narrow[0][0].out_channels == 3


@pytest.mark.parametrize(
    ("students", "teachers"), [([], []), (STUDENTS, STUDENTS[:2]), (STUDENTS[:1], [(4, 8)]), ([(4, 8)], STUDENTS[:1])]
)
def test_a_fusion_refuses_what_are_not_maps_in_pairs(students, teachers):
    with pytest.raises(UserError, match="review needs feature maps"):
        ReviewFusion(students, teachers)


def contrast_memory(**options):
    torch.manual_seed(0)
    return ContrastMemory(8, 16, 20, **{"width": 4, "negatives": 6} | options)


def test_a_memory_moves_each_samples_entry_towards_its_embedding():
    memory = contrast_memory(momentum=0.75)
    before = memory.student_memory.clone(), memory.teacher_memory.clone()
    indices = torch.tensor([3, 19])
    student, teacher, *_ = memory(torch.randn(2, 8), torch.randn(2, 16), indices)
    untouched = [row for row in range(20) if row not in indices]
    for entries, old, embedding in zip(
        (memory.student_memory, memory.teacher_memory), before, (student, teacher), strict=True
    ):
        torch.testing.assert_close(entries[indices], normalize(0.75 * old[indices] + 0.25 * embedding))
        assert torch.equal(entries[untouched], old[untouched])
        assert not entries.requires_grad


def test_negatives_are_entries_of_the_memories_as_they_were():
    memory = contrast_memory(negatives=50)
    before = memory.student_memory.clone(), memory.teacher_memory.clone()
    _, _, *negatives = memory(torch.randn(20, 8), torch.randn(20, 16), torch.arange(20))
    places = [(drawn[:, None] == old[None]).all(2) for drawn, old in zip(negatives, before, strict=True)]
    assert torch.equal(places[0], places[1])  # the same samples on both sides
    assert places[0].any(1).all()
    assert len(places[0].nonzero()[:, 1].unique()) > 10


def test_a_memory_in_evaluation_stays_as_it_is():
    memory = contrast_memory().eval()
    before = memory.student_memory.clone()
    memory(torch.randn(2, 8), torch.randn(2, 16), torch.tensor([3, 19]))
    assert torch.equal(memory.student_memory, before)


def test_a_memory_trains_both_embeddings_and_gives_the_teachers_features_no_gradient():
    memory = contrast_memory()
    student, teacher = torch.randn(2, 8, 3, 3, requires_grad=True), torch.randn(2, 16, 5, 5, requires_grad=True)
    crd(*memory(student, teacher, torch.tensor([3, 19]))).backward()
    assert student.grad.abs().sum() > 0
    assert teacher.grad is None
    assert all(parameter.grad.abs().sum() > 0 for parameter in memory.parameters())


def test_a_memory_goes_on_from_its_state_and_the_generators_as_if_it_had_never_stopped():
    features = torch.randn(3, 2, 8), torch.randn(3, 2, 16), torch.randint(20, (3, 2))
    memory = contrast_memory()
    memory(*(part[0] for part in features))
    state, generator = {name: value.clone() for name, value in memory.state_dict().items()}, torch.get_rng_state()
    expected = [crd(*memory(*(part[step] for part in features))) for step in (1, 2)]
    resumed = contrast_memory()
    resumed.load_state_dict(state)
    torch.set_rng_state(generator)
    assert [crd(*resumed(*(part[step] for part in features))) for step in (1, 2)] == expected


@pytest.mark.parametrize(("population", "learns"), [(1.0, True), (300.0, False)])
def test_a_student_learns_which_teacher_embedding_is_its_own(population, learns):
    """Of 300 samples, with two noisy views of one latent. The paper's population N leaves no way but all alike."""
    torch.manual_seed(0)
    latent = torch.randn(300, 16)
    views = latent @ torch.randn(16, 24), (latent @ torch.randn(16, 32)).relu()
    memory = ContrastMemory(24, 32, 300, width=32, negatives=128)
    optimizer = torch.optim.SGD(memory.parameters(), lr=0.02, momentum=0.9)
    for _ in range(200):
        indices = torch.randperm(300)[:64]
        loss = crd(*memory(views[0][indices], views[1][indices], indices), population=population)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        student, teacher, *_ = memory.eval()(*views, torch.arange(300))
    found = ((student @ teacher.T).argmax(1) == torch.arange(300)).float().mean()
    assert (found > 0.5) == learns
