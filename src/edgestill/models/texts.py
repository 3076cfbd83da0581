"""Text models: from a Hugging Face folder or id, or from a function; each with its tokenizer. N samples, T tokens."""

import inspect
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from torch import nn

from edgestill.errors import UserError, first_line
from edgestill.functions import model_of
from edgestill.models.embedding import embed
from edgestill.models.hugging_face import text_model, transformers
from edgestill.models.model import Model
from edgestill.models.precision import Precision, lower
from edgestill.models.saving import STUDENT_FILE
from edgestill.models.sentence_transformers import written_layout
from edgestill.models.text_input import INPUTS, TextInput, fingerprint_of
from edgestill.models.weights import load_weights, refuse_nonfinite
from edgestill.paths import exists

Head = Literal["classes", "number", "tokens", "embedding"]
"""What a text model puts out: a logit a class, one number, logits over the vocabulary for each token, or one vector."""
LENGTH = {"classes": 512, "number": 512, "tokens": 256, "embedding": 512}
"""Tokens of a sample where neither the recipe nor the model says fewer."""
LOADED = {"float32": "float32", "bf16": "bfloat16", "int8": "auto"}
"""What a model is read as, of each precision: never as more than it is to be, or than its file holds."""


def load_text_model(
    spec: str,
    *,
    head: Head,
    classes: Sequence[str] = (),
    pairs: bool = False,
    length: int | None = None,
    options: dict[str, Any] | None = None,
    weights: str | Path | None = None,
    tokenizer: Any = None,
    trust_remote_code: bool = False,
    precision: Precision = "float32",
    config: Mapping[str, Any] | None = None,
) -> Model:
    """A text model from its spec.

    Args:
        spec: `hf:folder-or-id`; `file.py:function`, which returns a module or a module and its tokenizer, and is called
            with `options`, and with `num_classes` and `vocab_size` where it takes them; or a folder of `save_student`.
        head: what it puts out. A Hugging Face model without a classifier gets one, which is still to be fitted. An
            embedder's tokens are pooled as sentence-transformers' files beside it say, and averaged without any.
        classes: names of the data's classes, for such a classifier.
        pairs: whether samples are two texts.
        length: most tokens of a sample, in place of what the model allows.
        weights: safetensors or a plain state dict.
        tokenizer: for a function that returns none.
        trust_remote_code: whether an `hf:` model may run the code that it brings along.
        precision: what it computes in: a student and whatever is trained in float32, a teacher perhaps in less.
        config: sizes of an `hf:` model's configuration, which then has random weights.

    Raises UserError for a model without a tokenizer, or with one that has more ids than the model has embeddings, and
    for a length that leaves no room for text.
    """
    options, fresh = dict(options or {}), tuple[str, ...]()
    outputs = {"number": 1, "embedding": None}.get(head, len(classes))
    usual, pooling = LENGTH[head], None
    if exists(Path(spec) / STUDENT_FILE):
        spec, own_options, weights, tokenizer = _saved(Path(spec), weights, tokenizer)
        options = own_options | options
    if spec.startswith("hf:"):
        module, own, fresh = text_model(spec[3:], head, classes, options, trust_remote_code, LOADED[precision], config)
        if head == "embedding":
            pooling, most = written_layout(spec[3:])
            usual = min(usual, most or usual)
    elif ".py:" in spec:
        module, own = _from_function(spec, options, outputs, tokenizer)
    else:
        raise UserError(f"no text model {spec!r}: it is hf:FOLDER-OR-ID, file.py:function, or a student's folder")
    tokenizer = own or tokenizer
    if tokenizer is None:
        raise UserError(f"{spec} comes without a tokenizer: let the function return (module, tokenizer)")
    if weights is not None:
        load_weights(module, Path(weights))
        fresh = ()
    elif spec.startswith("hf:"):
        refuse_nonfinite(module, module.state_dict(), spec)
    lower(module, precision, spec)
    expected = text_input(module, tokenizer, spec, usual, pairs, length)
    _refuse_short(expected, spec, head, pairs)
    if head == "embedding":
        embed(module, pooling or "mean")
        fresh = ()  # a pooler that nothing asks
    return Model(module, spec, options, expected, fresh=fresh)


