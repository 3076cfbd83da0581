"""One split of labelled images, and the pure ways of making a smaller one from it.

Shape suffixes: N samples, B batch, H height, W width, C channels.
"""

import hashlib
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from edgestill.data.views import uniform
from edgestill.errors import UserError

Indices = npt.NDArray[np.int64]

# Streams of `uniform`, apart from those of the views.
_HOLD_OUT, _KEEP_LABELS = 100, 101


class Pixels(Protocol):
    """uint8 [N, H, W, C]: an array, a memory map, or images decoded on demand; C is 1 or 3.

    `pixels[rows]` takes an array of row numbers or a slice and gives uint8 [B, H, W, C] in that order.
    """

    @property
    def shape(self) -> tuple[int, ...]: ...
    def __len__(self) -> int: ...
    def __getitem__(self, rows: Any, /) -> Any: ...


@dataclass(frozen=True, eq=False)
class Images:
    """One split, its samples all of one shape.

    Attributes:
        pixels: uint8 [N, H, W, C].
        labels: int64 [N], the class of each sample; -1 where the label is missing.
        classes: the names of the classes, by label.
        fingerprint: hex of the content (encoded bytes and labels), whatever the paths, the shards or the workers.
        source: what the user named, for messages.
        skipped: the images that were left out because they are broken, each as `row 17 of …`.
    """

    pixels: Pixels
    labels: Indices
    classes: tuple[str, ...]
    fingerprint: str
    source: str
    skipped: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, eq=False)
class Selected:
    """Some rows of other pixels, in a given order, without a copy."""

    pixels: Pixels
    rows: Indices

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.rows), *self.pixels.shape[1:])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: Any, /) -> Any:
        return self.pixels[self.rows[rows]]


def spaced(total: int, count: int) -> Indices:
    """`count` of `total` rows, evenly spaced; all of them where there are fewer.

    >>> spaced(10, 4).tolist()
    [0, 3, 6, 9]
    """
    return np.linspace(0, total - 1, min(count, total)).astype(np.int64)


def subset(images: Images, indices: npt.ArrayLike) -> Images:
    """The samples at `indices` [B], in that order; the pixels are not copied.

    Raises:
        UserError: an index outside 0..N-1.
    """
    rows = np.asarray(indices, dtype=np.int64)
    outside = rows[(rows < 0) | (rows >= len(images))]
    if len(outside):
        raise UserError(f"{images.source} has the samples 0 to {len(images) - 1}; sample {outside[0]} was asked for")
    base = images.pixels if isinstance(images.pixels, Selected) else Selected(images.pixels, np.arange(len(images)))
    return replace(
        images,
        pixels=Selected(base.pixels, base.rows[rows]),
        labels=images.labels[rows],
        fingerprint=_derived(images.fingerprint, rows),
    )


def hold_out(images: Images, share: float, seed: int) -> tuple[Images, Images]:
    """Splits off a share of the labelled samples, the same share of every class: (rest, held).

    Held are round(share · labelled) samples: each class gives the whole part of share · its count, and the classes with
    the largest remainders give one more. Samples without a label stay in the rest. Both keep the order of `images`.

    Raises:
        UserError: a share that leaves either side without labelled samples.

    >>> rest, held = hold_out(images, 0.1, seed=0)  # doctest: +SKIP
    """
    labelled = np.flatnonzero(images.labels >= 0)
    total = round(share * len(labelled))
    if not 0 < total < len(labelled):
        raise UserError(
            f"holding out needs a share between 0 and 1 that leaves labelled samples on both sides; "
            f"a share of {share:g} of the {len(labelled)} labelled samples of {images.source} came"
        )
    ranks, counts = _ranks_within_class(images, seed, _HOLD_OUT)
    quota = np.floor(share * counts).astype(np.int64)
    # Equal remainders must come out equal: rounding hides the last bits of share · count.
    remainder = np.round(share * counts - quota, 9)
    quota[np.argsort(-remainder, kind="stable")[: total - int(quota.sum())]] += 1
    held = np.zeros(len(images), dtype=bool)
    held[labelled] = ranks[labelled] < quota[images.labels[labelled]]
    return subset(images, np.flatnonzero(~held)), subset(images, np.flatnonzero(held))


def keep_labels(images: Images, per_class: int, seed: int) -> Images:
    """The same samples with the labels of `per_class` samples of each class; all other labels become -1.

    Raises:
        UserError: less than one, or more than a class has, with the class and its count.
    """
    if per_class < 1:
        raise UserError(f"keeping labels needs at least 1 a class; {per_class} came")
    ranks, counts = _ranks_within_class(images, seed, _KEEP_LABELS)
    for name, count in zip(images.classes, counts, strict=True):
        if count < per_class:
            raise UserError(
                f"keeping {per_class} labels a class needs as many in every class; "
                f"class {name!r} of {images.source} has {count}"
            )
    labels = np.where((images.labels >= 0) & (ranks < per_class), images.labels, -1)
    return replace(images, labels=labels, fingerprint=_derived(images.fingerprint, labels))


def _ranks_within_class(images: Images, seed: int, stream: int) -> tuple[Indices, Indices]:
    """The place of every sample in a random order of its class [N], and the labelled samples of each class."""
    keys = uniform(seed, 0, np.arange(len(images)), 1, stream=stream)[:, 0]
    ranks = np.zeros(len(images), dtype=np.int64)
    counts = np.zeros(len(images.classes), dtype=np.int64)
    for label in range(len(images.classes)):
        rows = np.flatnonzero(images.labels == label)
        ranks[rows[np.argsort(keys[rows], kind="stable")]] = np.arange(len(rows))
        counts[label] = len(rows)
    return ranks, counts


def _derived(fingerprint: str, change: Indices) -> str:
    digest = hashlib.blake2b(fingerprint.encode(), digest_size=16)
    digest.update(np.ascontiguousarray(change).data)
    return digest.hexdigest()
