"""What the teacher says about one batch."""

from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class Signal:
    """The teacher's logits [B, C] and whatever was tapped, by tap."""

    logits: Tensor
    taps: dict[str, Tensor] = field(default_factory=dict)
