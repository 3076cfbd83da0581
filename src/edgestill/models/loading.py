"""A vision model from a spec: `file.py:function`, `timm:name`, `hf:folder-or-id`, a folder of `save_student`."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from edgestill.errors import UserError, closest, first_line
from edgestill.functions import model_of
from edgestill.models.hugging_face import image_classifier
from edgestill.models.model import ImageInput, Model
from edgestill.models.saving import STUDENT_FILE
from edgestill.models.weights import load_weights, refuse_nonfinite
from edgestill.paths import exists


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
    config: Mapping[str, Any] | None = None,
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
        config: sizes of an `hf:` model's configuration, which then has random weights.
    """
    options = dict(options or {})
    if "trust_remote_code" in options:
        raise UserError(f"{spec}: `trust_remote_code` stands beside `model`, not in its options; move it there")
    if spec.startswith("timm:"):
        module, declared = _from_timm(spec[5:], classes, options, default, trained=weights is not None)
    elif spec.startswith("hf:"):
        module, declared = image_classifier(spec[3:], options, default, trust_remote_code, config, classes)
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
        refuse_nonfinite(module, module.state_dict(), spec)
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


def timm_models(pattern: str) -> list[str]:
    """timm's models whose name matches a pattern, as specs. UserError where none does."""
    try:
        import timm
    except (ImportError, RuntimeError) as error:
        raise UserError(f"timm: models need timm (pip install 'edgestill[timm]'): {first_line(error)}") from error
    if not (names := timm.list_models(pattern)):
        raise UserError(f"timm has no model that matches {pattern!r}{closest(pattern, timm.list_models())}")
    return [f"timm:{name}" for name in names]


def _from_function(
    spec: str, classes: int | None, options: dict[str, Any], default: ImageInput
) -> tuple[nn.Module, ImageInput]:
    module = model_of(spec, {"num_classes": classes, "in_channels": default.channels}, options)
    if not isinstance(module, nn.Module):
        raise UserError(f"{spec} must return a torch.nn.Module; {type(module).__name__} came")
    return module, replace(default, channels=options.get("in_channels", default.channels))


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
        size=options.get("img_size", height if keeps_size else default.size),
        mean=tuple(declared["mean"]),
        std=tuple(declared["std"]),
    )


def _from_student_folder(folder: Path) -> tuple[str, dict[str, Any], nn.Module, ImageInput]:
    """Also the spec and options that it was saved with, so that it can be saved again."""
    try:
        saved = json.loads((folder / STUDENT_FILE).read_text())
        spec, options, classes, expected = (saved[key] for key in ("model", "options", "classes", "input"))
        declared = ImageInput(**expected | {name: tuple(expected[name]) for name in ("mean", "std")})
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / STUDENT_FILE} does not describe a student: {first_line(error)}") from error
    if spec.startswith("hf:"):
        return f"hf:{folder}", {}, image_classifier(str(folder), {}, declared, False)[0], declared
    if ".py:" in spec:
        spec = str(folder / spec)
    options = options | ({} if ".py:" in spec else {"pretrained": False})
    seen: dict[str, Any] = {
        "mean": [*declared.mean],
        "std": [*declared.std],
        "size": declared.size,
    }  # not what the model declares
    inner = load_model(spec, classes=len(classes), default=declared, options=options, **seen)
    load_weights(inner.module, folder / "model.safetensors")
    return spec, options, inner.module, declared
