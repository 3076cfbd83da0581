"""Losses over logits a chunk of rows at a time: the same values and gradients in a fraction of the memory.

Shapes: N rows (samples, or tokens), C classes, P parts.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from edgestill.losses.logits import log_probabilities

Part = Callable[[Tensor, slice], Tensor]
"""A part of the loss on some rows of the student's logits, divided by the count of all: (logits, rows) -> scalar."""

Piece = Callable[[Tensor, slice, Tensor | None], Tensor]
"""The values [P] of all parts on some rows; the gradient of their weighted sum is written to the third, if there."""

CHUNK, CHUNK_ON_GPU = 2**18, 2**24
"""Logits at a time: 1 MB in float32, of which a CPU's cache holds several; on a GPU enough to fill it."""


def in_chunks(student: Tensor, parts: Sequence[Part], weights: Sequence[float], chunk: int | None = None) -> Tensor:
    """The values of `parts` [P], each a sum over chunks of rows of `student` [N, C].

    What autograd keeps of a divergence is several times the logits; here the gradient of the weighted sum is made chunk
    by chunk beside the values, and nothing else is kept: one tensor like the logits. That gradient is right where the
    values are added up with `weights`, times any factor, which is what an objective does.

    Args:
        parts: called as `part(rows of the student, slice)`; their sum over slices is the part of the whole.
        weights: what the parts are multiplied with later; parts of weight 0 have no gradient.
        chunk: logits at a time; by default CHUNK or CHUNK_ON_GPU.

    >>> logits = torch.tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)
    >>> values = in_chunks(logits, [lambda rows, _: rows.square().sum()], [0.5], chunk=2)
    >>> (0.5 * values[0]).backward()
    >>> values, logits.grad
    (tensor([30.], grad_fn=<_InChunksBackward>), tensor([[1., 2.],
            [3., 4.]]))
    """

    def piece(rows: Tensor, chosen: slice, gradient: Tensor | None) -> Tensor:
        if gradient is None:
            return torch.stack([part(rows, chosen) for part in parts])
        with torch.enable_grad():
            own = rows.detach().requires_grad_()
            found = [part(own, chosen) for part in parts]
            total = sum(weight * value for weight, value in zip(weights, found, strict=True) if weight)
        gradient.copy_(torch.autograd.grad(total, own)[0]) if isinstance(total, Tensor) else gradient.zero_()
        return torch.stack([value.detach() for value in found])

    return _summed(student, piece, weights, chunk)


class Told(NamedTuple):
    """A divergence of some rows, summed, and its slope in `logits / T`: `factor·q − goal`, q the student's softmax.

    Attributes:
        factor: of each row [n, 1], or of all.
        goal: [n, C], or of the classes `ids` alone [n, K]: those of a class that comes twice add up.
    """

    divergence: Tensor
    factor: Tensor | float
    goal: Tensor
    ids: Tensor | None


Target = Callable[[Tensor, slice], Told]
"""What some rows are to come to, of the student's log-probabilities [n, C] at T."""


def of_logits(teacher: Tensor, temperature: float) -> Target:
    """`kl` to a teacher's logits [N, C]."""

    def target(log: Tensor, rows: slice) -> Told:
        teacher_log = log_probabilities(teacher[rows], temperature)
        probabilities = teacher_log.exp()
        divergence = torch.dot(probabilities.flatten(), teacher_log.sub_(log).flatten())
        return Told(divergence, 1.0, probabilities, None)

    return target


def of_buckets(ids: Tensor, teacher: Tensor, temperature: float) -> Target:
    """`kl` over K classes `ids` [N, K] and all others as one, to a teacher's logits of these [N, K + 1]; see
    `bucketed`."""

    def target(log: Tensor, rows: slice) -> Told:
        teacher_log, kept = log_probabilities(teacher[rows], temperature), ids[rows]
        probabilities, own_log = teacher_log.exp(), log.gather(-1, kept)
        # added up, not one less the kept, of which nothing would be left where these are nearly all
        others = log.exp().scatter_(-1, kept, 0).sum(-1, keepdim=True).clamp_(min=torch.finfo(log.dtype).tiny)
        divergence = torch.linalg.vecdot(probabilities, teacher_log.sub_(torch.cat([own_log, others.log()], -1))).sum()
        share = probabilities[:, -1:] / others  # the others' slope is q less their share of the bucket
        return Told(divergence, 1 - share, probabilities[:, :-1] - own_log.exp_().mul_(share), kept)

    return target


def of_draws(ids: Tensor, shares: Tensor, entropy: Tensor) -> Target:
    """`kl` from classes that the teacher drew, whose shares add up to 1; see `drawn_kl`."""

    def target(log: Tensor, rows: slice) -> Told:
        kept, drawn = ids[rows], shares[rows].to(log.dtype)
        divergence = -torch.linalg.vecdot(drawn, log.gather(-1, kept)).sum() - entropy[rows].sum()
        return Told(divergence, 1.0, drawn, kept)

    return target


