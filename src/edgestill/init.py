"""A recipe written for a teacher, data and a budget: what is read of them, what is chosen, and its file."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import gcd
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgestill import folder, progress
from edgestill.assemble.cuts import Cuts, Tapped, built, cuts_of, tapped
from edgestill.assemble.data import (
    Splits,
    block_splits,
    embedding_splits,
    image_splits,
    load_text_splits,
    sequence_splits,
)
from edgestill.assemble.models import (
    check_embeds,
    check_outputs,
    head,
    image_model,
    same_order,
    shared_vocabulary,
    takes_length,
    text_model,
)
from edgestill.assemble.terms import examples_of, terms_of
from edgestill.data.kinds import has_numbers, task_of
from edgestill.data.sources import splits_of
from edgestill.data.texts import ENDINGS
from edgestill.errors import UserError
from edgestill.export import formats
from edgestill.models import ImageInput, Model, TextInput, example
from edgestill.paths import exists
from edgestill.plan.advise import WEIGHT_BYTES, Facts, advise, format_of
from edgestill.plan.commented import commented
from edgestill.plan.sizes import straddling
from edgestill.reading import absolute
from edgestill.recipe import IMAGES, Recipe, candidates, load_recipe, validate
from edgestill.tasks.images import ImageSamples, statistics
from edgestill.train import Track
from edgestill.units import parse_bytes

TIME = "2 h"
"""That the search may take, for the user to change."""
NARROW = 0.25
"""Share of the width below which none is tried unless a size asks for it."""
Raw = dict[str, Any]


@dataclass(frozen=True)
class Written:
    """What a recipe was written for: its file, the teacher, its students' parameters, and the names of techniques."""

    path: Path
    teacher: str
    parameters: int
    wanted: float | None
    students: tuple[int, ...]
    techniques: tuple[str, ...]


def init(
    teacher: str,
    data: str,
    budget: str,
    *,
    weights: str | None = None,
    task: str | None = None,
    out: str | Path = "recipe.yaml",
    track: Track = progress.track,
) -> Written:
    """Writes a recipe that `edgestill plan` and `edgestill run` take: a search of students cut from a teacher, sized
    for a budget, with the two techniques to try and all else that was chosen, each with its reason and where it was
    measured.

    Args:
        teacher: a model as in a recipe; a function's or timm's needs `weights`.
        data: what holds the splits: a folder, a Hub id, `file.py:function`.
        budget: keys of the recipe's budget, as in "size=120 KB, latency=2 ms, runtime=onnxruntime".
        task: told from the data by default.
        out: the file, which must not be there yet.

    Raises UserError, before anything is written, for what is not there, does not fit together, or cannot be cut.

    >>> init("nets.py:large", "photos", "size=120 KB", weights="large.safetensors")  # doctest: +SKIP
    """
    out = Path(out)
    _refuse_taken(out)
    limits = _limits(budget)
    given: Raw = {"data": data, "teacher": {"model": teacher} | ({"weights": weights} if weights else {})}
    found = _draft(given, limits, task)
    if weights is None and (".py:" in teacher or teacher.startswith("timm:")):
        raise UserError(f"--weights: {teacher} comes with random weights: name the file of its trained ones")
    if found.teacher.weights is not None and not exists(Path(found.teacher.weights)):
        raise UserError(f"--weights: no file {weights}")
    numbers = _numbers(found, task)
    found = _draft(given, limits, *numbers)
    formats.check(found.export)
    splits, model = _read(found, track)
    cuts = cuts_of(model)
    facts, students = _facts(found, splits, model, cuts)
    choices = advise(facts)
    techniques = next(choice.value for choice in choices if choice.key == "student.search.distill")
    if not _learnable(found, splits, model, students, techniques):
        choices = advise(replace(facts, maps=False, attention=False))
        techniques = next(choice.value for choice in choices if choice.key == "student.search.distill")
    here = out.resolve().parent == Path.cwd().resolve()
    values = _values(given if here else _absolute(given), found, facts, limits)
    _write(out, commented(_head(facts, model, students), values, choices))
    return Written(
        out, model.spec, model.parameters, facts.wanted, tuple(one.parameters for one in students),
        tuple(one["name"] for one in techniques),
    )  # fmt: skip


def _refuse_taken(out: Path) -> None:
    if exists(out):
        raise UserError(f"{out} is there already, and is left as it is: name another file with --out")
    if not out.resolve().parent.is_dir():
        raise UserError(f"--out: there is no folder {out.parent}")


