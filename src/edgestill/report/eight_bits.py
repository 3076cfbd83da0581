"""The student in 8 bits: what they cost each format, and which layers lose most."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from edgestill.report import words
from edgestill.report.draw import WIDTH, Plot, drawn, grid
from edgestill.report.words import FLOAT, MUTED, POST_TRAINING, Metric

SHOWN = 20  # layers in the plot
LONG = 26  # letters of a layer's name in it
HOW = (None, "dynamic", "post-training", "quantization-aware")  # as the table has them, None: in float


def formats(result: dict[str, Any], of: Metric) -> list[dict[str, Any]]:
    """Each format that has a file in 8 bits: its name, a remark, and a row a file, the float one first."""
    by_format: dict[str, list[dict[str, Any]]] = {}
    for artifact in result.get("artifacts") or []:
        if artifact.get("quantized") or artifact.get("precision") == "float32":
            by_format.setdefault(str(artifact.get("format")), []).append(artifact)
    found = []
    for name, artifacts in by_format.items():
        ways = {artifact.get("quantized") for artifact in artifacts}
        if ways == {None}:
            continue
        float_quality = next((a.get("quality") for a in artifacts if not a.get("quantized")), None)
        remarks = ["post-training only"] * ("quantization-aware" not in ways)
        remarks += ["no float file to compare with"] * (None not in ways)
        rows = [_row(a, float_quality, of) for a in sorted(artifacts, key=lambda a: HOW.index(a.get("quantized")))]
        found.append({"name": name, "note": ", ".join(remarks), "rows": rows})
    return found


def _row(artifact: dict[str, Any], float_quality: Any, of: Metric) -> dict[str, str]:
    how, quality = artifact.get("quantized"), artifact.get("quality")
    comparable = how and words.known(quality) and words.known(float_quality)
    return {
        "name": words.artifact_name(artifact),
        "how": how or "float",
        "quality": words.percent(quality, 2) if of.percent else words.quality(quality, of),
        "difference": _difference(quality - float_quality, of) if comparable else words.NONE,
        "agreement": words.agreement(artifact.get("agreement"), of),
        "simulated": words.agreement((artifact.get("simulated") or {}).get("agreement"), of),
        "size": words.size(artifact.get("bytes")),
        "ratio": words.ratio(artifact.get("latency_ratio")),
    }


def _difference(value: float, of: Metric) -> str:
    """A file's may be a few images: 0.00042 -> "+0.04", to a digit more than elsewhere."""
    if not of.percent:
        return words.difference(value, of)
    return words.signed(f"{100 * value:+.2f}") if round(10_000 * value) else "0.00"


def layer_losses(result: dict[str, Any]) -> Plot | None:
    """Bars of the layers that lose most, the worst first; None where no layer was measured."""
    measured = result.get("quantization") or {}
    losses = {
        str(entry["layer"]): float(entry["divergence"])
        for entry in measured.get("layers") or []
        if words.known(entry.get("divergence"))
    }
    if not losses:
        return None
    kept = [str(layer) for layer in measured.get("kept_float") or []]
    worst = sorted(losses, key=lambda layer: -losses[layer])
    shown = worst[:SHOWN]
    said = ", ".join(f"{layer} {_nats(losses[layer])}{' (in float)' * (layer in kept)}" for layer in shown)
    samples = f" on {words.whole(measured['samples'])} training images" if words.known(measured.get("samples")) else ""
    note = f"Each layer alone in 8 bits: KL divergence to the float student, in nats, mean{samples}."
    if left := worst[SHOWN:]:
        more = f"{len(left)} more layers are" if len(left) > 1 else "1 more layer is"
        note += f" {more} not drawn, of {_nats(losses[left[0]])} at most."
    note += f" {_spared(kept, bool(measured.get('automatic')))}"
    svg = drawn("layer-losses", WIDTH, 0.8 + 0.215 * len(shown), lambda figure: _paint(figure, shown, losses, kept))
    return Plot("The layers that lose most in 8 bits", f"{said}.", svg, note)


def _spared(kept: Sequence[str], automatic: bool) -> str:
    chosen = "chosen automatically" if automatic else "as the recipe asks"
    if kept:
        return f"Kept in float, {chosen}: {', '.join(kept)}."
    return "None had to be kept in float, which was decided automatically." if automatic else "None is kept in float."


def _nats(value: float) -> str:
    return words.signed(words.error(value)) if value >= 0 else words.signed(f"{value:.1e}")


def _paint(figure: Figure, shown: Sequence[str], losses: dict[str, float], kept: Sequence[str]) -> None:
    axes = figure.subplots()
    grid(axes, "x")
    values = [max(losses[layer], 0.0) for layer in shown]  # a rounding error may be below zero
    reach = max(*values, 1e-12)
    for place, (layer, value) in enumerate(zip(shown, values, strict=True)):
        spared = layer in kept
        look: dict[str, Any] = (
            {"color": "none", "edgecolor": FLOAT, "linewidth": 1.2, "linestyle": (0, (2, 1.2))}
            if spared
            else {"color": POST_TRAINING}
        )
        axes.barh(place, value, height=0.62, **look)
        text = f"{_nats(losses[layer])}{' · in float' if spared else ''}"
        beside: dict[str, Any] = {"xytext": (4, 0), "textcoords": "offset points", "va": "center", "fontsize": 8.5}
        axes.annotate(text, (value, place), color=FLOAT if spared else MUTED, **beside)
    axes.set_yticks(np.arange(len(shown)), [_short(layer) for layer in shown])
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.set_xlim(0, reach * (1.45 if set(kept) & set(shown) else 1.25))  # room for the numbers
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _nats(value)))
    axes.set_xlabel("divergence from the float student, nats")


def _short(layer: str) -> str:
    return layer if len(layer) <= LONG else f"…{layer[1 - LONG :]}"
