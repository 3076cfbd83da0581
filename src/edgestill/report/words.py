"""Numbers as the page writes them, and each model's colour and mark."""

import math
from collections.abc import Iterable
from typing import Any, NamedTuple, TypeGuard

from edgestill.units import format_bytes, format_seconds

NONE = "–"
GAP = "\N{NO-BREAK SPACE}"  # between a number and its unit
MINUS = "−"
INK = "#1f2328"
MUTED = "#5f6670"


class Metric(NamedTuple):
    """What quality means in this run. `percent`: written as % and differences in points; `agreement`: how near a file's
    answers are to the student's, a share of samples or of embeddings their mean `cosine`."""

    name: str
    higher_is_better: bool
    chance: float
    percent: bool
    agreement: str = "agreement"


class Role(NamedTuple):
    """How one model looks in every plot and table: a colour, a matplotlib marker, the same as an SVG path (10 × 10),
    and whether only its outline is drawn."""

    colour: str
    marker: str
    path: str
    hollow: bool = False


# Colours that colour-blind readers can tell apart (after Okabe and Ito): a file's says how its numbers were made.
FLOAT, POST_TRAINING, QUANTIZATION_AWARE = "#00795b", "#c44601", "#93307f"
SHAPES = {  # a file's says what runs it
    "onnx": ("D", "M5 .3 9.7 5 5 9.7 .3 5z"),
    "executorch": ("^", "M5 .8 9.6 9H.4z"),
    "openvino": ("v", "M5 9.2 9.6 1H.4z"),
    "litert": ("*", "M5 0 6.2 3.6 10 3.7 7 6 8.1 9.6 5 7.5 1.9 9.6 3 6 0 3.7 3.8 3.6z"),
}
OTHER_SHAPE = ("p", "M5 .4 9.7 3.8 7.9 9.4H2.1L.3 3.8z")


def metric(result: dict[str, Any]) -> Metric:
    described = result.get("metric") or {}
    higher = bool(described.get("higher_is_better", True))
    quality = (result.get("teacher") or {}).get("quality")
    return Metric(
        name=str(described.get("name", "quality")),
        higher_is_better=higher,
        chance=float(described.get("chance") or 0.0),
        percent=higher and (quality is None or abs(quality) <= 1),
        agreement=str(described.get("agreement", "agreement")),
    )


def roles(artifacts: Iterable[dict[str, Any]]) -> dict[str, Role]:
    """The look of each arm and artifact, by name."""
    return {
        "teacher": Role("#2f3b52", "s", "M1 1h8v8H1z"),
        "baseline": Role(
            "#6b727c", "X", "M.8 2.9 2.9.8 5 2.9l2.1-2.1 2.1 2.1L7.1 5l2.1 2.1-2.1 2.1L5 7.1 2.9 9.2.8 7.1 2.9 5z"
        ),
        "scratch": Role("#8a6a00", "P", "M3.6.6h2.8v3h3v2.8h-3v3H3.6v-3h-3V3.6h3z"),
        "student": Role("#0069aa", "o", "M5 .6a4.4 4.4 0 1 1 0 8.8a4.4 4.4 0 1 1 0-8.8z"),
        "quantized": Role(QUANTIZATION_AWARE, "o", "M5 .6a4.4 4.4 0 1 1 0 8.8a4.4 4.4 0 1 1 0-8.8z"),
        **{artifact_name(artifact): _look(artifact) for artifact in artifacts},
    }


def _look(artifact: dict[str, Any]) -> Role:
    precision, how = artifact.get("precision") or "float32", artifact.get("quantized")
    colour = FLOAT if precision.startswith("float") else POST_TRAINING
    if how == "quantization-aware":
        colour = QUANTIZATION_AWARE
    marker, path = SHAPES.get(str(artifact.get("format")), OTHER_SHAPE)
    return Role(colour, marker, path, hollow=precision == "float16" or how == "dynamic")


