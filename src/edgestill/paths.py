"""Whether a path that a user named is there, and where edgestill keeps what it can make again."""

import os
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


def cache_folder(given: str | Path | None = None) -> Path:
    """The folder that is `given`, or `$EDGESTILL_CACHE`, or ~/.cache/edgestill."""
    return Path(given or os.environ.get("EDGESTILL_CACHE") or Path.home() / ".cache" / "edgestill").expanduser()
