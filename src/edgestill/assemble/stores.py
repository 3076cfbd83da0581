"""The store of a recipe: what it is of, how it is to be kept, and whether one that is named belongs."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgestill.assemble.job import Job
from edgestill.capture import Teacher, check_answers
from edgestill.errors import UserError
from edgestill.losses import OF_SAMPLES, POOLING, SOFT_LOSSES
from edgestill.models import TextInput, example, fingerprint, forward, to_device
from edgestill.objective import averaged
from edgestill.recipe import IMAGES, Recipe
from edgestill.signals import Signal
from edgestill.store import Codec, Dense, Description, Sampled, Store, Tap, TopK, Views, refuse_other
from edgestill.store.size import bytes_a_position, cut
from edgestill.taps import record
from edgestill.tasks.images import ImageSamples
from edgestill.tasks.samples import Batch
from edgestill.tasks.tokens import Blocks
from edgestill.teachers.online import OnlineTeacher

AS_THEY_ARE = "none"
NOTES = ("transformers_version", "architectures", "dtype")
"""What a configuration says of how it was saved, which no answer depends on."""
MIXED = "train.mixup: a store holds what the teacher says of single samples: set mixup to 0"


def description_of(job: Job) -> Description:
    """What a capture of a job makes. UserError for what no store can hold."""
    if job.recipe.task == "sentence-embedding":
        raise UserError("capture: sentence-embedding learns from the texts of a whole batch, which no store holds")
    if job.recipe.train.mixup:
        raise UserError(MIXED)
    section, of = job.recipe.capture, identity_of(job)
    codec, taps = codec_of(job.recipe, section.codec, of["classes"]), taps_of(job)
    of_row = of["positions"] / of["samples"] * bytes_a_position(codec, of["classes"]) + sum(tap.bytes for tap in taps)
    views = Views(section.views if of["views"].how != AS_THEY_ARE else 1, section.seed, of["views"].how)
    rows, batches = cut(of_row, section.batch, of["samples"] * views.count)
    return Description(**of | {"views": views}, codec=codec, taps=taps, batch=section.batch, rows=rows, batches=batches)


def identity_of(job: Job) -> dict[str, Any]:
    """What signals are of, in the order in which it is compared; how many views of which seed is the store's to say."""
    samples, views = job.splits.train, job.recipe.train.views
    augmented = job.recipe.task in IMAGES and (views.crop or views.flip or views.policy != "none")
    how = f"crop {views.crop}, flip {views.flip}, policy {views.policy}" if augmented else AS_THEY_ARE
    positions = samples.positions
    return {
        "input": _input(job),
        "data": samples.fingerprint if not isinstance(samples, Blocks) else f"{samples.fingerprint} {_cut(samples)}",
        "samples": len(samples),
        "positions": int(positions.sum()),
        "classes": _classes(job),
        "views": Views(how=how),
        "configuration": _configuration(job),
        "teacher": f"{fingerprint(job.teacher.module)} in {job.recipe.teacher.precision}, "
        f"autocast {job.recipe.train.precision}",
    }


def _configuration(job: Job) -> str:
    """What a teacher's answers depend on beside its weights and its code; of that the answers themselves tell."""
    section = job.recipe.teacher
    config: Any = getattr(job.teacher.module, "config", None)
    told = json.loads(config.to_json_string()) if hasattr(config, "to_json_string") else {}
    told = {key: value for key, value in told.items() if key not in NOTES}
    depends = {"classes": section.classes, "options": section.options, "config": told}
    return hashlib.blake2b(json.dumps(depends, sort_keys=True, default=str).encode(), digest_size=8).hexdigest()


def _cut(blocks: Blocks) -> str:
    """How texts became blocks: a chat's template is in no other fingerprint."""
    found = hashlib.blake2b(digest_size=8)
    for part in (blocks.ids, blocks.starts, blocks.ends, blocks.learned):
        if part is not None:
            found.update(np.ascontiguousarray(part).data)
    return found.hexdigest()


def without_store(recipe: Recipe) -> Recipe:
    """The recipe whose teacher is asked."""
    return recipe.model_copy(update={"teacher": recipe.teacher.model_copy(update={"store": None})})


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
        if keep == "int8" and len(shape) == 1:
            raise UserError(f"capture.taps: {path} is a vector, which int8 makes no smaller: keep it pooled")
        found.append(Tap(path, keep, shape[-1:] if texts else shape))
    return tuple(found)


