"""What the documentation shows works: recipes validate, marked Python runs, commands parse, links lead somewhere."""

import contextlib
import io
import json
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from edgestill.assemble import assemble, description_of, online
from edgestill.capture import capture, finish
from edgestill.cli import _parser
from edgestill.progress import silent
from edgestill.reading import builtin
from edgestill.recipe import Recipe, load_recipe, validate
from edgestill.runs import run
from text_recipes import TOKENS, written

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*.md")])
USER_PAGES = [page for page in PAGES if page.name not in ("design.md", "log.md", "CHANGELOG.md")]
"""The design page describes later features too."""
BLOCK = re.compile(r"^```(?P<kind>[^\n]*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
NEEDED = {
    "task": "image-classification",
    "data": "photos",
    "teacher": {"model": "nets.py:large", "weights": "large.safetensors"},
    "student": {"model": "nets.py:small"},
}


def blocks(page: Path, kind: str) -> list[str]:
    return [found["text"] for found in BLOCK.finditer(page.read_text(encoding="utf-8")) if found["kind"] == kind]


def snippets(kind: str, pages: list[Path] = USER_PAGES) -> list[object]:
    return [
        pytest.param(text, id=f"{page.name}-{number}")
        for page in pages
        for number, text in enumerate(blocks(page, kind), start=1)
    ]


def commands(page: Path) -> list[str]:
    """Lines of sh blocks, and inline code that begins with `edgestill`."""
    lines = [line for text in blocks(page, "sh") for line in text.splitlines()]
    inline = re.findall(r"`(edgestill [^`\n]+)`", BLOCK.sub("", page.read_text(encoding="utf-8")))
    return [line for line in (*lines, *inline) if "…" not in line]


@pytest.mark.parametrize("text", snippets("yaml"))
def test_recipes_and_pieces_of_recipes_validate(text: str) -> None:
    shown = yaml.safe_load(text)
    assert set(shown) <= set(Recipe.model_fields)
    whole = shown if "task" in shown else NEEDED | shown
    for student in whole["student"] if isinstance(whole["student"], list) else [whole["student"]]:
        validate(whole | {"student": student})


def test_readme_shows_a_whole_recipe() -> None:
    assert any("task" in yaml.safe_load(text) for text in blocks(ROOT / "README.md", "yaml"))


@pytest.mark.parametrize("text", snippets("python runnable"))
def test_python_marked_runnable_runs_and_prints_what_its_comments_say(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(text, "snippet", "exec"), {"__name__": "snippet"})
    expected = re.findall(r"^print\(.*\)  # (.+)$", text, re.MULTILINE)
    assert printed.getvalue().splitlines() == expected


@pytest.mark.parametrize("text", snippets("python") + snippets("python runnable"))
def test_python_is_python(text: str) -> None:
    compile(text, "snippet", "exec")


@pytest.mark.parametrize(
    ("recipe", "codec", "temperature"),
    [("digits", "dense", 4.0), (TOKENS, "dense", 1.0), (TOKENS, "top-k", 1.0), (TOKENS, "sampled", 1.0)],
    ids=["images", "dense", "top-k", "sampled"],
)
def test_the_files_of_a_store_are_read_as_its_page_says(
    recipe: str, codec: str, temperature: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By NumPy, and by what decodes them: one view of an image with a tap, and of many tokens."""
    sets = [f"capture.codec={codec}", "capture.k=4", *(["capture.taps={stage2: int8}"] if recipe == "digits" else [])]
    job = assemble(load_recipe(recipe if recipe == "digits" else written(tmp_path, recipe), sets), silent)
    capture(tmp_path / "signals", description_of(job), job.splits.train, online(job))
    finish(tmp_path / "signals")
    decoded, opened, dense, top_k, sampled, int8 = blocks(ROOT / "docs" / "stores.md", "python")
    monkeypatch.chdir(tmp_path)
    found: dict[str, Any] = {}
    exec(decoded, found)
    taps = ["stage2"] if recipe == "digits" else []
    told = found["store"].signal(views=np.array([0]), samples=np.array([0]), taps=taps)
    exec(opened + {"dense": dense, "top-k": top_k, "sampled": sampled}[codec] + (int8 if taps else ""), found)
    if codec == "dense":
        np.testing.assert_array_equal(found["logits"], told.logits)
        assert (len(found["logits"]) > 1) is (recipe == TOKENS)
    elif codec == "top-k":
        np.testing.assert_array_equal(found["ids"], told.logits.ids)
        np.testing.assert_allclose(found["probabilities"], told.logits.at(temperature).softmax(-1), rtol=1e-4)
    else:
        for place, (ids, shares) in enumerate(zip(found["ids"], found["shares"], strict=True)):
            np.testing.assert_array_equal(ids, told.logits.ids[place, : len(ids)])
            np.testing.assert_allclose(shares, told.logits.shares[place, : len(ids)])
            assert shares.sum() == pytest.approx(1)
    if taps:
        np.testing.assert_allclose(found["features"][None], told.taps["stage2"], rtol=1e-6)


@pytest.mark.parametrize("page", USER_PAGES, ids=lambda page: page.name)
def test_commands_have_existing_verbs_and_flags(page: Path) -> None:
    for line in commands(page):
        words = shlex.split(line, comments=True)
        if words[:1] == ["edgestill"]:
            options = _parser().parse_args(words[1:])
            if getattr(options, "recipe", None) in builtin():
                load_recipe(options.recipe, options.overrides)
        elif words[:1] == ["make"]:
            assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), line


def test_readme_lists_every_verb() -> None:
    verbs = next(action for action in _parser()._actions if action.choices)
    listed = re.findall(r"^\| `edgestill (\w+)", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(listed) == sorted(verbs.choices or ())


def test_the_design_page_has_the_layers_that_are_checked() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    checked = [re.sub(r"[()]", "", layer) for layer in next(c["layers"] for c in contracts if "layers" in c)]
    assert "\n".join(checked) + "\n" in blocks(ROOT / "docs" / "design.md", "")


def test_the_design_page_names_every_room() -> None:
    rooms = "".join(blocks(ROOT / "docs" / "design.md", ""))
    names = [path.name for path in (ROOT / "src" / "edgestill").iterdir() if path.name[0] not in "._"]
    assert [name for name in names if name.endswith(".py") and name not in rooms] == []
    assert [name for name in names if "." not in name and f"{name}/" not in rooms] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_lead_to_files(page: Path) -> None:
    text = BLOCK.sub("", page.read_text(encoding="utf-8"))
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if not link.startswith(("https://", "http://", "#")):
            assert (page.parent / link.partition("#")[0]).exists(), f"{page.name} links to {link}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_name_no_path_of_the_machine_they_were_written_on(page: Path) -> None:
    assert not re.search(r"(?<![\w.])/(work|tmp|root|home)/|\.\./shared", page.read_text(encoding="utf-8"))


@pytest.mark.usefixtures("bare")
def test_a_loss_of_ones_own_costs_one_short_file_and_trains(tmp_path: Path) -> None:
    """The page on it, as it stands: its file and its recipe, on the digits."""
    page = ROOT / "docs" / "add-a-loss.md"
    (file,), (piece,) = blocks(page, "python"), blocks(page, "yaml")
    assert len(file.splitlines()) < 30
    (tmp_path / "my_losses.py").write_text(file, encoding="utf-8")
    recipe = yaml.safe_load(builtin()["digits"].read_text(encoding="utf-8")) | yaml.safe_load(piece)
    for role in ("teacher", "student"):
        recipe[role]["model"] = f"{builtin()['digits'].parent / recipe[role]['model']}"
    recipe["data"]["source"] = f"{builtin()['digits'].parent / recipe['data']['source']}"
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    sets = ["train.epochs=2", "teacher.fit.epochs=2", "compare={seeds: 1, baseline: false}"]
    loaded = load_recipe(tmp_path / "recipe.yaml", sets)
    run(loaded, tmp_path / "run", track=silent, deliver_files=False)
    logged = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    parts = [
        line["parts"]["channel_correlation/stage3"]
        for line in logged
        if line.get("phase") == "distill" and "parts" in line
    ]
    assert parts[-1]["value"] < parts[0]["value"]
    assert len({part["weight"] for part in parts[-2:]}) == 1


def test_the_example_loop_is_short_and_its_student_learns() -> None:
    example = ROOT / "examples" / "own_loop.py"
    assert len(example.read_text(encoding="utf-8").splitlines()) < 40
    done = subprocess.run([sys.executable, example], capture_output=True, text=True, check=True, timeout=120)
    right = dict(re.findall(r"^(.+): ([\d.]+)% right", done.stdout, re.MULTILINE))
    assert float(right["student"]) > float(right["labels alone"]) + 5
