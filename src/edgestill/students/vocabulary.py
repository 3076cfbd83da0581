"""A student with the tokens that its data uses: a smaller tokenizer, and the model's rows for them. K kept ids."""

import json
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgestill.errors import UserError, first_line
from edgestill.models import forward
from edgestill.models.hugging_face import transformers

KEY = "student.from_teacher.vocabulary"
BYTES = {f"<0x{number:02X}>" for number in range(256)}
"""The pieces of a tokenizer with byte fallback, which write every character that is no piece."""
SPACE = "▁"
"""What such a tokenizer writes for a space; spelled in bytes, it would stay this character."""
PROBED = 8


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """Some of a tokenizer's ids.

    Attributes:
        kept: int64 [K], the old id of each new one, rising.
        tokenizer: writes with the new ids.
    """

    kept: NDArray[np.int64]
    tokenizer: Any


def smaller_vocabulary(tokenizer: Any, used: Iterable[int], named: Iterable[int] = ()) -> Vocabulary:
    """The ids that are `used`, and a tokenizer of these alone.

    Kept as well: special and added tokens, ids that are `named` (by a configuration), and what any other text is
    written with, and read back from, in smaller pieces: the pieces that merges of BPE make a kept token of, and single
    characters; with byte fallback the bytes in their place. A text whose tokens are all used is written as before.

    Raises UserError for a tokenizer that has no smaller pieces (WordLevel), or is not a fast one of `tokenizers`.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    state = {} if backend is None else json.loads(backend.to_str())
    kind = state.get("model", {}).get("type")
    if kind not in ("BPE", "WordPiece", "Unigram"):
        raise UserError(
            f"{KEY}: data needs a fast tokenizer of BPE, WordPiece or Unigram, which writes any text in smaller "
            f"pieces; {type(tokenizer).__name__} of {kind or 'another kind'} came: keep all"
        )
    vocab = _vocab(state["model"])
    names, added = {number: token for token, number in vocab.items()}, {token["id"] for token in state["added_tokens"]}
    kept = {int(number) for number in (*used, *named)} & (names.keys() | added)
    _renumbered(state["post_processor"], lambda number: kept.add(number) or number)  # type: ignore[func-returns-value]
    kept |= {vocab[token] for token in _pieces(state["model"], vocab, {names[one] for one in kept - added})} | added
    places = {old: place for place, old in enumerate(sorted(kept))}
    return Vocabulary(np.array(sorted(kept), np.int64), _rewritten(tokenizer, places))


def select_vocabulary(module: nn.Module, kept: NDArray[np.int64]) -> None:
    """From now on the module has the ids `kept` [K] alone, numbered from 0: rows of its embeddings and of the layer
    that puts out a logit an id, shared or not, and the ids in its configuration. All else stays as it is.

    Raises UserError for a module that is no Hugging Face model, or answers otherwise with its rows selected.
    """
    table: Any = module.get_input_embeddings() if hasattr(module, "save_pretrained") else None  # type: ignore[operator]
    if not isinstance(table, nn.Embedding):
        raise UserError(f"{KEY}: {type(module).__name__} is no Hugging Face model with embeddings, whose rows are kept")
    head: Any = module.get_output_embeddings()  # type: ignore[operator]
    probe = torch.from_numpy(kept[:PROBED])[None]
    before, rows = _answers(module, probe), table.num_embeddings
    shared = head is not None and head.weight is table.weight
    _select(table, kept)
    if head is not None:
        _select(head, kept)
        before = before[..., kept]
    if shared:
        head.weight = table.weight
    places = {int(old): place for place, old in enumerate(kept)}
    _renumber(module, rows, places)
    refused = f"{KEY}: {type(module).__name__} has further weights with a row an id, or its positions go by them"
    try:
        after = _answers(module, torch.arange(probe.shape[1])[None])
    except Exception as error:
        raise UserError(f"{refused}: {first_line(error)}; keep all") from error
    if after.shape != before.shape or not torch.allclose(after, before, rtol=1e-3, atol=1e-3):
        raise UserError(f"{refused}: it answers otherwise; keep all")


def named_ids(module: nn.Module) -> list[int]:
    """The ids that the configurations of a Hugging Face model name: padding, begin and end, and the like."""
    named = [value for config in _configs(module) for name, value in vars(config).items() if name.endswith("_token_id")]
    each = [number for value in named for number in (value if isinstance(value, list | tuple) else [value])]
    return [number for number in each if isinstance(number, int)]


def _vocab(model: Mapping[str, Any]) -> dict[str, int]:
    listed = model["vocab"]
    return dict(listed) if isinstance(listed, dict) else {token: number for number, (token, _) in enumerate(listed)}


def _pieces(model: Mapping[str, Any], vocab: dict[str, int], used: set[str]) -> set[str]:
    """The tokens that have to stay beside those that are used."""
    prefix, suffix = model.get("continuing_subword_prefix") or "", model.get("end_of_word_suffix") or ""
    found = {str(model.get("unk_token"))} & vocab.keys()
    if model.get("byte_fallback") and vocab.keys() >= BYTES:
        found |= BYTES | ({SPACE} & vocab.keys())
    else:
        found |= {token for token in vocab if len(token.removeprefix(prefix).removesuffix(suffix)) == 1}
        if model["type"] != "BPE":  # a character that stands in longer pieces alone
            found |= {token for token in vocab if not found.issuperset(_spelled(token, prefix))}
    if model["type"] == "BPE":
        ranks = {tuple(_pair(merge)): rank for rank, merge in enumerate(model["merges"])}
        found |= {piece for token in used for piece in _built(token, ranks, prefix, suffix)} & vocab.keys()
    if model["type"] == "Unigram":  # the least score is what an unknown character costs
        scores = [score for _, score in model["vocab"]]
        found |= {model["vocab"][scores.index(min(scores))][0]}
        found |= {model["vocab"][model["unk_id"]][0]} if model["unk_id"] is not None else set()
    return found


def _spelled(token: str, prefix: str) -> Iterator[str]:
    """The pieces of a single character that a token could be written with."""
    rest = token.removeprefix(prefix)
    for place, character in enumerate(rest):
        yield character if place == 0 and rest == token else prefix + character


def _built(token: str, ranks: Mapping[tuple[str, ...], int], prefix: str, suffix: str) -> set[str]:
    """All pieces on the way from a token's characters to itself, merged in the tokenizer's order.

    >>> sorted(_built("her", {("h", "e"): 0, ("e", "r"): 1, ("he", "r"): 2}, "", ""))
    ['e', 'h', 'he', 'her', 'r']
    """
    parts = [*_spelled(token.removesuffix(suffix), prefix)]
    if suffix and token.endswith(suffix) and parts:
        parts[-1] += suffix
    found = {*parts}
    while len(parts) > 1:
        rank, place = min((ranks.get(pair, len(ranks)), place) for place, pair in enumerate(pairwise(parts)))
        if rank == len(ranks):
            break
        parts[place : place + 2] = [parts[place] + parts[place + 1].removeprefix(prefix)]
        found.add(parts[place])
    return found


def _pair(merge: str | list[str]) -> list[str]:
    return merge.split(" ") if isinstance(merge, str) else merge


def _rewritten(tokenizer: Any, places: Mapping[int, int]) -> Any:
    """The tokenizer with these ids alone, read from a folder as a saved student's will be."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        path = Path(folder) / "tokenizer.json"
        state = json.loads(path.read_text(encoding="utf-8"))
        expected = {token: places[number] for token, number in tokenizer.get_vocab().items() if number in places}
        path.write_text(json.dumps(_smaller(state, places), ensure_ascii=False), encoding="utf-8")
        for other in ("vocab.txt", "vocab.json", "merges.txt", "added_tokens.json"):
            (Path(folder) / other).unlink(missing_ok=True)  # of the old ids
        made = transformers().AutoTokenizer.from_pretrained(folder)
    made.name_or_path = tokenizer.name_or_path
    if made.get_vocab() != expected:
        raise UserError(
            f"{KEY}: {type(tokenizer).__name__} with {len(places):,} of its tokens is read back with other ids: keep "
            "all"
        )
    return made


