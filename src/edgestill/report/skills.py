"""What each model can do: a table of its skills, and a picture of what is retained of the teacher's."""

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from edgestill.report import words
from edgestill.report.draw import WIDTH, Plot, drawn, grid
from edgestill.report.words import MUTED, Role


def columns(result: dict[str, Any]) -> list[str]:
    """The models that were asked, in the reader's order."""
    found = [name for entry in (result.get("skills") or {}).values() for name in entry.get("models") or {}]
    return list(dict.fromkeys(found))


def rows(result: dict[str, Any]) -> list[dict[str, Any]]:
    """A row a skill: its name, what it is, and of each model its score and what that retains, as text."""
    limits = (result.get("budget") or {}).items()
    kept = {name.removeprefix("keep "): verdict for name, verdict in limits if name.startswith("keep ")}
    names = columns(result)
    return [
        {
            "name": name,
            "about": _about(entry),
            "limit": words.percent(kept[name].get("limit"), 0) if name in kept else "",
            "cells": [_cell(entry, model) for model in names],
        }
        for name, entry in (result.get("skills") or {}).items()
    ]


def _about(entry: dict[str, Any]) -> str:
    chance = entry.get("chance") or 0
    said = [str(entry.get("scorer", "")), f"{words.whole(entry.get('samples'))} samples"]
    if entry.get("higher_is_better") and chance:
        said.append(f"chance {words.percent(chance)}")
    if entry.get("cut"):
        said.append(f"{words.whole(entry['cut'])} prompts lose their beginning")
    return " · ".join(said) + ("" if entry.get("higher_is_better") else " · lower is better")


def _cell(entry: dict[str, Any], model: str) -> dict[str, str]:
    found = (entry.get("models") or {}).get(model) or {}
    score = found.get("score")
    kept, interval = found.get("retained"), found.get("retained_interval")
    said = words.percent(kept) if words.known(kept) else ""
    if said and interval:
        low, high = interval
        said += f" [{100 * low:.1f}, {100 * high:.1f}]".replace("-", words.MINUS)
    return {"score": score_of(entry, score), "retained": said}


def score_of(entry: dict[str, Any], score: Any) -> str:
    """A score as text: bits and perplexities are no shares."""
    if not words.known(score):
        return words.NONE
    return words.percent(score) if entry.get("higher_is_better", True) else f"{score:.3f}"


def retained(result: dict[str, Any], roles: dict[str, Role]) -> Plot | None:
    """The share of each skill that each model retains, with its interval, beside the limits of the budget."""
    skills = {
        name: entry
        for name, entry in (result.get("skills") or {}).items()
        if any(words.known(found.get("retained")) for found in (entry.get("models") or {}).values())
    }
    if not skills:
        return None
    models = [name for name in columns(result) if name != "teacher"]
    height = 0.9 + len(skills) * max(0.5, 0.2 * len(models))
    budget = result.get("budget") or {}

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        grid(axes, "x")
        axes.axvline(1, color=MUTED, linewidth=0.9, zorder=1)
        for row, (name, entry) in enumerate(skills.items()):
            for place, model in enumerate(models):
                found, role = (entry.get("models") or {}).get(model) or {}, roles.get(model, roles["student"])
                if not words.known(found.get("retained")):
                    continue
                y = row + 0.7 * ((place + 0.5) / len(models) - 0.5)
                if interval := found.get("retained_interval"):
                    axes.plot(interval, [y, y], color=role.colour, linewidth=1.1, alpha=0.7, zorder=2)
                mark: dict[str, Any] = {"markersize": 6, "zorder": 3}
                if role.hollow:
                    mark |= {"markerfacecolor": "w", "markeredgewidth": 1.2}
                axes.plot(found["retained"], y, role.marker, color=role.colour, **mark)
            limit = (budget.get(f"keep {name}") or {}).get("limit")
            if words.known(limit):
                axes.plot([limit, limit], [row - 0.45, row + 0.45], color="#00694f", linewidth=1.2, linestyle="--")
        axes.set_yticks(range(len(skills)), [*skills])
        axes.set_ylim(len(skills) - 0.45, -0.55)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.4g}{words.GAP}%"))
        axes.set_xlabel("retained of the teacher's, above chance")

    said = "; ".join(f"{name}: {_said(entry, models)}" for name, entry in skills.items())
    note = "Lines: 95 % bootstrap intervals over samples; dashed: what the budget keeps."
    return Plot("What is retained of each skill", f"{said}.", drawn("skills", WIDTH, height, paint), note)


def _said(entry: dict[str, Any], models: Sequence[str]) -> str:
    found = {model: ((entry.get("models") or {}).get(model) or {}).get("retained") for model in models}
    return ", ".join(f"{model} {words.percent(share)}" for model, share in found.items() if words.known(share))
