"""Training-only modules that bring a student tap to a teacher tap's shape, and what methods keep of their own.

B batch, C channels, H height, W width, T tokens, D width, N training samples, K negatives. Features come as vectors
[B, D], maps [B, C, H, W] (the objective puts the channels in front), and tokens [B, T, D], of which the last s² may
stand on a grid.
"""

from collections.abc import Sequence
from math import isqrt
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgestill.errors import UserError
from edgestill.losses.reduce import pooled

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
        (channels, *_), (teacher_channels, *self.size) = _sides(student), _sides(teacher)
        self.prefix = (
            teacher[1] - self.size[0] * self.size[1] if len(teacher) == 3 else None
        )  # None: the teacher's is a map
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
        projected: Tensor = self.project(_as_map(features))
        resized = projected
        if [*projected.shape[2:]] != self.size:
            resized = functional.interpolate(projected, self.size, mode="bilinear", align_corners=False)
        if self.prefix is None:
            return resized
        tokens = resized.flatten(2).transpose(1, 2)
        mean = projected.mean((2, 3))[:, None].expand(-1, self.prefix, -1)
        return torch.cat([mean, tokens], dim=1)


def _as_map(features: Tensor) -> Tensor:
    """Maps as they are, the grid of tokens [B, T, D] as a map."""
    if features.dim() == 4:
        return features
    side = isqrt(features.shape[1])
    grid = features[:, -side * side :].transpose(1, 2)
    return grid.reshape(*grid.shape[:2], side, side)


def _sides(shape: torch.Size) -> tuple[int, int, int]:
    """Channels, height and width of a map, or of the grid of tokens."""
    if len(shape) == 4:
        return shape[1], shape[2], shape[3]
    side = isqrt(shape[1]) if len(shape) == 3 else 0
    if side > 1 and shape[1] - side * side <= MOST_PREFIX_TOKENS:
        return shape[2], side, side
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
            f"without an aligner, as with `map: direct`, the shapes must agree; {[*student[1:]]} and {[*teacher[1:]]} "
            "came: use `map: width` or `map: depth`"
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


class ReviewFusion(nn.Module):
    """Student maps of several depths -> one map for each teacher map, each fused with all that are deeper.

    From the deepest to the shallowest: a 1×1 convolution to `width` channels; the map fused so far, at its size;
    the sum of the two, each weighed by its own attention map; from that a 3×3 convolution to the teacher's channels.

    Args:
        students, teachers: shapes [B, C, H, W] of the taps, the shallowest first, as many on both sides.
        width: channels in between: those of the deepest student map, at most 512, when None.

    Source: attention based fusion (ABF) of Chen et al. 2021, arXiv 2104.09044, section 3.2, as in the authors' code
    (dvlab-research/ReviewKD, CIFAR-100/model/reviewkd.py). Its loss is `losses.review`.

    >>> fusion = ReviewFusion([(1, 4, 8, 8), (1, 6, 4, 4)], [(1, 5, 8, 8), (1, 7, 2, 2)])
    >>> levels, _ = fusion([torch.zeros(2, 4, 8, 8), torch.zeros(2, 6, 4, 4)], [])
    >>> [tuple(level.shape) for level in levels]
    [(2, 5, 8, 8), (2, 7, 2, 2)]
    """

    def __init__(
        self, students: Sequence[Sequence[int]], teachers: Sequence[Sequence[int]], *, width: int | None = None
    ) -> None:
        super().__init__()
        if not students or len(students) != len(teachers) or any(len(shape) != 4 for shape in [*students, *teachers]):
            raise UserError(
                "review needs feature maps [B, C, H, W], as many of the student as of the teacher; "
                f"{[list(shape[1:]) for shape in students]} and {[list(shape[1:]) for shape in teachers]} came"
            )
        width = min(512, students[-1][1]) if width is None else width
        if width < 1:
            raise UserError(f"review: width must be 1 or more; {width} came")
        self.sizes = [(shape[2], shape[3]) for shape in teachers]
        self.narrow = nn.ModuleList(_normalised(nn.Conv2d(shape[1], width, 1, bias=False)) for shape in students)
        self.attend = nn.ModuleList(nn.Conv2d(2 * width, 2, 1) for _ in students[:-1])  # the deepest has none to fuse
        self.widen = nn.ModuleList(
            _normalised(nn.Conv2d(width, shape[1], 3, padding=1, bias=False)) for shape in teachers
        )

    def forward(
        self, students: Sequence[Tensor], teachers: Sequence[Tensor], indices: Tensor | None = None
    ) -> tuple[list[Tensor], Sequence[Tensor]]:
        levels: list[Tensor] = []
        fused: Tensor | None = None
        for level in reversed(range(len(students))):
            own: Tensor = self.narrow[level](students[level])
            if fused is not None:
                deeper = functional.interpolate(fused, own.shape[2:], mode="nearest")
                weights = torch.sigmoid(self.attend[level](torch.cat([own, deeper], 1)))  # [B, 2, H, W]
                own = weights[:, :1] * own + weights[:, 1:] * deeper
            fused = functional.interpolate(own, self.sizes[level], mode="nearest")
            levels.insert(0, self.widen[level](fused))
        return levels, teachers


