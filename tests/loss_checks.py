"""What every loss promises, as checks of a case: `tests/test_losses.py` runs them over all losses,
`tests/test_losses_can_fail.py` shows that each of them fails for a loss that is wrong.

Shapes: B batch, C classes or channels.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

B, C = 6, 5
LABELS = torch.tensor([0, 4, -1, 2, 2, -1])
VALID = torch.tensor([True, True, False, True, False, True])


def random(*shape: int, seed: int = 0, scale: float = 2.0) -> Tensor:
    return scale * torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@dataclass(frozen=True)
class Case:
    """A loss with its options bound, and an independent float64 reference in NumPy.

    Attributes:
        loss: `loss(student, teacher, mask=…, count=…)`.
        reference: (student, teacher) arrays -> one value a sample [B]; for a relation, which compares the samples of
            a batch with each other, one value for the batch.
        student, teacher: shapes of the tensors, of which the first is B.
        relation: the value of a batch is not the mean of its samples' values.
        equal: the value where student and teacher are one tensor, None where that is not defined.
        domain: brings random numbers to what the loss takes, such as probabilities.
        minimal: the gradient is zero at equality, and any other student gives a larger value.
        rtol32, rtol16: relative error of float32 and of bf16 or half input, against the reference in float64 on what
            the input is rounded to; rtol_grad16: of the gradient, relative to its largest entry.
    """

    loss: Callable[..., Tensor]
    reference: Callable[..., np.ndarray]
    student: tuple[int, ...]
    teacher: tuple[int, ...]
    relation: bool = False
    equal: float | None = 0.0
    minimal: bool = True
    rtol32: float = 2e-6
    rtol16: float = 1e-5
    rtol_grad16: float = 1e-2
    make_teacher: Callable[[], Tensor] | None = None
    domain: Callable[[Tensor], Tensor] = Tensor.clone

    def inputs(self) -> tuple[Tensor, Tensor]:
        teacher = self.domain(random(*self.teacher, seed=1)) if self.make_teacher is None else self.make_teacher()
        return self.domain(random(*self.student)), teacher


def check_value(case: Case) -> None:
    """The value is the reference's mean over the samples; over the valid ones under a mask."""
    student, teacher = case.inputs()
    value = case.loss(student, teacher)
    assert value.shape == ()
    expected = np.asarray(case.reference(student.numpy(), teacher.numpy()))
    assert expected.shape == (() if case.relation else (len(student),))
    np.testing.assert_allclose(value.item(), expected.mean(), rtol=1e-10)
    rows = VALID.numpy()
    masked = case.reference(student[VALID].numpy(), teacher[VALID].numpy()) if case.relation else expected[rows]
    np.testing.assert_allclose(case.loss(student, teacher, mask=VALID).item(), masked.mean(), rtol=1e-10)
    np.testing.assert_allclose(case.loss(student.float(), teacher.float()).item(), expected.mean(), rtol=case.rtol32)


def check_gradient(case: Case) -> None:
    """The gradient is the derivative of the value, with a mask and without."""
    student, teacher = case.inputs()
    student.requires_grad_()
    assert torch.autograd.gradcheck(lambda s: case.loss(s, teacher), student)
    assert torch.autograd.gradcheck(lambda s: case.loss(s, teacher, mask=VALID), student)
    (gradient,) = torch.autograd.grad(case.loss(student, teacher), student)
    assert gradient.abs().sum() > 0


def check_no_gradient_to_the_teacher(case: Case) -> None:
    student, teacher = case.inputs()
    teacher.requires_grad_()
    case.loss(student.requires_grad_(), teacher).backward()
    assert teacher.grad is None
    assert not case.loss(student.detach(), teacher).requires_grad


def check_equality(case: Case) -> None:
    """The stated value where student and teacher agree; there the gradient is zero, and nothing is smaller."""
    if case.equal is None:
        return
    student, _ = case.inputs()
    student.requires_grad_()
    value = case.loss(student, student.detach())
    assert abs(value.item() - case.equal) < 1e-12
    if case.minimal:
        value.backward()
        assert student.grad is not None
        assert student.grad.abs().max() < 1e-8
        other = case.loss(student, student.detach() + random(*student.shape, seed=3))
        assert other.item() > case.equal + 1e-4


