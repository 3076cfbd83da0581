"""Lists of image files and their labels: a csv with a header, or one JSON object a line."""

import csv
import itertools
import json
from pathlib import Path
from typing import Any

from edgestill.errors import UserError, first_line

ENDINGS = (".csv", ".jsonl")
IMAGE_COLUMNS, LABEL_COLUMNS = ("image", "img", "file_name"), ("label", "labels")

Row = dict[str, Any]


def read_lists(files: list[Path]) -> tuple[list[str | None], list[Any] | None]:
    """The path of each image (None where a row has none), and the labels as they are written, None without a column.

    The columns are `image`, `img` or `file_name`, relative to the list's own folder, and `label` or `labels`.

    Raises:
        UserError: a file that cannot be read, a line that does not fit, no column of images.
    """
    paths: list[str | None] = []
    labels: list[Any] = []
    labelled = False
    for file in files:
        columns, rows = (read_csv if file.suffix.lower() == ".csv" else read_jsonl)(file)
        image = next((name for name in IMAGE_COLUMNS if name in columns), None)
        if image is None:
            came = ", ".join(columns) or "none"
            raise UserError(f"{file} needs a column {', '.join(map(repr, IMAGE_COLUMNS))}; its columns are {came}")
        label = next((name for name in LABEL_COLUMNS if name in columns), None)
        labelled = labelled or label is not None
        for number, row in enumerate(rows):
            path = row.get(image)
            if path is not None and not isinstance(path, str):
                raise UserError(f"{file}: {image!r} needs to be the path of an image file; row {number} has {path!r}")
            paths.append(str(file.parent / path) if path else None)
            labels.append(row.get(label) if label else None)
    return paths, labels if labelled else None


def read_text(file: Path) -> list[str]:
    try:
        with file.open(encoding="utf-8-sig", newline=None) as stream:
            return list(stream)  # lines end where the system says, not at every separator of Unicode
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} cannot be read as UTF-8 text: {first_line(error)}") from error


def read_csv(file: Path, *, header: bool = True, **form: Any) -> tuple[list[str], list[Row]]:
    """Columns and rows of a csv file of some `form`; without a header, columns are called 0, 1, …"""
    csv.field_size_limit(2**31 - 1)  # texts may be long
    reader = csv.reader(read_text(file), strict=True, **form)
    try:
        first = next(reader, [])
        columns = [name.strip() for name in first] if header else [str(place) for place in range(len(first))]
        if twice := [name for name in columns if columns.count(name) > 1]:
            raise UserError(f"{file} needs columns of different names; {twice[0]!r} stands there twice")
        rows = []
        for cells in reader if header else itertools.chain([first], reader):
            if cells and len(cells) != len(columns):
                raise UserError(
                    f"{file}: line {reader.line_num} needs {len(columns)} cells as the header has; {len(cells)} came"
                )
            if cells:
                rows.append(dict(zip(columns, cells, strict=True)))
    except csv.Error as error:
        raise UserError(f"{file} cannot be read as csv: line {reader.line_num}: {error}") from error
    return columns, rows


def read_jsonl(file: Path) -> tuple[list[str], list[Row]]:
    """Columns and rows of a file with one JSON object a line."""
    rows = []
    for number, line in enumerate(read_text(file), start=1):
        try:
            row = json.loads(line) if line.strip() else None
        except (ValueError, RecursionError) as error:
            raise UserError(f"{file}: line {number} is not JSON: {first_line(error)}") from error
        if row is not None and not isinstance(row, dict):
            raise UserError(f"{file}: line {number} needs to be a JSON object; {type(row).__name__} came")
        if row is not None:
            rows.append(row)
    return list(dict.fromkeys(name for row in rows for name in row)), rows
