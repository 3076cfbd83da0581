"""What a run folder holds, read once. N test samples, C classes, K examples."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgestill.errors import UserError


class Answers(NamedTuple):
    """What one model answered on the test set: the class int64 [N] and its probability float32 [N]."""

    classes: NDArray[np.int64]
    confidences: NDArray[np.float32]


@dataclass(frozen=True)
class Folder:
    """The files of one run; whatever is absent is empty."""

    result: dict[str, Any]
    environment: dict[str, Any]
    metrics: list[dict[str, Any]]  # every arm, training and validation lines, in order
    recipe: str  # YAML text
    labels: NDArray[np.int64]  # [N]; -1 = missing
    answers: dict[str, Answers]  # by model: teacher, baseline, student, onnx, …
    pixels: NDArray[np.uint8]  # [K, H, W, 1 or 3]
    indices: NDArray[np.int64]  # [K] into the test set
    texts: list[str]  # [K], in place of pixels
    completions: dict[str, Any]  # of language models: prompts, and by model what it wrote on


def read(run: Path) -> Folder:
    """The run folder at `run`. Raises UserError unless it holds a result, a recipe or metrics."""
    if not any((run / name).is_file() for name in ("result.json", "recipe.yaml", "metrics.jsonl")):
        raise UserError(
            f"a report needs a run folder (with result.json); {str(run)!r} is none; `edgestill run` writes one"
        )
    labels, answers = _predictions(run / "predictions.npz")
    pixels, indices = _examples(run / "examples.npz")
    written = _object(run / "examples.json")
    texts = [str(text) for text in written.get("texts", [])]
    if texts:
        indices = np.asarray(written["indices"], np.int64)
    recipe = run / "recipe.yaml"
    return Folder(
        result=_object(run / "result.json") or {"status": "unfinished"},
        environment=_object(run / "environment.json"),
        metrics=_lines(run / "metrics.jsonl"),
        recipe=recipe.read_text(encoding="utf-8") if recipe.is_file() else "",
        labels=labels,
        answers=answers,
        pixels=pixels,
        indices=indices,
        texts=texts,
        completions=_object(run / "completions.json"),
    )


def _object(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value: Any = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise UserError(f"{path} needs to be JSON; line {error.lineno} is not: {error.msg}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} is not a run's: it needs to be a JSON object")
    return value


def _lines(path: Path) -> list[dict[str, Any]]:
    """Every whole line: an interrupted run may have left half of its last one."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return lines


def _predictions(path: Path) -> tuple[NDArray[np.int64], dict[str, Answers]]:
    """Labels and answers; each column's probabilities [N, C] are dropped before the next is read."""
    if not path.is_file():
        return np.zeros(0, np.int64), {}
    answers = {}
    with np.load(path) as arrays:
        if "labels" not in arrays.files:  # of a task without classes
            return np.zeros(0, np.int64), {}
        for name in arrays.files:
            if name != "labels":
                probabilities = arrays[name]
                answers[name] = Answers(probabilities.argmax(axis=1), probabilities.max(axis=1))
        return arrays["labels"], answers


def _examples(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    if not path.is_file():
        return np.zeros((0, 1, 1, 1), np.uint8), np.zeros(0, np.int64)
    with np.load(path) as arrays:
        return arrays["pixels"], arrays["indices"]
