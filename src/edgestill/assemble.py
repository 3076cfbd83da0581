"""Recipe -> parts. The only place that unpacks a Recipe: everything behind it takes plain values."""

import importlib.util
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgestill.bench import remote
from edgestill.bench.aarch64_root import find_root
from edgestill.data.curriculum import draw, draw_easiest, ranks_within_class
from edgestill.data.images import Images, spaced
from edgestill.data.sources import load_splits, resolve, splits_of
from edgestill.data.splitting import check_apart, hold_out, keep_labels
from edgestill.errors import UserError, first_line
from edgestill.evaluate.classification import accuracy, logits, predictor
from edgestill.export import formats
from edgestill.functions import load_function
from edgestill.losses import SOFT_LOSSES, TERM_LOSSES
from edgestill.models import ImageInput, Model, example, forward, load_model, select_classes, to_device
from edgestill.objective import Objective, Term, layout
from edgestill.paths import exists
from edgestill.processes import ALONE, Processes
from edgestill.recipe import EMULATED, Recipe
from edgestill.recipe import Phase as PhaseSection
from edgestill.recipe import Student as StudentSection
from edgestill.recipe import Teacher as TeacherSection
from edgestill.recipe import Term as TermSection
from edgestill.schedule import Phase, Schedule, Settings
from edgestill.signals import Signal
from edgestill.similarity import similarity, tap_features
from edgestill.students.classifier import Joint, classifier_model
from edgestill.taps import found, record, stages
from edgestill.tasks.images import Batch, Views, batch, prepare, statistics
from edgestill.terms import Mapped, bound, expand, named
from edgestill.train import Options, Track

_log = logging.getLogger("edgestill")

BASELINE, STUDENT, TEACHER, QUANTIZED = "baseline", "student", "teacher", "quantized"
SIMILARITY_SAMPLES = 512
QUANTIZE_LR = 3e-4
"""The learning rate of a quantize phase, of AdamW: with batch norms folded, the gradients have no common scale, and SGD
at a hundredth of a usual rate threw a ResNet-8 to chance within ten steps."""


@dataclass(frozen=True)
class Splits:
    """The data of a run. `train` has the labels that the arms see, `fit` those that a fitted teacher sees; `skipped`
    counts, by split as it was read, the broken images that were left out."""

    train: Images
    fit: Images
    validation: Images
    test: Images
    skipped: dict[str, int]


