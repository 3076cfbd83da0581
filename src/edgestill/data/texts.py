"""Splits of texts: jsonl, csv, tsv, parquet, plain text, the Hub and functions. N samples."""

import csv
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgestill.data.classes import agree_on_classes, numbered
from edgestill.data.hub import quiet
from edgestill.data.listings import read_csv, read_jsonl, read_text
from edgestill.data.specs import SPLITS, called, folder_splits, hub_id, resolve
from edgestill.data.tables import matches, parquet
from edgestill.errors import UserError, closest, first_line
from edgestill.functions import FUNCTION
from edgestill.paths import cache_folder

ENDINGS = (".parquet", ".jsonl", ".json", ".csv", ".tsv", ".txt")
COLUMNS = {
    "text": ("text", "sentence", "sentence1"),
    "text_pair": ("text_pair", "sentence2"),
    "label": ("label", "labels"),
    "messages": ("messages", "conversations"),
    "prompt": ("prompt", "question", "instruction"),
    "response": ("response", "answer", "output"),
}
"""What a column is called where the recipe does not say; the first is the standard name."""


@dataclass(frozen=True, eq=False)
class Texts:
    """One split of texts.

    Attributes:
        texts, pairs: the first text of each sample, and the second where samples are two.
        labels: int64 [N], the class of each sample; -1 where the label is missing. 0 where it is a number.
        classes: the names of the classes; a single one where labels are numbers, or where there are none.
        values: float32 [N], the labels where they are numbers (NaN where missing).
        fingerprint: hex of the content, whatever the paths.
        source: what the user named, for messages.
    """

    texts: Sequence[str]
    pairs: Sequence[str] | None
    labels: npt.NDArray[np.int64]
    classes: tuple[str, ...]
    fingerprint: str
    source: str
    values: npt.NDArray[np.float32] | None = None
    skipped: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def both(self) -> list[tuple[str, ...]]:
        """The texts of each sample, one or two."""
        return (
            [(text,) for text in self.texts] if self.pairs is None else list(zip(self.texts, self.pairs, strict=True))
        )

    def at(self, rows: npt.NDArray[np.int64], fingerprint: str) -> "Texts":
        return replace(
            self,
            texts=[self.texts[row] for row in rows],
            pairs=None if self.pairs is None else [self.pairs[row] for row in rows],
            labels=self.labels[rows],
            values=None if self.values is None else self.values[rows],
            fingerprint=fingerprint,
        )

    def with_labels(self, labels: npt.NDArray[np.int64], fingerprint: str) -> "Texts":
        values = None if self.values is None else np.where(labels >= 0, self.values, np.float32(np.nan))
        return replace(self, labels=labels, values=values, fingerprint=fingerprint)


@dataclass(frozen=True)
class _Read:
    """A split as it is written."""

    texts: list[str]
    pairs: list[str] | None
    written: list[Any]
    labels: npt.NDArray[np.int64]
    names: tuple[str, ...] | None
    source: str

    def number(self, row: int) -> int:
        return row


def load_texts(
    data: Mapping[str, object],
    *,
    columns: Mapping[str, str | int] | None = None,
    label: str = "class",
    cache: str | Path | None = None,
) -> dict[str, Texts]:
    """The named splits ("train", "test", "validation"), all with the same classes.

    Args:
        data: split name to one of: files or a pattern of them (jsonl, json, csv, tsv, parquet, plain text), a folder of
            such files, a Hub id, a function of no arguments, which returns a list of texts or a dict of columns.
        columns: the names of the columns `text`, `text_pair` and `label`, where they are not called so. A number is the
            place of a column, counted from 0, in csv and tsv files without a header.
        label: what labels are: "class", "number", or "none", which reads texts alone; "similarity" is a number of two
            texts, and a split of single ones has none; with "messages" a text is a
            conversation as JSON, a list of {role, content}, from a column of such lists, or from two, `prompt` and
            `response`.
        cache: folder for tables; by default `$EDGESTILL_CACHE`, or ~/.cache/edgestill.

    Raises UserError for what is missing, empty or not text, with the row; for a class that training data lacks.

    >>> load_texts({"train": "train.tsv", "test": "test.tsv"}, columns={"text": 0, "label": 1})  # doctest: +SKIP
    """
    for split in data:
        if split not in SPLITS:
            raise UserError(f"a split is one of {', '.join(SPLITS)}; {split!r} came{closest(split, SPLITS)}")
    folder = cache_folder(cache)
    read = {split: _read(spec, split, dict(columns or {}), label, folder) for split, spec in data.items()}
    alike = label == "similarity"
    if len({part.pairs is None for part in read.values()}) > 1 and not alike:
        single = next(part.source for part in read.values() if part.pairs is None)
        raise UserError(f"samples need to be one text or two in every split; {single} has no second one (text_pair)")
    if label == "class":
        classes, labels = agree_on_classes(read)
        values: dict[str, npt.NDArray[np.float32]] = {}
    else:
        numbers = label == "number" or alike
        classes, labels = ("number" if numbers else "text",), {name: part.labels for name, part in read.items()}
        values = {name: _numbers(part, alike) for name, part in read.items()} if numbers else {}
        labels |= {name: np.where(np.isnan(found), -1, 0) for name, found in values.items()}
    return {
        name: Texts(
            part.texts, part.pairs, labels[name], classes, _fingerprint(part, labels[name], values.get(name)),
            part.source, values.get(name),
        )
        for name, part in read.items()
    }  # fmt: skip


