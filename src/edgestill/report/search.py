"""A search of students on one page: what each candidate costs and reached, and why it fell out."""

from collections.abc import Callable
from functools import partial
from typing import Any

from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from edgestill.report import words
from edgestill.report.draw import HEIGHT, WIDTH, Plot, drawn, grid
from edgestill.report.html import html
from edgestill.report.tradeoff import tick
from edgestill.report.words import GAP, MUTED, Metric
from edgestill.units import format_bytes, format_seconds

AXES: dict[str, tuple[str, Callable[[dict[str, Any]], float], Callable[[float], str]]] = {
    "size": ("size of the file", lambda file: file["bytes"], format_bytes),
    "latency": ("latency, p50", lambda file: file["latency_ms"]["p50"] / 1e3, format_seconds),
    "memory": ("peak memory", lambda file: file["peak_memory_bytes"], format_bytes),
}
"""By limit: what it is called, where a file has it, and how it is written."""
RUNGS = ("#9cc4e4", "#4a94c9", "#0069aa", "#004d7d", "#003350")
FRONT, LIMIT, ALLOWED = "#c44601", "#b3261e", "#eef6ee"


def render(result: dict[str, Any]) -> str:
    """The page as HTML text."""
    of, search = words.metric(result), result["search"]
    limits = search.get("limits", [])
    return html(
        "search.html",
        title="A student inside the budget",
        task=str(result.get("task", "")),
        status=str(result.get("status", "done")),
        teacher=words.short((result.get("teacher") or {}).get("model")),
        taught=words.quality((result.get("teacher") or {}).get("validation_quality"), of),
        metric=of,
        chosen=search.get("chosen"),
        nearest=search.get("nearest"),
        relax=search.get("relax"),
        trained="arms" in result,
        online=search.get("online"),
        beside=search.get("neighbours", {}),
        limits=[
            f"{limit['name']} {AXES[limit['name']][2](limit['value'])}"
            + (f", less {1 - limit['allowed'] / limit['value']:.0%}" if limit["allowed"] < limit["value"] else "")
            for limit in limits
        ],
        rungs=[f"{rung['entrants']} for {rung['share']:.0%}" for rung in search.get("rungs", [])],
        plots=[{**plot._asdict(), "svg": Markup(plot.svg)} for plot in plots(search, of)],
        rows=rows(search, of),
    )


def rows(search: dict[str, Any], of: Metric) -> list[dict[str, Any]]:
    """A row a candidate, as text: the chosen one, then those that came furthest."""
    chosen, higher = search.get("chosen"), of.higher_is_better

    def standing(one: dict[str, Any]) -> tuple[float, ...]:
        quality = one.get("quality", 0.0)
        return (
            one["name"] != chosen,
            -len(one.get("rungs", ())),
            -quality if higher else quality,
            one.get("missed_by", float("inf")),
        )

    found = []
    for one in sorted(search.get("candidates", []), key=standing):
        file = _file(one)
        last = one["rungs"][-1] if "rungs" in one else {}
        found.append(
            {
                "name": one["name"],
                "front": bool(one.get("front")),
                "chosen": one["name"] == chosen,
                "cells": [
                    words.whole(one.get("parameters")),
                    words.size(file.get("bytes")),
                    words.milliseconds((file.get("latency_ms") or {}).get("p50")),
                    words.quality(one.get("quality"), of),
                    f"{last['share']:.0%}" if last else words.NONE,
                ],
                "why": "chosen" if one["name"] == chosen else str(one.get("why", "")),
            }
        )
    return found


def _file(one: dict[str, Any]) -> dict[str, Any]:
    """The file on which a candidate was judged."""
    return next((file for file in one.get("files", ()) if file["name"] == one.get("file")), {})


def plots(search: dict[str, Any], of: Metric) -> list[Plot]:
    """Quality against each limited cost."""
    found = []
    for limit in search.get("limits", []):
        title, read, write = AXES[limit["name"]]
        points = [(read(_file(one)), one) for one in search.get("candidates", []) if _file(one)]
        if any("quality" in one for _, one in points):
            name = f"search-{limit['name']}"
            text = f"{of.name.capitalize()} against {title}"
            described = f"{len(points)} candidates; the limit is {write(limit['value'])}."
            svg = drawn(name, WIDTH, HEIGHT, partial(_paint, search, limit, points, of))
            found.append(Plot(text, described, svg))
    return found


def _paint(
    search: dict[str, Any],
    limit: dict[str, Any],
    points: list[tuple[float, dict[str, Any]]],
    of: Metric,
    figure: Figure,
) -> None:
    title, _, write = AXES[limit["name"]]
    axes = figure.subplots()
    grid(axes, "both")
    axes.set_xscale("log")
    xs = [x for x, _ in points] + [limit["value"]]
    axes.set_xlim(min(xs) * 0.8, max(xs) * 1.25)
    axes.axvspan(min(xs) * 0.8, limit["allowed"], color=ALLOWED, linewidth=0, zorder=0)
    axes.axvline(limit["value"], color=LIMIT, linewidth=0.9, linestyle=(0, (4, 2)), zorder=1)
    axes.annotate(
        f"≤{GAP}{write(limit['value'])}", (limit["value"], 1), xycoords=("data", "axes fraction"), xytext=(0, 3),
        textcoords="offset points", ha="center", fontsize=8, color=LIMIT,
    )  # fmt: skip
    untrained = [x for x, one in points if "quality" not in one]
    axes.plot(untrained, [0.015] * len(untrained), "|", color=MUTED, transform=axes.get_xaxis_transform(), markersize=7)
    rungs = search.get("rungs", [])
    for number, rung in enumerate(rungs):
        own = [(x, one) for x, one in points if "quality" in one and one["rungs"][-1]["rung"] == number]
        label = f"trained {rung['share']:.0%}"
        colour = RUNGS[min(len(RUNGS) - 1, number + max(0, 3 - len(rungs)))]
        axes.plot([x for x, _ in own], [one["quality"] for _, one in own], "o", color=colour, label=label, zorder=3)
    on_front = [(x, one["quality"]) for x, one in points if one.get("front")]
    axes.plot(
        [x for x, _ in on_front], [y for _, y in on_front], "o", markersize=10, markerfacecolor="none",
        markeredgecolor=FRONT, markeredgewidth=1.1, label="front", zorder=2,
    )  # fmt: skip
    for x, one in points:
        if one["name"] == search.get("chosen"):
            right = x * x < min(xs) * max(xs)  # of the middle, on a log scale, there is more room on the other side
            axes.annotate(
                one["name"], (x, one["quality"]), xytext=(8 if right else -8, -10), textcoords="offset points",
                ha="left" if right else "right", va="top", fontsize=9, fontweight="bold", color=FRONT,
            )  # fmt: skip
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=12))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: write(value)))
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: tick(value, of)))
    axes.set_xlabel(f"{title} (log scale)")
    axes.set_ylabel(f"{of.name} on validation" + ("" if of.higher_is_better else ", lower is better"))
    axes.legend(loc="best", handletextpad=0.2)
