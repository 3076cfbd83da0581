"""A skill of a language model: what is asked, row by row, and what would be right. N samples."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from string import Formatter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgestill.data.texts import COLUMNS
from edgestill.errors import UserError, closest

Row = Mapping[str, Any]
PLAIN = ("bits-per-byte", "perplexity")
"""Scorers of plain text, of which less is better."""


@dataclass(frozen=True)
class Skill:
    """What is asked, and how answers are scored.

    Attributes:
        scorer: a name of `SCORERS`, or a function of (reply, row) that gives a number in 0…1.
        rows: the data, a mapping of columns each.
        source: where they came from; of lm-eval the file itself.
        prompt, answer: how they are written of a row, `"Q: {question}\\nA:"`; None for the usual columns.
        choices: of multiple choice: the column that lists them, or the same ones for every row.
        between: what stands between a prompt and its answer; None for a space, unless the prompt ends in one.
        shots: rows that stand before each question with their answers.
        chat: whether a prompt is a user's message, as the chat template writes it.
        tokens: the most that are written.
        length: tokens of a prompt with its reply, in place of the model's `length`.
        stop: texts before which a reply ends.
        cut: how many prompts are too long, and lose their beginning.
        task, examples, measure, samples: lm-eval's; see `harness.scores`.
    """

    name: str
    scorer: str | Callable[[str, Row], float]
    rows: Sequence[Row]
    source: str
    prompt: str | None = None
    answer: str | None = None
    choices: str | Sequence[str] = "choices"
    between: str | None = None
    shots: Sequence[Row] = ()
    chat: bool = False
    tokens: int = 128
    length: int | None = None
    stop: tuple[str, ...] = ()
    task: str | None = None
    examples: str | None = None
    measure: str | None = None
    samples: int | None = None
    number_of_shots: int = 0
    cut: int = 0

    @cached_property
    def answers_are_places(self) -> bool:
        """Of multiple choice: whether the answer of every row is a whole number that can be a choice's place."""
        for row in self.rows:
            answer = _whole(self, row)
            choices = row.get(self.choices) if isinstance(self.choices, str) else self.choices
            if answer is None or not isinstance(choices, list | tuple) or not 0 <= answer < len(choices):
                return False
        return True

    def score(self, scores: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """Of samples [..., N] with their weights, one number for each set of them."""
        mean: NDArray[np.float64] = (scores * weights).sum(-1) / weights.sum(-1)
        return np.exp(mean) if self.scorer == "perplexity" else mean


def filled(skill: Skill, row: Row, what: str) -> str:
    """A row's prompt or answer, as the skill's template writes it."""
    template = skill.prompt if what == "prompt" else skill.answer
    if template is None:
        template = f"{{{column(skill, row, 'prompt' if what == 'prompt' else 'response')}}}"
    try:
        for _, name, _, _ in Formatter().parse(template):
            if name and row[(root := re.split(r"[.\[]", name)[0])] is None:
                raise UserError(f"skills.{skill.name}.{what}: {skill.source}: the column {root!r} is empty")
        return template.format_map(row)
    except (KeyError, IndexError, AttributeError, ValueError, TypeError) as error:
        missing = str(error).strip("'\"")
        raise UserError(
            f"skills.{skill.name}.{what}: {template!r} cannot be filled from {skill.source}, whose columns are "
            f"{', '.join(map(repr, row))}: {missing!r}{closest(missing, [*row])}"
        ) from None


def column(skill: Skill, row: Row, what: str) -> str:
    names = COLUMNS[what]
    found = next((name for name in names if name in row), None)
    if found is None:
        key = {"response": "answer"}.get(what, what)
        remedy = "" if what == "text" else f', or skills.{skill.name}.{key}, such as "{{{next(iter(row), "column")}}}"'
        raise UserError(
            f"skills.{skill.name}: {skill.source} needs a column {', '.join(map(repr, names))}{remedy}; its columns "
            f"are {', '.join(map(repr, row)) or 'none'}"
        )
    return found


def right_choice(skill: Skill, row: Row, number: int) -> tuple[list[str], int]:
    """A row's choices, and the place of the right one: given by its label where they have labels, as the choice itself,
    as a letter, or as that place, counted from 0, which whole numbers are where they are one in every row."""
    if isinstance(skill.choices, str):
        found = row.get(skill.choices)
        if isinstance(found, Mapping):  # as in ARC: texts and their labels
            labels = [str(label) for label in found.get("label", ())]
            found = found.get("text")
        else:
            labels = []
    else:
        found, labels = list(skill.choices), []
    if not isinstance(found, list | tuple) or len(found) < 2 or not all(isinstance(text, str) for text in found):
        raise UserError(
            f"skills.{skill.name}: {skill.source}: row {number} needs at least two choices, a list of texts, in the "
            f"column {skill.choices!r}; {str(found)[:60]!r} came: set skills.{skill.name}.choices"
        )
    answer = filled(skill, row, "answer").strip()
    letters = [chr(ord("A") + place) for place in range(len(found))]
    places = [str(place) for place in range(len(found))]
    readings = (labels, places) if skill.answers_are_places and not labels else (labels, list(found), letters, places)
    for known in readings:
        if answer in known:
            return list(found), known.index(answer)
    raise UserError(
        f"skills.{skill.name}: {skill.source}: row {number} has the answer {answer[:60]!r}, which is none of its "
        f"{len(found)} choices, nor a place or a letter of one"
    )


def _whole(skill: Skill, row: Row) -> int | None:
    """A row's answer where it is a whole number of a column."""
    name = skill.answer.strip("{}") if skill.answer is not None else column(skill, row, "response")
    value = row.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def before(skill: Skill) -> str:
    """The shots, each with its answer, an empty line between them."""
    shots = [(filled(skill, row, "prompt"), answer_of_shot(skill, row)) for row in skill.shots]
    return "".join(f"{prompt}{behind(skill, prompt)}{answer}\n\n" for prompt, answer in shots)


def answer_of_shot(skill: Skill, row: Row) -> str:
    """What stands behind the prompt of a row that is an example."""
    if skill.scorer != "multiple-choice":
        return filled(skill, row, "answer")
    found, right = right_choice(skill, row, 0)
    return found[right]


def behind(skill: Skill, prompt: str) -> str:
    """What stands between a prompt and what follows it."""
    if skill.between is not None:
        return skill.between
    return "" if not prompt or prompt[-1].isspace() else " "


def instructions_of(skill: Skill, row: Row, number: int) -> tuple[list[str], list[dict[str, Any]]]:
    names, options = row.get("instruction_id_list"), row.get("kwargs")
    if not isinstance(names, list) or not isinstance(options, list) or len(names) != len(options):
        raise UserError(
            f"skills.{skill.name}: {skill.source}: row {number} needs `instruction_id_list` and `kwargs`, lists of one "
            f"length, as IFEval has them; its columns are {', '.join(map(repr, row))}"
        )
    if not all(given is None or isinstance(given, Mapping) for given in options):
        raise UserError(f"skills.{skill.name}: {skill.source}: row {number}: kwargs needs an object an instruction")
    return names, [dict(given or {}) for given in options]
