"""What teacher, baseline, student and artifacts of a run can do: their scores on its skills, and what was retained."""

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgestill import folder
from edgestill.arms import arm_model
from edgestill.assemble import BASELINE, SCRATCH, STUDENT, TEACHER, Job, cpu_threads
from edgestill.errors import UserError
from edgestill.evaluate.metric import predictor
from edgestill.evaluate.paired import over_redraws, retained
from edgestill.evaluate.skill import Skill
from edgestill.evaluate.skills import Found, measure
from edgestill.evaluate.writing import LanguageModel, drafting
from edgestill.models import Model, TextInput, to_device
from edgestill.tasks.tokens import Blocks
from edgestill.train import Track

Result = dict[str, Any]
FOLDER = "skills"
ARMS = (BASELINE, SCRATCH, STUDENT)


def of_module(job: Job, model: Model) -> LanguageModel:
    """A module as skills ask it, on the run's device."""
    expected, vocabulary = model.input, _vocabulary(job)
    assert isinstance(expected, TextInput)
    module = to_device(model.module, job.device)
    predict = predictor(module, expected, job.device)
    ends = _ends(job)
    return LanguageModel(predict, expected, vocabulary, drafting(module, expected, vocabulary, ends), ends)


def of_artifact(job: Job, path: Path, student: Model) -> LanguageModel:
    """An ONNX file, with the student to draft what it may write. One text a pass: what a dynamic file rounds by depends
    on all that stands in it."""
    from edgestill.runtimes.onnx_runtime import load

    drafted = of_module(job, student)
    threads = cpu_threads(job.recipe)
    return LanguageModel(
        load(path, threads), drafted.expected, drafted.vocabulary, drafted.draft, drafted.ends, batch=1
    )


def _ends(job: Job) -> frozenset[int]:
    """The tokens that end a reply: the tokenizer's, and those with which the teacher's folder says that turns end."""
    assert isinstance(job.teacher.input, TextInput)
    own = getattr(getattr(job.teacher.module, "generation_config", None), "eos_token_id", None)
    listed = own if isinstance(own, list | tuple) else [own]
    return frozenset(int(token) for token in (*listed, job.teacher.input.tokenizer.eos_token_id) if token is not None)


def _vocabulary(job: Job) -> int:
    blocks = job.splits.test
    assert isinstance(blocks, Blocks)
    assert blocks.vocabulary is not None
    return blocks.vocabulary


def measure_teacher(job: Job, place: Path, result: Result, track: Track) -> None:
    """The teacher's skills. UserError where it has none of one that is to be kept."""
    if not job.skills:
        result.pop("skills", None)
        return
    result["skills"] = {}
    add(job, place, result, {TEACHER: of_module(job, job.teacher)}, track)
    check_kept(job, result)


def check_kept(job: Job, result: Result) -> None:
    """UserError where a skill that is to be kept is one of which the teacher has nothing, or of which no share is."""
    for name, limit in job.recipe.budget.keep.items():
        entry = result.get("skills", {}).get(name)
        if entry is None:
            raise UserError(f"budget.keep.{name}: this skill was not asked yet: `edgestill evaluate` asks it")
        own = entry["models"][TEACHER]["score"]
        if entry["chance"] is None:
            raise UserError(f"budget.keep.{name}: no share of a measure of {entry['scorer']} like this one is retained")
        if (own <= entry["chance"]) if entry["higher_is_better"] else (own >= entry["chance"]):
            raise UserError(
                f"budget.keep.{name}: {limit:.0%} of the teacher's skill cannot be kept: it scores {own:.4g} itself, "
                f"guessing {entry['chance']:.4g}; is the prompt written as the teacher knows it (skills.{name}.prompt)?"
            )


def measure_trained(job: Job, place: Path, result: Result, student: Model, track: Track) -> None:
    """The skills of the student, and of the arms without a teacher with the same seed."""
    if not job.skills:
        return
    seed = result["student"]["seed"]
    others = {arm: arm_model(job, place, arm, seed) for arm in (BASELINE, SCRATCH)}
    models = {arm: of_module(job, model) for arm, model in others.items() if model is not None}
    add(job, place, result, models | {STUDENT: of_module(job, student)}, track)


