"""Writes docs/recipe.md, every key of a recipe, from the schema: python docs/recipe_reference.py (`make docs`)."""

from pathlib import Path
from typing import Any

from edgestill.recipe import Recipe

HEAD = """# The recipe, key by key

Made from the schema by `make docs`; do not edit. A key that is not here is refused, with the closest one that is.
Quantities are written with their unit (`120 KB`, `2 ms`, `85 %`). Paths are relative to the recipe; paths given by
`--set` to the current folder. `--set KEY=VALUE` sets any key; entries of `phases` are addressed by name, as in
`--set phases.warmup.share=0.1`, entries of other lists by number.
"""


def reference() -> str:
    """The page as Markdown."""
    schema = Recipe.model_json_schema()
    sections = [HEAD]

    def add(title: str, section: dict[str, Any]) -> None:
        rows = ["| key | type | default | meaning |", "|---|---|---|---|"]
        inner = []
        required = section.get("required", [])
        either = [name for part in section.get("oneOf", []) for name in part["required"]]
        for name, field in section["properties"].items():
            default = "required" if name in required else _default(field)
            if name in either:
                default = "this or " + ", ".join(f"`{other}`" for other in either if other != name)
            rows.append(f"| `{name}` | {_type(field)} | {default} | {field.get('description', '')} |")
            if target := _target(field):
                path = f"{title}.{name}" if title else name
                inner.append((f"{path}.NAME" if _values(field) else path, target))
        sections.append("\n".join([f"## {title or 'Top level'}", "", *rows]) + "\n")
        for path, target in inner:
            add(path, schema["$defs"][target])

    add("", schema)
    return "\n".join(sections)


def _target(field: dict[str, Any]) -> str | None:
    """The section that a field holds, alone, in a list, by name or beside null."""
    for part in (field, field.get("items", {}), _values(field), *field.get("anyOf", []), *field.get("allOf", [])):
        for place in (part, part.get("items", {})):
            if "$ref" in place:
                return str(place["$ref"]).rpartition("/")[2]
    return None


def _values(field: dict[str, Any]) -> dict[str, Any]:
    """What stands behind names of the user's own."""
    values = field.get("additionalProperties", next(iter(field.get("patternProperties", {}).values()), None))
    return values if isinstance(values, dict) else {}


def _type(field: dict[str, Any]) -> str:
    if "anyOf" in field:
        return " or ".join(dict.fromkeys(_type(part) for part in field["anyOf"] if part.get("type") != "null"))
    if "$ref" in field:
        return "section"
    if "const" in field:
        return f"`{field['const']}`"
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    if "%" in field.get("pattern", ""):
        return "percentage"
    kind = field.get("type", "any")
    if "$ref" in _values(field):
        return "sections by name"
    if kind == "array":
        return f"list of {_type(field.get('items', {}))}"
    return {"integer": "whole number", "string": "text", "boolean": "true or false", "object": "keys"}.get(kind, kind)


def _default(field: dict[str, Any]) -> str:
    if "default" not in field:
        return "see below" if _target(field) else "empty"
    value = field["default"]
    if value is None:
        return "–"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


if __name__ == "__main__":
    Path(__file__).with_name("recipe.md").write_text(reference(), encoding="utf-8")
