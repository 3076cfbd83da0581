"""What a recipe's file and its overrides say, as plain values: YAML, `--set`, and relative paths made absolute."""

import os
import re
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from edgestill.errors import UserError, closest
from edgestill.functions import FUNCTION
from edgestill.paths import exists

PERCENT = re.compile(r"%\s*$")


class _Loader(yaml.SafeLoader):
    """YAML 1.2's numbers: PyYAML reads 1e-3 as text."""

    yaml_implicit_resolvers = {  # noqa: RUF012  (a copy, so that SafeLoader keeps its own)
        key: list(resolvers) for key, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_mapping_node(self, anchor: Any) -> Any:
        """Refuses a key that stands twice, of which PyYAML silently takes the last."""
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and (key.tag, key.value) in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"the key {key.value!r} stands there twice", problem_mark=key.start_mark
                )
            seen.add((key.tag, key.value) if isinstance(key, yaml.ScalarNode) else id(key))
        return node


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)$"), list("-+0123456789.")
)


def _parse_yaml(text: str, what: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        where = getattr(error, "problem_mark", None)
        place = f" at line {where.line + 1}, column {where.column + 1}" if where else ""
        problem = getattr(error, "problem", None) or "cannot be read"
        raise UserError(f"{what} is not valid YAML{place}: {problem}") from None
    except RecursionError:
        raise UserError(f"{what} is not valid YAML: nested too deeply") from None
    except ValueError as error:  # an impossible date such as 2026-99-99
        raise UserError(f"{what} is not valid YAML: {error}") from None


def builtin(folder: str = "recipes") -> dict[str, Path]:
    """The built-in recipes by name, or what else a folder of the package has."""
    place = Path(str(resources.files("edgestill") / folder))
    return {path.stem: path for path in sorted(place.glob("*.yaml"))}


Defaults = dict[str, Callable[[dict[str, Any]], Any]]


RECIPES = ("recipes", "recipe", "task, data, teacher and student")
"""A kind of file: where the built-in ones are, what one is called, and keys that it has."""


def read(
    recipe: str | Path, overrides: Sequence[str], defaults: Defaults, kind: tuple[str, str, str] = RECIPES
) -> dict[str, Any]:
    """Plain values of a YAML file or a built-in recipe's name, with `key.path=value` overrides.

    Paths in the file are relative to the file, paths in overrides to the current folder; both come back absolute.
    `defaults` makes, of what is known so far, lists that an override may address an entry of where the file has none.
    Raises UserError for a file that is not there or not YAML, and for an override that leads nowhere.
    """
    folder, what, keys = kind
    path = builtin(folder).get(str(recipe), Path(recipe))
    if not exists(path) or not path.is_file():
        names = [*builtin(folder)]
        raise UserError(
            f"no {what} file {str(recipe)!r}, and no built-in one ({', '.join(names)}){closest(str(recipe), names)}"
        )
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UserError(f"{path} is not a {what}: it is not UTF-8 text") from None
    raw = _parse_yaml(text, str(path))
    if not isinstance(raw, dict):
        raise UserError(f"{path} is not a {what}: it needs keys such as {keys}")
    absolute(raw, path.resolve().parent)
    for override in overrides:
        _override(raw, override, defaults)
    return raw


def _override(raw: dict[str, Any], override: str, defaults: Defaults) -> None:
    key, equals, text = override.partition("=")
    keys = key.strip().split(".")
    if not equals or not all(keys):
        raise UserError(f"--set takes key=value, as in distill.temperature=2; {override!r} came")
    value = _parse_yaml(text, f"--set {key}")
    nested: Any = value
    for name in reversed(keys):
        nested = {name: nested}
    absolute(nested, Path.cwd())
    for name in keys:
        nested = nested[name]
    if keys[0] in defaults and keys[0] not in raw:
        raw[keys[0]] = defaults[keys[0]](raw)
    place: Any = raw
    for depth, name in enumerate(keys[:-1]):
        place = _child(place, name, ".".join(keys[: depth + 1]))
    if isinstance(place, list):
        place[_index(place, keys[-1], key)] = nested
    elif isinstance(place, dict):
        place[keys[-1]] = nested
    else:
        raise UserError(f"--set {key}: {'.'.join(keys[:-1])} is {place!r} and has no keys")


def _child(place: Any, name: str, path: str) -> Any:
    if isinstance(place, list):
        return place[_index(place, name, path)]
    if not isinstance(place, dict):
        raise UserError(f"--set {path}: there is {place!r}, which has no keys")
    if place.get(name) is None:
        place[name] = {}
    if name == "data" and isinstance(place[name], str):
        place[name] = {"source": place[name]}
    return place[name]


def _index(items: list[Any], name: str, path: str) -> int:
    """Where a list's entry is: by position, or by its `name`."""
    names = [item.get("name") if isinstance(item, dict) else None for item in items]
    if name in names:
        return names.index(name)
    if name.isdigit() and int(name) < len(items):
        return int(name)
    known = [str(known) for known in names if known]
    raise UserError(f"--set {path}: no entry {name!r} among {', '.join(known) or len(items)}{closest(name, known)}")


def absolute(raw: Any, base: Path) -> None:
    """Turns the relative paths of a raw recipe, which start from `base`, into absolute ones, in place."""

    def convert(section: Any, keys: Sequence[str], rule: Callable[[str, Path], str]) -> None:
        if isinstance(section, dict):
            for key in keys:
                if isinstance(section.get(key), str):
                    section[key] = rule(section[key], base)

    def losses(section: Any) -> None:
        convert(section, ["loss"], _function_path)
        terms = section.get("terms") if isinstance(section, dict) else None
        for term in _entries(terms):
            convert(term, ["loss"], _function_path)

    if not isinstance(raw, dict):
        return
    convert(raw, ["data"], _data_path)
    convert(raw.get("data"), ["source", "train", "test", "validation"], _data_path)
    listed = raw.get("student")
    for model in (raw.get("teacher"), *(listed if isinstance(listed, list) else [listed])):
        convert(model, ["model"], _model_path)
        convert(model, ["weights", "store", "config"], lambda text, base: _join(base, text))
        search = model.get("search") if isinstance(model, dict) else None
        if isinstance(search, dict):
            models = search.get("model")
            listed_models = [models] if isinstance(models, str) else models if isinstance(models, list) else None
            if listed_models is not None:
                search["model"] = [_model_path(one, base) if isinstance(one, str) else one for one in listed_models]
            convert(search, ["candidates"], _function_path)
            for technique in _entries(search.get("distill")):
                losses(technique)
    for skill in _entries(raw.get("skills")):
        convert(skill, ["data", "examples"], _data_path)
        convert(skill, ["scorer"], _function_path)
    losses(raw.get("distill"))
    for phase in _entries(raw.get("phases")):
        losses(phase)


def _entries(items: Any) -> list[Any]:
    """A list's entries, which --set addresses by name or position."""
    return list(items.values()) if isinstance(items, dict) else items if isinstance(items, list) else []


def _join(base: Path, text: str) -> str:
    return os.path.normpath(base / os.path.expanduser(text))


def _function_path(text: str, base: Path) -> str:
    return _join(base, text) if FUNCTION.fullmatch(text) else text


def _model_path(text: str, base: Path) -> str:
    if text.startswith("hf:"):
        path = _join(base, text[3:])
        return f"hf:{path}" if exists(Path(path)) else text
    return text if text.startswith("timm:") else _join(base, text)


def _data_path(text: str, base: Path) -> str:
    """A Hub id (owner/name, and no folder of the owner's name here) stays; all else but a share is a path."""
    looks_like_id = re.fullmatch(r"[\w.-]+/[\w.-]+(:\w+)?", text) and not text.endswith(
        (".parquet", ".npz", ".csv", ".tsv", ".json", ".jsonl", ".txt")
    )
    is_id = looks_like_id and not text.startswith(".") and not FUNCTION.fullmatch(text)
    if PERCENT.search(text) or (is_id and not exists(base / text.split("/")[0])):
        return text
    return _join(base, text)
