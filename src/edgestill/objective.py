"""The objective: hard loss + soft loss + terms, as named parts. Usable alone in anybody's loop."""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn

from edgestill.aligners import AlignerKind, aligner_for
from edgestill.errors import UserError, closest, first_line
from edgestill.losses import CHANNEL_FREE, OF_SAMPLES, ROW_WISE, Loss, bucketed, cross_entropy, drawn_kl, kl
from edgestill.losses import standardize as standardized
from edgestill.losses.fused import Part, Target, in_chunks, of_buckets, of_draws, of_logits, soft_labels
from edgestill.losses.reduce import channels_first, wide
from edgestill.signals import Buckets, Draws, Signal

LARGE = 2**20
"""Logits of a batch from which on the parts over them are made a chunk of rows at a time."""
BALANCE_STEPS = 20
"""Steps over which the weight of a balanced term is measured."""


@dataclass(frozen=True)
class Term:
    """One part of the loss: `weight · loss(aligner(student tap), teacher tap)`.

    Attributes:
        student, teacher: the taps; tuples of them for a loss that compares several at once.
        weight: a number, or `balanced`: what makes the term's gradient `share` times as large as that of the part over
            logits.
        aligner: what brings the student's tap to the teacher's shape; `none` demands equal shapes.
        module: makes the module of a loss that has weights or a memory, in place of an aligner. It is called with
            (student tap or list of them, teacher tap or list, sample indices) and returns the loss's arguments.
    """

    loss: Loss
    student: str | tuple[str, ...]
    teacher: str | tuple[str, ...]
    weight: float | Literal["balanced"] = 1.0
    aligner: AlignerKind = "auto"
    module: Callable[[], nn.Module] | None = None
    share: float = 1.0

    @property
    def student_taps(self) -> tuple[str, ...]:
        return (self.student,) if isinstance(self.student, str) else self.student

    @property
    def teacher_taps(self) -> tuple[str, ...]:
        return (self.teacher,) if isinstance(self.teacher, str) else self.teacher


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
        loss: D of the soft part: `loss(student, teacher)`, with `temperature=` and `labels=` where it takes them; None
            leaves the soft part out.
        alpha: weight of the teacher, 0…1. A part of weight zero is not computed.
        temperature: T of the soft part.
        standardize: give the soft part both sides' logits as z-scores (logit standardisation).
        terms: losses over taps, by name.
        examples: the student's and the teacher's taps of one batch, from which aligners are built where shapes differ.
        label_smoothing: of the hard part.
        hard: the hard part, `hard(logits, labels)`; a loss without classes where the labels are numbers.

    >>> objective = Objective(alpha=0.5, temperature=2.0)
    >>> parts = objective(torch.zeros(1, 2), torch.tensor([0]), Signal(torch.zeros(1, 2)))
    >>> sorted(parts.values), round(float(parts.loss), 4)
    (['hard', 'soft'], 0.3466)
    """

    def __init__(
        self,
        *,
        loss: Loss | None = kl,
        alpha: float = 0.9,
        temperature: float = 4.0,
        standardize: bool = False,
        terms: Mapping[str, Term] | None = None,
        examples: tuple[Mapping[str, Tensor], Mapping[str, Tensor]] | None = None,
        label_smoothing: float = 0.0,
        hard: Loss = cross_entropy,
    ) -> None:
        super().__init__()
        if not 0 <= alpha <= 1:
            raise UserError(f"alpha must lie in 0…1; {alpha} came")
        if not temperature > 0:
            raise UserError(f"temperature must be above 0; {temperature} came")
        self.soft_loss, self.alpha, self.temperature, self.standardize = loss, alpha, temperature, standardize
        self.terms = dict(terms or {})
        self.hard_loss, self.label_smoothing = hard, label_smoothing
        self.aligners = nn.ModuleList(_module(term, examples) for term in self.terms.values())
        self._options = {name: _options(term.loss) for name, term in self.terms.items()}
        self._soft_options = _options(loss) if loss else frozenset[str]()
        self._balance = {name: Balance() for name, term in self.terms.items() if term.weight == "balanced"}

    @property
    def student_taps(self) -> list[str]:
        return sorted({tap for term in self.terms.values() for tap in term.student_taps})

    @property
    def teacher_taps(self) -> list[str]:
        return sorted({tap for term in self.terms.values() for tap in term.teacher_taps})

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
        counts: tuple[int, ...] | None = None,
        indices: Tensor | None = None,
        tokens: Tensor | None = None,
    ) -> Parts:
        """Parts of one batch.

        Args:
            logits: the student's [B, C].
            labels: class numbers [B], negative where missing (such samples learn from the teacher alone),
                probabilities [B, C], or what the hard loss takes; numbers [B] are no classes for any other.
            signal: the teacher's; None is allowed while alpha is 0 and no term is active.
            taps: the student's recorded taps.
            alpha, temperature, terms: in place of the objective's own, as a schedule sets them.
            mask: samples [B] that have a label, where labels are probabilities or numbers.
            counts: labelled samples and all samples of the whole batch, where this is a piece of one: what the hard
                part and the others are divided by. Of texts also their tokens and how many texts they are, for terms
                over these.
            indices: of the samples [B], for terms that remember them.
            tokens: of texts, which tokens [B, T] are no padding: taps count these alone.
        """
        divisors: list[dict[str, Any]] = [{"count": max(count, 1)} for count in counts] if counts else [{}, {}]
        labelled, samples, *rest = divisors
        of_tokens, per_sample = rest if len(rest) == 2 else (samples, samples)
        alpha = self.alpha if alpha is None else alpha
        temperature = self.temperature if temperature is None else temperature
        active = self.terms if terms is None else terms
        for name in active:
            if name not in self.terms:
                raise UserError(f"the objective has no term {name!r}{closest(name, self.terms)}")
        values: dict[str, Tensor] = {}
        weights: dict[str, float] = {}
        if (alpha > 0 or active) and signal is None:
            raise UserError("the objective needs the teacher's signal while alpha is above 0 or a term is active")
        shared: dict[str, Any] = {"temperature": temperature, "labels": _numbers(labels, mask)}
        large = logits.dim() == 2 and logits.numel() > LARGE and self._row_wise and not self.balancing
        if large and not counts:
            valid = mask if labels.is_floating_point() else labels >= 0 if mask is None else mask & (labels >= 0)
            labelled = {"count": len(logits) if valid is None else valid.sum().clamp(min=1)}
            samples = {"count": len(logits)}
        over_logits = self._over_logits(logits, labels, signal, alpha, mask, shared, labelled, samples)
        weights |= {"hard": 1 - alpha} if "hard" in over_logits else {}
        weights |= {"soft": alpha} if "soft" in over_logits else {}
        if large:
            divided = (labelled["count"], samples["count"])
            found = self._in_chunks(logits, labels, signal, mask, over_logits, weights, temperature, divided)
            values |= dict(zip(over_logits, found, strict=True))
        else:
            values |= {name: part(logits, slice(None)) for name, part in over_logits.items()}
        for (name, term), aligner in zip(self.terms.items(), self.aligners, strict=True):
            if name in active and signal is not None:
                pair = (
                    _tapped(taps or {}, term.student, "student", name),
                    _tapped(signal.taps, term.teacher, "teacher", name),
                )
                given = {"labels": shared["labels"]} if "labels" in self._options[name] else {}
                values[name] = self._term(name, aligner, pair, given, tokens, indices, of_tokens, per_sample)
                weights[name] = self._weight(name)
        return Parts(values, weights)

    def _in_chunks(
        self,
        logits: Tensor,
        labels: Tensor,
        signal: Signal | None,
        mask: Tensor | None,
        over_logits: Mapping[str, Part],
        weights: Mapping[str, float],
        temperature: float,
        counts: tuple[Any, Any],
    ) -> list[Tensor]:
        """The values of the parts over large logits: by their formula where there is one, else by autograd."""
        if not self._plain or labels.is_floating_point():
            return [*in_chunks(logits, [*over_logits.values()], [weights[name] for name in over_logits])]
        target = _target(signal, temperature) if signal is not None and "soft" in over_logits else None
        both = (weights.get("hard", 0.0), weights.get("soft", 0.0))
        numbers = labels if mask is None else labels.where(mask, -1)
        found = soft_labels(logits, numbers, target, both, temperature=temperature, counts=counts)
        return [value for name, value in zip(("hard", "soft"), found, strict=True) if name in over_logits]

    def _term(
        self,
        name: str,
        aligner: nn.Module,
        pair: tuple[Any, Any],
        given: dict[str, Any],
        tokens: Tensor | None,
        indices: Tensor | None,
        of_tokens: Mapping[str, Any],
        per_sample: Mapping[str, Any],
    ) -> Tensor:
        """The value of a term on its taps: over samples, or over the valid tokens of texts."""
        term, divided = self.terms[name], per_sample
        whole = tokens is None or of_samples(term.loss)
        if tokens is not None and whole:
            pair = (averaged(pair[0], tokens), averaged(pair[1], tokens))
        pair = (aligner(pair[0]), pair[1]) if term.module is None else aligner(*pair, indices)
        if tokens is not None and not whole:
            pair, valid = by_token(pair[0], pair[1], tokens, term.student_taps[0].endswith("@attention"))
            divided = per_sample if valid is None else of_tokens
            if valid is not None and "mask" in self._options[name]:
                given = given | {"mask": valid}
            elif valid is not None:  # a loss without a mask sees the valid tokens alone
                pair = (pair[0][valid], pair[1][valid])
        return term.loss(*pair, **given, **divided)

    @property
    def _row_wise(self) -> bool:
        """Whether the parts over logits are sums over rows."""
        losses = (self.hard_loss, self.soft_loss)
        return all(loss is None or getattr(loss, "func", loss) in ROW_WISE for loss in losses)

    @property
    def _plain(self) -> bool:
        """Whether the parts over logits are cross-entropy and soft labels as they are."""
        return (
            self.hard_loss is cross_entropy and self.soft_loss is kl and not (self.label_smoothing or self.standardize)
        )

    def _over_logits(
        self,
        logits: Tensor,
        labels: Tensor,
        signal: Signal | None,
        alpha: float,
        mask: Tensor | None,
        shared: Mapping[str, Any],
        labelled: Mapping[str, Any],
        samples: Mapping[str, Any],
    ) -> dict[str, Part]:
        """The parts over logits, as functions of some rows of them; those of weight zero are left out."""
        parts: dict[str, Part] = {}
        smoothed = {"smoothing": self.label_smoothing} if self.label_smoothing else {}

        def hard(student: Tensor, rows: slice) -> Tensor:
            chosen = None if mask is None else mask[rows]
            return self.hard_loss(student, labels[rows], mask=chosen, **smoothed, **labelled)

        def soft(student: Tensor, rows: slice) -> Tensor:
            assert signal is not None
            assert self.soft_loss is not None
            teacher = signal.logits[rows]
            if isinstance(teacher, Draws):
                drawn = (teacher.ids, teacher.shares, teacher.entropy)
                return drawn_kl(student, *drawn, temperature=teacher.temperature, **samples)
            if isinstance(teacher, Buckets):
                at = shared["temperature"]
                student, teacher = bucketed(student, teacher.ids, at), teacher.at(at)
            pair = (standardized(student), standardized(teacher)) if self.standardize else (student, teacher)
            given = {name: shared[name] for name in shared if name in self._soft_options}
            if given.get("labels") is not None:
                given["labels"] = given["labels"][rows]
            return self.soft_loss(*pair, **given, **samples)

        if alpha < 1:
            parts["hard"] = hard
        if alpha > 0 and signal is not None and self.soft_loss is not None:
            parts["soft"] = soft
        return parts

    def balance(self, parts: Parts, parameters: Sequence[nn.Parameter]) -> Parts:
        """The parts, with balanced terms weighted so that their gradient in `parameters` is as large as their share of
        that of the part over logits (the soft one, or the hard one where there is none). Call it before `backward`.

        Each is measured over its first BALANCE_STEPS steps, one more backward pass each, and held from then on.
        Raises UserError where there is neither.
        """
        open_terms = [name for name, found in self._balance.items() if name in parts.values and not found.held]
        reference = "soft" if "soft" in parts.values else "hard"
        if not open_terms:
            return parts
        if reference not in parts.values:
            raise UserError(f"the balanced term {open_terms[0]!r} needs a part over logits to be measured against")
        target = parts.weights[reference] * _gradient_norm(parts.values[reference], parameters)
        for name in open_terms:
            self._balance[name].add(target, _gradient_norm(parts.values[name], parameters))
        return Parts(parts.values, parts.weights | {name: self._weight(name) for name in open_terms})

    @property
    def balancing(self) -> bool:
        """Whether a balanced term is still to be measured."""
        return any(not found.held for found in self._balance.values())

    @property
    def balances(self) -> dict[str, float]:
        """The weights of the balanced terms, as far as they are measured."""
        return {name: self._weight(name) for name in self._balance}

    def _weight(self, name: str) -> float:
        term = self.terms[name]
        return term.share * self._balance[name].weight if term.weight == "balanced" else term.weight

    def get_extra_state(self) -> dict[str, Any]:
        return {name: [found.steps, found.measured, found.logarithms] for name, found in self._balance.items()}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self._balance = {name: Balance(*saved) for name, saved in state.items()}


@dataclass
class Balance:
    """The weight of a balanced term: the geometric mean, over its first steps, of the gradient norm of the part over
    logits, weighted, to its own. One step that explodes does not decide it."""

    steps: int = 0
    measured: int = 0
    logarithms: float = 0.0

    def add(self, target: float, own: float) -> None:
        self.steps += 1
        if math.isfinite(target) and math.isfinite(own) and target > 0 and own > 0:
            self.measured, self.logarithms = self.measured + 1, self.logarithms + math.log(target / own)

    @property
    def held(self) -> bool:
        return self.steps >= BALANCE_STEPS

    @property
    def weight(self) -> float:
        return math.exp(self.logarithms / self.measured) if self.measured else 0.0


def _gradient_norm(value: Tensor, parameters: Sequence[nn.Parameter]) -> float:
    parameters = [parameter for parameter in parameters if parameter.requires_grad]  # a teacher's classifier does not
    if not value.requires_grad or not parameters:
        return 0.0
    gradients = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
    return float(nn.utils.get_total_norm([gradient for gradient in gradients if gradient is not None]))


def _module(term: Term, examples: tuple[Mapping[str, Tensor], Mapping[str, Tensor]] | None) -> nn.Module:
    """What stands between the taps and the term's loss."""
    if term.module is not None:
        try:
            return term.module()
        except (TypeError, ValueError, RuntimeError) as error:  # a UserError says it itself
            raise UserError(f"a term's module cannot be made with its options: {first_line(error)}") from error
    # functools.partial hides the loss whose options were bound
    free = getattr(term.loss, "func", term.loss) in CHANNEL_FREE
    if examples is None or (free and term.aligner in ("auto", "none")):
        return nn.Identity()
    if not isinstance(term.student, str) or not isinstance(term.teacher, str):
        raise UserError("a term over several taps needs a module")
    student, teacher = layout(examples[0], term.student).shape, layout(examples[1], term.teacher).shape
    try:
        return aligner_for(student, teacher, term.aligner)
    except UserError as error:
        raise UserError(f"student tap {term.student!r} and teacher tap {term.teacher!r}: {error}") from None


