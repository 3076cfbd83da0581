"""A net in fake 8 bits, calibrated, and trained for a few steps."""

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn import functional

from edgestill.quantize.fake import calibrate, fake_quantized

LAYERS_OF_NET = ["stem", "conv", "linear"]


def made(net: nn.Module, images: Tensor, **options: object) -> GraphModule:
    module = fake_quantized(net, images[:1], **options)
    calibrate(module, images[:300].split(50))
    return module


def trained(net: nn.Module, images: Tensor, seed: int) -> tuple[GraphModule, list[float]]:
    """A few steps after a float net on other answers than its own, so that there is something to learn."""
    torch.manual_seed(seed)
    module = made(net, images).train()
    targets = net(images).detach().roll(1, dims=1)
    optimizer = torch.optim.SGD(module.parameters(), 0.05, momentum=0.9)
    losses = []
    for _ in range(12):
        rows = torch.randint(len(images), (64,))
        loss = functional.cross_entropy(module(images[rows]), targets[rows].softmax(1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return module, losses
