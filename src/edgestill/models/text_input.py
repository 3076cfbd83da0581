"""What a text model expects, and texts as it takes them. N samples, T tokens."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from edgestill.errors import UserError, first_line

INPUTS = ("input_ids", "attention_mask", "token_type_ids")


@dataclass(frozen=True)
class Encoded:
    """Texts as token ids, one after another.

    Attributes:
        ids: int32, those of sample i at `starts[i]:starts[i + 1]`.
        starts: int64 [N + 1].
        types: uint8 beside the ids: which of two sentences a token is of; None for single ones.
        cut: how many samples were longer than allowed.
    """

    ids: npt.NDArray[np.int32]
    starts: npt.NDArray[np.int64]
    types: npt.NDArray[np.uint8] | None
    cut: int

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        return np.diff(self.starts)


@dataclass(frozen=True)
class TextInput:
    """What a text model expects: token ids of its own tokenizer, at most `length` of them.

    Attributes:
        names: the model's inputs, in the order in which an artifact takes them.
        fingerprint: of the tokenizer: equal where two split texts alike.
    """

    tokenizer: Any = field(repr=False, compare=False)
    length: int
    names: tuple[str, ...]
    fingerprint: str

    @property
    def padding(self) -> int:
        return int(self.tokenizer.pad_token_id)

    def with_tokenizer(self, tokenizer: Any) -> "TextInput":
        """The same of another tokenizer."""
        return replace(self, tokenizer=tokenizer, fingerprint=fingerprint_of(tokenizer))

    def encode(self, texts: Sequence[str], pairs: Sequence[str] | None) -> Encoded:
        """Texts, or pairs of them, as the model takes them: with its special tokens, cut to `length`."""
        if not len(texts):
            return Encoded(np.zeros(0, np.int32), np.zeros(1, np.int64), None, 0)
        seconds = None if pairs is None else list(pairs)
        two = pairs is not None and "token_type_ids" in self.names
        options = {"return_attention_mask": False, "return_token_type_ids": two}
        batch = self.tokenizer(list(texts), seconds, verbose=False, **options)
        rows, kinds, cut = batch["input_ids"], batch.get("token_type_ids"), 0
        long = [row for row, ids in enumerate(rows) if len(ids) > self.length]
        if long:
            shorter = self.tokenizer(
                [texts[row] for row in long],
                None if pairs is None else [pairs[row] for row in long],
                truncation=True,
                max_length=self.length,
                **options,
            )
            for place, row in enumerate(long):
                rows[row] = shorter["input_ids"][place]
                if kinds is not None:
                    kinds[row] = shorter["token_type_ids"][place]
            cut = len(long)
        starts = np.concatenate([[0], np.cumsum([len(ids) for ids in rows])]).astype(np.int64)
        types = None if kinds is None else np.concatenate(kinds).astype(np.uint8)
        return Encoded(np.concatenate(rows).astype(np.int32), starts, types, cut)

    def chat(self, messages: Sequence[Mapping[str, str]], *, asked: bool) -> list[int]:
        """Messages as the tokenizer's chat template writes them; `asked`, up to where the assistant's answer begins.

        Raises UserError for a tokenizer without a chat template, and for one that does not take the messages."""
        name = type(self.tokenizer).__name__
        if not getattr(self.tokenizer, "chat_template", None):
            raise UserError(
                f"{name} has no chat template, which says how a conversation is written: save one beside the model, as "
                "chat_template.jinja"
            )
        try:
            made = self.tokenizer.apply_chat_template(
                list(messages),
                add_generation_prompt=asked,
                tokenize=True,
                return_dict=False,
                tokenizer_kwargs={"verbose": False},  # how long it may be is ours to say
            )
        except Exception as error:  # whatever a template raises
            roles = ", ".join(message["role"] for message in messages)
            raise UserError(
                f"the chat template of {name} does not write a conversation of {roles}: {first_line(error)}; change "
                "the conversations, or the template"
            ) from error
        return [int(token) for token in made]

    def conversation(self, messages: Sequence[Mapping[str, str]]) -> tuple[list[int], list[int]]:
        """A conversation as the tokenizer's chat template writes it: its token ids, and beside each how many bytes of
        an answer of the assistant's begin with it; −1 for tokens that are none of its answers'.

        Raises UserError for a conversation that begins with an answer, and for a template that does not write it, or
        changes what it wrote before."""
        if messages[0]["role"] == "assistant":
            raise UserError(
                "a conversation begins with the assistant, whose answer is to nothing: put a user's message in front, "
                f"or leave it out: {messages[0]['content'][:60]!r}"
            )

        def written(count: int, asked: bool) -> list[int]:
            return self.chat(messages[:count], asked=asked)

        ids = written(len(messages), False)
        sizes = [-1] * len(ids)
        for place, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before, through = written(place, True), written(place + 1, False)
            if ids[: len(before)] != before or ids[: len(through)] != through:
                raise UserError(
                    f"the chat template of {type(self.tokenizer).__name__} writes earlier messages otherwise once "
                    "others follow: their answers cannot be told apart"
                )
            sizes[len(before) : len(through)] = [0] * (len(through) - len(before))
            if len(through) > len(before):
                sizes[len(before)] = len(message["content"].encode())
        return ids, sizes

    def plain(self, texts: Sequence[str]) -> tuple[list[npt.NDArray[np.int32]], list[npt.NDArray[np.int64]]]:
        """The token ids of each text, without special tokens and uncut; and how many bytes of UTF-8 each token ends.

        Raises UserError for a tokenizer that does not say what of the text its tokens are."""
        if not getattr(self.tokenizer, "is_fast", False):
            raise UserError(f"{type(self.tokenizer).__name__} does not say where its tokens end: take the fast one")
        made = self.tokenizer(
            list(texts),
            add_special_tokens=False,
            return_attention_mask=False,
            return_offsets_mapping=True,
            verbose=False,
        )
        ids, sizes = [], []
        for text, row, spans in zip(texts, made["input_ids"], made["offset_mapping"], strict=True):
            points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
            before = np.concatenate([[0], np.cumsum(1 + (points > 0x7F) + (points > 0x7FF) + (points > 0xFFFF))])
            ends = np.asarray(spans, np.int64).reshape(-1, 2)[:, 1]
            if len(ends):
                ends[-1] = len(points)  # what stands behind the last token, a space perhaps, is of the text too
            ids.append(np.asarray(row, np.int32))
            sizes.append(np.diff(before[np.maximum.accumulate(ends)], prepend=0) if len(ends) else ends)
        return ids, sizes


def fingerprint_of(tokenizer: Any) -> str:
    """Equal of two tokenizers that split texts alike."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:  # how the last call cut and padded is no part of it
        text = json.dumps(json.loads(backend.to_str()) | {"truncation": None, "padding": None})
    else:
        text = repr(sorted(tokenizer.get_vocab().items()))
    return hashlib.blake2b(f"{text}{tokenizer.special_tokens_map}".encode(), digest_size=16).hexdigest()
