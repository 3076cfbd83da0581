"""What a store keeps of a teacher's taps: vectors, or whole features in 8 bits. B batch, C channels, D width."""

from dataclasses import dataclass
from math import prod
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from edgestill.losses.reduce import channels_first, pooled
from edgestill.store.codecs import Column, Columns, bits, floats, in_float16


@dataclass(frozen=True)
class Tap:
    """One tap of every sample.

    Attributes:
        keep: `pooled`, its mean over positions in float16: 2·C bytes; or `int8`, all of it in 8 bits, each channel of
            each sample scaled by its largest number: as many bytes as numbers, and 4·C.
        shape: of one sample, [C, H, W], [T, D] or [D].
    """

    path: str
    keep: Literal["pooled", "int8"]
    shape: tuple[int, ...]

    @property
    def _channel(self) -> int:
        """Which dimension of [B, …] is the channels'."""
        if len(self.shape) != 3:
            return len(self.shape)
        ordered = channels_first(torch.empty(1, *self.shape, device="meta")).shape[1:]
        return 1 if ordered == self.shape else 3

    def columns(self) -> list[Column]:
        channels = self.shape[self._channel - 1]
        if self.keep == "pooled":
            return [Column(f"pooled {self.path}", np.uint16, channels, of_row=True)]
        whole = Column(f"int8 {self.path}", np.int8, prod(self.shape), of_row=True)
        return [whole, Column(f"scale {self.path}", np.float32, channels, of_row=True)]

    @property
    def bytes(self) -> int:
        """Of a sample's view."""
        return sum(np.dtype(column.dtype).itemsize * (column.width or 1) for column in self.columns())

    def encode(self, features: Tensor) -> Columns:
        """Features [B, …] of float32."""
        names = [column.name for column in self.columns()]
        if self.keep == "pooled":
            return {names[0]: bits(in_float16(pooled(channels_first(features)), f"a mean of its tap {self.path} of"))}
        across = [dim for dim in range(1, features.dim()) if dim != self._channel]
        largest = features.abs().amax(across, keepdim=True) if across else features.abs()
        scale = (largest / 127).clamp(min=torch.finfo(torch.float32).tiny)
        whole = (features / scale).round().clamp(-127, 127).to(torch.int8)
        return {names[0]: whole.flatten(1).cpu().numpy(), names[1]: scale.flatten(1).cpu().numpy()}

    def decode(self, columns: Columns) -> Tensor:
        """[B, …]; [B, C] of what was pooled."""
        names = [column.name for column in self.columns()]
        if self.keep == "pooled":
            return floats(columns[names[0]]).view(-1, self.shape[self._channel - 1])
        whole = torch.from_numpy(columns[names[0]].astype(np.float32)).view(-1, *self.shape)
        scale = torch.from_numpy(columns[names[1]]).view(len(whole), -1)
        spread = [1] * whole.dim()
        spread[0], spread[self._channel] = scale.shape
        return whole * scale.view(spread)
