"""The one exception that a user's mistake raises, and the hint that names what was probably meant."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake of the user's: one line saying what was required, what came, and what to do.

    The command line prints it on stderr and exits with code 2; nothing else may escape to the user.
    """


def first_line(error: BaseException) -> str:
    """What an error says, in one line; its type where it says nothing.

    >>> first_line(ValueError("too long\\nby far")), first_line(KeyError())
    ('too long', 'KeyError')
    """
    return (str(error).splitlines() or [type(error).__name__])[0]


def closest(name: str, known: Iterable[str]) -> str:
    """`"; did you mean 'alpha'?"` when a known name resembles `name`, else the empty string.

    >>> closest("aplha", ["alpha", "temperature"])
    "; did you mean 'alpha'?"
    """
    names = list(known)
    matches = [other for other in names if other.lower() == name.lower()]
    matches = matches or difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(repr(match) for match in matches)}?" if matches else ""
