"""A teacher's parts as a plain model: of its library's own class where sizes say it all, else built by a file."""

import copy
import json
import pprint
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import indent
from typing import Any

from torch import nn

from edgestill.errors import UserError, first_line
from edgestill.models import Model
from edgestill.students.narrower import Sizes

NAMES = {
    "heads": ("num_attention_heads",),
    "key_value_heads": ("num_key_value_heads",),
    "hidden": ("hidden_size",),
    "feed_forward": ("intermediate_size", "n_inner", "hidden_dim", "ffn_dim"),
}
"""What configurations call the sizes."""
Changes = dict[str, dict[str, int | tuple[int, ...]]]
"""Of a layer, by its path, what differs: numbers, and the shapes of its tensors."""


def configured(cut: nn.Module, sizes: Sizes) -> nn.Module:
    """A Hugging Face model whose configuration has these sizes, with the weights of a model that was cut to them.
    UserError where its configuration cannot say them."""
    config: Any = copy.deepcopy(cut.config)
    for kind, names in NAMES.items():
        change = getattr(sizes, kind)
        for name in names:
            if change is not None and hasattr(config, name):
                before, after = change
                own = getattr(config, name)
                if own == before or (
                    own is None and kind == "feed_forward" and before == 4 * (sizes.hidden or (0,))[0]
                ):
                    setattr(config, name, after)
    try:
        student: nn.Module = type(cut)(config)
        student.load_state_dict(cut.state_dict())
    except Exception as error:
        why = "heads and hidden channels go together: set one width for all, or feed_forward alone"
        if sizes.hidden is None:
            why = "its hidden channels are its answer, and heads go with them: set feed_forward alone"
        raise UserError(
            f"student.from_teacher.width: the configuration of {type(cut).__name__} cannot say these sizes: "
            f"{first_line(error)}; {why}"
        ) from error
    return student.float().eval()


def from_timm(
    name: str, options: Mapping[str, Any], cut: nn.Module, sizes: Sizes, depth: int
) -> tuple[nn.Module, dict[str, Any]] | None:
    """timm's own model of these sizes and so many blocks with a cut model's weights, and the options that make it. None
    where timm's function does not take them."""
    import timm

    made = dict(options) | {"pretrained": False, "depth": depth}
    if sizes.heads is not None and sizes.hidden is not None:
        made |= {"embed_dim": sizes.hidden[1], "num_heads": sizes.heads[1]}
        if sizes.feed_forward is not None:
            made |= {"mlp_ratio": sizes.feed_forward[1] / sizes.hidden[1]}
    try:
        student: nn.Module = timm.create_model(name, **made)
        student.load_state_dict(cut.state_dict())
    except (TypeError, ValueError, RuntimeError, AssertionError):
        return None
    return student.eval(), made


def differences(base: nn.Module, made: nn.Module) -> Changes:
    """What is to be changed of a model, layer by layer, to be one of other sizes."""
    changes: Changes = {}
    layers = dict(base.named_modules())
    for path, layer in made.named_modules():
        if path not in layers:
            continue
        before = layers[path]
        found: dict[str, int | tuple[int, ...]] = {}
        for name, value in vars(layer).items():
            old = vars(before).get(name)
            if _plain(value) and _plain(old) and value != old:
                found[name] = value
        for tensors in (layer.named_parameters, layer.named_buffers):
            for name, tensor in tensors(recurse=False):
                if tensor.shape != getattr(before, name).shape:
                    found[name] = tuple(tensor.shape)
        if found:
            changes[path] = found
    return changes


def _plain(value: object) -> bool:
    numbers = value if isinstance(value, tuple) else (value,)
    return all(isinstance(number, int) and not isinstance(number, bool) for number in numbers)


def source(teacher: Model, skipped: Sequence[str], changes: Changes) -> tuple[str, str]:
    """A function's name, and the text of a `model.py` whose function of this name builds the student of a teacher, with
    torch and what the teacher itself needs: the teacher's own file, where it has one, comes first. The blocks `skipped`
    pass on what they are given."""
    before, name, made = base_source(teacher)
    function = re.sub(r"\W", "_", name) + "_cut"
    while re.search(rf"\b{function}\b", before):
        function += "_again"
    lines = [
        f"def {function}():",
        f'    """{name} without some of its blocks and of other sizes, layer by layer. Written by edgestill."""',
        "    from torch import Tensor, nn",
        "",
        indent("skipped = " + pprint.pformat(tuple(skipped), width=106, compact=True), "    "),
        indent("sizes = " + pprint.pformat(changes, width=106, compact=True, sort_dicts=False), "    "),
        *(f"    {line}" for line in made),
        "    for path in skipped:",
        "        module.set_submodule(path, nn.Identity())",
        "    for path, changes in sizes.items():",
        "        layer = module.get_submodule(path)",
        "        for name, size in changes.items():",
        "            value = getattr(layer, name)",
        "            if isinstance(value, nn.Parameter):",
        "                size = nn.Parameter(value.new_zeros(size))",
        "            elif isinstance(value, Tensor):",
        "                size = value.new_zeros(size)",
        "            setattr(layer, name, size)",
        "    return module",
    ]
    return function, f"{before.rstrip()}\n\n\n" + "\n".join(lines) + "\n"


def base_source(model: Model) -> tuple[str, str, list[str]]:
    """Of the file that builds a model from another: what stands before its function, the other's own name, and the
    lines that make the other as `module`."""
    if model.spec.startswith("hf:"):
        config: Any = model.module.config
        return (
            '"""A Hugging Face model, changed."""',
            str(config.model_type),
            [
                "from transformers import AutoConfig, AutoModelForImageClassification",
                "",
                f"config = AutoConfig.for_model(**{json.loads(config.to_json_string())!r})",
                "module = AutoModelForImageClassification.from_config(config)",
            ],
        )
    if model.spec.startswith("timm:"):
        name, options = model.spec[5:], model.options | {"pretrained": False}
        return (
            '"""A timm model, changed."""',
            name,
            ["import timm", "", f"module = timm.create_model({name!r}, **{options!r})"],
        )
    path, _, name = model.spec.rpartition(":")
    before = Path(path).read_text(encoding="utf-8") if model.source is None else model.source
    return before, name, [f"module = {name}(**{model.options!r})"]
