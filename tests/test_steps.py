"""From teacher to student in steps: each student is the teacher of the next."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from edgestill import UserError, load_recipe, load_recipes, progress, run_steps
from edgestill.assemble import assemble
from edgestill.cli import main
from edgestill.recipe import Recipe, dump
from test_several import RECIPE as TEXTS

SETS = ["student=null", "students=[0.5, 0.25]", "teacher.fit.epochs=2", "teacher.fit.keep=false", "train.epochs=1"]
SETS += ["compare.seeds=1", "compare.scratch=false", "export=[onnx]", "budget={size: 1 MB}"]
ARGUMENTS = [word for override in SETS for word in ("--set", override)]


def recipes(*more: str) -> dict[str, Recipe]:
    return load_recipes("digits", [*SETS, *more])


def result_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "result.json").read_text())


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, bare_runs: Any) -> Path:
    out = tmp_path_factory.mktemp("steps") / "run"
    with bare_runs(with_report=True):
        run_steps(recipes(), out, track=progress.silent)
    return out


def test_the_second_student_is_made_of_the_first_and_taught_by_it(place: Path) -> None:
    first, second = (load_recipe(place / name / "recipe.yaml") for name in ("step-1", "step-2"))
    assert second.teacher.model == str(place / "step-1" / "student")
    assert first.teacher.fit is not None
    assert second.teacher.fit is None
    job = assemble(second, progress.silent)
    begun = job.student(0).module.state_dict()
    trained = load_file(place / "step-1" / "student" / "model.safetensors")
    fitted = load_file(place / "step-1" / "teacher" / "model.safetensors")
    assert torch.equal(begun["linear.bias"], trained["linear.bias"])
    assert not torch.equal(trained["linear.bias"], fitted["linear.bias"])
    assert begun["linear.weight"].shape == (10, 48), "a quarter of the first teacher's 192"
    rows = {tuple(row.tolist()) for row in trained["linear.weight"].T}
    assert {tuple(row.tolist()) for row in begun["linear.weight"].T} < rows
    assert result_of(place / "step-2")["teacher"]["quality"] == result_of(place / "step-1")["arms"]["student"]["mean"]


def test_the_result_lists_the_steps_and_what_they_retain_of_the_first_teacher(place: Path) -> None:
    result = result_of(place)
    first, second = (result_of(place / name) for name in ("step-1", "step-2"))
    assert result["status"] == "done"
    assert [step["name"] for step in result["steps"]] == ["step-1", "step-2"]
    assert result["teacher"] == first["teacher"]
    assert [step["parameters"] for step in result["steps"]] == [own["student"]["parameters"] for own in (first, second)]
    assert result["budget"] == second["budget"]
    last, teacher = result["steps"][-1], first["teacher"]["quality"]
    assert last["retained"] == pytest.approx((last["quality"] - 0.1) / (teacher - 0.1))
    assert last["retained"] != last["arms"]["student"]["retained"], "of its own teacher"
    assert [set(own["arms"]) for own in (first, second)] == [{"student"}, {"student", "baseline"}]
    assert [step["artifacts"] != [] for step in result["steps"]] == [False, True]
    assert not (place / "step-1" / "exports").exists()


def test_the_page_names_the_steps(place: Path) -> None:
    page = (place / "report.html").read_text()
    assert "From teacher to student in 2 steps" in page
    assert 'href="step-2/report.html"' in page
    assert "of the teacher retained" in page


def test_the_command_line_goes_on_and_shows_the_steps(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written = {path: path.stat().st_mtime_ns for path in place.glob("*/arms/**/final.pt")}
    assert main(["run", "digits", *ARGUMENTS, "--out", str(place), "--resume", "--quiet"]) == 0
    assert {path: path.stat().st_mtime_ns for path in place.glob("*/arms/**/final.pt")} == written
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["step", "(teacher)", "step-1", "step-2", "kept", "budget", "report"]
    share = 100 * result_of(place)["steps"][-1]["retained"]
    assert f"{share:.1f} % of the teacher above chance" in lines[4]


@pytest.mark.parametrize("verb", ["export", "evaluate", "bench"])
def test_verbs_of_one_run_name_the_steps(verb: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, str(place)]) == 2
    said = capsys.readouterr().err
    assert f"several steps: name one of {place}/step-1, {place}/step-2" in said


def stopped_in(step: int) -> Callable[..., Any]:
    """Progress that is interrupted in the student's training of a step."""
    begun = 0

    def track(items: Any, description: str, total: int | None) -> Any:
        nonlocal begun
        begun += description == "student seed 0"
        for count, item in enumerate(items):
            if description == "student seed 0" and begun == step and count == 9:
                raise KeyboardInterrupt
            yield item

    return track


