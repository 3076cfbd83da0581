"""The planner: of a search's candidates those that fit the budget, of these the best behind short distillations, and
the whole run of that one."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch

from edgestill import costs, folder, progress, report
from edgestill.arms import answers, check_teacher, fit_teacher, fits_teacher
from edgestill.assemble import Job, assemble, cpu_threads
from edgestill.errors import UserError
from edgestill.models import flops, timm_models
from edgestill.plan.fits import Limit
from edgestill.processes import connect
from edgestill.recipe import Candidate, Recipe, candidates, dump, load_recipe
from edgestill.runs import run
from edgestill.tasks.samples import Batch
from edgestill.train import Track
from edgestill.trials import Trials
from edgestill.units import format_seconds, parse_seconds

Result = dict[str, Any]
CHOSEN = "chosen"
"""The folder of the chosen candidate's run, and its recipe."""
KEPT = ("date", "data", "teacher", "student", "arms", "artifacts", "skills", "budget")
"""Of the chosen candidate's run."""


def search(
    recipe: Recipe,
    out: str | Path | None = None,
    *,
    resume: bool = False,
    track: Track = progress.track,
    train: bool = True,
    deliver_files: bool = True,
) -> Result:
    """The candidates of `student.search` measured against the budget, those that fit compared by successive halving,
    and the whole run of the best.

    Args:
        recipe: from `load_recipe`, with a `student.search`.
        out, resume, track, deliver_files: as of `run`.
        train: False stops behind the choice, as `edgestill plan` does; going on with `resume` trains.

    Returns:
        What result.json of the folder holds: `search`, and what the run of the chosen candidate, in `chosen/`, came to.
        Where no candidate fits, `search` names the nearest and what to relax, and `budget.met` is False. Raises
        UserError, before any training, for what no candidate can do without.

    >>> import edgestill as es
    >>> es.search(es.load_recipe("search.yaml"), "runs/search")["search"]["chosen"]  # doctest: +SKIP
    'depth-0.5-width-0.5'
    """
    if connect(recipe.train.device).count > 1:
        raise UserError("student.search: one process searches; several were started: start one, or name a student")
    torch.set_num_threads(cpu_threads(recipe))
    space = candidates(recipe, _models_of)
    recipes = {name: one.recipe for name, one in space.items()}
    place = Path(out) if out is not None else folder.fresh()
    result = _begun(recipe, place, resume)
    started = perf_counter()
    job = _first(recipes, track)
    assembly = perf_counter() - started
    folder.create(place, resume)
    if not (place / folder.ENVIRONMENT).is_file():
        folder.write_json(place / folder.ENVIRONMENT, _environment(recipe))
    folder.write_text(place / folder.RECIPE, dump(recipe))
    with folder.status(place, result):
        found = result.setdefault("search", {"candidates": [], "seconds": {}})

        def save() -> None:
            folder.write_json(place / folder.RESULT, result)

        if fits_teacher(job):
            fit_teacher(job, place, lambda line: None, track, resume, place / "teachers")
            recipes = {name: _with_teacher(one, place / "teacher") for name, one in recipes.items()}
            job = _first(recipes, track)
        job = replace(job, recipe=next(iter(recipes.values())))
        result |= {"task": recipe.task, "metric": _metric(job)}
        if "teacher" not in result:
            result["teacher"] = _teacher(job, track)
        _cost(job, recipe, space, recipes, found, save, track)
        fitting = {one["name"]: one for one in found["candidates"] if one["fits"]}
        if not fitting:
            found |= _nearest(job, recipes, costs.limits_of(recipe), found["candidates"])
            result["budget"] = {"met": False}
        elif "chosen" not in found:
            trials = Trials(job, recipe, recipes, fitting, place / "search", found, save, track, assembly)
            found["chosen"] = trials.choose()
            found["neighbours"] = _neighbours(found, job.metric.higher_is_better)
            folder.write_text(place / f"{CHOSEN}.yaml", dump(recipes[found["chosen"]]))
        if train and fitting:
            result |= _delivered(recipes[found["chosen"]], place / CHOSEN, resume, track, deliver_files)
    return result | {"report": str(report.write(place))}


