"""A student of some of its teacher's blocks, with the teacher's weights, as a plain model of the same class."""

import copy
import re
from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor, nn

from edgestill.errors import UserError, first_line
from edgestill.models import dequantized
from edgestill.taps import found

Keep = Literal["spread", "first", "last"] | Sequence[int]


def blocks_of(module: nn.Module, probe: Tensor, key: str = "student.from_teacher") -> list[str]:
    """The paths of a model's blocks: of the parts that are repeated, told from its structure. UserError without any,
    for the recipe's `key` that asks for them."""
    blocks = [tap.path for tap in found(module, probe) if tap.kind == "block"]
    numbered = [path for path in blocks if path.rpartition(".")[2].isdigit()]
    if len(numbered) < 1 or len({path.rpartition(".")[0] for path in numbered}) != 1:
        raise UserError(f"{key}: {type(module).__name__} has no list of blocks to choose from")
    return numbered


def kept_blocks(count: int, depth: float | None, keep: Keep) -> list[int]:
    """Which of `count` blocks are kept, in order: `depth` of them, or that share.

    `spread` keeps the first and the last, and between them evenly spaced ones; one block alone is the first.

    >>> kept_blocks(12, 4, "spread"), kept_blocks(6, 0.5, "last"), kept_blocks(6, None, [0, 3])
    ([0, 4, 7, 11], [3, 4, 5], [0, 3])
    """
    if not isinstance(keep, str):
        if outside := [place for place in keep if place >= count]:
            raise UserError(f"student.from_teacher.keep: the teacher's blocks are 0…{count - 1}; {outside[0]} came")
        return list(keep)
    assert depth is not None
    wanted = depth if isinstance(depth, int) else max(1, round(depth * count))
    if wanted > count:
        raise UserError(f"student.from_teacher.depth: the teacher has {count} blocks; {wanted} were asked for")
    if keep == "first":
        return list(range(wanted))
    if keep == "last":
        return list(range(count - wanted, count))
    return [round(place * (count - 1) / max(wanted - 1, 1)) for place in range(wanted)]


def shallower(teacher: nn.Module, probe: Tensor, kept: Sequence[int], *, weights: bool = True) -> nn.Module:
    """A new model of the teacher's class with the blocks `kept`, in order, in float32.

    Args:
        teacher: a Hugging Face model of any precision, which is left as it is.
        probe: an input batch, from which its blocks are told.
        weights: whether it begins with the teacher's weights, or with new random ones.

    Raises UserError for a model that cannot be made with fewer blocks, or whose other blocks have other weights.
    """
    config: Any = getattr(teacher, "config", None)
    if config is None or not hasattr(teacher, "save_pretrained"):
        raise UserError(
            f"student.from_teacher: {type(teacher).__name__} is no Hugging Face model, of which blocks can be taken"
        )
    paths = blocks_of(teacher, probe)
    if getattr(config, "num_hidden_layers", None) != len(paths):
        raise UserError(
            f"student.from_teacher: {type(teacher).__name__} has {len(paths)} blocks and runs "
            f"{getattr(config, 'num_hidden_layers', 'no number of')} layers: shared blocks cannot be chosen from"
        )
    parent = paths[0].rpartition(".")[0]
    try:
        student: nn.Module = type(teacher)(_with_blocks(config, len(paths), kept))
    except Exception as error:
        raise UserError(
            f"student.from_teacher: {type(teacher).__name__} cannot be made with {len(kept)} of its {len(paths)} "
            f"blocks: {first_line(error)}"
        ) from error
    if weights:
        state = dequantized(_renumbered(teacher.state_dict(), parent, kept))
        own = student.state_dict()
        wrong = [key for key in own if key not in state or own[key].shape != state[key].shape]
        wrong += [key for key in state if key not in own]
        if wrong:
            raise UserError(
                f"student.from_teacher: the blocks {[*kept]} do not stand in these places in {type(teacher).__name__}: "
                f"{wrong[0]!r} does not fit; keep others"
            )
        student.load_state_dict(state)
    return student.float()


def _with_blocks(config: Any, count: int, kept: Sequence[int]) -> Any:
    """The configuration with fewer blocks: their number, and what it lists for each."""
    changed = copy.deepcopy(config)
    changed.num_hidden_layers = len(kept)
    for name, value in vars(config).items():
        if isinstance(value, list | tuple) and len(value) == count:
            setattr(changed, name, [value[place] for place in kept])
    return changed


def _renumbered(state: dict[str, Tensor], parent: str, kept: Sequence[int]) -> dict[str, Tensor]:
    """A state dict of these blocks alone, numbered from 0."""
    place = {old: new for new, old in enumerate(kept)}
    pattern = re.compile(rf"({re.escape(parent)}\.)(\d+)(\..*)")
    made = {}
    for key, value in state.items():
        inside = pattern.fullmatch(key)
        if inside is None:
            made[key] = value
        elif int(inside[2]) in place:
            made[f"{inside[1]}{place[int(inside[2])]}{inside[3]}"] = value
    return made
