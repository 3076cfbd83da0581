"""A teacher, a family of students and data for searches: two classes of 8×8 pixels that a few channels tell apart."""

from collections import OrderedDict

import numpy as np
import torch
from torch import nn


def splits() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Vertical and horizontal stripes under noise."""
    drawn = np.random.default_rng(0)
    labels = np.arange(400) % 2
    stripes = np.where(np.arange(8) % 2, 60, 0)
    pixels = np.where(labels[:, None, None] == 1, stripes[:, None], stripes[None, :])[..., None]
    pixels = np.clip(pixels + drawn.normal(100, 40, (400, 8, 8, 1)), 0, 255).astype(np.uint8)
    return {"train": (pixels[:300], labels[:300]), "test": (pixels[300:], labels[300:])}


def net(width: int = 4, num_classes: int = 2, in_channels: int = 1) -> nn.Sequential:
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    parts["first"] = nn.Sequential(nn.Conv2d(in_channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
    parts["second"] = nn.Sequential(nn.Conv2d(width, width, 3, 2, 1), nn.BatchNorm2d(width), nn.ReLU())
    parts["pool"] = nn.AdaptiveAvgPool2d(1)
    parts["flatten"] = nn.Flatten()
    parts["linear"] = nn.Linear(width, num_classes)
    return nn.Sequential(parts)


def untraceable(num_classes: int = 2, in_channels: int = 1) -> nn.Module:
    """A teacher that leaves torch on the way, where no graph can follow it."""

    class Untraceable(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net(4, num_classes, in_channels)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            maps = self.net[1](self.net[0](images))
            return self.net[2:](torch.from_numpy(maps.detach().numpy() * 1.0))

    return Untraceable()


def listed() -> dict[str, dict]:
    here = __file__
    return {f"own-{width}": {"model": f"{here}:net", "options": {"width": width}} for width in (2, 3)}


def none() -> dict[str, dict]:
    return {}


def wrong() -> list[int]:
    return [1]