def load_rows(spec: str, cache: str | Path | None = None) -> list[dict[str, Any]]:
    """The rows of files, a Hub id or a function as `load_texts` takes them, each a dict of its columns.

    Raises UserError where there are none."""
    table, _ = _table(resolve(spec, Path.cwd()), "test", spec, {}, cache_folder(cache))
    if not table or not len(next(iter(table.values()))):
        raise UserError(f"{spec} has no rows: put some in, or name other files")
    rows = [dict(zip(table, row, strict=True)) for row in zip(*table.values(), strict=True)]
    _refuse_halves(["".join(value for value in row.values() if isinstance(value, str)) for row in rows], spec)
    return rows


def read_columns(spec: object) -> dict[str, Any]:
    """The columns of a split as `load_texts` takes it, by name, as they are written; also of images' tables and lists.

    Raises UserError for what is not there or cannot be read."""
    return _table(spec, "train", str(spec) if isinstance(spec, str) else "the train split", {}, cache_folder(None))[0]


def _refuse_halves(texts: Sequence[str], source: str) -> None:
    """UserError for half of a character, which no tokenizer takes."""
    for number, text in enumerate(texts):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UserError(f"{source}: row {number} holds half of a character: {first_line(error)}") from None


def _numbers(part: _Read, of_pairs: bool) -> npt.NDArray[np.float32]:
    found = np.full(len(part.written), np.nan, np.float32)
    if of_pairs and part.pairs is None:  # what a label of a single text says, it does not say of how alike two are
        return found
    for row, value in enumerate(part.written):
        if value in (None, ""):
            continue
        try:
            found[row] = float(value)
        except (TypeError, ValueError) as error:
            raise UserError(f"{part.source}: labels need to be numbers; row {row} has {value!r}") from error
        if np.isinf(found[row]):
            raise UserError(f"{part.source}: labels need to be finite numbers; row {row} has {value!r}")
    return found


def _read(spec: object, split: str, columns: dict[str, str | int], label: str, cache: Path) -> _Read:
    source = str(spec) if isinstance(spec, str | Path) else f"the {split} split"
    table, names = _table(spec, split, source, columns, cache)
    if not table or not len(next(iter(table.values()))):
        raise UserError(f"the {split} split needs texts; {source} has none: put some in, or name other files")
    if label == "messages":
        texts, pairs, column = _conversations(table, columns, source), None, None
    else:
        found_texts = _column(table, "text", columns, source)
        assert found_texts is not None
        texts, pairs = found_texts, _column(table, "text_pair", columns, source)
        column = _name(table, "label", columns, source)
    for some in (texts, pairs or ()):
        _refuse_halves(some, source)
    written = list(table[column]) if column is not None and label != "none" else [None] * len(texts)
    if label == "class":
        known = names.get(column) if column is not None else None
        labels, found = numbered(written, known, source)
    else:
        labels, found = np.zeros(len(texts), np.int64), None
    return _Read(texts, pairs, written, labels, found, source)


