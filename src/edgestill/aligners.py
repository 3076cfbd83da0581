"""Training-only modules that bring a student tap to a teacher tap's shape.

B batch, C channels, H height, W width, T tokens, D width. Features come in four layouts: vectors [B, D], maps
[B, C, H, W], maps with the channels last [B, H, W, C], and tokens [B, T, D], of which the last s² may stand on a grid.
"""

from math import isqrt
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgestill.errors import UserError

AlignerKind = Literal["auto", "conv", "linear", "interpolate", "none"]
MOST_PREFIX_TOKENS = 5  # a class token and four registers


class MapAligner(nn.Module):
    """Maps or tokens -> the teacher's layout: a 1×1 convolution where the widths differ, then bilinear interpolation
    where H, W differ. Tokens before the grid, as a class token, are made of the mean of the student's map.

    Args:
        student, teacher: shapes of the taps.
        kind: `conv` has batch norm, `linear` a bias instead, `interpolate` no weights.
    """

    def __init__(
        self, student: torch.Size, teacher: torch.Size, kind: Literal["conv", "linear", "interpolate"]
    ) -> None:
        super().__init__()
        self.from_layout, (channels, *_) = _layout(student)
        self.to_layout, (teacher_channels, *self.size) = _layout(teacher)
        self.prefix = teacher[1] - self.size[0] * self.size[1] if self.to_layout == "tokens" else 0
        self.project: nn.Module = nn.Identity()
        if kind == "conv":
            convolution = nn.Conv2d(channels, teacher_channels, 1, bias=False)
            self.project = nn.Sequential(convolution, nn.BatchNorm2d(teacher_channels))
        elif kind == "linear":
            self.project = nn.Conv2d(channels, teacher_channels, 1)
        elif channels != teacher_channels:
            raise UserError(
                f"aligner: interpolate leaves the width; {channels} and {teacher_channels} channels came: use conv"
            )

    def forward(self, features: Tensor) -> Tensor:
        projected: Tensor = self.project(self._to_map(features))
        resized = projected
        if [*projected.shape[2:]] != self.size:
            resized = functional.interpolate(projected, self.size, mode="bilinear", align_corners=False)
        if self.to_layout == "map":
            return resized
        if self.to_layout == "map, channels last":
            return resized.permute(0, 2, 3, 1)
        tokens = resized.flatten(2).transpose(1, 2)
        mean = projected.mean((2, 3))[:, None].expand(-1, self.prefix, -1)
        return torch.cat([mean, tokens], dim=1)

    def _to_map(self, features: Tensor) -> Tensor:
        if self.from_layout == "map":
            return features
        if self.from_layout == "map, channels last":
            return features.permute(0, 3, 1, 2)
        side = isqrt(features.shape[1])
        grid = features[:, -side * side :].transpose(1, 2)
        return grid.reshape(*grid.shape[:2], side, side)


def _layout(shape: torch.Size) -> tuple[str, tuple[int, int, int]]:
    """The layout of a tap, with its channels, height and width."""
    if len(shape) == 4 and shape[1] == shape[2] != shape[3]:
        return "map, channels last", (shape[3], shape[1], shape[2])
    if len(shape) == 4:
        return "map", (shape[1], shape[2], shape[3])
    side = isqrt(shape[1]) if len(shape) == 3 else 0
    if side > 1 and shape[1] - side * side <= MOST_PREFIX_TOKENS:
        return "tokens", (shape[2], side, side)
    raise UserError(f"{[*shape[1:]]} is neither a map nor tokens on a square grid")


def aligner_for(student: torch.Size, teacher: torch.Size, kind: AlignerKind = "auto") -> nn.Module:
    """The aligner between two taps' shapes: Identity where they agree, a linear layer for [B, D] and for tokens that
    differ in width alone, else a MapAligner.

    Args:
        kind: `none` demands equal shapes; `conv` and `linear` project even where shapes agree; `interpolate` only
            resizes. `auto` is conv for maps and linear for the others.

    Raises UserError for shapes that this does not join.

    >>> aligner_for(torch.Size([1, 64]), torch.Size([1, 128]))
    Linear(in_features=64, out_features=128, bias=True)
    """
    if student[1:] == teacher[1:] and kind in ("auto", "none", "interpolate"):
        return nn.Identity()
    if kind == "none":
        raise UserError(
            f"without an aligner the shapes must agree; {[*student[1:]]} and {[*teacher[1:]]} came: "
            "use `map: width` or `map: depth`, with an aligner"
        )
    flat = len(student) == len(teacher) and len(student) in (2, 3) and student[1:-1] == teacher[1:-1]
    if flat and kind in ("auto", "linear"):
        return nn.Linear(student[-1], teacher[-1])
    try:
        return MapAligner(student, teacher, "conv" if kind == "auto" else kind)
    except UserError as error:
        raise UserError(
            f"no aligner brings a student tap of shape {[*student[1:]]} to a teacher tap of shape {[*teacher[1:]]}: "
            f"{error}"
        ) from None
