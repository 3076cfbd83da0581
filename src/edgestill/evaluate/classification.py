"""Classification metrics. Shapes: N samples, B batch, K classes."""

from collections.abc import Callable, Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from edgestill.data.images import Images
from edgestill.models import ImageInput, forward
from edgestill.tasks.images import prepare

Predict = Callable[[NDArray[np.float32]], NDArray[np.float32]]


def predictor(module: nn.Module, device: torch.device) -> Predict:
    """A predict function of a module: normalised inputs [B, C, H, W] -> logits [B, K], in evaluation mode."""
    module.eval()

    def predict(inputs: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.inference_mode():
            logits: NDArray[np.float32] = forward(module, torch.from_numpy(inputs).to(device)).float().cpu().numpy()
        return logits

    return predict


def logits(
    predict: Predict,
    images: Images,
    expected: ImageInput,
    *,
    batch_size: int = 64,
    track: Callable[[Iterable[int], str, int], Iterable[int]] = lambda items, *_: items,
    description: str = "",
) -> NDArray[np.float32]:
    """Logits [N, K] of every image, unaugmented, in order."""
    rows = []
    starts = range(0, len(images.labels), batch_size)
    for start in track(starts, description, len(starts)):
        indices = np.arange(start, min(start + batch_size, len(images.labels)))
        rows.append(predict(inputs(images, indices, expected)))
    return np.concatenate(rows)


def accuracy(rows: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """Share of the labelled rows [N, K] whose largest entry is the label [N]; NaN without any."""
    labelled = labels >= 0
    return float((rows[labelled].argmax(1) == labels[labelled]).mean()) if labelled.any() else float("nan")


def inputs(images: Images, indices: NDArray[np.int64], expected: ImageInput) -> NDArray[np.float32]:
    """The chosen images as a model or artifact takes them: float32 [N, C, H, W]."""
    return np.ascontiguousarray(prepare(torch.from_numpy(images.pixels[indices]), expected).numpy())
