"""The planner: files measured before any training, short distillations of those that fit, and what is said."""

import json
import re
import shutil
from math import ceil
from pathlib import Path
from typing import Any

import pytest

from edgestill import UserError, costs, load_recipe, search
from edgestill.assemble import assemble
from edgestill.cli import main
from edgestill.progress import silent
from edgestill.recipe import candidates, validate
from edgestill.runs import export_again, run

MADE = Path(__file__).with_name("small_search.py")
RECIPE = f"""
task: image-classification
data: {{source: "{MADE}:splits", validation: 0.3}}
teacher: {{model: "{MADE}:net", options: {{width: 12}}, fit: {{epochs: 6, batch_size: 32}}}}
student:
  search: {{model: "{MADE}:net", options: {{width: [2, 4, 8, 40]}}, distill: [{{alpha: 0.5}}, {{alpha: 0.9}}]}}
train: {{epochs: 80, batch_size: 32, threads: 1}}
compare: {{baseline: false}}
budget: {{size: 8 KB, latency: 1 s, runtime: onnxruntime}}
export: [onnx]
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("search") / "recipe.yaml"
    path.write_text(RECIPE)
    return path


@pytest.fixture(scope="module")
def planned(recipe: Path) -> Path:
    place = recipe.parent / "plan"
    assert main(["plan", str(recipe), "--out", str(place), "--quiet"]) == 0
    return place


def read(place: Path) -> dict[str, Any]:
    return json.loads((place / "result.json").read_text())


def test_files_are_measured_and_those_outside_are_not_trained(planned: Path) -> None:
    result = read(planned)
    by_name = {one["name"]: one for one in result["search"]["candidates"]}
    assert [*by_name] == [f"width-{width}-alpha-{alpha}" for width in (2, 4, 8, 40) for alpha in (0.5, 0.9)]
    for one in by_name.values():
        assert one["fits"] == (one["student"] != "width-40")
        assert ("rungs" in one) == one["fits"]
    assert by_name["width-40-alpha-0.5"]["why"].startswith("outside the budget: its weights alone take 59.")
    for file in by_name["width-2-alpha-0.5"]["files"]:
        assert 500 < file["bytes"] < 8000
    assert "test" not in result["search"]
    assert "quality" not in result["teacher"]  # of the test set, which no search reads


def test_all_of_a_rung_have_the_same_steps_and_the_best_go_on(planned: Path) -> None:
    search = read(planned)["search"]
    assert [rung["entrants"] for rung in search["rungs"]] == [6, 2]
    by_rung: dict[int, dict[str, dict[str, Any]]] = {}
    for one in search["candidates"]:
        for trained in one.get("rungs", ()):
            by_rung.setdefault(trained["rung"], {})[one["name"]] = trained
    assert [len(trained) for trained in by_rung.values()] == [6, 2]
    assert all(len({one["steps"] for one in trained.values()}) == 1 for trained in by_rung.values())
    first, last = ({name: one["quality"] for name, one in by_rung[rung].items()} for rung in (0, 1))
    assert min(first[name] for name in last) >= max(first[name] for name in first if name not in last)
    assert last[search["chosen"]] == max(last.values())
    for one in search["candidates"]:
        assert ("why" in one) == (one["name"] != search["chosen"])
    assert next(one for one in search["candidates"] if one["name"] == search["chosen"])["front"]


def test_the_page_shows_the_front_and_what_became_of_each(planned: Path) -> None:
    page, search = (planned / "report.html").read_text(), read(planned)["search"]
    assert f"{search['chosen']} of 8 candidates" in page
    assert "Accuracy against size of the file" in page
    assert "Accuracy against latency, p50" in page
    for one in search["candidates"]:
        assert one["name"] in page
        assert one.get("why", "chosen") in page
    ranked = [one for one in search["candidates"] if one["fits"] and one["name"] != search["chosen"]]
    beside = max(ranked, key=lambda one: (len(one["rungs"]), one["quality"]))["name"]
    assert search["neighbours"]["inside"] == beside
    assert search["neighbours"]["outside"].startswith("width-40")
    assert re.fullmatch(r"budget.size from 8 KB to more than 5\d.\d KB \(.*%\)", search["neighbours"]["relax"])
    assert f"The next inside the budget is {beside}." in page
    assert page.count("on the front") == sum(bool(one.get("front")) for one in search["candidates"])


def test_the_choice_is_a_recipe_and_going_on_trains_it(recipe: Path, planned: Path) -> None:
    place = planned.with_name("trained")
    shutil.copytree(planned, place)
    chosen = load_recipe(place / "chosen.yaml")
    assert chosen.student.search is None
    before = read(place)["search"]
    assert main(["run", str(recipe), "--out", str(place), "--resume", "--quiet"]) == 0
    result = read(place)
    assert result["search"] == before
    assert result["budget"]["met"]
    assert (place / result["artifacts"][0]["path"]).is_file()
    (measured,) = (one["files"][0] for one in before["candidates"] if one["name"] == before["chosen"])
    assert result["artifacts"][0]["bytes"] == pytest.approx(measured["bytes"], rel=0.01)
    assert json.loads((place / "chosen" / "result.json").read_text())["arms"] == result["arms"]
    with pytest.raises(UserError, match="holds a search: the run of the chosen student is"):
        export_again(place)


def test_a_search_that_was_stopped_ends_the_same(recipe: Path, planned: Path) -> None:
    """Without what the last candidates came to, as where it was stopped there."""
    place = planned.with_name("stopped")
    shutil.copytree(planned, place)
    result = read(place)
    for one in result["search"]["candidates"]:
        rungs = [trained for trained in one.get("rungs", ()) if trained["rung"] == 0 and one["student"] != "width-8"]
        for key in ("rungs", "quality", "front"):
            one.pop(key, None)
        if one["fits"]:
            one.pop("why", None)
        if rungs:
            one |= {"rungs": rungs, "quality": rungs[-1]["quality"]}
    chosen = result["search"].pop("chosen")
    (place / "result.json").write_text(json.dumps(result | {"status": "interrupted"}))
    assert main(["plan", str(recipe), "--out", str(place), "--resume", "--quiet"]) == 0
    again = read(place)["search"]
    assert again["chosen"] == chosen

    def qualities(search: dict[str, Any]) -> dict[str, list[float]]:
        return {one["name"]: [run["quality"] for run in one.get("rungs", ())] for one in search["candidates"]}

    assert qualities(again) == qualities(read(planned)["search"])


def test_where_nothing_fits_the_nearest_is_named_and_what_to_relax(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["run", str(recipe), "--set=budget.size=400 B", "--set=student.search.distill=[]", "--quiet"]
    assert main([*asked, "--out", str(tmp_path / "run")]) == 3
    result = read(tmp_path / "run")
    nearest = next(one for one in result["search"]["candidates"] if one["name"] == result["search"]["nearest"])
    assert nearest["name"] == "width-2"
    size = ceil(nearest["files"][0]["bytes"] / 10) * 10  # what is written is enough
    said = capsys.readouterr().out
    assert "none of 4 candidates is within the budget; the nearest is width-2" in said
    assert f"budget.size from 400 B to {size / 1000:.3g} KB ({size / 400 - 1:+.0%})" in said
    assert not (tmp_path / "run" / "search").exists()  # nothing was trained


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["student.search.options={width: 4}", "student.search.distill=[]"], "at least two candidates; one came"),
        (["student.search.options={width: []}"], "at least two candidates; none came: a list of choices has no entry"),
        (["budget={size: 8 KB, memory: 4 KB}"], "budget: memory, 4 KB, contradicts size, 8 KB"),
        (["budget={latency: 2 sm}"], "'2 sm' came; did you mean"),
        (["budget={quality: 0.9}"], "student.search: chooses within a budget: set budget.size"),
        (["budget.size=0 B"], "budget.size: 0 B leaves room for nothing"),
        (["compute.time=1 ms"], "compute.time: 1 ms is too short: measuring the files of"),
        (["student.search={model: 'timm:nothing_like_*'}"], "timm has no model that matches 'nothing_like_*'"),
        (["student.search={from_teacher: {dept: [1, 2]}}"], "unknown key 'dept' in student.from_teacher"),
        ([f"student.search={{candidates: '{MADE}:wrong'}}"], "must return student sections by name"),
        ([f"student.search={{candidates: '{MADE}:none'}}"], "none came"),
        (
            [
                "student.search={from_teacher: {width: [0.5, 0.25]}}",
                f"teacher={{model: '{MADE}:untraceable', fit: {{epochs: 1, batch_size: 32}}}}",
            ],
            "of Untraceable, which has nothing that can be cut: its graph cannot be traced",
        ),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line_before_any_training(
    overrides: list[str], line: str, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sets = [f"--set={one}" for one in overrides]
    assert main(["run", str(recipe), *sets, "--out", str(tmp_path / "run"), "--quiet"]) == 2
    said = capsys.readouterr().err.strip()
    assert line in said
    assert len(said.splitlines()) == 1
    assert not (tmp_path / "run" / "search" / "rung-1").exists()


def test_a_users_function_names_candidates(recipe: Path) -> None:
    found = candidates(load_recipe(recipe, [f"student.search={{candidates: '{MADE}:listed'}}"]))
    assert [*found] == ["own-2", "own-3"]
    assert found["own-3"].recipe.student.options == {"width": 3}


def test_where_one_technique_needs_more_than_a_store_keeps_the_teacher_is_asked(recipe: Path, tmp_path: Path) -> None:
    hint = "{alpha: 0.9, terms: [{loss: hint, student: second, teacher: second, weight: 1}]}"
    sets = [f"student.search.distill=[{{alpha: 0.5}}, {hint}]", "student.search.options={width: [2, 4]}"]
    result = search(load_recipe(recipe, [*sets, "train.epochs=8"]), tmp_path / "run", track=silent)
    assert "needs the teacher's tap second" in result["search"]["online"]
    assert all("quality" in one for one in result["search"]["candidates"])


def test_the_neighbour_outside_says_what_it_needs(recipe: Path, planned: Path, tmp_path: Path) -> None:
    sizes = {one["student"]: one["files"][0]["bytes"] for one in read(planned)["search"]["candidates"] if one["fits"]}
    limit = (sizes["width-4"] + sizes["width-8"]) // 2
    sets = ["student.search.distill=[]", "student.search.options={width: [2, 4, 8]}", "train.epochs=8"]
    found = search(load_recipe(recipe, [*sets, f"budget.size={limit} B"]), tmp_path / "run", train=False, track=silent)
    beside = found["search"]["neighbours"]
    assert beside["outside"] == "width-8"
    assert beside["relax"].startswith(f"budget.size from {limit / 1000:.3g} KB to ")
    assert {beside["inside"], found["search"]["chosen"]} == {"width-2", "width-4"}


def test_a_file_is_measured_as_large_as_it_is_going_to_be() -> None:
    """A file holds equal constants once, and those of many layers begin equal."""
    net = {"model": f"{MADE}:net"}
    task = {"task": "image-classification", "data": {"source": f"{MADE}:splits"}}
    recipe = validate(task | {"teacher": net | {"fit": {"epochs": 1}}, "student": net})
    model = costs.untrained(assemble(recipe, silent), recipe)
    values = [one.detach().numpy().tobytes() for one in model.module.parameters()]
    assert len({*values}) == len(values)


def test_a_candidate_that_cannot_be_built_is_a_row_wherever_it_stands(recipe: Path, tmp_path: Path) -> None:
    sets = ["student.search.distill=[]", "student.search.options={width: [none, 2, 4]}", "train.epochs=8"]
    found = search(load_recipe(recipe, sets), tmp_path / "run", train=False, track=silent)["search"]
    assert found["candidates"][0]["why"].startswith("cannot be built: ")
    assert found["chosen"] in ("width-2", "width-4")
    assert "online" not in found


def test_where_one_candidate_fits_nothing_is_trained_to_choose_it(recipe: Path, planned: Path, tmp_path: Path) -> None:
    sizes = {one["student"]: one["files"][0]["bytes"] for one in read(planned)["search"]["candidates"] if one["fits"]}
    limit = (sizes["width-2"] + sizes["width-4"]) // 2
    sets = ["student.search.distill=[]", "student.search.options={width: [2, 4]}", f"budget.size={limit} B"]
    place = tmp_path / "run"
    assert main(["plan", str(recipe), *(f"--set={one}" for one in sets), "--out", str(place), "--quiet"]) == 0
    found = read(place)["search"]
    assert (found["chosen"], found["neighbours"]["outside"]) == ("width-2", "width-4")
    assert "rungs" not in found
    assert "width-2 of 2 candidates" in (place / "report.html").read_text()


def test_what_is_of_one_student_refuses_many(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["capture", str(recipe), "--out", str(tmp_path / "store"), "--quiet"]) == 2
    assert "student.search stands for many students" in capsys.readouterr().err
    with pytest.raises(UserError, match="stands for many students"):
        run(load_recipe(recipe), tmp_path / "run", track=silent)
