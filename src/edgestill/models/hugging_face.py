"""Models from Hugging Face folders and ids."""

import pickle
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import nn

from edgestill.errors import UserError, closest, first_line
from edgestill.models.model import ImageInput
from edgestill.paths import exists

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


def transformers() -> Any:
    """The library, without its bars: they are ours to draw, and --quiet draws none."""
    try:
        import transformers as library
        from transformers.utils import logging as hf_logging
    except (ImportError, RuntimeError) as error:
        raise UserError(
            f"hf: models need transformers (pip install 'edgestill[transformers]'): {first_line(error)}"
        ) from error
    hf_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    return library


@contextmanager
def _explained(name: str, what: str) -> Iterator[None]:
    """What fails while a model is read, in one line."""
    try:
        yield
    except UserError:
        raise
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{name} holds more than plain weights; only tensors are loaded, never code: save it as safetensors"
        ) from error
    except SafetensorError as error:
        raise UserError(f"{name} holds no readable weights file: {first_line(error)}; copy it anew") from error
    except Exception as error:
        _refuse_remote_code(name, error)
        raise UserError(f"no Hugging Face {what} {name!r}: {_reason(name, error)}") from error


def _reason(name: str, error: Exception) -> str:
    """Why nothing was loaded: where `name` is no folder that is there, that first."""
    if exists(Path(name)):
        return first_line(error)
    remedy = "give one that holds a saved model, or an id of the Hub, as OWNER/NAME"
    if _HUB_ID.fullmatch(name) is None:
        return f"there is no such folder; {remedy}"
    return f"{first_line(error).rstrip('.')}; there is no folder of that name either; {remedy}"


def text_model(
    name: str,
    head: str,
    classes: Sequence[str],
    options: dict[str, Any],
    trust: bool,
    dtype: str = "float32",
    sizes: Mapping[str, Any] | None = None,
) -> tuple[nn.Module, Any, tuple[str, ...]]:
    """A text model with its tokenizer, as it is saved; without a classifier, with a new one for `classes`. That of
    an embedding is the bare model, whose tokens are still to be pooled. Also the names of the parameters that are new.
    `dtype`: of all, from the first; `auto` is the file's own. `sizes`: of its configuration, in place of its own: the
    model then has random weights."""
    library = transformers()
    verbosity = library.utils.logging.get_verbosity()
    library.utils.logging.set_verbosity_error()  # a new classifier is no warning: whether it is fitted is checked
    try:
        with _explained(name, "text model"):
            config = library.AutoConfig.from_pretrained(name, trust_remote_code=trust)
            if head == "tokens":
                kind, more = library.AutoModelForCausalLM, dict[str, Any]()
            elif head == "embedding":
                kind, more = library.AutoModel, {}
            else:
                kind, more = library.AutoModelForSequenceClassification, _labels(config, head, classes)
            if sizes:
                resized(config, name, {**sizes, **more})
                module, loaded = kind.from_config(config, trust_remote_code=trust, dtype=dtype, **options), None
            else:
                given = options | {"dtype": dtype, "output_loading_info": True}
                module, loaded = kind.from_pretrained(name, trust_remote_code=trust, **more, **given)
        tokenizer = _tokenizer(library, name, trust)
    finally:
        library.utils.logging.set_verbosity(verbosity)
    named = dict(module.named_parameters())
    return module, tokenizer, tuple(sorted({*loaded["missing_keys"]} & {*named} if loaded is not None else named))


def resized(config: Any, name: str, sizes: Mapping[str, Any]) -> None:
    """Sets sizes of a configuration. UserError for one that it does not have."""
    for key, value in sizes.items():
        if not hasattr(config, key):
            known = [key for key, value in vars(config).items() if isinstance(value, int)]
            raise UserError(f"student.config: the configuration of {name} has no {key!r}{closest(key, known)}")
        setattr(config, key, value)
    if hasattr(config, "layer_types") and "num_hidden_layers" in sizes:  # one entry a layer
        config.layer_types = (config.layer_types * sizes["num_hidden_layers"])[: sizes["num_hidden_layers"]]


def _tokenizer(library: Any, name: str, trust: bool) -> Any:
    """The tokenizer beside a model. Without its files some families get one that knows no word, others an error."""
    before, remedy = f"no Hugging Face tokenizer beside the model {name!r}", "save the model's own there"
    try:
        tokenizer = library.AutoTokenizer.from_pretrained(name, trust_remote_code=trust)
    except Exception as error:
        _refuse_remote_code(name, error)
        why = first_line(error).removesuffix(" from one of: ")  # a list of what was tried follows
        raise UserError(f"{before}: {why}; {remedy}") from error
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        raise UserError(f"{before}: it knows no token but the special ones; {remedy}")
    return tokenizer


def _labels(config: Any, head: str, classes: Sequence[str]) -> dict[str, Any]:
    """What a classifier is made with where the saved model has none."""
    if any(str(name).endswith("ForSequenceClassification") for name in config.architectures or ()):
        return {}
    if head == "number":
        return {"num_labels": 1, "problem_type": "regression"}
    numbered = dict(enumerate(classes))
    return {"num_labels": len(classes), "id2label": numbered, "label2id": {name: n for n, name in numbered.items()}}


def image_classifier(
    name: str,
    options: dict[str, Any],
    default: ImageInput,
    trust: bool,
    sizes: Mapping[str, Any] | None = None,
    classes: int | None = None,
) -> tuple[nn.Module, ImageInput]:
    """An image classifier as it is saved, or with random weights and these `sizes` of its configuration."""
    library = transformers()
    with _explained(name, "image classifier"):
        # Neither None, which asks on a terminal, nor the file's own precision: training is in float32.
        kind = library.AutoModelForImageClassification
        if sizes:
            config = library.AutoConfig.from_pretrained(name, trust_remote_code=trust)
            resized(config, name, dict(sizes) | ({} if classes is None else {"num_labels": classes}))
            module = kind.from_config(config, trust_remote_code=trust, **options).float()
        else:
            module = kind.from_pretrained(name, trust_remote_code=trust, **options).float()
    size = getattr(module.config, "image_size", None)
    declared = replace(
        default,
        channels=getattr(module.config, "num_channels", default.channels),
        size=(size if isinstance(size, int) else size[0]) if size else default.size,
    )
    try:
        processor = library.AutoImageProcessor.from_pretrained(name, trust_remote_code=trust)
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
