"""From a teacher to a store of what it says: each view of each sample once, in shards that are whole or not there."""

import json
import operator
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from math import ceil
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from edgestill.data.views import uniform
from edgestill.errors import UserError
from edgestill.folder import LOCK
from edgestill.signals import Signal
from edgestill.store import Codec, Description, Store, read_store, refuse_other, write_store
from edgestill.store.agreement import disagreement
from edgestill.store.codecs import Columns
from edgestill.store.shards import PARTIAL, Piece, Shard, commit, partial_of, record_batch, schema, write
from edgestill.store.store import SHARDS, STORE, mend_store, shard_path, write_whole
from edgestill.tasks.samples import Batch, Samples
from edgestill.train import Track

DRAWS = 7
"""The stream of `uniform` that a codec draws from; views, splits and mixup use others."""
IDENTITY = ("input", "data", "samples", "positions", "classes", "views", "configuration", "teacher")
"""What a store is of, in the order in which it is compared."""
TAPS_APART = 0.1
"""Of a tap's length, how far the tap of one teacher may be from itself: kept in 8 bits, asked in another precision."""
CHUNK = 2**22
"""Logits that are encoded at a time."""
TRIAL = 5
"""Forward passes that are measured before a capture."""
Teacher = Callable[[Batch, Sequence[str]], Signal]


class Captured(NamedTuple):
    """What a capture did: shards that were there, shards that it made, and rows of which the teacher was asked."""

    kept: int
    made: int
    asked: int


def capture(
    folder: Path,
    description: Description,
    samples: Samples,
    teacher: Teacher,
    *,
    track: Track = lambda items, *_: items,
    rank: int = 0,
    count: int = 1,
) -> Captured:
    """Captures into a folder, going on with what is there: shards that are whole stay, of a damaged one the damaged
    record batches alone are asked for again. Of `count` processes, each makes its share of the shards.

    The same description, samples and teacher make the same bytes, however often a capture was stopped. `finish` ends
    it, when all processes are through.
    """
    description = begin(folder, description)
    work = _Work(folder, description, samples, teacher)
    mine = range(rank, description.shards, count)
    rows = sum(work.rows(work.batches(number)) for number in mine)
    work.ticks = iter(track(range(rows), "capturing rows", rows))
    kept = made = asked = 0
    for number in mine:
        bad = work.missing(number)
        if not bad:
            work.tick(work.rows(work.batches(number)))
            kept += 1
            continue
        asked += work.make(number, bad)
        made += 1
    work.tick(None)
    return Captured(kept, made, asked)


def begin(folder: Path, description: Description) -> Description:
    """Makes the folder, and returns what its store is of: one that is there says itself how it is cut. UserError where
    it holds something else, or another store."""
    mend_store(folder)
    if (folder / STORE).is_file():
        found, _ = read_store(folder)
        said = description.to_json()
        refuse_other(folder, found, {key: said[key] for key in IDENTITY})
        for key, own in found.to_json().items():
            if key in ("codec", "taps", "batch") and own != said[key]:
                raise UserError(
                    f"the store {folder} has {key} {json.dumps(own)}, where the recipe's capture has "
                    f"{json.dumps(said[key])}: set it back, or give another --out"
                )
        return found
    try:
        (folder / SHARDS).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder} cannot be made: {error.strerror}") from error
    others = [path.name for path in folder.iterdir() if path.name not in (SHARDS, LOCK, f"{STORE}{PARTIAL}")]
    if others or any((folder / SHARDS).iterdir()):
        with suppress(OSError):
            (folder / SHARDS).rmdir()  # where it was made just now
        raise UserError(f"{folder} holds something that is no store: give another --out")
    write_store(folder, description, None)
    return description


def check_begun(folder: Path, samples: Samples, teacher: Teacher, kept: torch.dtype) -> None:
    """UserError where the teacher answers otherwise than when what a folder has was captured. One forward pass of the
    first record batch that is whole is asked for again; nothing where there is none."""
    description, _ = read_store(folder)
    work = _Work(folder, description, samples, teacher)
    pieces = [work.pieces(shard) or [] for shard in range(description.shards)]
    store = Store(folder, description, pieces)
    for shard, known in enumerate(pieces):
        bad = store.damaged(shard)
        for place, number in enumerate(work.batches(shard)):
            if known and not {place, len(known) - 1} & {*bad}:
                check_answers(store, samples, teacher, kept, number)
                return


