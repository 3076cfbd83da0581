"""Batches of texts with an answer for each token: the next one. Shapes: N blocks, B batch, T tokens, V vocabulary."""

import json
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgestill.data.texts import Texts
from edgestill.models import TextInput
from edgestill.tasks.samples import Counts
from edgestill.tasks.sequences import cut, named, no_padding, padded


@dataclass(frozen=True, eq=False)
class Blocks:
    """A split as blocks of tokens.

    Attributes:
        ids: int32, all tokens one after another; block i is `ids[starts[i] : ends[i]]`, and what it learns are its
            tokens but the first.
        sizes_in_bytes: int64 beside the ids: the bytes of UTF-8 that each token stands for.
        learned: which tokens are learned, beside the ids; None for all.
        vocabulary: ids that teacher and student share: the logits behind them are left out.
        longer: of which blocks the text was longer and lost its end; None for none.
        unanswered: how many texts have no block, for nothing of them is left to learn.
    """

    ids: NDArray[np.int32]
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]
    sizes_in_bytes: NDArray[np.int64]
    fingerprint: str
    source: str
    learned: NDArray[np.bool_] | None = None
    vocabulary: int | None = None
    longer: NDArray[np.bool_] | None = None
    unanswered: int = 0

    @property
    def labels(self) -> NDArray[np.int64]:
        return np.zeros(len(self.starts), np.int64)

    @property
    def classes(self) -> tuple[str, ...]:
        return ("text",)

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def positions(self) -> NDArray[np.int64]:
        learned = np.ones(len(self.ids), bool) if self.learned is None else self.learned
        upto = np.concatenate([[0], np.cumsum(learned, dtype=np.int64)])
        found: NDArray[np.int64] = upto[self.ends] - upto[self.starts + 1]
        return found

    @property
    def cut(self) -> int:
        """How many of the blocks lost their text's end."""
        return 0 if self.longer is None else int(self.longer.sum())

    @property
    def asked(self) -> "Blocks":
        return self

    def at(self, rows: NDArray[np.int64], fingerprint: str) -> "Blocks":
        longer = None if self.longer is None else self.longer[rows]
        starts, ends = self.starts[rows], self.ends[rows]
        return replace(self, starts=starts, ends=ends, longer=longer, unanswered=0, fingerprint=fingerprint)

    def batch(
        self,
        indices: NDArray[np.int64],
        epochs: NDArray[np.int64],
        seed: int,
        partners: NDArray[np.int64] | None = None,
    ) -> "Batch":
        return Batch(self, indices)

    def inputs(self, indices: NDArray[np.int64], expected: TextInput) -> NDArray[np.int64]:
        """int64 [B, inputs, T], padded to the longest of them: a row for each of the model's inputs."""
        starts = self.starts[indices]
        return padded(self.ids, starts, self.ends[indices] - 1 - starts, None, expected)

    def sizes(self, expected: TextInput) -> NDArray[np.int64]:
        return self.ends - 1 - self.starts

    def targets(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """The next token of each token of `inputs` [B, T], −1 where none is learned."""
        lengths = self.ends[indices] - 1 - self.starts[indices]
        places = np.arange(int(lengths.max(initial=1)))
        valid = places < lengths[:, None]
        following = np.where(valid, self.starts[indices][:, None] + places + 1, 0)
        if self.learned is not None:
            valid &= self.learned[following]
        return np.where(valid, self.ids[following], -1).astype(np.int64)

    @property
    def bytes(self) -> NDArray[np.int64]:
        """Of what each block learns [N]."""
        sizes = self.sizes_in_bytes if self.learned is None else np.where(self.learned, self.sizes_in_bytes, 0)
        total = np.concatenate([[0], np.cumsum(sizes)])
        found: NDArray[np.int64] = total[self.ends] - total[self.starts + 1]
        return found


def packed(texts: Texts, expected: TextInput) -> Blocks:
    """All texts one after another, a separator before each and at the end, cut into blocks of the model's length; the
    last token of a block is the first of the next."""
    tokenizer = expected.tokenizer
    between = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.bos_token_id
    rows, sizes = expected.plain(texts.texts)
    separator = np.asarray([] if between is None else [between], np.int32)
    none = np.zeros(len(separator), np.int64)
    ids = np.concatenate([part for row in rows for part in (separator, row)] + [separator])
    in_bytes = np.concatenate([part for size in sizes for part in (none, size)] + [none])
    starts = np.arange(0, max(len(ids) - 1, 0), expected.length)
    ends = np.minimum(starts + expected.length + 1, len(ids))
    return Blocks(ids, starts, ends, in_bytes, texts.fingerprint, texts.source)


def conversations(texts: Texts, expected: TextInput) -> Blocks:
    """A block for each conversation, of which the assistant's answers are learned; cut to the model's length. One whose
    answers all lie behind that is left out, and counted as unanswered."""
    rows, sizes, longer = [], [], []
    for text in texts.texts:
        ids, in_bytes = expected.conversation(json.loads(text))
        if any(size >= 0 for size in in_bytes[1 : expected.length + 1]):
            rows.append(np.asarray(ids[: expected.length + 1], np.int32))
            sizes.append(np.asarray(in_bytes[: expected.length + 1], np.int64))
            longer.append(len(ids) > expected.length + 1)
    ends = np.cumsum([len(row) for row in rows], dtype=np.int64)
    ids_of_all = np.concatenate(rows) if rows else np.zeros(0, np.int32)
    in_bytes_of_all = np.concatenate(sizes) if sizes else np.zeros(0, np.int64)
    starts = np.concatenate([[0], ends[:-1]]).astype(np.int64) if rows else ends
    return Blocks(
        ids_of_all, starts, ends, np.maximum(in_bytes_of_all, 0), texts.fingerprint, texts.source,
        learned=in_bytes_of_all >= 0, longer=np.asarray(longer, bool), unanswered=len(texts) - len(rows),
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Batch:
    """Some blocks of a split. Labels are the tokens that are learned, one after another."""

    samples: Blocks
    indices: NDArray[np.int64]
    mask: None = None

    @property
    def views(self) -> NDArray[np.int64]:
        return np.zeros(len(self.indices), np.int64)

    @cached_property
    def targets(self) -> NDArray[np.int64]:
        """Asked for by labels and counts, and by the answers of student and teacher."""
        return self.samples.targets(self.indices)

    @property
    def labels(self) -> Tensor:
        return torch.from_numpy(self.targets[self.targets >= 0])

    def counts(self, expected: TextInput) -> Counts:
        learned = int((self.targets >= 0).sum())
        tokens = int(self.samples.sizes(expected)[self.indices].sum())
        return Counts(learned, learned, tokens, len(self.indices))

    def pieces(self, number: int) -> list["Batch"]:
        return [replace(self, indices=part) for part in cut(self.indices, number)]

    def inputs(self, expected: TextInput, where: torch.device) -> dict[str, Tensor]:
        return named(self.samples.inputs(self.indices, expected), expected, where)

    def answers(self, outputs: Tensor) -> Tensor:
        """[B, T, V] -> the positions that are learned, with the ids that teacher and student share."""
        flat = outputs[..., : self.samples.vocabulary].flatten(0, 1)
        learned = self.targets.ravel() >= 0
        if learned.all():
            return flat
        return flat.index_select(0, torch.from_numpy(np.flatnonzero(learned)).to(flat.device, non_blocking=True))

    def valid(self, expected: TextInput, where: torch.device) -> Tensor:
        return no_padding(self.samples.sizes(expected)[self.indices], where)
