"""Fake quantization: a captured student whose weights and activations lie on 8-bit grids, with scales that train.

Shapes: B batch, C channels.
"""

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from operator import attrgetter
from typing import Literal

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from edgestill.errors import UserError, closest
from edgestill.quantize.graph import OUTPUT_OF, argument, aten, capture, insert_behind, layers, put, tapped

ACTIVATION_LEVELS, WEIGHT_LEVEL = 255, 127
SMALLEST_SCALE = 1e-8
FUSED = (aten.relu.default, aten.hardtanh.default)
"""Activations that runtimes compute inside the integer operator in front of them."""
ON_MAPS = (
    aten.add.Tensor,
    aten.cat.default,
    aten.mean.dim,
    aten.avg_pool2d.default,
    aten.adaptive_avg_pool2d.default,
)
"""Operators that run in integers on feature maps; on tokens they stay in float, where outliers cost most."""
SAME_GRID = (
    aten.max_pool2d.default,
    aten.flatten.using_ints,
    aten.view.default,
    aten.reshape.default,
    aten.permute.default,
    aten.transpose.int,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.unsqueeze.default,
    aten.slice.Tensor,
    aten.pad.default,
    aten.contiguous.default,
    aten.dropout.default,
)
"""Operators whose output lies on their input's grid."""

Mode = Literal["off", "observe", "quantize"]


class Quantizer(nn.Module):
    """What activation and weight quantizers share: a trained scale, and whether they quantize, observe, or do nothing.

    The gradient of the scale is that of LSQ (Esser et al. 2020, arXiv 1902.08153), divided by √(number of values ·
    largest level). What is trained is its logarithm, as in TQT (Jain et al. 2020, arXiv 1903.08066): steps are then
    relative to the scale, which plain SGD otherwise throws far off."""

    log_scale: nn.Parameter
    mode: Mode = "off"

    @property
    def scale(self) -> Tensor:
        return self.log_scale.exp()


