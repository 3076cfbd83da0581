"""A term as a recipe writes it -> the terms of the objective, one a pair of its layer map.

S student taps, T teacher taps.
"""

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from edgestill.aligners import AlignerKind, ContrastMemory, ReviewFusion, aligner_for
from edgestill.errors import UserError
from edgestill.functions import load_function
from edgestill.losses import CHANNEL_FREE, Loss
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


Shapes = Callable[[Sequence[str], Sequence[str]], tuple[list[torch.Size], list[torch.Size]]]
"""The shapes of student taps and of teacher taps."""


def expand(
    name: str,
    known: Mapping[str, Loss],
    options: Mapping[str, Any],
    *,
    student: Sequence[str],
    teacher: Sequence[str],
    kind: str,
    weight: float | Literal["balanced"],
    aligner: AlignerKind,
    similarity: Similarity | None,
    shapes: Shapes,
    samples: int,
) -> tuple[list[Term], Mapped]:
    """The terms of a loss over taps, one a pair of the layer map (`review` has one over all of them), and the map.

    Without a `similarity` to measure, `auto` stands as `depth` for the time being.
    """
    matrix = similarity(student, teacher) if kind == "auto" and similarity is not None else None
    pairs = layer_map(student, teacher, "depth" if kind == "auto" and matrix is None else kind, matrix)
    aligner = "none" if kind == "direct" else aligner
    table = None if matrix is None else matrix.round(4).tolist()
    mapped = Mapped(name, kind, tuple(student), tuple(teacher), pairs, table)
    others = [tap for tap in (*student, *teacher) if not tap.endswith("@attention")]
    if name == "attention_kl" and (others or aligner not in ("auto", "none")):
        came = f"tap {others[0]!r}" if others else f"`aligner: {aligner}`"
        raise UserError(f"term attention_kl: it compares attentions, PATH@attention, as they are; {came} came")
    wrong = [tap for tap in (*student, *teacher) if not tap.endswith(("@queries", "@keys", "@values"))]
    if name == "attention_relation" and (wrong or aligner not in ("auto", "none")):
        came = f"tap {wrong[0]!r}" if wrong else f"`aligner: {aligner}`"
        raise UserError(f"term attention_relation: it takes PATH@queries, @keys and @values as they are; {came} came")
    made = MODULES.get(name)
    if made is not None and aligner != "auto":
        raise UserError(f"term {name}: it aligns its taps itself; `aligner: {aligner}` came: leave it out")
    more = frozenset[str]() if made is None else _taken(made)
    loss = bound(name, known, options, f"term {name}", more | {"temperature"})
    of_module = {key: value for key, value in options.items() if key in more}
    if name == "review":
        students, teachers = (tuple(side) for side in zip(*pairs, strict=True))
        fusion = partial(ReviewFusion, *shapes(students, teachers), **of_module)
        return [Term(loss, students, teachers, weight, module=fusion)], mapped
    if kind == "auto" and made is None and getattr(loss, "func", loss) not in CHANNEL_FREE:
        _check_all(student, teacher, shapes, aligner)
    terms = []
    for one, other in pairs:
        module: Callable[[], nn.Module] | None = None
        if name == "crd":
            (width,), (teacher_width,) = ([_width(shape) for shape in side] for side in shapes([one], [other]))
            module = partial(ContrastMemory, width, teacher_width, samples, **of_module)
        terms.append(Term(loss, one, other, weight, aligner, module, share=1 / len(pairs)))
    return terms, mapped


def _check_all(student: Sequence[str], teacher: Sequence[str], shapes: Shapes, aligner: AlignerKind) -> None:
    """UserError for a pair that nothing aligns: a map that is measured behind a training may choose any."""
    for one, shape in zip(student, shapes(student, [])[0], strict=True):
        for other, teacher_shape in zip(teacher, shapes([], teacher)[1], strict=True):
            try:
                aligner_for(shape, teacher_shape, aligner)
            except UserError as error:
                raise UserError(f"map: auto may pair {one!r} with {other!r}, and {error}") from None


MODULES: dict[str, type[nn.Module]] = {"crd": ContrastMemory, "review": ReviewFusion}
"""Losses that come with a module of their own; its keyword arguments are options of the loss."""


def _taken(made: type[nn.Module]) -> frozenset[str]:
    parameters = inspect.signature(made).parameters.values()
    return frozenset(parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY)


def _width(shape: torch.Size) -> int:
    """What is left of a tap when its positions are averaged: channels of a map, width of tokens or of a vector."""
    return shape[1] if len(shape) == 4 else shape[-1]


def named(label: str, term: Term, taken: Mapping[str, Term]) -> str:
    """A name for the logs that no other term has: the loss and the student's tap."""
    name = f"{label.rpartition(':')[2]}/{'+'.join(term.student_taps)}"
    while name in taken:
        name += "'"
    return name


def bound(
    name: str, known: Mapping[str, Loss], options: Mapping[str, Any], where: str, more: Collection[str] = ()
) -> Loss:
    """A loss by name or as `file.py:function`, with its options; UserError for one that it does not have.

    `more`: names that are options of its module, or that the objective leaves to the recipe."""
    loss = known[name] if name in known else load_function(name)
    taken = inspect.signature(loss).parameters
    given = {"student", "teacher", "mask", "count", "labels", "temperature"} - {*more}
    free = [key for key in taken if key not in given]
    if name in known:  # what a module makes stands in front
        free = [key for key in free if taken[key].kind is inspect.Parameter.KEYWORD_ONLY]
    free += [key for key in more if key not in free and key != "temperature"]
    for option in options:
        if option not in free:
            raise UserError(f"{where}: {name} has no option {option!r}; it has {', '.join(free) or 'none'}")
    own = {key: value for key, value in options.items() if key in taken}
    return partial(loss, **own) if own else loss
