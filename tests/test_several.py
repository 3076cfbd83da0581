"""Several students of one teacher: a run each, one teacher, and one page."""

import json
from pathlib import Path
from typing import Any

import pytest

from edgestill import UserError, load_recipe, load_recipes, progress, run_students
from edgestill.cli import main

SUMS = Path(__file__).with_name("small_sums.py")
RECIPE = f"""
task: language-modeling
data: {{train: "{SUMS}:train", test: "{SUMS}:test", length: 32}}
teacher: {{model: "{SUMS}:llama", options: {{width: 16}}, fit: {{epochs: 0.3}}}}
student:
  - {{from_teacher: {{depth: 1}}}}
  - {{name: other, model: "{SUMS}:llama", options: {{width: 8, layers: 1}}}}
train: {{epochs: 0.2}}
compare: {{scratch: false}}
export: [onnx]
skills:
  choices:
    {{scorer: multiple-choice, data: "{SUMS}:asked", prompt: "{{one}}+{{other}}=", answer: "{{sum}}", choices: results,
      samples: 20}}
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("several") / "recipe.yaml"
    path.write_text(RECIPE)
    return path


@pytest.fixture(scope="module")
def place(recipe: Path, bare_runs: Any) -> Path:
    with bare_runs(with_report=True):
        run_students(load_recipes(recipe), recipe.parent / "run", track=progress.silent)
    return recipe.parent / "run"


def test_each_student_is_a_run_of_its_own_with_one_teacher(place: Path) -> None:
    result = json.loads((place / "result.json").read_text())
    assert result["status"] == "done"
    assert [one["name"] for one in result["students"]] == ["depth-1", "other"]
    for one in result["students"]:
        own = json.loads((place / one["path"] / "result.json").read_text())
        assert own["status"] == "done"
        assert one["quality"] == own["arms"]["student"]["mean"]
        assert one["skills"] == own["skills"]
        assert own["teacher"]["quality"] == result["teacher"]["quality"]
        assert (place / one["path"] / "report.html").is_file()
    assert len([*(place / "teachers").iterdir()]) == 1
    assert (place / "depth-1" / "arms" / "teacher").exists()
    assert not (place / "other" / "arms" / "teacher").exists()


def test_the_page_draws_capability_against_size(place: Path) -> None:
    page = (place / "report.html").read_text()
    assert "2 students of one teacher" in page
    assert "Bits per byte against size" in page
    assert "choices against size" in page
    assert 'href="depth-1/report.html"' in page


def test_going_on_trains_nothing_that_is_done(recipe: Path, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written = {path: path.stat().st_mtime_ns for path in place.glob("*/arms/**/final.pt")}
    assert main(["run", str(recipe), "--out", str(place), "--resume", "--quiet"]) == 0
    assert {path: path.stat().st_mtime_ns for path in place.glob("*/arms/**/final.pt")} == written
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:2] == ["student", "parameters"]
    assert [line.split()[0] for line in lines[1:4]] == ["(teacher)", "depth-1", "other"]


def test_what_was_trained_is_delivered_and_another_recipe_refused(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], bare: None
) -> None:
    out = ["--out", str(tmp_path / "run"), "--quiet", "--set=skills={}", "--set=train.epochs=0.1"]
    assert main(["train", str(recipe), *out]) == 0
    assert not (tmp_path / "run" / "other" / "exports").exists()
    assert main(["train", str(recipe), *out, "--resume", "--set=train.lr=0.1"]) == 2
    assert "is done with another recipe" in capsys.readouterr().err
    assert main(["run", str(recipe), *out, "--resume"]) == 0
    assert [*(tmp_path / "run" / "other" / "exports").iterdir()]


def test_verbs_of_one_run_name_the_students(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(place)]) == 2
    assert "holds the runs of several students" in capsys.readouterr().err
    assert main(["report", str(place)]) == 0


@pytest.mark.parametrize(
    ("students", "said"),
    [
        ([{"from_teacher": {"depth": 1}}], "at least two; 1 came"),
        ([{"from_teacher": {"depth": 1}}, {"from_teacher": {"depth": 1}}], "two are called 'depth-1'"),
        ([{"from_teacher": {"depth": 1}}, {"modle": "x"}], "did you mean 'model'"),
        ([{"from_teacher": {"depth": 1}}, {"name": "a/b", "from_teacher": {"depth": 2}}], "student.name"),
        ([{"from_teacher": {"depth": 1}}, {"from_teacher": {"depth": 9}}], "student depth-9: "),
        ([{"from_teacher": {"depth": 1}}, {"name": "teachers", "from_teacher": {"depth": 2}}], "another file"),
    ],
)
def test_lists_that_do_not_fit_are_refused_before_training(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], students: list[dict], said: str, bare: None
) -> None:
    changed = f"--set=student={json.dumps(students)}"
    assert main(["run", str(recipe), "--out", str(tmp_path / "run"), "--quiet", changed]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_one_recipe_is_not_several(recipe: Path) -> None:
    with pytest.raises(UserError, match="several are listed"):
        load_recipe(recipe)
    alone = load_recipes(recipe, ["student={from_teacher: {depth: 1}}"])
    assert list(alone) == [""]
    changed = load_recipes(recipe, ["student.other.options.width=12"])
    assert changed["other"].student.options["width"] == 12
