"""The verbs' work: the whole job, and its steps on a run folder. N samples, K classes."""

import copy
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edgestill import budget, card, deliver, folder, progress, quantization, report, results, skills
from edgestill.arms import (
    Outcome,
    answers,
    arm_names,
    check_teacher,
    difficulty,
    fit_teacher,
    fits_teacher,
    follow,
    saved_step,
    train_arm,
)
from edgestill.assemble import (
    SIMILARITY_SAMPLES,
    STUDENT,
    TEACHER,
    Job,
    assemble,
    check_store,
    cpu_threads,
    with_measured_maps,
    without_store,
)
from edgestill.errors import UserError
from edgestill.evaluate.classification import ACCURACY
from edgestill.evaluate.embeddings import RANK_CORRELATION
from edgestill.models import STUDENT_FILE, Model, embedding_of, flops, lower, reload, save_student
from edgestill.processes import connect
from edgestill.recipe import Recipe, dump, load_recipe
from edgestill.tasks.tokens import Blocks
from edgestill.train import Track

Result = dict[str, Any]
BEHIND = ("export", "verify", "quantize", "bench", "budget")
"""Sections of a recipe that a training does not depend on."""
_log = logging.getLogger("edgestill")


def run(
    recipe: Recipe,
    out: str | Path | None = None,
    *,
    resume: bool = False,
    track: Track = progress.track,
    deliver_files: bool = True,
    teachers: Path | None = None,
) -> Result:
    """The whole job: teacher, baseline and student over the seeds, artifacts, measurements, report.

    Args:
        recipe: from `load_recipe`.
        out: the run folder; `runs/` and the time by default.
        resume: go on in a folder whose run was interrupted.
        track: wraps long work, `track(items, description, total)`; `edgestill.progress.silent` shows nothing.
        deliver_files: False stops behind the trainings, as `edgestill train` does.
        teachers: a folder in which a teacher that is fitted is kept for other runs, and looked for.

    Returns:
        What result.json holds; where a launcher started several processes, an empty dict in all but the first, which
        train with it and end with the last training. Raises UserError, before anything is written, for a recipe that
        does not fit together.

    >>> import edgestill as es
    >>> result = es.run(es.load_recipe("digits"), "runs/digits")  # doctest: +SKIP
    >>> result["arms"]["student"]["retained"]  # doctest: +SKIP
    0.97
    """
    processes = connect(recipe.train.device)
    torch.set_num_threads(cpu_threads(recipe, processes))
    job = processes.agree(lambda: assemble(recipe, track if processes.main else progress.silent, processes=processes))
    place, result = processes.first(
        lambda: _begin(job, Path(out) if out is not None else folder.fresh(), resume, deliver_files)
    )
    if not processes.main:
        follow(job, place, resume, teachers)
        return {}
    with folder.status(place, result):
        folder.cut_metrics(place, partial(saved_step, place))
        with folder.metrics(place, recipe.train.tracker) as log:
            student = _train_all(job, place, result, log, track, resume, teachers)
        if deliver_files:
            _deliver(job, student, place, result, track)
            _write_card(place, result)
    return result | {"report": str(report.write(place))}


