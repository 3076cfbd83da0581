"""How many bytes a store is going to have, and into what pieces it is cut."""

import numpy as np

from edgestill.store.codecs import Codec, Sampled
from edgestill.store.store import Description

BATCH_BYTES, SHARD_BYTES = 2**20, 2**26
"""A record batch has about so many bytes, if its store has: what is read, checked and captured again at once. A
shard at most about so many: what is lost where a capture is stopped."""
OF_ROW = 12
"""Bytes of a row beside what it says: its sample, its view, the teacher's loss."""
FRAME = 600
"""Bytes that Arrow takes around a record batch, and at the end of a file, about."""


def cut(of_row: float, batch: int) -> tuple[int, int]:
    """Rows a record batch, whole forward passes of `batch`, and record batches a shard, where what a row says has
    `of_row` bytes.

    >>> cut(1012, 8)
    (1024, 64)
    """
    rows = batch * max(1, round(BATCH_BYTES / ((of_row + OF_ROW) * batch)))
    return rows, max(1, round(SHARD_BYTES / ((of_row + OF_ROW) * rows)))


def bytes_of(description: Description, of_position: float | None = None) -> int:
    """How many bytes a store is going to have, to a hundredth where a position has as many as are said."""
    of = description
    positions = of.positions * (bytes_a_position(of.codec, of.classes) if of_position is None else of_position)
    lists = 0 if of.positions == of.samples else len(of.codec.columns(of.classes))
    if isinstance(of.codec, Sampled):
        lists = max(lists, 2)
    positions += of.samples * sum(tap.bytes for tap in of.taps)
    around = FRAME * -(-of.total // of.rows) + FRAME * of.shards
    return round(of.views.count * (positions + (OF_ROW + 8 * lists) * of.samples) + around)


def bytes_a_position(codec: Codec, classes: int, different: float | None = None) -> float:
    """Of a position: what its columns hold; where `different` classes are among the draws, which is all at most."""
    each = {column.name: np.dtype(column.dtype).itemsize * (column.width or 1) for column in codec.columns(classes)}
    if isinstance(codec, Sampled):
        drawn = codec.draws if different is None else different
        return float(drawn * (each["ids"] + each["counts"]) + each["distinct"] + each["entropy"])
    return float(sum(each.values()))
