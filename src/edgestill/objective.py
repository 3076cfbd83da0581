"""The objective: hard loss + soft loss + terms, as named parts. Usable alone in anybody's loop."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor, nn

from edgestill.aligners import aligner_for
from edgestill.errors import UserError, closest
from edgestill.losses import CHANNEL_FREE, Loss, cross_entropy, kl
from edgestill.losses.reduce import wide
from edgestill.signals import Signal


@dataclass(frozen=True)
class Term:
    """One part of the loss: `weight · loss(aligner(student tap), teacher tap)`."""

    loss: Loss
    student: str
    teacher: str
    weight: float = 1.0


@dataclass(frozen=True)
class Parts:
    """The parts of one batch's loss, unweighted, with their weights; `loss` is their weighted sum."""

    values: dict[str, Tensor]
    weights: dict[str, float]

    def __add__(self, other: "Parts") -> "Parts":
        """The parts of two pieces of one batch, each divided by the count of the whole."""
        return Parts({name: value + other.values[name] for name, value in self.values.items()}, self.weights)

    def detached(self) -> "Parts":
        """The same numbers without their graph."""
        return Parts({name: value.detach() for name, value in self.values.items()}, self.weights)

    @cached_property
    def loss(self) -> Tensor:
        return sum((self.weights[name] * value for name, value in self.values.items()), start=0.0)  # type: ignore[return-value]


class Objective(nn.Module):
    """`(1 − alpha)·CE(student, labels) + alpha·loss(student, teacher) + Σ weight·term`.

    Its parameters are the aligners', which train with the student and are thrown away: give them to the optimizer.

    Args:
        loss: D of the soft part: `loss(student, teacher, temperature=…)`.
        alpha: weight of the teacher, 0…1. A part of weight zero is not computed.
        temperature: T of the soft part.
        terms: losses over taps, by name.
        examples: the student's and the teacher's taps of one batch, from which aligners are built where shapes differ.
        direct: names of the terms that take no aligner: their shapes must agree.
        label_smoothing: of the hard part.

    >>> objective = Objective(alpha=0.5, temperature=2.0)
    >>> parts = objective(torch.zeros(1, 2), torch.tensor([0]), Signal(torch.zeros(1, 2)))
    >>> sorted(parts.values), round(float(parts.loss), 4)
    (['hard', 'soft'], 0.3466)
    """

    def __init__(
        self,
        *,
        loss: Loss = kl,
        alpha: float = 0.9,
        temperature: float = 4.0,
        terms: Mapping[str, Term] | None = None,
        examples: tuple[Mapping[str, Tensor], Mapping[str, Tensor]] | None = None,
        direct: Sequence[str] = (),
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        if not 0 <= alpha <= 1:
            raise UserError(f"alpha must lie in 0…1; {alpha} came")
        if not temperature > 0:
            raise UserError(f"temperature must be above 0; {temperature} came")
        self.soft_loss, self.alpha, self.temperature = loss, alpha, temperature
        self.terms = dict(terms or {})
        self.label_smoothing = label_smoothing
        self.aligners = nn.ModuleList(self._aligner(name, examples, name in direct) for name in self.terms)

    @property
    def student_taps(self) -> list[str]:
        return sorted({term.student for term in self.terms.values()})

    @property
    def teacher_taps(self) -> list[str]:
        return sorted({term.teacher for term in self.terms.values()})

    def forward(
        self,
        logits: Tensor,
        labels: Tensor,
        signal: Signal | None,
        taps: Mapping[str, Tensor] | None = None,
        *,
        alpha: float | None = None,
        temperature: float | None = None,
        terms: Sequence[str] | None = None,
        mask: Tensor | None = None,
        counts: tuple[int, int] | None = None,
    ) -> Parts:
        """Parts of one batch.

        Args:
            logits: the student's [B, C].
            labels: class numbers [B], negative where missing (such samples learn from the teacher alone), or
                probabilities [B, C].
            signal: the teacher's; None is allowed while alpha is 0 and no term is active.
            taps: the student's recorded taps.
            alpha, temperature, terms: in place of the objective's own, as a schedule sets them.
            mask: samples [B] that have a label, where labels are probabilities.
            counts: labelled samples and all samples of the whole batch, where this is a piece of one: what the hard
                part and the others are divided by.
        """
        labelled, samples = ({"count": max(count, 1)} for count in counts) if counts else ({}, {})
        alpha = self.alpha if alpha is None else alpha
        temperature = self.temperature if temperature is None else temperature
        active = self.terms if terms is None else terms
        for name in active:
            if name not in self.terms:
                raise UserError(f"the objective has no term {name!r}{closest(name, self.terms)}")
        values: dict[str, Tensor] = {}
        weights: dict[str, float] = {}
        if alpha < 1:
            values["hard"] = cross_entropy(logits, labels, smoothing=self.label_smoothing, mask=mask, **labelled)
            weights["hard"] = 1 - alpha
        if (alpha > 0 or active) and signal is None:
            raise UserError("the objective needs the teacher's signal while alpha is above 0 or a term is active")
        if alpha > 0 and signal is not None:
            values["soft"] = self.soft_loss(logits, signal.logits, temperature=temperature, **samples)
            weights["soft"] = alpha
        for (name, term), aligner in zip(self.terms.items(), self.aligners, strict=True):
            if name in active and signal is not None:
                tap = _tapped(taps or {}, term.student, "student", name)
                # aligners are float32, whatever autocast made of the tap
                target = _tapped(signal.taps, term.teacher, "teacher", name)
                values[name] = term.loss(aligner(wide(tap)), target, **samples)
                weights[name] = term.weight
        return Parts(values, weights)

    def _aligner(
        self, name: str, examples: tuple[Mapping[str, Tensor], Mapping[str, Tensor]] | None, direct: bool
    ) -> nn.Module:
        if examples is None:
            return nn.Identity()
        term = self.terms[name]
        student, teacher = examples[0][term.student].shape, examples[1][term.teacher].shape
        if direct and student[1:] != teacher[1:]:
            raise UserError(
                f"map: direct needs equal shapes; student tap {term.student!r} has {[*student[1:]]}, "
                f"teacher tap {term.teacher!r} {[*teacher[1:]]}: use `map: width` or `map: depth`"
            )
        # functools.partial hides the loss whose options were bound
        if getattr(term.loss, "func", term.loss) in CHANNEL_FREE:
            return nn.Identity()
        return aligner_for(student, teacher) or nn.Identity()


def _tapped(taps: Mapping[str, Tensor], path: str, whose: str, term: str) -> Tensor:
    if path not in taps:
        came = ", ".join(map(repr, taps)) or "none"
        raise UserError(f"term {term!r} needs the {whose}'s tap {path!r}; recorded: {came}")
    return taps[path]
