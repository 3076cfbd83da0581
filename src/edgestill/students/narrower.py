"""Which of a teacher's channels and heads a narrower student does without."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edgestill.errors import UserError
from edgestill.models import forward
from edgestill.students.cutting import Removed, agrees, without
from edgestill.students.depth import Losses
from edgestill.students.heads import Heads, heads_of
from edgestill.students.importance import Importance, of_units, scores
from edgestill.students.structure import INPUTS, KEY, Group, Place, groups_of, with_gradients

HEADS, HIDDEN, FEED_FORWARD, CHANNELS = "heads", "hidden", "feed_forward", "channels"


@dataclass(frozen=True)
class Width:
    """Which share of each is kept. `hidden` None: as large a share as of the heads that read it."""

    heads: float = 1.0
    hidden: float | None = None
    feed_forward: float = 1.0
    channels: float = 1.0


@dataclass(frozen=True)
class Sizes:
    """What a transformer was cut from and to: (before, after) of each, None where there is none."""

    heads: tuple[int, int] | None
    key_value_heads: tuple[int, int] | None
    hidden: tuple[int, int] | None
    feed_forward: tuple[int, int] | None


def channels_to_cut(
    module: nn.Module,
    probe: Tensor,
    width: Width,
    importance: Importance,
    losses: Losses,
) -> tuple[Removed, Sizes]:
    """What is cut of a model for a width: of every group of channels or heads that belong together all but those that
    matter most. A share keeps one at least.

    Args:
        module: a model in float32 in evaluation mode, which is left as it is.
        probe: an input batch, by which its parts are told: token ids, or images.
        importance: by what channels are told apart, see `edgestill.students.importance`.
        losses: the losses of some real batches of the model that it is given, one after another.

    Raises UserError for a model that cannot be traced, and a width that cuts nothing. What the graph says is to be
    proven: see `refuse_wrong`.
    """
    probe = _telling(probe)
    attentions = heads_of(module, probe)
    with with_gradients(module):
        groups = groups_of(module, probe, attentions)
        found = scores(module, importance, lambda: losses(module))
    kinds = _kinds(groups, attentions)
    counts = _counts(groups, kinds, attentions, width)
    _refuse_nothing(module, groups, kinds, counts, width)
    removed: dict[Place, set[int]] = {}
    for group, count in zip(groups, counts, strict=True):
        order = torch.argsort(of_units(group, found), descending=True, stable=True)
        for place, units in group.places.items():
            gone = {channel for unit in order[count:].tolist() for channel in units[unit]}
            if gone:
                removed.setdefault(place, set()).update(gone)
    return removed, _sizes(groups, kinds, counts, attentions)


def _telling(probe: Tensor) -> Tensor:
    """Images of noise in place of zeros, of which nothing is told apart; token ids as they are."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(probe.shape, generator=generator) if probe.is_floating_point() else probe


def _kinds(groups: list[Group], attentions: list[Heads]) -> list[str]:
    """What each group is: in a model with attention the channels that attentions read are hidden, as are as many of a
    layer behind the last block; those between two linear layers are the feed-forward ones."""
    read = {(path, INPUTS) for heads in attentions for path in heads.rows}
    hidden = {group.count for group in groups if read & group.places.keys()}
    kinds = []
    for group in groups:
        if group.heads:
            kinds.append(HEADS)
        elif read & group.places.keys():
            kinds.append(HIDDEN)
        elif not attentions:
            kinds.append(CHANNELS)
        elif group.count in hidden:
            kinds.append(HIDDEN)
        else:
            kinds.append(FEED_FORWARD)
    return kinds


