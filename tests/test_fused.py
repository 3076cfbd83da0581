"""Losses over large logits, a chunk of rows at a time: the same numbers as at once, and less memory."""

import subprocess
import sys

import pytest
import torch
from torch import Tensor

from edgestill import objective as module
from edgestill.losses import ROW_WISE, SOFT_LOSSES, kl
from edgestill.losses.fused import in_chunks
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