@dataclass(frozen=True)
class Job:
    """The parts of a run, checked against each other."""

    recipe: Recipe
    splits: Splits
    teacher: Model
    default_input: ImageInput
    terms: dict[str, Term]
    maps: tuple[Mapped, ...]
    phase_terms: dict[str, tuple[str, ...]]
    examples: tuple[dict[str, Tensor], dict[str, Tensor]]
    device: torch.device
    joint: Joint | None = None
    processes: Processes = ALONE

    def student(self, seed: int, arm: str = STUDENT) -> Model:
        """The student with the initial weights of a seed, the same in every arm; on its teacher's classifier where the
        recipe says so, in place of which the baseline has one of its own."""
        torch.manual_seed(seed)
        model = _model(self.recipe.student, len(self.splits.train.classes), self.default_input)
        if self.recipe.student.classifier == "teacher":
            model, _ = classifier_model(model, self.teacher, copy=arm == STUDENT)
        return model

    @property
    def unmeasured(self) -> bool:
        """Whether an `auto` layer map waits for a student that has learned."""
        return any(mapped.map == "auto" and mapped.similarity is None for mapped in self.maps)

    def objective(self, arm: str) -> Objective:
        """What an arm learns from; the baseline and a fitted teacher learn from labels alone."""
        smoothing = self.recipe.train.label_smoothing
        if arm not in (STUDENT, QUANTIZED):
            return Objective(alpha=0.0, label_smoothing=smoothing if arm == BASELINE else 0.0)
        distill = self.recipe.distill
        return Objective(
            loss=None if distill.loss == "none" else bound(distill.loss, SOFT_LOSSES, distill.options, "distill"),
            alpha=distill.alpha,
            temperature=distill.temperature,
            standardize=distill.standardize,
            terms=self.terms,
            examples=self.examples,
            label_smoothing=smoothing,
        )

    @property
    def quantizes(self) -> bool:
        """Whether a last phase trains the student for 8 bits."""
        return self.recipe.phases[-1].fake_quantize is not None

    def schedule(self, arm: str) -> Schedule:
        """An arm's phases. The baseline has the student's steps and learning rates, and nothing of the teacher's. The
        phase that trains for 8 bits is an arm of its own behind the student's, with its own learning rates."""
        fit = self.recipe.teacher.fit
        if arm == TEACHER and fit is not None:
            steps = max(1, round(fit.epochs * int((self.splits.fit.labels >= 0).sum()) / fit.batch_size))
            return Schedule((Phase("fit", 1.0, 0.0, 1.0, fit.lr),), steps, ramp=0.05)
        train, sections = self.recipe.train, self.recipe.phases
        last = sections[-1]
        trained_for = last.share if last.fake_quantize else 0.0
        total = max(1, round(train.epochs * len(self.splits.train.labels) / train.batch_size))
        steps = round(total * (1 - trained_for))
        if arm == QUANTIZED:
            lr = last.lr or QUANTIZE_LR
            return Schedule((self._phase(last, 1.0, lr),), max(1, total - steps), train.lr_ramp, train.lr_shape)
        phases = tuple(
            self._phase(section, section.share / (1 - trained_for), section.lr or train.lr)
            for section in sections
            if section.fake_quantize is None
        )
        if arm == BASELINE:
            phases = tuple(replace(phase, alpha=0.0, order="uniform", terms=()) for phase in phases)
        return Schedule(phases, max(steps, 1) if phases else 0, train.lr_ramp, train.lr_shape)

    def _phase(self, section: PhaseSection, share: float, lr: float) -> Phase:
        distill = self.recipe.distill
        return Phase(
            name=section.name,
            share=share,
            alpha=distill.alpha if section.alpha is None else section.alpha,
            temperature=section.temperature or distill.temperature,
            lr=lr,
            order=section.order,
            terms=self.phase_terms[section.name],
        )

    def batches(self, arm: str, seed: int, ranks: NDArray[np.float64] | None) -> Callable[[int, Settings], Batch]:
        """This process's rows of the batch of a step: a pure function. Phases without the teacher draw from labelled
        samples alone. The quantized student goes on where the student ended."""
        before = self.schedule(STUDENT).steps if arm == QUANTIZED else 0
        train, fit = self.recipe.train, self.recipe.teacher.fit
        images = self.splits.fit if arm == TEACHER else self.splits.train
        size = fit.batch_size if arm == TEACHER and fit is not None else train.batch_size
        views = Views(train.views.crop, train.views.flip, train.views.policy, 0.0 if arm == TEACHER else train.mixup)
        rows = self.processes.rows(size, train.accumulate)
        everything, labelled = np.arange(len(images.labels)), np.flatnonzero(images.labels >= 0)
        labelled_ranks = None if ranks is None else ranks_within_class(ranks[labelled], images.labels[labelled])

        def batch_at(step: int, settings: Settings) -> Batch:
            phase = settings.phase
            pool = everything if phase.needs_teacher else labelled
            pool_ranks = ranks if phase.needs_teacher else labelled_ranks
            if phase.order == "easiest-first" and pool_ranks is not None:
                places, epochs = draw_easiest(step, pool_ranks, settings.admitted, size, seed)
                indices = pool[places]
            else:
                indices, epochs = draw(before + step, pool, size, seed)
            return batch(images, indices[rows], epochs[rows], views, seed, partners=pool)

        return batch_at

    def options(self, arm: str) -> Options:
        """How the steps of an arm are taken."""
        train, fit, steps = self.recipe.train, self.recipe.teacher.fit, self.schedule(arm).steps
        section: Any = fit if arm == TEACHER and fit is not None else train
        per_epoch = max(1, len(self.splits.train.labels) // section.batch_size)
        return Options(
            optimizer="adamw" if arm == QUANTIZED else section.optimizer,
            weight_decay=section.weight_decay,
            ema=0.0 if arm == TEACHER else train.ema,
            keep="last" if arm == TEACHER else train.keep,
            clip=train.clip,
            accumulate=train.accumulate,
            on_nonfinite=train.on_nonfinite,
            device=str(self.device),
            precision=torch.bfloat16 if train.precision == "bf16" else torch.float32,
            validate_every=max(per_epoch, steps // 25),
            log_every=max(1, min(per_epoch, steps // 200)),
        )

    def validate(self, expected: ImageInput) -> Callable[[nn.Module], float]:
        """Quality on the validation split."""
        images, device = self.splits.validation, self.device

        def quality(module: nn.Module) -> float:
            return accuracy(logits(predictor(module, device), images, expected), images.labels)

        return quality


def assemble(recipe: Recipe, track: Track, splits: Splits | None = None, processes: Processes = ALONE) -> Job:
    """Loads what the recipe names and checks that it fits together, before any work and before anything is written.

    Takes the data of another job, `splits`, in place of loading it.
    Raises UserError in one line for files, taps, shapes, class counts and options that do not fit.
    """
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
    splits = splits or _splits(recipe, track)
    first = splits.train.pixels[np.arange(1)]
    mean, std = statistics(splits.train)
    default = ImageInput(first.shape[3], first.shape[1], mean, std)
    if recipe.teacher.weights is None and recipe.teacher.fit is None and ".py:" in recipe.teacher.model:
        raise UserError("teacher: needs `weights` (a file) or `fit` (how to fit it first); neither came")
    torch.manual_seed(0)
    teacher = _teacher(recipe.teacher, splits.train, default)
    student = _model(recipe.student, len(splits.train.classes), default)
    for role, model in ((TEACHER, teacher), (STUDENT, student)):
        _check_classes(role, model, splits.train.classes)
    joint = None
    if recipe.student.classifier == "teacher":
        student, joint = classifier_model(student, teacher)
    probes = (example(student.input, 2), example(teacher.input, 2))
    terms, maps, phase_terms = _terms(
        recipe, student, teacher, probes, splits, joint, measured=_trained(recipe.student) and _trained(recipe.teacher)
    )
    examples = _examples(terms, student, teacher, probes)
    job = Job(recipe, splits, teacher, default, terms, maps, phase_terms, examples, device, joint, processes)
    in_pieces = recipe.train.accumulate * processes.count > 1
    _check_losses(job.objective(STUDENT), len(splits.train.classes), examples, in_pieces)
    job.schedule(STUDENT)
    return job


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
        if ".py:" in section.model:
            load_function(section.model)
    data = recipe.data
    validation = data.validation if isinstance(data.validation, str) else None
    for key, spec in (("source", data.source), ("train", data.train), ("test", data.test), ("validation", validation)):
        if spec is not None:
            try:
                resolve(spec, Path(os.sep))
            except UserError as error:
                raise UserError(f"data.{key}: {error}") from None


def _splits(recipe: Recipe, track: Track) -> Splits:
    data = recipe.data
    named: dict[str, Any] = (
        splits_of(data.source, Path(os.sep)) if data.source is not None else {"train": data.train, "test": data.test}
    )
    for needed in ("train", "test"):
        if needed not in named:
            raise UserError(f"data: {data.source} has no {needed} split; it has {', '.join(named) or 'none'}")
    if isinstance(data.validation, str):
        named["validation"] = data.validation
    wanted: dict[str, Any] = {name: named[name] for name in ("train", "validation", "test") if name in named}
    loaded = load_splits(wanted, size=data.size, workers=data.workers, on_error=data.on_error, track=track)
    skipped = {name: len(images.skipped) for name, images in loaded.items() if images.skipped}
    for name, count in skipped.items():
        first = "; ".join(loaded[name].skipped[:3]) + ("; …" if count > 3 else "")
        _log.warning("edgestill: %d broken images of the %s split are left out: %s", count, name, first)
    if not (loaded["train"].labels >= 0).any():
        raise UserError(
            "data: the training split has no labels; at least some are needed, for the baseline and finetuning: "
            f"{loaded['train'].source} needs a column 'label', or a folder for each class"
        )
    if "validation" in loaded:
        fit, validation = loaded["train"], loaded["validation"]
    else:
        fit, validation = hold_out(loaded["train"], float(data.validation), seed=0)
    if len(fit.classes) < 2:
        raise UserError(
            f"data: at least two classes are needed; there is {', '.join(map(repr, fit.classes)) or 'none'}"
        )
    for name, images in (("validation", validation), ("test", loaded["test"])):
        if not (images.labels >= 0).any():
            raise UserError(
                f"data: the {name} split has no labels; it is what quality is measured on: {images.source} needs a "
                f"column 'label', or a folder for each class"
            )
    check_apart(loaded)
    train = fit if data.labels_per_class is None else keep_labels(fit, data.labels_per_class, seed=0)
    return Splits(train, fit, validation, loaded["test"], skipped)


def _teacher(section: TeacherSection, images: Images, default: ImageInput) -> Model:
    if section.classes is None:
        return _model(section, len(images.classes), default)
    teacher = _model(section, None, default)
    outputs = _outputs(TEACHER, teacher)
    if len(section.classes) != len(images.classes) or max(section.classes) >= outputs:
        raise UserError(
            f"teacher.classes: needs one of the teacher's outputs 0…{outputs - 1} for each of the data's "
            f"{len(images.classes)} classes; {len(section.classes)} came, the largest {max(section.classes)}"
        )
    select_classes(teacher.module, section.classes)
    return teacher


def _model(section: TeacherSection | StudentSection, classes: int | None, default: ImageInput) -> Model:
    return load_model(
        section.model,
        classes=classes,
        default=default,
        options=section.options,
        weights=section.weights,
        mean=section.input.mean,
        std=section.input.std,
        size=section.input.size,
        trust_remote_code=section.trust_remote_code,
    )


def _outputs(role: str, model: Model) -> int:
    """How many classes a model puts out; UserError where it does not take the images or puts out something else."""
    try:
        with torch.no_grad():
            shape = forward(model.module.eval(), example(model.input, 2)).shape
    except Exception as error:
        size = model.input
        raise UserError(
            f"the {role} {model.spec} does not take images of {size.channels}×{size.size}×{size.size}: "
            f"{first_line(error)}"
        ) from error
    if len(shape) != 2:
        raise UserError(f"the {role} {model.spec} puts out {[*shape[1:]]}, not one number a class")
    return shape[1]


def _check_classes(role: str, model: Model, classes: tuple[str, ...]) -> None:
    outputs = _outputs(role, model)
    if model.parameters == 0:
        raise UserError(f"the {role} {model.spec} has no parameters: there is nothing to learn or to keep")
    if outputs != len(classes):
        remedy = ": name those that stand for them in teacher.classes" if role == TEACHER else ""
        raise UserError(
            f"class counts differ: the {role} {model.spec} puts out {outputs}, "
            f"the data has {len(classes)} classes{remedy}"
        )


def _terms(
    recipe: Recipe,
    student: Model,
    teacher: Model,
    probes: tuple[Tensor, Tensor],
    splits: Splits,
    joint: Joint | None,
    measured: bool,
) -> tuple[dict[str, Term], tuple[Mapped, ...], dict[str, tuple[str, ...]]]:
    """All terms of all phases by name, their layer maps, and each phase's terms. `auto` maps are measured if
    `measured`, and stand as `depth` otherwise."""
    terms: dict[str, Term] = {}
    maps: list[Mapped] = []
    built: list[tuple[TermSection, tuple[str, ...]]] = []

    def shapes(one: Sequence[str], other: Sequence[str]) -> tuple[list[torch.Size], list[torch.Size]]:
        taps = _tapped(student, one, probes[0]), _tapped(teacher, other, probes[1])
        return [layout(taps[0], path).shape for path in one], [layout(taps[1], path).shape for path in other]

    def default_taps(section: TermSection) -> tuple[list[str], list[str]]:
        if joint is not None:
            return [joint.student_tap], [joint.teacher_tap]
        every = section.map == "auto"
        return (
            _default_taps(student, probes[0], section.loss, every=False),
            _default_taps(teacher, probes[1], section.loss, every),
        )

    def names_of(section: TermSection) -> tuple[str, ...]:
        for known, names in built:
            if known == section:
                return names
        expanded, mapped = expand(
            section.loss,
            TERM_LOSSES,
            section.options,
            student=section.student or default_taps(section)[0],
            teacher=section.teacher or default_taps(section)[1],
            kind=section.map,
            weight=section.weight,
            aligner=section.aligner,
            similarity=partial(_alike, student, teacher, splits.train) if measured else None,
            shapes=shapes,
            samples=len(splits.train.labels),
        )
        begun = len(terms)
        for term in expanded:
            terms[named(section.loss, term, terms)] = term
        maps.append(mapped)
        built.append((section, tuple(terms)[begun:]))
        return built[-1][1]

    phase_terms = {}
    for phase in recipe.phases:
        sections = recipe.distill.terms if phase.terms is None else phase.terms
        phase_terms[phase.name] = tuple(name for section in sections for name in names_of(section))
    return terms, tuple(maps), phase_terms


def _trained(section: TeacherSection | StudentSection) -> bool:
    """Whether a model comes with weights, or is to be fitted first."""
    return section.weights is not None or (isinstance(section, TeacherSection) and section.fit is None)


def _default_taps(model: Model, probe: Tensor, loss: str, every: bool) -> list[str]:
    """Of a term that names none: attentions for a loss over attention, every block where the map is to be found, else
    the ends of the stages."""
    if loss == "attention_kl":
        attentions = [tap.path for tap in found(model.module, probe) if tap.kind == "attention"]
        if not attentions:
            raise UserError(f"attention_kl needs a model with attention; none was found in {model.spec}")
        return attentions
    if every:
        return [tap.path for tap in found(model.module, probe) if tap.kind in ("stage", "block")]
    return stages(model.module, probe)


def with_measured_maps(job: Job, student: Model) -> Job:
    """The job with its `auto` layer maps as measured between a student that has learned and the teacher."""
    cpu = torch.device("cpu")
    to_device(student.module, cpu), to_device(job.teacher.module, cpu)
    probes = (example(student.input, 2), example(job.teacher.input, 2))
    terms, maps, phase_terms = _terms(job.recipe, student, job.teacher, probes, job.splits, job.joint, measured=True)
    examples = _examples(terms, student, job.teacher, probes)
    return replace(job, terms=terms, maps=maps, phase_terms=phase_terms, examples=examples)


def _alike(
    student: Model, teacher: Model, images: Images, student_taps: Sequence[str], teacher_taps: Sequence[str]
) -> NDArray[np.float64]:
    """How alike the taps of the two models are on training images, as they are evaluated [S, T]."""
    rows = spaced(len(images.labels), SIMILARITY_SAMPLES)
    chunks = np.array_split(rows, max(1, len(rows) // 64))
    features = []
    for model, taps in ((student, student_taps), (teacher, teacher_taps)):
        inputs = (prepare(torch.from_numpy(images.pixels[chunk]), model.input) for chunk in chunks)
        features.append(tap_features(model.module, inputs, taps))
    return similarity(features[0], features[1])


def _examples(
    terms: dict[str, Term], student: Model, teacher: Model, probes: tuple[Tensor, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The taps of the terms, of two images of zeros."""
    return (
        _tapped(student, [tap for term in terms.values() for tap in term.student_taps], probes[0]),
        _tapped(teacher, [tap for term in terms.values() for tap in term.teacher_taps], probes[1]),
    )


def _tapped(model: Model, taps: Sequence[str], probe: Tensor) -> dict[str, Tensor]:
    with torch.no_grad(), record(model.module.eval(), taps) as recorded:
        forward(model.module, probe)
    return recorded


def _check_losses(
    objective: Objective, classes: int, examples: tuple[dict[str, Tensor], dict[str, Tensor]], in_pieces: bool
) -> None:
    """Every loss once, on the taps of zeros: one that does not take them is refused before any work."""
    logits, labels = torch.zeros(2, classes), torch.zeros(2, dtype=torch.long)
    counts = (2, 2) if in_pieces else None  # accumulation and several processes divide by the count of the whole batch
    signal, indices = Signal(logits, examples[1]), torch.arange(2)
    try:
        parts = objective(logits, labels, signal, examples[0], alpha=0.5, counts=counts, indices=indices)
        for name, value in parts.values.items():
            if value.dim() != 0:
                raise ValueError(f"{name} gives {[*value.shape]}, not one number")
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"distill: a loss does not take the models' logits or taps: {first_line(error)}") from error


def cpu_threads(recipe: Recipe, processes: Processes = ALONE) -> int:
    """Threads of the training: as many as this process may use, shared among those here, unless the recipe says."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return recipe.train.threads or max(1, (allowed or 1) // processes.here)
