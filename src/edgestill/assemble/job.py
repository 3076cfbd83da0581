"""The parts of a run, checked against each other."""

import copy
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgestill.assemble.data import Splits
from edgestill.assemble.models import head, image_model, text_model
from edgestill.assemble.students import from_teacher
from edgestill.data.curriculum import draw, draw_easiest, ranks_within_class
from edgestill.evaluate.metric import Metric, predictor
from edgestill.evaluate.skill import Skill
from edgestill.losses import SOFT_LOSSES, Loss, cross_entropy, pair_regression, regression
from edgestill.models import Expected, ImageInput, Model, TextInput, fingerprint
from edgestill.objective import Objective, Term
from edgestill.processes import ALONE, Processes
from edgestill.recipe import FromTeacher, Recipe
from edgestill.recipe import Phase as PhaseSection
from edgestill.schedule import Phase, Schedule, Settings
from edgestill.store import Store
from edgestill.students.classifier import Joint, classifier_model
from edgestill.students.lora import Lora
from edgestill.students.vocabulary import Vocabulary
from edgestill.tasks.samples import Batch
from edgestill.tasks.sequences import Sequences
from edgestill.terms import Mapped, bound
from edgestill.train import Options

BASELINE, STUDENT, SCRATCH, TEACHER, QUANTIZED = "baseline", "student", "scratch", "teacher", "quantized"
SIMILARITY_SAMPLES = 512
QUANTIZE_LR = 3e-4
"""The learning rate of a quantize phase, of AdamW: with batch norms folded, the gradients have no common scale, and SGD
at a hundredth of a usual rate threw a ResNet-8 to chance within ten steps."""

HARD: dict[str, Loss] = {"number": regression, "embedding": pair_regression}
"""The hard part by what a model puts out; cross-entropy for all that has classes."""


@dataclass(frozen=True)
class Job:
    """The parts of a run, checked against each other."""

    recipe: Recipe
    splits: Splits
    teacher: Model
    default_input: ImageInput | None
    metric: Metric
    terms: dict[str, Term]
    maps: tuple[Mapped, ...]
    phase_terms: dict[str, tuple[str, ...]]
    examples: tuple[dict[str, Tensor], dict[str, Tensor]]
    device: torch.device
    joint: Joint | None = None
    processes: Processes = ALONE
    lora: Lora | None = None
    """The adapters by which the arms are trained; the models that they begin and end with are plain."""
    skills: tuple[Skill, ...] = ()
    store: Store | None = None
    """Where the teacher's signals are read from, in place of asking it."""
    vocabulary: Vocabulary | None = None
    """The student's, where it is smaller than the teacher's; a language model's teacher has it already."""
    built: dict[str, Model] = field(default_factory=dict)
    """Students of the teacher's parts, by the fingerprint of its weights."""

    def student(self, seed: int, arm: str = STUDENT) -> Model:
        """The student with the initial weights of a seed, the same in every arm; on its teacher's classifier where the
        recipe says so, in place of which the baseline has one of its own."""
        torch.manual_seed(seed)
        section, classes = self.recipe.student, self.splits.train.classes
        if section.from_teacher is not None:
            return self._of_teacher(section.from_teacher, weights=arm != SCRATCH)
        if self.default_input is None:
            assert isinstance(self.teacher.input, TextInput)
            return text_model(self.recipe, section, classes, self._paired, self.teacher.input)
        model = image_model(section, len(classes), self.default_input)
        if section.classifier == "teacher":
            model, _ = classifier_model(model, self.teacher, copy=arm == STUDENT)
        return model

    def _of_teacher(self, section: FromTeacher, weights: bool) -> Model:
        """Measured once for each state of the teacher, which is fitted between assembly and training. Random weights
        need the student's sizes alone, but for the blocks that are kept."""
        build = partial(from_teacher, section, self.teacher, vocabulary=self.vocabulary)
        if not weights:
            return build(self.splits.train if section.keep == "important" else None, weights=False)
        key = fingerprint(self.teacher.module)
        if key not in self.built:
            self.built[key] = build(self.splits.train)
        return replace(self.built[key], module=copy.deepcopy(self.built[key].module))

    @property
    def _paired(self) -> bool:
        """Whether samples are two texts."""
        train = self.splits.train
        return isinstance(train, Sequences) and train.texts.pairs is not None

    @property
    def unmeasured(self) -> bool:
        """Whether an `auto` layer map waits for a student that has learned."""
        return any(mapped.map == "auto" and mapped.similarity is None for mapped in self.maps)

    def objective(self, arm: str) -> Objective:
        """What an arm learns from; the baseline and a fitted teacher learn from labels alone."""
        smoothing = self.recipe.train.label_smoothing
        hard = HARD.get(head(self.recipe), cross_entropy)
        if arm not in (STUDENT, QUANTIZED):
            return Objective(alpha=0.0, label_smoothing=0.0 if arm == TEACHER else smoothing, hard=hard)
        distill = self.recipe.distill
        return Objective(
            loss=None if distill.loss == "none" else bound(distill.loss, SOFT_LOSSES, distill.options, "distill"),
            alpha=distill.alpha,
            temperature=distill.temperature,
            standardize=distill.standardize,
            terms=self.terms,
            examples=self.examples,
            label_smoothing=smoothing,
            hard=hard,
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
        if arm in (BASELINE, SCRATCH):
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
        samples = self.splits.fit if arm == TEACHER else self.splits.train
        size = fit.batch_size if arm == TEACHER and fit is not None else train.batch_size
        rows = self.processes.rows(size, train.accumulate)
        everything, labelled = np.arange(len(samples)), np.flatnonzero(samples.labels >= 0)
        views = self.store.description.views if self.store is not None and arm != TEACHER else None
        labelled_ranks = None if ranks is None else ranks_within_class(ranks[labelled], samples.labels[labelled])

        def batch_at(step: int, settings: Settings) -> Batch:
            phase = settings.phase
            pool = everything if phase.needs_teacher else labelled
            pool_ranks = ranks if phase.needs_teacher else labelled_ranks
            if phase.order == "easiest-first" and pool_ranks is not None:
                places, epochs = draw_easiest(step, pool_ranks, settings.admitted, size, seed)
                indices = pool[places]
            else:
                indices, epochs = draw(before + step, pool, size, seed)
            if views is not None:  # those that were captured, by turns, in every arm
                return samples.batch(indices[rows], epochs[rows] % views.count, views.seed, pool)
            return samples.batch(indices[rows], epochs[rows], seed, pool)

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
            lower_is_better=not self.metric.higher_is_better,
            log_every=max(1, min(per_epoch, steps // 200)),
        )

    def validate(self, expected: Expected) -> Callable[[nn.Module], float]:
        """Quality on the validation split."""
        samples, device, metric = self.splits.validation, self.device, self.metric

        def quality(module: nn.Module) -> float:
            return metric.quality(metric.answers(predictor(module, expected, device), samples, expected), samples)

        return quality


def cpu_threads(recipe: Recipe, processes: Processes = ALONE) -> int:
    """Threads of the training: as many as this process may use, shared among those here, unless the recipe says."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return recipe.train.threads or max(1, (allowed or 1) // processes.here)
