"""Progress of long work: a bar on a terminal, one line a minute in a pipe."""

import sys
from collections.abc import Iterable, Iterator
from time import monotonic
from typing import Any

LINE_EVERY = 60.0


def track(items: Iterable[Any], description: str, total: int) -> Iterator[Any]:
    """Passes `items` on and shows on stderr how many of `total` are done."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        columns = (TextColumn("{task.description:<28}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, TextColumn("left"), TimeRemainingColumn(), console=Console(stderr=True)) as bar:
            yield from bar.track(items, total=total, description=description)
        return
    said = started = monotonic()
    for done, item in enumerate(items):
        yield item
        if monotonic() - said > LINE_EVERY:
            said = monotonic()
            print(f"{description}: {done + 1} of {total}, {said - started:.0f} s", file=sys.stderr, flush=True)


def silent(items: Iterable[Any], description: str, total: int) -> Iterable[Any]:
    """Passes `items` on and shows nothing."""
    return items
