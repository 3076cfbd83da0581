"""Quality against size, and against latency."""

import math
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Annotation, Text
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
from matplotlib.transforms import Bbox

from edgestill.report import words
from edgestill.report.draw import HEIGHT, WIDTH, Plot, drawn, grid
from edgestill.report.table import host, shipped
from edgestill.report.words import MUTED, Metric, Role

ALLOWED, LIMIT = "#e8f3ee", "#00694f"
ARMS = ("teacher", "baseline", "student")
NAMED = 4  # artifacts that have room in a plot with the arms; of more, it has only the one that the budget is judged on

SIZES = {"D": 6, "*": 9.5}  # in points, so that marks of all shapes look equally large
NEAR = 13  # points between a mark and its name, beyond which a line joins them
Place = tuple[float, float, str, str]  # of a label: offsets in points, horizontal and vertical alignment


class Point(NamedTuple):
    name: str
    x: float
    quality: float
    spread: float


def plots(result: dict[str, Any], of: Metric, roles: dict[str, Role]) -> list[Plot]:
    """The plots for which at least two models have numbers: each of arms and artifacts, and where those are many, of
    the artifacts alone."""
    budget = result.get("budget") or {}
    floor = (budget.get("quality") or {}).get("limit")
    found = []
    artifacts = result.get("artifacts") or []
    judged = words.artifact_name(shipped(result))
    many = len(artifacts) > NAMED
    place = f" on {host(result)}" if host(result) else ""
    for name, title, axis, read, write, limit in (
        ("size", "size", "size", _size, words.size, _limit(budget, "size")),
        (
            "latency",
            "latency",
            f"latency of one sample{place}, p50",
            _latency,
            words.duration,
            _limit(budget, "latency"),
        ),
    ):
        points = _points(result, read)
        heading = f"{of.name.capitalize()} against {title}"
        kinds = [("", heading, [point for point in points if not many or point.name in (*ARMS, judged)])]
        if many:
            kinds.append(("-files", f"{heading}, the files", [point for point in points if point.name not in ARMS]))
        for kind, caption, shown in kinds:
            if len({point.name for point in shown}) > 1:
                named = [judged] if kind else [point.name for point in shown]
                svg = _scatter(f"tradeoff-{name}{kind}", shown, named, axis, write, of, roles, limit, floor)
                said = ", ".join(f"{point.name} {write(point.x)} {words.quality(point.quality, of)}" for point in shown)
                found.append(Plot(caption, f"{said}.", svg))
    return sorted(found, key=lambda plot: plot.title.endswith("the files"))


def _limit(budget: dict[str, Any], name: str) -> Any:
    return (budget.get(name) or {}).get("limit")


def _size(model: dict[str, Any]) -> Any:
    return model.get("bytes")


def _latency(model: dict[str, Any]) -> Any:
    p50 = (model.get("latency_ms") or {}).get("p50")
    return p50 / 1e3 if words.known(p50) else None


def _points(result: dict[str, Any], read: Callable[[dict[str, Any]], Any]) -> list[Point]:
    teacher, student = result.get("teacher") or {}, result.get("student") or {}
    models: list[tuple[str, Any, Any, float]] = [("teacher", read(teacher), teacher.get("quality"), 0.0)]
    for name, arm in (result.get("arms") or {}).items():
        models.append((name, read(student), arm.get("mean"), arm.get("std") or 0.0))
    for artifact in result.get("artifacts") or []:
        models.append((words.artifact_name(artifact), read(artifact), artifact.get("quality"), 0.0))
    return [Point(*model) for model in models if words.known(model[1]) and model[1] > 0 and words.known(model[2])]


def _scatter(
    name: str,
    points: Sequence[Point],
    named: Collection[str],
    axis: str,
    write: Callable[[Any], str],
    of: Metric,
    roles: dict[str, Role],
    limit: Any,
    floor: Any,
) -> str:
    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        zoomed = all(point.name not in ARMS for point in points)
        near = limit if not zoomed or _close(limit, [point.x for point in points]) else None
        above = floor if not zoomed or _close(floor, [point.quality for point in points]) else None
        _frame(axes, points, near, above)
        grid(axes, "both")
        _allowed(axes, write, of, limit, floor)
        for point in points:
            role = roles.get(point.name, roles["student"])
            if point.spread:
                axes.errorbar(point.x, point.quality, point.spread, color=role.colour, linewidth=1, alpha=0.7, zorder=2)
            # Points may coincide (a student and its float32 file): the later is smaller, so that both are seen.
            size = 8.5 if point.name in ARMS else SIZES.get(role.marker, 7)
            mark: dict[str, Any] = {"markersize": size, "markeredgecolor": "w", "markeredgewidth": 0.6, "zorder": 3}
            if role.hollow:
                mark |= {"markerfacecolor": "w", "markeredgecolor": role.colour, "markeredgewidth": 1.2}
            axes.plot(point.x, point.quality, role.marker, color=role.colour, **mark)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: write(value)))
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: tick(value, of)))
        axes.set_xlabel(f"{axis} (log scale)")
        axes.set_ylabel(of.name if of.higher_is_better else f"{of.name}, lower is better")
        _label(figure, axes, points, named, roles)

    return drawn(name, WIDTH, HEIGHT, paint)


def tick(value: float, of: Metric) -> str:
    """A quality as a tick: 0.85 -> "85 %"."""
    return words.signed(f"{100 * value:.4g}{words.GAP}%" if of.percent else f"{value:.4g}")


def _close(limit: Any, values: Sequence[float]) -> bool:
    """Whether a limit is near enough to the values to be in their frame."""
    low, high = min(values), max(values)
    return words.known(limit) and low - (high - low) / 2 <= limit <= high + (high - low) / 2


