"""Choices as the text of a recipe, each with its reason above it."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from edgestill.plan.advise import Choice

WIDE = 110
RESULTS = "benchmarks/results/"


def commented(head: Sequence[str], values: Mapping[str, Any], choices: Sequence[Choice]) -> str:
    """A recipe in YAML.

    Args:
        head: paragraphs that stand before all.
        values: of keys with dots between them, in the order in which they come; `choices` come among them.
        choices: what they say of a key takes the place of what `values` does.

    >>> print(commented(["A recipe."], {"task": "x", "train": None}, [Choice("train", {"lr": 0.1}, "Why.")]), end="")
    # A recipe.
    task: x
    # Why.
    train: {lr: 0.1}
    """
    known = {choice.key: choice for choice in choices}
    lines = [line for paragraph in head for line in _comment(paragraph, 0)]
    opened: list[str] = []
    for key, value in values.items():
        *parents, name = key.split(".")
        for depth, parent in enumerate(parents):
            if opened[: depth + 1] != parents[: depth + 1]:
                lines.append(f"{'  ' * depth}{parent}:")
                opened = parents[: depth + 1]
        opened = parents
        choice = known.get(key)
        if choice is not None:
            lines += _comment(_reason(choice), len(parents))
        lines += _entry(name, value if choice is None else choice.value, len(parents))
    return "\n".join(lines) + "\n"


def _reason(choice: Choice) -> str:
    files = dict.fromkeys(one.file for one in choice.measured)
    return choice.reason + (f" ({', '.join(RESULTS + file for file in files)})" if files else "")


def _comment(text: str, depth: int) -> list[str]:
    indent = "  " * depth
    wrapped = textwrap.wrap(text, WIDE - len(indent) - 2, break_long_words=False, break_on_hyphens=False)
    return [f"{indent}# {line}" for line in wrapped]


def _entry(name: str, value: Any, depth: int) -> list[str]:
    """A key with its value: collections of plain values in one line, others a line an entry."""
    indent = "  " * depth
    plain = not isinstance(value, dict | list)
    dumped = yaml.safe_dump(
        value, sort_keys=False, allow_unicode=True, width=WIDE - len(indent) - 2, default_flow_style=None
    )
    inner = dumped.removesuffix("...\n").rstrip("\n").split("\n")
    if plain or inner[0].startswith(("{", "[")):
        return [f"{indent}{name}: {inner[0]}", *(f"{indent}  {line}" for line in inner[1:])]
    return [f"{indent}{name}:", *(f"{indent}  {line}" for line in inner)]
