"""One split of labelled images.

Shape suffixes: N samples, B batch, H height, W width, C channels.
"""

from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]


class Pixels(Protocol):
    """uint8 [N, H, W, C]: an array, a memory map, or images decoded on demand; C is 1 or 3.

    `pixels[rows]` takes an array of row numbers or a slice and gives uint8 [B, H, W, C] in that order.
    """

    @property
    def shape(self) -> tuple[int, ...]: ...
    def __len__(self) -> int: ...
    def __getitem__(self, rows: Any, /) -> Any: ...


@dataclass(frozen=True, eq=False)
class Images:
    """One split, its samples all of one shape.

    Attributes:
        pixels: uint8 [N, H, W, C].
        labels: int64 [N], the class of each sample; -1 where the label is missing.
        classes: the names of the classes, by label.
        fingerprint: hex of the content (encoded bytes and labels), whatever the paths, the shards or the workers.
        source: what the user named, for messages.
        skipped: the images that were left out because they are broken, each as `row 17 of …`.
    """

    pixels: Pixels
    labels: Indices
    classes: tuple[str, ...]
    fingerprint: str
    source: str
    skipped: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def at(self, rows: Indices, fingerprint: str) -> "Images":
        base = self.pixels if isinstance(self.pixels, Selected) else Selected(self.pixels, np.arange(len(self)))
        pixels = Selected(base.pixels, base.rows[rows])
        return replace(self, pixels=pixels, labels=self.labels[rows], fingerprint=fingerprint)

    def with_labels(self, labels: Indices, fingerprint: str) -> "Images":
        return replace(self, labels=labels, fingerprint=fingerprint)


@dataclass(frozen=True, eq=False)
class Selected:
    """Some rows of other pixels, in a given order, without a copy."""

    pixels: Pixels
    rows: Indices

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.rows), *self.pixels.shape[1:])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: Any, /) -> Any:
        return self.pixels[self.rows[rows]]


def spaced(total: int, count: int) -> Indices:
    """`count` of `total` rows, evenly spaced; all of them where there are fewer.

    >>> spaced(10, 4).tolist()
    [0, 3, 6, 9]
    """
    return np.linspace(0, total - 1, min(count, total)).astype(np.int64)
