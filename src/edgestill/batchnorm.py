"""Batch norm over the whole batch where each process has a share of it. B batch, C channels, P processes.

torch's own SyncBatchNorm needs a GPU, and takes the modules' places in the model. Here the modules stay as they are.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from edgestill.losses.reduce import wide
from edgestill.processes import Processes


class WholeBatchNorm(TorchFunctionMode):
    """While active, a batch norm that takes its statistics from its input takes them from the inputs of all processes,
    which must call it alike; forward, backward and running statistics are those of one process with the whole batch.

    Source: Ioffe and Szegedy 2015, arXiv 1502.03167, section 3; the variances of the shares are joined as in
    Chan, Golub, LeVeque 1983, https://doi.org/10.1080/00031305.1983.10483115.
    """

    def __init__(self, processes: Processes) -> None:
        super().__init__()
        self.processes = processes

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is functional.batch_norm:
            return self._batch_norm(*args, **kwargs or {})
        if func is torch.batch_norm:
            return self._in_torchs_order(*args, **kwargs or {})
        return func(*args, **kwargs or {})

    def _batch_norm(
        self, input: Tensor, running_mean: Tensor | None, running_var: Tensor | None, weight: Tensor | None = None,
        bias: Tensor | None = None, training: bool = False, momentum: float = 0.1, eps: float = 1e-5,
    ) -> Tensor:  # fmt: skip
        if not training:
            return functional.batch_norm(input, running_mean, running_var, weight, bias, False, momentum, eps)
        output: Tensor = _Normalise.apply(input, weight, bias, running_mean, running_var, momentum, eps, self.processes)  # type: ignore[no-untyped-call]
        return output

    def _in_torchs_order(
        self, input: Tensor, weight: Tensor | None, bias: Tensor | None, running_mean: Tensor | None,
        running_var: Tensor | None, training: bool, momentum: float, eps: float, cudnn_enabled: bool,
    ) -> Tensor:  # fmt: skip
        return self._batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)


class _Normalise(torch.autograd.Function):
    """`(x − mean)/√(variance + eps)·weight + bias` of x [B, C, …], mean and variance over all processes."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, running_mean: Tensor | None,
        running_var: Tensor | None, momentum: float, eps: float, processes: Processes,
    ) -> Tensor:  # fmt: skip
        x_wide = wide(x)
        mean, variance, count = _statistics(x_wide, processes)
        if running_mean is not None:
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
        if running_var is not None:  # the unbiased one, as torch has it
            running_var.lerp_((variance * count / (count - 1)).to(running_var.dtype), momentum)
        mean, variance = mean.to(x_wide.dtype), variance.to(x_wide.dtype)
        weight, bias = (None if value is None else value.to(x_wide.dtype) for value in (weight, bias))
        ctx.save_for_backward(x, weight, mean, torch.rsqrt(variance + eps), count)
        ctx.processes = processes
        return functional.batch_norm(x_wide, mean, variance, weight, bias, False, 0.0, eps).to(x.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, inverse, count = ctx.saved_tensors
        over, shape = _over(x)
        gradient_wide = wide(gradient)
        normal = (wide(x) - mean.view(shape)) * inverse.view(shape)
        bias_gradient, weight_gradient = gradient_wide.sum(over), (gradient_wide * normal).sum(over)
        sums = torch.stack([bias_gradient, weight_gradient])
        ctx.processes.sum_([sums])
        first, second = (sums / count).to(gradient_wide.dtype)
        scale = inverse if weight is None else inverse * weight
        x_gradient = (gradient_wide - first.view(shape) - normal * second.view(shape)) * scale.view(shape)
        return (
            x_gradient.to(x.dtype),
            weight_gradient if ctx.needs_input_grad[1] else None,
            bias_gradient if ctx.needs_input_grad[2] else None,
            *[None] * 5,
        )


def _statistics(x: Tensor, processes: Processes) -> tuple[Tensor, Tensor, Tensor]:
    """Mean [C] and variance [C] of all processes' x [B, C, …], and the number of values a channel."""
    over, _ = _over(x)
    variance, mean = torch.var_mean(x, over, correction=0)
    own = torch.tensor([x.numel() // x.shape[1]], device=x.device, dtype=torch.float64)
    table = processes.gather(torch.cat([own, mean.double(), variance.double()]))
    counts, means_PC, variances_PC = torch.split(table, [1, x.shape[1], x.shape[1]], dim=1)
    count = counts.sum()
    mean = (counts * means_PC).sum(0) / count
    return mean, (counts * (variances_PC + (means_PC - mean).square())).sum(0) / count, count


def _over(x: Tensor) -> tuple[list[int], list[int]]:
    """The dimensions that statistics of x [B, C, …] are taken over, and the shape that broadcasts [C] against x."""
    return [0, *range(2, x.dim())], [1, -1, *[1] * (x.dim() - 2)]
