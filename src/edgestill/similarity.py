"""How alike two taps are on the same samples: what the layer map `auto` is chosen by.

Shapes: N samples, D features, B batch, C channels, H W, T tokens; S student taps, M teacher taps.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from edgestill.errors import UserError
from edgestill.losses.reduce import channels_first
from edgestill.taps import record

CELLS = 4  # a map's side, and the root of a sequence's length, after pooling


def tap_features(
    module: nn.Module, inputs: Iterable[Tensor | Mapping[str, Tensor]], paths: Sequence[str]
) -> dict[str, NDArray[np.float32]]:
    """What `module` puts out at each of `paths`, as features [N, D], over all batches of `inputs`.

    [B, D] stays. Maps [B, C, H, W] or [B, H, W, C] are averaged down to at most 4×4 positions and sequences
    [B, T, D] to at most 16 stretches, then flattened, so that what is kept does not grow with the resolution; of texts,
    whose inputs come by name, the valid tokens of [B, T, D] are averaged. The
    module runs in evaluation mode without gradients, on the device of its parameters; each of its modules is back in
    its own mode afterwards.
    Raises UserError for a path that the module does not have and for taps of other shapes.

    >>> features = tap_features(nn.Sequential(nn.Conv2d(3, 5, 1)), [torch.zeros(2, 3, 8, 8)] * 3, ["0"])
    >>> features["0"].shape
    (6, 80)
    """
    gathered: dict[str, list[Tensor]] = {path: [] for path in paths}
    device = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
    training = [part for part in module.modules() if part.training]
    try:
        module.eval()
        with torch.no_grad(), record(module, gathered) as taps:
            for batch in inputs:
                if isinstance(batch, Tensor):
                    module(batch.to(device))
                else:
                    module(**{name: value.to(device) for name, value in batch.items()})
                mask = None if isinstance(batch, Tensor) else batch.get("attention_mask")
                for path, rows in gathered.items():
                    rows.append(_flat(path, taps[path].float(), mask).cpu())
    finally:
        for part in training:
            part.training = True
    return {path: torch.cat(rows).numpy() for path, rows in gathered.items()}


def _flat(path: str, tap: Tensor, mask: Tensor | None = None) -> Tensor:
    if mask is not None and tap.ndim == 3:
        valid = mask.to(tap.device)[..., None]
        return (tap * valid).sum(1) / valid.sum(1)
    if "@" not in path:
        tap = channels_first(tap)
    if tap.ndim == 4:
        tap = functional.adaptive_avg_pool2d(tap, (min(CELLS, tap.shape[2]), min(CELLS, tap.shape[3])))
    elif tap.ndim == 3:
        tap = functional.adaptive_avg_pool1d(tap.transpose(1, 2), min(CELLS**2, tap.shape[1]))
    elif tap.ndim != 2:
        raise UserError(
            f"map: auto needs taps of shape [B, D], [B, T, D] or [B, C, H, W]; {path!r} puts out {[*tap.shape]}: "
            "leave it out, or use `map: depth`"
        )
    return tap.flatten(1)


def linear_cka(x: NDArray[np.floating], y: NDArray[np.floating]) -> float:
    """Linear CKA of features x [N, D] and y [N, D'] of the same N samples, without the bias of few samples.

    CKA = HSIC(K, L) / √(HSIC(K, K)·HSIC(L, L)), K = xxᵀ, L = yyᵀ: Kornblith et al. 2019 (arXiv 1905.00414). HSIC is the
    unbiased estimator HSIC₁ of Song et al. 2012 (Feature Selection via Dependence Maximization), as in Nguyen et al.
    2021 (arXiv 2010.15327): with the plain one, unrelated features of D ≫ N count as alike. 1 at equality, around 0
    (also below) for unrelated features; unchanged by rotation and scaling of either; 0 where one is constant. In
    float64.
    Raises UserError for fewer than 4 samples, two counts of samples, and features that are not finite.

    >>> x = np.random.default_rng(0).normal(size=(8, 3))
    >>> round(linear_cka(x, 2 * x), 6)
    1.0
    """
    return float(similarity({"x": x}, {"y": y})[0, 0])


def similarity(
    student: Mapping[str, NDArray[np.floating]], teacher: Mapping[str, NDArray[np.floating]]
) -> NDArray[np.float64]:
    """`linear_cka` of every student tap with every teacher tap: [S, M], rows and columns in the order of the dicts.

    Each side is features [N, D] by tap, as from `tap_features`; all of the same N samples, a few hundred: it takes
    (S + M)·N² numbers of 8 bytes. Errors are `linear_cka`'s.

    >>> x, y = np.random.default_rng(0).normal(size=(2, 8, 3))
    >>> similarity({"a": x}, {"1": y, "2": x}).round(6)[0, 1]
    np.float64(1.0)
    """
    if not student or not teacher:
        raise UserError(f"similarity needs taps on both sides; {len(student)} and {len(teacher)} came")
    counts = {len(features) for features in (*student.values(), *teacher.values())}
    if len(counts) > 1:
        raise UserError(f"features of the same samples are needed; {' and '.join(map(str, sorted(counts)))} came")
    left = np.stack([_gram(tap, features) for tap, features in student.items()])
    right = np.stack([_gram(tap, features) for tap, features in teacher.items()])
    return left @ right.T


def _gram(tap: str, features: NDArray[np.floating]) -> NDArray[np.float64]:
    """xxᵀ without its diagonal, with all row sums 0 (Székely & Rizzo 2014, "U-centred"), as one row of length 1:
    the product of two such rows is the unbiased CKA."""
    count = len(features)
    if count < 4:
        raise UserError(f"similarity needs at least 4 samples; {count} came")
    if not np.isfinite(features).all():
        raise UserError(f"similarity needs finite features; tap {tap!r} put out inf or nan")
    x = features.astype(np.float64)
    x -= x[0]  # exactly 0 where a feature is constant
    x -= x.mean(axis=0)
    gram = x @ x.T
    np.fill_diagonal(gram, 0.0)
    sums = gram.sum(axis=0)
    gram -= (sums[:, None] + sums[None, :]) / (count - 2) - sums.sum() / ((count - 1) * (count - 2))
    np.fill_diagonal(gram, 0.0)
    length = np.linalg.norm(gram)
    return np.asarray((gram / length if length else gram).ravel())
