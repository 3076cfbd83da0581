"""A search space of students: what a recipe writes of it, and the students that it holds, as plain values."""

from collections.abc import Iterator
from itertools import product
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from edgestill.functions import FUNCTION
from edgestill.recipe.values import Fraction, Section, SomeShare

MOST = 1000
"""Candidates of one search."""


def _function(value: str) -> str:
    if not FUNCTION.fullmatch(value):
        raise ValueError(f"needs file.py:function, which returns student sections; {value!r} came")
    return value


class Search(Section):
    from_teacher: dict[str, Any] | None = Field(
        None, description="As student.from_teacher, with a list of choices wherever there are several."
    )
    model: Annotated[list[str] | None, BeforeValidator(lambda given: [given] if isinstance(given, str) else given)] = (
        Field(
            None, min_length=1, description="As student.model, one or several; timm:PATTERN stands for all that match."
        )
    )
    options: dict[str, Any] = Field(default_factory=dict, description="As student.options; lists are choices.")
    config: dict[str, Any] = Field(default_factory=dict, description="As student.config; lists are choices.")
    candidates: Annotated[str, AfterValidator(_function)] | None = Field(
        None, description="file.py:function, which returns student sections by the candidates' names."
    )
    distill: list[dict[str, Any]] = Field(
        default_factory=list,
        description="Techniques to try with each student: keys of distill, in place of the recipe's own.",
    )
    headroom: Annotated[Fraction, Field(lt=1)] = Field(
        0.15, description="Share of the limits of latency and memory that a candidate leaves free; sizes do not vary."
    )
    last_rung: SomeShare = Field(
        1 / 3,
        description="Share of train.epochs that the last few candidates are trained for, each rung before it less.",
    )
    first_rung: SomeShare = Field(
        0.1,
        description="Least share of train.epochs that any candidate is trained for: shorter trainings rank wrongly.",
    )
    reduction: Annotated[int, Field(ge=2, le=16)] = Field(
        3, description="One in how many goes on to the next rung, a training that is as many times as long."
    )

    @model_validator(mode="after")
    def _one_way(self) -> "Search":
        ways = {"from_teacher": self.from_teacher, "model": self.model, "candidates": self.candidates}
        given = [name for name, value in ways.items() if value is not None]
        if len(given) != 1:
            raise ValueError(
                f"needs one of from_teacher, model and candidates; {' and '.join(given) or 'none of them'} came"
            )
        if self.model is None and (self.options or self.config):
            raise ValueError("options and config belong to `model`")
        return self


def choices(value: Any, name: str = "") -> Iterator[tuple[tuple[str, ...], Any]]:
    """Each plain value that a value with lists of choices stands for, with the words that tell it from the others."""
    if isinstance(value, list):
        for one in value:
            yield ((f"{name}-{_said(one)}",) if len(value) > 1 else ()), one
    elif isinstance(value, dict):
        parts = [[*choices(inner, key)] for key, inner in value.items()]
        for chosen in product(*parts):
            told = tuple(word for words, _ in chosen for word in words)
            yield told, dict(zip(value, (one for _, one in chosen), strict=True))
    else:
        yield (), value


def _said(value: Any) -> str:
    if isinstance(value, dict):
        return "-".join(f"{key}-{_said(inner)}" for key, inner in value.items())
    if isinstance(value, list):
        return "-".join(map(_said, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
