"""A model from a spec: `file.py:function`, `timm:name`, `hf:folder-or-id`, a saved student folder; and what it expects
of its input. Shapes: B batch, C channels, H height, W width."""

import inspect
import json
import pickle
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from edgestill.errors import UserError, closest, first_line
from edgestill.functions import load_function
from edgestill.paths import exists

STUDENT_FILE = "edgestill.json"


@dataclass(frozen=True)
class ImageInput:
    """What a vision model expects: pixels in 0…1, normalised by channel, `size` pixels a side."""

    channels: int
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass
class Model:
    """A plain module with its spec and what it expects of its input."""

    module: nn.Module
    spec: str
    options: dict[str, Any]
    input: ImageInput
    source: str | None = None
    """The text of the file in `spec`, where no such file is there: of a student that was built from another."""

    @property
    def parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.module.parameters())


def load_model(
    spec: str,
    *,
    classes: int | None,
    default: ImageInput,
    options: Mapping[str, Any] | None = None,
    weights: str | Path | None = None,
    mean: list[float] | None = None,
    std: list[float] | None = None,
    size: int | None = None,
    trust_remote_code: bool = False,
) -> Model:
    """A model from its spec.

    Args:
        spec: `file.py:function` (called with `options`, and with `num_classes` and `in_channels` where it takes them),
            `timm:name`, `hf:folder-or-id`, or a folder that `save_student` wrote.
        classes: number of classes of the data; None leaves it to the model.
        default: the input of a model that declares none: the data's.
        options: keyword arguments of the function.
        weights: safetensors or a plain state dict.
        mean, std, size: in place of what the model declares.
        trust_remote_code: whether an `hf:` model may run the code that it brings along.
    """
    options = dict(options or {})
    if "trust_remote_code" in options:
        raise UserError(f"{spec}: `trust_remote_code` stands beside `model`, not in its options; move it there")
    if spec.startswith("timm:"):
        module, declared = _from_timm(spec[5:], classes, options, default, trained=weights is not None)
    elif spec.startswith("hf:"):
        module, declared = _from_hugging_face(spec[3:], options, default, trust_remote_code)
    elif ".py:" in spec:
        module, declared = _from_function(spec, classes, options, default)
    elif exists(Path(spec) / STUDENT_FILE):
        spec, options, module, declared = _from_student_folder(Path(spec))
    else:
        raise UserError(
            f"no model {spec!r}: a model is file.py:function, timm:NAME, hf:FOLDER-OR-ID, or a folder "
            f"with {STUDENT_FILE}"
        )
    if default.channels not in (1, declared.channels):
        raise UserError(f"{spec} takes images of {declared.channels} channel(s); the data has {default.channels}")
    if weights is not None:
        load_weights(module, Path(weights))
    elif spec.startswith(("timm:", "hf:")):
        _refuse_nonfinite(module, module.state_dict(), spec)
    expected = replace(
        declared,
        mean=tuple(mean) if mean else declared.mean,
        std=tuple(std) if std else declared.std,
        size=size or declared.size,
    )
    for name, values in (("mean", expected.mean), ("std", expected.std)):
        if len(values) not in (1, expected.channels):
            raise UserError(
                f"input.{name} of {spec} needs {expected.channels} numbers, one a channel; {len(values)} came"
            )
    return Model(module, spec, options, expected)


def _from_function(
    spec: str, classes: int | None, options: dict[str, Any], default: ImageInput
) -> tuple[nn.Module, ImageInput]:
    function = load_function(spec)
    taken = inspect.signature(function).parameters
    given = {"num_classes": classes, "in_channels": default.channels}
    arguments = {name: value for name, value in given.items() if name in taken and value is not None} | options
    try:
        module = function(**arguments)
    except Exception as error:
        raise UserError(f"{spec} cannot be called with {arguments}: {first_line(error)}") from error
    options |= arguments  # what a saved student is built with again
    if not isinstance(module, nn.Module):
        raise UserError(f"{spec} must return a torch.nn.Module; {type(module).__name__} came")
    return module, replace(default, channels=arguments.get("in_channels", default.channels))


