"""Recipe -> parts, checked before any work."""

import importlib.util
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from edgestill.assemble.data import (
    Splits,
    block_splits,
    embedding_splits,
    image_splits,
    load_text_splits,
    sequence_splits,
)
from edgestill.assemble.job import STUDENT, TEACHER, Job
from edgestill.assemble.models import (
    alike,
    check_embeds,
    check_outputs,
    check_precision,
    head,
    image_model,
    lora_of,
    same_order,
    selected,
    shared_vocabulary,
    takes_length,
    text_model,
    trained,
    with_vocabulary,
)
from edgestill.assemble.skills import skills_of
from edgestill.assemble.stores import check_store, open_store
from edgestill.assemble.students import from_teacher
from edgestill.assemble.terms import check_losses, examples_of, terms_of
from edgestill.assemble.vocabulary import vocabulary_of
from edgestill.bench import remote
from edgestill.bench.aarch64_root import find_root
from edgestill.data.sources import resolve
from edgestill.data.texts import Texts
from edgestill.errors import UserError, first_line
from edgestill.evaluate.classification import ACCURACY, CORRELATION
from edgestill.evaluate.embeddings import RANK_CORRELATION
from edgestill.evaluate.metric import Metric
from edgestill.evaluate.tokens import BITS_PER_BYTE
from edgestill.export import formats
from edgestill.functions import load_function
from edgestill.models import ImageInput, Model, TextInput, example, fingerprint
from edgestill.paths import exists
from edgestill.processes import ALONE, Processes
from edgestill.recipe import EMULATED, IMAGES, Recipe
from edgestill.students.classifier import classifier_model
from edgestill.students.vocabulary import Vocabulary
from edgestill.tasks.images import ImageSamples, statistics
from edgestill.tasks.sequences import Sequences
from edgestill.tasks.tokens import Blocks
from edgestill.train import Track


def assemble(recipe: Recipe, track: Track, splits: Splits | None = None, processes: Processes = ALONE) -> Job:
    """Loads what the recipe names and checks that it fits together, before any work and before anything is written.

    Takes the data of another job, `splits`, in place of loading it.
    Raises UserError in one line for files, taps, shapes, class counts and options that do not fit.
    """
    if recipe.student.search is not None:
        raise UserError(
            "student.search stands for many students, of which `edgestill plan` and `run` (es.search) choose one, and "
            "capture a store of their own: name a student here"
        )
    device = _device(processes.device or recipe.train.device)
    _check_shares(recipe, processes)
    _check_files(recipe)
    tracker = recipe.train.tracker
    formats.check(recipe.export)
    if recipe.bench.host == EMULATED:
        find_root()
    elif recipe.bench.host is not None:
        remote.address(recipe.bench.host)
    if tracker is not None and importlib.util.find_spec(tracker) is None:
        raise UserError(f"train.tracker: {tracker} is not installed: pip install 'edgestill[{tracker}]'")
    if recipe.teacher.weights is None and recipe.teacher.fit is None and ".py:" in recipe.teacher.model:
        raise UserError("teacher: needs `weights` (a file) or `fit` (how to fit it first); neither came")
    parts = _of_images(recipe, track, splits) if recipe.task in IMAGES else _of_texts(recipe, splits)
    teacher, student = parts.teacher, parts.student
    joint = None
    if recipe.student.classifier == "teacher":
        student, joint = classifier_model(student, teacher)
    lora = lora_of(recipe.student, student)
    probes = (example(student.input, 2), example(teacher.input, 2))
    measured = trained(recipe.student) and trained(recipe.teacher)
    terms, maps, phase_terms = terms_of(recipe, student, teacher, probes, parts.splits, joint, measured=measured)
    examples = examples_of(terms, student, teacher, probes)
    job = Job(
        recipe, parts.splits, teacher, parts.default, parts.metric, terms, maps, phase_terms, examples, device, joint,
        processes, lora, skills_of(recipe, teacher, student), open_store(recipe), parts.vocabulary,
        {fingerprint(teacher.module): student} if recipe.student.from_teacher and trained(recipe.teacher) else {},
    )  # fmt: skip
    check_store(job, unfitted=recipe.teacher.fit is not None and recipe.teacher.weights is None)
    in_pieces = recipe.train.accumulate * processes.count > 1
    outputs = 1 if recipe.data.label == "number" else len(parts.splits.train.classes)
    tokens = torch.ones_like(probes[0], dtype=torch.bool) if isinstance(student.input, TextInput) else None
    check_losses(job.objective(STUDENT), outputs, examples, in_pieces, tokens)
    job.schedule(STUDENT)
    return job


