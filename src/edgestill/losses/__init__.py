"""Pure loss functions: tensors in, scalar out. Each sums over classes and averages over valid positions."""

from collections.abc import Callable

from torch import Tensor

from edgestill.losses.attention import attention_transfer
from edgestill.losses.features import hint
from edgestill.losses.logits import cross_entropy, kl

Loss = Callable[..., Tensor]

SOFT_LOSSES: dict[str, Loss] = {"kl": kl}
TERM_LOSSES: dict[str, Loss] = {"hint": hint, "attention_transfer": attention_transfer}

CHANNEL_FREE = frozenset({attention_transfer})
"""Losses that pool the channels away: student and teacher may differ in width without an aligner."""

__all__ = ["CHANNEL_FREE", "SOFT_LOSSES", "TERM_LOSSES", "Loss", "attention_transfer", "cross_entropy", "hint", "kl"]
