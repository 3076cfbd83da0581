"""Models that put out one vector for a text. Shapes: B texts, T tokens, D width."""

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgestill.errors import UserError
from edgestill.losses.reduce import wide

Pooling = Literal["mean", "cls", "last"]
"""Which of a text's tokens its vector is made of: all that are no padding, the first, or the last of these."""
TAP = "sentence_embedding"
"""The path at which a text's vector can be tapped, and what an exported file calls its output."""


class SentenceEmbedding(nn.Module):
    """The vector of each text, of length 1: from its tokens' [B, T, D], or from a vector [B, D] that stands already.

    `mask` [B, T] says which tokens are no padding, wherever that stands; None: all.

    >>> tokens, mask = torch.tensor([[[3.0, 0.0], [0.0, 3.0], [9.0, 9.0]]]), torch.tensor([[1, 1, 0]])
    >>> SentenceEmbedding("mean")(tokens, mask), SentenceEmbedding("last")(tokens, mask)
    (tensor([[0.7071, 0.7071]]), tensor([[0., 1.]]))
    """

    def __init__(self, pooling: Pooling) -> None:
        super().__init__()
        self.pooling = pooling

    def forward(self, hidden: Tensor, mask: Tensor | None = None) -> Tensor:
        return functional.normalize(wide(self._pooled(hidden, mask)), dim=-1)

    def _pooled(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        if hidden.dim() == 2:
            return hidden
        if mask is None:
            mask = torch.ones(hidden.shape[:2], dtype=torch.int64, device=hidden.device)
        if self.pooling == "cls":
            return hidden[:, 0]
        if self.pooling == "mean":
            return wide(hidden, mask.bool()).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)
        places = mask * torch.arange(1, hidden.shape[1] + 1, device=hidden.device)
        # summed, not indexed: a gather would fix the number and length of texts in an exported file
        return wide(hidden, (places == places.amax(1, keepdim=True))).sum(1)


def embed(module: nn.Module, pooling: Pooling) -> None:
    """From now on the module puts out one vector a text. Its own modules keep their names, so that taps and its saved
    weights do; the new one, which has no weights, is called `sentence_embedding`."""
    if hasattr(module, TAP):
        raise UserError(f"{type(module).__name__} has a `{TAP}` of its own, as a text's vector is called: rename it")
    module.add_module(TAP, SentenceEmbedding(pooling))
    module.register_forward_hook(_embedded, with_kwargs=True)


def embedding_of(module: nn.Module) -> SentenceEmbedding | None:
    """What makes one vector of a text in a module that `embed` was called on."""
    found = getattr(module, TAP, None)
    return found if isinstance(found, SentenceEmbedding) else None


def _embedded(module: nn.Module, _inputs: Any, options: dict[str, Any], output: Any) -> Tensor:
    hidden = output if isinstance(output, Tensor) else getattr(output, "last_hidden_state", None)
    if hidden is None or hidden.dim() not in (2, 3):
        came = f"[{', '.join(map(str, hidden.shape))}]" if hidden is not None else type(output).__name__
        raise UserError(
            f"{type(module).__name__} needs to put out a vector for each text [B, D] or token [B, T, D]; {came} came"
        )
    vectors: Tensor = getattr(module, TAP)(hidden, options.get("attention_mask"))
    return vectors
