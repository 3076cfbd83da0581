"""What of a model can be tapped, as the command line lists it. Shapes: B batch, C channels, H height, W width."""

from pathlib import Path
from typing import Any

import torch

from edgestill.errors import UserError, first_line
from edgestill.models import Head, ImageInput, Model, TextInput, example, load_model, load_text_model
from edgestill.paths import exists
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
    """The taps of a vision or text model from its spec, in the order in which they are computed: their kind, path,
    shape with B for the size of the batch, and the model's parameters up to there.

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
    try:
        model = load_model(spec, classes=classes, default=default, weights=weights, size=height if sides else None)
    except UserError as error:
        model = _text_model(spec, classes, weights, error)
    probe = torch.zeros(2, channels, height, width) if sides else example(model.input, 2)
    try:
        taps = found(model.module, probe, every=every)
    except Exception as error:
        shape = "×".join(map(str, probe.shape[1:]))
        what = "texts of 8 tokens" if isinstance(model.input, TextInput) else f"images of {shape}"
        raise UserError(f"{spec} does not take {what}: {first_line(error)}") from error
    return [
        {"kind": tap.kind, "path": tap.path, "shape": _shape(tap.shape, len(probe)), "parameters": tap.parameters}
        for tap in taps
    ]


def _text_model(spec: str, classes: int, weights: str | None, error: UserError) -> Model:
    """The text model that a spec stands for; the error of the vision model that it was first taken for, where it is
    neither. The taps of a classifier and of a language model of one family are called alike."""
    names = [str(number) for number in range(classes)]
    heads: tuple[Head, ...] = ("classes", "tokens")
    if exists(Path(spec.removeprefix("hf:")) / "modules.json"):  # of sentence-transformers
        heads = ("embedding",)
    for head in heads:
        try:
            return load_text_model(spec, head=head, classes=names, weights=weights)
        except UserError:
            continue
    raise error


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
