"""A teacher that answers while the student trains."""

from collections.abc import Sequence

import torch

from edgestill.models import Model, forward, to_device
from edgestill.signals import Signal
from edgestill.taps import record
from edgestill.tasks.samples import Batch


class OnlineTeacher:
    """Calls the teacher on a batch's views: `teacher(batch, taps) -> Signal` in float32, whatever the teacher computes
    in; without gradients, in evaluation mode."""

    def __init__(self, model: Model, device: torch.device, precision: torch.dtype) -> None:
        self.model, self.device, self.precision = model, device, precision
        to_device(model.module, device).eval().requires_grad_(False)

    def __call__(self, batch: Batch, taps: Sequence[str]) -> Signal:
        inputs = batch.inputs(self.model.input, self.device)
        autocast = torch.autocast(self.device.type, self.precision, enabled=self.precision != torch.float32)
        with torch.no_grad(), autocast, record(self.model.module, taps) as recorded:
            logits = batch.answers(forward(self.model.module, inputs))
        return Signal(logits.float(), {tap: value.float() for tap, value in recorded.items()})