def _delivered(recipe: Recipe, place: Path, resume: bool, track: Track, files: bool) -> Result:
    """What the chosen student's own run came to; its artifacts as seen from the search's folder."""
    resume = resume and (place / folder.RESULT).is_file()
    own = run(recipe, place, resume=resume, track=track, deliver_files=files)
    kept = {key: own[key] for key in KEPT if key in own}
    for artifact in kept.get("artifacts", ()):
        if "path" in artifact:
            artifact["path"] = f"{place.name}/{artifact['path']}"
    return kept


def _begun(recipe: Recipe, place: Path, resume: bool) -> Result:
    """The result so far. UserError for a folder that is taken, or was begun with another recipe; more or less time may
    be given to one that goes on."""
    folder.refuse_taken(place, resume)
    fresh = {"version": 1, "status": "running", "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")}
    if not resume or not (place / folder.RECIPE).is_file():  # recipe.yaml comes last
        return fresh
    asked = recipe.model_copy(update={"compute": load_recipe(place / folder.RECIPE).compute})
    folder.refuse_other(place, dump(asked), _environment(asked))
    return folder.read_json(place / folder.RESULT) if (place / folder.RESULT).is_file() else fresh


def _models_of(spec: str) -> list[str]:
    return timm_models(spec[5:]) if spec.startswith("timm:") and any(one in spec for one in "*?[") else [spec]


def _first(recipes: Mapping[str, Recipe], track: Track) -> Job:
    """The parts of the first candidate that fits together. UserError where none does."""
    refused: list[UserError] = []
    for recipe in recipes.values():
        try:
            return assemble(recipe, track)
        except UserError as error:
            refused.append(error)
    if len({str(error) for error in refused}) == 1:
        raise refused[0]
    raise UserError(f"student.search: no candidate can be built; of {next(iter(recipes))}: {refused[0]}")


def _environment(recipe: Recipe) -> Result:
    """What a search that goes on has to have in common with its beginning, beside its recipe."""
    return folder.environment(cpu_threads(recipe), {}, [], recipe.train.device, 1, folder.contents(dump(recipe)))


def _with_teacher(recipe: Recipe, place: Path) -> Recipe:
    """The recipe, its teacher fitted and saved there."""
    teacher = recipe.teacher.model_copy(
        update={"model": str(place.absolute()), "weights": None, "fit": None, "options": {}}
    )
    return recipe.model_copy(update={"teacher": teacher})


def _metric(job: Job) -> Result:
    return {"name": job.metric.name, "higher_is_better": job.metric.higher_is_better}


def _teacher(job: Job, track: Track) -> Result:
    """The teacher on validation, against which candidates are seen. The test set is the chosen one's run's to read."""
    teacher, validation = job.teacher, job.splits.validation
    quality = job.metric.quality(answers(job, teacher, validation, "teacher: validation", track), validation)
    check_teacher(job.metric, quality, validation, teacher)
    return {
        "model": teacher.spec,
        "validation_quality": quality,
        "parameters": teacher.parameters,
        "flops": flops(teacher),
    }


