"""The splits that a recipe names."""

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from edgestill.data.sources import load_splits, splits_of
from edgestill.data.splitting import Samples as Split
from edgestill.data.splitting import check_apart, hold_out, keep_labels
from edgestill.data.texts import ENDINGS, Texts, load_texts
from edgestill.errors import UserError
from edgestill.models import TextInput
from edgestill.recipe import IMAGES, Recipe
from edgestill.tasks.embeddings import Embeddings
from edgestill.tasks.images import ImageSamples, Views
from edgestill.tasks.samples import Samples
from edgestill.tasks.sequences import Sequences
from edgestill.tasks.tokens import Blocks, conversations, packed
from edgestill.train import Track

_log = logging.getLogger("edgestill")


@dataclass(frozen=True)
class Splits:
    """The data of a run. `train` has the labels that the arms see, `fit` those that a fitted teacher sees; `skipped`
    counts, by split as it was read, what was left out: broken images, and conversations without an answer to learn."""

    train: Samples
    fit: Samples
    validation: Samples
    test: Samples
    skipped: dict[str, int] = field(default_factory=dict)


def image_splits(recipe: Recipe, track: Track) -> Splits:
    data, views = recipe.data, recipe.train.views
    loaded = load_splits(_named(recipe), size=data.size, workers=data.workers, on_error=data.on_error, track=track)
    skipped = {name: len(images.skipped) for name, images in loaded.items() if images.skipped}
    for name, count in skipped.items():
        first = "; ".join(loaded[name].skipped[:3]) + ("; …" if count > 3 else "")
        _log.warning("edgestill: %d broken images of the %s split are left out: %s", count, name, first)
    fit, validation = _labelled(recipe, loaded)
    if len(fit.classes) < 2:
        raise UserError(
            f"data: at least two classes are needed; there is {', '.join(map(repr, fit.classes)) or 'none'}"
        )
    train = fit if data.labels_per_class is None else keep_labels(fit, data.labels_per_class, seed=0)
    seen = Views(views.crop, views.flip, views.policy, recipe.train.mixup)
    return Splits(
        ImageSamples(train, seen),
        ImageSamples(fit, replace(seen, mixup=0.0)),
        ImageSamples(validation),
        ImageSamples(loaded["test"]),
        skipped,
    )


def load_text_splits(recipe: Recipe) -> dict[str, Texts]:
    """The splits of texts as they are read."""
    kinds = {"language-modeling": "none", "instruction": "messages", "sentence-embedding": "similarity"}
    label = kinds.get(recipe.task, recipe.data.label)
    return load_texts(
        _named(recipe, ENDINGS),
        columns={str(name): column for name, column in recipe.data.columns.items()},
        label=label,
    )


def sequence_splits(recipe: Recipe, loaded: dict[str, Texts]) -> Splits:
    """Texts with a label each."""
    fit, validation = _labelled(recipe, loaded)
    if recipe.data.label == "class" and len(fit.classes) < 2:
        raise UserError(
            f"data: at least two classes are needed; there is {', '.join(map(repr, fit.classes)) or 'none'}"
        )
    kept = recipe.data.labels_per_class
    train = fit if kept is None else keep_labels(fit, kept, seed=0)
    sequences = Sequences(fit)
    return Splits(
        sequences if train is fit else Sequences(train), sequences, Sequences(validation), Sequences(loaded["test"])
    )


def embedding_splits(recipe: Recipe, loaded: dict[str, Texts]) -> Splits:
    """Texts to embed; those that quality is measured on are pairs, with a number for how alike the two are."""
    fit = loaded["train"]
    labelled = bool((fit.labels >= 0).any())
    if "validation" in loaded:
        validation = loaded["validation"]
    elif labelled:
        fit, validation = hold_out(fit, float(recipe.data.validation), seed=0)
    else:
        raise UserError(
            "data.validation: needs pairs of texts with a number each, and the training split has none to hold out: "
            "name a split that has the columns text, text_pair and label"
        )
    for name, samples in (("validation", validation), ("test", loaded["test"])):
        assert samples.values is not None
        if samples.pairs is None or len(np.unique(samples.values[samples.labels >= 0])) < 2:
            raise UserError(
                f"data: the {name} split needs pairs of texts, each with a number for how alike the two are, by which "
                f"quality is measured: {samples.source} needs the columns text, text_pair and label, not all alike"
            )
    check_apart(loaded)
    span = (0.0, 1.0)
    if labelled:
        assert fit.values is not None
        span = float(np.nanmin(fit.values)), float(np.nanmax(fit.values))
        if span[0] == span[1]:
            raise UserError(f"data: all labels of {fit.source} are {span[0]:g}, from which no similarity is learned")
    else:
        _refuse_unlabelled(recipe)
    train = Embeddings(fit, span)
    return Splits(train, train, Embeddings(validation, span), Embeddings(loaded["test"], span))