def _conversations(table: Mapping[str, Any], columns: dict[str, str | int], source: str) -> list[str]:
    """Each row's conversation as JSON."""
    name = _name(table, "messages", columns, source)
    if name is None:
        sides = [_column(table, what, columns, source) for what in ("prompt", "response")]
        if None in sides:
            raise UserError(
                f"{source} needs a column 'messages', or 'prompt' and 'response'; its columns are "
                f"{', '.join(map(repr, table)) or 'none'}: name the right ones in data.columns"
            )
        rows = [
            [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
            for prompt, response in zip(sides[0] or (), sides[1] or (), strict=True)
        ]
        return [json.dumps(row, ensure_ascii=False) for row in rows]
    for row, messages in enumerate(table[name]):
        fits = isinstance(messages, list) and all(
            isinstance(message, dict)
            and isinstance(message.get("role"), str)
            and isinstance(message.get("content"), str)
            for message in messages
        )
        if not fits or not any(message["role"] == "assistant" for message in messages):
            raise UserError(
                f"{source}: column {name!r} needs lists of {{role, content}} with a message of the assistant's; "
                f"row {row} has {str(messages)[:60]!r}"
            )
    return [json.dumps(messages, ensure_ascii=False) for messages in table[name]]


def _name(table: Mapping[str, Any], what: str, columns: dict[str, str | int], source: str) -> str | None:
    """The column that something stands in; None where there is none and none was asked for."""
    asked = columns.get(what)
    if asked is not None and str(asked) in table:
        return str(asked)
    if asked is not None or what == "text":
        found = None if asked is not None else next((name for name in COLUMNS[what] if name in table), None)
        if found is None:
            wanted = repr(str(asked)) if asked is not None else repr(what)
            raise UserError(
                f"{source} needs a column {wanted}; its columns are {', '.join(map(repr, table)) or 'none'}: name the "
                f"right one in data.columns.{what}"
            )
        return found
    return next((name for name in COLUMNS[what] if name in table), None)


def _column(table: Mapping[str, Any], what: str, columns: dict[str, str | int], source: str) -> list[str] | None:
    name = _name(table, what, columns, source)
    if name is None:
        return None
    values = list(table[name])
    for row, value in enumerate(values):
        if not isinstance(value, str):
            raise UserError(f"{source}: column {name!r} needs texts; row {row} has {str(value)[:60]!r}")
    return values


def _table(
    spec: object, split: str, source: str, columns: dict[str, str | int], cache: Path
) -> tuple[dict[str, Any], dict[str, tuple[str, ...]]]:
    """Columns by name, and the names of classes that a table keeps for a column."""
    if isinstance(spec, str | Path):
        spec = resolve(str(spec), Path.cwd())
        if not FUNCTION.fullmatch(spec):
            return _files(spec, split, source, columns, cache)
    made = called(spec)  # type: ignore[arg-type]
    if isinstance(made, Mapping):
        table = {str(name): list(values) for name, values in made.items()}
        if len({len(values) for values in table.values()}) > 1:
            raise UserError(f"{source}: columns need to be of one length")
        return table, {}
    if isinstance(made, list | tuple) and all(isinstance(text, str) for text in made):
        return {"text": list(made)}, {}
    raise UserError(f"{source}: needs a list of texts or a dict of columns; {type(made).__name__} came")


def _files(
    spec: str, split: str, source: str, columns: dict[str, str | int], cache: Path
) -> tuple[dict[str, Any], dict[str, tuple[str, ...]]]:
    import datasets

    path = Path(spec)
    identifier = None if path.is_absolute() else hub_id(spec)
    if identifier is not None:
        with quiet(source, "; check the name and the connection, or give a local path"):
            return _of_dataset(datasets.load_dataset(identifier[0], split=identifier[1] or split))
    if path.is_dir() and len(found := folder_splits(path, ENDINGS)) > 1:
        raise UserError(f"{source} holds the splits {', '.join(found)}: name one, as {path}/train*")
    files = [path] if path.is_file() else matches(spec)
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix.lower() in ENDINGS)
    kinds = {file.suffix.lower() for file in files}
    if len(kinds) > 1:
        raise UserError(f"{source} needs files of one kind; {', '.join(sorted(kinds))} came: narrow the pattern")
    if kinds == {".parquet"}:
        with quiet(source):
            table = parquet(files, cache)
        return _of_dataset(table) if table is not None else ({}, {})
    if not kinds & {".jsonl", ".json", ".csv", ".tsv"}:
        return {"text": ["".join(read_text(file)) for file in files if file.stat().st_size]}, {}
    rows = [row for file in files for row in _rows(file, columns)]
    return {name: [row.get(name) for row in rows] for name in dict.fromkeys(name for row in rows for name in row)}, {}


def _of_dataset(table: Any) -> tuple[dict[str, Any], dict[str, tuple[str, ...]]]:
    names = {name: getattr(feature, "names", None) for name, feature in table.features.items()}
    return (
        {name: table[name] for name in table.column_names},
        {name: tuple(found) for name, found in names.items() if found},
    )


def _rows(file: Path, columns: dict[str, str | int]) -> list[dict[str, Any]]:
    if file.suffix.lower() == ".jsonl":
        return read_jsonl(file)[1]
    if file.suffix.lower() == ".json":
        try:
            rows = json.loads("".join(read_text(file)))
        except ValueError as error:
            raise UserError(f"{file} is not JSON: {error}") from error
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise UserError(f"{file} needs a list of JSON objects, one a sample")
        return rows
    tabs = file.suffix.lower() == ".tsv"
    # As data sets are published: a tab ends a cell, and a quotation mark is a quotation mark.
    form: dict[str, Any] = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if tabs else {}
    return read_csv(file, header=not any(isinstance(place, int) for place in columns.values()), **form)[1]


def _fingerprint(part: _Read, labels: npt.NDArray[np.int64], values: npt.NDArray[np.float32] | None) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for text in (*part.texts, *(part.pairs or ())):
        digest.update(len(text).to_bytes(8, "little") + text.encode("utf-8", "surrogatepass"))
    for numbers in (labels, values):
        digest.update(b"" if numbers is None else np.ascontiguousarray(numbers).data)
    return digest.hexdigest()