def _counts(groups: list[Group], kinds: list[str], attentions: list[Heads], width: Width) -> list[int]:
    """How many units of each group are kept."""

    def share(count: int, part: float) -> int:
        return max(1, round(part * count))

    kept = {heads.behind: share(heads.count, width.heads) for heads in attentions}
    ratios: dict[int, tuple[int, int]] = {}
    for group in groups:
        for heads in attentions:
            if any((path, INPUTS) in group.places for path in heads.rows):
                ratios[group.count] = kept[heads.behind], heads.count
    counts = []
    for group, kind in zip(groups, kinds, strict=True):
        if kind == HEADS:
            counts.append(share(group.count, width.heads))
        elif kind == HIDDEN and width.hidden is None:
            some, every = ratios[group.count]
            counts.append(group.count * some // every)
        elif kind == HIDDEN:
            counts.append(share(group.count, width.hidden or 1.0))
        else:
            counts.append(share(group.count, width.feed_forward if kind == FEED_FORWARD else width.channels))
    return counts


def _sizes(groups: list[Group], kinds: list[str], counts: list[int], attentions: list[Heads]) -> Sizes:
    def of(kind: str) -> tuple[int, int] | None:
        return next(((g.count, n) for g, k, n in zip(groups, kinds, counts, strict=True) if k == kind), None)

    units = of(HEADS)
    heads = attentions[0] if attentions else None
    queries = None if units is None or heads is None else (heads.queries, heads.queries // units[0] * units[1])
    return Sizes(queries, units, of(HIDDEN), of(FEED_FORWARD))


def refuse_wrong(whole: nn.Module, narrow: nn.Module, student: nn.Module, removed: Removed, probe: Tensor) -> None:
    """UserError unless a student computes what the whole model does without the channels `removed`. `narrow`: the whole
    model with these cut, its parts called as there; a student's blocks may be numbered otherwise."""
    probe = _telling(probe)
    try:
        with torch.no_grad():
            right = agrees(forward(student.eval(), probe), forward(without(whole, narrow, removed), probe))
    except (RuntimeError, ValueError, TypeError, IndexError):
        right = False
    if not right:
        raise UserError(
            f"{KEY}: the channels of {type(whole).__name__} cannot be followed through all of its operations: cut "
            "blocks (student.from_teacher.depth), or name a student.model"
        )


def _refuse_nothing(module: nn.Module, groups: list[Group], kinds: list[str], counts: list[int], width: Width) -> None:
    """UserError for a share of heads that rounds to all of them, and for a width below 1 that cuts nothing at all."""
    cut_kinds = {kind for group, kind, count in zip(groups, kinds, counts, strict=True) if count < group.count}
    heads = min((group.count for group, kind in zip(groups, kinds, strict=True) if kind == HEADS), default=0)
    if width.heads < 1 and heads and HEADS not in cut_kinds:
        shares = ", ".join(f"{units / heads:.3g}" for units in range(1, heads))
        raise UserError(
            f"{KEY}: {width.heads:g} of {heads} heads leaves them all"
            + (
                f": what cuts some is {shares}, or a share of feed_forward alone"
                if shares
                else ": set feed_forward alone"
            )
        )
    asked = min(width.heads, width.hidden or 1.0, width.feed_forward, width.channels)
    if asked < 1 and not cut_kinds:
        counts_of = {kind: group.count for group, kind in zip(groups, kinds, strict=True)}
        has = ", ".join(f"{count} {kind}" for kind, count in counts_of.items())
        has = has or "nothing that can be cut: its graph cannot be traced, or is one layer"
        raise UserError(f"{KEY}: {asked:g} cuts nothing of {type(module).__name__}, which has {has}")


@torch.no_grad()
def estimate_batch_norms(module: nn.Module, passes: Losses) -> None:
    """The means and variances of a model's batch norms anew, over the batches of `passes`: those of the teacher are not
    those of fewer channels."""
    norms = [layer for layer in module.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    norms = [layer for layer in norms if layer.track_running_stats]
    if not norms:
        return
    usual = [layer.momentum for layer in norms]
    for layer in norms:
        layer.reset_running_stats()
        layer.momentum = None  # a plain mean of all batches
        layer.train()
    for _ in passes(module):
        pass
    for layer, momentum in zip(norms, usual, strict=True):
        layer.momentum = momentum
        layer.eval()
