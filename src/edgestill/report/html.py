"""A page from its template, everything that came from a run escaped."""

from importlib import resources
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup


def html(template: str, **context: Any) -> str:
    """The page as text, with the style of all pages inside it."""
    files = resources.files("edgestill.report")
    environment = Environment(
        loader=FileSystemLoader(str(files)),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    style = Markup((files / "style.css").read_text(encoding="utf-8"))
    return environment.get_template(template).render(style=style, **context)
