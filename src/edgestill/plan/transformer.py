"""A transformer as sizes: how many parameters it has, what a pass costs, and what training keeps of it for the backward
pass. Standard library only.

Shapes: L layers, W width, H heads, K key and value heads, D width of a head, F feed-forward width, V vocabulary, T
tokens of a text.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from edgestill.errors import UserError, closest

Kept = Literal["float32", "autocast", "bf16"]
"""What a pass computes in: float32; bfloat16 from weights of float32; or bfloat16 from weights of bfloat16."""
VALUE: dict[Kept, int] = {"float32": 4, "autocast": 2, "bf16": 2}
"""Bytes of a value that a matrix product puts out."""
RESIDUAL: dict[Kept, int] = {"float32": 4, "autocast": 4, "bf16": 2}
"""Bytes of a value between the layers."""


@dataclass(frozen=True)
class Transformer:
    """Llama-like unless said otherwise: RMS norms before attention and feed-forward, rotary positions, no biases.

    Attributes:
        gated: the feed-forward part has three matrices, and its activation is a product of two.
        tied: the last layer is the embeddings.
        query_bias, output_bias, feed_forward_bias: of the queries, keys and values; of what attention puts out; of both
            ends of the feed-forward part.
        layer_norm: norms subtract the mean and have a bias, as in BERT and GPT-2.
        head_norms: an RMS norm each of the queries and the keys of a head, as in Qwen3.
        positions, types: learned embeddings of them beside the tokens'.
        composed: as in GPT-2, the activation is made of several operations, each of which keeps its own, and queries,
            keys and values are one product, which is kept beside its parts.
        dropout: values are dropped in training, of attentions too.
        classes: of a text, from a pooled first token; None for a language model, which answers at every token.

    >>> small = Transformer(layers=2, width=8, heads=2, key_value_heads=1, head_width=4, feed_forward=16, vocabulary=10)
    >>> small.parameters, small.forward_flops(4)
    (1352, 10880)
    """

    layers: int
    width: int
    heads: int
    key_value_heads: int
    head_width: int
    feed_forward: int
    vocabulary: int
    gated: bool = True
    tied: bool = False
    query_bias: bool = False
    output_bias: bool = False
    feed_forward_bias: bool = False
    layer_norm: bool = False
    head_norms: bool = False
    positions: int = 0
    types: int = 0
    composed: bool = False
    dropout: bool = False
    classes: int | None = None

    @property
    def matrices(self) -> int:
        """Weights of a layer's matrix products: `2·W·H·D + 2·W·K·D + (3 or 2)·W·F`."""
        attention = 2 * self.width * self.head_width * (self.heads + self.key_value_heads)
        return attention + (3 if self.gated else 2) * self.width * self.feed_forward

    @property
    def layer(self) -> int:
        """Parameters of a layer."""
        biases = self.query_bias * (self.heads + 2 * self.key_value_heads) * self.head_width
        biases += self.output_bias * self.width
        biases += self.feed_forward_bias * ((1 + self.gated) * self.feed_forward + self.width)
        return self.matrices + biases + 2 * self._norm + 2 * self.head_norms * self.head_width

    @property
    def embeddings(self) -> int:
        """Parameters of the tokens' embeddings: `V·W`."""
        return self.vocabulary * self.width

    @property
    def head(self) -> int:
        """Parameters of the last layers, those of a tied one left out."""
        if self.classes is not None:
            return (self.width + 1) * (self.width + self.classes)
        return 0 if self.tied else self.embeddings

    @property
    def parameters(self) -> int:
        """All, a tied matrix once."""
        beside = (self.positions + self.types) * self.width + self._norm  # at the end, or, in BERT, of the embeddings
        return self.layers * self.layer + self.embeddings + beside + self.head

    @property
    def answers(self) -> int:
        """Numbers of an answer: V, or the classes."""
        return self.vocabulary if self.classes is None else self.classes

    def answered(self, length: int) -> int:
        """Answers of a text: T, or 1."""
        return length if self.classes is None else 1

    def layer_flops(self, length: int) -> int:
        """Floating-point operations of a text's pass through a layer, a multiplication and an addition counted apart:
        `2·T·matrices`, and `4·T²·H·D` of attention, of which a mask saves none here."""
        return 2 * length * self.matrices + 4 * length**2 * self.heads * self.head_width

    def head_flops(self, length: int) -> int:
        """Those of the last layers: `2·T·W·V`."""
        if self.classes is not None:
            return 2 * self.width * (self.width + self.classes)
        return 2 * length * self.embeddings

    def forward_flops(self, length: int) -> int:
        """Those of a text's forward pass; norms, activations and softmax, a percent or so, are not counted."""
        return self.layers * self.layer_flops(length) + self.head_flops(length)

    def train_flops(self, length: int, recompute: bool = False) -> int:
        """Those of forward and backward, which has two products for each: three times, or, where the layers' forward
        pass is made again for the backward pass, four times of the layers."""
        return 3 * self.forward_flops(length) + recompute * self.layers * self.layer_flops(length)

    def layer_kept(self, length: int, kept: Kept) -> int:
        """Bytes that the backward pass needs of a text's pass through a layer, attention by a fused kernel: what norms,
        matrix products, rotary positions and activations of the Hugging Face models save, tensor by tensor."""
        value, attended = VALUE[kept], self.heads * self.head_width
        both = attended + self.key_value_heads * self.head_width
        tensors = (4 if self.gated else 2) + 3 * self.composed
        found = self._norms_kept(kept) * self.width + value * (2 * both + tensors * self.feed_forward) + 4 * self.heads
        if self.head_norms:
            found += both * (8 if kept == "float32" else 6)
        if self.composed:
            found += 2 * value * attended
        if self.dropout:  # with which torch has no fused kernel on the CPU: scores, and all in float32
            found += 2 * value * self.width + 12 * length * self.heads + 3 * (4 - value) * attended
        return length * found

    def _norms_kept(self, kept: Kept) -> int:
        """Bytes for each of W that a layer's norms keep, with what the products behind them take in: of a LayerNorm
        input and output, of an RMS norm the input's quotient too; autocast makes each product a copy."""
        if not self.layer_norm:
            return {"float32": 24, "autocast": 26, "bf16": 16}[kept]
        if kept == "autocast":
            return 12 if self.composed else 16
        return 4 * RESIDUAL[kept]

    def end_kept(self, length: int, kept: Kept) -> int:
        """The same of embeddings, the last norm and what the last layer takes in, without its answers."""
        if self.classes is not None:
            return length * self.width * RESIDUAL[kept] * (2 + self.dropout)
        norm = 2 if self.layer_norm else 3
        return length * self.width * (norm * RESIDUAL[kept] + (0 if kept != "autocast" else -2))

    def working(self, length: int, kept: Kept) -> int:
        """Bytes of a text's pass through a layer where nothing is kept, at its widest."""
        widest = max((3 if self.gated else 2) * self.feed_forward, 3 * self.heads * self.head_width)
        return length * (2 * RESIDUAL[kept] * self.width + VALUE[kept] * widest)

    @property
    def _norm(self) -> int:
        return (1 + self.layer_norm) * self.width


