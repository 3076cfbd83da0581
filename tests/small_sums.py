"""A small language model that learns to add digits, and what it is asked: built in code."""

import random
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

LETTERS = ["<|end|>", "<|padding|>", "?", "\n", " ", "+", "=", "\\", *"0123456789", *"abcdefghijklmnopqrstuvwxyz:,.A"]
TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}"


def tokenizer() -> PreTrainedTokenizerFast:
    made = Tokenizer(models.WordLevel({letter: number for number, letter in enumerate(LETTERS)}, unk_token="?"))
    made.pre_tokenizer = pre_tokenizers.Split(Regex("[\\s\\S]"), "isolated")
    made.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        eos_token="<|end|>",
        pad_token="<|padding|>",
        chat_template=TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def llama(width: int = 48, layers: int = 2) -> tuple[Any, Any]:
    config = LlamaConfig(
        vocab_size=len(LETTERS),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=96,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=1,
    )
    return LlamaForCausalLM(config), tokenizer()


def _sums(count: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    pairs = [(draw.randrange(10), draw.randrange(10)) for _ in range(count)]
    return [f"{one}+{other}={one + other}" for one, other in pairs]


def train() -> list[str]:
    return _sums(6000, 0)


def test() -> list[str]:
    return _sums(300, 1)


test.__test__ = False  # type: ignore[attr-defined]  # data, not a test


def asked() -> dict[str, list[Any]]:
    """All sums of two digits: what they are, and a wrong result beside the right one."""
    pairs = [(one, other) for one in range(10) for other in range(10)]
    return {
        "one": [one for one, _ in pairs],
        "other": [other for _, other in pairs],
        "sum": [one + other for one, other in pairs],
        "results": [[str(one + other), str((one + other + 3) % 19)] for one, other in pairs],
    }


def odd(reply: str, row: dict[str, Any]) -> float:
    """A scorer of one's own: whether a reply is as odd as the sum."""
    return float(reply.strip().isdigit() and int(reply) % 2 == row["sum"] % 2)