def _limits(text: str) -> Raw:
    """What --budget says, as a recipe would have it."""
    limits: Raw = {}
    for part in text.split(","):
        key, equals, value = (side.strip() for side in part.partition("="))
        if not (key and equals and value):
            raise UserError(
                f'--budget takes key=value, as in "size=120 KB, latency=2 ms, runtime=onnxruntime"; '
                f"{part.strip()!r} came"
            )
        if key in limits:
            raise UserError(f"--budget: {key} stands there twice")
        limits[key] = _plain(value)
    return limits


def _plain(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _absolute(given: Raw) -> Raw:
    """The same with paths that hold from any folder."""
    made = given | {"teacher": dict(given["teacher"])}
    absolute(made, Path.cwd())
    return made


def _draft(given: Raw, limits: Raw, task: str | None, numbers: bool = False) -> Recipe:
    """A recipe by which data and teacher are read, and the budget checked: with what it writes of these, and with as
    little else as they need."""
    made, task = _absolute(given), task or IMAGES[0]
    if numbers:
        made["data"] = {"source": made["data"], "label": "number"}
    made |= {
        "task": task,
        "student": {"search": {"from_teacher": {"depth": [1, 2]}}},
        "train": {"batch_size": 3},
        "compare": {"baseline": False, "scratch": False},
        "budget": limits,
        "export": [format_of(task, str(limits.get("runtime")))],
    }
    return validate(made)


def _numbers(draft: Recipe, task: str | None) -> tuple[str, bool]:
    """The task, and whether labels are numbers."""
    source = draft.data.source
    assert source is not None
    if Path(source).is_file():
        raise UserError(
            f"data: training and test data are needed; the one file {source} came: name a folder that has train* and "
            "test*, a Hub id, or file.py:function"
        )
    split = splits_of(source, Path(os.sep), ENDINGS)["train"]
    if task is None:
        return task_of(split)
    return task, task == "text-classification" and has_numbers(split)


def _read(recipe: Recipe, track: Track) -> tuple[Splits, Model]:
    """The splits and the teacher, which fit together."""
    torch.manual_seed(0)
    if recipe.task in IMAGES:
        splits = image_splits(recipe, track)
        assert isinstance(splits.train, ImageSamples)
        first = splits.train.images.pixels[np.arange(1)]
        default = ImageInput(first.shape[3], first.shape[1], *statistics(splits.train.images))
        teacher = image_model(recipe.teacher, len(splits.train.classes), default)
        check_outputs("teacher", teacher, splits.train.classes)
        return splits, teacher
    loaded, kind = load_text_splits(recipe), head(recipe)
    classes = loaded["train"].classes
    paired = kind != "embedding" and any(texts.pairs is not None for texts in loaded.values())
    teacher = text_model(recipe, recipe.teacher, classes, paired)
    assert isinstance(teacher.input, TextInput)
    if kind == "tokens":
        takes_length("teacher", teacher)
        return block_splits(recipe, loaded, teacher.input, shared_vocabulary(teacher, teacher)), teacher
    if kind == "embedding":
        check_embeds("teacher", teacher)
        return embedding_splits(recipe, loaded), teacher
    check_outputs("teacher", teacher, classes)
    same_order(recipe, "teacher", teacher, classes)
    return sequence_splits(recipe, loaded), teacher


def _facts(recipe: Recipe, splits: Splits, teacher: Model, cuts: Cuts) -> tuple[Facts, list[Model]]:
    """What the choices are made of, and the students."""
    budget, train = recipe.budget, splits.train
    wanted = parse_bytes(budget.size) / WEIGHT_BYTES[recipe.export[0]] if budget.size else None
    of_width = {width: left for width, left in cuts.widths.items() if wanted is not None or width >= NARROW}
    depths, widths = straddling(cuts.depths, of_width, wanted, room=bool(budget.latency or budget.memory))
    if not depths:
        raise UserError(
            f"{teacher.spec} can be cut to one size alone: write a recipe that names students, in student.search.model "
            "or student.search.candidates"
        )
    students = [built(teacher, cuts.section(depth, width)) for depth in depths for width in widths]
    whole = tapped(teacher)
    within = [depth for depth, count in cuts.depths.items() if wanted is None or count <= wanted]
    facts = Facts(
        task=recipe.task,
        samples=len(train),
        labelled=int((train.labels >= 0).sum()) if head(recipe) != "tokens" else len(train),
        parameters=teacher.parameters,
        cuts=cuts.section(depths, widths),
        classes=len(train.classes) if head(recipe) == "classes" else 0,
        numbers=recipe.data.label == "number",
        side=teacher.input.size if isinstance(teacher.input, ImageInput) else None,
        wanted=wanted,
        blocks=max(within, default=1) / cuts.blocks if len(cuts.depths) > 1 and wanted else None,
        attention=whole.attention is not None,
        relation_heads=_relation_heads([whole, *map(tapped, students)]),
        maps=whole.maps,
        last_stage=whole.last_stage,
        fresh=bool(teacher.fresh),
        runtime=budget.runtime,
    )
    return facts, students


def _relation_heads(models: Sequence[Tapped]) -> int:
    """Into how many heads the queries of all models can be cut, at most the first's own."""
    known = [one.attention for one in models if one.attention is not None]
    if not known:
        return 1
    common = gcd(*(width for _, width in known))
    return next(count for count in range(known[0][0], 0, -1) if common % count == 0)


def _learnable(
    draft: Recipe, splits: Splits, teacher: Model, students: Sequence[Model], techniques: Sequence[Raw]
) -> bool:
    """Whether the terms of all techniques find their taps in all students."""
    raw = draft.model_dump(exclude_none=True)
    for technique in techniques:
        keys = {key: value for key, value in technique.items() if key != "name"}
        recipe = validate(raw | {"distill": raw["distill"] | keys})
        for student in students:
            probes = (example(student.input, 2), example(teacher.input, 2))
            try:
                terms, *_ = terms_of(recipe, student, teacher, probes, splits, None, measured=False)
                examples_of(terms, student, teacher, probes)
            except UserError:
                return False
    return True


def _values(given: Raw, recipe: Recipe, facts: Facts, limits: Raw) -> Raw:
    """The recipe's keys in their order; those that are chosen are filled in by the choices."""
    data = {"source": given["data"]} | ({"label": "number"} if facts.numbers else {})
    teacher = {f"teacher.{key}": value for key, value in given["teacher"].items()}
    return (
        {"task": recipe.task, "data": data}
        | teacher
        | ({"teacher.fit": None} if facts.fresh else {})
        | {"student.search.from_teacher": None, "student.search.distill": None}
        | {"distill": None, "phases": None, "train": None, "compare": None}
        | {"compute": {"time": TIME}, "budget": limits, "export": None}
    )


def _head(facts: Facts, teacher: Model, students: Sequence[Model]) -> list[str]:
    """What stands above the recipe."""
    kind = "images" if facts.images else "blocks of tokens" if facts.tokens else "texts"
    of = f" of {facts.classes} classes" if facts.classes else ""
    sizes = ", ".join(f"{one.parameters:,}" for one in students)
    allowed = "" if facts.wanted is None else f"; the budget's size allows about {facts.wanted:,.0f}"
    return [
        f"Written by edgestill init for {teacher.spec.rpartition('/')[2]} ({teacher.parameters:,} parameters) and "
        f"{facts.samples:,} training {kind}{of}. Students have {sizes} parameters{allowed}.",
        "`edgestill plan` of this file measures each student's file against the budget before any training, then tries "
        "both techniques with each that fits, with the same seeds and batches. Numbers are of the files named beside "
        "them, measured on other data than this: what counts here is what the trial says.",
    ]


def _write(out: Path, text: str) -> None:
    """The file, if it is a recipe whose candidates are recipes."""
    folder.write_text(out, text)
    try:
        candidates(load_recipe(out))
    except BaseException:
        out.unlink(missing_ok=True)
        raise


def lines(written: Written) -> list[str]:
    """What was written, in words."""
    allowed = "" if written.wanted is None else f"; about {written.wanted:,.0f} parameters fit the budget's size"
    sizes = sorted(written.students)
    return [
        f"teacher    {written.teacher}, {written.parameters:,} parameters{allowed}",
        f"students   {len(sizes)} cut from it, {sizes[0]:,} to {sizes[-1]:,} parameters",
        f"techniques {' and '.join(written.techniques)}, both tried on this data",
        f"recipe     {written.path}: read it, then `edgestill plan {written.path}`",
    ]
