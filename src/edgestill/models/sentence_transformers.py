"""What sentence-transformers writes beside a Hugging Face model: how its tokens make one vector of a text."""

import json
from pathlib import Path
from typing import Any

from edgestill.errors import UserError, first_line
from edgestill.models.embedding import Pooling
from edgestill.models.hugging_face import transformers

POOLINGS: dict[str, Pooling] = {"mean": "mean", "cls": "cls", "lasttoken": "last"}
MODES = {"mean": "mean_tokens", "cls": "cls_token", "lasttoken": "lasttoken"} | {
    mode: f"{mode}_tokens" for mode in ("max", "mean_sqrt_len", "weightedmean")
}
"""What sentence-transformers' 1_Pooling/config.json calls a mode, behind `pooling_mode_`."""


def written_layout(name: str) -> tuple[Pooling, int | None]:
    """How a Hugging Face folder or id makes one vector of a text, and how many tokens it takes, as
    sentence-transformers writes it beside the model; mean, and None, where it says nothing.

    Raises UserError for what changes the vectors and is not known here."""
    try:
        return _layout(name)
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"hf:{name}: modules.json and what it names are not as sentence-transformers writes them: "
            f"{first_line(error)}"
        ) from error


def _layout(name: str) -> tuple[Pooling, int | None]:
    modules = _read(name, "modules.json") or []
    unknown = [kind for part in modules if (kind := _kind(part)) not in ("Transformer", "Pooling", "Normalize")]
    if unknown:
        raise UserError(
            f"hf:{name}: its sentence-transformers modules have {unknown[0]}; sentence-embedding takes Transformer, "
            "Pooling and Normalize alone: let a file.py:function put the model together"
        )
    described = _read(name, "sentence_bert_config.json") or {}
    if described.get("do_lower_case"):
        raise UserError(
            f"hf:{name}: sentence_bert_config.json has texts lower-cased before their tokens are made "
            "(do_lower_case), which sentence-embedding leaves to the tokenizer: give it a lower-casing normalizer"
        )
    length = described.get("max_seq_length")
    if length is not None and not isinstance(length, int):
        raise TypeError(f"max_seq_length is {length!r}")
    pooling = next((part for part in modules if _kind(part) == "Pooling"), None)
    if pooling is None:
        return "mean", length
    said = _read(name, f"{pooling['path']}/config.json") or {}
    modes = [said["pooling_mode"]] if "pooling_mode" in said else []
    modes = modes or [mode for mode, key in MODES.items() if said.get(f"pooling_mode_{key}")]
    if len(modes) != 1 or modes[0] not in POOLINGS:
        raise UserError(
            f"hf:{name}: {pooling['path']}/config.json pools by {' and '.join(map(str, modes)) or 'nothing'}; "
            f"sentence-embedding takes one of {', '.join(POOLINGS)}"
        )
    return POOLINGS[modes[0]], length


def write_layout(folder: Path, pooling: Pooling, width: int, length: int) -> None:
    """Beside a Hugging Face model and its tokenizer: what makes sentence-transformers load all as one that embeds."""
    kinds = {"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}
    modules = [
        {"idx": place, "name": str(place), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for place, (path, kind) in enumerate(kinds.items())
    ]
    mode = next(mode for mode, known in POOLINGS.items() if known == pooling)
    said = {f"pooling_mode_{key}": name == mode for name, key in MODES.items()}
    for path in ("1_Pooling", "2_Normalize"):
        (folder / path).mkdir(exist_ok=True)
    for path, content in {
        "modules.json": modules,
        "sentence_bert_config.json": {"max_seq_length": length, "do_lower_case": False},
        "1_Pooling/config.json": {"word_embedding_dimension": width, **said},
        "2_Normalize/config.json": {},
    }.items():
        (folder / path).write_text(json.dumps(content, indent=1) + "\n")


def _kind(part: dict[str, Any]) -> str:
    return str(part["type"]).rpartition(".")[2]


def _read(name: str, path: str) -> Any:
    """A JSON file beside a Hugging Face model; None where there is none."""
    found = transformers().utils.cached_file(name, path, _raise_exceptions_for_missing_entries=False)
    if found is None:
        return None
    try:
        return json.loads(Path(found).read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"hf:{name}: {path} is not JSON: {first_line(error)}") from error
