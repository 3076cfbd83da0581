"""Accuracy by class: what the student kept of the teacher's, and what it lost. N test samples, C classes."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray

from edgestill.report import words
from edgestill.report.draw import WIDTH, Plot, drawn, grid
from edgestill.report.folder import Answers
from edgestill.report.words import MUTED, Role

SHOWN = 30  # classes in a plot: half of them the most lost, half the most gained
LOST, GAINED = "#882255", "#117733"


class Accuracies(NamedTuple):
    """One row a class, the most lost first. Shares of the class's test images, NaN for a class without any."""

    names: list[str]
    counts: NDArray[np.int64]  # [C]
    models: dict[str, NDArray[np.float64]]  # each [C]
    lost: NDArray[np.float64]  # [C] the teacher was right, the student is not
    gained: NDArray[np.float64]  # [C] the student is right, the teacher was not


def accuracies(
    labels: NDArray[np.int64], answers: dict[str, Answers], names: Sequence[str], models: Sequence[str]
) -> Accuracies | None:
    """By class for each of `models` that answered; None without labels, the teacher's answers or the student's."""
    if not len(labels) or "teacher" not in answers or "student" not in answers:
        return None
    count = max([len(names), int(labels.max()) + 1])
    titles = [str(names[index]) if index < len(names) else f"class {index}" for index in range(count)]
    right = {model: answers[model].classes == labels for model in models if model in answers}
    counts = np.bincount(labels[labels >= 0], minlength=count)

    def share(hits: NDArray[np.bool_]) -> NDArray[np.float64]:
        with np.errstate(invalid="ignore"):
            return np.asarray(np.bincount(labels[hits & (labels >= 0)], minlength=count) / counts)

    lost, gained = share(right["teacher"] & ~right["student"]), share(~right["teacher"] & right["student"])
    order = np.lexsort((np.arange(count), np.nan_to_num(gained - lost, nan=np.inf)))
    return Accuracies(
        names=[titles[index] for index in order],
        counts=counts[order],
        models={model: share(hits)[order] for model, hits in right.items()},
        lost=lost[order],
        gained=gained[order],
    )


def plots(found: Accuracies, roles: dict[str, Role]) -> list[Plot]:
    """Two plots with the same rows: each model's accuracy, and the student's losses and gains."""
    rows = [row for row in range(len(found.names)) if found.counts[row]]
    if not rows:
        return []
    if len(rows) > SHOWN:
        rows = rows[: SHOWN // 2] + rows[-SHOWN // 2 :]
    worst, best = rows[0], rows[-1]
    net = found.gained - found.lost
    said = (
        f"Most lost: {found.names[worst]}, {points(net[worst])} points. "
        f"Most gained: {found.names[best]}, {points(net[best])} points."
    )
    return [
        Plot("Accuracy by class", said, _dumbbells(found, rows, roles)),
        Plot("Kept and lost: the student against the teacher", said, _balance(found, rows)),
    ]


def points(share: float) -> str:
    """A signed difference of shares in points: -0.075 -> "−7.5"; zero has no sign."""
    return words.signed(f"{100 * share:+.1f}") if round(1000 * share) else "0.0"


def _short(name: str) -> str:
    return name if len(name) <= 18 else f"{name[:17]}…"


def _rows(axes: Any, found: Accuracies, rows: Sequence[int]) -> NDArray[np.int64]:
    places = np.arange(len(rows))
    axes.set_yticks(places, [_short(found.names[row]) for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.spines["left"].set_visible(False)
    if len(rows) == SHOWN and len(found.names) > SHOWN:
        axes.axhline(SHOWN / 2 - 0.5, color=MUTED, linewidth=0.8, linestyle=(0, (1, 2)))
    return places


def _height(rows: Sequence[int]) -> float:
    return 0.95 + 0.215 * len(rows)


def _dumbbells(found: Accuracies, rows: Sequence[int], roles: dict[str, Role]) -> str:
    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        grid(axes, "x")
        places = _rows(axes, found, rows)
        teacher, student = found.models["teacher"][rows], found.models["student"][rows]
        axes.hlines(places, teacher, student, color="#a9b4c2", linewidth=2, zorder=1)
        sizes = {"baseline": 5.5, "teacher": 5.5, "student": 6.0}
        for order, (model, values) in enumerate(found.models.items()):
            role = roles.get(model, roles["student"])
            mark: dict[str, Any] = {"markersize": sizes.get(model, 4.5), "markeredgecolor": "w", "markeredgewidth": 0.5}
            axes.plot(values[rows], places, role.marker, color=role.colour, label=model, zorder=2 + order, **mark)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f}{words.GAP}%"))
        axes.set_xlabel("accuracy on the class")
        figure.legend(loc="outside upper left", ncols=4, handlelength=1, handletextpad=0.3, columnspacing=1)

    return drawn("classes", WIDTH, _height(rows), paint)


def _balance(found: Accuracies, rows: Sequence[int]) -> str:
    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        grid(axes, "x")
        places = _rows(axes, found, rows)
        lost, gained = found.lost[rows], found.gained[rows]
        axes.barh(places, -lost, height=0.62, color=LOST, label="lost: the teacher was right")
        axes.barh(places, gained, height=0.62, color=GAINED, label="gained: the teacher was wrong")
        axes.axvline(0, color=MUTED, linewidth=0.8)
        reach = max(float(lost.max()), float(gained.max()), 0.01)
        axes.set_xlim(-reach * 1.08, reach * 1.44)
        for place, net in zip(places, gained - lost, strict=True):
            colour = LOST if net < 0 else GAINED if net > 0 else MUTED
            axes.text(reach * 1.42, place, points(net), ha="right", va="center", fontsize=8.5, color=colour)
        heading = axes.text(reach * 1.42, -0.7, "net", ha="right", va="bottom", fontsize=8.5, color=MUTED)
        heading.set_in_layout(False)  # so that both plots have their rows at one height
        ticks = MaxNLocator(5).tick_values(-reach, reach)
        axes.set_xticks([tick for tick in ticks if abs(tick) <= reach * 1.08])
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{abs(100 * value):.3g}{words.GAP}%"))
        axes.set_xlabel("share of the class’s test images")
        figure.legend(loc="outside upper left", ncols=2, handlelength=0.9, handletextpad=0.5, columnspacing=1.2)

    return drawn("balance", WIDTH, _height(rows), paint)