def _from_timm(
    name: str, classes: int | None, options: dict[str, Any], default: ImageInput, trained: bool
) -> tuple[nn.Module, ImageInput]:
    try:
        import timm
    except (ImportError, RuntimeError) as error:  # a torchvision that does not fit torch raises the latter
        raise UserError(f"timm: models need timm (pip install 'edgestill[timm]'): {first_line(error)}") from error
    if not timm.is_model(name):
        raise UserError(f"timm has no model {name!r}{closest(name, timm.list_models())}")
    options |= ({} if classes is None else {"num_classes": classes}) | options
    try:
        module = timm.create_model(name, **options)
    except (TypeError, ValueError, RuntimeError, OSError) as error:
        raise UserError(f"timm:{name} cannot be made with {options}: {first_line(error)}") from error
    declared: dict[str, Any] = module.pretrained_cfg  # type: ignore[assignment]
    keeps_size = trained or options.get("pretrained") or declared.get("fixed_input_size")
    channels, height, _ = declared["input_size"]
    return module, ImageInput(
        channels=options.get("in_chans", channels),
        size=height if keeps_size else default.size,
        mean=tuple(declared["mean"]),
        std=tuple(declared["std"]),
    )


def _from_hugging_face(
    name: str, options: dict[str, Any], default: ImageInput, trust: bool
) -> tuple[nn.Module, ImageInput]:
    try:
        from transformers import AutoImageProcessor, AutoModelForImageClassification
        from transformers.utils import logging as hf_logging
    except (ImportError, RuntimeError) as error:
        raise UserError(
            f"hf: models need transformers (pip install 'edgestill[transformers]'): {first_line(error)}"
        ) from error
    hf_logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # bars are ours to draw, and --quiet draws none
    try:
        # Neither None, which asks on a terminal, nor the file's own precision: training is in float32.
        module = AutoModelForImageClassification.from_pretrained(name, trust_remote_code=trust, **options).float()
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{name} holds more than plain weights; only tensors are loaded, never code: save it as safetensors"
        ) from error
    except SafetensorError as error:
        raise UserError(f"{name} holds no readable weights file: {first_line(error)}; copy it anew") from error
    except Exception as error:
        _refuse_remote_code(name, error)
        raise UserError(f"no Hugging Face image classifier {name!r}: {first_line(error)}") from error
    size = getattr(module.config, "image_size", None)
    declared = replace(
        default,
        channels=getattr(module.config, "num_channels", default.channels),
        size=(size if isinstance(size, int) else size[0]) if size else default.size,
    )
    try:
        processor = AutoImageProcessor.from_pretrained(name, trust_remote_code=trust)  # type: ignore[no-untyped-call]
    except (OSError, ValueError) as error:
        _refuse_remote_code(name, error)
        return module, declared  # a folder without preprocessor_config.json: the data's normalisation holds
    sides = getattr(processor, "crop_size", None) or getattr(processor, "size", None)
    if sides and not size:
        declared = replace(declared, size=sides.get("height") or sides.get("shortest_edge") or default.size)
    if processor.image_mean and processor.image_std:
        declared = replace(declared, mean=tuple(processor.image_mean), std=tuple(processor.image_std))
    return module, declared


def _refuse_remote_code(name: str, error: Exception) -> None:
    if "trust_remote_code" in str(error):
        raise UserError(
            f"the Hugging Face model {name!r} brings code of its own, which is not run unless the recipe says "
            "`trust_remote_code: true` beside `model`; read the code first"
        ) from error


