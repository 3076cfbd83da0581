"""The terms that a recipe names, on the taps of its models."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgestill.assemble.data import Splits
from edgestill.assemble.job import SIMILARITY_SAMPLES, Job
from edgestill.assemble.models import head
from edgestill.data.images import spaced
from edgestill.errors import UserError, first_line
from edgestill.losses import TERM_LOSSES, pair_regression, regression
from edgestill.mapping import ORIGIN, origins
from edgestill.models import Model, as_inputs, example, forward, to_device
from edgestill.objective import Objective, Term, layout
from edgestill.recipe import Recipe
from edgestill.recipe import Term as TermSection
from edgestill.signals import Signal
from edgestill.similarity import similarity, tap_features
from edgestill.students.classifier import Joint
from edgestill.taps import found, record, stages
from edgestill.tasks.samples import Samples
from edgestill.terms import Mapped, expand, named

CPU = torch.device("cpu")


def terms_of(
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
    causal = {"causal": True} if head(recipe) == "tokens" else {}
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
        kind = _kind(section, student)
        student_taps = section.student or default_taps(section)[0]
        teacher_taps = section.teacher or (None if kind == ORIGIN else default_taps(section)[1])
        expanded, mapped = expand(
            section.loss,
            TERM_LOSSES,
            causal | section.options if section.loss == "attention_relation" else section.options,
            student=student_taps,
            teacher=teacher_taps or [other for _, other in origins(student_taps, student.origin or {})],
            kind=kind,
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


def _kind(section: TermSection, student: Model) -> str:
    """The layer map of a term: of a student that was built from its teacher, what each tap was made of, unless it names
    taps of the teacher. MiniLMv2's relations are those of the last attention."""
    if section.map is not None:
        if section.map == ORIGIN and section.teacher is not None:
            raise UserError("map: origin tells the teacher's taps by the student's: leave out `teacher`, or the map")
        return section.map
    built = student.origin is not None and section.teacher is None and section.loss != "attention_relation"
    return ORIGIN if built else "depth"


def _default_taps(model: Model, probe: Tensor, loss: str, every: bool) -> list[str]:
    """Of a term that names none: attentions for a loss over attention, the last one's parts for one over its relations,
    every block where the map is to be found, else the ends of the stages."""
    if loss in ("attention_kl", "attention_relation"):
        attentions = [tap.path for tap in found(model.module, probe) if tap.kind == "attention"]
        if not attentions:
            raise UserError(f"{loss} needs a model with attention; none was found in {model.spec}")
        if loss == "attention_kl":
            return attentions
        last = attentions[-1].removesuffix("@attention")  # MiniLMv2 compares one layer, by default the last
        return [f"{last}@{part}" for part in ("queries", "keys", "values")]
    if every:
        return [tap.path for tap in found(model.module, probe) if tap.kind in ("stage", "block")]
    return stages(model.module, probe)


def with_measured_maps(job: Job, student: Model) -> Job:
    """The job with its `auto` layer maps as measured between a student that has learned and the teacher."""
    to_device(student.module, CPU), to_device(job.teacher.module, CPU)
    probes = (example(student.input, 2), example(job.teacher.input, 2))
    terms, maps, phase_terms = terms_of(job.recipe, student, job.teacher, probes, job.splits, job.joint, measured=True)
    examples = examples_of(terms, student, job.teacher, probes)
    return replace(job, terms=terms, maps=maps, phase_terms=phase_terms, examples=examples)


def _alike(
    student: Model, teacher: Model, samples: Samples, student_taps: Sequence[str], teacher_taps: Sequence[str]
) -> NDArray[np.float64]:
    """How alike the taps of the two models are on training samples, as they are evaluated [S, T]."""
    asked = samples.asked
    rows = spaced(len(asked), SIMILARITY_SAMPLES)
    features = []
    for model, taps in ((student, student_taps), (teacher, teacher_taps)):
        order = rows[np.argsort(asked.sizes(model.input)[rows], kind="stable")]
        chunks = np.array_split(order, max(1, len(rows) // 64))
        inputs = (as_inputs(asked.inputs(chunk, model.input), model.input, CPU) for chunk in chunks)
        tapped = tap_features(model.module, inputs, taps)
        features.append({path: found[np.argsort(order, kind="stable")] for path, found in tapped.items()})
    return similarity(features[0], features[1])


def examples_of(
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


def check_losses(
    objective: Objective,
    classes: int,
    examples: tuple[dict[str, Tensor], dict[str, Tensor]],
    in_pieces: bool,
    tokens: Tensor | None = None,
) -> None:
    """Every loss once, on the taps of zeros: one that does not take them is refused before any work."""
    logits, labels = torch.zeros(2, classes), torch.zeros(2, dtype=torch.long)
    if objective.hard_loss is regression:
        labels = torch.zeros(2, 1)
    elif objective.hard_loss is pair_regression:  # two pairs, each text of which is compared with the three others
        logits, labels = torch.zeros(4, 3), torch.zeros(2)
    counts = (
        (2, 2, 16, 2) if in_pieces else None
    )  # accumulation and several processes divide by the count of the whole batch
    signal, indices = Signal(logits, examples[1]), torch.arange(2)
    try:
        parts = objective(logits, labels, signal, examples[0], alpha=0.5, counts=counts, indices=indices, tokens=tokens)
        for name, value in parts.values.items():
            if value.dim() != 0:
                raise ValueError(f"{name} gives {[*value.shape]}, not one number")
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"distill: a loss does not take the models' logits or taps: {first_line(error)}") from error
