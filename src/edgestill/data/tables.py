"""One split as it is written: parquet, a folder, a Hub data set or arrays, to encoded images and labels.

Shape suffixes: N samples, H height, W width, C channels.
"""

import glob
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgestill.data.classes import Labels, numbered
from edgestill.data.encoded import Encoded
from edgestill.data.hub import one_line, quiet
from edgestill.data.listings import ENDINGS, IMAGE_COLUMNS, LABEL_COLUMNS, read_lists
from edgestill.data.specs import IMAGE_ENDINGS, called, folder_splits, hub_id, resolve
from edgestill.errors import UserError, first_line
from edgestill.functions import FUNCTION


@dataclass(frozen=True, eq=False)
class Split:
    """One split as read: its images, its labels as written (-1 missing) and the names of its classes, if it has any."""

    images: Encoded | npt.NDArray[np.uint8]
    labels: Labels
    names: tuple[str, ...] | None
    source: str
    skipped: tuple[str, ...] = ()

    def number(self, row: int) -> int:
        """The row as the user counts them, those left out included."""
        return self.images.number(row) if isinstance(self.images, Encoded) else row


def read_split(spec: object, split: str, cache: Path) -> Split:
    source = str(spec) if isinstance(spec, str | Path) else f"the {split} split"
    if isinstance(spec, str | Path):
        spec = resolve(str(spec), Path.cwd())
        if not FUNCTION.fullmatch(spec):
            return _read_files(spec, split, source, cache)
        spec = called(spec)
    elif callable(spec):
        source = getattr(spec, "__name__", source)
        spec = called(spec)
    if not isinstance(spec, tuple | list) or len(spec) not in (2, 3):
        raise UserError(
            f"{source}: a split needs to be (images, labels) or (images, labels, class names), a path, a Hub id or a "
            f"function; {type(spec).__name__} came"
        )
    return _from_arrays(*spec, source=source)


def _read_files(spec: str, split: str, source: str, cache: Path) -> Split:
    import datasets

    path = Path(spec)
    identifier = None if path.is_absolute() else hub_id(spec)
    if identifier is not None:
        with quiet(source, "; check the name and the connection, or give a local path"):
            table = datasets.load_dataset(identifier[0], split=identifier[1] or split)
    elif path.is_dir() and not any(path.glob("*.parquet")):
        if folder_splits(path):
            raise UserError(f"{source} holds the splits {', '.join(folder_splits(path))}: name one of its folders")
        with quiet(source):
            table = _image_folder(path, source)
    else:
        if path.is_dir() and len(folder_splits(path)) > 1:
            raise UserError(
                f"{source} holds the splits {', '.join(folder_splits(path))}: name one, as {path}/train*.parquet"
            )
        files = sorted(path.glob("*.parquet")) if path.is_dir() else [path] if path.exists() else matches(spec)
        lists = [file for file in files if file.suffix.lower() in ENDINGS]
        if lists and len(lists) < len(files):
            raise UserError(f"{source} needs files of one kind; {files[0].name} and others came: narrow the pattern")
        if lists:
            return _from_lists(files, source)
        with quiet(source):
            table = parquet(files, cache)
    if table is None:
        return Split(Encoded([], source), np.zeros(0, np.int64), None, source)
    return _from_table(table, source)


def matches(pattern: str) -> list[Path]:
    return sorted(Path(match) for match in glob.glob(pattern, recursive=True))


def parquet(files: list[Path], cache: Path) -> Any:
    """All rows of the shards in the order of their names, or None where they have no rows."""
    import datasets
    from pyarrow import parquet as pyarrow_parquet

    filled = []
    for file in files:
        try:
            metadata = pyarrow_parquet.read_metadata(file)
            columns = metadata.schema.to_arrow_schema().names
        except (OSError, ValueError) as error:
            raise UserError(f"{file} cannot be read as parquet: {one_line(error)}; copy it anew") from error
        if twice := [name for name in columns if columns.count(name) > 1]:
            raise UserError(f"{file} needs columns of different names; {twice[0]!r} stands there twice")
        if metadata.num_rows:  # the library fails on a shard without rows
            filled.append(glob.escape(str(file)))
    if not filled:
        return None
    # Not load_dataset("parquet"), which reports every use to a server.
    return datasets.Dataset.from_parquet(filled, cache_dir=str(cache / "tables"))


