"""From teacher to student in steps: a run each, in which the student of the one before is the teacher.

Mirzadeh et al. 2020, Improved Knowledge Distillation via Teacher Assistant, arXiv 1902.03393.
"""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgestill import deliver, folder, progress, quantization, report
from edgestill.assemble import assemble
from edgestill.errors import UserError
from edgestill.evaluate.paired import retained
from edgestill.folder import RESULT
from edgestill.models import save_student
from edgestill.processes import connect
from edgestill.recipe import Recipe
from edgestill.runs import run
from edgestill.several import SHARED, create, entry, is_done
from edgestill.train import Track

Result = dict[str, Any]


def run_steps(
    recipes: Mapping[str, Recipe],
    out: str | Path | None = None,
    *,
    resume: bool = False,
    track: Track = progress.track,
    deliver_files: bool = True,
) -> Result:
    """A run for each step, in a folder of its name: its student is the next one's teacher. The last alone is delivered.

    Args:
        recipes: by the steps' names, from `load_recipes`.
        out, resume, track, deliver_files: as of `run`; steps that are done stay as they are.

    Returns:
        What result.json of the folder holds: teacher, and of each step its student's parameters, quality, what that
        retains of the first teacher, artifacts and budget. Raises UserError, before any training, where one of them
        does not fit together.

    >>> import edgestill as es
    >>> es.run_steps(es.load_recipes("steps.yaml"), "runs/steps")["steps"][-1]["retained"]  # doctest: +SKIP
    0.93
    """
    processes = connect(next(iter(recipes.values())).train.device)
    place = processes.first(lambda: (Path(out) if out else folder.fresh()).absolute())
    first, *_, last = recipes
    recipes = {
        name: recipe if name == first else _taught(recipe, place / recipe.teacher.model)
        for name, recipe in recipes.items()
    }
    delivered = {name: deliver_files and name == last for name in recipes}
    done = processes.first(lambda: _begun(recipes, place, resume, delivered))
    processes.agree(lambda: _check(recipes, place, done, delivered, track))
    processes.first(lambda: create(place, resume, "steps"))
    results: dict[str, Result] = {}
    for name, recipe in recipes.items():
        own = place / name
        if not done[name]:
            again = resume and processes.first(own.exists)
            run(recipe, own, resume=again, track=track, deliver_files=delivered[name])
        if processes.main:
            results[name] = folder.read_json(own / RESULT)
            result = gathered(results, "done" if len(results) == len(recipes) else "running")
            folder.write_json(place / RESULT, result)
    return result | {"report": str(report.write(place))} if results else {}


def _taught(recipe: Recipe, teacher: Path) -> Recipe:
    """The recipe of a step with the folder of another's student as its teacher."""
    return recipe.model_copy(update={"teacher": recipe.teacher.model_copy(update={"model": str(teacher)})})


def _begun(recipes: Mapping[str, Recipe], place: Path, resume: bool, delivered: Mapping[str, bool]) -> dict[str, bool]:
    """Which steps are done in the folder. UserError for one that is taken, or was done by another recipe."""
    folder.refuse_taken(place, resume)
    if (place / RESULT).is_file() and "steps" not in folder.read_json(place / RESULT):
        raise UserError(f"--resume: {place} holds a run that is not one of steps; give another --out")
    return {name: is_done(place / name, recipe, delivered[name]) for name, recipe in recipes.items()}


def _check(
    recipes: Mapping[str, Recipe],
    place: Path,
    done: Mapping[str, bool],
    delivered: Mapping[str, bool],
    track: Track,
) -> None:
    """UserError for a step that does not fit, before any is trained: each is put together with the student of the one
    before as that begins."""
    processes = connect(next(iter(recipes.values())).train.device)
    with tempfile.TemporaryDirectory() as kept:
        first, *_, last = recipes
        before = Path(kept)
        for name, recipe in recipes.items():
            if done[name]:
                before = place / name / "student"
                continue
            try:
                job = assemble(recipe if name == first else _taught(recipe, before), track, processes=processes)
                if processes.main and delivered[name]:
                    quantization.check(job)
                    deliver.check(job)
            except UserError as error:
                raise UserError(f"{name} of students: {error}") from error
            before = Path(kept) / name
            if name != last:
                save_student(job.student(0), before, job.splits.train.classes)


def gathered(results: Mapping[str, Result], status: str) -> Result:
    """One result of all steps so far; what their students retain is of the first teacher."""
    first, last = ([*results.values()][place] for place in (0, -1))
    steps = [entry(name, result) for name, result in results.items()]
    for step in steps:
        quality, metric = first["teacher"]["quality"], first["metric"]
        if metric["higher_is_better"]:
            step["retained"] = retained(step["quality"], quality, metric["chance"])
        else:
            step["gap"] = step["quality"] - quality
    return {
        "version": 1,
        "status": status,
        **{key: first[key] for key in SHARED},
        "steps": steps,
        **({"budget": last["budget"]} if "budget" in last else {}),
    }