def _cost(
    job: Job,
    asked: Recipe,
    space: Mapping[str, Candidate],
    recipes: Mapping[str, Recipe],
    found: Result,
    save: Callable[[], None],
    track: Track,
) -> None:
    """Fills in what each candidate costs, and whether it fits; techniques share their student's files. What was
    measured before stays. UserError where all files together would take more than the time of the search."""
    limits = costs.limits_of(asked)
    started, known = perf_counter(), {one["name"] for one in found["candidates"]}
    found["limits"] = [{"name": one.name, "value": one.value, "allowed": one.allowed} for one in limits]
    alike: dict[str, list[str]] = {}
    for name, one in space.items():
        if name not in known:
            alike.setdefault(one.student, []).append(name)
    batch = _batch(job)
    if "teacher_seconds" not in found:
        found["teacher_seconds"] = costs.step_seconds(job, job.teacher, batch)[1]
    students = [*alike]
    groups = [students[start : start + costs.AT_ONCE] for start in range(0, len(students), costs.AT_ONCE)]
    for group in track(groups, "measuring candidates", len(groups)):
        measured = costs.of(job, {student: recipes[alike[student][0]] for student in group}, limits, batch)
        for student, entry in measured.items():
            if (where := entry.pop("where", None)) is not None:
                found["where"] = where
            for name in alike[student]:
                about = {"name": name, "student": student, "technique": space[name].technique}
                found["candidates"].append(about | copy.deepcopy(entry))
        found["seconds"]["costs"] = found["seconds"].get("costs", 0.0) + perf_counter() - started
        started = perf_counter()
        save()
        _refuse_long(asked.compute.time, found, len({one.student for one in space.values()}))


def _refuse_long(time: str | None, found: Result, students: int) -> None:
    spent, done = found["seconds"]["costs"], len({one["student"] for one in found["candidates"]})
    about = spent / done * students
    if time is not None and about > parse_seconds(time):
        raise UserError(
            f"compute.time: {time} is too short: measuring the files of {done} of {students} students took "
            f"{format_seconds(spent)}, and all are about {format_seconds(about)}: raise it, or narrow student.search"
        )


def _batch(job: Job) -> Batch:
    """A batch as the trainings have them."""
    rows = np.arange(min(job.recipe.train.batch_size, len(job.splits.train)))
    return job.splits.train.batch(rows, np.zeros_like(rows), 0, None)


def _neighbours(found: Result, higher_is_better: bool) -> Result:
    """On either side of the budget: `inside`, the best of the others that fit; `outside`, the one that misses it by
    least, of those that were measured if there are any, and what would have to give for it."""

    def reached(one: Result) -> tuple[float, ...]:
        return len(one["rungs"]), one["quality"] if higher_is_better else -one["quality"]

    others = [one for one in found["candidates"] if one["name"] != found["chosen"] and "quality" in one]
    missing = [one for one in found["candidates"] if not one["fits"]]
    measured = [one for one in missing if "judged" in one]
    beside: Result = {}
    if others:
        beside["inside"] = max(others, key=reached)["name"]
    if measured:
        nearest = min(measured, key=lambda one: float(one["missed_by"]))
        beside |= {"outside": nearest["name"], "relax": costs.relax(nearest)}
    elif built := [one for one in missing if "least_bytes" in one]:
        nearest = min(built, key=lambda one: int(one["least_bytes"]))
        beside |= {"outside": nearest["name"], "relax": costs.relax_size(nearest, found["limits"])}
    return beside


def _nearest(job: Job, recipes: Mapping[str, Recipe], limits: Sequence[Limit], found: list[Result]) -> Result:
    """The candidate that misses the budget by least, and what would have to give for it. UserError where no candidate
    has a file."""
    if not any("judged" in one for one in found):
        built = [one for one in found if "least_bytes" in one]
        if not built:
            raise UserError(f"student.search: no candidate can be made a file; {found[0]['name']}: {found[0]['why']}")
        smallest = min(built, key=lambda one: one["least_bytes"])
        model = costs.untrained(job, recipes[smallest["name"]])
        smallest |= costs.measure(job, {smallest["name"]: model})[smallest["name"]]
        if "files" not in smallest:
            raise UserError(f"student.search: no candidate can be made a file; {smallest['name']}: {smallest['why']}")
        costs.judge(smallest, limits)
    nearest = min((one for one in found if "judged" in one), key=lambda one: one["missed_by"])
    return {"nearest": nearest["name"], "relax": costs.relax(nearest)}
