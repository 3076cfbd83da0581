"""From fake to real integers: one graph of 8-bit weights, scales and quantize/dequantize operators, which the exporters
of ONNX, ExecuTorch and LiteRT turn into their own integer operators.

Shapes: C channels.
"""

import copy
import warnings
from operator import attrgetter

import torch
from torch.fx import GraphModule, Node

from edgestill.quantize.fake import (
    ACTIVATION_LEVELS,
    WEIGHT_LEVEL,
    ActivationQuantizer,
    WeightQuantizer,
)
from edgestill.quantize.graph import argument, put, rebuilt


def integer(module: GraphModule, *, signed: bool) -> GraphModule:
    """A copy of a calibrated `fake_quantized` module whose quantizers are operators of `torch.ops.quantized_decomposed`
    and whose quantized weights are int8 buffers. It answers as the fake-quantized module does, to rounding.

    `signed`: activations as int8, as ExecuTorch's XNNPACK and LiteRT take them; else as uint8, of which ONNX Runtime
    fuses more on x86. Both name the same values.
    """
    with warnings.catch_warnings():  # that it will move to another package
        warnings.simplefilter("ignore")
        import torch.ao.quantization.fx._decomposed  # noqa: F401  registers the operators

    module = copy.deepcopy(module).to("cpu").eval()
    graph = module.graph
    for node in list(graph.nodes):
        part = module.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(part, WeightQuantizer):
            _weight(module, node, part)
        elif isinstance(part, ActivationQuantizer):
            _activation(module, node, part, signed)
        elif part is not None:  # a place
            node.replace_all_uses_with(argument(node))
            graph.erase_node(node)
    return rebuilt(module, graph)


@torch.no_grad()
def _weight(module: GraphModule, node: Node, part: WeightQuantizer) -> None:
    """int8 [C, ...] with one scale a channel. Scales are buffers of their own: XNNPACK wants no cast between."""
    graph, path = module.graph, str(argument(node).target)
    weight = attrgetter(path)(module)
    scale = part.scale.detach()
    levels = (part(weight) / scale.reshape(-1, *[1] * (weight.dim() - 1))).round()
    put(module, f"{path}_levels", levels.to(torch.int8).contiguous())
    put(module, f"{path}_scale", scale.clone())
    put(module, f"{path}_zero_point", torch.zeros(len(scale), dtype=torch.int64))
    with graph.inserting_before(node):
        values = [graph.get_attr(f"{path}_{name}") for name in ("levels", "scale", "zero_point")]
        real = graph.call_function(
            torch.ops.quantized_decomposed.dequantize_per_channel.default,
            (*values, 0, -WEIGHT_LEVEL, WEIGHT_LEVEL, torch.int8),
        )
    node.replace_all_uses_with(real)
    graph.erase_node(node)


def _activation(module: GraphModule, node: Node, part: ActivationQuantizer, signed: bool) -> None:
    """One quantize, and for each reader a dequantize of its own, without which a runtime does not fuse it."""
    graph, operators = module.graph, torch.ops.quantized_decomposed
    zero, lowest, dtype = int(part.zero_point), 0, torch.uint8
    if signed:
        zero, lowest, dtype = zero - 128, -128, torch.int8
    grid = (float(part.scale.detach()), zero, lowest, lowest + ACTIVATION_LEVELS, dtype)
    with graph.inserting_before(node):
        levels = graph.call_function(operators.quantize_per_tensor.default, (node.args[0], *grid))
    for user in list(node.users):
        with graph.inserting_before(user):
            real = graph.call_function(operators.dequantize_per_tensor.default, (levels, *grid))
        user.replace_input_with(node, real)
    graph.erase_node(node)
