"""Batches of images. Shapes: B batch, C channels, H height, W width, K classes."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from edgestill.data.images import Images, spaced
from edgestill.data.views import augment, uniform
from edgestill.models import ImageInput
from edgestill.tasks.samples import Counts

_MIXUP = 2  # the stream of `uniform` that mixup draws from; the views use others


@dataclass(frozen=True)
class Views:
    """How training images are augmented."""

    crop: int = 0
    flip: bool = False
    policy: str = "none"
    mixup: float = 0.0


@dataclass(frozen=True)
class Batch:
    """Views of samples: pixels uint8 or, when mixed, float32 in 0…255 [B, H, W, C]; labels [B], −1 where missing, or
    with mixup probabilities [B, K] and a mask [B] of those that have a label."""

    pixels: Tensor
    labels: Tensor
    indices: NDArray[np.int64]
    views: NDArray[np.int64]
    mask: Tensor | None = None

    def counts(self, expected: ImageInput) -> Counts:
        labelled = self.labels >= 0 if self.mask is None else self.mask
        count = len(self.indices)
        return Counts(int(labelled.sum()), count, count, count)

    def pieces(self, number: int) -> list["Batch"]:
        """The batch in `number` nearly equal pieces, fewer where it has fewer samples."""
        cuts = np.array_split(np.arange(len(self.indices)), min(number, len(self.indices)))
        return [
            Batch(
                self.pixels[cut],
                self.labels[cut],
                self.indices[cut],
                self.views[cut],
                None if self.mask is None else self.mask[cut],
            )
            for cut in cuts
        ]

    def inputs(self, expected: ImageInput, where: torch.device) -> Tensor:
        return prepare(self.pixels.to(where, non_blocking=True), expected)

    def answers(self, outputs: Tensor) -> Tensor:
        return outputs

    def valid(self, expected: ImageInput, where: torch.device) -> None:
        """Images have no padding."""


@dataclass(frozen=True, eq=False)
class ImageSamples:
    """A split of images, with the views that its batches come in."""

    images: Images
    views: Views = Views()

    @property
    def labels(self) -> NDArray[np.int64]:
        return self.images.labels

    @property
    def classes(self) -> tuple[str, ...]:
        return self.images.classes

    @property
    def fingerprint(self) -> str:
        return self.images.fingerprint

    @property
    def source(self) -> str:
        return self.images.source

    def __len__(self) -> int:
        return len(self.images)

    @property
    def positions(self) -> NDArray[np.int64]:
        return np.ones(len(self), np.int64)

    @property
    def asked(self) -> "ImageSamples":
        return self

    def at(self, rows: NDArray[np.int64], fingerprint: str) -> "ImageSamples":
        return replace(self, images=self.images.at(rows, fingerprint))

    def batch(
        self, indices: NDArray[np.int64], epochs: NDArray[np.int64], seed: int, partners: NDArray[np.int64] | None
    ) -> Batch:
        return batch(self.images, indices, epochs, self.views, seed, partners)

    def inputs(self, indices: NDArray[np.int64], expected: ImageInput) -> NDArray[np.float32]:
        """float32 [B, C, H, W], normalised."""
        return np.ascontiguousarray(prepare(torch.from_numpy(self.images.pixels[indices]), expected).numpy())

    def sizes(self, expected: ImageInput) -> NDArray[np.int64]:
        return np.zeros(len(self), np.int64)


def batch(
    images: Images,
    indices: NDArray[np.int64],
    epochs: NDArray[np.int64],
    views: Views,
    seed: int,
    partners: NDArray[np.int64] | None = None,
) -> Batch:
    """The views of `indices` [B] in `epochs` [B]: a pure function of (seed, epoch, index) row by row.

    Mixup draws from `partners`, all samples unless given.
    """
    pixels = _view(images, indices, epochs, views, seed)
    labels = torch.from_numpy(images.labels[indices])
    if not views.mixup:
        return Batch(torch.from_numpy(pixels), labels, indices, epochs)
    pool = np.arange(len(images.labels)) if partners is None else partners
    return _mix(images, indices, epochs, views, seed, pixels, pool)


def _view(
    images: Images, indices: NDArray[np.int64], epochs: NDArray[np.int64], views: Views, seed: int
) -> NDArray[np.uint8]:
    return augment(
        images.pixels[indices], indices, seed=seed, epoch=epochs, crop=views.crop, flip=views.flip, policy=views.policy
    )


def _mix(
    images: Images,
    indices: NDArray[np.int64],
    epochs: NDArray[np.int64],
    views: Views,
    seed: int,
    pixels: NDArray[np.uint8],
    pool: NDArray[np.int64],
) -> Batch:
    """Mixup (Zhang et al. 2018, arXiv 1710.09412): partner and share are drawn from (seed, epoch, index)."""
    from scipy.stats import beta

    draws = uniform(seed, epochs, indices, 2, stream=_MIXUP)
    partners = pool[(draws[:, 0] * len(pool)).astype(np.int64)]
    labelled_pool = pool[images.labels[pool] >= 0]
    if len(labelled_pool):  # a labelled sample gets a labelled partner, or few labels would be left to learn from
        labelled = images.labels[indices] >= 0
        partners[labelled] = labelled_pool[(draws[labelled, 0] * len(labelled_pool)).astype(np.int64)]
    share = torch.from_numpy(beta.ppf(draws[:, 1], views.mixup, views.mixup).astype(np.float32))
    others = torch.from_numpy(_view(images, partners, epochs, views, seed))
    weight = share[:, None, None, None]
    mixed = torch.from_numpy(pixels).float() * weight + others.float() * (1 - weight)
    own, other = torch.from_numpy(images.labels[indices]), torch.from_numpy(images.labels[partners])
    count = len(images.classes)
    hot = [functional.one_hot(labels.clamp(min=0), count).float() for labels in (own, other)]
    labels = hot[0] * share[:, None] + hot[1] * (1 - share[:, None])
    return Batch(mixed, labels, indices, epochs, mask=(own >= 0) & (other >= 0))


def prepare(pixels: Tensor, expected: ImageInput) -> Tensor:
    """Pixels 0…255 [B, H, W, C] as the model expects them: float32 [B, C', size, size], channels-last in memory."""
    mean, std = (torch.tensor(values, device=pixels.device) for values in (expected.mean, expected.std))
    images = (pixels - 255 * mean) / (255 * std)
    images = images.permute(0, 3, 1, 2).expand(-1, expected.channels, -1, -1)  # one grey channel spreads over three
    if images.shape[2:] != (expected.size, expected.size):
        images = functional.interpolate(images, (expected.size, expected.size), mode="bilinear", antialias=True)
    return images.contiguous(memory_format=torch.channels_last)


def statistics(images: Images, limit: int = 5000) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation a channel, of pixels in 0…1, over `limit` images, evenly spaced."""
    pixels = np.asarray(images.pixels[spaced(len(images.labels), limit)], dtype=np.float64) / 255
    mean, std = pixels.mean((0, 1, 2)), pixels.std((0, 1, 2))
    return tuple(mean.round(4).tolist()), tuple(np.maximum(std.round(4), 1e-3).tolist())
