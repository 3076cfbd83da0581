"""Layer maps: which student tap learns from which teacher tap. S student taps, M teacher taps."""

import re
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgestill.errors import UserError, closest

LayerMap = list[tuple[str, str]]
"""(student tap, teacher tap) pairs."""

ORIGIN = "origin"
"""Of a student that was built from its teacher: each tap with the one that it was made of."""
KINDS = ("direct", "width", "depth", "first", "last", "auto", ORIGIN)
EVERY = re.compile(r"every-([1-9][0-9]*)")


def layer_map(
    student: Sequence[str], teacher: Sequence[str], kind: str, similarity: ArrayLike | None = None
) -> LayerMap:
    """Pairs of taps: each of the S student taps, in order, with one of the M teacher taps.

    direct, width, origin: the i-th with the i-th (`direct` also demands equal shapes, seen when the aligners are built;
    the taps of `origin` come from `origins`).
    depth: the i-th with the teacher tap that stands as deep: the round((i + 1)·M/S)-th of M, so that the last learns
    from the last. first, last: with the first or the last S teacher taps. every-N: with the N-th, 2N-th, … teacher tap.
    auto: with the teacher taps that `monotone_assignment` finds in `similarity` [S, M], which the others ignore.
    Raises UserError for an unknown kind, for counts of taps that the kind does not take, and for `auto` without a
    similarity of that shape.

    >>> layer_map(["a", "b"], ["1", "2", "3", "4", "5"], "depth")
    [('a', '3'), ('b', '5')]
    >>> layer_map(["a", "b"], ["1", "2", "3", "4", "5"], "every-2")
    [('a', '2'), ('b', '4')]
    >>> layer_map(["a", "b"], ["1", "2", "3"], "auto", similarity=[[0.9, 0.5, 0.1], [0.8, 0.7, 0.2]])
    [('a', '1'), ('b', '2')]
    """
    few, many = len(student), len(teacher)
    if not few or not many:
        raise UserError(f"a layer map needs taps on both sides; {few} student and {many} teacher taps came")
    chosen = _places(few, many, kind, similarity)
    return [(tap, teacher[place]) for tap, place in zip(student, chosen, strict=True)]


def origins(student: Sequence[str], origin: Mapping[str, str]) -> LayerMap:
    """Pairs of taps: each student tap with the teacher's that it was made of. `origin`: by the path of a student's part
    its path in the teacher, where that is another.

    >>> origins(["layers.1.mlp", "norm"], {"layers.1": "layers.4"})
    [('layers.1.mlp', 'layers.4.mlp'), ('norm', 'norm')]
    """

    def of(tap: str) -> str:
        for path, other in origin.items():
            if tap == path or tap.startswith((f"{path}.", f"{path}@")):
                return other + tap[len(path) :]
        return tap

    return [(tap, of(tap)) for tap in student]


def _places(few: int, many: int, kind: str, similarity: ArrayLike | None) -> list[int]:
    every = EVERY.fullmatch(kind)
    if kind not in KINDS and not every:
        known = ", ".join((*KINDS, "every-N"))
        raise UserError(f"map: one of {known} is needed; {kind!r} came{closest(kind, (*KINDS, 'every-2'))}")
    if kind in ("direct", "width", ORIGIN):
        if few != many:
            raise UserError(
                f"map: {kind} pairs the taps one by one; {few} student and {many} teacher taps came: "
                "name as many of each, or use `map: depth`"
            )
        return list(range(few))
    if many < few:
        raise UserError(
            f"map: {kind} needs at least as many teacher taps as student taps; {many} and {few} came: "
            "name more of the teacher's or fewer of the student's"
        )
    if every:
        step = int(every[1])
        if many // step < few:
            raise UserError(
                f"map: {kind} reaches {many // step} of {many} teacher taps and {few} are needed, one for each student "
                f"tap: use `map: every-{many // few}`, or name more of the teacher's"
            )
        return [step * (i + 1) - 1 for i in range(few)]
    if kind == "auto":
        if similarity is None:
            raise UserError("map: auto needs the similarity of the taps, and none came: pass similarity=, or use depth")
        if np.shape(similarity) != (few, many):
            raise UserError(
                f"map: auto needs a row for each student tap and a column for each teacher tap; similarity "
                f"{[*np.shape(similarity)]} came for {few} and {many} taps"
            )
        return monotone_assignment(similarity)
    if kind == "depth":
        return [int((i + 1) * (many / few) + 0.5) - 1 for i in range(few)]
    return list(range(few)) if kind == "first" else list(range(many - few, many))


def monotone_assignment(similarity: ArrayLike) -> list[int]:
    """For `similarity` [S, M] the columns j₁ < j₂ < … < j_S with the greatest Σᵢ similarity[i, jᵢ].

    By dynamic programming in S·M steps. Of equally good ones the one that is deeper at the last row where they differ.
    Raises UserError unless S ≤ M and all values are finite.

    >>> monotone_assignment([[0.9, 0.5, 0.1], [0.8, 0.7, 0.2]])
    [0, 1]
    """
    values: NDArray[np.float64] = np.asarray(similarity, np.float64)
    if values.ndim != 2 or not 0 < values.shape[0] <= values.shape[1] or not np.isfinite(values).all():
        raise UserError(
            "a monotone assignment needs a finite matrix [S, M] with 1 ≤ S ≤ M; "
            f"{[*values.shape]} came{'' if np.isfinite(values).all() else ', not finite'}"
        )
    # best[i, j]: the greatest sum of rows 0 to i with row i at column j; -inf where too few columns are left of it
    best = values.copy()
    for row in range(1, len(best)):
        best[row, 0] = -np.inf
        best[row, 1:] += np.maximum.accumulate(best[row - 1])[:-1]
    chosen: list[int] = []
    end = values.shape[1]
    for row in reversed(best):
        end -= 1 + int(row[:end][::-1].argmax())  # the last of the greatest in front of the column chosen before
        chosen.append(end)
    return chosen[::-1]
