"""The trainings under comparison: a teacher where it is fitted, and each arm over its seeds. N samples, K classes."""

import hashlib
import json
import os
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from math import log2
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray

from edgestill import checkpoint, folder
from edgestill.assemble import BASELINE, QUANTIZED, SCRATCH, STUDENT, TEACHER, Job
from edgestill.data.curriculum import ranks_within_class
from edgestill.errors import UserError
from edgestill.evaluate.classification import ACCURACY
from edgestill.evaluate.metric import Metric, predictor
from edgestill.models import (
    ImageInput,
    Model,
    TextInput,
    embedding_of,
    load_weights,
    lower,
    save_student,
    save_weights,
    to_device,
)
from edgestill.paths import cache_folder
from edgestill.progress import silent
from edgestill.students.lora import adapted
from edgestill.tasks.samples import Samples
from edgestill.tasks.tokens import Blocks
from edgestill.teachers.online import OnlineTeacher
from edgestill.teachers.stored import StoredTeacher
from edgestill.train import Track, Trained, train

Log = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Outcome:
    """One arm's training with one seed, and its reading of the test set."""

    seed: int
    quality: float
    trained: Trained
    answers: NDArray[np.float32]


def saved_step(out: Path, arm: str, seed: int) -> float:
    """The step that a training was last saved at: infinity once it is finished, 0 where nothing was saved."""
    place = place_of(out, arm, seed)
    if (place / "final.pt").is_file():
        return float("inf")
    saved = checkpoint.load(place / "last.pt")
    return saved["step"] if saved else 0


def place_of(out: Path, arm: str, seed: int) -> Path:
    """Where an arm's training with a seed keeps its state."""
    return out / "arms" / arm / str(seed)


def arm_model(job: Job, out: Path, arm: str, seed: int) -> Model | None:
    """The model that an arm's training with a seed ended with, where it did."""
    saved = checkpoint.load(place_of(out, arm, seed) / "final.pt")
    if saved is None:
        return None
    model = job.student(seed, arm)
    model.module.load_state_dict(saved["student"])
    return model


def answers(job: Job, model: Model, samples: Samples, what: str, track: Track) -> NDArray[np.float32]:
    """What the metric keeps of a model's outputs on a split, with a progress bar."""
    predict = predictor(to_device(model.module, job.device), model.input, job.device)
    return job.metric.answers(predict, samples, model.input, track=track, description=what)


def fits_teacher(job: Job) -> bool:
    """Whether the run makes its teacher itself."""
    return job.recipe.teacher.weights is None and job.recipe.teacher.fit is not None


def arm_names(job: Job) -> list[str]:
    """The arms in the order in which each seed trains them. Without a float phase there is nothing to compare."""
    compare = job.recipe.compare
    if not job.schedule(STUDENT).steps:
        return [STUDENT]
    section = job.recipe.student  # adapters alone make nothing of random weights
    scratch = compare.scratch and section.from_teacher is not None and section.lora is None
    return [BASELINE] * compare.baseline + [STUDENT] + [SCRATCH] * scratch


def follow(job: Job, out: Path, resume: bool, teachers: Path | None = None) -> None:
    """The part of the other processes in what `run` does on process 0: their share of the trainings, one by one."""

    def log(line: dict[str, Any]) -> None:
        """Process 0 logs."""

    if fits_teacher(job):
        fit_teacher(job, out, log, silent, resume, teachers)
    ranks = job.processes.first(lambda: difficulty(job, silent))
    for seed in range(job.recipe.compare.seeds):
        for arm in arm_names(job):
            if not job.processes.first(lambda: False):  # finished before
                _train(job, arm, seed, job.student(seed, arm), ranks, out, log, silent, resume)