def _from_student_folder(folder: Path) -> tuple[str, dict[str, Any], nn.Module, ImageInput]:
    """Also the spec and options that it was saved with, so that it can be saved again."""
    try:
        saved = json.loads((folder / STUDENT_FILE).read_text())
        spec, options, classes, expected = (saved[key] for key in ("model", "options", "classes", "input"))
        declared = ImageInput(**expected | {name: tuple(expected[name]) for name in ("mean", "std")})
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / STUDENT_FILE} does not describe a student: {first_line(error)}") from error
    if spec.startswith("hf:"):
        return f"hf:{folder}", {}, _from_hugging_face(str(folder), {}, declared, False)[0], declared
    if ".py:" in spec:
        spec = str(folder / spec)
    options = options | ({} if ".py:" in spec else {"pretrained": False})
    inner = load_model(spec, classes=len(classes), default=declared, options=options)
    load_weights(inner.module, folder / "model.safetensors")
    return spec, options, inner.module, declared


def save_student(model: Model, folder: Path, classes: tuple[str, ...]) -> None:
    """Writes a folder that loads without edgestill: safetensors with the model's file or timm name, or a Hugging Face
    folder; beside it edgestill.json with the input's normalisation and the class names."""
    folder.mkdir(parents=True, exist_ok=True)
    spec = model.spec
    if spec.startswith("hf:"):
        model.module.save_pretrained(folder)  # type: ignore[operator]
    else:
        # clones: safetensors refuses tensors that share memory, as tied weights do
        state = {
            name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
            for name, tensor in model.module.state_dict().items()
        }
        save_file(state, folder / "model.safetensors")
    if ".py:" in spec:
        path, _, function = spec.rpartition(":")
        if model.source is None:
            shutil.copyfile(path, folder / "model.py")
        else:
            (folder / "model.py").write_text(model.source, encoding="utf-8")
        spec = f"model.py:{function}"
    about = {"model": spec, "options": model.options, "input": asdict(model.input), "classes": list(classes)}
    (folder / STUDENT_FILE).write_text(json.dumps(about, indent=1) + "\n")


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
    for key in [*own, *state]:
        if key not in state:
            if key.endswith("num_batches_tracked"):
                continue
            raise UserError(f"{path} does not fit {type(module).__name__}: {key!r} {_shape(own[key])} is missing")
        if key not in own:
            raise UserError(f"{path} does not fit {type(module).__name__}: it has {key!r}, the model does not")
        if own[key].shape != state[key].shape:
            raise UserError(
                f"{path} does not fit {type(module).__name__}: {key!r} has {_shape(state[key])}, "
                f"the model needs {_shape(own[key])}"
            )
    _refuse_nonfinite(module, state, path)
    module.load_state_dict(state, strict=False)


def _refuse_nonfinite(module: nn.Module, state: Mapping[str, Tensor], source: str | Path) -> None:
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


def to_device(module: nn.Module, device: torch.device) -> nn.Module:
    """The module itself on the device, channels-last in memory: a third faster for convolutions on the CPU."""
    return module.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def forward(module: nn.Module, inputs: Tensor) -> Tensor:
    """Logits [B, C] of a plain module or of one that returns an object with `.logits`."""
    output = module(inputs)
    return output if isinstance(output, Tensor) else output.logits


def select_classes(module: nn.Module, classes: list[int]) -> None:
    """From now on the module puts out these of its classes alone, in this order: softmax over them is its own,
    renormalised. Its modules keep their names, so that taps do."""

    def select(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        if isinstance(output, Tensor):
            return output[:, classes]
        output.logits = output.logits[:, classes]
        return output

    module.register_forward_hook(select)


class _LogitsOf(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, inputs: Tensor) -> Tensor:
        return forward(self.module, inputs)


def plain_logits(module: nn.Module) -> nn.Module:
    """The module itself, or, for a Hugging Face model, one around it that puts out logits: what is exported."""
    return _LogitsOf(module) if hasattr(module, "save_pretrained") else module


def flops(model: Model) -> int:
    """Floating-point operations of one sample's forward pass, a multiplication and an addition counted apart."""
    from torch.utils.flop_counter import FlopCounterMode

    device = next(model.module.parameters()).device
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        forward(model.module.eval(), example(model.input, 1).to(device))
    return int(counter.get_total_flops())


def example(expected: ImageInput, count: int) -> Tensor:
    """Zeros of the shape that the model expects: [count, C, H, W]."""
    return torch.zeros(count, expected.channels, expected.size, expected.size)
