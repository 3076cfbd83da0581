"""How a language model's answers to a skill are scored. N samples."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import log
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgestill.data.texts import Texts
from edgestill.errors import UserError
from edgestill.evaluate import harness, instructions
from edgestill.evaluate.likelihood import continuations
from edgestill.evaluate.metric import Track
from edgestill.evaluate.numbers import same_number, same_text
from edgestill.evaluate.skill import PLAIN, Row, Skill, before, behind, column, filled, instructions_of, right_choice
from edgestill.evaluate.tokens import BITS_PER_BYTE
from edgestill.evaluate.writing import LanguageModel, answers, prompt_ids, with_room
from edgestill.tasks.tokens import packed

RANDOM_BYTE = 8.0
"""Bits of a byte that is drawn at random: the chance of bits per byte."""


class Found(NamedTuple):
    """What a model scored on each sample [N], how much each counts [N], what guessing would score, and what was asked
    and answered."""

    scores: NDArray[np.float64]
    weights: NDArray[np.float64]
    chance: float
    asked: list[str]
    replies: list[str]


def measure(skill: Skill, model: LanguageModel, track: Track = lambda items, *_: items) -> Found:
    """A model's scores on a skill.

    Raises UserError for rows that lack what the skill's templates and its scorer need, with the row.
    """
    if skill.length is not None:
        model = replace(model, expected=replace(model.expected, length=skill.length))
    if callable(skill.scorer):
        return _written(skill, model, track, skill.scorer)
    return SCORERS[skill.scorer](skill, model, track)


def check(skill: Skill) -> None:
    """UserError for a skill that could not be measured, before any model is asked."""
    if skill.scorer == "lm-eval":
        assert skill.task is not None
        harness.check(skill.task, skill.data, skill.examples)
        return
    for number, row in enumerate(skill.rows):
        if skill.scorer in PLAIN:
            if not isinstance(row.get(column(skill, row, "text")), str):
                raise UserError(f"skills.{skill.name}: {skill.source}: row {number} has no text")
        elif skill.scorer == "instructions":
            filled(skill, row, "prompt")
            instructions.score("a", *instructions_of(skill, row, number))
        elif skill.scorer == "multiple-choice":
            filled(skill, row, "prompt")
            right_choice(skill, row, number)
        else:
            filled(skill, row, "prompt")
            if not callable(skill.scorer):
                answer = filled(skill, row, "answer")
                if skill.scorer == "exact-number" and not same_number(answer, answer):
                    raise UserError(
                        f"skills.{skill.name}: {skill.source}: row {number} has the answer {answer[:60]!r}, with no "
                        "number in it: take the scorer exact-text"
                    )


def _ones(scores: Sequence[float]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return np.asarray(scores, np.float64), np.ones(len(scores))


def _plain(skill: Skill, model: LanguageModel, track: Track) -> Found:
    """Texts packed into blocks of the model's length: nats a token, or bits a byte, weighted by these."""
    texts = [str(row[column(skill, row, "text")]) for row in skill.rows]
    split = Texts(texts, None, np.zeros(len(texts), np.int64), ("text",), "", skill.source)
    blocks = replace(packed(split, model.expected), vocabulary=model.vocabulary)
    nats = BITS_PER_BYTE.answers(
        model.predict, blocks, model.expected, batch=model.batch, track=track, description=skill.name
    ).astype(np.float64)
    if skill.scorer == "perplexity":
        weights, chance = (blocks.ends - 1 - blocks.starts).astype(np.float64), float(model.vocabulary)
    else:
        nats, weights, chance = nats / log(2), blocks.bytes.astype(np.float64), RANDOM_BYTE
    return Found(np.divide(nats, weights, out=np.zeros_like(nats), where=weights > 0), weights, chance, [], [])


def _choices(skill: Skill, model: LanguageModel, track: Track) -> Found:
    """The choice that the model finds most probable behind the prompt; of choices of several lengths a token of the
    longer counts as much."""
    pairs, owners, rights, written = [], [], [], []
    for number, row in enumerate(skill.rows):
        found, right = right_choice(skill, row, number)
        prompt = before(skill) + filled(skill, row, "prompt")
        rights.append(right)
        written.append((prompt, found))
        for choice in found:
            pairs.append((prompt, behind(skill, prompt) + choice))
            owners.append(number)
    likely, _ = continuations(model, pairs, track, skill.name)
    scores, replies, start = [], [], 0
    for (_, found), right in zip(written, rights, strict=True):
        best = int(likely[start : start + len(found)].argmax())
        start += len(found)
        scores.append(float(best == right))
        replies.append(found[best])
    chance = float(np.mean([1 / len(found) for _, found in written]))
    return Found(*_ones(scores), chance, [prompt for prompt, _ in written], replies)


def _written(skill: Skill, model: LanguageModel, track: Track, right: Callable[[str, Row], float]) -> Found:
    """What is written behind each prompt, and whether it is `right`."""
    asked = [filled(skill, row, "prompt") for row in skill.rows]
    prompts = [
        with_room(prompt_ids(model.expected, _as_asked(skill, prompt)), model.expected, skill.tokens)
        for prompt in asked
    ]
    replies = answers(model, prompts, skill.tokens, skill.stop, track, skill.name)
    scores = [float(right(reply, row)) for reply, row in zip(replies, skill.rows, strict=True)]
    return Found(*_ones(scores), 0.0, asked, replies)


def _as_asked(skill: Skill, prompt: str) -> str | list[dict[str, str]]:
    if not skill.chat:
        return before(skill) + prompt
    turns = [
        {"role": role, "content": filled(skill, row, what)}
        for row in skill.shots
        for role, what in (("user", "prompt"), ("assistant", "answer"))
    ]
    return [*turns, {"role": "user", "content": prompt}]


def _exact_number(skill: Skill, model: LanguageModel, track: Track) -> Found:
    return _written(skill, model, track, lambda reply, row: same_number(reply, filled(skill, row, "answer")))


def _exact_text(skill: Skill, model: LanguageModel, track: Track) -> Found:
    return _written(skill, model, track, lambda reply, row: same_text(reply, filled(skill, row, "answer")))


def _instructions(skill: Skill, model: LanguageModel, track: Track) -> Found:
    """The share of prompts of which every instruction is followed, strictly."""

    def followed(reply: str, row: Row) -> float:
        return float(all(instructions.score(reply, *instructions_of(skill, row, 0)).strict))

    return _written(skill, model, track, followed)


def _lm_eval(skill: Skill, model: LanguageModel, track: Track) -> Found:
    assert skill.task is not None
    found, chance, replies = harness.scores(
        model,
        skill.task,
        skill.data,
        examples=skill.examples,
        shots=skill.number_of_shots,
        samples=skill.samples,
        measure=skill.measure,
        tokens=skill.tokens,
        track=track,
    )
    return Found(*_ones(found.tolist()), chance, [], replies)


SCORERS: dict[str, Callable[[Skill, LanguageModel, Track], Found]] = {
    "bits-per-byte": _plain,
    "perplexity": _plain,
    "exact-number": _exact_number,
    "exact-text": _exact_text,
    "multiple-choice": _choices,
    "instructions": _instructions,
    "lm-eval": _lm_eval,
}