def _saved(folder: Path, weights: Any, tokenizer: Any) -> tuple[str, dict[str, Any], Any, Any]:
    """What a student's folder was saved as: a spec and its options, its weights and its tokenizer."""
    try:
        about = json.loads((folder / STUDENT_FILE).read_text())
        spec, options = about["model"], about["options"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / STUDENT_FILE} does not describe a student: {first_line(error)}") from error
    if ".py:" not in spec:
        return f"hf:{folder}", {}, weights, tokenizer
    own = transformers().AutoTokenizer.from_pretrained(folder)
    return str(folder / spec), options, weights or folder / "model.safetensors", own


def text_input(module: nn.Module, tokenizer: Any, spec: str, usual: int, pairs: bool, length: int | None) -> TextInput:
    """What a module with a tokenizer expects. UserError where the two do not belong together."""
    config: Any = getattr(module, "config", None)
    rows, ids = _embeddings(module), max(tokenizer.get_vocab().values(), default=-1) + 1  # there may be gaps
    if rows is not None and ids > rows:
        raise UserError(
            f"{spec}: its tokenizer ({type(tokenizer).__name__}) has {ids:,} ids, the model embeds "
            f"{rows:,}: it is another model's; save the right one beside the model"
        )
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token is None:
            raise UserError(f"{spec}: its tokenizer has neither a padding nor an end-of-text token: give it one")
        tokenizer.pad_token = tokenizer.eos_token
    if config is not None:  # a decoder finds the last token of a text by it
        config.pad_token_id = tokenizer.pad_token_id
    most = min(int(tokenizer.model_max_length), int(getattr(config, "max_position_embeddings", None) or 2**31))
    if length is not None and length > most:
        raise UserError(f"data.length: {spec} takes at most {most} tokens; {length} came")
    taken = inspect.signature(module.forward).parameters
    names = tuple(name for name in INPUTS if name in taken and (name != "token_type_ids" or pairs))
    if INPUTS[0] not in names:
        raise UserError(f"{spec}: its forward needs to take `input_ids`, and `attention_mask` where texts are padded")
    return TextInput(tokenizer, length or min(usual, most), names, fingerprint_of(tokenizer))


def _refuse_short(expected: TextInput, spec: str, head: Head, pairs: bool) -> None:
    """UserError for a length that leaves no room for text, or none for a token behind another."""
    if head == "tokens":
        if expected.length < 2:
            raise UserError(
                f"data.length: a language model needs blocks of at least 2 tokens; {expected.length} came: raise it"
            )
        return
    special, texts = int(expected.tokenizer.num_special_tokens_to_add(pair=pairs)), 1 + pairs
    if expected.length < special + texts:
        raise UserError(
            f"data.length: {spec} adds {special} special tokens to a sample, so that at least {special + texts} are "
            f"needed; {expected.length} came: raise it"
        )


def _from_function(spec: str, options: dict[str, Any], outputs: int | None, tokenizer: Any) -> tuple[nn.Module, Any]:
    vocabulary = len(tokenizer) if tokenizer is not None else None
    made = model_of(spec, {"num_classes": outputs, "vocab_size": vocabulary}, options)
    module, own = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(module, nn.Module):
        raise UserError(f"{spec} must return a torch.nn.Module, or one and its tokenizer; {type(module).__name__} came")
    return module, own


def _embeddings(module: nn.Module) -> int | None:
    """How many ids a model has embeddings for."""
    find = getattr(module, "get_input_embeddings", None)
    table = find() if find is not None else None
    return table.num_embeddings if isinstance(table, nn.Embedding) else None