METRICS = {"classes": ACCURACY, "number": CORRELATION, "embedding": RANK_CORRELATION}


@dataclass(frozen=True)
class _Parts:
    splits: Splits
    teacher: Model
    student: Model
    default: ImageInput | None
    metric: Metric
    vocabulary: Vocabulary | None = None


def _of_images(recipe: Recipe, track: Track, splits: Splits | None) -> _Parts:
    splits = splits or image_splits(recipe, track)
    assert isinstance(splits.train, ImageSamples)
    images, classes = splits.train.images, splits.train.classes
    first = images.pixels[np.arange(1)]
    default = ImageInput(first.shape[3], first.shape[1], *statistics(images))
    torch.manual_seed(0)
    every = None if recipe.teacher.classes is not None else len(classes)
    teacher = selected(recipe.teacher, image_model(recipe.teacher, every, default), classes)
    section = recipe.student.from_teacher
    if section is None:
        student = image_model(recipe.student, len(classes), default)
    else:
        check_outputs(TEACHER, teacher, classes)
        student = from_teacher(section, teacher, splits.train if trained(recipe.teacher) else None)
    for role, model in ((TEACHER, teacher), (STUDENT, student)):
        check_outputs(role, model, classes)
    return _Parts(splits, teacher, student, default, ACCURACY)


def _of_texts(recipe: Recipe, splits: Splits | None) -> _Parts:
    """The tokenizer is the teacher's, and the student's where its model brings another."""
    loaded = load_text_splits(recipe) if splits is None else {}
    torch.manual_seed(0)
    classes = loaded["train"].classes if splits is None else splits.train.classes
    kind = head(recipe)  # texts that are embedded go through the models one by one
    paired = kind != "embedding" and any(texts.pairs is not None for texts in loaded.values())
    teacher = selected(recipe.teacher, text_model(recipe, recipe.teacher, classes, paired), classes)
    assert isinstance(teacher.input, TextInput)
    check_precision(recipe, teacher)
    if splits is None and kind != "tokens":
        splits = (embedding_splits if kind == "embedding" else sequence_splits)(recipe, loaded)
    teacher, student, vocabulary = _student_of(recipe, teacher, classes, paired, splits, loaded)
    assert isinstance(teacher.input, TextInput)
    assert isinstance(student.input, TextInput)
    if student.input.fingerprint == teacher.input.fingerprint:  # what both take
        teacher.input = replace(teacher.input, length=student.input.length)
    if kind == "tokens":
        for role, model in ((TEACHER, teacher), (STUDENT, student)):
            takes_length(role, model)
        shared = shared_vocabulary(teacher, student)
        splits = splits or block_splits(recipe, loaded, teacher.input, shared)
        _check_fit(recipe, splits)
        if recipe.student.from_teacher is not None and trained(recipe.teacher):  # told apart on its own blocks
            student = from_teacher(recipe.student.from_teacher, teacher, splits.train)
        return _Parts(splits, teacher, student, None, BITS_PER_BYTE)
    assert splits is not None
    assert isinstance(student.input, TextInput)
    terms = [*recipe.distill.terms, *(term for phase in recipe.phases for term in phase.terms or ())]
    if terms and vocabulary is None and not alike(teacher.input, student.input):  # else on training texts they are
        raise UserError(
            "distill.terms: teacher and student split texts into other tokens, which terms cannot pair: leave them "
            "out, or take a student with the teacher's tokenizer"
        )
    _check_fit(recipe, splits)
    for role, model in ((TEACHER, teacher), (STUDENT, student)):
        if kind == "embedding":
            check_embeds(role, model)
        else:
            check_outputs(role, model, classes)
            same_order(recipe, role, model, classes)
        _refuse_long(recipe, role, model, splits)
    return _Parts(splits, teacher, student, None, METRICS[kind], vocabulary)


