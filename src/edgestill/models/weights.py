"""Weights from a file into a module."""

import hashlib
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from edgestill.errors import UserError, first_line
from edgestill.paths import exists


def fingerprint(module: nn.Module) -> str:
    """Of the names, types and numbers of a module's weights and buffers."""
    found = hashlib.blake2b(digest_size=16)
    for key, tensor in module.state_dict().items():
        if isinstance(tensor, Tensor):
            found.update(f"{key} {tensor.dtype} {[*tensor.shape]}".encode())
            found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def load_weights(module: nn.Module, path: Path) -> None:
    """Fills `module` from safetensors or a plain state dict; UserError names the first key that does not fit."""
    if not exists(path) or path.is_dir():
        raise UserError(f"no weights file {path}")
    try:
        state: Any
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            with warnings.catch_warnings():  # of the pickle's version
                warnings.simplefilter("ignore")
                state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        readable = (SafetensorError, RuntimeError, EOFError, OSError, ValueError)
        if isinstance(error, readable) and "weights_only" not in str(error):  # which torch advises to switch off
            raise UserError(f"{path} is not a readable weights file: {first_line(error)}") from error
        raise UserError(
            f"{path} is not plain weights; only tensors are loaded, never code: save it as safetensors"
        ) from error
    if isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping):
        state = state["state_dict"]
    if not isinstance(state, Mapping) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items()
    ):
        raise UserError(f"{path} holds no state dict")
    own = module.state_dict()
    if state and all(key.startswith("module.") for key in state):
        state = {key.removeprefix("module."): value for key, value in state.items()}
    shared = {tensor.data_ptr() for key, tensor in own.items() if key in state}
    for key in [*own, *state]:
        if key not in state:
            # a tied weight is saved once
            if key.endswith("num_batches_tracked") or own[key].data_ptr() in shared:
                continue
            raise UserError(f"{path} does not fit {type(module).__name__}: {key!r} {_shape(own[key])} is missing")
        if key not in own:
            raise UserError(f"{path} does not fit {type(module).__name__}: it has {key!r}, the model does not")
        if own[key].shape != state[key].shape:
            raise UserError(
                f"{path} does not fit {type(module).__name__}: {key!r} has {_shape(state[key])}, "
                f"the model needs {_shape(own[key])}"
            )
    refuse_nonfinite(module, state, path)
    module.load_state_dict(state, strict=False)


def refuse_nonfinite(module: nn.Module, state: Mapping[str, Tensor], source: str | Path) -> None:
    """UserError naming the first tensor with NaN or infinite values; a buffer may hold −∞, as attention masks do."""
    parameters = dict(module.named_parameters(remove_duplicate=False))
    for key, value in state.items():
        if not value.is_floating_point():
            continue
        wrong = ~torch.isfinite(value.float())
        if key not in parameters:
            wrong &= value.float() != -torch.inf
        if count := int(wrong.sum()):
            raise UserError(
                f"{source}: weights need to be finite numbers; {key!r} has {count} NaN or infinite among its "
                f"{value.numel()}: take another checkpoint of that training"
            )


def _shape(tensor: Tensor) -> str:
    return "×".join(map(str, tensor.shape)) or "a scalar"
