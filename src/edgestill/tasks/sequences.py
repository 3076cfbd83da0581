"""Batches of texts with one answer each: a class, or a number. Shapes: N samples, B batch, T tokens, K classes."""

from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgestill.data.texts import Texts
from edgestill.models import Encoded, TextInput
from edgestill.tasks.samples import Counts


@dataclass(frozen=True, eq=False)
class Sequences:
    """A split of texts. They are split into tokens once for each tokenizer, when a model first needs them."""

    texts: Texts
    _encoded: dict[tuple[str, int], Encoded] = field(default_factory=dict, repr=False)

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

    @property
    def positions(self) -> NDArray[np.int64]:
        return np.ones(len(self), np.int64)

    @property
    def asked(self) -> "Sequences":
        return self

    def at(self, rows: NDArray[np.int64], fingerprint: str) -> "Sequences":
        return replace(self, texts=self.texts.at(rows, fingerprint), _encoded={})

    def batch(
        self,
        indices: NDArray[np.int64],
        epochs: NDArray[np.int64],
        seed: int,
        partners: NDArray[np.int64] | None = None,
    ) -> "Batch":
        return Batch(self, indices)

    def encoded(self, expected: TextInput) -> Encoded:
        """The texts as a model takes them."""
        key = expected.fingerprint, expected.length
        if key not in self._encoded:
            self._encoded[key] = expected.encode(self.texts.texts, self.texts.pairs)
        return self._encoded[key]

    def inputs(self, indices: NDArray[np.int64], expected: TextInput) -> NDArray[np.int64]:
        """int64 [B, inputs, T], padded to the longest of them: a row for each of the model's inputs."""
        encoded = self.encoded(expected)
        return padded(encoded.ids, encoded.starts[indices], encoded.lengths[indices], encoded.types, expected)

    def sizes(self, expected: TextInput) -> NDArray[np.int64]:
        return self.encoded(expected).lengths


def padded(
    ids: NDArray[np.int32],
    starts: NDArray[np.int64],
    lengths: NDArray[np.int64],
    types: NDArray[np.uint8] | None,
    expected: TextInput,
) -> NDArray[np.int64]:
    """Stretches of `ids`, from `starts` [B] on and `lengths` [B] long, as a model's inputs [B, inputs, T]."""
    places = np.arange(int(lengths.max(initial=1)))
    valid = places < lengths[:, None]
    taken = (starts[:, None] + places)[valid]
    rows = np.zeros((len(expected.names), *valid.shape), np.int64)
    for row, name in zip(rows, expected.names, strict=True):
        if name == "input_ids":
            row[:] = expected.padding
            row[valid] = ids[taken]
        elif name == "attention_mask":
            row[:] = valid
        elif types is not None:
            row[valid] = types[taken]
    return np.ascontiguousarray(rows.transpose(1, 0, 2))


@dataclass(frozen=True, eq=False)
class Batch:
    """Some samples of a split. Labels [B] are class numbers, −1 where missing; or numbers [B, 1], with a mask [B] of
    those that are known."""

    samples: Sequences
    indices: NDArray[np.int64]

    @property
    def views(self) -> NDArray[np.int64]:
        return np.zeros(len(self.indices), np.int64)

    @property
    def labels(self) -> Tensor:
        values = self.samples.texts.values
        if values is None:
            return torch.from_numpy(self.samples.labels[self.indices])
        return torch.from_numpy(np.nan_to_num(values[self.indices]))[:, None]

    @property
    def mask(self) -> Tensor | None:
        known = torch.from_numpy(self.samples.labels[self.indices] >= 0)
        return None if self.samples.texts.values is None else known

    def counts(self, expected: TextInput) -> Counts:
        labelled = int((self.samples.labels[self.indices] >= 0).sum())
        count, tokens = len(self.indices), int(self.samples.sizes(expected)[self.indices].sum())
        return Counts(labelled, count, tokens, count)

    def pieces(self, number: int) -> list["Batch"]:
        return [replace(self, indices=part) for part in cut(self.indices, number)]

    def inputs(self, expected: TextInput, where: torch.device) -> dict[str, Tensor]:
        return named(self.samples.inputs(self.indices, expected), expected, where)

    def answers(self, outputs: Tensor) -> Tensor:
        return outputs

    def valid(self, expected: TextInput, where: torch.device) -> Tensor:
        return no_padding(self.samples.sizes(expected)[self.indices], where)


def cut(indices: NDArray[np.int64], number: int) -> list[NDArray[np.int64]]:
    """Nearly equal pieces of a batch, fewer than `number` where it has fewer samples."""
    return np.array_split(indices, min(number, len(indices)))


def named(rows: NDArray[np.int64], expected: TextInput, where: torch.device) -> dict[str, Tensor]:
    """Inputs [B, inputs, T] as a module takes them, on their way to a device while it works."""
    tensor = torch.from_numpy(rows).to(where, non_blocking=True)
    return dict(zip(expected.names, tensor.unbind(1), strict=True))


def no_padding(lengths: NDArray[np.int64], where: torch.device) -> Tensor:
    """Which tokens of texts of such `lengths` [B] are no padding [B, T]."""
    return torch.from_numpy(np.arange(int(lengths.max())) < lengths[:, None]).to(where, non_blocking=True)