def soft_labels(
    student: Tensor,
    labels: Tensor,
    target: Target | None,
    weights: tuple[float, float],
    *,
    temperature: float,
    counts: tuple[Tensor | float, float],
    chunk: int | None = None,
) -> Tensor:
    """`[cross_entropy(student, labels), T²·divergence to target]`, as `in_chunks` of the two in a fraction of its time.

    Their gradient is known, softmax minus what it should be, and needs nothing that the values do not have.

    Args:
        student: logits [N, C].
        labels: class numbers [N], negative where missing.
        target: of the second; None leaves it 0.
        weights: of the two, as in `in_chunks`; where one is 0, so is its value.
        counts: what the sums of the two are divided by.

    >>> logits = torch.zeros(1, 2, requires_grad=True)
    >>> target = of_logits(torch.tensor([[2.0, 0.0]]), 2.0)
    >>> values = soft_labels(logits, torch.tensor([1]), target, (0.5, 0.5), temperature=2.0, counts=(1, 1))
    >>> (0.5 * values).sum().backward()
    >>> values, logits.grad
    (tensor([0.6931, 0.4438], grad_fn=<_InChunksBackward>), tensor([[ 0.0189, -0.0189]]))
    """
    wider = torch.promote_types(student.dtype, torch.float32)

    def piece(rows: Tensor, chosen: slice, gradient: Tensor | None) -> Tensor:
        # in place where it can be: the passes over what the cache holds are all the time that this takes
        values, slopes, goals = student.new_zeros(2, dtype=wider), [], []
        log = log_probabilities(rows, temperature) if weights[1] and target is not None else None
        if log is not None and target is not None:
            told = target(log, chosen)
            soft = temperature * weights[1] / counts[1]
            values[1] = temperature**2 * told.divergence / counts[1]
            slopes.append((log, soft * told.factor))
            goals.append((told.ids, told.goal, soft))
        if weights[0]:
            at_one = log if log is not None and temperature == 1 else log_probabilities(rows, 1.0)
            label = labels[chosen].unsqueeze(-1)
            share = (label >= 0).to(wider) / counts[0]
            label = label.clamp(min=0)
            values[0] = -(at_one.gather(-1, label) * share).sum()
            if at_one is log:  # one softmax serves both
                slopes[0] = (log, slopes[0][1] + weights[0] * share)
            else:
                slopes.append((at_one, weights[0] * share))
            goals.append((label, share, weights[0]))
        if gradient is not None:
            _write(gradient, slopes, goals)
        return values

    return _summed(student, piece, weights, chunk)


def _write(
    gradient: Tensor, slopes: list[tuple[Tensor, Any]], goals: list[tuple[Tensor | None, Tensor, float]]
) -> None:
    """Sum of `factor·exp(log)`, less that of `factor·goal`: of all classes, or of some."""
    if not slopes:
        gradient.zero_()
        return
    (log, factor), *more = slopes
    total = torch.exp(log, out=gradient if gradient.dtype == log.dtype else log).mul_(factor)
    for log, factor in more:
        total.add_(log.exp_().mul_(factor))
    for ids, goal, weight in goals:
        total.sub_(goal, alpha=weight) if ids is None else total.scatter_add_(-1, ids, goal * -weight)
    if total is not gradient:
        gradient.copy_(total)


def _summed(student: Tensor, piece: Piece, weights: Sequence[float], chunk: int | None) -> Tensor:
    chunk = chunk or (CHUNK if student.device.type == "cpu" else CHUNK_ON_GPU)
    rows = max(1, chunk // max(student.shape[-1], 1))
    values: Tensor = _InChunks.apply(student, piece, tuple(weights), rows)  # type: ignore[no-untyped-call]
    return values


class _InChunks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, student: Tensor, piece: Piece, weights: tuple[float, ...], rows: int) -> Tensor:
        values = student.new_zeros(len(weights), dtype=torch.promote_types(student.dtype, torch.float32))
        gradient = torch.empty_like(student) if ctx.needs_input_grad[0] else None
        for start in range(0, len(student), rows):
            chosen = slice(start, start + rows)
            values += piece(student[chosen], chosen, None if gradient is None else gradient[chosen])
        ctx.gradient, ctx.weights = gradient, weights
        return values

    @staticmethod
    def backward(ctx: Any, factors: Tensor) -> tuple[Tensor | None, None, None, None]:
        gradient, ctx.gradient = ctx.gradient, None
        place = next((place for place, weight in enumerate(ctx.weights) if weight), None)
        if gradient is None or place is None:
            return None, None, None, None
        factor = (factors[place] / ctx.weights[place]).to(gradient.dtype)
        if factor.device.type == "cpu" and factor == 1:  # as good as always; on a GPU the question costs more
            return gradient, None, None, None
        return gradient.mul_(factor), None, None, None
