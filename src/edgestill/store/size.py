"""How many bytes a store is going to have, and into what pieces it is cut."""

from math import ceil

import numpy as np
import pyarrow as pa

from edgestill.store.codecs import Codec, Sampled
from edgestill.store.shards import schema
from edgestill.store.store import Description

BATCH_BYTES, SHARD_BYTES = 2**20, 2**26
"""A record batch has about so many bytes at most: what is read, checked and captured again at once. A shard at most
about so many."""
SHARES, PASSES = 64, 256
"""And a shard is at most so small a share of a store, and so many forward passes: what is lost where a capture is
stopped, and what several processes share, however few bytes a row has."""
OF_ROW = 12
"""Bytes of a row beside what it says: its sample, its view, the teacher's loss."""


def cut(of_row: float, batch: int, total: int) -> tuple[int, int]:
    """Rows a record batch, whole forward passes of `batch`, and record batches a shard, of a store of `total` rows,
    where what a row says has `of_row` bytes.

    >>> cut(1012, 8, 10**6)
    (1024, 2)
    """
    most = min(PASSES, ceil(ceil(total / batch) / SHARES))
    passes = min(most, max(1, round(BATCH_BYTES / ((of_row + OF_ROW) * batch))))
    rows = batch * passes
    return rows, min(most // passes, max(1, round(SHARD_BYTES / ((of_row + OF_ROW) * rows))))


def bytes_of(description: Description, of_position: float | None = None) -> int:
    """How many bytes a store is going to have, to a hundredth where a position has as many as are said."""
    of = description
    positions = of.positions * (bytes_a_position(of.codec, of.classes) if of_position is None else of_position)
    lists = 0 if of.positions == of.samples else len(of.codec.columns(of.classes))
    if isinstance(of.codec, Sampled):
        lists = max(lists, 2)
    positions += of.samples * sum(tap.bytes for tap in of.taps)
    file, batch = _around(of)
    around = file * of.shards + batch * ceil(of.total / of.rows)
    return round(of.views.count * (positions + (OF_ROW + 8 * lists) * of.samples) + around)


def _around(description: Description) -> tuple[int, int]:
    """Bytes that Arrow takes around a file, and around each record batch in it."""
    layout = schema(description.columns(), single=description.positions == description.samples)
    sizes = []
    for batches in (0, 1):
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, layout) as writer:
            for _ in range(batches):
                writer.write_batch(pa.RecordBatch.from_pylist([], schema=layout))
        sizes.append(sink.getvalue().size)
    return sizes[0], sizes[1] - sizes[0]


def bytes_a_position(codec: Codec, classes: int, different: float | None = None) -> float:
    """Of a position: what its columns hold; where `different` classes are among the draws, which is all at most."""
    each = {column.name: np.dtype(column.dtype).itemsize * (column.width or 1) for column in codec.columns(classes)}
    if isinstance(codec, Sampled):
        drawn = min(codec.draws, classes) if different is None else different
        return float(drawn * (each["ids"] + each["counts"]) + each["distinct"] + each["entropy"])
    return float(sum(each.values()))
