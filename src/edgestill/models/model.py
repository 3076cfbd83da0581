"""A plain module and what it expects of its input. Shapes: B batch, C channels, H height, W width."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgestill.models.embedding import TAP, embedding_of
from edgestill.models.text_input import TextInput


@dataclass(frozen=True)
class ImageInput:
    """What a vision model expects: pixels in 0…1, normalised by channel, `size` pixels a side."""

    channels: int
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


Expected = ImageInput | TextInput


@dataclass
class Model:
    """A plain module with its spec and what it expects of its input."""

    module: nn.Module
    spec: str
    options: dict[str, Any]
    input: Expected
    source: str | None = None
    """The text of the file in `spec`, where no such file is there: of a student that was built from another."""
    fresh: tuple[str, ...] = ()
    """Names of the parameters that its file does not hold: those of a classifier that was made for the data."""
    origin: Mapping[str, str] | None = None
    """Of a student that was built from its teacher: by the path of a part its path in the teacher, where it is another.
    """

    @property
    def parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.module.parameters())


def to_device(module: nn.Module, device: torch.device) -> nn.Module:
    """The module itself on the device, channels-last in memory: a third faster for convolutions on the CPU."""
    return module.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def forward(module: nn.Module, inputs: Tensor | Mapping[str, Tensor]) -> Tensor:
    """Logits [B, C], or [B, T, V] of tokens, of a plain module or of one that returns an object with `.logits`; of an
    embedder, vectors [B, D].

    `inputs`: images [B, C, H, W], token ids [B, T] that are all valid, or a text model's inputs by name.
    """
    options = {"use_cache": False} if _caches(type(module).forward) else {}
    output = module(inputs, **options) if isinstance(inputs, Tensor) else module(**inputs, **options)
    return output if isinstance(output, Tensor) else output.logits


@cache
def _caches(called: Callable[..., Any]) -> bool:
    """Whether a model keeps keys and values for the next token unless it is told not to: here none is asked for."""
    return "use_cache" in inspect.signature(called).parameters


def as_inputs(rows: NDArray[Any], expected: Expected, device: torch.device) -> Tensor | dict[str, Tensor]:
    """What an artifact takes, images [B, C, H, W] or token ids [B, inputs, T], as a module takes it."""
    tensor = torch.from_numpy(rows).to(device)
    if isinstance(expected, ImageInput):
        return tensor
    return dict(zip(expected.names, tensor.unbind(1), strict=True))


def select_classes(module: nn.Module, classes: list[int]) -> None:
    """From now on the module puts out these of its classes alone, in this order: softmax over them is its own,
    renormalised. Its modules keep their names, so that taps do."""

    def select(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        if isinstance(output, Tensor):
            return output[:, classes]
        output.logits = output.logits[:, classes]
        return output

    module.register_forward_hook(select)


class _LogitsOf(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, inputs: Tensor) -> Tensor:
        return forward(self.module, inputs)


class _LogitsOfText(nn.Module):
    def __init__(self, module: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.module, self.names = module, names
        self.output = TAP if embedding_of(module) is not None else "logits"

    def forward(self, *inputs: Tensor) -> Tensor:
        return forward(self.module, dict(zip(self.names, inputs, strict=True)))


def plain_logits(model: Model) -> nn.Module:
    """The module itself, or, of a Hugging Face model, one around it that takes the inputs one by one and puts out
    logits, or one vector a text: what is exported."""
    if isinstance(model.input, TextInput):
        return _LogitsOfText(model.module, model.input.names)
    return _LogitsOf(model.module) if hasattr(model.module, "save_pretrained") else model.module


def flops(model: Model) -> int:
    """Floating-point operations of one sample's forward pass, a multiplication and an addition counted apart; of a
    text, of the longest that the model is given here."""
    from torch.utils.flop_counter import FlopCounterMode

    device = next(model.module.parameters()).device
    sample = example(model.input, 1, getattr(model.input, "length", 0)).to(device)
    with _countable(model.module), FlopCounterMode(display=False) as counter, torch.no_grad():
        forward(model.module.eval(), sample)
    return int(counter.get_total_flops())


@contextmanager
def _countable(module: nn.Module) -> Iterator[None]:
    """With an attention whose products are counted: the counter misses the fused one on the CPU."""
    config: Any = getattr(module, "config", None)
    choose = getattr(module, "set_attn_implementation", None)
    if choose is None or getattr(config, "_attn_implementation", "eager") == "eager":
        yield
        return
    usual = config._attn_implementation
    choose("eager")
    try:
        yield
    finally:
        choose(usual)


def example(expected: Expected, count: int, length: int = 8) -> Tensor:
    """Zeros of the shape that a vision model expects, [count, C, H, W]; or `length` token ids of as many texts, none
    of them padding."""
    if isinstance(expected, ImageInput):
        return torch.zeros(count, expected.channels, expected.size, expected.size)
    length = min(length, expected.length)
    ids = [number for number in range(min(len(expected.tokenizer), count * length + 1)) if number != expected.padding]
    return torch.tensor(ids)[torch.arange(count * length) % len(ids)].reshape(count, length)
