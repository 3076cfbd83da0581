"""Losses over relations, scales and attention against figures that other code gave for the same seeded inputs: the
authors' where it is public. `fixtures/authors_relations.json` says whose, and how the scales relate."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from edgestill.losses import TERM_LOSSES
from loss_checks import random

RECORDED = json.loads((Path(__file__).parent / "fixtures" / "authors_relations.json").read_text(encoding="utf-8"))
FACTORS = {
    "rkd, distances": lambda B: B / (B - 1),
    "rkd, angles": lambda B: B**2 / ((B - 1) * (B - 2)),
    "pkt": lambda B: B * (0.75 * B) / (0.75 * B - 1),
}


def circle(size: int, waves: list[int]) -> Tensor:
    angles = 2 * math.pi * torch.arange(size, dtype=torch.float64) / size
    points = [torch.full_like(angles, math.sqrt(len(waves)))]
    points += [part(wave * angles) for wave in waves for part in (torch.cos, torch.sin)]
    return torch.stack(points, 1)


def inputs(given: dict) -> tuple[Tensor, Tensor]:
    if "student_waves" in given:
        return circle(given["B"], given["student_waves"]), circle(given["B"], given["teacher_waves"])
    shapes = given["student"], given["teacher"]
    first, second = (random(*s, seed=i, scale=given["scale"]) for s, i in zip(shapes, given["seeds"], strict=True))
    return first, second


@pytest.mark.parametrize("name", ["sp", "rkd, distances", "rkd, angles", "pkt", "cc", "cc, order 4", "cka", "pyramid"])
def test_values_and_gradients_are_those_of_other_code(name):
    recorded = RECORDED[name]
    student, teacher = inputs(recorded["inputs"])
    student.requires_grad_()
    options = {} if name == "pkt" else recorded["options"]  # pkt's option sets an epsilon of the authors' to zero
    value = TERM_LOSSES[name.split(",")[0]](student, teacher, **options)
    value.backward()
    factor = FACTORS.get(name, lambda B: 1.0)(len(student))
    np.testing.assert_allclose(value.item(), factor * recorded["value"], rtol=1e-6)
    if "gradient_norm" in recorded:
        np.testing.assert_allclose(student.grad.norm().item(), factor * recorded["gradient_norm"], rtol=1e-6)
