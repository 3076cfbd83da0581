"""A student's folder, which loads without edgestill."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from edgestill.models.embedding import embedding_of
from edgestill.models.hugging_face import transformers
from edgestill.models.model import Expected, Model, example, forward
from edgestill.models.sentence_transformers import write_layout
from edgestill.models.text_input import TextInput
from edgestill.models.weights import load_weights

STUDENT_FILE = "edgestill.json"


def save_student(model: Model, folder: Path, classes: tuple[str, ...]) -> None:
    """Writes a folder that loads without edgestill: safetensors with the model's file or timm name, or a Hugging Face
    folder, of an embedder with what sentence-transformers reads beside; and edgestill.json with the input's
    normalisation and the class names."""
    folder.mkdir(parents=True, exist_ok=True)
    spec = model.spec
    if isinstance(model.input, TextInput):
        _save_tokenizer(model.input.tokenizer, folder)
    if spec.startswith("hf:") or (isinstance(model.input, TextInput) and hasattr(model.module, "save_pretrained")):
        transformers()
        model.module.save_pretrained(folder)  # type: ignore[operator]
        spec = "hf:."
        if isinstance(model.input, TextInput) and (embedding := embedding_of(model.module)) is not None:
            write_layout(folder, embedding.pooling, _width(model), model.input.length)
    else:
        save_weights(model.module, folder / "model.safetensors")
    if ".py:" in spec:
        path, _, function = spec.rpartition(":")
        if model.source is None:
            shutil.copyfile(path, folder / "model.py")
        else:
            (folder / "model.py").write_text(model.source, encoding="utf-8")
        spec = f"model.py:{function}"
    about = {"model": spec, "options": model.options, "input": _written(model.input), "classes": list(classes)}
    (folder / STUDENT_FILE).write_text(json.dumps(about, indent=1) + "\n")


def _save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Without the padding and the cut of its last call, which a fast tokenizer would write as its own: what was saved
    would depend on what was tokenized before."""
    if tokenizer.is_fast:
        tokenizer.backend_tokenizer.no_padding()
        tokenizer.backend_tokenizer.no_truncation()
    tokenizer.save_pretrained(folder)


def reload(model: Model, folder: Path) -> None:
    """Fills a model with what `save_student` wrote of it."""
    if isinstance(model.input, TextInput) and hasattr(model.module, "save_pretrained"):
        transformers()
        saved = type(model.module).from_pretrained(folder).float()  # type: ignore[attr-defined]
        model.module.load_state_dict(saved.state_dict())
    else:
        load_weights(model.module, folder / "model.safetensors")


def save_weights(module: nn.Module, path: Path) -> None:
    """Writes a module's weights as safetensors."""
    # clones: safetensors refuses tensors that share memory, as tied weights do
    state = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in module.state_dict().items()
    }
    save_file(state, path)


@torch.no_grad()
def _width(model: Model) -> int:
    """Of what an embedder puts out."""
    device = next(model.module.parameters()).device
    return int(forward(model.module, example(model.input, 1).to(device)).shape[-1])


def _written(expected: Expected) -> dict[str, Any]:
    if isinstance(expected, TextInput):  # the tokenizer lies beside it
        return {"length": expected.length, "names": list(expected.names)}
    return asdict(expected)