def check_masked_rows_do_not_matter(case: Case) -> None:
    """What is masked reaches neither the value nor the gradient, were it infinite."""
    student, teacher = case.inputs()
    clean = student.clone().requires_grad_()
    expected = case.loss(clean, teacher, mask=VALID)
    expected.backward()
    for garbage in (0.0, 1e30, float("nan"), float("inf"), float("-inf")):
        dirty, dirty_teacher = student.clone(), teacher.clone()
        dirty[~VALID] = garbage
        if case.make_teacher is None:
            dirty_teacher[~VALID] = -garbage
        dirty.requires_grad_()
        value = case.loss(dirty, dirty_teacher, mask=VALID)
        value.backward()
        assert torch.equal(value, expected)
        assert torch.equal(dirty.grad, clean.grad)
        assert torch.equal(dirty.grad[~VALID], torch.zeros_like(dirty.grad[~VALID]))


def check_order_does_not_matter(case: Case) -> None:
    student, teacher = case.inputs()
    order = torch.randperm(len(student), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        case.loss(student[order], teacher[order]), case.loss(student, teacher), rtol=1e-12, atol=0
    )
    moved = case.loss(student[order], teacher[order], mask=VALID[order])
    torch.testing.assert_close(moved, case.loss(student, teacher, mask=VALID), rtol=1e-12, atol=0)


def check_count(case: Case) -> None:
    """Divided by the count that is given: pieces of a batch sum to the whole. A relation's pieces weigh by samples."""
    student, teacher = case.inputs()
    size = len(student)
    student.requires_grad_()
    whole = case.loss(student, teacher, mask=VALID)
    torch.testing.assert_close(case.loss(student, teacher, count=2 * size), case.loss(student, teacher) / 2)
    torch.testing.assert_close(case.loss(student, teacher, mask=VALID, count=2 * VALID.sum()), whole / 2)
    if case.relation:
        return
    (expected,) = torch.autograd.grad(whole, student)
    for split in (1, 3):
        parts = [
            case.loss(student[rows], teacher[rows], mask=VALID[rows], count=VALID.sum())
            for rows in (slice(split), slice(split, None))
        ]
        (gradient,) = torch.autograd.grad(sum(parts), student)
        torch.testing.assert_close(sum(parts), whole, rtol=1e-12, atol=0)
        torch.testing.assert_close(gradient, expected, rtol=1e-11, atol=1e-14)


def check_nothing_valid(case: Case) -> None:
    """Nothing valid is a loss of zero with a gradient of zero."""
    student, teacher = case.inputs()
    student.requires_grad_()
    value = case.loss(student, teacher, mask=torch.zeros(len(student), dtype=torch.bool))
    value.backward()
    assert value.item() == 0
    assert torch.equal(student.grad, torch.zeros_like(student))
    assert case.loss(student[:0], teacher[:0]).item() == 0


def check_half_precision(case: Case) -> None:
    """Half-precision input is computed in float32: the input's own rounding apart, nothing is lost."""
    student, teacher = case.inputs()
    for dtype in (torch.bfloat16, torch.float16):
        low, low_teacher = student.to(dtype), teacher.to(dtype)
        value = case.loss(low, low_teacher)
        assert value.dtype == torch.float32
        expected = np.asarray(case.reference(low.double().numpy(), low_teacher.double().numpy())).mean()
        np.testing.assert_allclose(value.item(), expected, rtol=case.rtol16)
        low.requires_grad_()
        case.loss(low, low_teacher).backward()
        wide = low.detach().double().requires_grad_()
        case.loss(wide, low_teacher.double()).backward()
        error = (low.grad.double() - wide.grad).abs().max() / wide.grad.abs().max()
        assert error < case.rtol_grad16


CHECKS = (
    check_value,
    check_gradient,
    check_no_gradient_to_the_teacher,
    check_equality,
    check_masked_rows_do_not_matter,
    check_order_does_not_matter,
    check_count,
    check_nothing_valid,
    check_half_precision,
)
