"""The command line: fast help, one clear line for a mistake, nothing written."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from edgestill.cli import main

HINT = "distill.terms=[{loss: hint, map: %s, student: %s, teacher: %s}]"


@pytest.mark.parametrize("arguments", [["--help"], ["recipes"], ["schema"], ["run", "digits", "--set", "train.lrr=1"]])
def test_what_needs_no_model_imports_nothing_heavy(arguments):
    code = (
        "import sys\nfrom edgestill.cli import main\n"
        f"try:\n    main({arguments!r})\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'onnxruntime', 'onnx', 'datasets', 'matplotlib', 'transformers'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["distill.aplha=1"], "'aplha' in distill; did you mean 'alpha'"),
        (["train.epochs=many"], "train.epochs"),
        (["distill.alpha=1.5"], "distill.alpha"),
        (["distill.temperature=0"], "distill.temperature"),
        (["phases.warmup.share=0.3"], "0.3 + 0.6 + 0.2 = 1.1"),
        (["budget.latency=2 sm"], "did you mean"),
        (["budget.size=20"], "unit"),
        (["data=nowhere"], "nowhere"),
        (["teacher.weights=none.safetensors"], "none.safetensors"),
        (["teacher.fit=null"], "`fit`"),
        ([HINT % ("width", "stage9", "stage1")], "no tap 'stage9' in Sequential; did you mean"),
        (
            [HINT % ("direct", "stage1", "stage1")],
            "without an aligner, as with `map: direct`, the shapes must agree; [8, 8, 8] and [48, 8, 8] came",
        ),
        ([HINT % ("direct", "[stage1, stage2]", "stage1")], "2 student and 1 teacher taps"),
        (["student.options.num_classes=7"], "class counts differ"),
        (["student.options.depth=7"], "unexpected keyword argument 'depth'"),
        (["student.model=digits.py:student"], "digits.py"),
        (["export=[onnx, onnx-int4]"], "export.1"),
        (["train.epochs=0.001"], "train.epochs higher"),
        (["distill.alpha"], "key=value"),
        (["data.validation=1e-5"], "share"),
        (["data.labels_per_class=5000"], "5000"),
        (["train.device=tpu7"], "tpu7"),
    ],
    ids=lambda value: value[0].split("=")[0] if isinstance(value, list) else "",
)
def test_a_mistake_is_one_clear_line_and_nothing_is_written(overrides, said, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sets = [part for override in overrides for part in ("--set", override)]
    assert main(["run", "digits", "--out", "out", *sets]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("edgestill: ")
    assert said in captured.err
    assert captured.out == ""
    assert list(tmp_path.iterdir()) == []


def test_broken_yaml_is_one_line_with_the_place(tmp_path, capsys):
    (tmp_path / "r.yaml").write_text("task: image-classification\ndata: [\n")
    assert main(["run", str(tmp_path / "r.yaml"), "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert "line 3" in said
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_an_unknown_recipe_names_the_closest(capsys):
    assert main(["run", "digit"]) == 2
    assert "did you mean 'digits'" in capsys.readouterr().err


def test_out_that_is_a_file_is_refused_and_left_alone(tmp_path, capsys):
    (tmp_path / "out").write_text("mine")
    assert main(["run", "digits", "--out", str(tmp_path / "out")]) == 2
    assert "is a file" in capsys.readouterr().err
    assert (tmp_path / "out").read_text() == "mine"


@pytest.mark.parametrize("status", ["done", "running"])
def test_a_folder_that_holds_a_run_is_refused_without_resume(status, tmp_path, capsys):
    (tmp_path / "result.json").write_text(json.dumps({"status": status}))
    assert main(["run", "digits", "--out", str(tmp_path)]) == 2
    assert "--resume" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]


def test_weights_that_do_not_fit_name_the_first_differing_key_and_shapes(tmp_path, capsys):
    from edgestill.functions import load_function
    from edgestill.reading import builtin

    state = load_function(f"{builtin()['digits'].parent / 'digits.py'}:teacher")().state_dict()
    state["stage2.0.weight"] = torch.zeros(8, 8, 3, 3)
    save_file(state, tmp_path / "w.safetensors")
    code = main(
        ["run", "digits", "--out", str(tmp_path / "out"), "--set", f"teacher.weights={tmp_path / 'w.safetensors'}"]
    )
    said = capsys.readouterr().err
    assert code == 2
    assert "'stage2.0.weight' has 8×8×3×3, the model needs 96×48×3×3" in said
    assert not (tmp_path / "out").exists()


def test_schema_and_recipes_are_printed(capsys):
    assert main(["schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    assert {"task", "data", "teacher", "student", "distill", "phases"} <= schema["properties"].keys()
    assert main(["recipes"]) == 0
    assert {"digits", "cifar10-resnet8"} <= {line.split()[0] for line in capsys.readouterr().out.splitlines()}


USERS_CODE = """
import torch
from torch import nn

class Branching(nn.Linear):
    def forward(self, x):
        raise KeyError("a")

def raises(num_classes=10):
    return Branching(64, num_classes)

def empty(num_classes=10):
    return nn.Flatten()

def vector(student, teacher, *, temperature):
    return (student - teacher).square().mean(1)
"""


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train.lr=1e300", "train.lr"),
        ("distill.temperature=1e300", "distill.temperature"),
        ("train.device=meta", "train.device"),
        ("student.model=mine.py:raises", "does not take images"),
        ("student.model=mine.py:empty", "no parameters"),
        ("distill.loss=mine.py:vector", "not one number"),
    ],
)
def test_code_and_numbers_of_the_users_are_refused_in_one_line(override, said, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(USERS_CODE)
    assert main(["run", "digits", "--out", "out", "--set", override]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert said in captured.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "arguments", [["run", "digits", "--out", "x" * 300], ["run", "y" * 300], ["run", "digits", "--resume"]]
)
def test_names_too_long_and_resuming_nothing_are_refused(arguments, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("verb", ["compare", "report"])
def test_what_is_no_run_folder_is_refused(verb, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    (tmp_path / "list").mkdir()
    (tmp_path / "list" / "result.json").write_text("[1]")
    for name in ("file", "list"):
        assert main([verb, str(tmp_path / name)]) == 2
        assert capsys.readouterr().err.count("\n") == 1
