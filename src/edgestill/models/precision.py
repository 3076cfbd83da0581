"""A teacher in fewer bits: in bfloat16, or with weights of 8 bits. O outputs, I inputs, B batch."""

import copy
from collections import Counter
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgestill.errors import UserError

Precision = Literal["float32", "bf16", "int8"]


class Int8Linear(nn.Module):
    """A linear layer whose weight is int8 [O, I], with a float32 scale for each output, made float as it is used:
    `x·(weight·scale)ᵀ + bias`, `scale = max |w| / 127`. A weight is off by half of its scale at most.

    Inputs [B, …, I] of any float type, outputs [B, …, O] of the same. The weight is a parameter, as in the layer that
    it stands for: it is counted, and found, like that one's.

    >>> Int8Linear(nn.Linear(3, 2)).weight.dtype
    torch.int8
    """

    scale: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach().float()
        scale = weight.abs().amax(1).clamp(min=torch.finfo(torch.float32).tiny) / 127
        rounded = (weight / scale[:, None]).round().clamp(-127, 127).to(torch.int8)
        self.in_features, self.out_features, self.bias = linear.in_features, linear.out_features, linear.bias
        self.weight = nn.Parameter(rounded, requires_grad=False)
        self.register_buffer("scale", scale)

    def forward(self, inputs: Tensor) -> Tensor:
        return functional.linear(inputs, (self.weight * self.scale[:, None]).to(inputs.dtype), self.bias)

    def linear(self) -> nn.Linear:
        """The float layer of the same answers."""
        made = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None, device="meta")
        made.load_state_dict(dequantized(self.state_dict()), assign=True)
        return made


def lower(module: nn.Module, precision: Precision, spec: str) -> None:
    """Brings a module that only answers into fewer bits, in place.

    bf16: what its file would hold; what it computes for itself, as the frequencies of rotary positions, stays. int8:
    its linear layers, and all else in float32, with a layer that shares its weight, as the last one of a language model
    often does with the embeddings. Raises UserError where no linear layer is left for int8.
    """
    if precision == "bf16":
        saved = module.state_dict().keys()
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            if name in saved and tensor.is_floating_point():
                tensor.data = tensor.data.bfloat16()
    if precision != "int8":
        return
    shared = Counter(id(parameter) for _, parameter in module.named_parameters(remove_duplicate=False))
    layers = {path: layer for path, layer in module.named_modules() if type(layer) is nn.Linear}
    own = [path for path, layer in layers.items() if path and shared[id(layer.weight)] == 1]
    if not own:
        raise UserError(
            f"teacher.precision: int8 is for the weights of linear layers, of which {spec} ({type(module).__name__}) "
            "has none of its own; take bf16"
        )
    for path in own:
        module.set_submodule(path, Int8Linear(layers.pop(path)))  # popped: one float layer less is held
    module.float()


def in_float32(module: nn.Module) -> nn.Module:
    """The module itself where all of it is in float32, else a copy of it that is."""
    if all(parameter.dtype == torch.float32 for parameter in module.parameters()):
        return module
    made = copy.deepcopy(module)
    for path, layer in [*made.named_modules()]:
        if isinstance(layer, Int8Linear):
            made.set_submodule(path, layer.linear())
    return made.float()


def dequantized(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict with float weights in place of those of Int8Linear; the others as they are."""
    scales = {key: f"{key.removesuffix('weight')}scale" for key, value in state.items() if value.dtype == torch.int8}
    others = {key: value for key, value in state.items() if key not in scales.values()}
    return {key: value * state[scales[key]][:, None] if key in scales else value for key, value in others.items()}
