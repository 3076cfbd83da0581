"""The attentions that a model computes, seen in its own calls of torch, whatever the family of the model.

Shapes: B batch, N heads, T queries, S keys, D width of a head.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from edgestill.losses.reduce import wide

PARTS = ("attention", "queries", "keys", "values")
SOFTMAX = (functional.softmax, torch.softmax, Tensor.softmax)


@dataclass(frozen=True)
class Attention:
    """One attention as it is computed: its parts, made when they are asked for, and the shape of its probabilities.

    `fused`: by scaled_dot_product_attention, which has all four parts; an explicit softmax has but its probabilities.
    `size`: D of its queries and keys, 0 where they are not seen.
    """

    fused: bool
    shape: tuple[int, ...]
    parts: Mapping[str, Callable[[], Tensor]]
    size: int = 0


Seen = Callable[[Attention, tuple[str, ...]], None]


@contextmanager
def watch(modules: Mapping[str, nn.Module], seen: Seen) -> Iterator[None]:
    """Calls `seen` with each attention that is computed while one of `modules` runs, and with the paths of those that
    run, the outermost first."""
    running: list[str] = []
    handles = []

    def enter(path: str, _module: nn.Module, _inputs: object) -> None:
        running.append(path)

    def leave(path: str, _module: nn.Module, _inputs: object, _output: object) -> None:
        if running[-1:] == [path]:
            running.pop()

    try:
        for path, module in modules.items():
            handles.append(module.register_forward_pre_hook(partial(enter, path)))
            handles.append(
                module.register_forward_hook(partial(leave, path), always_call=True)
            )  # also where the forward fails
        with _Calls(lambda attention: seen(attention, tuple(running)) if running else None):
            yield
    finally:
        for handle in handles:
            handle.remove()


class _Calls(TorchFunctionMode):
    """Sees the arguments of each call of scaled_dot_product_attention, and what each softmax over keys returns."""

    def __init__(self, seen: Callable[[Attention], None]) -> None:
        super().__init__()
        self.seen = seen
        self.heads: int | None = None

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is functional.multi_head_attention_forward:
            return self._multi_head(*args, **kwargs)
        result = func(*args, **kwargs)
        if func is functional.scaled_dot_product_attention:
            self.seen(_fused(*args, **kwargs))
        elif func in SOFTMAX and kwargs.get("dim", args[1] if len(args) > 1 else None) in (-1, result.dim() - 1):
            if self.heads is not None and result.dim() == 3:  # torch's own multi-head attention: [B·N, T, S]
                result_by_head = result.unflatten(0, (-1, self.heads))
                self.seen(_explicit(result_by_head))
            elif result.dim() == 4:
                self.seen(_explicit(result))
        return result

    def _multi_head(self, *args: Any, **kwargs: Any) -> Any:
        """torch's own multi-head attention hands itself over whole to a mode, so that the mode sees nothing of what it
        does. The same function with the asking left out does not."""
        whole = functional.multi_head_attention_forward
        names = {**whole.__globals__, "has_torch_function": lambda _tensors: False}
        opened = FunctionType(whole.__code__, names, whole.__name__, whole.__defaults__, whole.__closure__)
        self.heads = kwargs.get("num_heads", args[4] if len(args) > 4 else None)
        try:
            with self:
                return opened(*args, **kwargs)
        finally:
            self.heads = None


def _explicit(result: Tensor) -> Attention:
    return Attention(False, tuple(result.shape), {"attention": lambda: wide(result.clone())})


def _fused(query: Tensor, key: Tensor, value: Tensor, *args: Any, enable_gqa: bool = False, **kwargs: Any) -> Attention:
    def by_head(tensor: Tensor) -> Tensor:
        """Of grouped queries, each head sees its group's keys and values."""
        return tensor.repeat_interleave(query.shape[-3] // tensor.shape[-3], -3) if enable_gqa else tensor

    return Attention(
        True,
        (*query.shape[:-1], key.shape[-2]),
        {
            "attention": lambda: probabilities(query, by_head(key), value, *args, **kwargs),
            "queries": query.clone,
            "keys": lambda: by_head(key).clone(),
            "values": lambda: by_head(value).clone(),
        },
        query.shape[-1],
    )


def probabilities(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
) -> Tensor:
    """`softmax(scale·query·keyᵀ + mask)` [B, N, T, S] of the arguments of scaled_dot_product_attention, in float32
    (float64 stays), without dropout. A query that may look at nothing has zeros.

    >>> query = key = value = torch.zeros(1, 1, 2, 4)
    >>> probabilities(query, key, value, is_causal=True)[0, 0].tolist()
    [[1.0, 0.0], [0.5, 0.5]]
    """
    with torch.autocast(query.device.type, enabled=False):
        scale = query.shape[-1] ** -0.5 if scale is None else scale
        scores = (scale * wide(query)) @ wide(key).mT
        if is_causal:
            allowed = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
            scores = scores.masked_fill(~allowed, -torch.inf)
        if attn_mask is None:
            return scores.softmax(-1)
        scores = scores.masked_fill(~attn_mask, -torch.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
        empty = (scores == -torch.inf).all(-1, keepdim=True)  # a softmax over nothing would be NaN, and its gradient
        return scores.masked_fill(empty, 0.0).softmax(-1).masked_fill(empty, 0.0)


class Run:
    """What the module of one path attends to in one run of its forward; `take` is told of every attention in it."""

    def __init__(self, parts: Iterable[str]) -> None:
        self.parts = tuple(parts)
        self.seen: dict[bool, list[tuple[str, ...]]] = {True: [], False: []}
        self.recorded: dict[str, Tensor] = {}

    def take(self, attention: Attention, inside: tuple[str, ...]) -> None:
        """A fused attention goes before an explicit softmax, which may be anything."""
        seen = self.seen[attention.fused]
        seen.append(inside)
        if len(seen) == 1 and (attention.fused or not self.seen[True]):
            self.recorded = {part: attention.parts[part]() for part in self.parts if part in attention.parts}

    @property
    def places(self) -> list[tuple[str, ...]]:
        """For each of its attentions, the paths of the modules that ran, the outermost first."""
        return self.seen[True] or self.seen[False]