def artifact_name(artifact: dict[str, Any]) -> str:
    """`onnx-int8`: the given name, or the format and, unless it is float32, the precision."""
    if "name" in artifact:
        return str(artifact["name"])
    precision = artifact.get("precision") or "float32"
    return str(artifact.get("format", "artifact")) + ("" if precision == "float32" else f"-{precision}")


def known(value: Any) -> TypeGuard[float]:
    """A finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def signed(text: str) -> str:
    """A typographic minus for a hyphen in front of a number."""
    return text.replace("-", MINUS)


def quality(value: Any, of: Metric, spread: Any = None) -> str:
    """0.8812 -> "88.1 %"; with a spread over seeds "88.1 ± 0.4 %"."""
    if not known(value):
        return NONE
    scale, digits, unit = (100, ".1f", f"{GAP}%") if of.percent else (1, ".4g", "")
    within = f"{GAP}±{GAP}{scale * spread:{'.1f' if of.percent else '.2g'}}" if known(spread) else ""
    return signed(f"{scale * value:{digits}}{within}{unit}")


def difference(value: Any, of: Metric) -> str:
    """A signed difference of two qualities, without its unit: 0.0213 -> "+2.1"."""
    if not known(value):
        return NONE
    return signed(f"{100 * value:+.1f}" if of.percent else f"{value:+.3g}")


def percent(value: Any, digits: int = 1) -> str:
    return signed(f"{100 * value:.{digits}f}{GAP}%") if known(value) else NONE


def agreement(value: Any, of: Metric) -> str:
    """Never rounded up to 100 %: 0.9996 -> "99.96 %"; a cosine as "0.9996"."""
    if not known(value):
        return NONE
    if of.agreement == "cosine":
        return f"{math.floor(round(value, 6) * 1e4) / 1e4:.4g}"
    return f"100{GAP}%" if value == 1 else f"{math.floor(value * 1e4) / 100:.4g}{GAP}%"


def size(value: Any) -> str:
    return format_bytes(value).replace(" ", GAP) if known(value) else NONE


def duration(value: Any) -> str:
    return format_seconds(value).replace(" ", GAP) if known(value) else NONE


def milliseconds(value: Any) -> str:
    """Three digits, never in powers of ten: 0.2712 -> "0.271", 1234.5 -> "1,234"."""
    if not known(value):
        return NONE
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def ratio(value: Any) -> str:
    """Two digits: 0.0844 -> "0.084", 0.1 -> "0.10", 12.4 -> "12"."""
    if not known(value):
        return NONE
    return f"{value:,.0f}" if value >= 10 else f"{value:#.2g}"


def whole(value: Any) -> str:
    return f"{value:,.0f}" if known(value) else NONE


def operations(value: Any) -> str:
    """12500000 -> "12.5 M"."""
    if not known(value):
        return NONE
    for unit, scale in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= scale:
            return f"{value / scale:.3g}{GAP}{unit}"
    return f"{value:.0f}"


def error(value: Any) -> str:
    """Two digits: 0.0731 -> "0.073", 3.1e-06 -> "3.1 × 10⁻⁶"."""
    if not known(value):
        return NONE
    if value == 0 or value >= 1e-3:
        return f"{value:.2g}"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa}{GAP}×{GAP}10{str(int(exponent)).translate(str.maketrans('-0123456789', '⁻⁰¹²³⁴⁵⁶⁷⁸⁹'))}"


def times(ratio: float) -> str:
    """3.14 -> "3.1", 41.7 -> "42", 1234 -> "1,234"."""
    return f"{ratio:.1f}" if ratio < 10 else f"{ratio:,.0f}"


def short(model: Any) -> str:
    """The name in a model's spec: "nets/resnet.py:resnet8" -> "resnet8"; "hf:microsoft/resnet-50" -> "resnet-50"."""
    return str(model).rsplit(":", 1)[-1].rstrip("/").rsplit("/", 1)[-1] if isinstance(model, str) else ""
