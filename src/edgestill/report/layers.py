"""Layer maps: which student tap learned from which teacher tap, and how alike they were. S student, M teacher taps."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from edgestill.report import words
from edgestill.report.draw import WIDTH, Plot, drawn
from edgestill.report.words import INK

# Light enough that dark numbers are legible on all of it.
COLOURS = LinearSegmentedColormap.from_list("similarity", ["#f7f9fb", "#b5d5ea", "#4f9fd0"])
CHOSEN = "#c44601"
ROOM = 12  # columns whose cells have room for their number
LABELS = 28  # names along an axis that do not touch each other
LETTERS = 44  # over the width of the columns, between teacher taps one of them free
LONG = 20  # letters of a tap's name in a plot


class Map(NamedTuple):
    """One layer map of the page: its heading, the drawing where a similarity was measured, and its rows."""

    title: str
    plot: Plot | None
    rows: list[tuple[str, str, str]]  # student tap, teacher tap, similarity


def maps(result: dict[str, Any]) -> list[Map]:
    """The layer maps of a result, in order; losses with the same map share one."""
    losses: dict[str, list[str]] = {}
    entries: dict[str, dict[str, Any]] = {}
    for entry in result.get("layer_maps") or []:
        same = repr([entry.get(key) for key in ("map", "student", "teacher", "similarity", "pairs")])
        losses.setdefault(same, []).append(words.short(entry.get("loss")))
        entries.setdefault(same, entry)
    return [
        _map(f"layers{place}", ", ".join(dict.fromkeys(losses[same])), entry)
        for place, (same, entry) in enumerate(entries.items())
    ]


def _map(name: str, losses: str, entry: dict[str, Any]) -> Map:
    student, teacher = (list(map(str, entry.get(side) or [])) for side in ("student", "teacher"))
    pairs = [(str(mine), str(theirs)) for mine, theirs in entry.get("pairs") or []]
    table = np.asarray(entry.get("similarity") or [], np.float64)  # null becomes nan
    title = f"{losses}: {entry.get('map', '')}"
    if table.size == 0 or table.shape != (len(student), len(teacher)):
        return Map(title, None, [(*pair, "") for pair in pairs])
    at = {
        (mine, theirs): table[row, column] for row, mine in enumerate(student) for column, theirs in enumerate(teacher)
    }
    told = {pair: _number(at.get(pair, np.nan)) for pair in pairs}
    plot = Plot(
        title=title,
        description="; ".join(f"{mine} from {theirs}, similarity {told[mine, theirs]}" for mine, theirs in pairs) + ".",
        svg=drawn(
            name, WIDTH, _height(student, teacher), lambda figure: _paint(figure, student, teacher, table, pairs)
        ),
        note=_note(student, teacher, entry.get("samples")),
    )
    return Map(title, plot, [(*pair, told[pair]) for pair in pairs])


def _note(student: Sequence[str], teacher: Sequence[str], samples: Any) -> str:
    of = f" on {words.whole(samples)} samples" if words.known(samples) else ""
    shared = [(side, _names(paths)[1]) for side, paths in (("student", student), ("teacher", teacher))]
    taps = ", ".join(f"{side} {pattern}" for side, pattern in shared if pattern)
    return f"Linear CKA{of}; framed: the pairs.{f' Taps: {taps}.' if taps else ''}"


def _number(value: float) -> str:
    return words.signed(f"{value:.2f}") if np.isfinite(value) else words.NONE


def _height(student: Sequence[str], teacher: Sequence[str]) -> float:
    """Inches: the rows, the teacher's names where they stand upright, and what is around them."""
    names = _names(teacher)[0]
    upright = 0.07 * max(map(len, names)) if _crowded(names) else 0.15
    return len(student) * (0.28 if len(student) <= ROOM else 0.19) + upright + (0.5 if _told(teacher) else 1.0)


def _told(teacher: Sequence[str]) -> bool:
    """Whether each cell has its number; otherwise there is a scale of colours."""
    return len(teacher) <= ROOM


def _crowded(names: Sequence[str]) -> bool:
    return len(names) * (max(map(len, names)) + 1) > LETTERS


def _paint(
    figure: Figure,
    student: Sequence[str],
    teacher: Sequence[str],
    table: NDArray[np.float64],
    pairs: Sequence[tuple[str, str]],
) -> None:
    axes = figure.subplots()
    mesh = axes.pcolormesh(table, cmap=COLOURS, vmin=0, vmax=1, edgecolors="w", linewidth=0.6)
    axes.invert_yaxis()
    for spine in axes.spines.values():
        spine.set_visible(False)
    for axis, model, paths in ((axes.xaxis, "teacher", teacher), (axes.yaxis, "student", student)):
        names, step = _names(paths)[0], -(-len(paths) // LABELS)
        axis.set_ticks(np.arange(0, len(names), step) + 0.5, names[::step])
        axis.set_label_text(model)
    axes.tick_params(length=0)
    if _crowded(_names(teacher)[0]):
        axes.tick_params(axis="x", labelrotation=90)
    if _told(teacher):
        size = 8.5 if len(teacher) <= 8 else 7
        for (row, column), value in np.ndenumerate(table):
            axes.text(column + 0.5, row + 0.5, _number(value), ha="center", va="center", fontsize=size, color=INK)
    else:
        bar = figure.colorbar(mesh, ax=axes, location="top", aspect=34, shrink=0.6, ticks=[0, 0.5, 1])
        bar.outline.set_visible(False)
        bar.ax.tick_params(length=0)
        bar.set_label("similarity")
    for mine, theirs in pairs:
        if mine in student and theirs in teacher:
            corner = (teacher.index(theirs), student.index(mine))
            axes.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor=CHOSEN, linewidth=1.8, clip_on=False))


def _names(paths: Sequence[str]) -> tuple[list[str], str]:
    """What tells the paths apart, and what they share: encoder.layer.0.output, encoder.layer.1.output, … become 0, 1, …
    and encoder.layer.*.output."""
    parts = [path.split(".") for path in paths]
    shortest = min(map(len, parts)) - 1  # something stays of each
    front = _shared(parts, shortest) if len(paths) > 1 else 0
    back = _shared([part[::-1] for part in parts], shortest - front) if len(paths) > 1 else 0
    names = [_cut(".".join(part[front : len(part) - back]), LONG) for part in parts]
    pattern = ".".join([*parts[0][:front], "*", *parts[0][len(parts[0]) - back :]]) if front or back else ""
    return names, pattern


def _shared(parts: Sequence[Sequence[str]], most: int) -> int:
    """How many of the first `most` parts are the same in all."""
    count = 0
    while count < most and len({part[count] for part in parts}) == 1:
        count += 1
    return count


def _cut(text: str, letters: int) -> str:
    """A long text without its middle."""
    half = (letters - 1) // 2
    return text if len(text) <= letters else f"{text[:half]}…{text[-half:]}"
