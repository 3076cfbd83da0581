"""The student that a recipe builds from its teacher."""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgestill.assemble.models import with_vocabulary
from edgestill.data.images import spaced
from edgestill.losses import cross_entropy, regression
from edgestill.models import Model, TextInput, embed, embedding_of, example, forward, load_model
from edgestill.recipe import FromTeacher
from edgestill.recipe import Width as WidthSection
from edgestill.students.cutting import Removed, cut
from edgestill.students.depth import (
    Losses,
    all_blocks,
    blocks_of,
    kept_of_stages,
    losses_without,
    most_missed,
    removable,
    shallower,
)
from edgestill.students.importance import Importance
from edgestill.students.narrower import Sizes, Width, channels_to_cut, estimate_batch_norms, refuse_wrong
from edgestill.students.plain import configured, differences, from_timm, source
from edgestill.students.vocabulary import Vocabulary
from edgestill.tasks.samples import Samples

SOFTENED = 4.0
"""Temperature of the loss whose gradients count: a teacher that knows its training labels by heart has none at 1."""
SAMPLES, IMAGES_AT_ONCE, TEXTS_AT_ONCE = 512, 64, 8
"""Of training, by which channels and blocks are told apart."""
CPU = torch.device("cpu")


def from_teacher(
    section: FromTeacher,
    teacher: Model,
    samples: Samples | None,
    *,
    weights: bool = True,
    vocabulary: Vocabulary | None = None,
) -> Model:
    """The student that a section describes, on the CPU in float32: a plain model, with the teacher's weights or with
    random ones.

    Args:
        samples: the training split, by which channels and blocks are told apart; without it what comes has the
            student's sizes alone, as for a teacher that is yet to be fitted.
        vocabulary: of the student, where it is smaller than the teacher's.
    """
    teacher.module.to("cpu")
    probe = example(teacher.input, 2)
    softened = section.importance == "taylor" and not isinstance(teacher.input, TextInput)
    losses = _losses(teacher, samples, SOFTENED if softened else 1.0)
    config = getattr(teacher.module, "config", None)  # that of a convolutional net names no number of layers
    configurable = isinstance(teacher.input, TextInput) or hasattr(config, "num_hidden_layers")
    build = _of_hugging_face if configurable else _of_any
    with torch.random.fork_rng(devices=[], enabled=weights):  # what is built and filled leaves the seed as it was
        student = build(section, teacher, probe, losses, samples is not None, weights)
    student.module.requires_grad_(True)  # a teacher that has been asked is frozen
    return student if vocabulary is None else with_vocabulary(student, vocabulary)