def _begin(job: Job, out: Path, resume: bool, deliver_files: bool) -> tuple[Path, Result]:
    """Makes the folder and writes recipe.yaml and environment.json, unless they are there and agree; the beginnings of
    result.json."""
    folder.refuse_taken(out, resume)
    splits = job.splits
    prints = {name: getattr(splits, name).fingerprint for name in ("train", "validation", "test")}
    seeds = list(range(job.recipe.compare.seeds))
    threads = cpu_threads(job.recipe, job.processes)
    files = folder.contents(dump(job.recipe))
    environment = folder.environment(threads, prints, seeds, str(job.device), job.processes.count, files)
    begun = resume and (out / folder.ENVIRONMENT).is_file()
    if begun:
        folder.refuse_other(out, dump(job.recipe), environment)
    if deliver_files or job.quantizes:
        quantization.check(job)
    if deliver_files:
        deliver.check(job)  # last, as it takes longest
    place = folder.create(out, resume)
    if not begun:
        folder.write_text(place / folder.RECIPE, dump(job.recipe))
        folder.write_json(place / folder.ENVIRONMENT, environment)
    return place, {
        "version": 1,
        "status": "running",
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "task": job.recipe.task,
        "metric": {
            "name": job.metric.name,
            "higher_is_better": job.metric.higher_is_better,
            "chance": 1 / len(splits.train.classes) if job.metric is ACCURACY else 0.0,
        }
        | ({"agreement": "cosine"} if job.metric is RANK_CORRELATION else {}),
        "classes": list(splits.train.classes) if job.metric is ACCURACY else [],
        "fingerprints": prints,
        "data": {
            "train": len(splits.train.labels),
            "labelled": int((splits.train.labels >= 0).sum()),
            "validation": len(splits.validation.labels),
            "test": len(splits.test.labels),
        }
        | ({"skipped": splits.skipped} if splits.skipped else {})
        | ({"cut": cut} if (cut := results.cut(job)) else {}),
        "schedule": results.points(job),
        "licences": {"teacher": job.recipe.teacher.licence, "data": job.recipe.data.licence},
        "seconds": {},
    }


def _train_all(
    job: Job,
    place: Path,
    result: Result,
    log: Callable[[dict[str, Any]], None],
    track: Track,
    resume: bool,
    teachers: Path | None = None,
) -> Model:
    """Teacher, then baseline and student over the seeds; fills the result, and keeps the student of the seed that is
    best on validation as a plain model."""
    started = perf_counter()
    recipe, seconds = job.recipe, result["seconds"]
    if fits_teacher(job):
        fit_teacher(job, place, log, track, resume, teachers)
    teacher_rows: list[NDArray[np.float32]] = []

    def measure_teacher() -> NDArray[np.float64] | None:
        if fits_teacher(job):  # one with weights was asked before any work
            check_store(job)
        teacher_rows.append(_teacher(job, result, track))
        skills.measure_teacher(job, place, result, track)
        return difficulty(job, track)

    ranks = job.processes.first(measure_teacher)
    begun = recipe.student.weights is not None or recipe.student.from_teacher is not None
    if job.unmeasured and begun:  # the teacher had to be fitted first
        job = with_measured_maps(job, job.student(0))
    seconds["teacher"] = perf_counter() - started

    names = arm_names(job)
    outcomes: dict[str, list[Outcome]] = {name: [] for name in names}
    best: tuple[float, Model, Outcome] | None = None
    for seed in range(recipe.compare.seeds):
        for arm in names:
            model, outcome = train_arm(job, arm, seed, ranks, place, log, track, resume)
            outcomes[arm].append(outcome)
            if job.unmeasured:  # behind the first baseline: a student without training is like the first layers alone
                job = with_measured_maps(job, model)
            seconds[arm] = seconds.get(arm, 0.0) + outcome.trained.seconds
            gained = outcome.trained.validation * (1 if job.metric.higher_is_better else -1)
            if arm == STUDENT and (best is None or gained > best[0]):
                best = (gained, model, outcome)
        result["arms"] = {name: results.summary(done) for name, done in outcomes.items() if done}
        folder.write_json(place / folder.RESULT, result)
    compared = min(SIMILARITY_SAMPLES, len(job.splits.train.labels))
    result["layer_maps"] = [
        asdict(mapped) | {"samples": compared if mapped.similarity is not None else None} for mapped in job.maps
    ]
    assert best is not None
    _, student, chosen = best
    results.compare(job, result, outcomes)
    _keep(job, place, result, student, chosen)
    rows = {"teacher": teacher_rows[0]} | {name: done[chosen.seed].answers for name, done in outcomes.items()}
    results.write_predictions(job, place, rows)
    if isinstance(job.splits.test, Blocks):
        results.write_completions(job, place, student, chosen.seed)
    skills.measure_trained(job, place, result, student, track)
    if job.quantizes:
        _quantize(job, student, place, result, log, track, resume)
    folder.write_json(place / folder.RESULT, result)  # with it, what was trained is whole: see _again
    return student


