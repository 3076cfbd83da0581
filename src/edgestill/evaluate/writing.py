"""What a language model writes behind a prompt: the most probable token each time. B prompts, T tokens, V vocabulary.

There is no cache of keys and values in an exported file, so that token by token each costs a pass over the whole text.
A draft saves almost all of them: what is likely to come is written by a module that has such a cache, and one pass of
the model says up to where it would have written the same (speculative decoding, Leviathan et al. 2023,
https://arxiv.org/abs/2211.17192, with the most probable token in place of sampling). What is written is the model's own
either way.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from edgestill.evaluate.metric import Predict, Track
from edgestill.models import TextInput
from edgestill.tasks.sequences import padded

Draft = Callable[[list[list[int]], int], list[list[int]]]
"""Token ids of prompts, and how many tokens to write at most -> what may follow each."""


LARGEST = 2**28
"""Bytes of the logits of a pass."""
ROWS = 64
"""Prompts that are answered together."""


@dataclass(frozen=True)
class LanguageModel:
    """A module or an artifact, as skills ask it.

    Attributes:
        predict: int64 [B, inputs, T] -> logits [B, T, V].
        vocabulary: ids from 0 on that it may write; the logits behind them stand for nothing.
        draft: proposes what it may write.
        ends: tokens that end a reply; the tokenizer's end of text unless told.
        batch: most texts a pass.
    """

    predict: Predict
    expected: TextInput
    vocabulary: int
    draft: Draft | None = None
    ends: frozenset[int] | None = None
    batch: int = 16

    @property
    def rows(self) -> int:
        """Texts a pass: fewer where their logits are large."""
        return max(1, min(self.batch, LARGEST // (4 * self.expected.length * self.vocabulary)))


def write(
    model: LanguageModel, prompts: Sequence[Sequence[int]], most: int, ends: Callable[[str], bool] | None = None
) -> list[str]:
    """The most probable continuation of each prompt, at most `most` tokens of it, as text.

    It ends before a token that ends replies, at the model's length, and where the text so far `ends`.

    >>> write(model, [tokenizer("2 + 2 =").input_ids], 8, lambda text: "\\n" in text)  # doctest: +SKIP
    [' 4\\n']
    """
    tokenizer = model.expected.tokenizer
    last = model.ends if model.ends is not None else {tokenizer.eos_token_id}
    written: list[list[int]] = [[] for _ in prompts]
    room = [min(most, model.expected.length - len(prompt)) for prompt in prompts]
    left = [row for row in range(len(prompts)) if room[row] > 0]
    while left:
        texts = [[*prompts[row], *written[row]] for row in left]
        open_ = [room[row] - len(written[row]) for row in left]
        drafts = model.draft(texts, max(open_)) if model.draft else [[] for _ in left]
        drafts = [draft[: count - 1] for draft, count in zip(drafts, open_, strict=True)]
        going_on = []
        for row, new in zip(left, _accepted(model, texts, drafts), strict=True):
            for token in new:
                if token in last:
                    break
                written[row].append(token)
                if ends is not None and ends(tokenizer.decode(written[row])):
                    break
            else:  # all of it was taken
                if len(written[row]) < room[row]:
                    going_on.append(row)
        left = going_on
    return [tokenizer.decode(ids) for ids in written]


def answers(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    most: int,
    stops: Sequence[str] = (),
    track: Track = lambda items, *_: items,
    description: str = "",
) -> list[str]:
    """What is written behind each prompt of token ids, up to where one of `stops` would stand; see `write`."""
    ends = (lambda text: any(stop in text for stop in stops)) if stops else None
    places = range(0, len(prompts), ROWS)
    found: list[str] = []
    for start in track(places, description, len(places)):
        found += write(model, prompts[start : start + ROWS], most, ends)
    return [_before(reply, stops) for reply in found]


def prompt_ids(expected: TextInput, prompt: str | list[dict[str, str]]) -> list[int]:
    """A prompt as the tokenizer begins a text; or messages of {role, content} as its chat template writes them, up to
    where the assistant's answer begins."""
    tokenizer = expected.tokenizer
    if not isinstance(prompt, str):
        return expected.chat(prompt, asked=True)
    ids = [int(token) for token in tokenizer(prompt, verbose=False).input_ids]
    if ids and ids[-1] == tokenizer.eos_token_id:  # which closes a text
        ids = ids[:-1]
    return ids or [int(tokenizer.bos_token_id if tokenizer.bos_token_id is not None else expected.padding)]


