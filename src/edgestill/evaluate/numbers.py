"""Answers read from what a language model wrote."""

import re
from math import isclose

_NUMBER = re.compile(
    r"(?:(?<![\w)\]}.])[-−])?\$?"  # a sign stands at the number and behind no other: 2-3 is no −3
    r"(?:(?:\d{1,3}(?:,\d{3})+(?![\d,])|\d+)(?:\.\d+)?|(?<!\w)\.\d+)"
    r"(?:[eE][-+]?\d+)?(?:/\d+(?![\d/.]))?"
)
_FRACTION = re.compile(r"\\[dt]?frac\{([^{}]+)\}\{([^{}]+)\}")


def last_number(text: str) -> float | None:
    """The number that a text ends in: the first behind the last `####` or in the last `\\boxed{}`, where there is one,
    else the last of all. A quotient `3/4` is one number, `\\frac{3}{4}` too.

    >>> last_number("She has 3 + 4 = $1,007.50."), last_number("#### 12 of 30"), last_number("none")
    (1007.5, 12.0, None)
    """
    text = _FRACTION.sub(r"\1/\2", text)
    place = max(text.rfind("####"), text.rfind("\\boxed{"))
    if place >= 0 and (marked := _NUMBER.search(text, place)):
        return _value(marked[0])
    found = _NUMBER.findall(text)
    return _value(found[-1]) if found else None


def _value(written: str) -> float | None:
    above, _, below = re.sub(r"[,$]", "", written).replace("−", "-").partition("/")
    if not below:
        return float(above)
    return float(above) / float(below) if float(below) else None


def same_number(reply: str, answer: str) -> bool:
    """Whether the number that a reply ends in is the answer's."""
    found, true = last_number(reply), last_number(answer)
    return found is not None and true is not None and isclose(found, true, rel_tol=1e-9, abs_tol=1e-6)


def same_text(reply: str, answer: str) -> bool:
    """Whether the first line of a reply is the answer, but for case, spaces and a closing mark.

    >>> same_text(" Paris.\\nQ: And", "paris")
    True
    """
    first = next((line for line in reply.splitlines() if line.strip()), "")
    return plain(first) == plain(answer)


def plain(text: str) -> str:
    """A text without what `same_text` does not compare."""
    return " ".join(text.casefold().split()).strip(" .!?\"'")
