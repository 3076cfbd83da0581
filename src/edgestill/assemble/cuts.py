"""The students that a teacher can be cut to, and how many parameters they have."""

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from edgestill.assemble.students import from_teacher
from edgestill.errors import UserError
from edgestill.models import Model, TextInput, embedding_of, example, forward
from edgestill.recipe import FromTeacher
from edgestill.students.depth import all_blocks, kept_of_stages, removable
from edgestill.taps import found, record, stages

WIDTHS = (0.75, 0.5, 0.25, 0.125)
"""Shares of heads and channels that are tried."""
DEPTHS = 8
"""Numbers of blocks that are tried, at most."""
WHOLE = 1.0


@dataclass(frozen=True)
class Cuts:
    """What can be cut of a teacher.

    `depths`: by the number of blocks, as many as 8 numbers, the parameters at the whole width; the last is the whole
    teacher. `widths`: by the share of the width, the share of the parameters that is left at the whole depth.
    `inside`: whether widths are of the feed-forward channels inside the blocks alone. `blocks`: of the teacher.
    """

    depths: Mapping[int, float]
    widths: Mapping[float, float]
    inside: bool
    blocks: int

    def section(self, depth: int | list[int], width: float | list[float]) -> dict[str, Any]:
        """The recipe's `from_teacher` for a depth and a width, or for choices of them."""
        made: dict[str, Any] = {}
        if depth not in (self.blocks, [self.blocks]):
            made["depth"] = depth
        if width not in (WHOLE, [WHOLE]):
            inner = [{"feed_forward": one} for one in width] if isinstance(width, list) else {"feed_forward": width}
            made["width"] = inner if self.inside else width
        return {key: _single(value) for key, value in made.items()}


def _single(value: Any) -> Any:
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def cuts_of(teacher: Model) -> Cuts:
    """Each kind of cut is tried once. UserError for a teacher of which nothing can be cut, with why and what to do."""
    whole, refused = float(teacher.parameters), list[str]()
    blocks, depths = _depths(teacher, whole, refused)
    inside = isinstance(teacher.input, TextInput) and embedding_of(teacher.module) is not None
    widths = _widths(teacher, whole, inside, refused)
    if not widths and not inside:
        widths = _widths(teacher, whole, True, refused)
        inside = bool(widths)
    if not depths and not widths:
        why = "; ".join(one.removeprefix("student.from_teacher")[:200].lstrip(".: ") for one in dict.fromkeys(refused))
        raise UserError(
            f"{teacher.spec} cannot be cut: {why}; "
            "write a recipe that names students, in student.search.model or student.search.candidates"
        )
    return Cuts({**depths, blocks: whole}, {**dict(sorted(widths.items())), WHOLE: 1.0}, inside, blocks)


def built(teacher: Model, section: Mapping[str, Any]) -> Model:
    """A student of these sizes, its channels told apart by weights alone."""
    return from_teacher(FromTeacher.model_validate(dict(section)), teacher, None)


def _depths(teacher: Model, whole: float, refused: list[str]) -> tuple[int, dict[int, float]]:
    """How many blocks a teacher has, and parameters by how many are kept of them; none where it cannot do without."""
    module, probe = teacher.module.eval(), example(teacher.input, 2)
    blocks = all_blocks(module, probe)
    every = isinstance(teacher.input, TextInput) or hasattr(getattr(module, "config", None), "num_hidden_layers")
    free = [*range(len(blocks))] if every else removable(module, probe, blocks)
    least = max(1, len(blocks) - len(free))
    if least >= len(blocks):
        refused.append(f"{type(module).__name__} has no blocks that it could do without")
        return max(1, len(blocks)), {}
    try:
        built(teacher, {"depth": least})
    except UserError as error:
        refused.append(str(error))
        return len(blocks), {}
    sizes = [sum(p.numel() for p in module.get_submodule(path).parameters()) for path in blocks]
    count = min(DEPTHS, len(blocks) - least + 1)
    numbers = [round(least + place * (len(blocks) - least) / (count - 1)) for place in range(count)]
    return len(blocks), {
        number: whole - sum(sizes) + sum(sizes[place] for place in kept_of_stages(blocks, free, number, "spread"))
        for number in numbers
    }


def _widths(teacher: Model, whole: float, inside: bool, refused: list[str]) -> dict[float, float]:
    """By the share of the width that is kept, the share of the parameters; those that come to the same once."""
    if importlib.util.find_spec("torch_pruning") is None:
        refused.append("width needs Torch-Pruning: pip install 'edgestill[width]'")
        return {}
    shares: dict[float, float] = {}
    for width in WIDTHS:
        try:
            left = built(teacher, {"width": {"feed_forward": width} if inside else width}).parameters / whole
        except UserError as error:
            refused.append(str(error))
            continue
        if left < 1 and left not in shares.values():
            shares[width] = left
    return shares


@dataclass(frozen=True)
class Tapped:
    """What terms could learn from: see `edgestill.plan.advise.Facts`."""

    attention: tuple[int, int] | None
    """Heads of the last attention, and the width of all of them together."""
    maps: bool
    last_stage: str | None


def tapped(model: Model) -> Tapped:
    """Where a model can be tapped."""
    module, probe = model.module.eval(), example(model.input, 2)
    attentions = [tap.path for tap in found(module, probe) if tap.kind == "attention"]
    ends = stages(module, probe)
    attention, shape = None, None
    with torch.no_grad():
        if attentions:
            path = f"{attentions[-1].removesuffix('@attention')}@queries"
            try:
                with record(module, [path]) as recorded:
                    forward(module, probe)
                attention = recorded[path].shape[1], recorded[path].shape[1] * recorded[path].shape[3]
            except UserError:
                attention = None
        if ends and not attentions:
            with record(module, [ends[-1]]) as recorded:
                forward(module, probe)
            shape = recorded[ends[-1]].shape
    maps = shape is not None and len(shape) == 4
    return Tapped(attention, maps, ends[-1] if maps else None)
