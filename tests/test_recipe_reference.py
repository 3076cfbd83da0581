"""docs/recipe.md is what the schema says."""

import importlib.util
from pathlib import Path

from edgestill.recipe import Recipe

DOCS = Path(__file__).parents[1] / "docs"


def reference() -> str:
    spec = importlib.util.spec_from_file_location("recipe_reference", DOCS / "recipe_reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.reference()


def test_the_page_is_fresh():
    assert (DOCS / "recipe.md").read_text(encoding="utf-8") == reference(), "run `make docs`"


def test_every_key_stands_there_with_a_meaning():
    schema = Recipe.model_json_schema()
    page = reference().splitlines()
    for section in (schema, *schema["$defs"].values()):
        for name in section["properties"]:
            rows = [row for row in page if row.startswith(f"| `{name}` |")]
            assert rows, name
            assert all(row.split("|")[4].strip() for row in rows), name