@pytest.mark.parametrize("step", [1, 2])
def test_interrupted_steps_go_on_to_the_same_bits(step: int, place: Path, tmp_path: Path, bare: None) -> None:
    out = tmp_path / "cut"
    with pytest.raises(KeyboardInterrupt):
        run_steps(recipes(), out, track=stopped_in(step), deliver_files=False)
    assert result_of(out)["status"] == "running"
    assert (out / "step-2").exists() == (step == 2)
    run_steps(recipes(), out, resume=True, track=progress.silent, deliver_files=False)
    for name in ("step-1", "step-2"):
        ours, whole = (load_file(where / name / "student" / "model.safetensors") for where in (out, place))
        assert all(torch.equal(value, whole[key]) for key, value in ours.items())
        assert result_of(out / name)["arms"] == result_of(place / name)["arms"]
    assert result_of(out)["status"] == "done"
    with pytest.raises(UserError, match="step-2 is done with another recipe than this one"):
        run_steps(recipes("students=[0.5, 0.125]"), out, resume=True, track=progress.silent, deliver_files=False)


def test_a_folder_of_another_run_is_not_gone_on_with(place: Path) -> None:
    with pytest.raises(UserError, match="holds a run that is not one of steps"):
        run_steps(recipes(), place / "step-1", resume=True, track=progress.silent)


@pytest.mark.parametrize(
    ("students", "said"),
    [
        ("[0.5]", "students: needs at least two steps; 1 came: `student` is for one"),
        ("[0.5, 0.5]", "students: step 2 is as large as step 1: needs a size that is smaller"),
        ("[1, 0.5]", "students: step 1 is as large as the teacher"),
        ("[0.25, 0.5]", "students: step 2 is larger than step 1: width 0.5 behind 0.25;"),
        ("[0.5, {depth: 0.5}]", "students: step 2 is larger than step 1: width all behind 0.5;"),
        ("[0.5, {width: {channels: 0.25}}]", "step 2 is larger than step 1: heads all behind 0.5;"),
        ("[{depth: 2}, {depth: 3}]", "step 2 is larger than step 1: blocks 3 behind 2;"),
        ("[{depth: 1}, {width: 0.5}]", "step 2 is larger than step 1: blocks all behind 1;"),
        ("[{vocabulary: data}, 0.5]", "step 2 is larger than step 1: vocabulary all behind data;"),
        ("[{depth: 2}, {depth: 0.25}]", "step 2: depth needs a share in all steps, or a number of blocks in all; 0.25"),
        ("[0.5, {keep: [0]}]", "step 2: blocks have other numbers from step to step: set depth; keep [0] came"),
        ("[0.5, {widht: 0.25}]", "unknown key 'widht' in students.1; did you mean 'width'?"),
        ("[0.5, {width: 0.25, vocabulary: data}]", "vocabulary: is for text models; the task is image-classification"),
        ("[0.5, 2]", "students.1.width: Input should be less than or equal to 1; 2 came"),
        ("0.5", "students: Input should be a valid list; 0.5 came"),
    ],
)
def test_steps_that_do_not_fit_are_refused(
    students: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changed = ["--set", f"students={students}", "--out", str(tmp_path / "run"), "--quiet"]
    assert main(["run", "digits", *ARGUMENTS, *changed]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_the_schema_takes_students_or_steps() -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed")
    check = jsonschema.Draft202012Validator(Recipe.model_json_schema())
    bare, one = (
        {"task": "image-classification", "data": "a", "teacher": {"model": "a.py:b"}},
        {"student": {"model": "c"}},
    )
    steps = [{"students": [0.5, 0.25]}, {"students": ["50 %", {"depth": 2}]}]
    assert all(check.is_valid(bare | given) for given in (one, *steps))
    assert not any(check.is_valid(bare | given) for given in ({}, one | steps[0], {"students": [2, 1]}))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (["student={model: nets.py:small}"], "needs `student` or `students`, and not both"),
        (["teacher.store=signals"], "teacher.store: is of one teacher"),
        (["students=null", "student=[{name: step-1, model: a.py:b}, {model: a.py:c}]"], "what the first of `students`"),
    ],
)
def test_keys_that_do_not_go_with_steps_are_refused(changed: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        recipes(*changed)


def test_a_share_of_the_teachers_skill_is_no_limit_of_steps(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(TEXTS + "budget: {keep: {choices: 0.5}}\n")
    with pytest.raises(UserError, match=r"budget\.keep: is a share of the teacher's, and the last of the students has"):
        load_recipes(recipe, ["student=null", "students=[0.5, 0.25]"])


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (
            ["students=[0.5, {depth: 2, width: 0.25}]"],
            "step-2 of students: student.from_teacher.depth: the teacher has",
        ),
        (["distill.terms=[{loss: hint, student: stage4, teacher: stage3}]"], "step-1 of students: "),
    ],
)
def test_a_step_that_cannot_be_built_is_refused_before_the_first_is_trained(
    changed: list[str], said: str, tmp_path: Path, bare: None
) -> None:
    """The first step's student, untrained, stands in for the second's teacher."""
    with pytest.raises(UserError, match=said):
        run_steps(recipes(*changed), tmp_path / "run", track=progress.silent, deliver_files=False)
    assert not (tmp_path / "run").exists()


