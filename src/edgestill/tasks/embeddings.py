"""Batches of texts that are embedded: a sample is one text, or a pair and how alike the two are.

Shapes: N texts, B samples, T tokens, D width.
"""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgestill.data.texts import Texts
from edgestill.losses import similarities
from edgestill.models import TextInput
from edgestill.tasks.samples import Counts
from edgestill.tasks.sequences import Sequences, cut, named, no_padding


@dataclass(frozen=True, eq=False)
class Embeddings:
    """A split of texts, or of pairs of them. Labels are −1 where a sample is no pair with a number.

    Attributes:
        span: the least and the largest number of the training split, which are learned as the cosines 0 and 1.
    """

    texts: Texts
    span: tuple[float, float] = (0.0, 1.0)

    @property
    def labels(self) -> NDArray[np.int64]:
        return self.texts.labels

    @property
    def classes(self) -> tuple[str, ...]:
        return self.texts.classes

    @property
    def fingerprint(self) -> str:
        return self.texts.fingerprint

    @property
    def source(self) -> str:
        return self.texts.source

    def __len__(self) -> int:
        return len(self.texts)

    def at(self, rows: NDArray[np.int64], fingerprint: str) -> "Embeddings":
        return replace(self, texts=self.texts.at(rows, fingerprint))

    def batch(
        self,
        indices: NDArray[np.int64],
        epochs: NDArray[np.int64],
        seed: int,
        partners: NDArray[np.int64] | None = None,
    ) -> "Batch":
        return Batch(self, indices)

    @property
    def cosines(self) -> NDArray[np.float32]:
        """The labels as cosines [B], NaN where missing."""
        low, high = self.span
        assert self.texts.values is not None
        return (self.texts.values - np.float32(low)) / np.float32(high - low)

    @cached_property
    def _different(self) -> tuple[list[str], NDArray[np.int64]]:
        """Each different text once, and which of them each sample is of [B, 1 or 2]."""
        places: dict[str, int] = {}
        rows = [[places.setdefault(text, len(places)) for text in both] for both in self.texts.both]
        return list(places), np.asarray(rows, np.int64)

    @property
    def places(self) -> NDArray[np.int64]:
        """Which of the texts that are `asked` each sample is of [B, 1 or 2]."""
        return self._different[1]

    @property
    def positions(self) -> NDArray[np.int64]:
        return np.ones(len(self), np.int64)

    @cached_property
    def asked(self) -> Sequences:
        """Each different text once: what stands in many pairs is embedded once."""
        texts, _ = self._different
        none = np.full(len(texts), -1, np.int64)
        return Sequences(replace(self.texts, texts=texts, pairs=None, labels=none, values=None))


@dataclass(frozen=True, eq=False)
class Batch:
    """Some samples of a split: of B pairs the first texts, and behind them the second ones. Labels [B] are cosines,
    with a mask of those that are known."""

    samples: Embeddings
    indices: NDArray[np.int64]

    @property
    def views(self) -> NDArray[np.int64]:
        return np.zeros(len(self.indices), np.int64)

    @property
    def _rows(self) -> NDArray[np.int64]:
        return self.samples.places[self.indices].T.ravel()

    @property
    def labels(self) -> Tensor:
        return torch.from_numpy(np.nan_to_num(self.samples.cosines[self.indices]))

    @property
    def mask(self) -> Tensor:
        return torch.from_numpy(self.samples.labels[self.indices] >= 0)

    def counts(self, expected: TextInput) -> Counts:
        """Positions are texts, samples what was drawn: never divisors, for a batch is always whole."""
        rows, labelled = self._rows, int((self.samples.labels[self.indices] >= 0).sum())
        return Counts(labelled, len(rows), int(self.samples.asked.sizes(expected)[rows].sum()), len(self.indices))

    def pieces(self, number: int) -> list["Batch"]:
        return [replace(self, indices=part) for part in cut(self.indices, number)]

    def inputs(self, expected: TextInput, where: torch.device) -> dict[str, Tensor]:
        return named(self.samples.asked.inputs(self._rows, expected), expected, where)

    def answers(self, outputs: Tensor) -> Tensor:
        """Embeddings [N, D] -> the cosine of each text to all the others [N, N − 1]."""
        return similarities(outputs)

    def valid(self, expected: TextInput, where: torch.device) -> Tensor:
        return no_padding(self.samples.asked.sizes(expected)[self._rows], where)
