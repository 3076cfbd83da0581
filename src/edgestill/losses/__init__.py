"""Pure loss functions: tensors in, scalar out. Each sums over classes and averages over valid positions."""

from collections.abc import Callable

from torch import Tensor

from edgestill.losses.attention import attention_kl, attention_transfer
from edgestill.losses.attention_relations import attention_relation
from edgestill.losses.contrast import crd, noise_contrast
from edgestill.losses.correlation import dist
from edgestill.losses.decoupled import dkd, nkd
from edgestill.losses.features import cwd, hint, nst
from edgestill.losses.logits import binary_kl, cross_entropy, kl, regression, reverse_kl, standardize
from edgestill.losses.mixtures import jensen_shannon, skewed_kl, skewed_reverse_kl
from edgestill.losses.multiscale import pyramid, review
from edgestill.losses.relations import cc, cka, pkt, rkd, sp
from edgestill.losses.similarities import pair_regression, similarities
from edgestill.losses.sparse import bucketed, drawn_kl

Loss = Callable[..., Tensor]

SOFT_LOSSES: dict[str, Loss] = {
    "kl": kl,
    "reverse_kl": reverse_kl,
    "jensen_shannon": jensen_shannon,
    "skewed_kl": skewed_kl,
    "skewed_reverse_kl": skewed_reverse_kl,
    "dkd": dkd,
    "nkd": nkd,
    "dist": dist,
    "binary_kl": binary_kl,
    "regression": regression,
}
TERM_LOSSES: dict[str, Loss] = {
    "hint": hint,
    "pyramid": pyramid,
    "review": review,
    "attention_transfer": attention_transfer,
    "attention_kl": attention_kl,
    "attention_relation": attention_relation,
    "sp": sp,
    "rkd": rkd,
    "pkt": pkt,
    "cc": cc,
    "cka": cka,
    "crd": crd,
    "nst": nst,
    "cwd": cwd,
}

CHANNEL_FREE = frozenset({attention_transfer, attention_kl, attention_relation, sp, rkd, pkt, cc, cka, nst})
"""Losses that take student and teacher of different widths: they pool channels or heads away, or compare samples."""

ROW_WISE = frozenset(
    {kl, reverse_kl, jensen_shannon, skewed_kl, skewed_reverse_kl, dkd, nkd, binary_kl, regression, cross_entropy}
)
"""Losses over logits that are sums over rows: they can be made a chunk at a time."""

ON_BUCKETS = frozenset({kl, reverse_kl, jensen_shannon, skewed_kl, skewed_reverse_kl})
"""Divergences of two distributions: of some classes and all others as one, each is a lower bound of the whole."""

OF_SAMPLES = frozenset({sp, rkd, pkt, cc, cka, crd})
"""Losses that compare the samples of a batch with each other: of a text, they take the mean of its tokens."""

POOLING = frozenset({rkd, pkt, cc})
"""Losses that begin with the mean of a tap over its positions."""

__all__ = [
    "CHANNEL_FREE",
    "OF_SAMPLES",
    "ON_BUCKETS",
    "POOLING",
    "ROW_WISE",
    "SOFT_LOSSES",
    "TERM_LOSSES",
    "Loss",
    "attention_kl",
    "attention_relation",
    "attention_transfer",
    "binary_kl",
    "bucketed",
    "cc",
    "cka",
    "crd",
    "cross_entropy",
    "cwd",
    "dist",
    "dkd",
    "drawn_kl",
    "hint",
    "jensen_shannon",
    "kl",
    "nkd",
    "noise_contrast",
    "nst",
    "pair_regression",
    "pkt",
    "pyramid",
    "regression",
    "reverse_kl",
    "review",
    "rkd",
    "similarities",
    "skewed_kl",
    "skewed_reverse_kl",
    "sp",
    "standardize",
]
