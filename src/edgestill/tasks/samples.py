"""What the loop and the metrics know of a batch and of a split, whatever the task.

Shapes: N samples, B batch, T tokens.
"""

from typing import Any, NamedTuple, Protocol, Self

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, device

from edgestill.data.splitting import Samples as Split


class Counts(NamedTuple):
    """What the parts of a loss are divided by: labelled positions, all positions, valid tokens, and samples."""

    labelled: int
    positions: int
    tokens: int
    samples: int


class Batch(Protocol):
    """The views of some samples. A position is what has an answer: a sample, or of a language model, a token."""

    @property
    def indices(self) -> NDArray[np.int64]:
        """Of the samples [B]."""

    @property
    def views(self) -> NDArray[np.int64]:
        """Which view of each sample it is: its epoch [B], 0 where a sample has but one."""

    @property
    def labels(self) -> Tensor:
        """Of the positions; see `Objective`."""

    @property
    def mask(self) -> Tensor | None: ...

    def counts(self, expected: Any) -> Counts:
        """As a model sees the batch."""

    def pieces(self, number: int) -> list[Self]:
        """The batch in `number` nearly equal pieces, fewer where it has fewer samples."""

    def inputs(self, expected: Any, where: device) -> Any:
        """As a model takes them."""

    def answers(self, outputs: Tensor) -> Tensor:
        """A model's outputs, position by position, as the labels are."""

    def valid(self, expected: Any, where: device) -> Tensor | None:
        """Which tokens [B, T] are no padding; None where samples have none."""


class Asked(Protocol):
    """What a model is asked about, one by one."""

    def __len__(self) -> int: ...

    def inputs(self, indices: NDArray[np.int64], expected: Any) -> NDArray[Any]:
        """The chosen samples, without augmentation, as an artifact takes them."""

    def sizes(self, expected: Any) -> NDArray[np.int64]:
        """How long each sample is for a model [N]; all 0 where they are of one shape."""


class Samples(Split, Protocol):
    """A split as a task sees it."""

    def batch(
        self, indices: NDArray[np.int64], epochs: NDArray[np.int64], seed: int, partners: NDArray[np.int64] | None
    ) -> Batch:
        """The views of `indices` [B] in `epochs` [B]: a pure function of (seed, epoch, index) row by row."""

    @property
    def positions(self) -> NDArray[np.int64]:
        """How many answers each sample has [N]."""

    @property
    def asked(self) -> Asked:
        """The samples themselves, or, of samples of two texts that are embedded apart, each different text once."""
