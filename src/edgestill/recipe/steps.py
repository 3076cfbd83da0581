"""Students in steps: what each must be to the one before, and its shares, which a recipe writes as the teacher's."""

from collections.abc import Sequence
from math import inf
from typing import Annotated, Any

from pydantic import BeforeValidator, TypeAdapter

from edgestill.recipe.sections import FromTeacher, Width
from edgestill.recipe.values import SomeShare

SHARES = ("heads", "hidden", "feed_forward", "channels")


def _section(given: Any) -> Any:
    """A share is short for a width."""
    return {"width": given} if isinstance(given, int | float | str) and not isinstance(given, bool) else given


Step = Annotated[FromTeacher, BeforeValidator(_section)]


def listed(schema: dict[str, Any]) -> None:
    """The JSON Schema of steps as they are written."""
    section, share = schema.pop("anyOf")[0]["items"], TypeAdapter(SomeShare).json_schema()
    schema |= {"type": "array", "items": {"anyOf": [section, *share["anyOf"]]}, "minItems": 2}


def refuse_rising(steps: Sequence[FromTeacher]) -> None:
    """ValueError unless each step is smaller than the one before in one size at least, and larger in none; the first
    than the teacher."""
    if len(steps) < 2:
        raise ValueError(f"students: needs at least two steps; {len(steps)} came: `student` is for one")
    before = FromTeacher(width=1.0)
    for number, section in enumerate(steps, start=1):
        here, behind = f"students: step {number}", f"step {number - 1}" if number > 1 else "the teacher"
        if isinstance(section.keep, list):
            raise ValueError(
                f"{here}: blocks have other numbers from step to step: set depth; keep {section.keep} came"
            )
        depths = [one.depth for one in (before, section)]
        if None not in depths and isinstance(depths[0], int) != isinstance(depths[1], int):
            raise ValueError(
                f"{here}: depth needs a share in all steps, or a number of blocks in all; {depths[1]} came behind "
                f"{depths[0]}"
            )
        own, other = _sizes(section), _sizes(before)
        if larger := [name for name in own if own[name] > other[name]]:
            plain = larger[0] in SHARES and not any(isinstance(one.width, Width) for one in (before, section))
            raise ValueError(
                f"{here} is larger than {behind}: {'width' if plain else larger[0]} {_said(larger[0], own[larger[0]])} "
                f"behind {_said(larger[0], other[larger[0]])}; each step says all of its sizes, as shares of the first "
                "teacher's"
            )
        if own == other:
            raise ValueError(f"{here} is as large as {behind}: needs a size that is smaller")
        before = section


def of_the_step_before(section: FromTeacher, before: FromTeacher | None) -> dict[str, Any]:
    """The section of a step as a student of the step before, or of the teacher where it is the first.

    >>> of_the_step_before(FromTeacher(width=0.25), FromTeacher(width=0.5))
    {'importance': 'activation', 'width': 0.5}
    """
    if before is None:
        return section.model_dump(exclude_none=True)
    made: dict[str, Any] = {"importance": section.importance}
    own, other = _sizes(section), _sizes(before)
    if own["blocks"] != other["blocks"]:
        made |= {"depth": section.depth, "keep": section.keep}
    elif own["depth"] != other["depth"]:
        made |= {"depth": own["depth"] / other["depth"], "keep": section.keep}
    if own["vocabulary"] != other["vocabulary"]:
        made["vocabulary"] = section.vocabulary
    parts = {name: own[name] / other[name] for name in SHARES}
    if len({*parts.values()}) == 1:
        made |= {} if own["heads"] == other["heads"] else {"width": parts["heads"]}
    else:
        if _hidden(section) is None and _hidden(before) is None:
            parts.pop("hidden")
        made["width"] = parts
    return made


def _sizes(section: FromTeacher) -> dict[str, float]:
    """By name, as shares of the first teacher's but for a number of blocks; what is not said is all."""
    counted = isinstance(section.depth, int)
    width = section.width
    if not isinstance(width, Width):
        share = 1.0 if width is None else width
        width = Width(heads=share, feed_forward=share, channels=share)
    return {
        "depth": 1.0 if section.depth is None or counted else section.depth,
        "blocks": section.depth if section.depth is not None and counted else inf,
        "heads": width.heads,
        "hidden": width.heads if width.hidden is None else width.hidden,
        "feed_forward": width.feed_forward,
        "channels": width.channels,
        "vocabulary": 1.0 if section.vocabulary == "all" else 0.0,
    }


def _hidden(section: FromTeacher) -> float | None:
    return section.width.hidden if isinstance(section.width, Width) else None


def _said(name: str, size: float) -> str:
    if size == 0:
        return "data"
    return "all" if size == inf or (size == 1 and name != "blocks") else f"{size:g}"
