"""A run folder as one page: report.html, self-contained, that opens offline. Reads files only, never torch."""

import os
from pathlib import Path

__all__ = ["write"]


def write(run: Path) -> Path:
    """Write `run`/report.html from the files of the run folder, and return its path.

    Whatever a partial run has not produced is left out of the page, or its absence is said in a line. The same folder
    gives the same bytes. Raises UserError when `run` is no run folder.

    >>> write(Path("runs/digits"))  # doctest: +SKIP
    PosixPath('runs/digits/report.html')
    """
    from edgestill.report import search, students
    from edgestill.report.folder import read
    from edgestill.report.page import render

    found = read(Path(run))
    if "search" in found.result:
        page = search.render(found.result)
    else:
        page = students.render(found.result) if {"students", "steps"} & {*found.result} else render(found)
    target = Path(run) / "report.html"
    partial = target.with_name(f".report.html.{os.getpid()}")
    try:
        partial.write_text(page, encoding="utf-8")
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)
    return target
