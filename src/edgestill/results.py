"""What a run folder holds of the trainings: figures, comparisons, predictions and examples. N samples, K classes."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edgestill import folder
from edgestill.arms import Outcome, arm_model
from edgestill.assemble import BASELINE, QUANTIZED, SCRATCH, STUDENT, TEACHER, Job
from edgestill.evaluate.classification import ACCURACY
from edgestill.evaluate.completions import complete, prompts
from edgestill.evaluate.paired import Difference, over_samples, over_seeds, retained
from edgestill.models import ImageInput, Model, TextInput
from edgestill.tasks.images import ImageSamples
from edgestill.tasks.sequences import Sequences
from edgestill.tasks.tokens import Blocks

Result = dict[str, Any]
WORST_EXAMPLES = 24


def cut(job: Job) -> dict[str, int]:
    """Texts that were longer than the student takes, by split."""
    expected = job.student(0).input
    if isinstance(expected, ImageInput):
        return {}
    splits = {name: getattr(job.splits, name) for name in ("train", "validation", "test")}
    found = {
        name: samples.asked.encoded(expected).cut if isinstance(samples.asked, Sequences) else samples.cut
        for name, samples in splits.items()
    }
    return {name: count for name, count in found.items() if count}


def points(job: Job) -> list[dict[str, Any]]:
    """What holds at up to 400 steps of the student's training, and of the phase behind it that trains for 8 bits."""
    found: list[dict[str, Any]] = []
    before = 0
    for arm in (STUDENT, QUANTIZED) if job.quantizes else (STUDENT,):
        schedule = job.schedule(arm)
        for step in np.unique(np.linspace(0, schedule.steps - 1, min(400, schedule.steps)).astype(int)).tolist():
            settings = schedule.at(step)
            names = ("alpha", "temperature", "lr", "admitted")
            held = {name: getattr(settings, name) for name in names}
            found.append({"step": before + step, "phase": settings.phase.name, **held})
        before += schedule.steps
    return found


def write_completions(job: Job, place: Path, student: Model, seed: int) -> None:
    """completions.json: how teacher, baseline and student write on from the same beginnings."""
    blocks, expected = job.splits.test, student.input
    assert isinstance(blocks, Blocks)
    assert isinstance(expected, TextInput)
    models = {TEACHER: job.teacher}
    baseline = arm_model(job, place, BASELINE, seed)
    if baseline is not None:
        models[BASELINE] = baseline
    models[STUDENT] = student
    begun = prompts(blocks, expected.length)
    vocabulary = blocks.vocabulary or len(expected.tokenizer)
    written = {name: complete(model.module, expected, begun, vocabulary) for name, model in models.items()}
    texts = [expected.tokenizer.decode(ids) for ids in begun]
    folder.write_json(place / "completions.json", {"prompts": texts, "models": written})


def summary(outcomes: list[Outcome]) -> dict[str, Any]:
    qualities = [outcome.quality for outcome in outcomes]
    return {
        "seeds": [
            {"seed": outcome.seed, "quality": outcome.quality, "validation": outcome.trained.validation}
            | ({"skipped_steps": outcome.trained.skipped} if outcome.trained.skipped else {})
            for outcome in outcomes
        ],
        "mean": float(np.mean(qualities)),
        "std": float(np.std(qualities, ddof=1)) if len(qualities) > 1 else None,
    }


def compare(job: Job, result: Result, outcomes: dict[str, list[Outcome]]) -> None:
    """Adds what was retained of the teacher, and the paired difference to the best arm without a teacher, which is
    chosen on validation."""
    summary, metric = result["arms"][STUDENT], job.metric
    if metric.higher_is_better:
        chance = result["metric"]["chance"]
        summary["retained"] = retained(summary["mean"], result["teacher"]["quality"], chance)
    else:
        summary["gap"] = summary["mean"] - result["teacher"]["quality"]
    others = [arm for arm in (BASELINE, SCRATCH) if arm in outcomes]
    if not others:
        return
    sign = 1 if metric.higher_is_better else -1
    best = max(others, key=lambda arm: sign * np.mean([outcome.trained.validation for outcome in outcomes[arm]]))
    test = job.splits.test
    if job.recipe.compare.seeds > 1:
        qualities = [[outcome.quality for outcome in outcomes[arm]] for arm in (STUDENT, best)]
        difference = over_seeds(*qualities)
    elif metric.scores is not None:
        scores = [metric.scores(outcomes[arm][0].answers, test) for arm in (STUDENT, best)]
        known = ~np.isnan(scores[0])
        difference = over_samples(scores[0][known], scores[1][known])
    else:
        difference = Difference(summary["mean"] - result["arms"][best]["mean"], None, "test samples")
    summary["difference"] = {"to": best, **asdict(difference)}


def write_predictions(job: Job, place: Path, rows: dict[str, NDArray[np.float32]]) -> None:
    """predictions.npz: of classes, labels [N] and each column's probabilities [N, K]; of others what the metric keeps.
    examples.npz: the images where the student left the teacher most."""
    test = job.splits.test
    if job.metric is not ACCURACY:
        save_arrays(place / "predictions.npz", rows)
        return
    probabilities = {name: torch.from_numpy(logits).softmax(-1).numpy() for name, logits in rows.items()}
    save_arrays(place / "predictions.npz", {"labels": test.labels} | probabilities)
    student, teacher = (torch.from_numpy(rows[name]).log_softmax(-1) for name in (STUDENT, TEACHER))
    left = (teacher.exp() * (teacher - student)).sum(-1)
    worst = left.topk(min(WORST_EXAMPLES, len(left))).indices.numpy()
    if isinstance(test, ImageSamples):
        save_arrays(place / "examples.npz", {"pixels": test.images.pixels[worst], "indices": worst})
    elif isinstance(test, Sequences):
        shown = [" ⏎ ".join(texts) for texts in test.texts.at(worst, "").both]
        folder.write_json(place / "examples.json", {"texts": shown, "indices": worst.tolist()})


def save_arrays(path: Path, arrays: dict[str, NDArray[Any]]) -> None:
    """Writes an .npz whole, or leaves the previous one."""
    partial = path.with_suffix(".partial.npz")
    np.savez_compressed(partial, allow_pickle=False, **arrays)
    partial.replace(path)
