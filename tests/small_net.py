"""A small convolution net for handwritten digits, and the same net in 8 bits, written by hand."""

import warnings

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import torch.ao.quantization.fx._decomposed


def digits() -> np.ndarray:
    """float32 [1797, 1, 8, 8]."""
    return (load_digits().images[:, None] / 16).astype(np.float32)


class Net(nn.Module):
    """[B, 1, 8, 8] -> [B, 10], with batch norms, a skip connection, an in-place ReLU and a mean of feature maps."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.stem, self.norm1 = nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv, self.norm2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.act, self.linear = nn.ReLU(inplace=True), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.norm1(self.stem(x)))
        x = self.act(x + self.norm2(self.conv(x)))
        return self.linear(x.mean((2, 3)))


def fitted(seed: int = 0) -> Net:
    torch.manual_seed(seed)
    images, labels = torch.from_numpy(digits()), torch.from_numpy(load_digits().target)
    model = Net().to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(60):
        rows = torch.randint(len(images), (128,))
        loss = functional.cross_entropy(model(images[rows]), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


@torch.no_grad()
def answers(module: nn.Module, images: np.ndarray) -> np.ndarray:
    return module(torch.from_numpy(images)).numpy()


class IntegerNet(nn.Module):
    """A fitted Net with int8 weights, a scale a channel, and signed int8 activations whose grids span `images`."""

    def __init__(self, net: Net, images: np.ndarray) -> None:
        super().__init__()
        self.grids: dict[str, tuple[float, int]] = {}
        self.observing = True
        stem = nn.utils.fuse_conv_bn_eval(net.stem, net.norm1)
        conv = nn.utils.fuse_conv_bn_eval(net.conv, net.norm2)
        for name, layer in (("stem", stem), ("conv", conv), ("linear", net.linear)):
            weight = layer.weight.detach().contiguous()
            scale = weight.abs().flatten(1).amax(1) / 127
            levels = (weight / scale.reshape(-1, *[1] * (weight.dim() - 1))).round().to(torch.int8)
            self.register_buffer(f"{name}_levels", levels)
            self.register_buffer(f"{name}_scale", scale)
            self.register_buffer(f"{name}_zero_point", torch.zeros(len(scale), dtype=torch.int64))
            self.register_buffer(f"{name}_bias", layer.bias.detach().clone())
        with torch.no_grad():
            self(torch.from_numpy(images))
        self.observing = False

    def weight(self, name: str) -> Tensor:
        levels, scale, zero_point = (getattr(self, f"{name}_{part}") for part in ("levels", "scale", "zero_point"))
        return torch.ops.quantized_decomposed.dequantize_per_channel(
            levels, scale, zero_point, 0, -127, 127, torch.int8
        )

    def on_grid(self, name: str, x: Tensor, readers: int = 1) -> list[Tensor]:
        """The value on its grid, once for each of its readers."""
        if self.observing:
            low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
            scale = (high - low) / 255
            self.grids[name] = scale, round(-low / scale) - 128
        grid = (*self.grids[name], -128, 127, torch.int8)
        levels = torch.ops.quantized_decomposed.quantize_per_tensor(x, *grid)
        return [torch.ops.quantized_decomposed.dequantize_per_tensor(levels, *grid) for _ in range(readers)]

    def forward(self, x: Tensor) -> Tensor:
        conv2d = functional.conv2d
        (x,) = self.on_grid("input", x)
        x = conv2d(x, self.weight("stem"), self.stem_bias, padding=1)
        x, skipped = self.on_grid("stem", x.relu(), readers=2)
        (x,) = self.on_grid("conv", conv2d(x, self.weight("conv"), self.conv_bias, padding=1))
        (x,) = self.on_grid("sum", (skipped + x).relu())
        (x,) = self.on_grid("mean", x.mean((2, 3)))
        (x,) = self.on_grid("logits", functional.linear(x, self.weight("linear"), self.linear_bias))
        return x


class Median(nn.Module):
    """A net with an operator that runtimes for the edge lack."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).median(3, keepdim=True)[0].mean((2, 3))


class Branches(nn.Module):
    """A net whose operators depend on the values of tensors."""

    def forward(self, x: Tensor) -> Tensor:
        return x * (2 if x.sum() > 0 else 3)


BROKEN = ("half", "almost", "text", "nothing")


def broken(whole: bytes, how: str) -> bytes:
    return {"half": whole[: len(whole) // 2], "almost": whole[:-40], "text": b"not a model", "nothing": b""}[how]
