"""Several students on one page, of one teacher or in steps: what each can do for its size, and where its report is."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from edgestill.report import words
from edgestill.report.draw import HEIGHT, WIDTH, Plot, drawn, grid
from edgestill.report.html import html
from edgestill.report.skills import score_of
from edgestill.report.table import retained, shipped
from edgestill.report.words import MUTED, Metric


class Line(NamedTuple):
    """One kind of model over all students: its name and its points, bytes and quality with its interval."""

    name: str
    points: list[tuple[float, float, tuple[float, float] | None]]


def render(result: dict[str, Any]) -> str:
    """The page as HTML text."""
    of = words.metric(result)
    students = _listed(result)
    return html(
        "students.html",
        title="Students in steps" if "steps" in result else "Several students",
        steps="steps" in result,
        task=str(result.get("task", "")),
        status=str(result.get("status", "done")),
        teacher=words.short((result.get("teacher") or {}).get("model")),
        metric=of,
        skills=[*(students[0].get("skills") or {})] if students else [],
        plots=[{**plot._asdict(), "svg": Markup(plot.svg)} for plot in plots(result, of)],
        rows=rows(result, of),
    )


def _listed(result: dict[str, Any]) -> list[dict[str, Any]]:
    return result.get("students") or result.get("steps") or []


def rows(result: dict[str, Any], of: Metric) -> list[dict[str, Any]]:
    """A row a model, as text: the teacher, then each student with its file."""
    students = _listed(result)
    teacher = result.get("teacher") or {}
    skills = students[0].get("skills") or {} if students else {}
    precision = teacher.get("precision") or "float32"
    taught = "" if precision == "float32" else f"teaches in {precision}"
    found = [
        {
            "name": "teacher",
            "link": "",
            "about": _with(words.short(teacher.get("model")), taught),
            "cells": [
                words.whole(teacher.get("parameters")),
                words.quality(teacher.get("quality"), of),
                "",
                "",
                "",
                "",
            ],
            "skills": [_score(entry, "teacher") for entry in skills.values()],
        }
    ]
    for one in students:
        artifact = shipped(one)
        name = words.artifact_name(artifact) if artifact else "student"
        baseline = (one.get("arms") or {}).get("baseline") or {}
        student = (one.get("arms") or {}).get("student") or {}
        cells = [
            words.whole(one.get("parameters")),
            words.quality(one.get("quality"), of, student.get("std")),
            words.quality(baseline.get("mean"), of, baseline.get("std")),
            words.quality(artifact.get("quality"), of),
            words.size(artifact.get("bytes")),
            words.milliseconds((artifact.get("latency_ms") or {}).get("p50")),
        ]
        found.append(
            {
                "name": one["name"],
                "link": f"{one['path']}/report.html",
                "about": _with(_about(one, name if artifact else ""), _kept(one, teacher.get("quality"), of)),
                "cells": cells,
                "skills": [_score(entry, name) for entry in (one.get("skills") or {}).values()],
            }
        )
    return found


def _with(*parts: str) -> str:
    return " · ".join(part for part in parts if part)


def _about(one: dict[str, Any], file: str) -> str:
    """The file that is meant, what of the student was trained where that is not all, and the budget's verdict."""
    trained, parameters = one.get("trained_parameters"), one.get("parameters")
    few = words.known(trained) and words.known(parameters) and trained < parameters
    met = (one.get("budget") or {}).get("met")
    verdict = "" if met is None else "budget met" if met else "budget missed"
    return _with(file, f"{words.whole(trained)} parameters trained" if few else "", verdict)


def _kept(one: dict[str, Any], teacher: Any, of: Metric) -> str:
    """Of a step, what is left of the first teacher; the page of any other student says it of its own."""
    if not {"retained", "gap"} & one.keys():
        return ""
    kept = retained(one.get("quality"), teacher, of)
    return f"{kept} of the teacher retained" if of.higher_is_better else f"{kept} to the teacher"


def _score(entry: dict[str, Any], model: str) -> str:
    found = (entry.get("models") or {}).get(model) or {}
    return score_of(entry, found.get("score"))


