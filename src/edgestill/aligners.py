"""Training-only modules that bring a student tap to a teacher tap's shape, and what methods keep of their own.

Shapes: B batch, C channels, H height, W width of a map, T tokens, D width of an embedding, N training samples,
K negatives.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgestill.errors import UserError
from edgestill.losses.reduce import pooled


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
    >>> [tuple(level.shape) for level in fusion([torch.zeros(2, 4, 8, 8), torch.zeros(2, 6, 4, 4)])]
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
        self.sizes = [(shape[2], shape[3]) for shape in teachers]
        self.narrow = nn.ModuleList(_normalised(nn.Conv2d(shape[1], width, 1, bias=False)) for shape in students)
        self.attend = nn.ModuleList(nn.Conv2d(2 * width, 2, 1) for _ in students[:-1])  # the deepest has none to fuse
        self.widen = nn.ModuleList(
            _normalised(nn.Conv2d(width, shape[1], 3, padding=1, bias=False)) for shape in teachers
        )

    def forward(self, students: Sequence[Tensor]) -> list[Tensor]:
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
        return levels


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
    the negatives for each sample by itself, which at K = 4096 reads 128 times as much.

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
        negatives: int = 4096,
        momentum: float = 0.5,
    ) -> None:
        super().__init__()
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