def _losses(teacher: Model, samples: Samples | None, temperature: float = 1.0) -> Losses:
    """The losses of a model on real samples: to their labels or, where there are none, to what the teacher puts out.
    Without samples, of two made up."""

    def of(module: nn.Module) -> Iterator[Tensor]:
        if samples is None:
            yield forward(module, example(teacher.input, 2)).square().mean()
            return
        labelled = np.flatnonzero(samples.labels >= 0)
        rows = labelled if len(labelled) else np.arange(len(samples))
        rows = rows[spaced(len(rows), SAMPLES)]
        size = TEXTS_AT_ONCE if isinstance(teacher.input, TextInput) else IMAGES_AT_ONCE
        for chunk in np.array_split(rows, max(1, len(rows) // size)):
            batch = samples.batch(chunk, np.zeros(len(chunk), np.int64), 0, None)
            inputs = batch.inputs(teacher.input, CPU)
            outputs = forward(module, inputs)
            if embedding_of(teacher.module) is not None or not len(labelled):
                with torch.no_grad():
                    expected = forward(teacher.module.eval(), inputs)
                yield (outputs - expected).square().mean()
            elif batch.labels.is_floating_point() and outputs.shape[-1] == 1:
                yield regression(outputs, batch.labels)
            else:
                yield cross_entropy(batch.answers(outputs) / temperature, batch.labels, mask=batch.mask)

    return of


@dataclass(frozen=True)
class _Chosen:
    paths: list[str]
    kept: list[int]

    @property
    def said(self) -> str:
        return "" if len(self.kept) == len(self.paths) else f", blocks {', '.join(map(str, self.kept))}"

    def origin(self) -> dict[str, str]:
        """By the path of each block that is kept, as it is numbered in the student, its path in the teacher."""
        parent = self.paths[0].rpartition(".")[0]
        return {f"{parent}.{place}": self.paths[old] for place, old in enumerate(self.kept)}


def _blocks(section: FromTeacher, module: nn.Module, paths: list[str], free: Sequence[int], losses: Losses) -> _Chosen:
    """Which of a model's blocks are kept; all but the `free` cannot be left out."""
    every = range(len(paths))
    if section.depth is None and not isinstance(section.keep, list):
        return _Chosen(paths, [*every])
    if section.keep != "important":
        return _Chosen(paths, kept_of_stages(paths, free, section.depth, section.keep))
    count = len(kept_of_stages(paths, free, section.depth, "first"))
    missed = losses_without(module.eval(), [paths[place] for place in free], losses)
    return _Chosen(paths, most_missed(every, dict(zip(free, missed, strict=True)), count))


def _importance(section: FromTeacher, real: bool) -> Importance:
    """Without samples, by weights alone: the sizes are the same."""
    return section.importance if real else "magnitude"


def _width(section: WidthSection | float) -> Width:
    if isinstance(section, WidthSection):
        return Width(section.heads, section.hidden, section.feed_forward, section.channels)
    return Width(section, None, section, section)


def _of_hugging_face(
    section: FromTeacher, teacher: Model, probe: Tensor, losses: Losses, real: bool, weights: bool
) -> Model:
    paths = blocks_of(teacher.module, probe)
    chosen = _blocks(section, teacher.module, paths, range(len(paths)), losses)
    embedding = embedding_of(teacher.module)

    def embedded(module: nn.Module) -> nn.Module:
        if embedding is not None:
            embed(module, embedding.pooling)
        return module

    student = embedded(shallower(teacher.module, probe, chosen.kept).eval())
    said = ""
    if section.width is not None:
        whole, importance = student, _importance(section, real)
        removed, sizes = channels_to_cut(whole, probe, _width(section.width), importance, losses)
        narrow = copy.deepcopy(whole)
        cut(narrow, removed)
        student = embedded(configured(narrow, sizes))
        refuse_wrong(whole, narrow, student, removed, probe)
        said = _said(sizes)
    if not weights:
        student = embedded(type(student)(student.config))
    spec = f"{teacher.spec}{chosen.said}{said}"
    return replace(teacher, module=student, spec=spec, options={}, fresh=(), origin=chosen.origin())


def _said(sizes: Sizes) -> str:
    names = {"heads": sizes.heads, "hidden channels": sizes.hidden, "feed-forward channels": sizes.feed_forward}
    return "".join(f", {change[1]} of {change[0]} {name}" for name, change in names.items() if change is not None)


def _of_any(section: FromTeacher, teacher: Model, probe: Tensor, losses: Losses, real: bool, weights: bool) -> Model:
    module = teacher.module.eval()
    blocks = all_blocks(module, probe)
    chosen = _blocks(section, module, blocks, removable(module, probe, blocks), losses)
    skipped = [path for place, path in enumerate(chosen.paths) if place not in chosen.kept]
    whole = _without(copy.deepcopy(module), skipped)
    removed: Removed = {}
    sizes = Sizes(None, None, None, None)
    if section.width is not None:
        importance = _importance(section, real)
        removed, sizes = channels_to_cut(whole, probe, _width(section.width), importance, losses)
    narrow = copy.deepcopy(whole)
    cut(narrow, removed)
    made = _of_timm(teacher, narrow, chosen, sizes) if teacher.spec.startswith("timm:") else None
    if made is None:
        name, text = source(teacher, skipped, differences(module, narrow))
        made = replace(teacher, module=narrow, spec=f"model.py:{name}", options={}, source=text, origin={})
    if removed:
        refuse_wrong(whole, narrow, made.module, removed, probe)
    if real and (skipped or removed):  # an uncut copy stays as it is
        estimate_batch_norms(made.module, losses)
    if not weights:
        made = replace(made, module=_anew(teacher, made, skipped, removed))
    return made


def _without(module: nn.Module, skipped: Sequence[str]) -> nn.Module:
    for path in skipped:
        module.set_submodule(path, nn.Identity())
    return module


def _of_timm(teacher: Model, narrow: nn.Module, chosen: _Chosen, sizes: Sizes) -> Model | None:
    """timm's own model with these blocks and sizes, where its function takes them."""
    parents = {path.rpartition(".")[0] for path in chosen.paths}
    if len(parents) != 1:
        return None
    parent = parents.pop()
    listed = copy.deepcopy(narrow)
    kept = [listed.get_submodule(chosen.paths[place]) for place in chosen.kept]
    listed.set_submodule(parent, nn.Sequential(*kept))
    made = from_timm(teacher.spec[5:], teacher.options, listed, sizes, len(chosen.kept))
    if made is None:
        return None
    return replace(teacher, module=made[0], options=made[1], origin=chosen.origin())


def _anew(teacher: Model, made: Model, skipped: Sequence[str], removed: Removed) -> nn.Module:
    """A model of the student's sizes with random weights, drawn as the teacher's library draws them."""
    assert not isinstance(teacher.input, TextInput)
    if hasattr(teacher.module, "save_pretrained"):  # its spec would load the teacher's weights
        drawn: nn.Module = type(teacher.module)(teacher.module.config).eval()
        cut(_without(drawn, skipped), removed)
        return drawn
    ours = made if made.source is None or made.source == teacher.source else teacher
    options = ours.options | ({"pretrained": False} if ours.spec.startswith("timm:") else {})
    seen: dict[str, Any] = {"mean": [*teacher.input.mean], "std": [*teacher.input.std], "size": teacher.input.size}
    drawn = load_model(ours.spec, classes=None, default=teacher.input, options=options, **seen).module.eval()
    if ours is teacher:
        cut(_without(drawn, skipped), removed)
    return drawn
