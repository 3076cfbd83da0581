"""The store of a recipe: what it is of, how it is to be kept, and whether one that is named belongs."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from edgestill.assemble.data import Splits
from edgestill.assemble.job import Job
from edgestill.errors import UserError
from edgestill.losses import OF_SAMPLES, POOLING, SOFT_LOSSES
from edgestill.models import Model, TextInput, example, fingerprint, forward, to_device
from edgestill.recipe import IMAGES, Recipe
from edgestill.store import Codec, Dense, Description, Sampled, Store, Tap, TopK, Views, refuse_other
from edgestill.taps import record

BATCH_BYTES, SHARD_BYTES = 2**20, 2**26
"""A record batch has at least so many bytes, if its store has: what is read, checked and captured again at once. A
shard at most about so many: what is lost where a capture is stopped."""
FRAME = 600
"""Bytes that Arrow takes around a record batch, and at the end of a file, about."""


def description_of(job: Job) -> Description:
    """What a capture of a job makes. UserError for what no store can hold."""
    if job.recipe.task == "sentence-embedding":
        raise UserError("capture: sentence-embedding learns from the texts of a whole batch, which no store holds")
    if job.recipe.train.mixup:
        raise UserError("train.mixup: a store holds what the teacher says of single samples: set mixup to 0")
    section, samples = job.recipe.capture, job.splits.train
    positions = samples.positions
    classes = _classes(job)
    codec, taps = codec_of(job.recipe, section.codec, classes), taps_of(job)
    of_row = max(1.0, float(positions.mean())) * _bytes(codec, classes) + 12 + sum(tap.bytes for tap in taps)
    rows = section.batch * max(1, round(BATCH_BYTES / (of_row * section.batch)))
    views = job.recipe.train.views
    augmented = job.recipe.task in IMAGES and (views.crop or views.flip or views.policy != "none")
    how = f"crop {views.crop}, flip {views.flip}, policy {views.policy}" if augmented else "none"
    return Description(
        teacher=f"{fingerprint(job.teacher.module)} in {job.recipe.teacher.precision}",
        input=_input(job.teacher),
        data=samples.fingerprint,
        samples=len(samples),
        positions=int(positions.sum()),
        classes=classes,
        views=Views(section.views if augmented else 1, section.seed, how),
        codec=codec,
        taps=taps,
        batch=section.batch,
        rows=rows,
        batches=max(1, round(SHARD_BYTES / (of_row * rows))),
    )


def codec_of(recipe: Recipe, name: str, classes: int) -> Codec:
    """A codec with what a recipe's `capture` says of it. UserError where it does not fit the classes."""
    section = recipe.capture
    temperatures = tuple(section.temperatures or _temperatures(recipe))
    if name == "dense":
        return Dense()
    if name == "top-k":
        if section.k >= classes:
            raise UserError(f"capture.k: top-k keeps fewer than all {classes} classes; {section.k} came: take dense")
        return TopK(section.k, temperatures)
    if len(temperatures) > 1:
        given = ", ".join(f"{one:g}" for one in temperatures)
        raise UserError(f"capture.temperatures: sampled draws at one temperature; {given} came: name one, or top-k")
    return Sampled(section.draws, temperatures[0])


def taps_of(job: Job) -> tuple[Tap, ...]:
    """The taps that a recipe's `capture` keeps, with their shapes. UserError for those that have none of their own."""
    asked, teacher, texts = job.recipe.capture.taps, job.teacher, isinstance(job.teacher.input, TextInput)
    if not asked:
        return ()
    probe = example(teacher.input, 2)
    with torch.no_grad(), record(to_device(teacher.module, torch.device("cpu")).eval(), [*asked]) as taps:
        forward(teacher.module, probe)
    found = []
    for path, keep in asked.items():
        shape = tuple(taps[path].shape[1:])
        if texts and (keep != "pooled" or len(shape) != 2):
            raise UserError(f"capture.taps: {path}: of texts, which differ in length, hidden states are kept, pooled")
        found.append(Tap(path, keep, shape[-1:] if texts else shape))
    return tuple(found)