def _frame(axes: Axes, points: Sequence[Point], limit: Any, floor: Any) -> None:
    """Axes that hold every point, the limits, and room for labels."""
    xs = [point.x for point in points] + [limit] * words.known(limit)
    low = [point.quality - point.spread for point in points] + [floor] * words.known(floor)
    high = [point.quality + point.spread for point in points] + [floor] * words.known(floor)
    decades = max(math.log10(max(xs) / min(xs)), 0.4)
    axes.set_xscale("log")
    axes.set_xlim(min(xs) / 10 ** (0.32 * decades), max(xs) * 10 ** (0.14 * decades))
    span = max(max(high) - min(low), 1e-6)
    axes.set_ylim(min(low) - 0.16 * span, max(high) + 0.16 * span)
    subs = (1, 2, 5) if decades < 1.3 else (1, 3) if decades < 2.2 else (1,)
    axes.xaxis.set_major_locator(LogLocator(subs=subs, numticks=12))
    axes.xaxis.set_minor_locator(NullLocator())


def _allowed(axes: Axes, write: Callable[[Any], str], of: Metric, limit: Any, floor: Any) -> None:
    """The area that meets the budget, with those of its limits that are inside the frame written on its edges."""
    left, right = axes.get_xlim()
    bottom, top = axes.get_ylim()
    has_limit, has_floor = words.known(limit), words.known(floor)
    if not has_limit and not has_floor:
        return
    low, high = (floor, top) if of.higher_is_better else (bottom, floor)
    low, high = (min(max(low, bottom), top), min(max(high, bottom), top)) if has_floor else (bottom, top)
    end = min(max(limit, left), right) if has_limit else right
    axes.fill_between([left, end], low, high, color=ALLOWED, linewidth=0, zorder=0)
    style: dict[str, Any] = {"color": LIMIT, "linewidth": 0.9, "linestyle": (0, (4, 2)), "zorder": 1}
    note: dict[str, Any] = {"color": LIMIT, "fontsize": 8, "textcoords": "offset points"}
    if has_limit and left < limit < right:
        axes.axvline(limit, **style)
        axes.annotate(
            f"≤ {write(limit)}", (limit, 1), xycoords=("data", "axes fraction"), xytext=(0, 3), ha="center", **note
        )
    if has_floor and bottom < floor < top:
        axes.axhline(floor, **style)
        sign = "≥" if of.higher_is_better else "≤"
        # Under the line where models below it are worse, over it where they are better: outside the shaded area.
        below = -3 if of.higher_is_better else 3
        place: dict[str, Any] = {"xytext": (-2, below), "ha": "right", "va": "top" if below < 0 else "bottom"}
        text = f"{sign} {tick(floor, of)}"
        axes.annotate(text, (1, floor), xycoords=("axes fraction", "data"), **place, **note)


def _label(figure: Figure, axes: Axes, points: Sequence[Point], named: Collection[str], roles: dict[str, Role]) -> None:
    """The name of each of `named` at the place that covers least: no other name or point if possible, then no limit's
    line."""
    renderer = FigureCanvasAgg(figure).get_renderer()  # type: ignore[no-untyped-call]
    figure.draw_without_rendering()
    frame = axes.get_window_extent(renderer)
    reach = 5 * figure.dpi / 72
    marks = [axes.transData.transform((point.x, point.quality)) for point in points]
    taken = [Bbox.from_extents(x - reach, y - reach, x + reach, y + reach) for x, y in marks]
    taken += [text.get_window_extent(renderer) for text in axes.texts]
    limits = [line.get_window_extent(renderer) for line in axes.lines if line.get_linestyle() == "--"]
    for point in (point for point in points if point.name in named):
        colour = roles.get(point.name, roles["student"]).colour
        tried: list[tuple[int, int, Place, Bbox]] = []
        for place in _places():
            text = _annotated(axes, point, place, colour)
            text.update_positions(renderer)
            box = Text.get_window_extent(text, renderer)  # the annotation's own would include its leader line
            inside = frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
            text.remove()
            covered = 10 * sum(box.overlaps(other) for other in taken) + sum(box.overlaps(other) for other in limits)
            far = 2 if abs(place[1]) > NEAR else 0
            tried.append((covered + far + (0 if inside else 100), len(tried), place, box))
            if tried[-1][0] == 0:
                break
        _, _, place, box = min(tried, key=lambda trial: trial[:2])
        _annotated(axes, point, place, colour)
        taken.append(box)


def _annotated(axes: Axes, point: Point, place: Place, colour: str) -> Annotation:
    dx, dy, horizontal, vertical = place
    text = axes.annotate(
        point.name,
        (point.x, point.quality),
        xytext=(dx, dy),
        textcoords="offset points",
        ha=horizontal,
        va=vertical,
        fontsize=9,
        fontweight="bold",
        color=colour,
        arrowprops={"arrowstyle": "-", "color": MUTED, "linewidth": 0.6} if abs(dy) > NEAR else None,
    )
    text.set_in_layout(False)
    return text


def _places() -> list[Place]:
    """Offsets in points around a mark, near ones first."""
    near = [
        (8.0, 0.0, "left", "center"),
        (-8.0, 0.0, "right", "center"),
        (0.0, 8.0, "center", "bottom"),
        (0.0, -8.0, "center", "top"),
        (6.0, 6.0, "left", "bottom"),
        (6.0, -6.0, "left", "top"),
        (-6.0, 6.0, "right", "bottom"),
        (-6.0, -6.0, "right", "top"),
    ]
    far = [
        (horizontal * 14.0, vertical * distance, side, "center")
        for distance in (20.0, 32.0, 44.0)
        for vertical in (-1, 1)
        for horizontal, side in ((1, "left"), (-1, "right"))
    ]
    return near + far
