"""The source code of the Python installation that runs this: texts, a tokenizer, a teacher and a student."""

import sysconfig
from functools import cache
from pathlib import Path
from typing import Any

LEFT_OUT = {"site-packages", "test", "tests", "idlelib", "lib2to3", "turtledemo", "__pycache__"}
TEST_SHARE, TRAIN_SHARE = 20, 3
"""One file in so many is for the test, and of the others one in so many for training: enough for small models."""
VOCABULARY = 2048


@cache
def sources() -> tuple[list[str], list[str]]:
    """The standard library's modules, for training and for the test: told apart by their order."""
    root = Path(sysconfig.get_path("stdlib"))
    files = sorted(path for path in root.rglob("*.py") if not LEFT_OUT & {*path.relative_to(root).parts})
    texts = [path.read_text(encoding="utf-8", errors="replace") for path in files]
    kept = [text for text in texts if text.strip()]
    rest = [text for place, text in enumerate(kept) if place % TEST_SHARE]
    return rest[::TRAIN_SHARE], kept[::TEST_SHARE]


def train() -> list[str]:
    return sources()[0]


def test() -> list[str]:
    return sources()[1]


@cache
def tokenizer() -> Any:
    """Byte-level BPE of 2,048 tokens, learned from the training texts."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|end|>", "<|padding|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(train(), trainer)
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=made,
        eos_token="<|end|>",
        bos_token="<|end|>",
        pad_token="<|padding|>",
        clean_up_tokenization_spaces=False,
    )


def llama(width: int, layers: int, heads: int) -> tuple[Any, Any]:
    """A Llama of a width and a number of blocks, with tied embeddings, and the tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=8 * width // 3 // 8 * 8,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=1,
    )
    return LlamaForCausalLM(config), tokenizer()
