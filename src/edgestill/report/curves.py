"""Training over time: validation quality, the loss's parts, and the schedule."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from edgestill.report import words
from edgestill.report.draw import HEIGHT, WIDTH, Plot, bands, drawn, grid, thinned
from edgestill.report.tradeoff import tick
from edgestill.report.words import INK, MUTED, Metric, Role

# Not the models' colours: a part of the loss is no model.
PARTS = ("#332288", "#117733", "#aa4499", "#8a6d00", "#0088a8", "#882255", "#5a5a5a")
DASHES = ("-", (0, (5, 1.5)), (0, (2, 1.2)), (0, (6, 1.5, 1.5, 1.5)))

QUANTIZED = "quantized"
ARMS = {QUANTIZED: "student in 8 bits"}

SETTINGS = {
    "lr": "learning rate",
    "alpha": "alpha",
    "temperature": "temperature",
    "admitted": "admitted share",
}


def plots(
    result: dict[str, Any], metrics: Sequence[dict[str, Any]], of: Metric, roles: dict[str, Role], seed: Any
) -> list[Plot]:
    """Whichever of the three have something to draw. `seed`: the one whose loss is shown."""
    schedule = result.get("schedule") or []
    metrics = _run_on(metrics, result.get("quantized") or {})
    teacher = (result.get("teacher") or {}).get("validation_quality")
    note = _seen_before(result.get("teacher") or {}, of)
    found = (
        _validation(schedule, metrics, of, roles, teacher, note),
        _loss(schedule, metrics, seed),
        _schedule(schedule),
    )
    return [plot for plot in found if plot]


def _run_on(metrics: Sequence[dict[str, Any]], quantized: dict[str, Any]) -> list[dict[str, Any]]:
    """The lines with those of the phase that trains for 8 bits behind the student's: it counts its steps from 0 again.
    Left out while the result does not tell where it began."""
    after = quantized.get("after")
    found = []
    for line in metrics:
        if line.get("arm") != QUANTIZED:
            found.append(line)
        elif words.known(after):
            found.append({**line, "step": line["step"] + after})
    return found


def _validation(
    schedule: Sequence[dict[str, Any]],
    metrics: Sequence[dict[str, Any]],
    of: Metric,
    roles: dict[str, Role],
    teacher: Any,
    note: str,
) -> Plot | None:
    curves: dict[tuple[str, int], list[tuple[float, float]]] = defaultdict(list)
    for line in metrics:
        if line.get("arm") != "teacher" and words.known(line.get("validation")):
            curves[str(line["arm"]), line.get("seed", 0)].append((line["step"], line["validation"]))
    if not curves:
        return None

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        bands(axes, schedule)
        grid(axes)
        seen = set()
        for (arm, _), points in sorted(curves.items(), key=lambda curve: (curve[0][0] == QUANTIZED, curve[0])):
            colour = roles.get(arm, roles["student"]).colour
            steps, values = zip(*sorted(points), strict=True)
            label = None if arm in seen else ARMS.get(arm, arm)
            axes.plot(steps, values, color=colour, linewidth=1.1, alpha=0.85, label=label)
            axes.plot(steps[-1], values[-1], "o", color=colour, markersize=3, clip_on=False)
            seen.add(arm)
        if words.known(teacher):
            axes.axhline(teacher, color=roles["teacher"].colour, linewidth=1, linestyle=(0, (4, 2)), label="teacher")
        ends = [max(points)[1] for points in curves.values()]
        axes.set_ylim(*_window([value for points in curves.values() for _, value in points], ends, teacher, of))
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: tick(value, of)))
        axes.set_ylabel(f"validation {of.name}")
        _steps(axes)
        corner: Any = "lower right" if of.higher_is_better else "upper right"
        axes.legend(loc=corner, labelcolor="linecolor", handlelength=1.6, borderaxespad=0.8)

    last = ", ".join(
        f"{ARMS.get(arm, arm)} seed {seed} {words.quality(max(points)[1], of)}"
        for (arm, seed), points in sorted(curves.items())
    )
    svg = drawn("validation", WIDTH, HEIGHT, paint)
    return Plot("Validation quality, a line a seed", f"At the last step: {last}.", svg, note)


def _seen_before(teacher: dict[str, Any], of: Metric) -> str:
    """A remark where the teacher does clearly better on validation than on the test set."""
    validation, test = teacher.get("validation_quality"), teacher.get("quality")
    if not (words.known(validation) and words.known(test)) or not of.higher_is_better or validation - test < 0.03:
        return ""
    return (
        f"The teacher has {words.quality(test, of)} on the test set: it was probably trained on these validation "
        "images, and its line says nothing here."
    )


def _window(values: Sequence[float], ends: Sequence[float], teacher: Any, of: Metric) -> tuple[float, float]:
    """Limits in which the end of training is legible: its steep beginning may leave the window, an end never."""
    reach = [*values, teacher] if words.known(teacher) else list(values)
    low, high, middle = min(reach), max(reach), float(np.median(values))
    if of.higher_is_better:
        low = max(low, min(high - 3 * (high - middle), *ends))
    else:
        high = min(high, max(low + 3 * (middle - low), *ends))
    margin = 0.06 * (high - low) or 0.01 * max(abs(high), 1e-6)
    return low - margin, high + margin


def _loss(schedule: Sequence[dict[str, Any]], metrics: Sequence[dict[str, Any]], seed: Any) -> Plot | None:
    arms = ("student", QUANTIZED)
    lines = [line for line in metrics if line.get("arm") in arms and line.get("seed") == seed and "parts" in line]
    if len(lines) < 2:
        return None
    parts = list(dict.fromkeys(name for line in lines for name in line["parts"]))
    weighted = {name: _weighted(lines, name) for name in parts}
    shown = {name: curve for name, curve in weighted.items() if len(curve[0])}

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        bands(axes, schedule)
        grid(axes)
        total = [(line["step"], line["loss"]) for line in lines if words.known(line.get("loss"))]
        if total and len(shown) > 1:
            steps, losses = thinned([step for step, _ in total], [loss for _, loss in total])
            axes.plot(steps, losses, color=INK, linewidth=0.9, alpha=0.55, label="total")
        for position, (name, (steps, values)) in enumerate(shown.items()):
            look: dict[str, Any] = {"color": PARTS[position % len(PARTS)], "linestyle": DASHES[position % len(DASHES)]}
            axes.plot(steps, values, label=name if len(name) < 34 else f"{name[:32]}…", **look)
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(FuncFormatter(lambda value, _: ""))
        axes.set_ylabel("weighted loss (log scale)")
        _steps(axes)
        figure.legend(loc="outside lower center", ncols=2, handlelength=2.6, columnspacing=1.4, labelspacing=0.3)

    height = HEIGHT + 0.16 * max((len(shown) + 2) // 2 - 1, 0)
    svg = drawn("loss", WIDTH, height, paint)
    in_force = {name: values[~np.isnan(values)] for name, (_, values) in shown.items()}
    said = ", ".join(f"{name} from {values[0]:.3g} to {values[-1]:.3g}" for name, values in in_force.items())
    return Plot(f"Loss of the student by part, weighted, seed {seed}", f"{said}.", svg)


def _weighted(lines: Sequence[dict[str, Any]], name: str) -> tuple[Any, Any]:
    """Steps and weight · value of one part, NaN where it is not in force, so that the line has a gap there."""
    steps, values = [], []
    for line in lines:
        part = line["parts"].get(name) or {}
        value = part.get("value", np.nan) * part.get("weight", np.nan)
        steps.append(line["step"])
        values.append(value if words.known(value) and value > 0 else np.nan)
    if np.isnan(values).all():
        return np.zeros(0), np.zeros(0)
    return thinned(steps, values)


def _schedule(schedule: Sequence[dict[str, Any]]) -> Plot | None:
    settings = [key for key in SETTINGS if any(words.known(point.get(key)) for point in schedule)]
    if len(schedule) < 2 or not settings:
        return None
    steps = [point["step"] for point in schedule]

    def paint(figure: Figure) -> None:
        panels = np.atleast_1d(figure.subplots(len(settings), 1, sharex=True))
        for position, (key, axes) in enumerate(zip(settings, panels, strict=True)):
            bands(axes, schedule, named=position == 0)
            values = [point[key] if words.known(point.get(key)) else np.nan for point in schedule]
            axes.plot(steps, values, color=INK, linewidth=1.3)
            low, high = min(0.0, np.nanmin(values)), float(np.nanmax(values)) or 1.0
            axes.set_ylim(low, high * 1.55)
            axes.set_yticks([low, high], [f"{low:g}", f"{high:.2g}"])
            axes.annotate(
                SETTINGS[key], (1, 1), xycoords="axes fraction", xytext=(-4, -2), textcoords="offset points",
                ha="right", va="top", fontsize=8.5, color=MUTED,
            )  # fmt: skip
            axes.tick_params(axis="x", length=3 if position == len(settings) - 1 else 0)
        _steps(panels[-1])

    said = "; ".join(f"{SETTINGS[key]} from {schedule[0].get(key)} to {schedule[-1].get(key)}" for key in settings)
    svg = drawn("schedule", WIDTH, 0.42 + 0.68 * len(settings), paint)
    return Plot("The schedule and its phases", f"{said}.", svg)


def _steps(axes: Any) -> None:
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
