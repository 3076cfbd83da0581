"""A student that is trained by adapters of low rank beside its linear layers, and is a plain model again behind it.

I inputs, O outputs, R rank.
"""

import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from edgestill.errors import UserError, closest, first_line
from edgestill.students.depth import blocks_of


@dataclass(frozen=True)
class Lora:
    """Adapters `alpha / rank · B·A`, A [R, I] and B [O, R], on the layers at these paths (Hu et al. 2021, arXiv
    2106.09685). A is drawn, B is zero: a student begins as it is without them."""

    rank: int
    alpha: float
    dropout: float
    targets: tuple[str, ...]


def targets_of(module: nn.Module, probe: Tensor, wanted: Sequence[str] | None = None) -> tuple[str, ...]:
    """The paths of the layers that get adapters: of all linear ones in the model's blocks, or of those that are
    `wanted`, by path or by the end of it, as `q_proj` in every block.

    Raises UserError for a model without blocks of linear layers, for what matches none, with the closest names, and for
    a layer that shares its weight with another.
    """
    layers = {path: layer for path, layer in module.named_modules() if type(layer) in _linear_kinds()}
    if wanted is None:
        blocks = [f"{path}." for path in blocks_of(module, probe, "student.lora")]
        chosen = [path for path in layers if path.startswith(tuple(blocks))]
        if not chosen:
            raise UserError(f"student.lora: the blocks of {type(module).__name__} have no linear layers to adapt")
        return tuple(chosen)
    for name in wanted:
        if not any(f".{path}".endswith(f".{name}") for path in layers):
            known = dict.fromkeys(path.rpartition(".")[2] for path in layers)
            raise UserError(
                f"student.lora.targets: {type(module).__name__} has no linear layer {name!r}"
                f"{closest(name, [*known, *layers])}"
            )
    found = [path for path in layers if any(f".{path}".endswith(f".{name}") for name in wanted)]
    uses = Counter(id(parameter) for _, parameter in module.named_parameters(remove_duplicate=False))
    if shared := [path for path in found if uses[id(layers[path].weight)] > 1]:
        raise UserError(
            f"student.lora.targets: {shared[0]} shares its weight with another layer, which its adapter would change "
            "as well: leave it out"
        )
    return tuple(found)


@contextmanager
def adapted(module: nn.Module, lora: Lora, fresh: Sequence[str] = ()) -> Iterator[None]:
    """Inside, the module computes with adapters, and they alone are trained, with the parameters called `fresh`, which
    nothing has trained yet. Behind it they are merged into its weights: it has the modules and keys that it had.

    >>> module = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    >>> with adapted(module, Lora(1, 2.0, 0.0, ("0",))):
    ...     sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
    6
    >>> sorted(module.state_dict())
    ['0.bias', '0.weight', '1.bias', '1.weight']
    """
    trained = {id(parameter): parameter.requires_grad for parameter in module.parameters()}
    _inject(module, lora)
    module.train(module.training)  # the adapters, which come as they are trained, too
    for name in fresh:
        module.get_parameter(name).requires_grad_(True)
    whole = False
    try:
        yield
        whole = True
    finally:  # what fails inside leaves the weights that were there
        for path in lora.targets:
            adapter: Any = module.get_submodule(path)
            if whole:
                adapter.merge()
            module.set_submodule(path, adapter.get_base_layer())
        del module.peft_config
        for parameter in module.parameters():
            parameter.requires_grad_(trained[id(parameter)])


def _inject(module: nn.Module, lora: Lora) -> None:
    """Puts an adapter around each target's layer, at its path, and freezes what is none."""
    library = peft()
    one_of_them = "|".join(path.replace(".", r"\.") for path in lora.targets)
    try:
        with warnings.catch_warnings():  # of layers whose weights are transposed, which are taken so
            warnings.simplefilter("ignore")
            config = library.LoraConfig(
                r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=one_of_them
            )
            library.inject_adapter_in_model(config, module)
    except Exception as error:
        raise UserError(f"student.lora: peft cannot adapt {type(module).__name__}: {first_line(error)}") from error


def peft() -> Any:
    """The library; UserError where it is not installed."""
    try:
        import peft as library
    except (ImportError, RuntimeError) as error:
        raise UserError(f"student.lora needs peft (pip install 'edgestill[lora]'): {first_line(error)}") from error
    return library


def _linear_kinds() -> tuple[type[nn.Module], ...]:
    """Linear layers, and those whose weight is transposed, as GPT-2 has them."""
    from transformers.pytorch_utils import Conv1D

    return nn.Linear, Conv1D
