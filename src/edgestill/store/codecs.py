"""How a teacher's logits are kept: what each position's columns are, and back. Shapes: N positions, C classes, K kept.

| codec | columns | what it serves |
|---|---|---|
| dense | all logits in float16 | every loss, at every temperature |
| top-k | the K greatest, and the mass of all others | divergences over the buckets, at the captured temperatures |
| sampled | classes drawn from the teacher's distribution | forward KL without bias, at the captured temperature |

float16 stands in the files as its bits in uint16: DuckDB does not know the type.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgestill.errors import UserError
from edgestill.losses import ON_BUCKETS, Loss, kl
from edgestill.signals import Buckets, Draws

Columns = dict[str, NDArray[Any]]


class Column(NamedTuple):
    """What a position has in a column, or `of_row` a whole row: `width` numbers, or where that is None as many as its
    `distinct` says."""

    name: str
    dtype: Any
    width: int | None = 1
    of_row: bool = False


@dataclass(frozen=True)
class Dense:
    """All logits in float16: 2·C bytes a position."""

    def columns(self, classes: int) -> list[Column]:
        return [Column("logits", np.uint16, classes)]

    def encode(self, logits: Tensor, offsets: NDArray[np.float64]) -> Columns:
        """Logits [N, C] of float32. UserError where one is beyond float16."""
        return {"logits": bits(in_float16(logits, "a logit of"))}

    def decode(self, columns: Columns, classes: int) -> Tensor:
        """Logits [N, C] of float32, from the columns that `encode` made, each in one dimension too: as `Store.read`
        has them.

        >>> Dense().decode(Dense().encode(torch.tensor([[1.5, -2.0]]), np.zeros(1)), 2)
        tensor([[ 1.5000, -2.0000]])
        """
        return floats(columns["logits"]).view(-1, classes)

    def refuses(self, loss: Loss | None, temperature: float, standardize: bool) -> str | None:
        """Why a soft part cannot be served, with the codec that can; None where it can."""
        return None


@dataclass(frozen=True)
class TopK:
    """The `k` most probable classes with their logits, less the greatest, in float16; of all others `log Σ exp(z / T)`
    in float32 for each temperature. (2 or 4)·k + 2·k + 4·temperatures bytes a position."""

    k: int
    temperatures: tuple[float, ...]

    def columns(self, classes: int) -> list[Column]:
        return [
            Column("ids", id_type(classes), self.k),
            Column("logits", np.uint16, self.k),
            Column("tails", np.float32, len(self.temperatures)),
        ]

    def encode(self, logits: Tensor, offsets: NDArray[np.float64]) -> Columns:
        logits = logits - logits.max(-1, keepdim=True).values
        kept, ids = logits.topk(self.k, dim=-1)
        others = logits.scatter(-1, ids, -torch.inf)
        tails = torch.stack([(others / temperature).logsumexp(-1) for temperature in self.temperatures], -1)
        return {
            "ids": ids.cpu().numpy().astype(id_type(logits.shape[-1])),
            "logits": bits(kept.half()),
            "tails": tails.float().cpu().numpy(),
        }

    def decode(self, columns: Columns, classes: int) -> Buckets:
        """The `k` greatest logits [N, K], less the greatest, with their ids, the most probable first, and the others'
        mass at each temperature [N].

        >>> codec = TopK(1, (1.0,))
        >>> codec.decode(codec.encode(torch.tensor([[3.0, 5.0, 3.0]]), np.zeros(1)), 3)
        Buckets(ids=tensor([[1]]), logits=tensor([[0.]]), tails={1.0: tensor([-1.3069])})
        """
        tails = torch.from_numpy(columns["tails"].reshape(-1, len(self.temperatures)))
        return Buckets(
            torch.from_numpy(columns["ids"].astype(np.int64)).view(-1, self.k),
            floats(columns["logits"]).view(-1, self.k),
            dict(zip(self.temperatures, tails.unbind(-1), strict=True)),
        )

    def refuses(self, loss: Loss | None, temperature: float, standardize: bool) -> str | None:
        if loss not in ON_BUCKETS or standardize:
            return "it keeps the greatest logits alone, which serve divergences: take the codec dense"
        if temperature not in self.temperatures:
            return (
                f"it holds the others' mass at temperatures of {', '.join(f'{one:g}' for one in self.temperatures)}, "
                f"not at {temperature:g}: take one of these, or the codec dense"
            )
        return None


@dataclass(frozen=True)
class Sampled:
    """Classes drawn from `softmax(z / T)` by systematic sampling: `draws` points, evenly spaced from an offset that is
    uniform, on the cumulative probabilities. A class of probability p is drawn ⌊draws·p⌋ or ⌈draws·p⌉ times.

    Different ids with their counts, and the entropy: about (3 or 5)·different + 5 bytes a position, a byte more for
    each and for their number from 256 draws on.

    Source: Anshumann et al. 2025, arXiv 2503.16870, with independent draws.
    """

    draws: int
    temperature: float

    def columns(self, classes: int) -> list[Column]:
        count = np.uint8 if self.draws < 256 else np.uint16
        return [
            Column("ids", id_type(classes), None),
            Column("counts", count, None),
            Column("distinct", count),
            Column("entropy", np.float32),
        ]

    def encode(self, logits: Tensor, offsets: NDArray[np.float64]) -> Columns:
        # float64: the rounding of a sum over a whole vocabulary would be a bias
        logarithms = (logits.double() / self.temperature).log_softmax(-1)
        probabilities = logarithms.exp()
        entropy = -(probabilities * logarithms.clamp(min=torch.finfo(torch.float64).min)).sum(-1)
        upto = probabilities.cumsum(-1)
        points = (torch.from_numpy(offsets).to(upto)[:, None] + torch.arange(self.draws).to(upto)) / self.draws
        total = upto[:, -1:]
        below = torch.nextafter(total, torch.zeros_like(total))  # a point at the end would be no class's
        ids = torch.searchsorted(upto, torch.minimum(points * total, below), right=True).cpu().numpy()
        first = np.ones_like(ids, bool)
        first[:, 1:] = ids[:, 1:] != ids[:, :-1]
        places = np.append(np.flatnonzero(first), ids.size)  # each row begins with a first
        count = self.columns(2)[1].dtype
        return {
            "ids": ids[first].astype(id_type(logits.shape[-1])),
            "counts": np.diff(places).astype(count),
            "distinct": first.sum(1).astype(count),
            "entropy": entropy.float().cpu().numpy(),
        }

    def decode(self, columns: Columns, classes: int) -> Draws:
        """The different classes that were drawn [N, K], K those of the position with most, with their shares of the
        draws; the others of a position have the id 0 and a share of 0. The entropy is [N].

        >>> codec = Sampled(4, 1.0)
        >>> codec.decode(codec.encode(torch.tensor([[0.25, 0.75]]).log(), np.full(1, 0.5)), 2)
        Draws(ids=tensor([[0, 1]]), shares=tensor([[0.2500, 0.7500]]), entropy=tensor([0.5623]), temperature=1.0)
        """
        distinct = columns["distinct"].reshape(-1).astype(np.int64)
        there = np.arange(distinct.max(initial=1)) < distinct[:, None]
        ids, shares = np.zeros(there.shape, np.int64), np.zeros(there.shape, np.float32)
        ids[there], shares[there] = columns["ids"], columns["counts"] / np.float32(self.draws)
        entropy = torch.from_numpy(columns["entropy"].reshape(-1))
        return Draws(torch.from_numpy(ids), torch.from_numpy(shares), entropy, self.temperature)

    def refuses(self, loss: Loss | None, temperature: float, standardize: bool) -> str | None:
        if loss is not kl or standardize:
            other = "top-k or dense" if loss in ON_BUCKETS and not standardize else "dense"
            return f"it holds classes drawn for forward KL, the loss kl: take the codec {other}"
        if temperature != self.temperature:
            return (
                f"its classes were drawn at a temperature of {self.temperature:g}, not {temperature:g}: take that, or "
                "the codec dense"
            )
        return None


Codec = Dense | TopK | Sampled
CODECS: dict[str, type[Codec]] = {"dense": Dense, "top-k": TopK, "sampled": Sampled}


def described(codec: Codec) -> dict[str, Any]:
    """A codec as store.json has it."""
    name = next(name for name, kind in CODECS.items() if isinstance(codec, kind))
    values = {key: [*value] if isinstance(value, tuple) else value for key, value in vars(codec).items()}
    return {"name": name, **values}


def read_codec(said: Mapping[str, Any]) -> Codec:
    """The codec that store.json describes."""
    values: Any = {key: tuple(one) if isinstance(one, list) else one for key, one in said.items() if key != "name"}
    return CODECS[said["name"]](**values)


def id_type(classes: int) -> Any:
    return np.uint16 if classes <= 2**16 else np.uint32


def in_float16(values: Tensor, what: str) -> Tensor:
    """UserError where a finite number is beyond it."""
    kept = values.half()
    if bool((kept.isinf() & ~values.isinf()).any()):
        largest = float(values[values.isfinite()].abs().max())
        raise UserError(f"the teacher has {what} {largest:.4g}; float16, in which it would be kept, ends at 65504")
    return kept


def bits(values: Tensor) -> NDArray[np.uint16]:
    """float16 as its bits."""
    return values.cpu().numpy().view(np.uint16)


def floats(column: NDArray[np.uint16]) -> Tensor:
    """float32 of the bits of float16."""
    return torch.from_numpy(column).view(torch.float16).float()  # numpy's own conversion takes ten times as long
