"""Small models that embed sentences about films, and pairs of these with a number for how alike they are."""

import random
from typing import Any

from transformers import BertConfig, BertModel, LlamaConfig, LlamaModel

import small_texts


def pairs(count: int, seed: int) -> dict[str, Any]:
    """Two sentences, and from 0 to 5 how alike their shares of good words among good and bad ones are."""
    sentences = small_texts.sentences(2 * count, seed)["text"]
    first, second = sentences[:count], sentences[count:]
    apart = [abs(_good(one) - _good(other)) for one, other in zip(first, second, strict=True)]
    return {"text": first, "text_pair": second, "label": [round(5 * (1 - share), 2) for share in apart]}


def _good(text: str) -> float:
    words = [word for word in text.split() if word in small_texts.GOOD + small_texts.BAD]
    return sum(word in small_texts.GOOD for word in words) / len(words)


def train() -> dict[str, Any]:
    return pairs(400, 0)


def test() -> dict[str, Any]:
    return pairs(120, 1)


test.__test__ = False  # type: ignore[attr-defined]  # data, not a test


def validation() -> dict[str, Any]:
    return pairs(100, 2)


def texts() -> list[str]:
    return small_texts.sentences(400, 3)["text"]


def some_labels() -> dict[str, Any]:
    made = pairs(400, 0)
    draw = random.Random(0)
    return made | {"label": [label if draw.random() < 0.5 else None for label in made["label"]]}


def words_for_labels() -> dict[str, Any]:
    return test() | {"label": ["alike"] * 120}


def bert() -> tuple[Any, Any]:
    config = BertConfig(**small_texts.SHAPE, **small_texts.LONG, vocab_size=23, pad_token_id=0)
    return BertModel(config), small_texts.tokenizer()


def narrow() -> tuple[Any, Any]:
    shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    return BertModel(BertConfig(**shape, **small_texts.LONG, vocab_size=23, pad_token_id=0)), small_texts.tokenizer()


def llama() -> tuple[Any, Any]:
    config = LlamaConfig(**small_texts.GROUPED, **small_texts.IDS, **small_texts.LONG, vocab_size=23)
    return LlamaModel(config), small_texts.tokenizer()
