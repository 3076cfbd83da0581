"""Runs of the digits whose student is trained for 8 bits."""

import json
from pathlib import Path

from edgestill.errors import UserError
from edgestill.export import formats
from edgestill.recipe import FORMATS

QUANTIZED = [
    "train.epochs=10",
    "compare.seeds=1",
    "teacher.fit.epochs=6",
    "phases=[{name: distill, share: 0.8}, {name: quantize, share: 0.2, fake_quantize: int8}]",
]


def installed() -> list[str]:
    found = []
    for name in FORMATS:
        try:
            formats.check([name])
        except UserError:
            continue
        found.append(name)
    return found


def result_of(run: Path) -> dict:
    return json.loads((run / "result.json").read_text())
