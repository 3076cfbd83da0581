"""Whether a teacher still answers as it did when it was captured. Shapes: N positions, R rows, C classes, K kept."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from edgestill.signals import Buckets, Draws

PLACES = 16
"""How many places of a number type the answers of one teacher may be apart. They are kept in float16, and a GPU
convolves in TF32, of as many places: with its rounding, a trained ResNet-56 was up to 5.4 places from itself. In
bfloat16 a whole network computes: the 2.2 M parameters of `python-code` were up to 8 places from themselves in
float32."""
CHUNK = 2**22
"""Logits that are compared at a time."""


class Disagreement(NamedTuple):
    """The answer that is furthest from where it may be: `place` is its position, or, of a loss, its row."""

    what: str
    place: int
    stored: float
    own: float


class _Answers(NamedTuple):
    """Numbers [N, K] that are to be equal, of the classes `ids` [N, K] where they are logits; `typical` is how large
    one of their kind is."""

    what: str
    stored: Tensor
    own: Tensor
    typical: Tensor
    ids: Tensor | None = None


def disagreement(
    stored: Tensor | Buckets | Draws, own: Tensor, losses: tuple[Tensor, Tensor], kept: torch.dtype
) -> Disagreement | None:
    """Where what a store kept of a forward pass is not what the teacher says of it now, the worst place; None where all
    is within `PLACES` of `kept`, of a number as large as both itself and a typical one of its kind.

    Compared is what the codec kept of the logits `own` [N, C]: all of them, the greatest and the others' mass, or the
    entropy of what was drawn from, and then the `losses` [R] too, stored and own.

    >>> ones = torch.ones(1)
    >>> disagreement(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 2.5]]), (ones, ones), torch.float16)
    Disagreement(what='logit of class 1', place=0, stored=2.0, own=2.5)
    """
    worst, found = 1.0, None
    for first, answers in _in_chunks(stored, own, losses):
        allowed = PLACES * torch.finfo(kept).eps * (answers.own.abs() + answers.typical)
        excess = ((answers.stored - answers.own).abs() / allowed).nan_to_num(nan=torch.inf)
        excess = excess.masked_fill(answers.stored == answers.own, 0)  # of two infinite ones the difference is none
        row, column = divmod(int(excess.argmax()), excess.shape[1])
        if float(excess[row, column]) > worst:
            worst = float(excess[row, column])
            of_class = f" of class {int(answers.ids[row, column])}" if answers.ids is not None else ""
            told = float(answers.stored[row, column]), float(answers.own[row, column])
            found = Disagreement(answers.what + of_class, first + row, *told)
    return found


def _in_chunks(
    stored: Tensor | Buckets | Draws, own: Tensor, losses: tuple[Tensor, Tensor]
) -> Iterator[tuple[int, _Answers]]:
    """What is compared, some positions at a time, each with the first of them."""
    rows = max(1, CHUNK // own.shape[-1])
    for first in range(0, len(own), rows):
        for answers in _of_positions(stored[first : first + rows], own[first : first + rows].float().cpu()):
            yield first, answers
    if isinstance(stored, Draws):
        yield 0, _Answers("loss", losses[0][:, None], losses[1][:, None], torch.ones(()))


def _of_positions(stored: Tensor | Buckets | Draws, own: Tensor) -> Iterator[_Answers]:
    typical = own[own.isfinite()].abs().median()
    if isinstance(stored, Tensor):
        yield _Answers("logit", stored, own, typical, torch.arange(own.shape[-1]).expand_as(own))
    elif isinstance(stored, Buckets):
        own = own - own.max(-1, keepdim=True).values
        yield _Answers("logit, less the greatest,", stored.logits, own.gather(-1, stored.ids), typical, stored.ids)
        others = own.scatter(-1, stored.ids, -torch.inf)
        for temperature, tail in stored.tails.items():
            mass = (others / temperature).logsumexp(-1)
            what = f"logarithm of the others' mass at a temperature of {temperature:g}"
            yield _Answers(what, tail[:, None], mass[:, None], typical / temperature)
    else:
        logarithms = (own / stored.temperature).log_softmax(-1)
        entropy = -(logarithms.exp() * logarithms.clamp(min=torch.finfo(torch.float32).min)).sum(-1)
        yield _Answers("entropy", stored.entropy[:, None], entropy[:, None], torch.ones(()))