def check_answers(store: Store, samples: Samples, teacher: Teacher, kept: torch.dtype, record_batch: int = 0) -> None:
    """UserError, with both values, where the teacher answers a forward pass otherwise than when it was captured. It is
    asked as it was then: the same views of the same samples, the first of a record batch. `kept` is the type of fewest
    places that an answer went through."""
    of = store.description
    first = record_batch * of.rows
    rows = np.arange(first, min(first + of.batch, of.total))
    views, indices = np.divmod(rows, of.samples)
    batch = samples.batch(indices, views, of.views.seed, None)
    paths = [tap.path for tap in of.taps]
    answer, kept_answer = teacher(batch, paths), store.signal(views, indices, paths)
    logits = answer.logits
    assert isinstance(logits, Tensor)
    positions = samples.positions[indices]
    stored = torch.from_numpy(store.read(rows, ["loss"])["loss"])
    own = torch.from_numpy(own_losses(logits, batch.labels, positions))
    found = disagreement(kept_answer.logits, logits, (stored, own), kept)
    if found is not None:
        row = found.place if found.what == "loss" else int(np.repeat(np.arange(len(rows)), positions)[found.place])
        raise UserError(
            f"the teacher answers otherwise than when the store {store.folder} was captured: of view {views[row]} of "
            f"sample {indices[row]} its {found.what} is {found.own:.6g}, where the store has {found.stored:.6g}; "
            "capture one of this teacher, or take the teacher that was captured"
        )
    for tap in of.taps:
        again = tap.decode(tap.encode(answer.taps[tap.path]))
        apart = float(
            (again - kept_answer.taps[tap.path]).norm() / again.norm().clamp(min=torch.finfo(torch.float32).tiny)
        )
        if not apart <= TAPS_APART:
            raise UserError(
                f"the teacher's tap {tap.path} is not what it was when the store {store.folder} was captured: it is "
                f"{apart:.1%} of its length away, where {TAPS_APART:.0%} are allowed; capture one of this teacher, or "
                "take the teacher that was captured"
            )


def finish(folder: Path) -> None:
    """Completes store.json from what was noted beside each shard."""
    description, known = read_store(folder)
    pieces = []
    for number in range(description.shards):
        note = _note(folder, number)
        batches = len(batches_of(description, number))
        pieces.append(_read(note, batches) if note.is_file() else known[number] if known else None)
    absent = [number for number, one in enumerate(pieces) if one is None]
    if absent:
        raise UserError(f"{folder}: shards {absent} are not captured: another process has ended before its share")
    write_store(folder, description, [one for one in pieces if one is not None])
    for number in range(description.shards):
        _note(folder, number).unlink(missing_ok=True)


def _note(folder: Path, number: int) -> Path:
    """Beside a shard, until store.json has it."""
    return shard_path(folder, number).with_suffix(".json")


def _read(note: Path, batches: int) -> list[Piece] | None:
    """The pieces of a shard of so many record batches, and its end; None where the note is not whole."""
    try:
        pieces = [Piece(*map(operator.index, one)) for one in json.loads(note.read_text(encoding="utf-8"))]
    except (ValueError, TypeError):
        return None
    return pieces if len(pieces) == batches + 1 else None


def batches_of(description: Description, shard: int) -> range:
    """The record batches of a shard."""
    first = shard * description.batches
    return range(first, min(first + description.batches, ceil(description.total / description.rows)))


