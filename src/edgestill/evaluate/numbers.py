"""Answers read from what a language model wrote."""

import re

_NUMBER = re.compile(r"[-−]?\s?\$?\s?(?:\d[\d,]*(?:\.\d+)?|\.\d+)")
_MARKED = re.compile(r"####\s*(.+)|\\boxed\{([^}]*)\}")


def last_number(text: str) -> float | None:
    """The number that a text ends in: behind `####` or in `\\boxed{}` where one stands there, else the last of all.

    >>> last_number("She has 3 + 4 = $1,007.50."), last_number("#### 12\\nor 13?"), last_number("none")
    (1007.5, 12.0, None)
    """
    marked = [next(filter(None, found), "") for found in _MARKED.findall(text)]
    for part in [*marked[-1:], text]:
        if numbers := _NUMBER.findall(part):
            return _value(numbers[-1])
    return None


def _value(written: str) -> float:
    plain = re.sub(r"[,\s$]", "", written).replace("−", "-")
    return float(plain)


def same_number(reply: str, answer: str) -> bool:
    """Whether the number that a reply ends in is the answer's, to a millionth."""
    found, true = last_number(reply), last_number(answer)
    return found is not None and true is not None and abs(found - true) <= 1e-6 * max(1.0, abs(true))


def same_text(reply: str, answer: str) -> bool:
    """Whether the first line of a reply is the answer, but for case, spaces and a closing mark.

    >>> same_text(" Paris.\\nQ: And", "paris")
    True
    """
    first = next((line for line in reply.splitlines() if line.strip()), "")
    return _plain(first) == _plain(answer)


def _plain(text: str) -> str:
    return " ".join(text.casefold().split()).strip(" .!?\"'")