def _check_taps(job: Job, store: Store) -> None:
    """UserError for a term whose teacher tap the store has not, or not as the term needs it."""
    kept = {tap.path: tap.keep for tap in store.description.taps}
    texts = isinstance(job.teacher.input, TextInput)
    used = {name for names in job.phase_terms.values() for name in names}
    for name, term in job.terms.items():
        for path in term.teacher_taps if name in used else ():
            loss = getattr(term.loss, "func", term.loss)
            if path not in kept:
                raise UserError(
                    f"the term {name} needs the teacher's tap {path}, and the store {store.folder} holds "
                    f"{', '.join(kept) or 'none'}: capture it with capture.taps, or leave the term out"
                )
            if kept[path] == "pooled" and loss not in (OF_SAMPLES if texts else POOLING):
                raise UserError(
                    f"the term {name} needs all of the teacher's tap {path}, and the store {store.folder} holds its "
                    "mean over positions: capture it as int8, or leave the term out"
                )


def _temperatures(recipe: Recipe) -> list[float]:
    """Those at which the recipe's phases learn from the teacher."""
    own = recipe.distill.temperature
    taught = [phase for phase in recipe.phases if phase.alpha != 0]
    return list(dict.fromkeys(phase.temperature or own for phase in taught)) or [own]


def open_store(recipe: Recipe, splits: Splits, teacher: Model) -> Store | None:
    """The store that a recipe's teacher is read from. UserError, before any training, where it is of other data, or
    its codec does not serve what the recipe learns; `check_store` asks whether it is of the same teacher."""
    if recipe.teacher.store is None:
        return None
    store = Store.open(Path(recipe.teacher.store))
    name = recipe.distill.loss
    for phase in recipe.phases:
        alpha = recipe.distill.alpha if phase.alpha is None else phase.alpha
        if not alpha or name == "none":
            continue
        temperature = phase.temperature or recipe.distill.temperature
        why = store.description.codec.refuses(SOFT_LOSSES.get(name), temperature, recipe.distill.standardize)
        if why is not None:
            raise UserError(f"the store {store.folder} cannot serve {name} of the phase {phase.name}: {why}")
    return store


def check_store(job: Job, *, unfitted: bool = False) -> None:
    """UserError, with both values, where the job's store is of another teacher, input, data or views; of a teacher
    that is still to be fitted, all but the first."""
    if job.store is None:
        return
    wanted, found = description_of(job), job.store.description
    # how many views of which seed is the store's to say
    wanted = replace(wanted, views=replace(found.views, how=wanted.views.how))
    refuse_other(job.store.folder, found, replace(wanted, teacher=found.teacher) if unfitted else wanted)
    _check_taps(job, job.store)


def _classes(job: Job) -> int:
    vocabulary = getattr(job.splits.train, "vocabulary", None)
    if vocabulary is not None:
        return int(vocabulary)
    return 1 if job.recipe.data.label == "number" else len(job.splits.train.classes)


def bytes_of(description: Description, of_position: float | None = None) -> int:
    """How many bytes a store is going to have, to a hundredth where a position has as many as are said."""
    of = description
    positions = of.positions * (_bytes(of.codec, of.classes) if of_position is None else of_position)
    lists = 0 if of.positions == of.samples else len(of.codec.columns(of.classes))
    if isinstance(of.codec, Sampled):
        lists = max(lists, 2)
    positions += of.samples * sum(tap.bytes for tap in of.taps)
    around = FRAME * -(-of.total // of.rows) + FRAME * of.shards
    return round(of.views.count * (positions + (12 + 4 * lists) * of.samples) + around)


def _bytes(codec: Codec, classes: int) -> float:
    """Of a position, about."""
    if isinstance(codec, Sampled):
        return 3.0 * codec.draws + 5
    return float(sum(np.dtype(column.dtype).itemsize * (column.width or 1) for column in codec.columns(classes)))


def _input(teacher: Model) -> str:
    expected = teacher.input
    if isinstance(expected, TextInput):
        return f"tokenizer {expected.fingerprint}, {expected.length} tokens"
    return repr(expected)