def _refuse_unlabelled(recipe: Recipe) -> None:
    """UserError for what learns from labels, where training has texts alone."""
    why = "the training split has no pairs with a number each, and without them all is learned from the teacher"
    arms = ["compare.baseline"] * recipe.compare.baseline
    scratch = recipe.compare.scratch and recipe.student.from_teacher is not None and recipe.student.lora is None
    arms += ["compare.scratch"] * scratch
    if arms:
        raise UserError(
            f"{' and '.join(arms)}: {why}: set {' and '.join(f'{arm}=false' for arm in arms)}, or give some"
        )
    if recipe.teacher.fit is not None and recipe.teacher.weights is None:
        raise UserError(f"teacher.fit: {why}: name a teacher that is trained")
    for phase in recipe.phases:
        alpha = recipe.distill.alpha if phase.alpha is None else phase.alpha
        terms = recipe.distill.terms if phase.terms is None else phase.terms
        if not terms and (alpha == 0 or recipe.distill.loss == "none"):
            raise UserError(f"phases.{phase.name}: {why}; this phase has no part of it")
        if phase.order != "uniform":
            raise UserError(f"phases.{phase.name}: {why}; {phase.order} goes by labels: set order to uniform")


def block_splits(recipe: Recipe, loaded: dict[str, Texts], expected: TextInput, vocabulary: int) -> Splits:
    """Texts packed into blocks of tokens, or a block for each conversation."""
    made = conversations if recipe.task == "instruction" else packed
    blocks = {name: replace(made(texts, expected), vocabulary=vocabulary) for name, texts in loaded.items()}
    for name, split in blocks.items():
        _check_blocks(recipe, name, split, expected)
    check_apart(blocks)
    left_out = {name: split.unanswered for name, split in blocks.items() if split.unanswered}
    for name, count in left_out.items():
        _log.warning(
            "edgestill: %d conversations of the %s split are left out: nothing of their answers lies within "
            "data.length, %d; raise it to learn from them", count, name, expected.length,
        )  # fmt: skip
    if "validation" in blocks:
        return Splits(blocks["train"], blocks["train"], blocks["validation"], blocks["test"], left_out)
    train, validation = hold_out(blocks["train"], float(recipe.data.validation), seed=0)
    return Splits(train, train, validation, blocks["test"], left_out)


def _check_blocks(recipe: Recipe, name: str, split: Blocks, expected: TextInput) -> None:
    """UserError for a split of which too little, or nothing, can be learned or measured."""
    data, chat, count = recipe.data, recipe.task == "instruction", len(split)
    if (split.cut or split.unanswered) and data.too_long == "refuse":
        raise UserError(
            f"data: {split.cut + split.unanswered} conversations of {split.source} have more tokens than data.length, "
            f"{expected.length}; raise it, or set data.too_long to cut"
        )
    if not count and chat:
        raise UserError(
            f"data: nothing of the answers in the {name} split lies within the first {expected.length} tokens of its "
            f"{split.unanswered} conversations ({split.source}): raise data.length"
        )
    if not count:
        raise UserError(f"data: the {name} split has no two tokens to learn from: give {split.source} more text")
    if not split.bytes.any():
        raise UserError(
            f"data: the {name} split holds no text, of which bits a byte could be told: give {split.source} some"
        )
    if name != "train":
        return
    many = "s" * (count != 1)
    made = f"{count} conversation{many} with an answer" if chat else f"{count} block{many} of {expected.length} tokens"
    more = "give more conversations" if chat else "give more text, lower data.length"
    if split.unanswered:
        made += f" within data.length, {expected.length}, and {split.unanswered} without"
        more += ", raise data.length"
    if count < recipe.train.batch_size:
        raise UserError(
            f"data: the training split makes {made}, less than a batch of {recipe.train.batch_size}: {more}, or lower "
            "train.batch_size"
        )
    if isinstance(data.validation, float) and not 0 < round(data.validation * count) < count:
        raise UserError(
            f"data.validation: the training split makes {made}, of which a share of {data.validation:g} leaves none "
            f"for validation or none to learn from: {more}, or name a validation split"
        )


def _named(recipe: Recipe, endings: Sequence[str] = (".parquet",)) -> dict[str, Any]:
    """Where each split is."""
    data = recipe.data
    named: dict[str, Any] = {"train": data.train, "test": data.test}
    if data.source is not None:
        named = splits_of(data.source, Path(os.sep), endings)
    for needed in ("train", "test"):
        if needed not in named:
            raise UserError(f"data: {data.source} has no {needed} split; it has {', '.join(named) or 'none'}")
    if isinstance(data.validation, str):
        named["validation"] = data.validation
    return {name: named[name] for name in ("train", "validation", "test") if name in named}


Some = TypeVar("Some", bound=Split)


def _labelled(recipe: Recipe, loaded: Mapping[str, Some]) -> tuple[Some, Some]:
    """Training and validation split, where each split has the labels that it needs."""
    folders = ", or a folder for each class" if recipe.task in IMAGES else ""
    if not (loaded["train"].labels >= 0).any():
        raise UserError(
            "data: the training split has no labels; at least some are needed, for the baseline and finetuning: "
            f"{loaded['train'].source} needs a column 'label'{folders}"
        )
    if "validation" in loaded:
        fit, validation = loaded["train"], loaded["validation"]
    else:
        fit, validation = hold_out(loaded["train"], float(recipe.data.validation), seed=0)
    for name, samples in (("validation", validation), ("test", loaded["test"])):
        if not (samples.labels >= 0).any():
            raise UserError(
                f"data: the {name} split has no labels; it is what quality is measured on: {samples.source} needs a "
                f"column 'label'{folders}"
            )
    check_apart(loaded)
    return fit, validation