def fit_teacher(job: Job, out: Path, log: Log, track: Track, resume: bool, teachers: Path | None = None) -> None:
    """Fits the teacher in place on all training labels, or takes the one that another run fitted so, and kept: in
    `teachers`, or in the cache where the recipe says so. It is saved, and brought into the precision that it teaches
    in."""
    fit, teacher = job.recipe.teacher.fit, job.teacher
    if fit is not None and fit.keep:
        teachers = cache_folder() / "teachers"
    kept = teachers / f"{_same_teacher(job)}.safetensors" if teachers is not None else None
    if kept is not None and job.processes.first(kept.is_file):
        load_weights(teacher.module, kept)
    else:
        _train(job, TEACHER, 0, teacher, None, out, log, track, resume)
        if kept is not None and job.processes.main:
            kept.parent.mkdir(parents=True, exist_ok=True)
            partial = kept.with_name(f".{os.getpid()}.safetensors")
            save_weights(teacher.module, partial)
            os.replace(partial, kept)
    if job.processes.main:
        save_student(teacher, out / "teacher", job.splits.train.classes)
    teacher.module.zero_grad(set_to_none=True)
    lower(teacher.module, job.recipe.teacher.precision, teacher.spec)


def _same_teacher(job: Job) -> str:
    """A name for all that a fitted teacher's weights depend on."""
    recipe = job.recipe
    section = recipe.teacher.model_dump(mode="json", exclude={"licence", "precision", "store"})
    depends = {
        "teacher": section,
        "train": recipe.train.model_dump(mode="json", include={"views", "precision", "clip", "accumulate", "lr_shape"}),
        "data": job.splits.fit.fingerprint,
        "files": folder.contents(yaml.safe_dump({"teacher": section})),
        "input": repr(job.teacher.input),
        "vocabulary": getattr(job.splits.fit, "vocabulary", None),
        "pooling": None if (embedding := embedding_of(job.teacher.module)) is None else embedding.pooling,
        "torch": torch.__version__,
    }
    return hashlib.blake2b(json.dumps(depends, sort_keys=True).encode(), digest_size=16).hexdigest()


def check_teacher(metric: Metric, quality: float, samples: Samples, teacher: Model) -> None:
    """UserError where the teacher is no better on validation than guessing: for classes, naming the most frequent; for
    tokens, drawing each at random."""
    if isinstance(samples, Blocks):
        _check_language_model(quality, samples, teacher)
        return
    if metric is not ACCURACY:
        if not quality > 0:
            raise UserError(
                f"the teacher is no better than guessing: {quality:.3f} {metric.name} on validation; {_remedy(teacher)}"
            )
        return
    labels = samples.labels
    counts = np.bincount(labels[labels >= 0])
    guess = float(counts.max() / counts.sum())
    noise = 3 * float(np.sqrt(guess * (1 - guess) / counts.sum()))
    if quality <= guess + noise:
        raise UserError(
            f"the teacher is no better than guessing: {quality:.1%} on validation, the most frequent class alone gives "
            f"{guess:.1%}; {_remedy(teacher)}"
        )


def _remedy(teacher: Model) -> str:
    """What may be wrong with a teacher that guesses."""
    expected = teacher.input
    if isinstance(expected, ImageInput):
        return (
            f"does it expect another normalisation than teacher.input.mean {[*expected.mean]} and "
            f"std {[*expected.std]}, or are its classes in another order?"
        )
    return (
        f"is its tokenizer ({type(expected.tokenizer).__name__}) another model's, are its classes in another order, or "
        "is it not trained (teacher.fit)?"
    )


def _check_language_model(quality: float, blocks: Blocks, teacher: Model) -> None:
    assert isinstance(teacher.input, TextInput)
    vocabulary = blocks.vocabulary or len(teacher.input.tokenizer)
    guess = log2(vocabulary) * int(blocks.positions.sum()) / max(int(blocks.bytes.sum()), 1)
    if not quality < guess:
        raise UserError(
            f"the teacher is no better than guessing: {quality:.3f} bits per byte on validation, one of {vocabulary:,} "
            f"tokens at random gives {guess:.3f}; is its tokenizer ({type(teacher.input.tokenizer).__name__}) another "
            "model's, or is it not trained (teacher.fit)?"
        )


