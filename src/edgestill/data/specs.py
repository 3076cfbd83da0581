"""Where a split is: a string of the recipe's to a path, a Hub id or a function, without reading any data.

Strings that name data: a parquet file or glob; a folder (parquet files, class folders, or images without labels);
a Hub id `owner/name` or `owner/name:split`; `file.py:function`.
"""

import glob
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from edgestill.data.hub import hub_split_names
from edgestill.errors import UserError
from edgestill.functions import FUNCTION, load_function
from edgestill.paths import exists

SPLITS = {"train": ("train",), "test": ("test",), "validation": ("validation", "valid", "val", "dev")}
IMAGE_ENDINGS = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"})

_HUB_ID = re.compile(r"(?P<name>[A-Za-z0-9][\w-]*/[A-Za-z0-9][\w.-]*)(:(?P<split>\w+))?")
_FILE_ENDING = re.compile(r"\.[A-Za-z]\w*$")


def resolve(spec: str, base: Path) -> str:
    """The string with its path made absolute against `base`; a Hub id as it is.

    A string is a Hub id when no such path exists, it has the form owner/name without wildcard or file ending, and
    `base` has no folder of the owner's name (there, a mistyped path is likelier). Whether the Hub has it shows later.

    Raises:
        UserError: nothing is there, with what was looked for.

    >>> resolve("uoft-cs/cifar10:train", Path("/home/me"))
    'uoft-cs/cifar10:train'
    """
    function = FUNCTION.fullmatch(spec)
    path = Path(function["file"] if function else spec).expanduser()
    absolute = base.absolute() / path
    if function:
        if not exists(absolute):
            raise UserError(f"data {spec!r} names a function of a file that is not there: {absolute}")
        return f"{absolute}:{function['name']}"
    if exists(absolute):
        return str(absolute)
    if glob.has_magic(str(path)):
        pattern = str(path) if path.is_absolute() else str(Path(glob.escape(str(base.absolute()))) / path)
        if not glob.glob(pattern, recursive=True):
            raise UserError(f"data {spec!r} matches no file; {pattern} was looked for")
        return pattern
    if hub_id(spec) and not exists(base / spec.split("/")[0]):
        return spec
    raise UserError(f"data {spec!r} is not there; {absolute} was looked for")


def hub_id(spec: str) -> tuple[str, str | None] | None:
    """(owner/name, split or None) of a Hub id, or None for another form of string; no path is looked at."""
    parts = _HUB_ID.fullmatch(spec)
    return None if parts is None or _FILE_ENDING.search(parts["name"]) else (parts["name"], parts["split"])


def splits_of(
    data: str | Path | Callable[[], Any], base: Path | None = None, endings: Sequence[str] = (".parquet",)
) -> dict[str, Any]:
    """The splits of the recipe's short form `data: DIR`: split name to what `load_splits` takes.

    Args:
        data: a folder with `train*.parquet`, `test*.parquet` and perhaps `validation*`, `valid*`, `val*` or `dev*`
            (also under `data/`), or with folders of those names; a Hub id; `file.py:function` or a function of no
            arguments that returns `{"train": (images, labels) or (images, labels, class names), "test": …}`.
        base: the folder that relative paths start from; the current one by default.
        endings: of the files that may be splits.

    Raises:
        UserError: nothing is there, or no train or test split in it, with what was found.

    >>> splits_of("../shared/data/cifar10")  # doctest: +SKIP
    {'train': '/…/cifar10/train*.parquet', 'test': '/…/cifar10/test*.parquet'}
    """
    found: dict[str, Any]
    if not callable(data):
        data = resolve(str(data), base or Path.cwd())
    if callable(data) or FUNCTION.fullmatch(data):
        found = called(data)
        if not isinstance(found, dict):
            raise UserError(
                f"data {_name(data)} needs to return a dict of splits such as train and test; "
                f"{type(found).__name__} came"
            )
    elif Path(data).is_dir():
        found = folder_splits(Path(data), endings)
    elif hub_id(data) and not glob.has_magic(data) and not exists(Path(data)):
        found = _hub_splits(data)
    else:
        raise UserError(f"data {data!r} is a single file or pattern: name the splits as data.train and data.test")
    missing = [split for split in ("train", "test") if split not in found]
    if missing:
        raise UserError(
            f"data {_name(data)} has no {' and no '.join(missing)} split; found: "
            f"{', '.join(map(str, found)) or 'none'}; name the splits one by one as data.train and data.test"
        )
    return found


def called(function: str | Callable[[], Any]) -> Any:
    """What the user's function returns. UserError where it raises, with what it raised."""
    loaded = load_function(function) if isinstance(function, str) else function
    try:
        return loaded()
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"data {_name(function)} raised {type(error).__name__}: {error}") from error


def folder_splits(folder: Path, endings: Sequence[str] = (".parquet",)) -> dict[str, str]:
    """The splits that the names of a folder's files (parquet unless told) and subfolders tell, perhaps none."""
    found: dict[str, str] = {}
    for split, names in SPLITS.items():
        for place in (folder, folder / "data"):
            for name in names:
                ending = next((ending for ending in endings if any(place.glob(f"{name}*{ending}"))), None)
                if split not in found and ending is not None:
                    found[split] = str(Path(glob.escape(str(place))) / f"{name}*{ending}")
                elif split not in found and (place / name).is_dir():
                    found[split] = str(place / name)
    return found


def _hub_splits(name: str) -> dict[str, str]:
    if ":" in name:
        raise UserError(f"data {name!r} is one split: name the splits one by one as data.train and data.test")
    available = hub_split_names(name)
    chosen = {split: [known for known in names if known in available] for split, names in SPLITS.items()}
    return {split: f"{name}:{known[0]}" for split, known in chosen.items() if known}


def _name(data: Any) -> str:
    return repr(data) if isinstance(data, str) else getattr(data, "__name__", repr(data))