def _target(signal: Signal, temperature: float) -> Target:
    told = signal.logits
    if isinstance(told, Draws):
        return of_draws(told.ids, told.shares, told.entropy)
    if isinstance(told, Buckets):
        return of_buckets(told.ids, told.at(temperature), temperature)
    return of_logits(told, temperature)


def _options(loss: Loss) -> frozenset[str]:
    return frozenset(inspect.signature(loss).parameters)


def _numbers(labels: Tensor, mask: Tensor | None) -> Tensor | None:
    """Class numbers [B], −1 where missing, of labels that may be probabilities [B, C]; None of numbers [B]."""
    if not labels.is_floating_point():
        return labels
    if labels.dim() == 1:
        return None
    numbers = labels.argmax(-1)
    return numbers if mask is None else numbers.where(mask, numbers.new_tensor(-1))


def of_samples(loss: Loss) -> bool:
    """Whether a loss compares the samples of a batch with each other, each as a whole."""
    return getattr(loss, "func", loss) in OF_SAMPLES


def averaged(tap: Any, tokens: Tensor) -> Any:
    """A tap [B, T, D] of texts as the mean over their valid tokens [B, D]; what else comes stays."""
    if isinstance(tap, list):
        return [averaged(one, tokens) for one in tap]
    if tap.dim() != 3 or tap.shape[:2] != tokens.shape:
        return tap
    return wide(tap, tokens).sum(1) / tokens.sum(1, keepdim=True).clamp(min=1)


