"""A store: what a teacher said of every view of every sample, in a folder. Shapes: N samples, B batch.

    store.json       what the signals are of and how they are kept, and the checksums: `Description`
    store.copy.json  the same, for where it is damaged
    shards/00000.arrow …

Row `view·N + sample` holds the signal of a view of a sample; a record batch holds `rows` of them.
"""

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edgestill.errors import UserError, first_line
from edgestill.folder import write_text
from edgestill.signals import Buckets, Draws, Signal
from edgestill.store.codecs import Codec, Column, Columns, described, read_codec
from edgestill.store.shards import Numbers, Piece, Shard, numbers
from edgestill.store.taps import Tap

STORE, COPY, SHARDS = "store.json", "store.copy.json", "shards"
VERSION = 2
"""1 said its teacher's code and options in one fingerprint, which a comment in the file changed."""
WIDE = 2**12
"""Numbers of a row from which on rows are read one by one."""


@dataclass(frozen=True)
class Views:
    """Which views the signals are of: `count` a sample, of a seed, made as `how` says."""

    count: int = 1
    seed: int = 0
    how: str = "none"


@dataclass(frozen=True)
class Description:
    """What a store is of, and how it is cut.

    Attributes:
        teacher: fingerprint of the teacher's weights, and what it computed in.
        input: what it was given: the normalisation, or the tokenizer with the length of a text.
        data: fingerprint of the training samples.
        samples, positions: N, and how many answers a view of all of them has.
        classes: C, or the size of the vocabulary.
        taps: what is kept of the teacher's taps.
        batch: samples a forward pass.
        rows: rows a record batch, whole forward passes.
        batches: record batches a shard.
        configuration: fingerprint of the teacher's options, classes and configuration; empty in a store of version 1.
    """

    teacher: str
    input: str
    data: str
    samples: int
    positions: int
    classes: int
    views: Views
    codec: Codec
    taps: tuple[Tap, ...]
    batch: int
    rows: int
    batches: int
    configuration: str = ""

    @property
    def total(self) -> int:
        """Rows of the store."""
        return self.samples * self.views.count

    @property
    def shards(self) -> int:
        return -(-self.total // (self.rows * self.batches))

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"codec": described(self.codec)}

    @staticmethod
    def from_json(said: dict[str, Any]) -> "Description":
        taps = tuple(Tap(**one | {"shape": tuple(one["shape"])}) for one in said["taps"])
        return Description(**said | {"views": Views(**said["views"]), "codec": read_codec(said["codec"]), "taps": taps})

    def columns(self) -> list[Column]:
        """Those of the codec, and of the taps."""
        return [*self.codec.columns(self.classes), *(column for tap in self.taps for column in tap.columns())]


def shard_path(folder: Path, number: int) -> Path:
    return folder / SHARDS / f"{number:05}.arrow"


def write_store(folder: Path, description: Description, pieces: list[list[Piece]] | None) -> None:
    """store.json; without `pieces` that of a store that is still captured."""
    said = {"version": VERSION, "complete": pieces is not None, **description.to_json(), "pieces": pieces or []}
    head = json.dumps(said | {"checksum": _checksum(said), "pieces": []}, indent=1)
    lines = ",\n".join(f"  {json.dumps(shard)}" for shard in pieces or [])  # a line a shard
    text = head.replace('"pieces": []', f'"pieces": [\n{lines}\n ]') + "\n"
    for name in (STORE, COPY):
        write_whole(folder / name, text)


def write_whole(path: Path, text: str) -> None:
    """UserError where the disk does not take it."""
    try:
        write_text(path, text)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}; the same command goes on") from error


def _checksum(said: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(said, sort_keys=True).encode())


def read_store(folder: Path, name: str = STORE) -> tuple[Description, list[list[Piece]] | None]:
    """What store.json says; None in place of the pieces where the capture has not ended. UserError for what is not
    one, or is damaged."""
    path = folder / name
    if not path.is_file():
        raise UserError(f"{folder} is no store: it has no {name}; `edgestill capture` makes one")
    copied = name == STORE and (folder / COPY).is_file()
    remedy = "`edgestill capture` into the store mends it" if copied else "remove the folder, and capture it again"
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        checksum = said.pop("checksum")
        whole = checksum == _checksum(said)
        version = said.pop("version")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged: {first_line(error)}; {remedy}") from error
    if not whole:
        raise UserError(f"{path} is damaged: its checksum is another; {remedy}")
    if version not in (1, VERSION):
        raise UserError(f"{path} is of version {version}; this edgestill reads 1 and {VERSION}: capture it again")
    complete, pieces = said.pop("complete"), said.pop("pieces")
    try:
        if version == 1:
            weights, _, computed = said["teacher"].partition(" ")
            said["teacher"] = f"{weights} {computed.partition(' ')[2]}"  # without the fingerprint of its code
        description = Description.from_json(said)
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not as this edgestill writes it: {first_line(error)}; capture it again") from error
    return description, [[Piece(*one) for one in shard] for shard in pieces] if complete else None