def check_taps(job: Job, taps: Sequence[Tap], what: str) -> None:
    """UserError for a term whose teacher tap is not among those kept, or not as the term needs it."""
    kept = {tap.path: tap.keep for tap in taps}
    texts = isinstance(job.teacher.input, TextInput)
    used = {name for names in job.phase_terms.values() for name in names}
    for name, term in job.terms.items():
        for path in term.teacher_taps if name in used else ():
            loss = getattr(term.loss, "func", term.loss)
            if path not in kept:
                raise UserError(
                    f"the term {name} needs the teacher's tap {path}, and {what} "
                    f"{', '.join(kept) or 'none'}: capture it with capture.taps, or leave the term out"
                )
            if kept[path] == "pooled" and loss not in (OF_SAMPLES if texts else POOLING):
                raise UserError(
                    f"the term {name} needs all of the teacher's tap {path}, and {what} its "
                    "mean over positions: capture it as int8, or leave the term out"
                )


def _temperatures(recipe: Recipe) -> list[float]:
    """Those at which the recipe's phases learn from the teacher."""
    own = recipe.distill.temperature
    taught = [phase for phase in recipe.phases if phase.alpha != 0]
    return list(dict.fromkeys(phase.temperature or own for phase in taught)) or [own]


def open_store(recipe: Recipe) -> Store | None:
    """The store that a recipe's teacher is read from. UserError where there is none, or its codec does not serve what
    the recipe learns; `check_store` asks whether it is of the same teacher, data and views."""
    if recipe.teacher.store is None:
        return None
    store = Store.open(Path(recipe.teacher.store))
    if recipe.train.mixup:
        raise UserError(MIXED)
    check_served(recipe, store.description.codec, f"the store {store.folder}")
    return store


def check_served(recipe: Recipe, codec: Codec, what: str) -> None:
    """UserError for a phase whose soft part a codec does not serve, with the codec that does."""
    name = recipe.distill.loss
    for phase in recipe.phases:
        alpha = recipe.distill.alpha if phase.alpha is None else phase.alpha
        if not alpha or name == "none":
            continue
        temperature = phase.temperature or recipe.distill.temperature
        why = codec.refuses(SOFT_LOSSES.get(name), temperature, recipe.distill.standardize)
        if why is not None:
            raise UserError(f"{what} cannot serve {name} of the phase {phase.name}: {why}")


def check_store(job: Job, *, unfitted: bool = False) -> None:
    """UserError, with both values, where the job's store is of another teacher, input, data or views, or its teacher
    answers otherwise now; of a teacher that is still to be fitted, all but what it takes to ask it."""
    if job.store is None:
        return
    found, wanted = job.store.description, identity_of(job)
    wanted["views"] = asdict(replace(found.views, how=wanted["views"].how))
    if unfitted:
        del wanted["teacher"]
    refuse_other(job.store.folder, found, wanted)
    if job.unmeasured:
        raise UserError("map: auto measures the teacher's taps, and a store holds but some: name a map, or the taps")
    check_taps(job, found.taps, f"the store {job.store.folder} holds")
    if not unfitted:
        check_answers(job.store, job.splits.train, online(job), coarsest(job))


def online(job: Job) -> Teacher:
    """The teacher as a capture asks it, in the precision of a training: of texts, a tap is the mean over the valid
    tokens."""
    precision = torch.bfloat16 if job.recipe.train.precision == "bf16" else torch.float32
    teacher, expected = OnlineTeacher(job.teacher, job.device, precision), job.teacher.input

    def of_texts(batch: Batch, taps: Sequence[str]) -> Signal:
        signal = teacher(batch, taps)
        if not taps:
            return signal
        tokens = batch.valid(expected, job.device)
        assert tokens is not None
        return Signal(signal.logits, {path: averaged(tap, tokens) for path, tap in signal.taps.items()})

    return of_texts if isinstance(expected, TextInput) else teacher


def coarsest(job: Job) -> torch.dtype:
    """The type of fewest places that a stored answer went through."""
    return torch.bfloat16 if "bf16" in (job.recipe.teacher.precision, job.recipe.train.precision) else torch.float16


def _classes(job: Job) -> int:
    vocabulary = getattr(job.splits.train, "vocabulary", None)
    if vocabulary is not None:
        return int(vocabulary)
    return 1 if job.recipe.data.label == "number" else len(job.splits.train.classes)


def _input(job: Job) -> str:
    """What the teacher is given: the normalisation of pixels of a shape, or the tokenizer with the length of a text."""
    expected = job.teacher.input
    if isinstance(expected, TextInput):
        return f"tokenizer {expected.fingerprint}, {expected.length} tokens"
    assert isinstance(job.splits.train, ImageSamples)
    first = job.splits.train.images.pixels[np.arange(1)]
    return f"{expected!r} of {[*first.shape[1:]]}"
