"""Several students of one teacher: a run each, and side by side what each can do for its size."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from edgestill import deliver, folder, progress, report
from edgestill.assemble import assemble
from edgestill.errors import UserError
from edgestill.folder import RESULT
from edgestill.processes import connect
from edgestill.recipe import Recipe, dump
from edgestill.runs import run
from edgestill.train import Track

Result = dict[str, Any]
TAKEN = ("report.html", RESULT, "teachers")
SHARED = ("date", "task", "metric", "data", "teacher")
"""What all runs of a result have in common."""


def run_students(
    recipes: Mapping[str, Recipe],
    out: str | Path | None = None,
    *,
    resume: bool = False,
    track: Track = progress.track,
    deliver_files: bool = True,
) -> Result:
    """A run for each student, in a folder of its name; a teacher that is to be fitted is fitted once.

    Args:
        recipes: by the students' names, from `load_recipes`.
        out, resume, track, deliver_files: as of `run`; students that are done stay as they are.

    Returns:
        What result.json of the folder holds: teacher, and of each student its parameters, quality, skills, artifacts
        and budget. Raises UserError, before any training, where one of them does not fit together.

    >>> import edgestill as es
    >>> es.run_students(es.load_recipes("sizes.yaml"), "runs/sizes")["students"][0]["quality"]  # doctest: +SKIP
    0.91
    """
    processes = connect(next(iter(recipes.values())).train.device)
    place, done = processes.first(lambda: _begun(recipes, Path(out) if out else folder.fresh(), resume, deliver_files))
    for name in recipes:
        if not done[name]:
            processes.agree(partial(_check, name, recipes[name], track, deliver_files))
    processes.first(lambda: create(place, resume, "students"))
    results: dict[str, Result] = {}
    for name, recipe in recipes.items():
        own = place / name
        if not done[name]:
            again = resume and processes.first(own.exists)
            run(recipe, own, resume=again, track=track, deliver_files=deliver_files, teachers=place / "teachers")
        if processes.main:
            results[name] = folder.read_json(own / RESULT)
            result = gathered(results, "done" if len(results) == len(recipes) else "running")
            folder.write_json(place / RESULT, result)
    return result | {"report": str(report.write(place))} if results else {}


def _begun(
    recipes: Mapping[str, Recipe], place: Path, resume: bool, deliver_files: bool
) -> tuple[Path, dict[str, bool]]:
    """The folder, and which students are done in it. UserError for one that is taken, and for a student that was done
    by another recipe."""
    folder.refuse_taken(place, resume)
    for name in recipes:
        if name in TAKEN:
            raise UserError(f"student.name: {name} is the name of another file of the folder: choose another")
    return place, {name: is_done(place / name, recipe, deliver_files) for name, recipe in recipes.items()}


def is_done(own: Path, recipe: Recipe, delivered: bool) -> bool:
    """Whether one of several runs is done, `delivered` where it is to be. UserError where it was by another recipe."""
    found = folder.read_json(own / RESULT) if (own / RESULT).is_file() else {}
    done = found.get("status") == "done" and (not delivered or "budget" in found)
    if done and (own / folder.RECIPE).read_text(encoding="utf-8") != dump(recipe):
        raise UserError(
            f"--resume: {own} is done with another recipe than this one; set it back, or give another --out"
        )
    return done


def create(place: Path, resume: bool, key: str) -> None:
    """Makes the folder of several runs, with a result that lists none yet under `key`."""
    folder.create(place, resume)
    if not (place / RESULT).is_file():  # so that a run that is killed now can be gone on with
        folder.write_json(place / RESULT, {"version": 1, "status": "running", key: []})


def _check(name: str, recipe: Recipe, track: Track, deliver_files: bool) -> None:
    """UserError for a student that does not fit, before any other is trained."""
    try:
        job = assemble(recipe, track, processes=connect(recipe.train.device))
        if deliver_files and job.processes.main:
            deliver.check(job)
    except UserError as error:
        raise UserError(f"student {name}: {error}") from error


def gathered(results: Mapping[str, Result], status: str) -> Result:
    """One result of several runs."""
    first = next(iter(results.values()))
    students = [entry(name, result) for name, result in results.items()]
    judged = [one["budget"] for one in students if "budget" in one]
    return {
        "version": 1,
        "status": status,
        **{key: first[key] for key in SHARED},
        "students": students,
        "budget": {"met": any(budget["met"] for budget in judged) or not judged},
    }


def entry(name: str, result: Result) -> Result:
    """What the result of several runs says of one of them."""
    arms = result["arms"]
    kept = ("mean", "std", "retained", "gap", "difference")
    return {
        "name": name,
        "path": name,
        **{
            key: result["student"].get(key)
            for key in ("model", "parameters", "trained_parameters", "flops", "bytes", "latency_ms")
        },
        "quality": arms["student"]["mean"],
        "arms": {arm: {key: found[key] for key in kept if key in found} for arm, found in arms.items()},
        "artifacts": result.get("artifacts", []),
        "skills": result.get("skills", {}),
        **({"budget": result["budget"]} if "budget" in result else {}),
    }
