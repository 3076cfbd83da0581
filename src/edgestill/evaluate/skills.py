"""How a language model's answers to a skill are scored. N samples."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from math import log
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgestill.data.texts import Texts
from edgestill.errors import UserError, first_line
from edgestill.evaluate import harness, instructions
from edgestill.evaluate.likelihood import continuations, token_ids
from edgestill.evaluate.metric import Track
from edgestill.evaluate.numbers import plain, same_number, same_text
from edgestill.evaluate.skill import (
    PLAIN,
    Row,
    Skill,
    answer_of_shot,
    before,
    behind,
    column,
    filled,
    instructions_of,
    right_choice,
)
from edgestill.evaluate.tokens import BITS_PER_BYTE
from edgestill.evaluate.writing import LanguageModel, answers, prompt_ids, with_room
from edgestill.models import TextInput
from edgestill.tasks.tokens import packed

RANDOM_BYTE = 8.0
"""Bits of a byte that is drawn at random: the chance of bits per byte."""


class Found(NamedTuple):
    """What a model scored on each sample [N], how much each counts [N], what guessing would score (None where no share
    of it can be retained), and what was asked and answered."""

    scores: NDArray[np.float64]
    weights: NDArray[np.float64]
    chance: float | None
    asked: list[str]
    replies: list[str]
    higher_is_better: bool = True


def measure(skill: Skill, model: LanguageModel, track: Track = lambda items, *_: items) -> Found:
    """A model's scores on a skill.

    Raises UserError for rows that lack what the skill's templates and its scorer need, with the row.
    """
    if skill.length is not None:
        model = replace(model, expected=replace(model.expected, length=skill.length))
    if callable(skill.scorer):
        return _written(skill, model, track, partial(_own_score, skill))
    return SCORERS[skill.scorer](skill, model, track)


def check(skill: Skill) -> None:
    """UserError for a skill that could not be measured, before any model is asked."""
    if skill.scorer == "lm-eval":
        assert skill.task is not None
        harness.check(skill.task, skill.source, skill.examples, skill.number_of_shots, skill.samples, skill.measure)
        return
    examples = replace(skill, source=skill.examples or skill.source)
    for row in skill.shots:
        filled(examples, row, "prompt")
        answer_of_shot(examples, row)
    for number, row in enumerate(skill.rows):
        try:
            _check_row(skill, row, number)
        except UserError as error:
            named = f"row {number}" in str(error)
            raise error if named else UserError(f"{error} (row {number})") from None
    if skill.scorer in PLAIN and not any(row[column(skill, row, "text")] for row in skill.rows):
        raise UserError(f"skills.{skill.name}: {skill.source} has no text")


def _check_row(skill: Skill, row: Row, number: int) -> None:
    if skill.scorer in PLAIN:
        if not isinstance(row.get(column(skill, row, "text")), str):
            raise UserError(f"skills.{skill.name}: {skill.source}: row {number} has no text")
        return
    filled(skill, row, "prompt")
    if callable(skill.scorer):
        if number == 0:
            _own_score(skill, "", row)
    elif skill.scorer == "instructions":
        instructions.score("a", *instructions_of(skill, row, number))
    elif skill.scorer == "multiple-choice":
        right_choice(skill, row, number)
    else:
        answer = filled(skill, row, "answer")
        if skill.scorer == "exact-number" and not same_number(answer, answer):
            raise UserError(
                f"skills.{skill.name}: {skill.source}: row {number} has the answer {answer[:60]!r}, with no number in "
                "it: take the scorer exact-text"
            )
        if skill.scorer == "exact-text" and (not plain(answer) or "\n" in answer.strip()):
            raise UserError(
                f"skills.{skill.name}: {skill.source}: row {number} has the answer {answer[:60]!r}; exact-text "
                "compares a line of letters or digits"
            )


def cut(skill: Skill, expected: TextInput) -> int:
    """How many of a skill's prompts are too long for a model, and lose their beginning."""
    length = skill.length or expected.length
    if skill.scorer in PLAIN or skill.scorer == "lm-eval":
        return 0
    if skill.scorer != "multiple-choice":
        return sum(len(prompt_ids(expected, _as_asked(skill, p))) > length - skill.tokens for p in _prompts(skill))
    model = LanguageModel(lambda _: np.zeros(0, np.float32), expected, 1)
    return sum(
        any(len(token_ids(model, pair)[0]) > length + 1 for pair in _pairs(skill, row, number))
        for number, row in enumerate(skill.rows)
    )


