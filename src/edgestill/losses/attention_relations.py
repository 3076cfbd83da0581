"""Relations between the tokens of a text, as its queries, keys or values show them.

Shapes: B batch, A heads, T tokens, D width of a head, R relation heads.
"""

import torch
from torch import Tensor
from torch.nn import functional

from edgestill.errors import UserError
from edgestill.losses.reduce import masked_mean, wide


def attention_relation(
    student: Tensor,
    teacher: Tensor,
    *,
    heads: int | None = None,
    causal: bool = False,
    mask: Tensor | None = None,
    count: Tensor | float | None = None,
) -> Tensor:
    """`mean_{B,T} mean_R KL(Rᵗ ‖ Rˢ)`, `R = softmax(X·Xᵀ/√D)` over the tokens of each text. Zero at equality.

    X are the queries, the keys or the values of one layer on each side; with all three it is MiniLMv2's loss. The
    widths may differ: the heads are laid side by side and cut again into `heads` relation heads.

    Args:
        student [B, A, T, D], teacher [B, A', T, D']: `PATH@queries`, `PATH@keys` or `PATH@values`; of grouped queries
            one for each query head. The teacher gets no gradient.
        heads: R; by default the heads as they are, of which both sides then need as many (MiniLM's value relation).
        causal: whether a token is related to those before it alone, as in a decoder.
        mask: valid tokens [B, T]. To the others nothing is related, and theirs are not counted.
        count: what to divide by instead of the number of valid tokens.

    Source: Wang et al. 2020 (MiniLM), arXiv 2002.10957, equation 5; Wang et al. 2021 (MiniLMv2), arXiv 2012.15828,
    equations 5 to 8, which sum over R.

    >>> values = torch.eye(2).reshape(1, 1, 2, 2)
    >>> float(attention_relation(values, values)), float(attention_relation(0 * values, values)) > 0
    (0.0, True)
    """
    student_heads, teacher_heads = _relation_heads(student, heads), _relation_heads(teacher.detach(), heads)
    if student_heads.shape[:3] != teacher_heads.shape[:3]:
        raise UserError(
            "attention_relation needs queries, keys or values [B, heads, tokens, width] of the same tokens, and as "
            f"many heads, or the option `heads`; {[*student.shape]} and {[*teacher.shape]} came"
        )
    T = student_heads.shape[2]
    related = torch.ones(1, 1, T, T, dtype=torch.bool, device=student.device)
    if causal:
        related = related.tril()
    if mask is not None:
        # a query that is padding may look everywhere: a softmax over nothing would be NaN
        related = related & (mask[:, None, None, :] | ~mask[:, None, :, None])
    log_student, log_teacher = (_log_relations(x, related) for x in (student_heads, teacher_heads))
    divergence = (log_teacher.exp() * (log_teacher - log_student)).masked_fill(~related, 0.0).sum(-1)  # [B, R, T]
    return masked_mean(divergence.mean(1), mask, count)


def _relation_heads(x: Tensor, heads: int | None) -> Tensor:
    """[B, A, T, D] -> [B, R, T, A·D/R]."""
    if x.dim() != 4:
        raise UserError(f"attention_relation needs PATH@queries, @keys or @values; a tap of shape {[*x.shape]} came")
    x = wide(x)
    if heads is None:
        return x
    width = x.shape[1] * x.shape[3]
    if width % heads:
        raise UserError(f"attention_relation: {heads} heads do not divide a width of {width}")
    return x.transpose(1, 2).reshape(len(x), x.shape[2], heads, width // heads).transpose(1, 2)


def _log_relations(x: Tensor, related: Tensor) -> Tensor:
    scores = x @ x.mT / x.shape[-1] ** 0.5
    return functional.log_softmax(scores.masked_fill(~related, torch.finfo(scores.dtype).min), dim=-1)
