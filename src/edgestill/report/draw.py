"""One look for every plot, and matplotlib figures as inline SVG, without pyplot and its global state."""

import io
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Any, Literal, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from edgestill.report.words import INK, MUTED

WIDTH, HEIGHT = 4.6, 3.1  # inches: at a phone's width the letters are still legible
GRID = "#e4e6e9"
BAND = "#f3f4f6"

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a class may be called "$5"
    "font.size": 9,
    "axes.labelsize": 9,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": "#c3c7cd",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "lines.linewidth": 1.4,
    "lines.solid_capstyle": "round",
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "legend.frameon": False,
    "legend.fontsize": 8.5,
}


class Plot(NamedTuple):
    """One figure of the page: what it says in a line, what a reader who cannot see it hears, the drawing, and what to
    know when reading it."""

    title: str
    description: str
    svg: str
    note: str = ""


@contextmanager
def look(name: str) -> Iterator[None]:
    """The project's style; ids in the SVG follow from `name`, so that the same data gives the same bytes."""
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": name}), warnings.catch_warnings():
        # The browser has the letters that matplotlib's own font lacks.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def drawn(name: str, width: float, height: float, paint: Callable[[Figure], None]) -> str:
    """The SVG element that `paint` draws on a figure of `width` by `height` inches."""
    with look(name):
        figure = Figure(figsize=(width, height), layout="constrained")
        paint(figure)
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    text = file.getvalue()
    text = text[text.index("<svg") :].strip()
    text = re.sub(r' (?:width|height)="[\d.]+pt"| xmlns(?::xlink)?="[^"]*"| version="1.1"', "", text, count=5)
    # Several drawings share the page: their ids must not meet.
    text = re.sub(r'(\bid="|xlink:href="#|url\(#)', rf"\g<1>{name}-", text)
    return text.replace("<svg", '<svg aria-hidden="true" focusable="false"', 1)


def grid(axes: Axes, axis: Literal["x", "y", "both"] = "y") -> None:
    axes.grid(True, axis=axis, color=GRID, linewidth=0.7)


def bands(axes: Axes, schedule: Sequence[dict[str, Any]], named: bool = True) -> None:
    """Every other phase shaded, each with its name above the axes."""
    if not schedule:
        return
    phases = [(name, [point["step"] for point in points]) for name, points in groupby(schedule, lambda p: p["phase"])]
    last = phases[-1][1][-1]
    starts = [steps[0] for _, steps in phases]
    for position, (name, _) in enumerate(phases):
        start, end = starts[position], starts[position + 1] if position + 1 < len(starts) else last
        if position % 2 == 0:
            axes.axvspan(start, end, color=BAND, linewidth=0, zorder=0)
        if named and end > start:
            axes.annotate(
                _fitted(str(name), (end - start) / max(last - starts[0], 1)),
                ((start + end) / 2, 1),
                xycoords=("data", "axes fraction"),
                xytext=(0, 3),
                textcoords="offset points",
                ha="center",
                color=MUTED,
                fontsize=8,
            )
    axes.set_xlim(starts[0], max(last, starts[0] + 1))


def _fitted(name: str, share: float) -> str:
    """The name, cut where its phase is too narrow for it: about 56 letters fit over the whole width."""
    room = int(share * 56)
    return name if len(name) <= room else f"{name[: room - 1]}…" if room > 3 else ""


def thinned(steps: Sequence[float], values: Sequence[float], points: int = 160) -> tuple[NDArray[Any], NDArray[Any]]:
    """Means over equal bins of a long curve; a short one as it is."""
    x, y = np.asarray(steps, np.float64), np.asarray(values, np.float64)
    if len(x) <= points:
        return x, y
    edges = np.linspace(0, len(x), points + 1).astype(int)[:-1]
    counts = np.diff(np.append(edges, len(x)))
    return np.add.reduceat(x, edges) / counts, np.add.reduceat(y, edges) / counts