def mend_store(folder: Path) -> None:
    """Puts the copy of store.json in its place, where that is damaged or gone. UserError where the copy is, too."""
    if not (folder / COPY).is_file():
        return
    try:
        read_store(folder)
    except UserError:
        read_store(folder, COPY)
        write_whole(folder / STORE, (folder / COPY).read_text(encoding="utf-8"))


def refuse_other(folder: Path, found: Description, expected: Mapping[str, Any]) -> None:
    """UserError, with both values, where a store is not of what is expected: a description's fields, or some."""
    have = found.to_json()
    for key, need in expected.items():
        unsaid = key == "configuration" and not have[key]
        if have[key] != need and not unsaid:
            raise UserError(
                f"the store {folder} has another {key}: {have[key]}, where the recipe has {need}; capture one "
                "for this recipe, or train with what it was captured with"
            )


@dataclass(eq=False)
class Store:
    """A store to read from."""

    folder: Path
    description: Description
    pieces: list[list[Piece]]
    _shards: dict[int, Shard] = field(default_factory=dict)
    _batches: dict[int, dict[str, Numbers]] = field(default_factory=dict)

    @staticmethod
    def open(folder: Path) -> "Store":
        """UserError for what is no store, or was not captured to its end."""
        description, pieces = read_store(folder)
        if pieces is None:
            raise UserError(f"the store {folder} is not captured to its end: `edgestill capture` goes on with it")
        return Store(folder, description, pieces)

    def signal(self, views: NDArray[np.int64], samples: NDArray[np.int64], taps: Sequence[str] = ()) -> Signal:
        """What the teacher said of views [B] of samples [B], position by position, and some of its taps. UserError for
        a damaged batch."""
        of = self.description
        kept = [tap for tap in of.taps if tap.path in taps]
        wanted = [*of.codec.columns(of.classes), *(column for tap in kept for column in tap.columns())]
        columns = self.read(views * of.samples + samples, [column.name for column in wanted])
        last = int(columns["ids"].max(initial=0)) if "ids" in columns else 0
        if last >= of.classes:
            raise UserError(
                f"the store {self.folder} has drawn the class {last} of {of.classes}: its teacher's answer was not "
                "finite; capture one of a teacher that answers"
            )
        return Signal(of.codec.decode(columns, of.classes), {tap.path: tap.decode(columns) for tap in kept})

    def read(self, rows: NDArray[np.int64], names: list[str]) -> Columns:
        """The numbers of rows in columns, row by row, one after another."""
        where, places = np.divmod(rows, self.description.rows)
        wanted, of = np.unique(where, return_inverse=True)
        order = np.argsort(of, kind="stable")
        ends = np.searchsorted(of[order], np.arange(len(wanted) + 1))
        found: Columns = {}
        for name in names:
            parts = [self._batch(int(number))[name] for number in wanted]
            widths = {part.values.shape[-1] if part.starts is None else -1 for part in parts}
            if len(widths) == 1 and -1 not in widths:
                out = np.empty((len(rows), widths.pop()), parts[0].values.dtype)
                if out.shape[1] > WIDE:  # without a copy of what is chosen
                    for row, number in enumerate(of):
                        out[row] = parts[number].values[places[row]]
                else:
                    for number, part in enumerate(parts):
                        chosen = order[ends[number] : ends[number + 1]]
                        out[chosen] = part.values[places[chosen]]
                found[name] = out.ravel()
            else:
                pieces = [parts[number].of(places[row : row + 1]) for row, number in enumerate(of)]
                found[name] = np.concatenate(pieces)
        return found

    def losses(self) -> NDArray[np.float64]:
        """The teacher's own loss on each sample, the mean over its views [N]."""
        everything = np.arange(self.description.total)
        found = self.read(everything, ["loss"])["loss"].astype(np.float64)
        return np.asarray(found.reshape(self.description.views.count, -1).mean(0))

    def likeliest(self) -> NDArray[np.int64]:
        """The class that the teacher finds most probable in the first view of each sample [N], of samples with one
        position; of drawn classes the one that was drawn most."""
        found = []
        for start in range(0, self.description.samples, 4096):
            samples = np.arange(start, min(start + 4096, self.description.samples))
            logits = self.signal(np.zeros_like(samples), samples).logits
            if isinstance(logits, Buckets):
                found.append(logits.ids[:, 0])
            elif isinstance(logits, Draws):
                found.append(logits.ids.gather(-1, logits.shares.argmax(-1, keepdim=True))[:, 0])
            else:
                found.append(logits.argmax(-1))
        return np.asarray(torch.cat(found).numpy())

    def damaged(self, number: int) -> list[int]:
        """The pieces of a shard whose bytes are not those that were written; the last is its end."""
        try:
            return self._shard(number).damaged()
        except UserError:  # it is missing
            return [*range(len(self.pieces[number]))]

    def _shard(self, number: int) -> Shard:
        if number not in self._shards:
            self._shards[number] = Shard(shard_path(self.folder, number), self.pieces[number])
        return self._shards[number]

    def _batch(self, number: int) -> dict[str, Numbers]:
        if number not in self._batches:
            shard, place = divmod(number, self.description.batches)
            batch = self._shard(shard).batch(place)
            self._batches[number] = {name: numbers(batch, name) for name in batch.schema.names}
        return self._batches[number]
