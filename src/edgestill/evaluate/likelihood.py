"""What a language model holds of texts that are given: of a continuation behind a context, and of whole texts."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edgestill.evaluate.metric import Track
from edgestill.evaluate.tokens import BITS_PER_BYTE, nats
from edgestill.evaluate.writing import LanguageModel
from edgestill.tasks.tokens import Blocks

Pair = tuple[str, str]


def token_ids(model: LanguageModel, pair: Pair) -> tuple[list[int], int]:
    """A context and its continuation as token ids, and how many of them are the context's: at least one, a separator
    where it is empty. Spaces at the context's end go to the continuation, as tokens begin with them."""
    tokenizer = model.expected.tokenizer
    context = pair[0].rstrip(" ")
    rest = pair[0][len(context) :] + pair[1]
    if context and (before := _begun(tokenizer, context)):  # tokenized as one: a word may begin otherwise by itself
        return _begun(tokenizer, context + rest), len(before)
    begin = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    after = [int(token) for token in tokenizer(context + rest, add_special_tokens=False, verbose=False).input_ids]
    return [int(begin if begin is not None else model.expected.padding), *after], 1


def _begun(tokenizer: Any, text: str) -> list[int]:
    """A text's tokens, with the opening one of a tokenizer that has one, without the closing one."""
    ids = [int(token) for token in tokenizer(text, verbose=False).input_ids]
    return ids[:-1] if ids and ids[-1] == tokenizer.eos_token_id else ids


def continuations(
    model: LanguageModel, pairs: Sequence[Pair], track: Track = lambda items, *_: items, description: str = ""
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Of each (context, continuation): `Σ log p(token | what stands before it)` over the continuation's tokens [N], and
    whether the model would have written it itself [N]. A context that is too long loses its beginning."""
    room = model.expected.length + 1
    rows = [
        (ids[-room:], max(1, count - max(len(ids) - room, 0)))
        for ids, count in (token_ids(model, pair) for pair in pairs)
    ]
    kept = _asked(model, rows, track, description)
    return -kept[:, 0].astype(np.float64), kept[:, 1] > 0


def whole(
    model: LanguageModel, texts: Sequence[str], track: Track = lambda items, *_: items, description: str = ""
) -> NDArray[np.float64]:
    """`Σ log p(token | what stands before it)` over all tokens of each text [N]; of a text that is too long, piece by
    piece, each behind the last token of the one before."""
    rows, owners = [], []
    for owner, text in enumerate(texts):
        ids, _ = token_ids(model, ("", text))
        for start in range(0, max(len(ids) - 1, 1), model.expected.length):
            rows.append((ids[start : start + model.expected.length + 1], 1))
            owners.append(owner)
    kept = _asked(model, rows, track, description)
    return -np.bincount(owners, kept[:, 0], len(texts)).astype(np.float64)


def _asked(
    model: LanguageModel, rows: Sequence[tuple[list[int], int]], track: Track, description: str
) -> NDArray[np.float32]:
    """Of each row of tokens, those behind the first so many: the nats that they cost, and whether each was the most
    probable one [N, 2]."""
    ends = np.cumsum([len(ids) for ids, _ in rows], dtype=np.int64)
    ids = np.concatenate([np.asarray(ids, np.int32) for ids, _ in rows])
    learned = np.concatenate([np.arange(len(ids)) >= count for ids, count in rows])
    starts = np.concatenate([[0], ends[:-1]]).astype(np.int64)
    blocks = Blocks(
        ids, starts, ends, np.ones(len(ids), np.int64), "", "", learned=learned, vocabulary=model.vocabulary
    )
    asked = replace(BITS_PER_BYTE, reduce=_nats_and_greedy, batch=model.rows)
    return asked.answers(model.predict, blocks, model.expected, track=track, description=description)


def _nats_and_greedy(outputs: NDArray[np.float32], blocks: Blocks, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    targets = blocks.targets(rows)
    best = torch.from_numpy(outputs)[..., : blocks.vocabulary].argmax(-1).numpy()
    same = ((best == targets) | (targets < 0)).all(1)
    return np.stack([nats(outputs, blocks, rows), same.astype(np.float32)], axis=1)
