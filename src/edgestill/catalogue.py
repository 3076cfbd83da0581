"""The losses, each measured on one standard pair of models, as the command line lists them.

B batch, C channels, H height, W width, T positions, K classes.
"""

import inspect
from collections.abc import Collection
from math import sqrt
from typing import Any

import torch
from torch import Tensor, nn

from edgestill.functions import load_function
from edgestill.losses import (
    SOFT_LOSSES,
    TERM_LOSSES,
    Loss,
    attention_kl,
    attention_relation,
    cross_entropy,
    standardize,
)
from edgestill.objective import Objective, Term
from edgestill.reading import builtin
from edgestill.signals import Signal
from edgestill.taps import record
from edgestill.terms import MODULES, expand

ALPHA, TEMPERATURE = 0.9, 4.0
SAMPLES = 32
STAGES = ["layer1", "layer2", "layer3"]
GIVEN = {"student", "teacher", "students", "teachers", "mask", "count", "labels", "temperature"}


def measured() -> list[dict[str, Any]]:
    """Every loss by name: where it stands in a recipe, its value, the norm of its gradient in the student's weights,
    the weight that makes that as large as the soft part's `0.9·kl` at temperature 4, and its options.

    The pair: ResNet-8 and ResNet-20 of the built-in recipes with random weights of seed 0, their batch norms on 32
    images of noise; the teacher's logits scaled to a standard deviation of 3. A term compares the last stages,
    `review` all three.
    """
    torch.manual_seed(0)
    folder = builtin()["digits"].parent
    student, teacher = (load_function(f"{folder / 'resnet_cifar.py'}:{name}")() for name in ("resnet8", "resnet20"))
    images = torch.randn(SAMPLES, 3, 32, 32)
    with torch.no_grad(), record(teacher, STAGES) as teacher_taps:
        told = 3 * standardize(teacher(images))
    signal, labels = Signal(told, teacher_taps), told.argmax(1)
    with record(student, STAGES) as taps:
        logits = student(images)
    parameters = [*student.parameters()]

    def norm(value: Tensor) -> float:
        gradients = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
        return float(nn.utils.get_total_norm([gradient for gradient in gradients if gradient is not None]))

    reference = ALPHA * norm(SOFT_LOSSES["kl"](logits, told, temperature=TEMPERATURE))

    def row(name: str, place: str, value: Tensor, options: dict[str, Any]) -> dict[str, Any]:
        gradient = norm(value)
        weight = reference / gradient if place == "terms" and gradient else None
        numbers = {"value": float(value.detach()), "gradient_norm": gradient, "balanced_weight": weight}
        return {"name": name, "place": place, **numbers, "options": options}

    rows = [row("cross_entropy", "labels", cross_entropy(logits, labels), {})]
    for name, loss in SOFT_LOSSES.items():
        objective = Objective(loss=loss, alpha=1.0, temperature=TEMPERATURE)
        rows.append(row(name, "distill.loss", objective(logits, labels, signal).values["soft"], _options(loss)))
    for name, loss in TERM_LOSSES.items():
        term = _term(name, taps, teacher_taps)
        objective = Objective(alpha=1.0, loss=None, terms={name: term}, examples=(taps, teacher_taps))
        parts = objective(logits, labels, signal, taps, indices=torch.arange(SAMPLES))
        made = MODULES.get(name)
        options = _options(loss, GIVEN - {"temperature"}) | (_options(made) if made else {})
        rows.append(row(name, "terms", parts.values[name], options))
    return rows


def _term(name: str, taps: dict[str, Tensor], teacher_taps: dict[str, Tensor]) -> Term:
    """The term of a loss on the standard pair."""
    if name == "attention_kl":
        return Term(_of_maps, "layer3", "layer3", aligner="none")
    if name == "attention_relation":
        return Term(_relation_of_maps, "layer3", "layer3", aligner="none")
    chosen = STAGES if name == "review" else STAGES[-1:]
    terms, _ = expand(
        name,
        TERM_LOSSES,
        {},
        student=chosen,
        teacher=chosen,
        kind="width",
        weight=1.0,
        aligner="auto",
        similarity=None,
        shapes=lambda one, other: ([taps[path].shape for path in one], [teacher_taps[path].shape for path in other]),
        samples=SAMPLES,
    )
    return terms[0]


def _of_maps(student: Tensor, teacher: Tensor) -> Tensor:
    """`attention_kl` of the attention that the positions of a map pay to each other: softmax of their products."""

    def attention(features: Tensor) -> Tensor:
        tokens = features.flatten(2).transpose(1, 2)  # [B, T, C]
        alike: Tensor = tokens @ tokens.transpose(1, 2)
        return (alike / sqrt(features.shape[1])).softmax(-1)[:, None]

    return attention_kl(attention(student), attention(teacher))


def _relation_of_maps(student: Tensor, teacher: Tensor) -> Tensor:
    """`attention_relation` of the positions of a map, as if they were the values of one head."""
    values = [features.flatten(2).transpose(1, 2)[:, None] for features in (student, teacher)]  # [B, 1, T, C]
    return attention_relation(values[0], values[1])


def _options(loss: Loss | type[nn.Module], given: Collection[str] = GIVEN) -> dict[str, Any]:
    """The keyword arguments that a recipe can give a loss or its module, with their defaults."""
    parameters = inspect.signature(loss).parameters.values()
    return {
        parameter.name: parameter.default
        for parameter in parameters
        if parameter.kind is parameter.KEYWORD_ONLY and parameter.name not in given
    }


def lines(rows: list[dict[str, Any]]) -> list[str]:
    """The losses as a table, a line each."""
    table = [("loss", "in the recipe", "value", "gradient", "balanced weight", "options")]
    for row in rows:
        weight = "–" if row["balanced_weight"] is None else f"{row['balanced_weight']:.3g}"
        options = ", ".join(f"{name}={value}" for name, value in row["options"].items())
        numbers = f"{row['value']:.4g}", f"{row['gradient_norm']:.3g}", weight
        table.append((row["name"], row["place"], *numbers, options))
    widths = [max(len(cells[column]) for cells in table) for column in range(5)]
    aligned = []
    for cells in table:
        left = [cells[column].ljust(widths[column]) for column in range(2)]
        right = [cells[column].rjust(widths[column]) for column in range(2, 5)]
        aligned.append("  ".join([*left, *right, cells[5]]).rstrip())
    return [*aligned, "", "Measured on ResNet-8 and ResNet-20 with random weights; `weight: balanced` measures yours."]