def _smaller(state: dict[str, Any], places: Mapping[int, int]) -> dict[str, Any]:
    """What tokenizer.json holds, with these ids alone."""
    model = dict(state["model"])
    vocab = {token: places[number] for token, number in _vocab(model).items() if number in places}
    if isinstance(model["vocab"], dict):
        model["vocab"] = vocab
    else:
        model["vocab"] = [entry for number, entry in enumerate(model["vocab"]) if number in places]
    if model.get("unk_id") is not None:
        model["unk_id"] = places[model["unk_id"]]
    if "merges" in model:
        prefix = model.get("continuing_subword_prefix") or ""
        pairs = [(merge, *_pair(merge)) for merge in model["merges"]]
        model["merges"] = [
            merge for merge, one, other in pairs if {one, other, one + other.removeprefix(prefix)} <= vocab.keys()
        ]
    padding = state["padding"] and state["padding"] | {"pad_id": places[state["padding"]["pad_id"]]}
    return state | {
        "model": model,
        "padding": padding,
        "added_tokens": [token | {"id": places[token["id"]]} for token in state["added_tokens"]],
        "post_processor": _renumbered(state["post_processor"], places.__getitem__),
    }


def _renumbered(part: Any, of: Callable[[int], int]) -> Any:
    """A post-processor with other ids: those of a template's special tokens, or of its `sep` and `cls`."""
    if isinstance(part, list):
        return [_renumbered(one, of) for one in part]
    if not isinstance(part, dict):
        return part
    made = {name: _renumbered(value, of) for name, value in part.items()}
    if "ids" in part:
        made["ids"] = [of(number) for number in part["ids"]]
    for name in ("sep", "cls"):
        if isinstance(part.get(name), list):
            made[name] = [part[name][0], of(part[name][1])]
    return made