def _keep(job: Job, place: Path, result: Result, student: Model, chosen: Outcome) -> None:
    """The student of the chosen seed as a plain model, and what the result says of it."""
    result["phases"] = [
        {"name": name, "steps": steps, "examples": chosen.trained.examples[name]}
        for name, steps in chosen.trained.steps.items()
    ]
    result["student"] = {
        "model": student.spec,
        "options": student.options,
        "seed": chosen.seed,
        "parameters": student.parameters,
        "trained_parameters": chosen.trained.parameters,
        "flops": flops(student),
    }
    if (embedding := embedding_of(student.module)) is not None and hasattr(student.module, "save_pretrained"):
        result["student"]["pooling"] = embedding.pooling
    save_student(student, place / "student", job.splits.train.classes)


def _quantize(
    job: Job,
    student: Model,
    place: Path,
    result: Result,
    log: Callable[[dict[str, Any]], None],
    track: Track,
    resume: bool,
) -> None:
    """The phase that trains the kept student for 8 bits; its figures are of fake quantization, not of a file."""
    started, seed = perf_counter(), result["student"]["seed"]
    result["quantization"] = quantization.measure(job, student, track)
    kept = result["quantization"]["kept_float"]
    outcome = quantization.train(job, student, seed, kept, place, log, track, resume)
    trained = outcome.trained
    calibrated = job.validate(student.input)(quantization.post_training(job, student, kept).to(job.device))
    result["quantized"] = {
        "seed": seed,
        "quality": outcome.quality,
        "validation": trained.validation,
        "post_training_validation": calibrated,
        "after": job.schedule(STUDENT).steps,
    }
    if worse := quantization.worse(job, trained.validation, calibrated):
        result["quantized"]["worse"] = worse
        _log.warning("edgestill: %s", worse)
    result["phases"] += [
        {"name": name, "steps": steps, "examples": trained.examples[name]} for name, steps in trained.steps.items()
    ]
    result["seconds"]["quantized"] = perf_counter() - started


def _teacher(job: Job, result: Result, track: Track) -> NDArray[np.float32]:
    """Checks the teacher on validation and reads the test set: its test logits [N, K]."""
    teacher, splits = job.teacher, job.splits
    quality = job.metric.quality(
        answers(job, teacher, splits.validation, "teacher: validation", track), splits.validation
    )
    check_teacher(job.metric, quality, splits.validation, teacher)
    rows = answers(job, teacher, splits.test, "teacher: test set", track)
    result["teacher"] = {
        "model": teacher.spec,
        "precision": job.recipe.teacher.precision,
        "quality": job.metric.quality(rows, splits.test),
        "validation_quality": quality,
        "parameters": teacher.parameters,
        "flops": flops(teacher),
    }
    return rows


def export_again(place: Path, *, overrides: Sequence[str] = (), track: Track = progress.track) -> Result:
    """Exports, verifies, scores and measures the student of a run folder; what `run` does behind the trainings.

    `overrides` are of what stands behind the trainings, `export=[onnx]` and the like; the folder's recipe keeps them.
    """
    _only(overrides, BEHIND)

    def export(job: Job, student: Model, place: Path, result: Result, track: Track) -> None:
        kept = result.get("quantization", {}).get("kept_float")
        if job.quantizes and job.recipe.quantize.keep_float not in ("auto", kept):
            raise UserError(f"quantize.keep_float: the phase for 8 bits was trained with {kept} in float: keep these")
        skills.check_kept(job, result)
        folder.write_text(place / folder.RECIPE, dump(job.recipe))
        if not job.quantizes:  # what a phase was trained with stays
            result.pop("quantization", None)
        _deliver(job, student, place, result, track)

    return _again(place, track, export, overrides=overrides)