def read_config(path: Path) -> Transformer:
    """The sizes in a Hugging Face config.json, or in a folder that holds one. UserError where it is none, or of a
    family that is not known here."""
    file = path / "config.json" if path.is_dir() else path
    try:
        said = json.loads(file.read_text(encoding="utf-8"))
    except OSError:
        raise UserError(f"no config.json at {path}: name a Hugging Face folder or its config.json") from None
    except ValueError:
        raise UserError(f"{file} is not a config.json: it is not JSON") from None
    family = said.get("model_type") if isinstance(said, dict) else None
    if family not in FAMILIES:
        raise UserError(
            f"{file}: model_type must be one of {', '.join(FAMILIES)}; {family!r} "
            f"came{closest(str(family), FAMILIES)}: write its sizes (layers, width, heads …) instead"
        )
    try:
        return FAMILIES[family](said)
    except KeyError as error:
        raise UserError(f"{file}: the key {error.args[0]!r} of a {family} model is missing") from None


def _llama(said: dict[str, Any]) -> Transformer:
    heads, family = said["num_attention_heads"], said["model_type"]
    biased = said.get("attention_bias", False)
    return Transformer(
        layers=said["num_hidden_layers"],
        width=said["hidden_size"],
        heads=heads,
        key_value_heads=said.get("num_key_value_heads") or heads,
        head_width=said.get("head_dim") or said["hidden_size"] // heads,
        feed_forward=said["intermediate_size"],
        vocabulary=said["vocab_size"],
        tied=said.get("tie_word_embeddings", False),
        query_bias=biased or family == "qwen2",
        output_bias=biased,
        feed_forward_bias=said.get("mlp_bias", False),
        head_norms=family == "qwen3",
    )


def _bert(said: dict[str, Any]) -> Transformer:
    heads = said["num_attention_heads"]
    return Transformer(
        layers=said["num_hidden_layers"],
        width=said["hidden_size"],
        heads=heads,
        key_value_heads=heads,
        head_width=said["hidden_size"] // heads,
        feed_forward=said["intermediate_size"],
        vocabulary=said["vocab_size"],
        positions=said["max_position_embeddings"],
        types=said.get("type_vocab_size", 2),
        dropout=bool(said.get("hidden_dropout_prob", 0.1)),
        classes=len(said.get("id2label") or (0, 1)),
        **_PLAIN,
    )


def _gpt2(said: dict[str, Any]) -> Transformer:
    width, heads = said["n_embd"], said["n_head"]
    return Transformer(
        layers=said["n_layer"],
        width=width,
        heads=heads,
        key_value_heads=heads,
        head_width=width // heads,
        feed_forward=said.get("n_inner") or 4 * width,
        vocabulary=said["vocab_size"],
        positions=said["n_positions"],
        tied=said.get("tie_word_embeddings", True),
        composed=said.get("activation_function", "gelu_new") == "gelu_new",
        dropout=bool(said.get("resid_pdrop", 0.1)),
        **_PLAIN,
    )


_PLAIN: dict[str, Any] = {
    "gated": False, "query_bias": True, "output_bias": True, "feed_forward_bias": True, "layer_norm": True,
}  # fmt: skip
FAMILIES = {"llama": _llama, "mistral": _llama, "qwen2": _llama, "qwen3": _llama, "bert": _bert, "gpt2": _gpt2}
