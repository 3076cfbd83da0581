"""Training-only modules that bring a student tap to a teacher tap's shape. B batch, C channels, T tokens, D width."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgestill.errors import UserError


class ConvAligner(nn.Module):
    """[B, C, H, W] -> [B, C', H', W']: 1×1 convolution with batch norm; bilinear interpolation where H, W differ."""

    def __init__(self, channels: int, teacher_channels: int, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size
        self.project = nn.Sequential(
            nn.Conv2d(channels, teacher_channels, 1, bias=False), nn.BatchNorm2d(teacher_channels)
        )

    def forward(self, features: Tensor) -> Tensor:
        projected: Tensor = self.project(features)
        if projected.shape[2:] != self.size:
            projected = functional.interpolate(projected, self.size, mode="bilinear", align_corners=False)
        return projected


def aligner_for(student: torch.Size, teacher: torch.Size) -> nn.Module | None:
    """The aligner between two taps' shapes, None when they agree: ConvAligner for maps, a linear layer for [B, D] and
    [B, T, D]. Raises UserError for shapes that no aligner joins.

    >>> aligner_for(torch.Size([1, 64]), torch.Size([1, 128]))
    Linear(in_features=64, out_features=128, bias=True)
    """
    if student[1:] == teacher[1:]:
        return None
    if len(student) == len(teacher) == 4:
        return ConvAligner(student[1], teacher[1], (teacher[2], teacher[3]))
    if len(student) == len(teacher) and len(student) in (2, 3) and student[1:-1] == teacher[1:-1]:
        return nn.Linear(student[-1], teacher[-1])
    raise UserError(
        f"no aligner brings a student tap of shape {[*student[1:]]} to a teacher tap of shape {[*teacher[1:]]}"
    )
