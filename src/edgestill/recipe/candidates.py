"""The candidates of a search: a recipe each."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from edgestill.errors import UserError, first_line
from edgestill.functions import load_function
from edgestill.recipe.search import MOST, choices
from edgestill.recipe.whole import Recipe, validate


def candidates(recipe: Recipe, models_of: Callable[[str], Sequence[str]] = lambda spec: [spec]) -> dict[str, Recipe]:
    """The recipes of a search's candidates, by name: each student with each technique. `models_of` gives the models
    that a spec stands for. UserError for fewer than two, and for one that is no student."""
    search, raw = recipe.student.search, recipe.model_dump(exclude_none=True)
    assert search is not None
    beside = {key: value for key, value in raw["student"].items() if key != "search"}
    if search.candidates is not None:
        students = _returned(search.candidates)
    elif search.from_teacher is not None:
        students = {"-".join(told): {"from_teacher": one} for told, one in choices(search.from_teacher)}
    else:
        space = {"options": search.options, "config": search.config}
        models = [model for spec in search.model or () for model in models_of(spec)]
        students = {
            "-".join([re.split(r"[:/]", model)[-1]] * (len(models) > 1) + [*told]): {"model": model} | sizes
            for model in models
            for told, sizes in choices(space)
        }
    techniques = dict(_technique(number, keys) for number, keys in enumerate(search.distill)) or {"": {}}
    raw.pop("compute")  # of the search
    made = {
        re.sub(r"[^\w.-]+", "-", "-".join(filter(None, (name, technique)))): raw
        | {"student": beside | student, "distill": raw["distill"] | keys}
        for name, student in students.items()
        for technique, keys in techniques.items()
    }
    if len(made) < 2:
        what = "one came: name it in place of the search" if made else "none came: a list of choices has no entry"
        raise UserError(f"recipe: student.search: needs at least two candidates; {what}")
    if len(made) > MOST:
        raise UserError(f"recipe: student.search: at most {MOST} candidates; {len(made)} came: leave choices out")
    return {name: _candidate(name, one) for name, one in made.items()}


def _candidate(name: str, raw: dict[str, Any]) -> Recipe:
    try:
        return validate(raw)
    except UserError as error:
        raise UserError(f"{error} (candidate {name} of student.search)") from None


def _technique(number: int, keys: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """A technique's name, which is its own or what it sets, and its keys of `distill`."""
    keys = dict(keys)
    plain = [f"{key}-{value}" for key, value in keys.items() if isinstance(value, int | float | str)]
    named = keys.pop("name", None)
    return str(named or "-".join(plain) or f"technique-{number}"), keys


def _returned(spec: str) -> dict[str, Any]:
    try:
        found = load_function(spec)()
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"recipe: student.search.candidates: {spec} cannot be called: {first_line(error)}") from error
    if not isinstance(found, Mapping) or not all(isinstance(one, Mapping) for one in found.values()):
        raise UserError(
            f"recipe: student.search.candidates: {spec} must return student sections by name, as in "
            f"{{'small': {{'model': 'timm:resnet10t'}}}}; {type(found).__name__} came"
        )
    return {str(name): dict(one) for name, one in found.items()}
