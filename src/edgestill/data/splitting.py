"""The pure ways of making a smaller split from one, and of telling two apart. N samples, B batch."""

import hashlib
from collections.abc import Mapping
from typing import Protocol, Self, TypeVar

import numpy as np
import numpy.typing as npt

from edgestill.data.classes import some
from edgestill.data.views import uniform
from edgestill.errors import UserError, closest

Indices = npt.NDArray[np.int64]

# Streams of `uniform`, apart from those of the views.
_HOLD_OUT, _KEEP_LABELS = 100, 101


class Samples(Protocol):
    """One split, whatever its samples are: see `Images` and `Texts`."""

    @property
    def labels(self) -> npt.NDArray[np.int64]: ...
    @property
    def classes(self) -> tuple[str, ...]: ...
    @property
    def fingerprint(self) -> str: ...
    @property
    def source(self) -> str: ...
    def __len__(self) -> int: ...
    def at(self, rows: Indices, fingerprint: str) -> Self:
        """Some of the samples, under another fingerprint."""


class Relabelled(Samples, Protocol):
    """One split whose labels can be left out."""

    def with_labels(self, labels: Indices, fingerprint: str) -> Self:
        """The same samples with other labels, under another fingerprint."""


Some = TypeVar("Some", bound=Samples)
Labelled = TypeVar("Labelled", bound=Relabelled)


def subset(samples: Some, indices: npt.ArrayLike) -> Some:
    """The samples at `indices` [B], in that order; pixels are not copied.

    Raises:
        UserError: an index outside 0..N-1.
    """
    rows = np.asarray(indices, dtype=np.int64)
    outside = rows[(rows < 0) | (rows >= len(samples))]
    if len(outside):
        raise UserError(f"{samples.source} has the samples 0 to {len(samples) - 1}; sample {outside[0]} was asked for")
    return samples.at(rows, _derived(samples.fingerprint, rows))


def hold_out(samples: Some, share: float, seed: int) -> tuple[Some, Some]:
    """Splits off a share of the labelled samples, the same share of every class: (rest, held).

    Held are round(share · labelled) samples: each class gives the whole part of share · its count, and the classes with
    the largest remainders give one more. Samples without a label stay in the rest. Both keep the order of `samples`.

    Raises:
        UserError: a share that leaves either side without labelled samples.

    >>> rest, held = hold_out(samples, 0.1, seed=0)  # doctest: +SKIP
    """
    labelled = np.flatnonzero(samples.labels >= 0)
    total = round(share * len(labelled))
    if not 0 < total < len(labelled):
        raise UserError(
            f"holding out needs a share between 0 and 1 that leaves labelled samples on both sides; "
            f"a share of {share:g} of the {len(labelled)} labelled samples of {samples.source} came"
        )
    ranks, counts = _ranks_within_class(samples, seed, _HOLD_OUT)
    quota = np.floor(share * counts).astype(np.int64)
    # Equal remainders must come out equal: rounding hides the last bits of share · count.
    remainder = np.round(share * counts - quota, 9)
    quota[np.argsort(-remainder, kind="stable")[: total - int(quota.sum())]] += 1
    held = np.zeros(len(samples), dtype=bool)
    held[labelled] = ranks[labelled] < quota[samples.labels[labelled]]
    return subset(samples, np.flatnonzero(~held)), subset(samples, np.flatnonzero(held))


def keep_labels(samples: Labelled, per_class: int, seed: int) -> Labelled:
    """The same samples with the labels of `per_class` samples of each class; all other labels become -1.

    Raises:
        UserError: less than one, or more than a class has, with the class and its count.
    """
    if per_class < 1:
        raise UserError(f"keeping labels needs at least 1 a class; {per_class} came")
    ranks, counts = _ranks_within_class(samples, seed, _KEEP_LABELS)
    for name, count in zip(samples.classes, counts, strict=True):
        if count < per_class:
            raise UserError(
                f"keeping {per_class} labels a class needs as many in every class; "
                f"class {name!r} of {samples.source} has {count}"
            )
    labels = np.where((samples.labels >= 0) & (ranks < per_class), samples.labels, -1)
    return samples.with_labels(labels, _derived(samples.fingerprint, labels))


def _ranks_within_class(samples: Samples, seed: int, stream: int) -> tuple[Indices, Indices]:
    """The place of every sample in a random order of its class [N], and the labelled samples of each class."""
    keys = uniform(seed, 0, np.arange(len(samples)), 1, stream=stream)[:, 0]
    ranks = np.zeros(len(samples), dtype=np.int64)
    counts = np.zeros(len(samples.classes), dtype=np.int64)
    for label in range(len(samples.classes)):
        rows = np.flatnonzero(samples.labels == label)
        ranks[rows[np.argsort(keys[rows], kind="stable")]] = np.arange(len(rows))
        counts[label] = len(rows)
    return ranks, counts


def check_apart(splits: Mapping[str, Samples]) -> None:
    """UserError where a split is measured on that is the training split over again, or that has a class of which no
    training sample is labelled, where others are."""
    train = splits["train"]
    known = np.bincount(train.labels[train.labels >= 0], minlength=len(train.classes)) > 0
    for first, second in (("train", "test"), ("train", "validation"), ("validation", "test")):
        if first in splits and second in splits and splits[first].fingerprint == splits[second].fingerprint:
            raise UserError(
                f"data: the splits need to differ; {first} and {second} are the same {len(splits[first])} samples "
                f"({splits[second].source}): name another {second} split"
            )
    for name, samples in splits.items():
        present = np.unique(samples.labels[samples.labels >= 0])
        lacking = [samples.classes[label] for label in present if not known[label]]
        if lacking and known.any():
            seen = [other for other, labelled in zip(train.classes, known, strict=True) if labelled]
            meant = "" if lacking[0].isdigit() else closest(lacking[0], seen)
            raise UserError(
                f"data: the {name} split ({samples.source}) has samples of the class {some(lacking)}, and none is "
                f"labelled so in the training split: label some in {train.source}, or leave these out{meant}"
            )


def _derived(fingerprint: str, change: Indices) -> str:
    digest = hashlib.blake2b(fingerprint.encode(), digest_size=16)
    digest.update(np.ascontiguousarray(change).data)
    return digest.hexdigest()
