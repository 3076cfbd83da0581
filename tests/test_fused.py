"""Losses over large logits, a chunk of rows at a time: the same numbers as at once, and less memory."""

import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from edgestill import objective as module
from edgestill.losses import ROW_WISE, SOFT_LOSSES, bucketed, cross_entropy, drawn_kl, kl
from edgestill.losses.fused import Target, in_chunks, of_buckets, of_draws, of_logits, soft_labels
from edgestill.objective import Objective
from edgestill.signals import Signal

N, C = 13, 7


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


LABELS = torch.tensor([0, 4, -1, 2, 2, -1, 6, 3, 1, 0, 5, -1, 2])


@pytest.mark.parametrize("counts", [None, (20, 26)])
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("loss", sorted(name for name, loss in SOFT_LOSSES.items() if loss in ROW_WISE))
def test_chunks_give_the_values_and_gradients_of_the_whole(
    loss: str, alpha: float, counts: tuple[int, int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Objective(
        loss=SOFT_LOSSES[loss], alpha=alpha, temperature=2.0, label_smoothing=0.1, standardize=loss == "kl"
    )
    signal, found = Signal(random(N, C, seed=1)), []
    for chunk in (10**9, 3 * C):
        monkeypatch.setattr(module, "LARGE", chunk)
        monkeypatch.setattr(module, "in_chunks", lambda *given, size=chunk: in_chunks(*given, chunk=size))
        logits = random(N, C).requires_grad_()
        parts = made(logits, LABELS, signal, counts=counts)
        (2 * parts.loss).backward()
        found.append((parts, logits.grad))
    (whole, gradient), (pieces, other) = found
    assert list(whole.values) == list(pieces.values)
    for name, value in whole.values.items():
        torch.testing.assert_close(pieces.values[name], value, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(other, gradient, rtol=1e-10, atol=1e-14)


def kept(way: str, temperature: float) -> tuple[Callable[[Tensor], Tensor], Target | None]:
    """A divergence by autograd, over 26 positions, and its target by formula."""
    teacher = random(N, C, seed=1)
    teacher[:, 6] = -torch.inf  # a padded vocabulary
    given = {"temperature": temperature, "count": 26}
    if way == "none":
        return lambda student: 0 * student.sum(), None
    if way == "logits":
        return lambda student: kl(student, teacher, **given), of_logits(teacher, temperature)
    if way == "buckets":
        ids = teacher.topk(3).indices
        told = bucketed(teacher, ids, temperature)
        return (
            lambda student: kl(bucketed(student, ids, temperature), told, **given),
            of_buckets(ids, told, temperature),
        )
    ids, shares, entropy = torch.tensor([[5, 0, 2]] * N), random(N, 3).softmax(-1), random(N, seed=2).abs()
    return lambda student: drawn_kl(student, ids, shares, entropy, **given), of_draws(ids, shares, entropy)


@pytest.mark.parametrize("hard", [0.0, 0.4])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("way", ["none", "logits", "buckets", "draws"])
def test_soft_labels_by_their_formula_are_those_by_autograd(way: str, temperature: float, hard: float) -> None:
    divergence, target = kept(way, temperature)
    soft, found = 0.6 if way != "none" else 0.0, []
    for by_formula in (False, True):
        logits = random(N, C).requires_grad_()
        values = (
            soft_labels(
                logits, LABELS, target, (hard, soft), temperature=temperature, counts=(20, 26), chunk=4 * C
            ).unbind()
            if by_formula
            else (cross_entropy(logits, LABELS, count=20), divergence(logits))
        )
        (5 * (hard * values[0] + soft * values[1])).backward()
        gradient = logits.grad if logits.grad is not None else torch.zeros(N, C, dtype=torch.float64)
        found.append(([value.detach() for value in values], gradient))
    (expected, gradient), (values, other) = found
    torch.testing.assert_close(values[0], expected[0] * (hard > 0), rtol=1e-12, atol=0)
    torch.testing.assert_close(values[1], expected[1], rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(other, gradient, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_an_objective_of_soft_labels_is_the_same_by_formula(alpha: float, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher, mask, found = random(N, C, seed=1), torch.arange(N) != 1, []
    monkeypatch.setattr(module, "in_chunks", None)  # the way by autograd
    for large in (10**9, 0):
        monkeypatch.setattr(module, "LARGE", large)
        logits = random(N, C).requires_grad_()
        parts = Objective(alpha=alpha, temperature=2.0)(logits, LABELS, Signal(teacher), mask=mask)
        parts.loss.backward()
        found.append((parts.values, logits.grad))
    assert found[0][0].keys() == found[1][0].keys()
    torch.testing.assert_close(found[0], found[1], rtol=1e-10, atol=1e-14)


def test_soft_labels_of_equal_logits_are_zero_also_in_half_precision() -> None:
    logits = torch.randn(4, 9).bfloat16().requires_grad_()
    target, missing = of_logits(logits.detach(), 4.0), torch.full((4,), -1)
    values = soft_labels(logits, missing, target, (0.5, 0.5), temperature=4.0, counts=(1, 4), chunk=9)
    (0.5 * values).sum().backward()
    assert values.tolist() == [0, 0]
    assert values.dtype == torch.float32
    assert logits.grad.dtype == torch.bfloat16
    assert not logits.grad.any()


def test_labels_that_are_probabilities_and_masks_are_cut_with_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    labels, mask = random(N, C, seed=2).softmax(-1), LABELS >= 0
    values = []
    for chunk in (10**9, 2 * C):
        monkeypatch.setattr(module, "LARGE", chunk)
        monkeypatch.setattr(module, "in_chunks", lambda *given, size=chunk: in_chunks(*given, chunk=size))
        parts = Objective(loss=kl, alpha=0.5)(random(N, C), labels, Signal(random(N, C, seed=1)), mask=mask)
        values.append(parts.values)
    torch.testing.assert_close(values[0], values[1])


def test_without_a_gradient_nothing_is_kept_and_half_precision_has_its_own() -> None:
    part = [lambda rows, _: rows.float().square().sum()]
    assert not in_chunks(torch.ones(4, 2), part, [1.0], chunk=2).requires_grad
    logits = torch.ones(4, 2, dtype=torch.bfloat16, requires_grad=True)
    value = in_chunks(logits, part, [1.0], chunk=2)
    assert value.dtype == torch.float32
    value[0].backward()
    assert logits.grad.dtype == torch.bfloat16
    assert logits.grad.unique().tolist() == [2.0]


SCRIPT = """
import sys, torch
from edgestill.objective import Objective
from edgestill.signals import Signal
torch.set_num_threads(1)


def peak():
    # not ru_maxrss, which a small child of a large parent has from its parent
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024


student = torch.randn(8 * 64, 32_000).requires_grad_()
teacher = torch.randn(8 * 64, 32_000)
before = peak()
if sys.argv[1] == "whole":
    from edgestill.losses import cross_entropy, kl
    loss = 0.1 * cross_entropy(student, torch.zeros(512).long()) + 0.9 * kl(student, teacher)
else:
    loss = Objective(alpha=0.9, temperature=1.0)(student, torch.zeros(512).long(), Signal(teacher)).loss
loss.backward()
print(peak() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peak memory is read from /proc")
def test_memory_over_the_logits_is_that_of_the_gradient() -> None:
    """512 tokens × 32,000: 65.5 MB a tensor. In chunks one of them and some chunks; at once several."""
    over = {}
    for way in ("whole", "chunks"):
        done = subprocess.run([sys.executable, "-c", SCRIPT, way], capture_output=True, text=True, check=True)
        over[way] = int(done.stdout)
    tensor = 512 * 32_000 * 4
    assert over["chunks"] < 1.6 * tensor
    assert over["whole"] > 3 * tensor