class _Work:
    """What the record batches of a store are made of."""

    def __init__(self, folder: Path, description: Description, samples: Samples, teacher: Teacher) -> None:
        self.folder, self.of, self.samples, self.teacher = folder, description, samples, teacher
        self.positions = samples.positions
        self.columns, self.paths = description.columns(), [tap.path for tap in description.taps]
        self.layout = schema(self.columns, single=bool((self.positions == 1).all()))
        _, self.known = read_store(folder)
        self.ticks: Iterator[Any] = iter(())

    def tick(self, rows: int | None) -> None:
        """Shows that so many rows more are dealt with; of None, that it is the end."""
        for _ in islice(self.ticks, rows):
            pass

    def rows(self, batches: range) -> int:
        """Of some record batches that follow one another."""
        return min(batches.stop * self.of.rows, self.of.total) - batches.start * self.of.rows

    def batches(self, shard: int) -> range:
        return batches_of(self.of, shard)

    def pieces(self, shard: int) -> list[Piece] | None:
        note = _note(self.folder, shard)
        if note.is_file():
            return _read(note, len(self.batches(shard)))
        return self.known[shard] if self.known else None

    def missing(self, shard: int) -> list[int]:
        """The record batches of a shard that are not there, or not as they were written."""
        pieces, path = self.pieces(shard), shard_path(self.folder, shard)
        partial = partial_of(path)
        # it was noted, and stopped before it was in its place
        if pieces is not None and partial.is_file() and not Shard(partial, pieces).damaged():
            commit(path)
        places = [*range(len(self.batches(shard)))]
        if pieces is None or not path.is_file():
            return places
        bad = Shard(path, pieces).damaged()
        return [place for place in places if place in bad] or ([-1] if bad else [])

    def make(self, shard: int, bad: list[int]) -> int:
        """Writes a shard, its good record batches as they are; returns the rows that the teacher was asked of."""
        path, pieces, asked = shard_path(self.folder, shard), self.pieces(shard), 0
        whole = None
        if pieces is not None and path.is_file():
            found = Shard(path, pieces)
            whole = None if len(pieces) - 1 in found.damaged() else found  # without its end nothing is found in it

        def made() -> Iterator[pa.RecordBatch]:
            nonlocal asked
            for place, number in enumerate(self.batches(shard)):
                if whole is not None and place not in bad:
                    self.tick(self.rows(range(number, number + 1)))
                    yield whole.batch(place)
                else:
                    rows = np.arange(number * self.of.rows, min((number + 1) * self.of.rows, self.of.total))
                    asked += len(rows)
                    yield self.record_batch(rows)

        written = write(path, self.layout, made())
        write_whole(_note(self.folder, shard), json.dumps(written) + "\n")
        commit(path)
        return asked

    def record_batch(self, rows: NDArray[np.int64]) -> pa.RecordBatch:
        """What the teacher says of rows of the store, asked in the store's forward passes."""
        views, indices = np.divmod(rows, self.of.samples)
        kept: list[dict[str, NDArray[Any]]] = []
        losses = []
        for start in range(0, len(rows), self.of.batch):
            chosen = slice(start, start + self.of.batch)
            batch = self.samples.batch(indices[chosen], views[chosen], self.of.views.seed, None)
            signal = self.teacher(batch, self.paths)
            logits = signal.logits
            assert isinstance(logits, Tensor)
            positions = self.positions[indices[chosen]]
            refuse_broken(signal, indices[chosen], views[chosen], positions)
            each = uniform(self.of.views.seed, views[chosen], indices[chosen], int(positions.max()), stream=DRAWS)
            offsets = each[np.arange(each.shape[1]) < positions[:, None]]
            kept.append(encoded(self.of.codec, logits, offsets))
            for tap in self.of.taps:
                kept[-1] |= tap.encode(signal.taps[tap.path])
            losses.append(own_losses(logits, batch.labels, positions))
            self.tick(len(positions))
        said = {"sample": indices, "view": views, "loss": np.concatenate(losses)}
        values = {column.name: np.concatenate([part[column.name] for part in kept]) for column in self.columns}
        return record_batch(said, values, self.columns, self.positions[indices], self.layout)


def refuse_broken(
    signal: Signal, indices: NDArray[np.int64], views: NDArray[np.int64], positions: NDArray[np.int64]
) -> None:
    """UserError, with the sample and the view, where an answer is no distribution: its greatest logit is NaN, or
    infinite; or where a tap is not finite. Some
    classes may be impossible: logits of -inf."""
    assert isinstance(signal.logits, Tensor)
    owners = np.repeat(np.arange(len(indices)), positions)
    told = {"greatest logit": (signal.logits.amax(-1), owners)}
    for path, tap in signal.taps.items():
        told[f"largest number of the tap {path}"] = (tap.abs().flatten(1).amax(-1), np.arange(len(indices)))
    for what, (values, rows) in told.items():
        broken = torch.nonzero(~values.isfinite())
        if len(broken):
            first = int(broken[0])
            raise UserError(
                f"the teacher's answer to view {views[rows[first]]} of sample {indices[rows[first]]} is none: its "
                f"{what} is {float(values[first]):g}; it has to be finite: see to its weights and its precision"
            )


