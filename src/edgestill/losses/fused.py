"""Losses over logits a chunk of rows at a time: the same values and gradients in a fraction of the memory.

Shapes: N rows (samples, or tokens), C classes, P parts.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Part = Callable[[Tensor, slice], Tensor]
"""A part of the loss on some rows of the student's logits, divided by the count of all: (logits, rows) -> scalar."""

CHUNK, CHUNK_ON_GPU = 2**18, 2**24
"""Logits at a time: 1 MB in float32, which a CPU's cache holds; on a GPU enough to fill it."""


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
    chunk = chunk or (CHUNK if student.device.type == "cpu" else CHUNK_ON_GPU)
    rows = max(1, chunk // max(student.shape[-1], 1))
    values: Tensor = _InChunks.apply(student, parts, tuple(weights), rows)  # type: ignore[no-untyped-call]
    return values


class _InChunks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, student: Tensor, parts: Sequence[Part], weights: tuple[float, ...], rows: int) -> Tensor:
        values = student.new_zeros(len(parts), dtype=torch.promote_types(student.dtype, torch.float32))
        gradient = torch.empty_like(student) if ctx.needs_input_grad[0] else None
        for start in range(0, len(student), rows):
            chosen = slice(start, start + rows)
            if gradient is None:
                values += torch.stack([part(student[chosen], chosen) for part in parts])
                continue
            with torch.enable_grad():
                own = student[chosen].detach().requires_grad_()
                found = [part(own, chosen) for part in parts]
                total = sum(weight * value for weight, value in zip(weights, found, strict=True) if weight)
            gradient[chosen] = torch.autograd.grad(total, own)[0] if isinstance(total, Tensor) else 0
            values += torch.stack([value.detach() for value in found])
        ctx.gradient, ctx.weights = gradient, weights
        return values

    @staticmethod
    def backward(ctx: Any, factors: Tensor) -> tuple[Tensor | None, None, None, None]:
        gradient, ctx.gradient = ctx.gradient, None
        place = next((place for place, weight in enumerate(ctx.weights) if weight), None)
        if gradient is None or place is None:
            return None, None, None, None
        return gradient.mul_((factors[place] / ctx.weights[place]).to(gradient.dtype)), None, None, None
