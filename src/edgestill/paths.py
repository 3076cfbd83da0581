"""Whether a path that a user named is there."""

from pathlib import Path


def exists(path: Path) -> bool:
    """Whether something is at `path`; False also for what can be no path: too long a name, a null byte.

    >>> exists(Path("a" * 5000))
    False
    """
    try:
        return path.exists()
    except (OSError, ValueError):
        return False
