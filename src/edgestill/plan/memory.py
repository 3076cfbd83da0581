"""Bytes of a device's memory at the peak of a distillation's step. Standard library only.

Four moments of a step are added up, of which the largest counts: the teacher's forward pass; the beginning of the
student's backward pass, when all that it needs is there; its end, when all gradients are; and the optimizer's step.
"""

from dataclasses import dataclass
from typing import Literal

from edgestill.plan.transformer import RESIDUAL, VALUE, Kept, Transformer

Precision = Literal["float32", "bf16", "int8"]
OPTIMIZERS = {"adamw": 2, "sgd": 1}
"""Numbers that an optimizer keeps for each parameter, in its precision: two means, or a momentum."""


@dataclass(frozen=True)
class Held:
    """How a student is trained.

    Attributes:
        precision: what passes compute in, float32 or bf16.
        weights: what the student's weights, gradients and optimizer are in; float32 under bf16 is autocast.
        teacher: what the teacher's weights are in; None where a store stands for it.
        recompute: layers keep their input alone, and compute again for the backward pass.
        pieces: whether a device's share of the batch is taken in several, whose gradients add up.
        devices: over how many everything is sharded; 1 where each has a whole copy.
    """

    precision: Literal["float32", "bf16"] = "bf16"
    weights: Literal["float32", "bf16"] = "float32"
    optimizer: str = "adamw"
    teacher: Precision | None = "bf16"
    recompute: bool = False
    pieces: bool = False
    devices: int = 1

    @property
    def kept(self) -> Kept:
        """What the student's passes compute in."""
        if self.precision == "float32":
            return "float32"
        return "autocast" if self.weights == "float32" else "bf16"


def weight_bytes(of: Transformer, precision: Precision) -> int:
    """Of all weights; int8 holds those of the layers' matrix products, all else is in float32.

    >>> small = Transformer(2, 8, 2, 1, 4, 16, 10)
    >>> weight_bytes(small, "bf16"), weight_bytes(small, "int8")
    (2704, 1952)
    """
    if precision == "int8":
        products = of.layers * of.matrices
        return products + 4 * (of.parameters - products)
    return (4 if precision == "float32" else 2) * of.parameters


def memory(
    teacher: Transformer, student: Transformer, how: Held, *, length: int, texts: int, told: float
) -> dict[str, int]:
    """Bytes by part at the fullest moment of a step, and their sum as `total`.

    Args:
        length: tokens of a text.
        texts: that a device takes at once.
        told: bytes of what the teacher says of a position, as it is learned from.
    """
    number = 4 if how.weights == "float32" else 2
    states = {
        "teacher weights": 0 if how.teacher is None else weight_bytes(teacher, how.teacher) / how.devices,
        "student weights": number * student.parameters / how.devices,
        "optimizer": OPTIMIZERS[how.optimizer] * number * student.parameters / how.devices,
    }
    gradients = number * student.parameters / how.devices
    if how.pieces:
        states["gradients"] = gradients
    moments = [
        _learning(student, how, length, texts, told, number),
        _learned(student, how, length, texts, told, number),
    ]
    moments[1]["gradients"] = gradients
    if how.teacher is not None:
        moments.append(_teaching(teacher, how, length, texts))
    fullest = max((states | moment for moment in moments), key=lambda moment: sum(moment.values()))
    parts = {name: round(value) for name, value in fullest.items() if value}
    return parts | {"total": sum(parts.values())}


def _teaching(teacher: Transformer, how: Held, length: int, texts: int) -> dict[str, float]:
    kept: Kept = "float32" if how.precision == "float32" and how.teacher != "bf16" else "bf16"
    answers = texts * teacher.answered(length) * teacher.answers
    return {
        "activations": texts * teacher.working(length, kept),
        "logits": answers * (4 if kept == "float32" else 2 + 4),  # handed on in float32
        "gathered": _units(teacher, 2 if how.teacher != "float32" else 4) * 2 if how.devices > 1 else 0,
    }


def _learning(student: Transformer, how: Held, length: int, texts: int, told: float, number: int) -> dict[str, float]:
    kept, value = how.kept, VALUE[how.kept]
    positions = texts * student.answered(length)
    layer = student.layer_kept(length, kept)
    inputs = student.layers * length * student.width * RESIDUAL[kept]
    layers = inputs + layer if how.recompute else student.layers * layer
    return {
        "activations": texts * (layers + student.end_kept(length, kept)),
        "logits": positions * (told + 2 * value * student.answers),  # and their gradient
        "working": _embeddings(student, number) + _gathered(student, how),
    }


def _learned(student: Transformer, how: Held, length: int, texts: int, told: float, number: int) -> dict[str, float]:
    positions = texts * student.answered(length)
    return {
        "logits": positions * (told + VALUE[how.kept] * student.answers),
        "working": _embeddings(student, number) + _gathered(student, how),
    }


def _embeddings(student: Transformer, number: int) -> int:
    """The gradient of the embeddings, made whole before it is added."""
    return number * student.embeddings


def _gathered(student: Transformer, how: Held) -> int:
    """Weights in what passes compute in: autocast's copies, or, of those that are sharded, two units at a time."""
    if how.devices > 1:
        return 2 * _units(student, VALUE[how.kept])
    last = student.embeddings if student.classes is None else student.head
    return 2 * (student.layers * student.matrices + last) if how.kept == "autocast" else 0


def _units(of: Transformer, number: int) -> int:
    """Bytes of the largest piece that is gathered at once: a layer, or the embeddings."""
    return number * max(of.layer, of.embeddings)
