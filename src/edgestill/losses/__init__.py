"""Pure loss functions: tensors in, scalar out. Each sums over classes and averages over valid positions."""

from collections.abc import Callable

from torch import Tensor

from edgestill.losses.attention import attention_transfer
from edgestill.losses.features import hint
from edgestill.losses.logits import cross_entropy, kl
from edgestill.losses.multiscale import pyramid
from edgestill.losses.relations import cc, cka, pkt, rkd, sp

Loss = Callable[..., Tensor]

SOFT_LOSSES: dict[str, Loss] = {"kl": kl}
TERM_LOSSES: dict[str, Loss] = {
    "hint": hint,
    "attention_transfer": attention_transfer,
    "sp": sp,
    "rkd": rkd,
    "pkt": pkt,
    "cc": cc,
    "cka": cka,
    "pyramid": pyramid,
}

CHANNEL_FREE = frozenset(
    {
        attention_transfer,
        sp,
        rkd,
        pkt,
        cc,
        cka,
    }
)
"""Losses that pool the channels away or compare samples: student and teacher may differ in width without an aligner."""

__all__ = [
    "CHANNEL_FREE",
    "SOFT_LOSSES",
    "TERM_LOSSES",
    "Loss",
    "attention_transfer",
    "cc",
    "cka",
    "cross_entropy",
    "hint",
    "kl",
    "pkt",
    "pyramid",
    "rkd",
    "sp",
]
