"""Labels as class numbers: each split's own, and the classes that all of them agree on. N samples."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from edgestill.data.specs import SPLITS
from edgestill.errors import UserError, closest

Labels = npt.NDArray[np.int64]
Names = tuple[str, ...] | None


class Labelled(Protocol):
    """A split as read: labels as written [N] (-1 missing) and the names of its classes, if it has any."""

    @property
    def labels(self) -> Labels: ...
    @property
    def names(self) -> Names: ...
    @property
    def source(self) -> str: ...
    def number(self, row: int) -> int: ...


def numbered(values: list[Any], names: Names, source: str) -> tuple[Labels, Names]:
    """Labels as class numbers, −1 where missing: whole numbers as they are, names by their place in `names`, or sorted.

    Where every text is a number, as in a csv, they are class numbers.
    """
    listed = [None if isinstance(value, str) and not value else value for value in values]
    texts = {value for value in listed if isinstance(value, str)}
    if all(map(_is_number, texts)):
        listed = [int(value) if isinstance(value, str) and _WHOLE.fullmatch(value) else value for value in listed]
        texts = set()
    names = tuple(sorted(texts)) if texts and names is None else names
    places = {name: place for place, name in enumerate(names or ())}
    labels = np.full(len(listed), -1, dtype=np.int64)
    for row, value in enumerate(listed):
        if value is None:
            continue
        named = bool(texts) and isinstance(value, str) and value in places
        if not named and (texts or not _is_class_number(value)):
            raise UserError(
                f"{source}: labels need to be all whole numbers or all class names, or missing; row {row} has {value!r}"
            )
        labels[row] = places[value] if named else value
    return labels, names


def _is_class_number(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and abs(int(value)) < 2**63


_WHOLE = re.compile(r"\s*[-+]?\d+\s*")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


MOST_CLASSES = 1_000_000


def agree_on_classes(read: Mapping[str, Labelled]) -> tuple[tuple[str, ...], dict[str, Labels]]:
    """The classes of all splits, and each split's labels as places among them."""
    named = [read[split] for split in SPLITS if split in read and read[split].names is not None]
    highest = max((int(part.labels.max(initial=-1)) for part in read.values()), default=-1)
    reference = named[0].names if named else None
    if reference is None and highest >= MOST_CLASSES:
        raise UserError(f"labels without class names may go up to {MOST_CLASSES - 1}; {highest} came: are they labels?")
    classes = reference if reference is not None else tuple(str(label) for label in range(highest + 1))
    place = {name: number for number, name in enumerate(classes)}
    labels = {}
    for split, part in read.items():
        names = part.names or classes
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise UserError(f"{part.source}: classes need names of their own; {twice!r} stands there twice")
        outside = np.flatnonzero((part.labels < -1) | (part.labels >= len(names)))
        if len(outside):
            raise UserError(
                f"{part.source}: a label needs to be in 0…{len(names) - 1} ({len(names)} classes) or missing (-1); "
                f"row {part.number(int(outside[0]))} has {part.labels[outside[0]]}"
            )
        unknown = [name for name in names if name not in place]
        if unknown:
            raise UserError(
                f"{part.source} has the class {some(unknown)}, which {named[0].source} lacks; "
                f"it has {some(classes)}{closest(unknown[0], classes)}"
            )
        # One place more than there are names, so that -1 finds itself at the end.
        places = np.array([*(place[name] for name in names), -1], dtype=np.int64)
        labels[split] = places[part.labels]
    return classes, labels


def some(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(map(repr, names[:most])) + (f" and {len(names) - most} more" if len(names) > most else "")
