"""A student of some of its teacher's blocks, with the teacher's weights."""

import copy
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from edgestill.errors import UserError, first_line
from edgestill.models import dequantized
from edgestill.taps import found
from edgestill.taps.tracing import trace

Rule = Literal["spread", "first", "last"]
Losses = Callable[[nn.Module], Iterable[Tensor]]
"""The losses of some real batches of the model that it is given, one after another."""


def blocks_of(module: nn.Module, probe: Tensor, key: str = "student.from_teacher") -> list[str]:
    """The paths of a transformer's blocks: of the parts that are repeated, told from its structure. UserError without
    any, for the recipe's `key` that asks for them."""
    numbered = all_blocks(module, probe)
    if len(numbered) < 1 or len({path.rpartition(".")[0] for path in numbered}) != 1:
        raise UserError(f"{key}: {type(module).__name__} has no list of blocks to choose from")
    return numbered


def all_blocks(module: nn.Module, probe: Tensor) -> list[str]:
    """The paths of a model's blocks, those of all stages, in the order in which they run."""
    blocks = [tap.path for tap in found(module, probe) if tap.kind == "block"]
    return [path for path in blocks if path.rpartition(".")[2].isdigit()]


def removable(module: nn.Module, probe: Tensor, blocks: Sequence[str]) -> list[int]:
    """Which of the blocks put out what they take in shape, so that the model runs without them."""
    nodes, _ = trace(module, probe)
    return [place for place, path in enumerate(blocks) if nodes[path].taken == nodes[path].shape]


def kept_blocks(count: int, depth: float | None, keep: Rule | Sequence[int]) -> list[int]:
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


def kept_of_stages(
    blocks: Sequence[str], free: Sequence[int], depth: float | None, keep: Rule | Sequence[int]
) -> list[int]:
    """As `kept_blocks`, of a model of stages: those that change the shape, all but the `free`, are always kept."""
    fixed = [place for place in range(len(blocks)) if place not in free]
    if depth is None:
        kept = kept_blocks(len(blocks), None, keep)
        if missing := [place for place in fixed if place not in kept]:
            raise UserError(
                f"student.from_teacher.keep: block {missing[0]} ({blocks[missing[0]]}) changes the shape of what it "
                f"takes, and cannot be left out; the blocks that can are {', '.join(map(str, free))}"
            )
        return kept
    wanted = len(kept_blocks(len(blocks), depth, "first")) - len(fixed)
    if wanted < 0:
        raise UserError(
            f"student.from_teacher.depth: {len(fixed)} of the teacher's {len(blocks)} blocks change the shape of what "
            f"they take, and cannot be left out; {wanted + len(fixed)} were asked for"
        )
    chosen = kept_blocks(len(free), wanted, keep) if wanted else []
    return sorted([*fixed, *(free[place] for place in chosen)])


def most_missed(every: Sequence[int], missed: Mapping[int, float], count: int) -> list[int]:
    """`count` of the blocks, in order: those that are not in `missed`, and of the others those without which the loss
    is greatest; of equal ones the first.

    >>> most_missed(range(4), {1: 0.3, 2: 0.9, 3: 0.5}, 3)
    [0, 2, 3]
    """
    fixed = [place for place in every if place not in missed]
    order = sorted(missed, key=lambda place: (-missed[place], place))
    return sorted([*fixed, *order[: count - len(fixed)]])


@torch.no_grad()
def losses_without(module: nn.Module, blocks: Sequence[str], losses: Losses) -> list[float]:
    """For each block, the mean loss of the model where it passes on what it is given."""

    def skip(_module: nn.Module, inputs: Any, options: Any, output: Any) -> Any:
        given = inputs[0] if inputs else options["hidden_states"]
        return (given, *output[1:]) if isinstance(output, tuple) else given

    found = []
    for path in blocks:
        handle = module.get_submodule(path).register_forward_hook(skip, with_kwargs=True)
        try:
            found.append(float(torch.stack(list(losses(module))).mean()))
        finally:
            handle.remove()
    return found


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
