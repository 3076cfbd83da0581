"""What a task is measured by: answers of a model or an artifact on a split -> scores. N samples."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from edgestill.models import Expected, as_inputs, forward
from edgestill.tasks.samples import Samples

Predict = Callable[[NDArray[Any]], NDArray[np.float32]]
Track = Callable[[Iterable[int], str, int], Iterable[int]]


@dataclass(frozen=True)
class Metric:
    """A measure of quality.

    Attributes:
        reduce: what is kept of a model's outputs on some samples, (outputs [B, …], samples, indices [B]) -> [B, …].
        quality: of what was kept of all samples, (kept [N, …], samples) -> a number.
        scores: each sample's part of the quality, whose mean it is [N], NaN where the sample has no label; None for a
            measure that is no mean.
        losses: by which samples are ranked from easy to hard [N].
        batch: samples a call, unless told.
        joined: what is kept of the samples, where a model was asked for something else: see `Samples.asked`.
    """

    name: str
    reduce: Callable[[NDArray[np.float32], Any, NDArray[np.int64]], NDArray[np.float32]]
    quality: Callable[[NDArray[np.float32], Any], float]
    scores: Callable[[NDArray[np.float32], Any], NDArray[np.float64]] | None
    losses: Callable[[NDArray[np.float32], Any], NDArray[np.float64]]
    higher_is_better: bool = True
    batch: int = 64
    joined: Callable[[NDArray[np.float32], Any], NDArray[np.float32]] = lambda kept, _samples: kept

    def answers(
        self,
        predict: Predict,
        samples: Samples,
        expected: Expected,
        *,
        batch: int | None = None,
        track: Track = lambda items, *_: items,
        description: str = "",
    ) -> NDArray[np.float32]:
        """What is kept of a predict function's outputs on every sample, without augmentation, in order."""
        asked = samples.asked
        count, size = len(asked), batch or self.batch
        order = np.argsort(asked.sizes(expected), kind="stable")  # those of one length together: less is padding
        kept: NDArray[np.float32] | None = None
        starts = range(0, count, size)
        for start in track(starts, description, len(starts)):
            rows = order[start : start + size]
            part = self.reduce(predict(asked.inputs(rows, expected)), samples, rows)
            kept = np.empty((count, *part.shape[1:]), part.dtype) if kept is None else kept
            kept[rows] = part
        assert kept is not None
        return self.joined(kept, samples)


def predictor(module: nn.Module, expected: Expected, device: torch.device) -> Predict:
    """A predict function of a module, in evaluation mode: what `Samples.inputs` makes -> its outputs in float32."""
    module.eval()

    def predict(inputs: NDArray[Any]) -> NDArray[np.float32]:
        with torch.inference_mode():
            outputs = forward(module, as_inputs(inputs, expected, device))
        numbers: NDArray[np.float32] = outputs.float().cpu().numpy()
        return numbers

    return predict
