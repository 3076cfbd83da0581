"""A teacher whose answers were captured before."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from edgestill.signals import Buckets, Draws, Signal
from edgestill.store import Store
from edgestill.tasks.samples import Batch


@dataclass(frozen=True)
class StoredTeacher:
    """Reads what a store holds of a batch's views: `teacher(batch, taps) -> Signal`, and never runs the teacher."""

    store: Store
    device: torch.device

    def __call__(self, batch: Batch, taps: Sequence[str]) -> Signal:
        found = self.store.signal(batch.views, batch.indices, taps)
        if self.device.type == "cpu":
            return found
        return Signal(_on(found.logits, self.device), {path: tap.to(self.device) for path, tap in found.taps.items()})


def _on(logits: Tensor | Buckets | Draws, device: torch.device) -> Tensor | Buckets | Draws:
    if isinstance(logits, Tensor):
        return logits.to(device, non_blocking=True)
    if isinstance(logits, Buckets):
        tails = {temperature: tail.to(device) for temperature, tail in logits.tails.items()}
        return Buckets(logits.ids.to(device), logits.logits.to(device), tails)
    return Draws(logits.ids.to(device), logits.shares.to(device), logits.entropy.to(device), logits.temperature)
