"""Which layers lose most in 8 bits, and which of them to spare.

Shapes: N samples, C classes.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from edgestill.quantize.fake import LAYER_PARTS, MAP_PARTS, Mode, Quantizer, mode


def divergences(
    module: GraphModule,
    batches: Sequence[Tensor],
    track: Callable[[Iterable[str], str, int], Iterable[str]] = lambda items, *_: items,
) -> dict[str, float]:
    """Of each layer, in running order: KL(softmax(float) ‖ softmax(this layer alone in 8 bits)) in nats, the mean over
    the samples of `batches`, for a calibrated `fake_quantized` module that puts out logits [N, C].

    >>> divergences(module, images.split(50))  # doctest: +SKIP
    {'conv1': 0.0021, 'layer1.0.conv1': 0.0003, 'linear': 0.0001}
    """
    parts: dict[str, tuple[str, ...]] = module.meta[LAYER_PARTS]
    with mode(module, "off"):
        expected = _log_probabilities(module, batches)
        found = {}
        for layer in track(parts, "layers in 8 bits", len(parts)):
            with _in_mode(module, parts[layer], "quantize"):
                found[layer] = float((expected.exp() * (expected - _log_probabilities(module, batches))).sum(-1).mean())
    return found


@contextmanager
def spared(module: GraphModule, layers: Collection[str]) -> Iterator[None]:
    """Some layers in float inside the block: their weights, and the activations that no other layer, addition, mean or
    pooling in 8 bits reads or writes. It answers as one made with `keep_float=layers` does."""
    parts: dict[str, tuple[str, ...]] = module.meta[LAYER_PARTS]
    needed = {name for layer, names in parts.items() if layer not in layers for name in names}
    needed.update(module.meta[MAP_PARTS])
    with _in_mode(module, {name for layer in layers for name in parts[layer]} - needed, "off"):
        yield


@contextmanager
def _in_mode(module: GraphModule, names: Collection[str], mode: Mode) -> Iterator[None]:
    parts = [part for name, part in module.named_modules() if name in names and isinstance(part, Quantizer)]
    before = [part.mode for part in parts]
    try:
        for part in parts:
            part.mode = mode
        yield
    finally:
        for part, was in zip(parts, before, strict=True):
            part.mode = was


def to_spare(
    module: GraphModule, losses: dict[str, float], quality: Callable[[nn.Module], float], target: float
) -> list[str]:
    """The fewest layers, those that lose most, without which in 8 bits `quality(module)` reaches `target`; at most half
    of all, and where that does not reach it the number that came nearest."""
    worst = sorted(losses, key=lambda layer: -losses[layer])
    reached: list[tuple[float, int]] = []
    for count in range(len(worst) // 2 + 1):
        with spared(module, worst[:count]):
            found = quality(module)
        if found >= target:
            return worst[:count]
        reached.append((found, -count))
    return worst[: -max(reached)[1]]


@torch.no_grad()
def _log_probabilities(module: nn.Module, batches: Sequence[Tensor]) -> Tensor:
    return torch.cat([module(batch).double().log_softmax(-1) for batch in batches])
