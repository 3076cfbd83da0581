"""The pictures or texts where the student left its teacher most. K examples, H, W, C channels."""

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgestill.report.folder import Folder
from edgestill.report.words import percent

LARGEST = 192  # pixels a side: beyond it a picture only makes the page heavier


def cards(folder: Folder, models: Sequence[str]) -> list[dict[str, Any]]:
    """A card an example: its picture as a data URI or its text, its true class, and each model's answer."""
    names = folder.result.get("classes") or []

    def title(index: int) -> str:
        if index < 0:
            return "not labelled"
        return str(names[index]) if index < len(names) else f"class {index}"

    found = []
    shown = [{"text": text} for text in folder.texts] or [_picture(pixels) for pixels in folder.pixels]
    for what, index in zip(shown, folder.indices.tolist(), strict=True):
        label = int(folder.labels[index]) if index < len(folder.labels) else -1
        answers = []
        for model in models:
            if model in folder.answers and index < len(folder.answers[model].classes):
                answer = folder.answers[model]
                told = int(answer.classes[index])
                answers.append(
                    {
                        "model": model,
                        "class": title(told),
                        "confidence": percent(float(answer.confidences[index]), 0),
                        "right": told == label if label >= 0 else None,
                    }
                )
        found.append({"index": index, "label": title(label), "answers": answers, **what})
    return found


def _picture(pixels: NDArray[np.uint8]) -> dict[str, Any]:
    """A PNG of uint8 [H, W, 1 or 3] as a data URI; a small one is to be shown in whole pixels."""
    image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    small = max(image.size) <= 96
    image.thumbnail((LARGEST, LARGEST))
    file = io.BytesIO()
    image.save(file, format="PNG", optimize=True)
    return {"source": f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}", "small": small}
