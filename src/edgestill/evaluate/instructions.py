"""Instructions whose following a program can verify, and whether a reply follows them: IFEval's 25 kinds.

Zhou et al. 2023, Instruction-Following Evaluation for Large Language Models, https://arxiv.org/abs/2311.07911. A row of
its data has `instruction_id_list` and, for each instruction, the options in `kwargs`. What a kind asks for, and where a
verdict may differ from the public implementation's, is said in `instruction_checks`.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from edgestill.errors import UserError, closest
from edgestill.evaluate import instruction_checks as checks

CHECKS: dict[str, Callable[..., bool]] = {
    "keywords:existence": checks.keywords_existence,
    "keywords:frequency": checks.keyword_frequency,
    "keywords:forbidden_words": checks.forbidden_words,
    "keywords:letter_frequency": checks.letter_frequency,
    "language:response_language": checks.response_language,
    "length_constraints:number_sentences": checks.number_sentences,
    "length_constraints:number_paragraphs": checks.number_paragraphs,
    "length_constraints:number_words": checks.number_words,
    "length_constraints:nth_paragraph_first_word": checks.nth_paragraph_first_word,
    "detectable_content:number_placeholders": checks.number_placeholders,
    "detectable_content:postscript": checks.postscript,
    "detectable_format:number_bullet_lists": checks.number_bullet_lists,
    "detectable_format:constrained_response": checks.constrained_response,
    "detectable_format:number_highlighted_sections": checks.number_highlighted_sections,
    "detectable_format:multiple_sections": checks.multiple_sections,
    "detectable_format:json_format": checks.json_format,
    "detectable_format:title": checks.title,
    "combination:two_responses": checks.two_responses,
    "combination:repeat_prompt": checks.repeat_prompt,
    "startend:end_checker": checks.end_checker,
    "startend:quotation": checks.quotation,
    "change_case:capital_word_frequency": checks.capital_word_frequency,
    "change_case:english_capital": checks.english_capital,
    "change_case:english_lowercase": checks.english_lowercase,
    "punctuation:no_comma": checks.no_comma,
}


@dataclass(frozen=True)
class Scored:
    """Which instructions a reply follows, in their order.

    Attributes:
        strict: by the reply as it is.
        loose: by any of its `loosely` read variants.
    """

    strict: tuple[bool, ...]
    loose: tuple[bool, ...]


def score(reply: str, instructions: Sequence[str], options: Sequence[Mapping[str, Any]]) -> Scored:
    """Strict and loose verdicts on a reply, a bool an instruction; an empty reply follows nothing.

    Raises:
        UserError: as `follows`, or not as many options as instructions.

    >>> score("Sure!\\nno, i do not", ["punctuation:no_comma", "change_case:english_lowercase"], [{}, {}])
    Scored(strict=(False, False), loose=(True, True))
    """
    if len(instructions) != len(options):
        raise UserError(f"each instruction has its options; {len(instructions)} and {len(options)} came")
    pairs = list(zip(instructions, options, strict=True))
    variants = loosely(reply)
    return Scored(
        strict=tuple(follows(reply, instruction, given) for instruction, given in pairs),
        loose=tuple(any(follows(variant, instruction, given) for variant in variants) for instruction, given in pairs),
    )


def loosely(reply: str) -> list[str]:
    """The variants that the loose measure accepts: a reply as it is, without its first line, its last, and both, each
    also without asterisks. Empty ones and repetitions are left out.

    >>> loosely("Sure!\\n*yes*")
    ['Sure!\\n*yes*', '*yes*', 'Sure!', 'Sure!\\nyes', 'yes']
    """
    lines = reply.split("\n")
    cut = ["\n".join(kept).strip() for kept in (lines[1:], lines[:-1], lines[1:-1])]
    variants = [reply, *cut]
    variants += [variant.replace("*", "") for variant in variants]
    return [variant for variant in dict.fromkeys(variants) if variant.strip()]


def follows(reply: str, instruction: str, options: Mapping[str, Any]) -> bool:
    """Whether a reply follows one instruction, named by its kind; options that are None are left out.

    Raises:
        UserError: an unknown kind; options that are unknown, missing, or not of their type.

    >>> follows("one, two", "length_constraints:number_words", {"num_words": 2, "relation": "at least"})
    True
    """
    check = CHECKS.get(instruction)
    if check is None:
        raise UserError(f"there is no kind of instruction {instruction!r}{closest(instruction, CHECKS)}")
    given = {name: value for name, value in options.items() if value is not None}
    _fitting(instruction, given, list(inspect.signature(check).parameters.values())[1:])
    return check(reply, **given) and bool(reply.strip())


def _fitting(instruction: str, given: Mapping[str, Any], wanted: Sequence[inspect.Parameter]) -> None:
    """Refuses options that a check does not take."""
    names = [parameter.name for parameter in wanted]
    takes = f"{instruction} takes {', '.join(names) or 'no options'}"
    for name in given:
        if name not in names:
            raise UserError(f"{takes}; {name!r} came{closest(name, names)}")
    for parameter in wanted:
        if parameter.name not in given:
            raise UserError(f"{takes}; {parameter.name!r} is missing")
        value, (kind, fits) = given[parameter.name], _KINDS[parameter.annotation]
        if not fits(value):
            raise UserError(f"{instruction}: {parameter.name} is {kind}; {value!r} came")


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


_KINDS: dict[Any, tuple[str, Callable[[Any], bool]]] = {
    int: ("a whole number from 1", lambda value: type(value) is int and value >= 1),
    str: ("a text", _is_text),
    list[str]: ("a list of texts", lambda value: isinstance(value, list) and bool(value) and all(map(_is_text, value))),
    checks.Relation: (" or ".join(map(repr, get_args(checks.Relation))), lambda v: v in get_args(checks.Relation)),
}
