"""What the teacher says about one batch. Shapes: N positions, C classes, K kept."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Buckets:
    """Of each position the K most probable classes, and all others as one bucket.

    Attributes:
        ids: int64 [N, K].
        logits: [N, K], less the greatest of the position.
        tails: `log Σ exp(logit / T)` over all other classes [N], of the same logits, by temperature T.
    """

    ids: Tensor
    logits: Tensor
    tails: Mapping[float, Tensor]

    def __getitem__(self, rows: slice) -> "Buckets":
        return Buckets(self.ids[rows], self.logits[rows], {one: tail[rows] for one, tail in self.tails.items()})

    def at(self, temperature: float) -> Tensor:
        """Logits [N, K + 1] whose softmax at a temperature is that of all classes, the others added up."""
        return torch.cat([self.logits, temperature * self.tails[temperature].unsqueeze(-1)], -1)


@dataclass(frozen=True)
class Draws:
    """Of each position classes that were drawn by the teacher's probabilities at one temperature.

    Attributes:
        ids: int64 [N, K]; where a position has fewer different ones, 0 with a share of 0.
        shares: how often each was drawn, as shares of the position's draws [N, K].
        entropy: of all classes' probabilities [N], in nats.
    """

    ids: Tensor
    shares: Tensor
    entropy: Tensor
    temperature: float

    def __getitem__(self, rows: slice) -> "Draws":
        return Draws(self.ids[rows], self.shares[rows], self.entropy[rows], self.temperature)


@dataclass(frozen=True)
class Signal:
    """The teacher's logits [N, C], or what a store keeps of them, and whatever was tapped, by tap."""

    logits: Tensor | Buckets | Draws
    taps: dict[str, Tensor] = field(default_factory=dict)
