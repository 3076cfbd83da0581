"""What of a model can be tapped, as the command line lists it. Shapes: B batch, C channels, H height, W width."""

from typing import Any

import torch

from edgestill.errors import UserError, first_line
from edgestill.models import ImageInput, example, load_model
from edgestill.taps import found

SIDES = (3, 224, 224)
"""Channels, height and width of the images for a model that declares none."""


def taps_of(
    spec: str,
    *,
    classes: int,
    sides: tuple[int, int, int] | None = None,
    weights: str | None = None,
    every: bool = False,
) -> list[dict[str, Any]]:
    """The taps of a model from its spec, in the order in which they are computed: their kind, path, shape with B for
    the size of the batch, and the model's parameters up to there.

    Args:
        classes: that the model is built for.
        sides: channels, height and width of the images; by default what the model declares.
        weights: a file; a model lists the same taps without.
        every: all modules that put out a tensor, not only those that are found.

    Raises UserError for a model that cannot be loaded or does not take such images.
    """
    channels, height, width = sides or SIDES
    if sides is None and ".py:" not in spec:
        channels = 1  # a model that takes more declares it
    default = ImageInput(channels, height, mean=(0.0,), std=(1.0,))
    model = load_model(spec, classes=classes, default=default, weights=weights, size=height if sides else None)
    images = torch.zeros(2, channels, height, width) if sides else example(model.input, 2)
    try:
        taps = found(model.module, images, every=every)
    except Exception as error:
        shape = "×".join(map(str, images.shape[1:]))
        raise UserError(f"{spec} does not take images of {shape}: {first_line(error)}") from error
    return [
        {"kind": tap.kind, "path": tap.path, "shape": _shape(tap.shape, len(images)), "parameters": tap.parameters}
        for tap in taps
    ]


def lines(taps: list[dict[str, Any]]) -> list[str]:
    """The taps as a table, a line each.

    >>> print("\\n".join(lines([{"kind": "stage", "path": "layer1", "shape": ["B", 16, 32, 32], "parameters": 5136}])))
    kind   path    shape            parameters up to there
    stage  layer1  [B, 16, 32, 32]                   5,136
    """
    if not taps:
        return ["no stage, block or attention was found; --all lists every module that puts out a tensor"]
    head = ("kind", "path", "shape", "parameters up to there")
    rows = [head] + [
        (tap["kind"], tap["path"], f"[{', '.join(map(str, tap['shape']))}]", f"{tap['parameters']:,}") for tap in taps
    ]
    kind, path, shape, count = (max(map(len, column)) for column in zip(*rows, strict=True))
    return [f"{row[0]:<{kind}}  {row[1]:<{path}}  {row[2]:<{shape}}  {row[3]:>{count}}" for row in rows]


def _shape(shape: tuple[int, ...], batch: int) -> list[str | int]:
    """B for the batch, 4B for what has four windows of each image in it."""
    first, rest = shape[0], shape[1:]
    times, over = divmod(first, batch)
    return [first if over else f"{times if times > 1 else ''}B", *rest]