def difficulty(job: Job, track: Track) -> NDArray[np.float64] | None:
    """Rank [N] of each training sample within its class by the teacher's own loss, where a phase asks for it.

    An unlabelled sample is ranked in the class that the teacher names, by its loss on that.
    """
    if all(phase.order == "uniform" for phase in job.recipe.phases):
        return None
    samples = job.splits.train
    if job.store is not None:
        classes = samples.labels
        if job.metric is ACCURACY and (classes < 0).any():
            classes = np.where(classes >= 0, classes, job.store.likeliest())
        losses = job.store.losses()
        if isinstance(samples, Blocks):  # of a token, where texts are ranked by what a byte costs
            losses = losses * samples.positions / np.maximum(samples.bytes, 1)
        return ranks_within_class(losses, classes)
    rows = answers(job, job.teacher, samples, "teacher: ranking by loss", track)
    classes = samples.labels
    if job.metric is ACCURACY:
        classes = np.where(classes >= 0, classes, rows.argmax(1))
    return ranks_within_class(job.metric.losses(rows, samples), classes)


def train_arm(
    job: Job,
    arm: str,
    seed: int,
    ranks: NDArray[np.float64] | None,
    out: Path,
    log: Log,
    track: Track,
    resume: bool,
    begun: Model | None = None,
) -> tuple[Model, Outcome]:
    """Trains an arm with a seed, from the model that it has `begun` with, and reads the test set with its final model,
    once. A finished arm is read back."""
    place = place_of(out, arm, seed)
    student = begun or job.student(seed, arm)
    finished = checkpoint.load(place / "final.pt") if resume else None
    job.processes.first(lambda: finished is not None)
    if finished is not None:
        student.module.load_state_dict(finished["student"])
        rows = finished["answers"].numpy()
        trained = Trained(**finished["trained"])
    else:
        trained = _train(job, arm, seed, student, ranks, out, log, track, resume)
        rows = answers(job, student, job.splits.test, f"{arm} seed {seed}: test set", track)
        state = {
            "student": student.module.state_dict(),
            "answers": torch.from_numpy(rows),
            "trained": asdict(trained),
        }
        checkpoint.save(state, place / "final.pt")
    quality = job.metric.quality(rows, job.splits.test)
    folder.write_text(place / "outcome.json", json.dumps({"seed": seed, "quality": quality, **asdict(trained)}) + "\n")
    return student, Outcome(seed, quality, trained, rows)


def train_short(
    job: Job, seed: int, ranks: NDArray[np.float64] | None, out: Path, track: Track, resume: bool
) -> Trained:
    """Trains the student with a seed, without reading the test set."""
    return _train(job, STUDENT, seed, job.student(seed), ranks, out, lambda line: None, track, resume)


def _train(
    job: Job,
    arm: str,
    seed: int,
    model: Model,
    ranks: NDArray[np.float64] | None,
    out: Path,
    log: Log,
    track: Track,
    resume: bool,
) -> Trained:
    teacher: OnlineTeacher | StoredTeacher | None = None
    if not job.schedule(arm).phases:  # a student with weights, and a phase that trains it for 8 bits alone
        return Trained(job.validate(model.input)(to_device(model.module, job.device)))
    if arm in (STUDENT, QUANTIZED):
        precision = torch.bfloat16 if job.recipe.train.precision == "bf16" else torch.float32
        teacher = (
            StoredTeacher(job.store, job.device)
            if job.store is not None
            else OnlineTeacher(job.teacher, job.device, precision)
        )
    torch.manual_seed(seed)
    objective = job.objective(arm)
    if arm == QUANTIZED and (student := checkpoint.load(place_of(out, STUDENT, seed) / "last.pt")):
        objective.load_state_dict(student["objective"])  # aligners go on from where the student's ended
    torch.manual_seed(seed)  # again: what the aligners drew must not shift the student's dropout against the baseline's
    lora = job.lora if arm != TEACHER else None
    with nullcontext() if lora is None else adapted(model.module, lora, model.fresh):
        return train(
            model,
            schedule=job.schedule(arm),
            batch_at=job.batches(arm, seed, ranks),
            objective=objective,
            teacher=teacher,
            validate=job.validate(model.input),
            options=job.options(arm),
            folder=place_of(out, arm, seed),
            log=lambda line: log({"arm": arm, "seed": seed, **line}),
            track=lambda items, _, total: track(
                items, f"{arm} seed {seed}" if arm != TEACHER else "teacher: fitting", total
            ),
            resume=resume,
            processes=job.processes,
        )
