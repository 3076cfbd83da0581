"""Which samples a step draws: pure functions of (seed, step). N samples, B batch."""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray


def draw(step: int, pool: NDArray[np.int64], batch_size: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices [B] of a step in uniform order, and the epoch [B] of each: one endless stream of permutations of `pool`,
    cut into batches, so that every sample is drawn equally often."""
    positions = np.arange(step * batch_size, (step + 1) * batch_size)
    epochs, places = np.divmod(positions, len(pool))
    order = np.empty(batch_size, dtype=np.int64)
    for epoch in np.unique(epochs):
        rows = epochs == epoch
        order[rows] = _permutation(len(pool), seed, int(epoch))[places[rows]]
    return pool[order], epochs


def draw_easiest(
    step: int, ranks: NDArray[np.float64], admitted: float, batch_size: int, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices [B] of a step drawn from the samples whose rank is below `admitted`, and the epoch [B] of each: the
    step, so that a sample that is drawn again comes in another view.

    Without repetition inside a batch where enough are admitted.
    """
    pool = np.flatnonzero(ranks < admitted)
    generator = np.random.default_rng([seed, step, 1])
    chosen = generator.choice(pool, batch_size, replace=len(pool) < batch_size)
    return chosen, np.full(batch_size, step, dtype=np.int64)


def ranks_within_class(losses: NDArray[np.floating], classes: NDArray[np.int64]) -> NDArray[np.float64]:
    """Each sample's rank in 0…1 by loss among its class's, the easiest 0: [N], [N] -> [N].

    Ranked within class, so that the easy part of a curriculum has the classes of the whole.
    """
    ranks = np.empty(len(losses), dtype=np.float64)
    for name in np.unique(classes):
        members = np.flatnonzero(classes == name)
        ranks[members[np.argsort(losses[members], kind="stable")]] = np.arange(len(members)) / len(members)
    return ranks


@lru_cache(maxsize=4)
def _permutation(count: int, seed: int, epoch: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, epoch]).permutation(count)
