"""Shards: Arrow IPC files of a few record batches each, memory-mapped, every byte of which is in a checksum.

A row is one view of one sample. It has one position, or as many as its sample has tokens that are learned.
"""

import os
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from edgestill.errors import UserError, first_line
from edgestill.store.codecs import Column, Columns

PARTIAL = ".partial"
ROW = [Column("sample", np.int32), Column("view", np.int32), Column("loss", np.float32)]
"""What every row has: whose it is, and the teacher's own loss on its label, in nats."""


class Piece(NamedTuple):
    """A stretch of a file and its CRC-32."""

    start: int
    end: int
    checksum: int


def schema(columns: Iterable[Column], single: bool) -> pa.Schema:
    """Of rows with a single position: lists of one length, where a column has as many numbers in each; else lists."""
    fields = [pa.field(column.name, pa.from_numpy_dtype(column.dtype)) for column in ROW]
    for column in columns:
        kind = pa.from_numpy_dtype(column.dtype)
        fixed = (single or column.of_row) and column.width is not None
        fields.append(pa.field(column.name, pa.list_(kind, column.width) if fixed else pa.large_list(kind)))
    return pa.schema(fields)


def record_batch(
    rows: Columns, values: Columns, columns: Iterable[Column], positions: NDArray[np.int64], layout: pa.Schema
) -> pa.RecordBatch:
    """Rows with their `positions` [R] and what a codec made of these, one after another."""
    arrays: list[pa.Array] = [pa.array(rows[column.name].astype(column.dtype)) for column in ROW]
    for column in columns:
        flat = pa.array(values[column.name].ravel())
        kind = layout.field(column.name).type
        if pa.types.is_fixed_size_list(kind):
            arrays.append(pa.FixedSizeListArray.from_arrays(flat, column.width))
            continue
        sizes = positions * column.width if column.width is not None else _summed(values["distinct"], positions)
        starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        arrays.append(pa.LargeListArray.from_arrays(pa.array(starts), flat))
    return pa.record_batch(arrays, schema=layout)


def _summed(distinct: NDArray[Any], positions: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many numbers each row has, from how many each of its positions has."""
    upto: NDArray[np.int64] = np.concatenate([[0], np.cumsum(distinct.ravel(), dtype=np.int64)])
    ends = np.cumsum(positions)
    found: NDArray[np.int64] = upto[ends] - upto[ends - positions]
    return found


def write(path: Path, layout: pa.Schema, batches: Iterable[pa.RecordBatch]) -> list[Piece]:
    """Writes a file beside its place, where `commit` puts it, and returns its stretches: one a record batch, with what
    stands before it, and the end. UserError where the disk does not take it."""
    partial = partial_of(path)
    try:
        return _write(partial, layout, batches)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise UserError(f"{path} cannot be written: {error.strerror or error}; the same command goes on") from error


def partial_of(path: Path) -> Path:
    return path.with_name(f"{path.name}{PARTIAL}")


def commit(path: Path) -> None:
    """Puts a file that was written in its place."""
    os.replace(partial_of(path), path)


def _write(partial: Path, layout: pa.Schema, batches: Iterable[pa.RecordBatch]) -> list[Piece]:
    ends = []
    with pa.OSFile(str(partial), "wb") as sink:
        with pa.ipc.new_file(sink, layout) as writer:
            for batch in batches:
                writer.write_batch(batch)
                ends.append(sink.tell())
        ends.append(sink.tell())
    content = partial.read_bytes()
    starts = [0, *ends[:-1]]
    pieces = [Piece(start, end, zlib.crc32(content[start:end])) for start, end in zip(starts, ends, strict=True)]
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    return pieces


class Shard:
    """One file, opened: its record batches as NumPy arrays over the memory map, each checked when it is first asked
    for."""

    def __init__(self, path: Path, pieces: list[Piece]) -> None:
        self.path, self.pieces = path, pieces
        try:
            with pa.memory_map(str(path)) as file:  # the map outlives the file, of which a process may open but so many
                self._bytes = file.read_buffer()
        except FileNotFoundError as error:
            raise UserError(f"{path} is missing: `edgestill capture` makes it again") from error
        except OSError as error:
            raise UserError(f"{path} cannot be read: {first_line(error)}") from error
        self._file: Any = None

    def batch(self, number: int) -> pa.RecordBatch:
        """A record batch. UserError that names it where its bytes are not those that were written."""
        if self._file is None:
            self._check(len(self.pieces) - 1, "its end")
            self._file = pa.ipc.open_file(pa.BufferReader(self._bytes))
        self._check(number, f"record batch {number}")
        return self._file.get_batch(number)

    def damaged(self) -> list[int]:
        """The pieces whose bytes are not those that were written."""
        return [number for number in range(len(self.pieces)) if not self._whole(number)]

    def _check(self, number: int, what: str) -> None:
        if not self._whole(number):
            raise UserError(f"{self.path}: {what} is damaged: `edgestill capture` into the store captures it again")

    def _whole(self, number: int) -> bool:
        start, end, checksum = self.pieces[number]
        return end <= self._bytes.size and zlib.crc32(self._bytes[start:end]) == checksum


class Numbers(NamedTuple):
    """A column of a record batch: its numbers, [R, width] where every row has as many, or one after another with where
    each row's begin (one more than rows)."""

    values: NDArray[Any]
    starts: NDArray[np.int64] | None

    def of(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        """The numbers of some rows, one after another."""
        if self.starts is None:
            return self.values[rows].ravel()
        return np.concatenate([self.values[self.starts[row] : self.starts[row + 1]] for row in rows])


def numbers(batch: pa.RecordBatch, name: str) -> Numbers:
    """A column's numbers, without a copy."""
    column = batch.column(name)
    if pa.types.is_fixed_size_list(column.type):
        return Numbers(column.values.to_numpy().reshape(len(column), -1), None)
    if not pa.types.is_large_list(column.type):
        return Numbers(column.to_numpy().reshape(len(column), 1), None)
    values, starts = column.values.to_numpy(), column.offsets.to_numpy().astype(np.int64)
    lengths = np.diff(starts)
    if (lengths == lengths[0]).all():
        return Numbers(values.reshape(len(column), -1), None)
    return Numbers(values, starts)
