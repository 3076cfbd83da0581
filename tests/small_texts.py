"""Small text models of several families, each with a tokenizer, and sentences about films: built in code."""

import random
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    ModernBertConfig,
    ModernBertForSequenceClassification,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

GOOD, BAD = ["good", "great", "fine", "lovely", "superb"], ["bad", "poor", "awful", "dull", "weak"]
REST = ["the", "a", "film", "movie", "plot", "cast", "is", "was", "really"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]


def sentences(count: int, seed: int) -> dict[str, list[str]]:
    """Sentences, and whether they hold more good words than bad ones: pos or neg."""
    draw = random.Random(seed)
    texts, labels = [], []
    for _ in range(count):
        words = draw.choices(REST, k=draw.randint(3, 12))
        found = draw.choices(GOOD + BAD, k=draw.choice((1, 3)))
        for word in found:
            words.insert(draw.randrange(len(words) + 1), word)
        texts.append(" ".join(words))
        labels.append("pos" if sum(1 if word in GOOD else -1 for word in found) > 0 else "neg")
    return {"text": texts, "label": labels}


def splits() -> dict[str, Any]:
    return {"train": lambda: sentences(800, 0), "test": lambda: sentences(200, 1)}


def train() -> dict[str, list[str]]:
    return sentences(800, 0)


def test() -> dict[str, list[str]]:
    return sentences(200, 1)


test.__test__ = False  # type: ignore[attr-defined]  # data, not a test


def tokenizer(more: tuple[str, ...] = ()) -> PreTrainedTokenizerFast:
    words = [*SPECIAL, *GOOD, *BAD, *REST, *more]
    made = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        eos_token="[SEP]",
        model_max_length=48,
    )


SHAPE = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 32}
GROUPED = SHAPE | {"num_attention_heads": 4, "num_key_value_heads": 2}
IDS = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
LONG = {"max_position_embeddings": 48}


def bert(num_classes: int = 2, vocab_size: int = 23, **changed: Any) -> tuple[Any, Any]:
    config = BertConfig(**SHAPE, **LONG, vocab_size=vocab_size, num_labels=num_classes, pad_token_id=0)
    config.update(changed)
    return BertForSequenceClassification(config), tokenizer()


def distilbert(num_classes: int = 2) -> tuple[Any, Any]:
    config = DistilBertConfig(
        dim=16, n_layers=4, n_heads=2, hidden_dim=32, vocab_size=23, num_labels=num_classes, pad_token_id=0, **LONG
    )
    return DistilBertForSequenceClassification(config), tokenizer()


def modernbert(num_classes: int = 2) -> tuple[Any, Any]:
    config = ModernBertConfig(
        **SHAPE, **IDS, **LONG, vocab_size=23, num_labels=num_classes, cls_token_id=2, sep_token_id=3
    )
    return ModernBertForSequenceClassification(config), tokenizer()


def llama_classifier(num_classes: int = 2) -> tuple[Any, Any]:
    return LlamaForSequenceClassification(
        LlamaConfig(**GROUPED, **IDS, **LONG, vocab_size=23, num_labels=num_classes)
    ), tokenizer()


def llama(**changed: Any) -> tuple[Any, Any]:
    return LlamaForCausalLM(LlamaConfig(**(GROUPED | IDS | LONG | {"vocab_size": 23} | changed))), tokenizer()


def gpt2() -> tuple[Any, Any]:
    config = GPT2Config(n_embd=16, n_layer=4, n_head=2, n_positions=48, vocab_size=23, bos_token_id=2, eos_token_id=3)
    return GPT2LMHeadModel(config), tokenizer()


def qwen2() -> tuple[Any, Any]:
    return Qwen2ForCausalLM(Qwen2Config(**GROUPED, **IDS, **LONG, vocab_size=23)), tokenizer()


def qwen3() -> tuple[Any, Any]:
    return Qwen3ForCausalLM(Qwen3Config(**GROUPED, **IDS, **LONG, vocab_size=23, head_dim=8)), tokenizer()


CLASSIFIERS = ("bert", "distilbert", "modernbert", "llama_classifier")
GENERATORS = ("llama", "gpt2", "qwen2", "qwen3")
