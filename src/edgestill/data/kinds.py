"""What a data set is for, told from its training split. N samples, H height, W width, C channels."""

from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from edgestill.data.listings import IMAGE_COLUMNS
from edgestill.data.specs import IMAGE_ENDINGS, called
from edgestill.data.texts import COLUMNS, read_columns
from edgestill.errors import UserError
from edgestill.functions import FUNCTION

IMAGES, CLASSES, EMBEDDINGS = "image-classification", "text-classification", "sentence-embedding"
TOKENS, CHAT = "language-modeling", "instruction"
LOOKED_AT = 2000
"""Labels by which numbers are told from classes."""


def task_of(split: object) -> tuple[str, bool]:
    """The task that a training split, as `splits_of` gives it, is for, and whether its labels are numbers.

    Images, as files or arrays: image-classification. Conversations, or a prompt with its response: instruction. Texts
    without labels: language-modeling. Texts, one or two, with a label each: text-classification; two texts with a
    number that is no class, or with none: sentence-embedding.

    Raises UserError where nothing is there, or where it is none of these.

    >>> task_of(lambda: ["A text.", "Another."])
    ('language-modeling', False)
    """
    if _are_images(split):
        return IMAGES, False
    table = read_columns(split)
    if any(name in table for name in IMAGE_COLUMNS):
        return IMAGES, False

    def has(what: str) -> bool:
        return any(name in table for name in COLUMNS[what])

    if has("messages") or (has("prompt") and has("response") and not has("text")):
        return CHAT, False
    if not has("text"):
        raise UserError(
            "data: is neither images nor texts that are known by their columns, which are "
            f"{', '.join(map(repr, table)) or 'none'}: call them text, text_pair and label, or messages, or say --task"
        )
    labels = next((table[name] for name in COLUMNS["label"] if name in table), None)
    numbers = labels is not None and _are_numbers(labels)
    if has("text_pair") and (labels is None or numbers):
        return EMBEDDINGS, False
    return (TOKENS, False) if labels is None else (CLASSES, numbers)


def has_numbers(split: object) -> bool:
    """Whether the labels of texts are numbers, where the task is known."""
    table = read_columns(split)
    labels = next((table[name] for name in COLUMNS["label"] if name in table), None)
    return labels is not None and _are_numbers(labels)


def _are_images(split: object) -> bool:
    """Whether a split is a folder of images, or arrays of them."""
    if isinstance(split, str) and not FUNCTION.fullmatch(split):
        folder = Path(split)
        if not folder.is_dir() or any(folder.glob("*.parquet")):
            return False
        return any(path.suffix.lower() in IMAGE_ENDINGS for path in folder.rglob("*"))
    made: Any = split if isinstance(split, tuple | list) else called(split)  # type: ignore[arg-type]
    if isinstance(made, Mapping) or not isinstance(made, tuple | list) or len(made) not in (2, 3):
        return False
    return not isinstance(made[0], str) and np.ndim(made[0]) >= 3


def _are_numbers(labels: Any) -> bool:
    """Whether labels are numbers of which some are not whole."""
    fractions = False
    for label in islice((one for one in labels if one not in (None, "")), LOOKED_AT):
        try:
            fractions |= not float(label).is_integer()
        except (TypeError, ValueError):
            return False
    return fractions
