"""Embeddings: what is kept is how alike the two texts of each pair are. N pairs, M different texts, D width."""

import numpy as np
from numpy.typing import NDArray

from edgestill.evaluate.classification import correlation
from edgestill.evaluate.metric import Metric
from edgestill.tasks.embeddings import Embeddings

PLACES = 6
"""Decimals of a cosine that count: what differs by less is float32's rounding, and no order."""


def cosines(embeddings: NDArray[np.float32], samples: Embeddings) -> NDArray[np.float32]:
    """The cosine of the two texts of each pair [N], from the embeddings [M, D] of the texts that were asked."""
    units = embeddings / np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), 1e-12)
    first, second = samples.places.T
    found: NDArray[np.float32] = np.einsum("nd,nd->n", units[first], units[second]).astype(np.float32)
    return found


def rank_correlation(found: NDArray[np.float32], values: NDArray[np.float32]) -> float:
    """Spearman's, of cosines [N] and known numbers [N] (NaN where unknown): Pearson's of their ranks, where what is
    equal shares the mean rank. 0 for cosines that are all the same."""
    from scipy.stats import rankdata

    known = ~np.isnan(values)
    ranks = rankdata(np.round(found[known].astype(np.float64), PLACES))
    return correlation(ranks[:, None], rankdata(values[known]))


def _kept(outputs: NDArray[np.float32], _samples: Embeddings, _rows: NDArray[np.int64]) -> NDArray[np.float32]:
    return outputs


def _squares(found: NDArray[np.float32], samples: Embeddings) -> NDArray[np.float64]:
    squares: NDArray[np.float64] = np.nan_to_num((found.astype(np.float64) - samples.cosines) ** 2)
    return squares


def _quality(found: NDArray[np.float32], samples: Embeddings) -> float:
    assert samples.texts.values is not None
    return rank_correlation(found, samples.texts.values)


RANK_CORRELATION = Metric("rank correlation", _kept, _quality, scores=None, losses=_squares, joined=cosines)