def test_shares_of_the_first_teacher_become_those_of_the_step_before() -> None:
    listed = "students=[{depth: 8, width: {feed_forward: 0.8}}, {depth: 6, width: {heads: 0.5, feed_forward: 0.2}}]"
    first, second = (made.student.from_teacher for made in recipes(listed).values())
    assert (first.depth, second.depth) == (8, 6)
    assert (second.width.heads, second.width.feed_forward, second.width.hidden) == (0.5, 0.25, None)
    listed = "students=[{depth: 0.8}, {depth: 0.6, width: '50 %', keep: last}, {depth: 0.6, width: 0.1}]"
    sections = [made.student.from_teacher for made in recipes(listed).values()]
    assert [section.depth for section in sections] == [0.8, pytest.approx(0.75), None]
    assert [section.width for section in sections] == [None, 0.5, 0.2]
    assert sections[1].keep == "last"


def test_only_the_last_step_is_for_8_bits() -> None:
    phases = (
        "phases=[{name: distill, share: 0.6}, {name: tune, share: 0.2}, {name: q, share: 0.2, fake_quantize: int8}]"
    )
    first, second = recipes(phases, "export=[onnx-int8]").values()
    assert [(phase.name, phase.share) for phase in first.phases] == [
        ("distill", pytest.approx(0.75)),
        ("tune", pytest.approx(0.25)),
    ]
    assert [phase.name for phase in second.phases] == ["distill", "tune", "q"]
    assert "students" not in dump(second)


def test_a_language_model_goes_in_steps_and_is_asked_for_its_skills(tmp_path: Path, bare: None) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(TEXTS)
    sets = ["student=null", "students=[{depth: 1}, {depth: 1, width: 0.5}]", "train.epochs=0.1"]
    result = run_steps(load_recipes(recipe, sets), tmp_path / "run", track=progress.silent, deliver_files=False)
    one, other = result["steps"]
    assert other["gap"] == other["quality"] - result["teacher"]["quality"]
    assert other["parameters"] < one["parameters"] < result["teacher"]["parameters"]
    assert "student" in other["skills"]["choices"]["models"]
