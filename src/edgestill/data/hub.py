"""The `datasets` library without its chatter, and its failures in one line."""

import contextlib
import logging
from collections.abc import Iterator

from edgestill.errors import UserError


def hub_split_names(name: str) -> list[str]:
    """The splits of a Hub data set. UserError where it cannot be reached."""
    with quiet(f"the Hub data set {name!r}", "; check the name and the connection, or give a local path"):
        import datasets

        return list(datasets.get_dataset_split_names(name))


@contextlib.contextmanager
def quiet(source: str, advice: str = "") -> Iterator[None]:
    """Without the library's bars and notes, and with what it raises in one line."""
    import datasets

    talkers = [logging.getLogger(name) for name in ("datasets", "huggingface_hub")]
    levels, bars = [talker.level for talker in talkers], datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    for talker in talkers:
        talker.setLevel(logging.CRITICAL)
    try:
        yield
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise UserError(f"{source} cannot be read: {one_line(error.__cause__ or error)}{advice}") from error
    finally:
        for talker, level in zip(talkers, levels, strict=True):
            talker.setLevel(level)
        if bars:
            datasets.enable_progress_bars()


def one_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
