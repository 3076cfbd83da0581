"""Views: augmented versions of samples, each a pure function of (seed, epoch, index).

All randomness is counter-based: a number is a hash of (seed, stream, epoch, index, draw), so a row's view does not
depend on what else is in the batch, on its place there, on the number of workers, or on what was drawn before.

Shape suffixes: B batch, H height, W width, C channels.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from edgestill.errors import UserError, closest

Pixels_BHWC = npt.NDArray[np.uint8]

# Streams keep the draws of different uses apart; a view never shares a number with a split or with mixup.
CROP_AND_FLIP, STRONG = 0, 1

# The increment and the two multipliers of splitmix64 (Steele, Lea, Flood 2014, "Fast Splittable Pseudorandom Number
# Generators"), whose finalizer is the hash.
_STEP, _FIRST, _SECOND = (np.uint64(n) for n in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def _hash(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    values = values + _STEP
    values = (values ^ (values >> np.uint64(30))) * _FIRST
    values = (values ^ (values >> np.uint64(27))) * _SECOND
    return values ^ (values >> np.uint64(31))


def _words(numbers: npt.ArrayLike) -> npt.NDArray[np.uint64]:
    # At least one dimension: NumPy wraps around silently in arrays, and warns for scalars.
    return np.atleast_1d(np.asarray(numbers)).astype(np.int64).view(np.uint64)


def uniform(
    seed: int, epoch: int | npt.ArrayLike, indices: npt.ArrayLike, draws: int, *, stream: int = 0
) -> npt.NDArray[np.float64]:
    """Uniform numbers in [0, 1), float64 [B, draws]; row i depends on seed, stream, epoch[i] and indices[i] alone.

    `epoch` is one number or one a row. Draw k is the same however many are asked for. Streams are independent:
    the views use 0 and 1.

    >>> bool((uniform(0, 3, [5, 9], 4)[1] == uniform(0, 3, [9], 4)[0]).all())
    True
    """
    state = _hash(_hash(_words(seed)) ^ _words(stream))
    state = _hash(_hash(state ^ _words(epoch)) ^ _words(indices))
    counters = np.arange(1, draws + 1, dtype=np.uint64) * _STEP
    return (_hash(state[:, None] + counters) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def augment(
    pixels: Pixels_BHWC,
    indices: npt.ArrayLike,
    *,
    seed: int,
    epoch: int | npt.ArrayLike,
    crop: int = 0,
    flip: bool = False,
    policy: str | Callable[..., Pixels_BHWC] = "none",
) -> Pixels_BHWC:
    """The views of a batch, uint8 [B, H, W, C] to uint8 [B, H, W, C].

    In this order: a window of the image's own size, moved by a uniform whole number of pixels in [-crop, crop] down
    and across, zeros where it leaves the image; a horizontal mirror image with probability 1/2; the policy.

    Args:
        pixels: [B, H, W, C]; row b is sample `indices[b]` of the split.
        indices: [B], the samples' places in the split: with seed and epoch, all that a view depends on.
        epoch: one number, or one a row [B].
        crop: the largest shift in pixels; 0 for none.
        policy: "none", "strong" (see `strong`), or a function `policy(pixels, indices, *, seed, epoch)`.

    Raises:
        UserError: unknown policy, or a negative crop.

    >>> augment(np.zeros((2, 8, 8, 1), np.uint8), [0, 1], seed=0, epoch=0, crop=2, flip=True).shape
    (2, 8, 8, 1)
    """
    if crop < 0:
        raise UserError(f"the random crop needs a number of pixels of at least 0; {crop} came")
    if isinstance(policy, str) and policy not in POLICIES:
        raise UserError(
            f"the augmentation policy needs to be one of {', '.join(POLICIES)}; {policy!r} came"
            f"{closest(policy, POLICIES)}"
        )
    if crop or flip:
        height, width = pixels.shape[1:3]
        draws = uniform(seed, epoch, indices, 3, stream=CROP_AND_FLIP)
        shifts = np.floor(draws[:, :2] * (2 * crop + 1)).astype(np.int64) - crop
        down, across = np.arange(height)[None, :], np.arange(width)[None, :]
        if flip:
            across = np.where(draws[:, 2:] < 0.5, width - 1 - across, across)
        pixels = _gather(pixels, (down + shifts[:, :1])[:, :, None], (across + shifts[:, 1:])[:, None, :])
    chosen = POLICIES[policy] if isinstance(policy, str) else policy
    return chosen(pixels, indices, seed=seed, epoch=epoch) if chosen is not None else pixels


def strong(pixels: Pixels_BHWC, indices: npt.ArrayLike, *, seed: int, epoch: int | npt.ArrayLike) -> Pixels_BHWC:
    """One operation an image, drawn from eight with a uniform strength, then one erased square.

    Drawn with equal probability (m is uniform in [-1, 1]; f = 1 + 0.9 m; a grey image's saturation is itself):

    | operation | result |
    |---|---|
    | identity | the image |
    | translate across, down | moved by m · 0.3 · the side, in whole pixels, zeros moving in |
    | shear across, down | a pixel moves by m · 0.3 · its distance from the middle row or column, nearest pixel |
    | brightness | f · p |
    | contrast | mean + f · (p − mean), mean of the image's luma |
    | saturation | luma + f · (p − luma), luma = (77 R + 150 G + 29 B) / 256 |

    With probability 1/2 a square of side uniform in (0, 0.5] of the shorter side, its centre anywhere in the image,
    is set to zero. In the manner of TrivialAugment (Müller, Hutter 2021, arXiv:2103.10158) and Cutout (DeVries,
    Taylor 2017, arXiv:1708.04552), with fewer operations, all of them exact on whole pixels.
    """
    draws = uniform(seed, epoch, indices, 6, stream=STRONG)
    operation = np.floor(draws[:, 0] * 8).astype(np.int64)
    strength = 2 * draws[:, 1] - 1
    view = pixels.copy()
    moved = np.flatnonzero((operation >= 1) & (operation <= 4))
    view[moved] = _move(pixels[moved], operation[moved], 0.3 * strength[moved])
    coloured = np.flatnonzero(operation >= 5)
    view[coloured] = _recolour(pixels[coloured], operation[coloured], 1 + 0.9 * strength[coloured])
    return _erase(view, draws[:, 2:])


POLICIES: dict[str, Callable[..., Pixels_BHWC] | None] = {"none": None, "strong": strong}


def _gather(pixels: Pixels_BHWC, down: npt.NDArray[np.int64], across: npt.NDArray[np.int64]) -> Pixels_BHWC:
    """Each output pixel from (down, across) of its own image, zero outside; both broadcast to [B, H, W]."""
    batch, height, width, channels = pixels.shape
    inside = (down >= 0) & (down < height) & (across >= 0) & (across < width)
    places = (np.clip(down, 0, height - 1) + height * np.arange(batch)[:, None, None]) * width
    places = places + np.clip(across, 0, width - 1)
    gathered: Pixels_BHWC = pixels.reshape(-1, channels).take(places, axis=0)
    gathered *= inside[..., None]
    return gathered


def _move(pixels: Pixels_BHWC, operation: npt.NDArray[np.int64], amount: npt.NDArray[np.float64]) -> Pixels_BHWC:
    """Operations 1 to 4: translate across, down, shear across, down, by `amount` [B] of the side or of the distance."""
    height, width = pixels.shape[1:3]
    down, across = np.arange(height)[None, :, None], np.arange(width)[None, None, :]
    by = [np.where(operation == number, amount, 0.0)[:, None, None] for number in range(1, 5)]
    shift_across = np.rint(by[0] * width + by[2] * (down - (height - 1) / 2)).astype(np.int64)
    shift_down = np.rint(by[1] * height + by[3] * (across - (width - 1) / 2)).astype(np.int64)
    return _gather(pixels, down + shift_down, across + shift_across)


def _recolour(pixels: Pixels_BHWC, operation: npt.NDArray[np.int64], factor: npt.NDArray[np.float64]) -> Pixels_BHWC:
    """Operations 5 to 7: brightness, contrast, saturation: anchor + factor · (pixel − anchor)."""
    weights = np.array([77, 150, 29] if pixels.shape[3] == 3 else [256], dtype=np.int32)
    luma = (pixels.astype(np.int32) * weights).sum(axis=3, keepdims=True)
    # Whole numbers sum exactly in any order, so that the mean cannot depend on the batch's memory layout.
    mean = luma.sum(axis=(1, 2, 3), keepdims=True, dtype=np.int64) / (256 * luma[0].size if len(luma) else 1)
    anchor = np.where(_per_image(operation) == 7, luma.astype(np.float32) / 256, 0).astype(np.float32)
    anchor = np.where(_per_image(operation) == 6, mean.astype(np.float32), anchor)
    result = anchor + _per_image(factor).astype(np.float32) * (pixels - anchor)
    return np.clip(np.rint(result), 0, 255).astype(np.uint8)


def _erase(pixels: Pixels_BHWC, draws: npt.NDArray[np.float64]) -> Pixels_BHWC:
    """Sets one square to zero in about half of the images; draws [B, 4]: whether, side, centre down, centre across."""
    height, width = pixels.shape[1:3]
    side = np.where(draws[:, 0] < 0.5, (1 - draws[:, 1]) * 0.5 * min(height, width), 0.0)
    down = np.abs(np.arange(height)[None, :] + 0.5 - draws[:, 2:3] * height) < side[:, None] / 2
    across = np.abs(np.arange(width)[None, :] + 0.5 - draws[:, 3:4] * width) < side[:, None] / 2
    pixels *= ~(down[:, :, None] & across[:, None, :])[..., None]
    return pixels


def _per_image(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return values[:, None, None, None]