def _only(overrides: Sequence[str], sections: Sequence[str]) -> None:
    for override in overrides:
        if override.partition("=")[0].partition(".")[0] not in sections:
            raise UserError(f"--set {override}: of a trained run {', '.join(sections)} can be set; give another --out")


def evaluate_again(place: Path, *, overrides: Sequence[str] = (), track: Track = progress.track) -> Result:
    """Verifies the artifacts of a run folder, scores them on its test set, and asks all models for its skills.

    `overrides` are of its skills and its budget; the folder's recipe keeps them.
    """
    _only(overrides, ("skills", "budget"))

    def evaluate(job: Job, student: Model, place: Path, result: Result, track: Track) -> None:
        measured = {artifact["name"]: artifact for artifact in result["artifacts"]}
        described = _describe(
            job, _parts(job, student, place, result, track), _made(place, result, job.recipe), place, track
        )
        result["artifacts"] = [measured[artifact["name"]] | artifact for artifact in described]
        deliver.check_parity(job, result["artifacts"])
        asked = copy.deepcopy(result)  # so that what is refused on the way leaves the old result
        with folder.put_back(place / skills.FOLDER):
            skills.measure_teacher(job, place, asked, track)
            skills.measure_trained(job, place, asked, student, track)
            skills.measure_artifacts(job, place, asked, student, track)
        result.pop("skills", None)
        result |= asked
        folder.write_text(place / folder.RECIPE, dump(job.recipe))
        result["budget"] = budget.verdict(job, result["artifacts"])

    return _again(place, track, evaluate, needs=_measured, overrides=overrides)


def bench_again(
    place: Path, *, host: str | None = None, python: str | None = None, track: Track = progress.track
) -> Result:
    """Measures the artifacts of a run folder and its teacher where the recipe says, or on another `host` (`user@pi`,
    `qemu-aarch64`) with its interpreter `python`."""
    given = {"host": host, "python": python}
    overrides = [f"bench.{key}={json.dumps(value)}" for key, value in given.items() if value is not None]

    def measure(job: Job, student: Model, place: Path, result: Result, track: Track) -> None:
        deliver.check_parity(job, result["artifacts"])
        _bench(job, deliver.Student(student), _made(place, result, job.recipe), place, result, track)

    return _again(place, track, measure, needs=_made, overrides=overrides)


def _again(
    place: Path,
    track: Track,
    step: Callable[[Job, Model, Path, Result, Track], None],
    needs: Callable[[Path, Result, Recipe], object] = lambda *_: None,
    overrides: Sequence[str] = (),
) -> Result:
    """Does a step behind the trainings on a run folder, and writes result.json, the card and the report anew. What it
    `needs` is asked for before anything is written."""
    result = folder.read_json(place / folder.RESULT)
    for key, held in (("students", "several students"), ("steps", "several steps")):
        if key in result:
            several = ", ".join(str(place / one["path"]) for one in result[key])
            raise UserError(f"{place} holds the runs of {held}: name one of {several}")
    if "search" in result:
        raise UserError(f"{place} holds a search: the run of the chosen student is {place / 'chosen'}")
    if "student" not in result or not (place / "student" / STUDENT_FILE).is_file():
        raise UserError(f"{place} has no trained student yet; `edgestill run … --out {place} --resume` trains it")
    recipe = load_recipe(place / folder.RECIPE, overrides)
    if recipe.phases[-1].fake_quantize and not quantization.is_trained(place, result["student"]["seed"]):
        raise UserError(
            f"{place} ended in its phase for 8 bits; `edgestill run … --out {place} --resume` goes on with it"
        )
    needs(place, result, recipe)
    torch.set_num_threads(cpu_threads(recipe))
    # no step behind the trainings reads a store, and it may be gone; the recipe goes on naming it
    job = replace(assemble(without_store(recipe), track), recipe=recipe)
    if (place / "teacher" / STUDENT_FILE).is_file():
        reload(job.teacher, place / "teacher")
        lower(job.teacher.module, recipe.teacher.precision, job.teacher.spec)
    student = job.student(0)
    reload(student, place / "student")
    with folder.status(place, result):
        step(job, student, place, result, track)
        _write_card(place, result)
    return result | {"report": str(report.write(place))}


