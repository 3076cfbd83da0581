"""Encoded images to pixels: decoded once into a memory map, or on demand by workers, with the same pixels.

Shape suffixes: N samples, B batch, H height, W width, C channels.
"""

import errno
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import PIL
from PIL import Image

from edgestill.data.encoded import Encoded, broken, each
from edgestill.data.images import Pixels
from edgestill.data.pictures import orientation, to_pixels

Track = Callable[[Iterable[Any], str, int], Iterable[Any]]

_GREY = frozenset({"1", "L", "LA", "La", "I;16", "I;16L", "I;16B", "I;16N"})
_WINDOW = 2048


@dataclass(frozen=True)
class Headers:
    """What the files of a split say before they are decoded: whether all are grey, and up to 3 (height, width)."""

    grey: bool
    shapes: tuple[tuple[int, int], ...]


@dataclass(frozen=True, eq=False)
class OnDemand:
    """uint8 [N, H, W, C], every image decoded when it is asked for."""

    encoded: Encoded
    shape: tuple[int, ...]
    size: int | None
    workers: int

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any, /) -> Any:
        chosen = np.arange(len(self))[rows]
        decoded = each(self.encoded, chosen, self.workers, lambda image: to_pixels(image, self.shape[3], self.size))
        return np.stack(decoded) if decoded else np.zeros((0, *self.shape[1:]), np.uint8)


def read_headers(encoded: Encoded, fingerprint: str, *, workers: int, cache: Path, track: Track) -> Headers:
    """Modes and shapes of all images, from their headers; remembered in the cache under the fingerprint."""
    path = cache / "headers" / f"{fingerprint}.json"
    try:
        saved = json.loads(path.read_text())
        shapes = tuple((int(height), int(width)) for height, width in saved["shapes"])
        grey = bool(saved["grey"])
    except (OSError, ValueError, KeyError, TypeError):
        windows = track(_windows(len(encoded)), f"reading {encoded.source}", len(_windows(len(encoded))))
        found = set(chain.from_iterable(each(encoded, window, workers, _header) for window in windows))
        grey = all(is_grey for is_grey, _ in found)
        shapes = tuple(sorted({shape for _, shape in found})[:3])
        text = json.dumps({"grey": grey, "shapes": shapes}).encode()
        _write(path, lambda file: file.write(text))
    return Headers(grey, shapes)


def broken_rows(encoded: Encoded, fingerprint: str, *, workers: int, cache: Path, track: Track) -> list[int]:
    """The rows whose image cannot be decoded, found by decoding all; remembered in the cache under the fingerprint."""
    path = cache / "broken" / f"{fingerprint}-pillow{PIL.__version__}.json"
    try:
        return [int(row) for row in json.loads(path.read_text())]
    except (OSError, ValueError, TypeError):
        windows = track(_windows(len(encoded)), f"checking {encoded.source}", len(_windows(len(encoded))))
        rows = [row for window in windows for row in broken(encoded, window, workers, _decode_whole)]
    text = json.dumps(rows).encode()
    _write(path, lambda file: file.write(text))
    return rows


def decode(
    encoded: Encoded, fingerprint: str, *, shape: tuple[int, int, int], size: int | None,
    workers: int, cache: Path, spare: int, track: Track,
) -> Pixels:  # fmt: skip
    """The pixels of a split, from the cache's memory map, made first where it fits; else decoded on demand.

    Args:
        shape: (H, W, C) of every image, after `size`.
        size: None, or the side that images are resized and cropped to.
        spare: bytes of the cache's disk that stay free.

    The map is written beside its place and moved there when complete: a killed process leaves nothing that looks
    finished, and two processes do no harm to each other.
    """
    whole = (len(encoded), *shape)
    # Readers change between Pillow releases: other pixels must not pass for these.
    kind = f"{'x'.join(map(str, shape))}{'-resized' if size else ''}-pillow{PIL.__version__}"
    path = cache / "pixels" / f"{fingerprint}-{kind}.npy"
    mapped = _mapped(path)
    if mapped is not None:
        return mapped
    on_demand = OnDemand(encoded, whole, size, workers)
    if not _make_folder(path.parent) or int(np.prod(whole)) + spare > shutil.disk_usage(path.parent).free:
        return on_demand

    def write(file: IO[bytes]) -> None:
        header = {"descr": "|u1", "fortran_order": False, "shape": whole}
        np.lib.format.write_array_header_1_0(file, header)
        windows = _windows(len(encoded))
        for window in track(windows, f"decoding {encoded.source}", len(windows)):
            file.write(on_demand[window].data)

    written = _write(path, write)
    mapped = _mapped(path) if written else None
    return on_demand if mapped is None else mapped


def fit_array(pixels: npt.NDArray[np.uint8], channels: int, size: int | None) -> npt.NDArray[np.uint8]:
    """Arrays [N, H, W, 1 or 3] as [N, H, W, C], brought to `size` as images are."""
    if size is not None and pixels.shape[1:3] != (size, size):
        images = (Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image) for image in pixels)
        return np.stack([to_pixels(image, channels, size) for image in images])
    return pixels if pixels.shape[3] == channels else np.repeat(pixels, channels, axis=3)


def _header(image: Image.Image) -> tuple[bool, tuple[int, int]]:
    if image.mode in ("I", "F"):
        raise ValueError(f"its mode is {image.mode}, and 8-bit or 16-bit images are read")
    width, height = image.size
    return image.mode in _GREY, (width, height) if orientation(image) >= 5 else (height, width)


def _decode_whole(image: Image.Image) -> None:
    _header(image)
    to_pixels(image, 3, None)


def _windows(count: int) -> list[npt.NDArray[np.int64]]:
    return [np.arange(start, min(start + _WINDOW, count)) for start in range(0, count, _WINDOW)]


def _mapped(path: Path) -> npt.NDArray[np.uint8] | None:
    try:
        mapped: npt.NDArray[np.uint8] = np.load(path, mmap_mode="r")
    except (OSError, ValueError):
        return None
    return mapped


def _make_folder(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)


def _write(path: Path, write: Callable[[IO[bytes]], Any]) -> bool:
    """Writes a whole file or none. False where the cache cannot be written or is full: it is only a cache."""
    if not _make_folder(path.parent):
        return False
    for leftover in path.parent.glob("*.partial"):
        if _abandoned(leftover):
            leftover.unlink(missing_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        # Also where a process on another machine, which cannot see this one, took the file for a leftover (ENOENT).
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.ENOENT):
            raise
        return False
    finally:
        partial.unlink(missing_ok=True)
    return True


def _abandoned(partial: Path) -> bool:
    """Whether the writer of a partial file was killed: its process is gone, or it has been silent for an hour."""
    try:
        if os.name == "posix":
            os.kill(int(partial.name.split(".")[-2]), 0)
        return time.time() - partial.stat().st_mtime > 3600
    except (ProcessLookupError, ValueError):
        return True
    except OSError:
        return False
