"""Taps: named places in a model whose outputs are recorded. Nothing of them stays in the model."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from edgestill.errors import UserError, closest


@contextmanager
def record(model: nn.Module, paths: Iterable[str]) -> Iterator[dict[str, Tensor]]:
    """A dict that each forward inside the block fills with the outputs at `paths`, as the taps' modules returned them.

    An in-place operation behind a tap does not reach what was recorded. The hooks go when the block ends.
    Raises UserError for a path that the model does not have.

    >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(inplace=True))
    >>> with record(model, ["0"]) as taps:
    ...     output = model(torch.ones(1, 2))
    >>> taps["0"].shape
    torch.Size([1, 3])
    """
    modules = dict(model.named_modules())
    taps: dict[str, Tensor] = {}
    handles = []
    try:
        for path in paths:
            if not path or path not in modules:
                raise UserError(f"no tap {path!r} in {type(model).__name__}{closest(path, filter(None, modules))}")
            handles.append(modules[path].register_forward_hook(_recorder(taps, path)))
        yield taps
    finally:
        for handle in handles:
            handle.remove()


def _recorder(taps: dict[str, Tensor], path: str) -> Callable[[nn.Module, object, object], None]:
    def hook(_module: nn.Module, _inputs: object, output: object) -> None:
        value = output[0] if isinstance(output, tuple | list) else output
        if not isinstance(value, Tensor):
            raise UserError(f"tap {path!r} returns {type(value).__name__}, not a tensor")
        taps[path] = value.clone()  # an in-place operation behind the tap would overwrite the original

    return hook


def stages(model: nn.Module, example: Tensor) -> list[str]:
    """The ends of a convolutional model's resolution stages: of its direct children that put out maps [B, C, H, W],
    the last at each resolution. `example` is one input batch.

    >>> stages(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 2, stride=2)), torch.zeros(1, 3, 8, 8))
    ['1', '2']
    """
    shapes: dict[str, torch.Size] = {}

    def note(name: str, output: object) -> None:
        if isinstance(output, Tensor):
            shapes[name] = output.shape

    children = dict(model.named_children())
    training = [module for module in model.modules() if module.training]
    handles = [
        child.register_forward_hook(lambda _module, _inputs, output, name=name: note(name, output))
        for name, child in children.items()
    ]
    try:
        with torch.no_grad():
            model.eval()(example)  # in training mode, a batch norm would take the example in
    finally:
        for handle in handles:
            handle.remove()
        for module in training:
            module.training = True
    maps = [(name, shapes[name]) for name in children if len(shapes.get(name, ())) == 4]
    return list({shape[2:]: name for name, shape in maps if shape[2:].numel() > 1}.values())
