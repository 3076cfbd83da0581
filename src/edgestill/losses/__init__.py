"""Pure loss functions: tensors in, scalar out. Each sums over classes and averages over valid positions."""

from collections.abc import Callable

from torch import Tensor

from edgestill.losses.attention import attention_kl, attention_transfer
from edgestill.losses.contrast import crd, noise_contrast
from edgestill.losses.features import cwd, hint, nst
from edgestill.losses.logits import cross_entropy, kl
from edgestill.losses.multiscale import pyramid, review
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
    "attention_kl": attention_kl,
    "nst": nst,
    "cwd": cwd,
}

CHANNEL_FREE = frozenset(
    {
        attention_transfer,
        sp,
        rkd,
        pkt,
        cc,
        cka,
        attention_kl,
        nst,
    }
)
"""Losses that take student and teacher of different widths: they pool channels or heads away, or compare samples."""

__all__ = [
    "CHANNEL_FREE",
    "SOFT_LOSSES",
    "TERM_LOSSES",
    "Loss",
    "attention_kl",
    "attention_transfer",
    "cc",
    "cka",
    "crd",
    "cross_entropy",
    "cwd",
    "hint",
    "kl",
    "noise_contrast",
    "nst",
    "pkt",
    "pyramid",
    "review",
    "rkd",
    "sp",
]
