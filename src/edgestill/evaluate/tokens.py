"""Language models: what is kept are the nats that each block cost. N blocks, B batch, T tokens, V vocabulary."""

from math import log

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from edgestill.evaluate.metric import Metric
from edgestill.tasks.tokens import Blocks


def nats(outputs: NDArray[np.float32], blocks: Blocks, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """`Σ −log softmax(outputs)[next token]` over the tokens that each block learns: [B, T, V] -> [B]."""
    logits = torch.from_numpy(outputs)[..., : blocks.vocabulary]
    targets = torch.from_numpy(blocks.targets(rows))
    losses = functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1, reduction="none")
    return losses.view(targets.shape).double().sum(1).float().numpy()


def bits_per_byte(kept: NDArray[np.float32], blocks: Blocks) -> float:
    """All bits over all bytes of UTF-8: comparable between tokenizers, which perplexity is not."""
    return float(kept.astype(np.float64).sum()) / log(2) / max(int(blocks.bytes.sum()), 1)


def _shares(kept: NDArray[np.float32], blocks: Blocks) -> NDArray[np.float64]:
    """Each block's bits over the bytes of an average block."""
    return kept.astype(np.float64) / log(2) / max(float(blocks.bytes.mean()), 1e-9)


def _each(kept: NDArray[np.float32], blocks: Blocks) -> NDArray[np.float64]:
    return kept.astype(np.float64) / np.maximum(blocks.bytes, 1)


BITS_PER_BYTE = Metric(
    "bits per byte", nats, bits_per_byte, scores=_shares, losses=_each, higher_is_better=False, batch=16
)