def _image_folder(folder: Path, source: str) -> Any:
    """Images in class folders, at any depth; or right in the folder, without labels. Other files are passed over."""
    import datasets

    def images(place: Path, pattern: str) -> list[str]:
        found = (path for path in place.glob(pattern) if path.suffix.lower() in IMAGE_ENDINGS)
        kept = (path for path in found if path.is_file() or not path.exists())  # a link into the void is a lost image
        return sorted(str(path) for path in kept if not any(p[0] == "." for p in path.relative_to(place).parts))

    by_class = {
        path.name: images(path, "**/*") for path in sorted(folder.iterdir()) if path.is_dir() and path.name[0] != "."
    }
    by_class = {name: files for name, files in by_class.items() if files}
    files = [file for found in by_class.values() for file in found] or images(folder, "*")
    if not files:
        return None
    columns: dict[str, Any] = {"image": [{"bytes": None, "path": file} for file in files]}
    features: dict[str, Any] = {"image": datasets.Image()}
    if by_class:
        columns["label"] = [label for label, found in enumerate(by_class.values()) for _ in found]
        features["label"] = datasets.ClassLabel(names=list(by_class))
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def _from_table(table: Any, source: str) -> Split:
    image = next((name for name in IMAGE_COLUMNS if name in table.column_names), None)
    if image is None:
        raise UserError(f"{source} needs a column 'image' or 'img'; its columns are {', '.join(table.column_names)}")
    column = table.data.column(image)
    if not {"bytes", "path"} <= {field.name for field in getattr(column.type, "fields", [])}:
        raise UserError(f"{source}: column {image!r} needs images as {{bytes, path}}; it has {column.type}")
    images = Encoded(column.chunks, source)
    label = next((name for name in LABEL_COLUMNS if name in table.column_names), None)
    if label is None:
        return Split(images, np.full(len(table), -1), None, source)
    values, names = table.data.column(label), getattr(table.features[label], "names", None)
    if str(values.type) in ("string", "large_string"):
        return Split(images, *numbered(values.to_pylist(), None, source), source)
    if not re.fullmatch(r"u?int\d+|null", str(values.type)):
        raise UserError(f"{source}: column {label!r} needs whole numbers or class names; it has {values.type}")
    try:
        labels = values.cast("int64").fill_null(-1).to_numpy()
    except ValueError as error:  # pyarrow's, of a number beyond 64 bits
        raise UserError(f"{source}: column {label!r} has no class numbers: {first_line(error)}") from error
    return Split(images, np.asarray(labels, np.int64), tuple(names) if names else None, source)


def _from_lists(files: list[Path], source: str) -> Split:
    import pyarrow as pa

    paths, labels = read_lists(files)
    images = pa.StructArray.from_arrays(
        [pa.nulls(len(paths), pa.binary()), pa.array(paths, pa.string())], names=["bytes", "path"]
    )
    return Split(Encoded([images], source), *numbered(labels or [None] * len(paths), None, source), source)


def _from_arrays(images: Any, labels: Any, names: Any = None, *, source: str) -> Split:
    try:
        pixels = np.asarray(images)
        listed = [None] * len(pixels) if labels is None else list(labels)
        classes = None if names is None else tuple(map(str, names))
    except (ValueError, TypeError) as error:  # ragged images, labels or names that are no sequence
        raise UserError(
            f"{source}: needs an array of images, a list of labels and perhaps one of names: {first_line(error)}"
        ) from error
    if pixels.dtype != np.uint8 or pixels.ndim not in (3, 4) or (pixels.ndim == 4 and pixels.shape[3] not in (1, 3)):
        raise UserError(
            f"{source}: images need to be uint8 in 0…255, [N, H, W] or [N, H, W, C] with 1 or 3 channels; "
            f"{pixels.dtype} {list(pixels.shape)} came"
        )
    pixels = pixels if pixels.ndim == 4 else pixels[..., None]
    if len(listed) != len(pixels):
        raise UserError(f"{source}: {len(pixels)} images need as many labels; {len(listed)} came")
    return Split(pixels, *numbered(listed, classes, source), source)