class ActivationQuantizer(Quantizer):
    """`(clamp(round(x / scale) + zero_point, 0, 255) − zero_point) · scale`, one scale and zero point a tensor.

    Observing, it notes the smallest and largest value; `settle` makes scale and zero point of them."""

    low: Tensor
    high: Tensor
    zero_point: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(1))
        self.register_buffer("zero_point", torch.zeros(1))
        self.register_buffer("low", torch.zeros(()), persistent=False)
        self.register_buffer("high", torch.zeros(()), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.mode == "observe":
            self.low, self.high = (
                torch.minimum(self.low, x.detach().amin()),
                torch.maximum(self.high, x.detach().amax()),
            )
        if self.mode != "quantize":
            return x
        factor = (ACTIVATION_LEVELS * x.numel() / x.shape[0]) ** -0.5
        quantized: Tensor = torch._fake_quantize_learnable_per_tensor_affine(
            x, self.scale, self.zero_point, 0, ACTIVATION_LEVELS, factor
        )
        return quantized

    def forget(self) -> None:
        """Forgets the range that was observed."""
        self.low, self.high = torch.zeros_like(self.low), torch.zeros_like(self.high)

    @torch.no_grad()
    def settle(self) -> None:
        """Scale and zero point of the range that was observed; zero lies on the grid."""
        scale = ((self.high - self.low) / ACTIVATION_LEVELS).clamp(min=SMALLEST_SCALE)
        self.log_scale.copy_(scale.log().reshape(1))
        self.zero_point.copy_((-self.low / self.scale).round().clamp(0, ACTIVATION_LEVELS))


class WeightQuantizer(Quantizer):
    """`clamp(round(w / scale), −127, 127) · scale`, one scale an output channel."""

    zero_point: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        largest = weight.detach().abs().flatten(1).amax(1)
        self.log_scale = nn.Parameter((largest / WEIGHT_LEVEL).clamp(min=SMALLEST_SCALE).log())
        self.register_buffer("zero_point", torch.zeros(len(weight)))

    def forward(self, weight: Tensor) -> Tensor:
        if self.mode != "quantize":
            return weight
        factor = (WEIGHT_LEVEL * weight.numel() / len(weight)) ** -0.5
        quantized: Tensor = torch._fake_quantize_learnable_per_channel_affine(
            weight, self.scale, self.zero_point, 0, -WEIGHT_LEVEL, WEIGHT_LEVEL, factor
        )
        return quantized


LAYER_PARTS = "edgestill_layer_parts"
"""In a fake-quantized module's `meta`: the paths of the quantizers of each layer."""
MAP_PARTS = "edgestill_map_parts"
"""In a fake-quantized module's `meta`: the paths of the quantizers that additions, means and poolings of maps need."""


def fake_quantized(
    module: nn.Module, example: Tensor, *, keep_float: Collection[str] = (), taps: Iterable[str] = (), prefix: str = ""
) -> GraphModule:
    """A copy of `module` as a graph, its batch norms folded, with a quantizer at each weight and activation that a
    runtime computes in 8 bits; they do nothing until `calibrate`.

    Args:
        example: one input batch.
        keep_float: layers that stay in float, by path.
        taps: paths whose outputs can be recorded.
        prefix: taken off all paths.

    Convolutions and linear layers have quantized weights, inputs and outputs; additions, means and poolings of feature
    maps have quantized inputs and outputs; all else is in float. A ReLU behind one of them is quantized with it.

    Raises UserError for a module without such a graph, or a layer that it does not have.
    """
    captured = capture(module, example, prefix)
    graph = captured.graph
    found = layers(graph)
    for path in keep_float:
        if path not in found:
            raise UserError(f"quantize.keep_float: the student has no layer {path!r}{closest(path, found)}")
    integer = [(path, node) for path, nodes in found.items() if path not in keep_float for node in nodes]
    if not integer:
        raise UserError("int8 needs a convolution or linear layer; the student has none that is not in keep_float")
    parts: dict[str, list[str]] = {path: [] for path in found}
    values: dict[Node, list[str]] = {}
    on_maps: set[Node] = set()
    for path, node in integer:
        for value in (_source(argument(node)), _fused(node)):
            values.setdefault(value, []).append(path)
    for node in graph.nodes:
        if node.target in ON_MAPS and (inputs := _maps(node)):
            on_maps.update((*map(_source, inputs), _fused(node)))
    for path, weight in dict.fromkeys((path, argument(node, 1)) for path, node in integer):
        parts[path].append(_quantize_weight(captured, weight))
    names: dict[Node, str] = {}
    for value in [node for node in graph.nodes if node in values or node in on_maps]:
        names[value] = f"activation_quantizers.{len(names)}"
        _quantize_value(captured, value, names[value])
        for path in dict.fromkeys(values.get(value, ())):
            parts[path].append(names[value])
    made = tapped(captured, taps)
    made.meta[LAYER_PARTS] = {path: tuple(of_layer) for path, of_layer in parts.items() if of_layer}
    made.meta[MAP_PARTS] = tuple(name for value, name in names.items() if value in on_maps)
    return made


def _maps(node: Node) -> list[Node]:
    """The inputs of an operator if all of them are computed feature maps [B, C, H, W]."""
    first = argument(node)
    inputs = list(first) if isinstance(first, list | tuple) else [first]
    if node.target == aten.add.Tensor:
        inputs.append(argument(node, 1))
    computed = all(isinstance(one, Node) and one.op != "get_attr" for one in inputs)
    maps = computed and all(one.meta["val"].dim() == 4 and one.meta["val"].is_floating_point() for one in inputs)
    return inputs if maps else []


def _source(value: Node) -> Node:
    """The value whose grid this one lies on."""
    while _keeps_grid(value):
        value = argument(value)
    return value


def _keeps_grid(node: Node) -> bool:
    """Whether an operator puts out values of its input's grid alone; a pad with another value than zero does not."""
    return node.target in SAME_GRID and not (node.target == aten.pad.default and argument(node, 3))


def _fused(node: Node) -> Node:
    """What leaves the integer operator that begins at `node`: the activation behind it, if that alone reads it."""
    users = [*node.users]
    return users[0] if len(users) == 1 and users[0].target in FUSED else node


def _quantize_weight(captured: GraphModule, weight: Node) -> str:
    """Puts the quantizer behind a weight, and returns its path."""
    name = f"{weight.target}_quantizer"
    put(captured, name, WeightQuantizer(attrgetter(str(weight.target))(captured)))
    insert_behind(weight, name)
    return name


def _quantize_value(captured: GraphModule, value: Node, name: str) -> None:
    """Puts the quantizer behind a value, and behind what other operators make of it on the same grid."""
    put(captured, name, ActivationQuantizer())
    open_values = [value]
    while open_values:
        node = open_values.pop()
        paths = node.meta.pop(OUTPUT_OF, ())
        quantized = insert_behind(node, name)
        quantized.meta[OUTPUT_OF] = paths
        open_values += [user for user in quantized.users if _keeps_grid(user)]


def quantizers(module: nn.Module) -> Iterator[Quantizer]:
    return (part for part in module.modules() if isinstance(part, Quantizer))


@contextmanager
def mode(module: nn.Module, mode: Mode) -> Iterator[None]:
    """All quantizers of a module in a mode inside the block, and as they were behind it."""
    before = {part: part.mode for part in quantizers(module)}
    try:
        for part in before:
            part.mode = mode
        yield
    finally:
        for part, was in before.items():
            part.mode = was


@torch.no_grad()
def calibrate(module: nn.Module, batches: Iterable[Tensor]) -> None:
    """Sets every activation's scale from the smallest and largest value over `batches`, float32 [B, ...] preprocessed
    as in evaluation, and lets all quantizers quantize.

    Raises UserError for fewer than two samples, or for values that are not finite."""
    samples = 0
    activations = [part for part in quantizers(module) if isinstance(part, ActivationQuantizer)]
    for part in activations:
        part.forget()
    with mode(module, "observe"):
        for batch in batches:
            if not len(batch):
                continue
            if not torch.isfinite(batch).all():
                raise UserError(
                    "int8 calibration samples must be finite numbers, some are NaN or infinite: check the data"
                )
            module(batch)
            samples += len(batch)
    if samples < 2:
        raise UserError(
            f"int8 needs ranges over many samples, {samples} came: calibrate on 200 to 500 training samples"
        )
    for part in activations:
        part.settle()
    for quantizer in quantizers(module):
        quantizer.mode = "quantize"