def measure_artifacts(job: Job, place: Path, result: Result, student: Model, track: Track) -> None:
    """The skills of the files; what each retained joins its description, for the budget."""
    if not job.skills:
        for artifact in result["artifacts"]:
            artifact.pop("retained", None)
        return
    made = {artifact["name"]: place / artifact["path"] for artifact in result["artifacts"]}
    for entry in result["skills"].values():  # files of another export
        entry["models"] = {name: found for name, found in entry["models"].items() if name in (TEACHER, *ARMS)}
    add(job, place, result, {name: of_artifact(job, path, student) for name, path in made.items()}, track)
    for artifact in result["artifacts"]:
        artifact["retained"] = shares(result, artifact["name"])


def add(job: Job, place: Path, result: Result, models: Mapping[str, LanguageModel], track: Track) -> None:
    """Asks models for every skill: their scores and shares to result.json's `skills`, what they answered to
    skills/NAME.json."""
    for skill in job.skills:
        path = place / FOLDER / f"{skill.name}.json"
        path.parent.mkdir(exist_ok=True)
        kept = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"asked": [], "models": {}}
        for name, model in models.items():
            found = measure(skill, model, partial(_named, track, name))
            kept["asked"] = found.asked
            kept["models"][name] = {
                "scores": found.scores.tolist(),
                "weights": found.weights.tolist(),
                "replies": found.replies,
            }
            entry = result["skills"].setdefault(
                skill.name,
                {
                    "scorer": skill.scorer if isinstance(skill.scorer, str) else skill.scorer.__name__,
                    "samples": len(found.scores),
                    "chance": found.chance,
                    "higher_is_better": found.higher_is_better,
                    **({"cut": skill.cut} if skill.cut else {}),
                    "models": {},
                },
            )
            teacher = kept["models"].get(TEACHER) if name != TEACHER else None
            entry["models"][name] = _judged(skill, found, teacher)
        folder.write_text(path, json.dumps(kept, ensure_ascii=False) + "\n")


def _named(track: Track, model: str, items: Any, what: str, total: int) -> Any:
    return track(items, f"{model}: {what}", total)


def _judged(skill: Skill, found: Found, teacher: Mapping[str, Any] | None) -> dict[str, Any]:
    """A model's score, and its share of the teacher's above chance, each with its interval over samples."""

    def score(scores: NDArray[np.float64], weights: NDArray[np.float64], drawn: NDArray[np.float64]) -> Any:
        return skill.score(scores, weights * drawn)

    count = len(found.scores)
    judged: dict[str, Any] = {
        "score": float(skill.score(found.scores, found.weights)),
        "interval": over_redraws(lambda drawn: score(found.scores, found.weights, drawn), count),
    }
    if teacher is None or found.chance is None:
        return judged
    own = np.asarray(teacher["scores"]), np.asarray(teacher["weights"])
    chance = found.chance
    above = float(skill.score(*own)) - chance
    if not (above > 0 if found.higher_is_better else above < 0):  # of nothing, nothing is retained
        return judged | {"retained": None, "retained_interval": None}
    # paired: the same samples of both; a tokenizer of its own cuts plain texts otherwise, whose blocks cannot be
    paired = len(own[0]) == count

    def share(drawn: NDArray[np.float64]) -> NDArray[np.float64]:
        theirs = score(*own, drawn) - chance if paired else np.full(len(drawn), above)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(theirs * above > 0, (score(found.scores, found.weights, drawn) - chance) / theirs, np.nan)

    return judged | {
        "retained": retained(judged["score"], float(skill.score(*own)), chance),
        "retained_interval": over_redraws(share, count),
    }


def shares(result: Result, name: str) -> dict[str, float | None]:
    """What a model retained, by skill."""
    return {
        skill: entry["models"][name]["retained"]
        for skill, entry in result.get("skills", {}).items()
        if "retained" in entry["models"].get(name, {})
    }