def _prompts(skill: Skill) -> list[str]:
    return [filled(skill, row, "prompt") for row in skill.rows]


def _pairs(skill: Skill, row: Row, number: int) -> list[tuple[str, str]]:
    """The prompt of a row, with each of its choices behind it."""
    prompt = before(skill) + filled(skill, row, "prompt")
    return [(prompt, behind(skill, prompt) + choice) for choice in right_choice(skill, row, number)[0]]


def _own_score(skill: Skill, reply: str, row: Row) -> float:
    """What the user's function gives."""
    assert callable(skill.scorer)
    try:
        value = float(skill.scorer(reply, row))
    except Exception as error:
        raise UserError(
            f"skills.{skill.name}.scorer: fails for the reply {reply[:40]!r}: {first_line(error)}"
        ) from error
    if not 0 <= value <= 1:
        raise UserError(f"skills.{skill.name}.scorer: needs to give a number in 0…1; {value} came for {reply[:40]!r}")
    return value


def _ones(scores: Sequence[float]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return np.asarray(scores, np.float64), np.ones(len(scores))


def _plain(skill: Skill, model: LanguageModel, track: Track) -> Found:
    """Texts packed into blocks of the model's length: nats a token, or bits a byte, weighted by these."""
    texts = [str(row[column(skill, row, "text")]) for row in skill.rows]
    split = Texts(texts, None, np.zeros(len(texts), np.int64), ("text",), "", skill.source)
    blocks = replace(packed(split, model.expected), vocabulary=model.vocabulary)
    nats = BITS_PER_BYTE.answers(
        model.predict, blocks, model.expected, batch=model.rows, track=track, description=skill.name
    ).astype(np.float64)
    if skill.scorer == "perplexity":
        weights, chance = (blocks.ends - 1 - blocks.starts).astype(np.float64), None
    else:
        nats, weights, chance = nats / log(2), blocks.bytes.astype(np.float64), RANDOM_BYTE
    each = np.divide(nats, weights, out=np.zeros_like(nats), where=weights > 0)
    return Found(each, weights, chance, [], [], higher_is_better=False)


def _choices(skill: Skill, model: LanguageModel, track: Track) -> Found:
    """The choice that the model finds most probable behind the prompt; of choices of several lengths a token of the
    longer counts as much."""
    asked = [_pairs(skill, row, number) for number, row in enumerate(skill.rows)]
    pairs = [pair for row in asked for pair in row]
    likely, _ = continuations(model, pairs, track, skill.name)
    scores, replies, start = [], [], 0
    for number, row in enumerate(skill.rows):
        found, right = right_choice(skill, row, number)
        best = int(likely[start : start + len(found)].argmax())
        start += len(found)
        scores.append(float(best == right))
        replies.append(found[best])
    chance = float(np.mean([1 / len(row) for row in asked]))
    return Found(*_ones(scores), chance, [row[0][0] for row in asked], replies)


def _written(skill: Skill, model: LanguageModel, track: Track, right: Callable[[str, Row], float]) -> Found:
    """What is written behind each prompt, and whether it is `right`."""
    asked = _prompts(skill)
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
    return Found(
        *harness.scores(
            model,
            skill.task,
            skill.source,
            examples=skill.examples,
            shots=skill.number_of_shots,
            samples=skill.samples,
            measure=skill.measure,
            tokens=skill.tokens,
            track=track,
        )
    )


SCORERS: dict[str, Callable[[Skill, LanguageModel, Track], Found]] = {
    "bits-per-byte": _plain,
    "perplexity": _plain,
    "exact-number": _exact_number,
    "exact-text": _exact_text,
    "multiple-choice": _choices,
    "instructions": _instructions,
    "lm-eval": _lm_eval,
}
