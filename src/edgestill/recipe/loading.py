"""A recipe from a file, or one of each student that it lists."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgestill.errors import UserError
from edgestill.reading import read
from edgestill.recipe.sections import Student, default_phases
from edgestill.recipe.steps import of_the_step_before
from edgestill.recipe.whole import Recipe, validate

STEP = "step-{}"
"""What the run of a step is called, from 1 on, and its folder."""


def load_recipe(recipe: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """A validated Recipe from a YAML file or a built-in recipe's name, with `key.path=value` overrides.

    Paths in the file are relative to the file, paths in overrides to the current folder; both come back absolute.
    Raises UserError in one line that names the key, what was required and what came.

    >>> load_recipe("digits", ["distill.temperature=2"]).distill.temperature
    2.0
    """
    raw = _raw(recipe, overrides)
    for key in ("student", "students"):
        if isinstance(raw.get(key), list):
            raise UserError(
                f"{key}: several are listed, each of which is a run of its own: `load_recipes` gives them all"
            )
    return validate(raw)


def load_recipes(recipe: str | Path, overrides: Sequence[str] = ()) -> dict[str, Recipe]:
    """Of a recipe that lists several students a Recipe each, by the student's name; of `students`, in steps, a Recipe
    each, by the names step-1, step-2 …; of any other its one Recipe, by the name "". Otherwise as `load_recipe`.

    The teacher of a step behind the first is "step-1/student" and so on: a folder in that of the run.
    """
    raw = _raw(recipe, overrides)
    listed = raw.get("student")
    if raw.get("students") is not None:
        return _steps(raw)
    if not isinstance(listed, list):
        return {"": validate(raw)}
    if len(listed) < 2:
        raise UserError(f"recipe: student: a list of students needs at least two; {len(listed)} came")
    recipes: dict[str, Recipe] = {}
    for place, section in enumerate(listed):
        try:
            made = validate(raw | {"student": section})
        except UserError as error:
            raise UserError(f"{error} (student {place} of the list)") from None
        if made.student.search is not None:
            raise UserError("recipe: student: a search is a run of its own: take it out of the list")
        name = made.student.name or _student_name(made.student, place)
        if name in recipes:
            raise UserError(f"recipe: student: two are called {name!r}: give them a `name` each")
        if name == STEP.format(1):
            raise UserError(f"recipe: student.name: {name} is what the first of `students` is called: choose another")
        recipes[name] = made
    return recipes


def _steps(raw: dict[str, Any]) -> dict[str, Recipe]:
    """A Recipe a step: all but the last are trained in float alone, and compared with nothing."""
    if raw.get("student") is not None:
        raise UserError("recipe: needs `student` or `students`, and not both: set the other one to null")
    whole = validate(raw | {"student": {"from_teacher": {"width": 1.0}}})
    sections = whole.students or []
    floats = [phase for phase in whole.phases if phase.fake_quantize is None]
    total = sum(phase.share for phase in floats)
    assistant = {
        "compare": whole.compare.model_dump() | {"baseline": False, "scratch": False},
        "phases": [phase.model_dump(exclude_none=True) | {"share": phase.share / total} for phase in floats],
    }
    recipes: dict[str, Recipe] = {}
    for place, section in enumerate(sections):
        made = {key: value for key, value in raw.items() if key != "students"}
        made["student"] = {"from_teacher": of_the_step_before(section, sections[place - 1] if place else None)}
        if place:
            kept = {"licence": whole.teacher.licence, "precision": whole.teacher.precision}
            made["teacher"] = {"model": f"{STEP.format(place)}/student"} | kept
        try:
            recipes[STEP.format(place + 1)] = validate(made | (assistant if place < len(sections) - 1 else {}))
        except UserError as error:
            raise UserError(f"{error} (step {place + 1} of students)") from None
    return recipes


def _student_name(student: Student, place: int) -> str:
    """What a student is called that has no name."""
    section = student.from_teacher
    if section is None:
        return f"student-{place}"
    parts = {"depth": section.depth, "width": section.width}
    said = [f"{name}-{share:g}" for name, share in parts.items() if isinstance(share, int | float)]
    return "-".join(said) or f"student-{place}"


def _raw(recipe: str | Path, overrides: Sequence[str]) -> dict[str, Any]:
    def phases(raw: dict[str, Any]) -> list[dict[str, Any]]:
        return [phase.model_dump(exclude_none=True) for phase in default_phases(str(raw.get("task")))]

    return read(recipe, overrides, {"phases": phases})
