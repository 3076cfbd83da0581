"""A term as a recipe writes it -> the terms of the objective, one a pair of its layer map.

S student taps, T teacher taps.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgestill.aligners import AlignerKind
from edgestill.errors import UserError
from edgestill.functions import load_function
from edgestill.losses import Loss
from edgestill.mapping import LayerMap, layer_map
from edgestill.objective import Term

Similarity = Callable[[Sequence[str], Sequence[str]], NDArray[np.float64]]
"""How alike taps are: (student taps, teacher taps) -> [S, T]."""


@dataclass(frozen=True)
class Mapped:
    """A layer map as it was chosen, for the report."""

    loss: str
    map: str
    student: tuple[str, ...]
    teacher: tuple[str, ...]
    pairs: LayerMap
    similarity: list[list[float]] | None


def expand(
    name: str,
    loss: Loss,
    *,
    student: Sequence[str],
    teacher: Sequence[str],
    kind: str,
    weight: float | Literal["balanced"],
    aligner: AlignerKind,
    similarity: Similarity,
) -> tuple[list[Term], Mapped]:
    """The terms of a loss over taps, one a pair of the layer map, and the map itself."""
    matrix = similarity(student, teacher) if kind == "auto" else None
    pairs = layer_map(student, teacher, kind, matrix)
    aligner = "none" if kind == "direct" else aligner
    terms = [Term(loss, one, other, weight, aligner, share=1 / len(pairs)) for one, other in pairs]
    table = None if matrix is None else matrix.round(4).tolist()
    return terms, Mapped(name, kind, tuple(student), tuple(teacher), pairs, table)


def named(label: str, term: Term, taken: Mapping[str, Term]) -> str:
    """A name for the logs that no other term has: the loss and the student's tap."""
    name = f"{label.rpartition(':')[2]}/{'+'.join(term.student_taps)}"
    while name in taken:
        name += "'"
    return name


def bound(name: str, known: Mapping[str, Loss], options: Mapping[str, Any], where: str) -> Loss:
    """A loss by name or as `file.py:function`, with its options; UserError for one that it does not have."""
    loss = known[name] if name in known else load_function(name)
    taken = inspect.signature(loss).parameters
    given = {"student", "teacher", "mask", "count", "labels", "temperature"}
    for option in options:
        if option not in taken or option in given:
            free = [name for name in taken if name not in given]
            raise UserError(f"{where}: {name} has no option {option!r}; it has {', '.join(free) or 'none'}")
    return partial(loss, **options) if options else loss