def with_room(ids: list[int], expected: TextInput, most: int) -> list[int]:
    """A prompt that loses its beginning where `most` tokens have no room behind it."""
    return ids[-max(1, expected.length - most) :]


def _before(reply: str, stops: Sequence[str]) -> str:
    places = [place for stop in stops if stop and (place := reply.find(stop)) >= 0]
    return reply[: min(places)] if places else reply


def _accepted(model: LanguageModel, texts: list[list[int]], drafts: list[list[int]]) -> list[list[int]]:
    """Of each draft what the model would have written itself, and its own token behind that: at least one."""
    found: list[list[int]] = [[] for _ in texts]
    order = np.argsort([len(text) + len(draft) for text, draft in zip(texts, drafts, strict=True)], kind="stable")
    for start in range(0, len(order), model.rows):
        rows = order[start : start + model.rows].tolist()
        logits = model.predict(_inputs([texts[row] + drafts[row] for row in rows], model.expected))
        for place, row in enumerate(rows):
            first = len(texts[row]) - 1
            own = logits[place, first : first + len(drafts[row]) + 1, : model.vocabulary].argmax(-1).tolist()
            same = next((n for n, token in enumerate(drafts[row]) if token != own[n]), len(drafts[row]))
            found[row] = own[: same + 1]
    return found


def _inputs(rows: list[list[int]], expected: TextInput) -> NDArray[np.int64]:
    """Texts of token ids as a model takes them [B, inputs, T]."""
    lengths = np.asarray([len(row) for row in rows], np.int64)
    ids = np.concatenate([np.asarray(row, np.int32) for row in rows])
    return padded(ids, np.cumsum(lengths) - lengths, lengths, None, expected)


def drafting(
    module: nn.Module, expected: TextInput, vocabulary: int, ends: frozenset[int] | None = None, batch: int = 16
) -> Draft | None:
    """Drafts of a module that keeps keys and values, as Hugging Face's decoders do; None of any other."""
    generate: Any = getattr(module, "generate", None)
    if generate is None or "attention_mask" not in expected.names:
        return None
    from transformers import GenerationConfig

    device, tokenizer = next(module.parameters()).device, expected.tokenizer
    out_of_reach = range(vocabulary, int(getattr(module.config, "vocab_size", vocabulary)))

    def draft(texts: list[list[int]], most: int) -> list[list[int]]:
        found: list[list[int]] = [[] for _ in texts]
        order = np.argsort([len(text) for text in texts], kind="stable")
        for start in range(0, len(order), batch):
            rows = order[start : start + batch].tolist()
            longest = max(len(texts[row]) for row in rows)
            room = min(most, expected.length - longest)
            if room < 1:
                continue
            config = GenerationConfig(  # type: ignore[no-untyped-call]
                max_new_tokens=room,
                do_sample=False,
                eos_token_id=sorted(ends) if ends else tokenizer.eos_token_id,
                pad_token_id=expected.padding,
                suppress_tokens=[*out_of_reach] or None,
            )
            ids = torch.full((len(rows), longest), expected.padding, dtype=torch.long)
            mask = torch.zeros_like(ids)
            for place, row in enumerate(rows):  # padded on the left: what is written stands at the end
                ids[place, longest - len(texts[row]) :] = torch.tensor(texts[row])
                mask[place, longest - len(texts[row]) :] = 1
            with torch.inference_mode():
                made = generate(ids.to(device), attention_mask=mask.to(device), generation_config=config)
            for place, row in enumerate(rows):
                found[row] = made[place, longest:].tolist()
        return found

    return draft