def _student_of(
    recipe: Recipe,
    teacher: Model,
    classes: Sequence[str],
    paired: bool,
    splits: Splits | None,
    loaded: dict[str, Texts],
) -> tuple[Model, Model, Vocabulary | None]:
    """Teacher, student, and the vocabulary that is the student's alone. Where answers are tokens, teacher and student
    have the smaller one both: what the teacher says of a token is said of these."""
    section, vocabulary = recipe.student.from_teacher, None
    if section is None:
        assert isinstance(teacher.input, TextInput)
        return teacher, text_model(recipe, recipe.student, classes, paired, teacher.input), None
    if section.vocabulary == "data":
        learned = None if splits is None else splits.fit.asked  # blocks are of texts that are not held out yet
        texts = learned.texts if isinstance(learned, Sequences) else loaded["train"]
        vocabulary = vocabulary_of(recipe, teacher, texts)
        if head(recipe) == "tokens":
            teacher, vocabulary = with_vocabulary(teacher, vocabulary), None
    samples = splits.train if splits is not None and trained(recipe.teacher) else None
    return teacher, from_teacher(section, teacher, samples, vocabulary=vocabulary), vocabulary


def _refuse_long(recipe: Recipe, role: str, model: Model, splits: Splits) -> None:
    """UserError for texts that are longer than the model takes, where the recipe does not have them cut."""
    if recipe.data.too_long == "cut" or not isinstance(model.input, TextInput):
        return
    for samples in (splits.fit, splits.validation, splits.test):
        assert isinstance(samples.asked, Sequences)
        if cut := samples.asked.encoded(model.input).cut:
            raise UserError(
                f"data: {cut} texts of {samples.source} have more tokens than the {model.input.length} that the {role} "
                "takes; raise data.length, or set data.too_long to cut"
            )


def _check_fit(recipe: Recipe, splits: Splits) -> None:
    """UserError for a teacher that is to be fitted with more samples a step than have a label."""
    fit, labelled = recipe.teacher.fit, int((splits.fit.labels >= 0).sum())
    if fit is not None and recipe.teacher.weights is None and fit.batch_size > labelled:
        what = "blocks" if isinstance(splits.fit, Blocks) else "labelled samples"
        raise UserError(
            f"teacher.fit.batch_size: the training split has {labelled} {what}, less than a batch of {fit.batch_size}: "
            "lower it, or give more data"
        )


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"train.device: {name!r} is not to be had here: {first_line(error)}") from error
    return device


def _check_shares(recipe: Recipe, processes: Processes) -> None:
    """Every process needs a sample of each piece of a batch."""
    if processes.count > 1 and recipe.task == "sentence-embedding":
        raise UserError(
            f"task: sentence-embedding compares the texts of a whole batch, which one process has; {processes.count} "
            "were started"
        )
    needed = recipe.train.accumulate * processes.count
    fit = recipe.teacher.fit
    for key, size in (("train", recipe.train.batch_size), ("teacher.fit", fit.batch_size if fit else needed)):
        if processes.count > 1 and size < needed:
            raise UserError(
                f"{key}.batch_size must be at least {needed}, a sample for each of {processes.count} processes "
                f"in each of train.accumulate {recipe.train.accumulate} pieces; {size} came"
            )
    for phase in recipe.phases:
        for term in recipe.distill.terms if phase.terms is None else phase.terms:
            if processes.count > 1 and (term.map == "auto" or term.weight == "balanced"):
                raise UserError("map: auto and weight: balanced are measured by one process; several were started")
            if processes.count > 1 and term.loss == "crd":
                raise UserError("crd: its memory is that of one process; several were started")


def _check_files(recipe: Recipe) -> None:
    for role, section in (("teacher", recipe.teacher), ("student", recipe.student)):
        if section.weights is not None and not exists(Path(section.weights)):
            raise UserError(f"{role}.weights: no file {section.weights}")
        if section.model is not None and ".py:" in section.model:
            load_function(section.model)
    data = recipe.data
    validation = data.validation if isinstance(data.validation, str) else None
    for key, spec in (("source", data.source), ("train", data.train), ("test", data.test), ("validation", validation)):
        if spec is not None:
            try:
                resolve(spec, Path(os.sep))
            except UserError as error:
                raise UserError(f"data.{key}: {error}") from None