def by_token(
    student: Tensor, teacher: Tensor, tokens: Tensor, attention: bool
) -> tuple[tuple[Tensor, Tensor], Tensor | None]:
    """Taps of texts as a loss takes them whose samples are tokens, and which of these are valid; None for taps that
    have no tokens, whose samples are texts.

    Hidden states [B, T, D] become [B·T, D], attentions [B, A, T, S] become [B·T, A, 1, S]. Queries, keys and values
    [B, A, T, D] stay: a loss over their relations needs to know the tokens of each text.
    """
    if student.dim() == 3 and student.shape[:2] == tokens.shape:
        return (student.flatten(0, 1), teacher.flatten(0, 1)), tokens.flatten()
    if attention:
        pair = (student.transpose(1, 2).flatten(0, 1).unsqueeze(2), teacher.transpose(1, 2).flatten(0, 1).unsqueeze(2))
        return pair, tokens.flatten()
    return (student, teacher), tokens if student.dim() == 4 and student.shape[2] == tokens.shape[1] else None


def layout(taps: Mapping[str, Tensor], path: str) -> Tensor:
    """A tap as the losses take it: maps with the channels in front, whatever the model's layout. PATH@… is no map."""
    return taps[path] if "@" in path else channels_first(taps[path])


def _tapped(taps: Mapping[str, Tensor], paths: str | tuple[str, ...], whose: str, term: str) -> Any:
    """A tap in its layout, in float32 whatever autocast made of it; a list of them for several paths."""
    if not isinstance(paths, str):
        return [_tapped(taps, path, whose, term) for path in paths]
    if paths not in taps:
        came = ", ".join(map(repr, taps)) or "none"
        raise UserError(f"term {term!r} needs the {whose}'s tap {paths!r}; recorded: {came}")
    return wide(layout(taps, paths))
