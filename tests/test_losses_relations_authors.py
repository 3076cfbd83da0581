"""Losses over relations, scales and attention against figures that other code gave for the same seeded inputs: the
authors' where it is public. `fixtures/authors_relations.json` says whose, and how the scales relate."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from edgestill.aligners import ReviewFusion
from edgestill.losses import TERM_LOSSES, crd, noise_contrast, review
from loss_checks import random

RECORDED = json.loads((Path(__file__).parent / "fixtures" / "authors_relations.json").read_text(encoding="utf-8"))
FACTORS = {
    "rkd, distances": lambda B: B / (B - 1),
    "rkd, angles": lambda B: B**2 / ((B - 1) * (B - 2)),
    "pkt": lambda B: B * (0.75 * B) / (0.75 * B - 1),
    "attention_transfer": lambda B: 4 * 4,
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


@pytest.mark.parametrize(
    "name",
    [
        "sp",
        "rkd, distances",
        "rkd, angles",
        "pkt",
        "cc",
        "cc, order 4",
        "cka",
        "pyramid",
        "nst",
        "cwd",
        "attention_transfer",
    ],
)
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


def unit(rows: Tensor) -> Tensor:
    return rows / rows.norm(dim=1, keepdim=True)


def contrast_inputs(given: dict) -> list[Tensor]:
    B, D, N, K = (given[key] for key in "BDNK")
    student, teacher = (unit(random(B, D, seed=seed)).requires_grad_() for seed in (0, 1))
    return [student, teacher, *(unit(random(N, D, seed=seed))[20 : 20 + K] for seed in (2, 3))]


def test_crd_with_the_papers_population_is_the_authors_without_their_constant():
    recorded = RECORDED["crd"]
    student, teacher, *negatives = contrast_inputs(recorded["inputs"])
    value = crd(student, teacher, *negatives, population=recorded["inputs"]["N"], **recorded["options"])
    value.backward()
    for ours, name in (
        (value, "value"),
        (student.grad, "student_gradient_norm"),
        (teacher.grad, "teacher_gradient_norm"),
    ):
        np.testing.assert_allclose(ours.norm().item(), recorded[name], rtol=1e-6)


def test_the_authors_constant_divides_the_population():
    recorded = RECORDED["crd, Z"]
    student, teacher, of_student, of_teacher = contrast_inputs(recorded["inputs"])
    of_both = [recorded["inputs"]["N"] / constant for constant in recorded["Z"]]
    options = recorded["options"]
    value = noise_contrast(student, teacher.detach(), of_teacher, population=of_both[0], **options)
    value = value + noise_contrast(teacher, student.detach(), of_student, population=of_both[1], **options)
    value.backward()
    for ours, name in (
        (value, "value"),
        (student.grad, "student_gradient_norm"),
        (teacher.grad, "teacher_gradient_norm"),
    ):
        np.testing.assert_allclose(ours.norm().item(), recorded[name], rtol=1e-5)  # their epsilon stands beside K/N


def test_review_with_its_fusion_is_the_authors():
    recorded = RECORDED["review"]
    given = recorded["inputs"]
    fusion = ReviewFusion(given["students"], given["teachers"]).double()
    with torch.no_grad():
        for level in range(len(given["students"])):
            parts = [fusion.narrow[level][0].weight, fusion.widen[level][0].weight]
            if level < len(fusion.attend):
                parts += [fusion.attend[level].weight, fusion.attend[level].bias]
            for place, part in enumerate(parts):
                part.copy_(random(*part.shape, seed=10 * level + 10 + place, scale=0.3))
    students = [random(*shape, seed=seed).requires_grad_() for seed, shape in enumerate(given["students"])]
    teachers = [random(*shape, seed=3 + seed) for seed, shape in enumerate(given["teachers"])]
    levels, _ = fusion(students, [])
    value = review(levels, teachers)
    value.backward()
    np.testing.assert_allclose([level.norm().item() for level in levels], recorded["output_norms"], rtol=1e-6)
    np.testing.assert_allclose(value.item(), recorded["value"], rtol=1e-6)
    np.testing.assert_allclose([s.grad.norm().item() for s in students], recorded["gradient_norms"], rtol=1e-6)
