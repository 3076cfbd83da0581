"""Quantities written with their unit ("120 KB", "2 ms", "85 %") as numbers in base units, and back."""

import re
from math import inf

from edgestill.errors import UserError, closest

BYTES = {
    "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
    "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40,
}  # fmt: skip
SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0}
FRACTION = {"%": 0.01}
SPELLED = {"hour": "h", "hours": "h", "minute": "min", "minutes": "min", "second": "s", "seconds": "s", "sec": "s"}
COUNTS = {"K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}

_QUANTITY = re.compile(r"\s*([+-]?\d+(?:\.\d*)?(?:[eE][+-]?\d+)?|[+-]?\.\d+)\s*([A-Za-z%µ]*)\s*")


def _parse(text: str | int | float, units: dict[str, float] | dict[str, int], kind: str, example: str) -> float:
    match = _QUANTITY.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise UserError(f"{kind} needs a number with a unit such as {example!r}; {text!r} has none")
    number, unit = match.groups()
    if unit not in units:
        hint = (
            f"; did you mean {SPELLED[unit]!r}?" if SPELLED.get(unit) in units else closest(unit, units) if unit else ""
        )
        raise UserError(f"{kind} needs one of the units {', '.join(units)}, as in {example!r}; {text!r} came{hint}")
    value = float(number) * units[unit]
    if not 0 <= value < inf:
        raise UserError(f"{kind} must be a finite number of at least 0; {text!r} came")
    return value


def parse_bytes(text: str | int | float) -> int:
    """Bytes from "120 KB" (1000s), "64 KiB" (1024s), "98496 B". Raises UserError for a missing or unknown unit.

    >>> parse_bytes("120 KB")
    120000
    """
    return round(_parse(text, BYTES, "a size", "120 KB"))


def parse_seconds(text: str | int | float) -> float:
    """Seconds from "2 ms", "1.5 s", "2 h". Raises UserError for a missing or unknown unit.

    >>> parse_seconds("2 ms")
    0.002
    """
    return _parse(text, SECONDS, "a time", "2 ms")


def parse_count(text: str | int | float) -> int:
    """A number of things, as it is or from "512K", "10B" (1000s). Raises UserError for an unknown unit.

    >>> parse_count("10B"), parse_count(4096)
    (10000000000, 4096)
    """
    if isinstance(text, int) and not isinstance(text, bool):
        return text
    return round(_parse(text, COUNTS, "a count", "10B"))


def parse_fraction(text: str | int | float) -> float:
    """A fraction from 0.87 or "87 %".

    >>> parse_fraction("50 %")
    0.5
    """
    if isinstance(text, int | float) and not isinstance(text, bool):
        return float(text)
    try:
        return float(text)
    except ValueError:
        return _parse(text, FRACTION, "a share", "85 %")


def format_bytes(count: float) -> str:
    """Bytes for people, in 1000s: 318144 -> "318 KB"."""
    for unit, size in (("PB", 1e15), ("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("KB", 1e3)):
        if abs(count) >= size:
            return f"{count / size:.3g} {unit}" if count / size < 999.5 else f"{count / size:.0f} {unit}"
    return f"{count:.0f} B"


def format_count(count: float) -> str:
    """A number of things for people: 8030261248 -> "8.03B"."""
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if count >= size:
            return f"{count / size:.3g}{unit}" if count / size < 999.5 else f"{count / size:,.0f}{unit}"
    return f"{count:.0f}"


def format_seconds(seconds: float) -> str:
    """A duration for people: 0.00027 -> "0.27 ms", 95 -> "95 s", 4000 -> "1 h 7 min"."""
    if seconds < 0.9995:
        return f"{seconds * 1e3:.3g} ms"
    if seconds < 120:
        return f"{seconds:.3g} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
