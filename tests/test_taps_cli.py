"""`edgestill taps MODEL` lists what can be tapped; a mistake is one line."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import edgestill
from edgestill.cli import main
from edgestill.functions import load_function

RECIPES = Path(edgestill.__file__).parent / "recipes"
DIGITS, CIFAR = f"{RECIPES}/digits.py:student", f"{RECIPES}/resnet_cifar.py:resnet8"


def listed(capsys, *arguments) -> list[dict]:
    assert main(["taps", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_taps_of_a_model_are_a_table_with_aligned_columns(capsys):
    assert main(["taps", CIFAR, "--input", "3x32x32"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [re.split(r"  +", line) for line in lines] == [
        ["kind", "path", "shape", "parameters up to there"],
        ["block", "layer1.0", "[B, 16, 32, 32]", "5,136"],
        ["stage", "layer1", "[B, 16, 32, 32]", "5,136"],
        ["block", "layer2.0", "[B, 32, 16, 16]", "19,632"],
        ["stage", "layer2", "[B, 32, 16, 16]", "19,632"],
        ["block", "layer3.0", "[B, 64, 8, 8]", "77,296"],
        ["stage", "layer3", "[B, 64, 8, 8]", "77,296"],
    ]
    assert len({line.index(cell) for line, cell in zip(lines, ["path", *["layer"] * 6], strict=True)}) == 1
    assert len({len(line) for line in lines}) == 1


def test_all_lists_every_module_and_json_the_same(capsys):
    found = listed(capsys, DIGITS, "--input", "1x8x8")
    assert found[0] == {"kind": "stage", "path": "stage1", "shape": ["B", 8, 8, 8], "parameters": 88}
    every = listed(capsys, DIGITS, "--input", "1x8x8", "--all", "--classes", "7")
    assert [tap for tap in every if tap["kind"] == "stage"] == found
    assert every[-1]["path"] == "linear"
    assert every[-1]["shape"] == ["B", 7]


def test_without_an_input_the_images_are_of_224_pixels(capsys):
    assert listed(capsys, DIGITS)[0]["shape"] == ["B", 8, 224, 224]


def test_the_windows_of_an_image_are_counted(capsys):
    pytest.importorskip("timm", reason="timm is not installed", exc_type=ImportError)
    taps = listed(capsys, "timm:swinv2_cr_tiny_ns_224")
    assert next(tap["shape"] for tap in taps if tap["kind"] == "attention") == ["64B", 3, 49, 49]
    assert next(tap["shape"][1:] for tap in taps if tap["kind"] == "stage") == [96, 56, 56]


def test_a_model_in_which_nothing_is_found_says_what_to_do(capsys, tmp_path):
    (tmp_path / "nets.py").write_text(
        "from torch import nn\n\n\ndef flat():\n    return nn.Sequential(nn.Flatten(), nn.Linear(12, 2))\n"
    )
    assert main(["taps", f"{tmp_path}/nets.py:flat", "--input", "3x2x2"]) == 0
    assert "--all lists every module" in capsys.readouterr().out


def test_weights_that_fit_change_nothing(capsys, tmp_path):
    model = load_function(CIFAR)()
    save_file({name: torch.ones_like(value) for name, value in model.state_dict().items()}, tmp_path / "w.safetensors")
    plain = listed(capsys, CIFAR, "--input", "3x32x32")
    assert listed(capsys, CIFAR, "--input", "3x32x32", "--weights", f"{tmp_path}/w.safetensors") == plain


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere"], "a model is file.py:function"),
        ([f"{RECIPES}/digits.py:studnet"], "did you mean 'student'"),
        ([DIGITS, "--input", "8x8"], "--input is written CxHxW"),
        ([DIGITS, "--input", "0x8x8"], "--input is written CxHxW"),
        ([DIGITS, "--classes", "0"], "--classes must be at least 1; 0 came"),
        ([DIGITS, "--weights", "none.safetensors"], "no weights file none.safetensors"),
        ([f"{RECIPES}/digits.py:splits"], "must return a torch.nn.Module"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_mistake_is_one_line(arguments, said, capsys):
    assert main(["taps", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("edgestill: ")
    assert captured.err.count("\n") == 1
    assert said in captured.err
    assert captured.out == ""


def test_images_that_the_model_does_not_take_are_one_line(capsys, tmp_path):
    (tmp_path / "nets.py").write_text(
        "from torch import nn\n\n\ndef flat():\n    return nn.Sequential(nn.Flatten(), nn.Linear(12, 2))\n"
    )
    assert main(["taps", f"{tmp_path}/nets.py:flat", "--input", "3x4x4"]) == 2
    said = capsys.readouterr().err
    assert "does not take images of 3×4×4: mat1 and mat2" in said
    assert said.count("\n") == 1


def test_what_is_wrong_with_the_command_is_said_before_torch_is_imported():
    code = (
        "import sys\nfrom edgestill.cli import main\n"
        "assert main(['taps', 'timm:resnet18', '--input', '3']) == 2\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
