"""Splits of images from parquet, folders, the Hub, arrays and functions, with one list of classes and one shape.

Shape suffixes: N samples, H height, W width, C channels.
"""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgestill.data import decode
from edgestill.data.classes import Labels, agree_on_classes
from edgestill.data.encoded import Encoded
from edgestill.data.images import Images, Pixels
from edgestill.data.specs import SPLITS, resolve, splits_of
from edgestill.data.tables import Split, read_split
from edgestill.errors import UserError, closest
from edgestill.paths import cache_folder

__all__ = ["load_splits", "resolve", "splits_of"]


def load_splits(
    data: Mapping[str, object],
    *,
    size: int | None = None,
    workers: int | None = None,
    cache: str | Path | None = None,
    spare: int = 2**30,
    on_error: str = "stop",
    track: decode.Track = lambda items, *_: items,
) -> dict[str, Images]:
    """The named splits ("train", "test", "validation"), all with the same classes and the same shape of image.

    Args:
        data: split name to one of: a string as in `specs`; a function of no arguments; `(images, labels)` or
            `(images, labels, class names)` with uint8 images [N, H, W] or [N, H, W, C] and whole-number labels, None
            or -1 where missing. Tables have the columns `image` or `img` (lists also `file_name`), and
            `label` or `labels` if any.
        size: the shorter side is resized to it and the middle square cut out. None: images keep their one size.
        workers: decoding threads; 0 for none beside the caller's, None for one a core. Pixels and order are the same.
        cache: folder of the decoded memory maps; by default `$EDGESTILL_CACHE`, or ~/.cache/edgestill.
        spare: bytes of the cache's disk to leave free; images that do not fit above it are decoded on demand.
        on_error: what a broken or missing image does: "stop" raises, "skip" leaves it out, as if the data were without
            it; `Images.skipped` names it. The same on every load: it depends on the images and on Pillow alone.
        track: `track(iterable, description, total)` shows progress.

    Grey images stay grey (C = 1) where every split is grey; else C = 3. Classes are those of the training split, by
    name where names are known; labels of the other splits follow the names.

    Raises:
        UserError: what is missing, empty, broken (with its row), of differing size, or out of range (with its row).

    >>> load_splits({"train": "cifar10/train-*.parquet", "test": "cifar10/test-*.parquet"})  # doctest: +SKIP
    """
    for split in data:
        if split not in SPLITS:
            raise UserError(f"a split is one of {', '.join(SPLITS)}; {split!r} came{closest(split, SPLITS)}")
    if size is not None and size < 1:
        raise UserError(f"data.size needs to be at least 1 pixel; {size} came")
    folder = cache_folder(cache)
    threads = len(os.sched_getaffinity(0)) if workers is None and hasattr(os, "sched_getaffinity") else workers
    threads = (os.cpu_count() or 1) if threads is None else threads
    read = {split: read_split(spec, split, folder) for split, spec in data.items()}
    if on_error == "skip":
        read = {
            split: _without_broken(part, workers=threads, cache=folder, track=track) for split, part in read.items()
        }
    for split, part in read.items():
        if not len(part.images):
            none = f": none of its {len(part.skipped)} can be decoded" if part.skipped else " has none"
            raise UserError(f"the {split} split needs images; {part.source}{none}: put some in, or name other files")
    classes, labels = agree_on_classes(read)
    pixels, fingerprints = _pixels(read, labels, size=size, workers=threads, cache=folder, spare=spare, track=track)
    return {
        split: Images(pixels[split], labels[split], classes, fingerprints[split], part.source, part.skipped)
        for split, part in read.items()
    }


def _without_broken(part: Split, *, workers: int, cache: Path, track: decode.Track) -> Split:
    """The split without the images that are missing or cannot be decoded, its labels still row by row."""
    if not isinstance(part.images, Encoded):
        return part
    missing = part.images.missing()
    images, labels = part.images.without(missing), np.delete(part.labels, missing)
    broken = decode.broken_rows(images, images.fingerprint(labels), workers=workers, cache=cache, track=track)
    numbered = [(row, part.images.name(row)) for row in missing]
    numbered += [(images.number(row), images.name(row)) for row in broken]
    skipped = tuple(name for _, name in sorted(numbered))
    return replace(part, images=images.without(broken), labels=np.delete(labels, broken), skipped=skipped)


def _pixels(
    read: dict[str, Split], labels: dict[str, Labels], *, size: int | None,
    workers: int, cache: Path, spare: int, track: decode.Track,
) -> tuple[dict[str, Pixels], dict[str, str]]:  # fmt: skip
    """The pixels of all splits, of one shape (H, W, C), and the fingerprints."""
    fingerprints, headers = {}, {}
    for split, part in read.items():
        if isinstance(part.images, Encoded):
            fingerprints[split] = part.images.fingerprint(labels[split])
            headers[split] = decode.read_headers(
                part.images, fingerprints[split], workers=workers, cache=cache, track=track
            )
        else:
            fingerprints[split] = _array_fingerprint(part.images, labels[split])
            headers[split] = decode.Headers(part.images.shape[3] == 1, (part.images.shape[1:3],))
    channels = 1 if all(header.grey for header in headers.values()) else 3
    height, width = (size, size) if size is not None else _one_shape(headers, read)
    pixels: dict[str, Pixels] = {}
    for split, part in read.items():
        if isinstance(part.images, Encoded):
            pixels[split] = decode.decode(
                part.images, fingerprints[split], shape=(height, width, channels), size=size,
                workers=workers, cache=cache, spare=spare, track=track,
            )  # fmt: skip
        else:
            pixels[split] = decode.fit_array(part.images, channels, size)
    return pixels, fingerprints


def _one_shape(headers: dict[str, decode.Headers], read: dict[str, Split]) -> tuple[int, int]:
    shapes = {shape: read[split].source for split, header in headers.items() for shape in header.shapes}
    if len(shapes) > 1:
        (first, of_first), (second, of_second) = list(shapes.items())[:2]
        raise UserError(
            f"images need one size, or data.size to bring them to: {first[0]}×{first[1]} in {of_first} "
            f"and {second[0]}×{second[1]} in {of_second} came"
        )
    return next(iter(shapes))


def _array_fingerprint(pixels: npt.NDArray[np.uint8], labels: Labels) -> str:
    digest = hashlib.blake2b(str(pixels.shape).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(pixels).data)
    digest.update(np.ascontiguousarray(labels).data)
    return digest.hexdigest()