def _normalised(convolution: nn.Conv2d) -> nn.Sequential:
    nn.init.kaiming_uniform_(convolution.weight, a=1)
    return nn.Sequential(convolution, nn.BatchNorm2d(convolution.out_channels))


class ContrastMemory(nn.Module):
    """Embeddings of both sides and a memory of each training sample's: what `losses.crd` takes, in its order.

    `memory(student_tap, teacher_tap, indices)` gives the unit embeddings [B, D] of both sides and K negatives [K, D]
    of each, drawn from the memories by torch's global generator, the same K for the whole batch. In training each
    sample's entry then moves towards its embedding; in evaluation nothing moves. The memories are buffers, so that
    they go into a checkpoint: N·D numbers a side, 26 MB for 50,000 samples of 128.

    Args:
        student_width, teacher_width: channels of the taps; maps and tokens are averaged over their positions.
        samples: N; `indices` are below it.
        width: D.
        negatives: K.
        momentum: share that an entry keeps of its former self.

    Source: Tian, Krishnan and Isola 2020, arXiv 1910.10699, section 3.4; the authors' code (RepDistiller, crd/) draws
    K negatives for each sample by itself, which reads as many times as much as the batch has samples.

    >>> memory = ContrastMemory(8, 16, 100, width=4, negatives=32)
    >>> [tuple(part.shape) for part in memory(torch.ones(2, 8), torch.ones(2, 16), torch.tensor([5, 99]))]
    [(2, 4), (2, 4), (32, 4), (32, 4)]
    """

    student_memory: Tensor
    teacher_memory: Tensor

    def __init__(
        self,
        student_width: int,
        teacher_width: int,
        samples: int,
        *,
        width: int = 128,
        negatives: int = 2048,
        momentum: float = 0.5,
    ) -> None:
        super().__init__()
        if width < 1 or negatives < 1 or not 0 <= momentum < 1:
            raise UserError(
                "crd: width and negatives must be 1 or more and momentum in 0…1, 1 excluded; "
                f"{width}, {negatives} and {momentum} came"
            )
        self.student, self.teacher = nn.Linear(student_width, width), nn.Linear(teacher_width, width)
        self.negatives, self.momentum = negatives, momentum
        self.register_buffer("student_memory", functional.normalize(torch.randn(samples, width)))
        self.register_buffer("teacher_memory", functional.normalize(torch.randn(samples, width)))

    def forward(
        self, student_tap: Tensor, teacher_tap: Tensor, indices: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        student = functional.normalize(self.student(pooled(student_tap)))
        teacher = functional.normalize(self.teacher(pooled(teacher_tap.detach())))
        # drawn on the CPU, whose generator is in the checkpoint
        drawn = torch.randint(len(self.student_memory), (self.negatives,)).to(student.device)
        negatives = self.student_memory[drawn], self.teacher_memory[drawn]  # copies: the update below leaves them be
        if self.training:
            with torch.no_grad():
                for memory, embedding in ((self.student_memory, student), (self.teacher_memory, teacher)):
                    moved = self.momentum * memory[indices] + (1 - self.momentum) * embedding
                    memory[indices] = functional.normalize(moved)
        return student, teacher, *negatives