def _made(place: Path, result: Result, recipe: Recipe) -> dict[str, Path]:
    if not result.get("artifacts"):
        raise UserError(f"{place} has no artifacts yet; `edgestill export {place}` makes them")
    made = {artifact["name"]: place / artifact["path"] for artifact in result["artifacts"]}
    for path in made.values():
        if not path.is_file():
            raise UserError(f"the artifact {path} is missing; `edgestill export {place}` makes it again")
    if {*made} != {*deliver.names(recipe)}:
        raise UserError(
            f"{place / folder.RECIPE} asks for other artifacts than there are: `edgestill export {place}` makes them"
        )
    return made


def _measured(place: Path, result: Result, recipe: Recipe) -> None:
    """UserError for a run that ended before its artifacts were measured: the budget's verdict needs that."""
    _made(place, result, recipe)
    if not all("latency_ms" in artifact for artifact in result["artifacts"]):
        raise UserError(f"{place} has no measurements yet; `edgestill export {place}` makes them")


def _deliver(job: Job, student: Model, place: Path, result: Result, track: Track) -> None:
    """Artifacts, their answers, their measurements, the budget's verdict."""
    started = perf_counter()
    parts = _parts(job, student, place, result, track)
    made = deliver.make_artifacts(job, parts, place, track)
    result["artifacts"] = _describe(job, parts, made, place, track)
    result["seconds"]["export"] = perf_counter() - started
    deliver.check_parity(job, result["artifacts"])
    skills.measure_artifacts(job, place, result, student, track)
    _bench(job, parts, made, place, result, track)


def _parts(job: Job, student: Model, place: Path, result: Result, track: Track) -> deliver.Student:
    """The student in float, and in 8 bits where a format is made from that; the losses of its layers are measured
    unless they were."""
    kinds = [deliver.format_of(name) for name in job.recipe.export]
    own = any(kind.how == "own" for kind in kinds)
    calibration = torch.cat(quantization.calibration(job, student)).numpy() if own else None
    if all(kind.how != "graph" for kind in kinds):
        return deliver.Student(student, calibration=calibration)
    if "quantization" not in result:
        result["quantization"] = quantization.measure(job, student, track)
    kept = result["quantization"]["kept_float"]
    seed = result["student"]["seed"]
    calibrated = quantization.post_training(job, student, kept)
    return deliver.Student(student, calibrated, quantization.trained(job, student, seed, kept, place), calibration)


def _describe(
    job: Job, student: deliver.Student, made: dict[str, Path], place: Path, track: Track
) -> list[dict[str, Any]]:
    """What verify and evaluate say of each artifact; its test probabilities join predictions.npz."""
    described, rows = deliver.describe_artifacts(job, student, made, place, track)
    with np.load(place / "predictions.npz") as saved:
        kept = {name: saved[name] for name in saved.files}
    classes = job.metric is ACCURACY
    kept |= {name: torch.from_numpy(row).softmax(-1).numpy() if classes else row for name, row in rows.items()}
    results.save_arrays(place / "predictions.npz", kept)
    return described


def _bench(
    job: Job, student: deliver.Student, made: dict[str, Path], place: Path, result: Result, track: Track
) -> None:
    started = perf_counter()
    measured, result["bench"] = deliver.bench_artifacts(job, student, made, place, track)
    result["seconds"]["bench"] = perf_counter() - started
    for name, entry in [(TEACHER, result[TEACHER]), (STUDENT, result[STUDENT])] + [
        (artifact["name"], artifact) for artifact in result["artifacts"]
    ]:
        entry.pop("energy_mj", None)  # of a host that had a counter
        entry |= measured[name]
    result["budget"] = budget.verdict(job, result["artifacts"])


def _write_card(place: Path, result: Result) -> None:
    folder.write_text(place / "student" / "README.md", card.write(result))
