"""scikit-learn's bundled handwritten digits, and two convolutional networks for their 8×8 pixels."""

from collections import OrderedDict

import numpy as np
from torch import nn


def splits() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """1,797 images: 1,297 to train with and 500 to test with, in a fixed random order."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)
    order = np.random.default_rng(0).permutation(len(pixels))
    train, test = order[500:], order[:500]
    return {"train": (pixels[train], digits.target[train]), "test": (pixels[test], digits.target[test])}


def _network(widths: tuple[int, int, int], num_classes: int, in_channels: int) -> nn.Sequential:
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    channels = in_channels
    for i, width in enumerate(widths, start=1):
        parts[f"stage{i}"] = nn.Sequential(
            nn.Conv2d(channels, width, 3, stride=1 if i == 1 else 2, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
        )
        channels = width
    parts["pool"] = nn.AdaptiveAvgPool2d(1)
    parts["flatten"] = nn.Flatten()
    parts["linear"] = nn.Linear(channels, num_classes)
    return nn.Sequential(parts)


def teacher(num_classes: int = 10, in_channels: int = 1) -> nn.Sequential:
    """210,000 parameters."""
    return _network((48, 96, 192), num_classes, in_channels)


def student(num_classes: int = 10, in_channels: int = 1) -> nn.Sequential:
    """6,300 parameters."""
    return _network((8, 16, 32), num_classes, in_channels)