def encoded(codec: Codec, logits: Tensor, offsets: NDArray[np.float64]) -> Columns:
    """What a codec keeps of logits [N, C], made some rows at a time: its float64 would take several times their
    memory."""
    rows = max(1, CHUNK // logits.shape[-1])
    parts = [
        codec.encode(logits[start : start + rows], offsets[start : start + rows])
        for start in range(0, len(logits), rows)
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


class Kept(NamedTuple):
    """What a codec makes of an answer: bytes a position, and seconds a forward pass."""

    of_position: float
    seconds: float


def trial(
    description: Description,
    samples: Samples,
    teacher: Teacher,
    codecs: Mapping[str, Codec],
) -> tuple[float, dict[str, Kept]]:
    """Seconds a forward pass, the median of some that are spread over the samples, and what each codec adds."""
    starts = np.linspace(0, max(0, len(samples) - description.batch), TRIAL + 1).astype(int)
    seconds, positions, sizes = [], 0, dict.fromkeys(codecs, 0)
    encoding: dict[str, list[float]] = {name: [] for name in codecs}
    for start in starts:
        indices = np.arange(start, min(start + description.batch, len(samples)))
        started = perf_counter()
        logits = teacher(samples.batch(indices, np.zeros_like(indices), description.views.seed, None), []).logits
        assert isinstance(logits, Tensor)
        logits = logits.cpu()  # which waits for it
        refuse_broken(Signal(logits), indices, np.zeros_like(indices), samples.positions[indices])
        seconds.append(perf_counter() - started)
        positions += len(logits)
        offsets = uniform(description.views.seed, 0, np.arange(len(logits)), 1, stream=DRAWS)[:, 0]
        for name, codec in codecs.items():
            started = perf_counter()
            sizes[name] += sum(column.nbytes for column in encoded(codec, logits, offsets).values())
            encoding[name].append(perf_counter() - started)
    kept = {name: Kept(sizes[name] / positions, float(np.median(encoding[name][1:]))) for name in codecs}
    return float(np.median(seconds[1:])), kept


def own_losses(logits: Tensor, labels: Tensor, positions: NDArray[np.int64]) -> NDArray[np.float32]:
    """The teacher's loss on each sample's labels, the mean over its positions: cross-entropy, where a label is missing
    that of the class that it names itself; of numbers the squared error."""
    if labels.is_floating_point():
        each = (logits - labels.to(logits.device)).square().sum(-1)
    else:
        labels = labels.to(logits.device)
        each = functional.cross_entropy(logits, labels.where(labels >= 0, logits.argmax(-1)), reduction="none")
    values = each.double().cpu().numpy()
    starts = np.cumsum(positions) - positions
    found: NDArray[np.float32] = (np.add.reduceat(values, starts) / positions).astype(np.float32)
    return found


def bytes_missing(folder: Path, whole: int, samples: Samples, teacher: Teacher) -> int:
    """Bytes that a capture into a folder is yet going to take of the disk, of a store that has `whole`: of shards that
    are not there, and of a damaged one, beside which another is written."""
    if not (folder / STORE).is_file():
        return whole
    description, _ = read_store(folder)
    work, absent, damaged = _Work(folder, description, samples, teacher), 0, 0
    for number in range(description.shards):
        if work.missing(number):
            rows = work.rows(work.batches(number))
            if shard_path(folder, number).is_file():
                damaged = max(damaged, rows)
            else:
                absent += rows
    return ceil(whole * (absent + damaged) / description.total)


def free_bytes(folder: Path) -> int:
    """Of the disk where a folder is, or is going to be."""
    return shutil.disk_usage(next(one for one in (folder, *folder.absolute().parents) if one.exists())).free
