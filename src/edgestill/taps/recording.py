"""Recording: a dict that each forward pass fills with what happened at the taps."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

from torch import Tensor, nn

from edgestill.errors import UserError, closest
from edgestill.taps.attention import PARTS, Attention, Run, watch


@contextmanager
def record(model: nn.Module, paths: Iterable[str]) -> Iterator[dict[str, Tensor]]:
    """A dict that each forward inside the block fills with the outputs at `paths`, as the taps' modules returned them.

    `PATH@attention` records what the attention in the module at PATH looks at instead: its probabilities
    `softmax(scale·query·keyᵀ + mask)` [B, heads, T, T'] in float32, without dropout; `PATH@queries`, `@keys` and
    `@values` record what they are made of, [B, heads, T, width of a head], one for each head of the queries.

    An in-place operation behind a tap does not reach what was recorded. The hooks go when the block ends.
    Raises UserError for a path that the model does not have, and for PATH@… where not exactly one attention is seen.

    >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(inplace=True))
    >>> with record(model, ["0"]) as taps:
    ...     output = model(torch.ones(1, 2))
    >>> taps["0"].shape
    torch.Size([1, 3])
    >>> model = nn.TransformerEncoderLayer(8, nhead=2, batch_first=True)
    >>> with record(model, ["self_attn@attention"]) as taps:
    ...     output = model(torch.ones(1, 5, 8))
    >>> taps["self_attn@attention"].shape
    torch.Size([1, 2, 5, 5])
    """
    modules = dict(model.named_modules())
    taps: dict[str, Tensor] = {}
    attentions: dict[str, list[str]] = {}
    with ExitStack() as block:
        for tap in paths:
            path, at, part = tap.rpartition("@") if "@" in tap and tap not in modules else (tap, "", "")
            if not path or path not in modules:
                raise UserError(f"no tap {tap!r} in {type(model).__name__}{closest(path, filter(None, modules))}")
            if at and part not in PARTS:
                raise UserError(f"tap {tap!r}: behind the @ stands {', '.join(PARTS)}{closest(part, PARTS)}")
            if at:
                attentions.setdefault(path, []).append(part)
            else:
                block.callback(modules[path].register_forward_hook(_recorder(taps, path)).remove)
        if attentions:
            block.enter_context(_attentions(modules, attentions, taps))
        yield taps


def tensor_of(output: object) -> Tensor | None:
    """The tensor that a module returns: itself, the first of a tuple, or the first of a Hugging Face output object."""
    if hasattr(output, "to_tuple"):
        output = output.to_tuple()
    value = output[0] if isinstance(output, tuple | list) and output else output
    return value if isinstance(value, Tensor) else None


def _recorder(taps: dict[str, Tensor], path: str) -> Callable[[nn.Module, object, object], None]:
    def hook(_module: nn.Module, _inputs: object, output: object) -> None:
        value = tensor_of(output)
        if value is None:
            raise UserError(f"tap {path!r} returns {type(output).__name__}, not a tensor")
        taps[path] = value.clone()  # an in-place operation behind the tap would overwrite the original

    return hook


@contextmanager
def _attentions(modules: dict[str, nn.Module], wanted: dict[str, list[str]], taps: dict[str, Tensor]) -> Iterator[None]:
    """Fills `taps` with the wanted parts of each path's attention."""
    runs: dict[str, Run] = {}

    def begin(path: str, _module: nn.Module, _inputs: object) -> None:
        runs[path] = Run(wanted[path])

    def seen(attention: Attention, inside: tuple[str, ...]) -> None:
        for path in wanted.keys() & set(inside):
            runs[path].take(attention, inside)

    def end(path: str, _module: nn.Module, _inputs: object, _output: object) -> None:
        run = runs.pop(path)
        if len(run.places) != 1:
            raise UserError(_not_one(path, wanted[path][0], run.places))
        for part in wanted[path]:
            if part not in run.recorded:
                raise UserError(
                    f"tap {path + '@' + part!r}: {path!r} computes its attention with an explicit softmax, which shows "
                    f"its probabilities alone: load the model with attn_implementation='sdpa' (timm: fused attention)"
                )
            taps[f"{path}@{part}"] = run.recorded[part]

    within = {name: module for name, module in modules.items() if any(_is_in(name, path) for path in wanted)}
    with ExitStack() as block:
        for path in wanted:
            block.callback(modules[path].register_forward_pre_hook(partial(begin, path)).remove)
        block.enter_context(watch(within, seen))
        for path in wanted:
            block.callback(modules[path].register_forward_hook(partial(end, path)).remove)
        yield


def _is_in(path: str, container: str) -> bool:
    return path == container or path.startswith(f"{container}.")


def _not_one(path: str, part: str, places: list[tuple[str, ...]]) -> str:
    """What is wrong with a path in which no attention was seen, or several."""
    tap = f"{path}@{part}"
    if not places:
        return (
            f"tap {tap!r}: no attention was seen in {path!r}: name an attention module or the block around it, and "
            f"load the model with attn_implementation='sdpa' (timm: fused attention)"
        )
    below = [[inner for inner in place if _is_in(inner, path) and inner != path] for place in places]
    counts = Counter(inner for place in below for inner in place)
    alone = [next((f"{inner}@{part}" for inner in place if counts[inner] == 1), None) for place in below]
    names = list(dict.fromkeys(name for name in alone if name))
    listed = ", ".join(map(repr, names[:4])) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
    advice = f"name one of them: {listed}" if names else f"{path!r} computes them all itself"
    return f"tap {tap!r}: {len(places)} attentions were seen in {path!r}; {advice}"
