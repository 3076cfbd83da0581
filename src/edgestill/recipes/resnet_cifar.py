"""Residual networks for 32×32 images: ResNet-20 and ResNet-56 of He et al. 2015 (arXiv 1512.03385, section 4.2), and
the ResNet-8 of MLPerf Tiny. Shapes: B batch, C channels, H height, W width. Depends on torch alone."""

import torch
from torch import Tensor, nn
from torch.nn import functional


class Block(nn.Module):
    """Two 3×3 convolutions and a shortcut: a 1×1 convolution, or (option A) every other pixel and zero channels."""

    def __init__(self, channels: int, out_channels: int, stride: int, convolve_shortcut: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out_channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.stride = stride
        self.shortcut: nn.Module | None = None
        if convolve_shortcut and channels != out_channels:
            self.shortcut = nn.Conv2d(channels, out_channels, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = functional.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.shortcut is not None:
            x = self.shortcut(x)
        elif x.shape != out.shape:  # as many zeros as there are channels here, so that channels can be cut
            added = out.shape[1] - x.shape[1]
            x = x[:, :, :: self.stride, :: self.stride]
            x = functional.pad(x, (0, 0, 0, 0, added // 2, added - added // 2))
        return functional.relu(out + x)


class ResNet(nn.Module):
    """Three stages of `blocks` blocks, 16, 32 and 64 channels wide: [B, in_channels, H, W] -> [B, num_classes]."""

    def __init__(self, blocks: int, num_classes: int, in_channels: int, convolve_shortcut: bool) -> None:
        super().__init__()

        def stage(channels: int, width: int, stride: int) -> nn.Sequential:
            first = Block(channels, width, stride, convolve_shortcut)
            return nn.Sequential(first, *(Block(width, width, 1, convolve_shortcut) for _ in range(blocks - 1)))

        self.conv1 = nn.Conv2d(in_channels, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1, self.layer2, self.layer3 = stage(16, 16, 1), stage(16, 32, 2), stage(32, 64, 2)
        self.linear = nn.Linear(64, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        out = functional.relu(self.bn1(self.conv1(x)))
        out = self.layer3(self.layer2(self.layer1(out)))
        logits: Tensor = self.linear(torch.mean(out, dim=(2, 3)))
        return logits


def resnet8(num_classes: int = 10, in_channels: int = 3) -> ResNet:
    """The ResNet-8 of MLPerf Tiny's image classification: 77,946 parameters."""
    return ResNet(1, num_classes, in_channels, convolve_shortcut=True)


def resnet20(num_classes: int = 10, in_channels: int = 3) -> ResNet:
    """ResNet-20 with parameter-free shortcuts: 269,722 parameters."""
    return ResNet(3, num_classes, in_channels, convolve_shortcut=False)


def resnet56(num_classes: int = 10, in_channels: int = 3) -> ResNet:
    """ResNet-56 with parameter-free shortcuts: 853,018 parameters."""
    return ResNet(9, num_classes, in_channels, convolve_shortcut=False)