def plots(result: dict[str, Any], of: Metric) -> list[Plot]:
    """Quality against the bytes of the file, and each skill against them."""
    students = _listed(result)
    teacher = result.get("teacher") or {}
    found = [
        _plot(
            "students-quality",
            f"{of.name.capitalize()} against size",
            _lines(students, _quality),
            teacher.get("quality"),
            of,
        )
    ]
    for name, entry in (students[0].get("skills") or {}).items() if students else ():
        higher = bool(entry.get("higher_is_better"))
        like = Metric(name, higher, float(entry.get("chance") or 0), percent=higher)
        lines = _lines(students, partial(_of_skill, name))
        found.append(
            _plot(
                f"students-{name}",
                f"{name} against size",
                lines,
                ((entry.get("models") or {}).get("teacher") or {}).get("score"),
                like,
            )
        )
    return [plot for plot in found if plot]


Read = Callable[[dict[str, Any], str], tuple[Any, tuple[float, float] | None]]


def _lines(students: Sequence[dict[str, Any]], read: Read) -> list[Line]:
    """Baseline and student at the bytes of the float file, and the file that is shipped at its own."""
    kinds: dict[str, list[tuple[float, float, tuple[float, float] | None]]] = {}
    for one in students:
        artifact = shipped(one)
        sizes = {"baseline": one.get("bytes"), "student": one.get("bytes")}
        if artifact:
            sizes["file"] = artifact.get("bytes")
        for kind, size in sizes.items():
            value, interval = read(one, words.artifact_name(artifact) if kind == "file" else kind)
            if words.known(size) and words.known(value):
                kinds.setdefault(kind, []).append((float(size), float(value), interval))
    return [Line(kind, sorted(points)) for kind, points in kinds.items()]


def _quality(one: dict[str, Any], model: str) -> tuple[Any, tuple[float, float] | None]:
    arm = (one.get("arms") or {}).get(model)
    if arm is not None:
        spread = arm.get("std")
        return arm.get("mean"), (arm["mean"] - spread, arm["mean"] + spread) if words.known(spread) else None
    return next((a.get("quality") for a in one.get("artifacts") or [] if words.artifact_name(a) == model), None), None


def _of_skill(skill: str, one: dict[str, Any], model: str) -> tuple[Any, tuple[float, float] | None]:
    found = (((one.get("skills") or {}).get(skill) or {}).get("models") or {}).get(model) or {}
    interval = found.get("interval")
    return found.get("score"), (interval[0], interval[1]) if interval else None


LOOKS = {"baseline": ("#6b727c", "X"), "student": ("#0069aa", "o"), "file": ("#c44601", "D")}


def _plot(name: str, title: str, lines: Sequence[Line], teacher: Any, of: Metric) -> Plot | None:
    if not any(len(line.points) > 1 for line in lines):
        return None

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        grid(axes, "both")
        axes.set_xscale("log")
        if words.known(teacher):
            axes.axhline(teacher, color="#2f3b52", linewidth=1, linestyle="--")
            axes.annotate(
                "teacher", (0, teacher), xycoords=("axes fraction", "data"), xytext=(4, 3), textcoords="offset points",
                color="#2f3b52", fontsize=9, fontweight="bold",
            )  # fmt: skip
        for line in lines:
            colour, marker = LOOKS[line.name]
            sizes = [point[0] for point in line.points]
            axes.plot(sizes, [point[1] for point in line.points], color=colour, marker=marker, label=line.name)
            for size, _, interval in line.points:
                if interval:
                    axes.plot([size, size], interval, color=colour, linewidth=1, alpha=0.6)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: words.size(value)))
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=10))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
        if of.percent:
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.4g}{words.GAP}%"))
        axes.set_xlabel("size of the file (log scale)", color=MUTED)
        axes.set_ylabel(of.name if of.higher_is_better else f"{of.name}, lower is better")
        axes.legend()

    said = "; ".join(
        f"{line.name}: " + ", ".join(f"{words.size(size)} {words.quality(value, of)}" for size, value, _ in line.points)
        for line in lines
    )
    return Plot(title, f"{said}.", drawn(name, WIDTH, HEIGHT, paint))
