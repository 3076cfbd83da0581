"""Layer maps: which student tap learns from which teacher tap."""

from collections.abc import Sequence
from typing import Literal

from edgestill.errors import UserError

LayerMap = list[tuple[str, str]]
"""(student tap, teacher tap) pairs."""


def layer_map(student: Sequence[str], teacher: Sequence[str], kind: Literal["direct", "width", "depth"]) -> LayerMap:
    """Pairs of taps.

    direct, width: the i-th student tap with the i-th teacher tap (`direct` also demands equal shapes, seen when the
    aligners are built). depth: the i-th of S student taps with the teacher tap that stands as deep: the
    round((i + 1)·T/S)-th of T, so that the last learns from the last.
    Raises UserError when `direct` or `width` get lists of two lengths, or `depth` fewer teacher than student taps.

    >>> layer_map(["a", "b"], ["1", "2", "3", "4"], "depth")
    [('a', '2'), ('b', '4')]
    """
    if not student or not teacher:
        raise UserError(
            f"a layer map needs taps on both sides; {len(student)} student and {len(teacher)} teacher taps came"
        )
    if kind == "depth":
        if len(teacher) < len(student):
            raise UserError(
                "map: depth needs at least as many teacher taps as student taps; "
                f"{len(teacher)} and {len(student)} came"
            )
        ratio = len(teacher) / len(student)
        return [(tap, teacher[int((i + 1) * ratio + 0.5) - 1]) for i, tap in enumerate(student)]
    if len(student) != len(teacher):
        raise UserError(
            f"map: {kind} pairs the taps one by one; {len(student)} student and {len(teacher)} teacher taps came: "
            "name as many of each, or use `map: depth`"
        )
    return list(zip(student, teacher, strict=True))