def _select(layer: Any, kept: NDArray[np.int64]) -> None:
    """Some rows of a layer: of its weight, and of what else it has one of a row."""
    count, rows = len(layer.weight), torch.from_numpy(kept).to(layer.weight.device)
    for name, tensor in [*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)]:
        if tensor.shape[:1] == (count,):
            chosen = tensor.detach()[rows]
            kind = isinstance(tensor, nn.Parameter)
            setattr(layer, name, nn.Parameter(chosen, tensor.requires_grad) if kind else chosen)
    for name in ("num_embeddings", "out_features"):
        if hasattr(layer, name):
            setattr(layer, name, len(kept))


def _renumber(module: nn.Module, rows: int, places: Mapping[int, int]) -> None:
    """The size and the ids that a model's configurations name, and its modules beside them."""
    for part in module.modules():
        if getattr(part, "padding_idx", None) in places:
            part.padding_idx = places[part.padding_idx]  # type: ignore[assignment,index]
        if vars(part).get("vocab_size") == rows:
            part.vocab_size = len(places)  # type: ignore[assignment]
    for config in _configs(module):
        if hasattr(config, "vocab_size"):
            config.vocab_size = len(places)
        for name, value in [*vars(config).items()]:
            if name.endswith("_token_id") and isinstance(value, int):
                setattr(config, name, places.get(value, value))
            elif name.endswith("_token_id") and isinstance(value, list | tuple):
                setattr(config, name, [places.get(number, number) for number in value])
            elif name.endswith("suppress_tokens") and value:
                setattr(config, name, [places[number] for number in value if number in places])


def _configs(module: Any) -> list[Any]:
    config = module.config
    found = (config, config.get_text_config(), getattr(module, "generation_config", None))
    return [*{id(one): one for one in found if one is not None}.values()]


@torch.no_grad()
def _answers(module: nn.Module, ids: Tensor) -> Tensor:
    return forward(module.eval(), ids.to(next(module.parameters()).device)).float()
