"""Small text models with tokenizers that are trained on many more words than the sentences about films use."""

import json
import random
from collections.abc import Callable
from functools import cache
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    ModernBertConfig,
    ModernBertForSequenceClassification,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

import small_texts

SIZE = 600
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,!?'-éüß中文"
CLASS_TOKENS = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}


@cache
def corpus() -> list[str]:
    """Sentences about films, and made-up words that these do not use."""
    draw = random.Random(0)
    words = ["".join(draw.choices(LETTERS, k=draw.randint(2, 8))) for _ in range(300)]
    others = [" ".join(draw.choices(words, k=10)) for _ in range(400)]
    return [*small_texts.sentences(200, 2)["text"], *others, LETTERS]


def wordpiece() -> PreTrainedTokenizerFast:
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=SIZE, special_tokens=["[UNK]", "[PAD]"], show_progress=False)
    made.train_from_iterator(corpus(), trainer)
    made.add_special_tokens(["[CLS]", "[SEP]"])  # behind all others
    made.post_processor = processors.BertProcessing(
        ("[SEP]", made.token_to_id("[SEP]")), ("[CLS]", made.token_to_id("[CLS]"))
    )
    return PreTrainedTokenizerFast(tokenizer_object=made, model_max_length=48, **CLASS_TOKENS)


def byte_level() -> PreTrainedTokenizerFast:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=SIZE, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator(corpus(), trainer)
    made.add_special_tokens(["<|endoftext|>", "[PAD]", "[CLS]", "[SEP]"])
    made.add_tokens(["<think>"])
    ends = [(token, made.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=ends
    )
    ends = {"eos_token": "<|endoftext|>", "bos_token": "<|endoftext|>", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=made, model_max_length=48, pad_token="[PAD]", **ends)


BYTES = [f"<0x{number:02X}>" for number in range(256)]


def fallback() -> PreTrainedTokenizerFast:
    """Of Llama's kind: merges between characters, bytes for those that are no piece."""
    made = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    made.decoder = decoders.Sequence(steps)
    special = ["<unk>", "<s>", "</s>", *BYTES]
    trainer = trainers.BpeTrainer(vocab_size=SIZE, special_tokens=special, max_token_length=8, show_progress=False)
    made.train_from_iterator(corpus(), trainer)
    plain = made.to_str()
    made = Tokenizer.from_str(_without_added(plain, {*BYTES}))
    return PreTrainedTokenizerFast(
        tokenizer_object=made, model_max_length=48, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


def unigram() -> PreTrainedTokenizerFast:
    made = Tokenizer(models.Unigram())
    made.normalizer = normalizers.NFKC()
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(vocab_size=SIZE, special_tokens=special, unk_token="<unk>", show_progress=False)
    made.train_from_iterator(corpus(), trainer)
    made.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return PreTrainedTokenizerFast(
        tokenizer_object=made, model_max_length=48, unk_token="<unk>", bos_token="<s>", eos_token="</s>",
        pad_token="<pad>", extra_special_tokens=["<mask>"],
    )  # fmt: skip


def _without_added(text: str, tokens: set[str]) -> str:
    """A tokenizer to whose trainer pieces were special, which they are not to be."""
    state = json.loads(text)
    state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] not in tokens]
    return json.dumps(state)


TOKENIZERS = {"wordpiece": wordpiece, "byte_level": byte_level, "fallback": fallback, "unigram": unigram}


def _ids(made: Any) -> dict[str, Any]:
    names = ("pad_token_id", "bos_token_id", "eos_token_id")
    return {"vocab_size": len(made) + 7} | {name: getattr(made, name) for name in names}  # 7 stand for nothing


def bert(**changed: Any) -> tuple[Any, Any]:
    made = wordpiece()
    return BertForSequenceClassification(
        BertConfig(**(small_texts.SHAPE | small_texts.LONG | _ids(made) | changed))
    ), made


def distilbert() -> tuple[Any, Any]:
    made = unigram()
    shape = {"dim": 16, "n_layers": 4, "n_heads": 2, "hidden_dim": 32}
    return DistilBertForSequenceClassification(DistilBertConfig(**shape, **small_texts.LONG, **_ids(made))), made


def modernbert() -> tuple[Any, Any]:
    made = byte_level()
    more = {"cls_token_id": made.cls_token_id, "sep_token_id": made.sep_token_id}
    config = ModernBertConfig(**small_texts.SHAPE, **small_texts.LONG, **_ids(made), **more)
    return ModernBertForSequenceClassification(config), made


def gpt2() -> tuple[Any, Any]:
    made = byte_level()
    return GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=4, n_head=2, n_positions=48, **_ids(made))), made


def llama(make: Callable[[], Any] = fallback, **changed: Any) -> tuple[Any, Any]:
    made = make()
    config = LlamaConfig(**(small_texts.GROUPED | small_texts.LONG | _ids(made) | changed))
    return LlamaForCausalLM(config), made


def llama_tied() -> tuple[Any, Any]:
    return llama(unigram, tie_word_embeddings=True)


def qwen2() -> tuple[Any, Any]:
    made = byte_level()
    return Qwen2ForCausalLM(Qwen2Config(**small_texts.GROUPED, **small_texts.LONG, **_ids(made))), made


def embedder() -> tuple[Any, Any]:
    made = wordpiece()
    return BertModel(BertConfig(**small_texts.SHAPE, **small_texts.LONG, **_ids(made))), made


CLASSIFIERS = ("bert", "distilbert", "modernbert")
GENERATORS = ("gpt2", "llama", "llama_tied", "qwen2")
