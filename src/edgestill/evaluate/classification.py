"""Classes and numbers: what is kept are the outputs themselves. N samples, K classes."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgestill.evaluate.metric import Metric
from edgestill.tasks.samples import Samples


def accuracy(rows: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """Share of the labelled rows [N, K] whose largest entry is the label [N]; NaN without any."""
    labelled = labels >= 0
    return float((rows[labelled].argmax(1) == labels[labelled]).mean()) if labelled.any() else float("nan")


def _kept(outputs: NDArray[np.float32], _samples: Samples, _rows: NDArray[np.int64]) -> NDArray[np.float32]:
    return outputs


def _right(rows: NDArray[np.float32], samples: Samples) -> NDArray[np.float64]:
    right = (rows.argmax(1) == samples.labels).astype(np.float64)
    return np.where(samples.labels >= 0, right, np.nan)


def _cross_entropies(rows: NDArray[np.float32], samples: Samples) -> NDArray[np.float64]:
    """Of an unlabelled sample, that of the class which the rows name."""
    shifted = rows.astype(np.float64) - rows.max(1, keepdims=True)
    losses = np.log(np.exp(shifted).sum(1, keepdims=True)) - shifted
    classes = np.where(samples.labels >= 0, samples.labels, rows.argmax(1))
    chosen: NDArray[np.float64] = np.take_along_axis(losses, classes[:, None], 1)[:, 0]
    return chosen


def correlation(rows: NDArray[np.float32], values: NDArray[np.float32]) -> float:
    """Pearson's, of outputs [N, 1] and known numbers [N] (NaN where unknown); 0 for outputs that are all the same."""
    known = ~np.isnan(values)
    found, true = rows[known, 0].astype(np.float64), values[known].astype(np.float64)
    found, true = found - found.mean(), true - true.mean()
    spread = float(np.sqrt((found**2).sum() * (true**2).sum()))
    return float((found * true).sum()) / spread if spread else 0.0


def _squares(rows: NDArray[np.float32], samples: Any) -> NDArray[np.float64]:
    squares: NDArray[np.float64] = np.nan_to_num((rows[:, 0].astype(np.float64) - samples.texts.values) ** 2)
    return squares


ACCURACY = Metric(
    "accuracy", _kept, lambda rows, samples: accuracy(rows, samples.labels), scores=_right, losses=_cross_entropies
)
CORRELATION = Metric(
    "correlation", _kept, lambda rows, samples: correlation(rows, samples.texts.values), scores=None, losses=_squares
)
