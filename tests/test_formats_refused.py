"""What no file can be made of, or is not the student, is told in a line, and where that can be, before any training."""

from pathlib import Path

import pytest

from digits_runs import installed, result_of
from edgestill import progress
from edgestill import runs as job
from edgestill.cli import main
from edgestill.errors import UserError
from edgestill.export import formats, litert
from edgestill.recipe import load_recipe

STUDENT = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.linear = nn.Conv2d(1, 8, 3, padding=1), nn.Linear(8, 10)
        self.odd = Odd()

    def forward(self, x):
        return self.linear(self.odd(self.conv(x)))

class Odd(nn.Module):
    def forward(self, x):
        {body}

def student():
    return Net()
"""


def test_control_flow_by_values_is_refused_before_any_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    net = tmp_path / "net.py"
    net.write_text(STUDENT.replace("{body}", "return x.mean((2, 3)) if x.sum() > 0 else x.amax((2, 3))"))
    arguments = ["run", "digits", "--set", f"student.model={net}:student", "--out", str(tmp_path / "run"), "--quiet"]
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "branches on the values of tensors" in said
    assert not (tmp_path / "run").exists()
    if "litert" in installed():  # both are tried in one call of its converter, and the student is named all the same
        assert main([*arguments, "--set", "export=[litert]", "--set", "budget={}"]) == 2
        said = capsys.readouterr().err
        assert said.startswith("edgestill: Net cannot be exported to LiteRT")
        assert said.count("\n") == 1
    assert main([part.replace("student.model", "teacher.model") for part in arguments]) == 2
    assert "teacher: its latency is compared, but Net cannot be exported to ONNX" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_format_that_is_not_installed_is_refused_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"executorch-int8 needs executorch.*pip install 'edgestill\[executorch\]'"):
        formats.check(["executorch-int8"])
    for path, said in (("/nowhere/python", "litert-torch"), ("/etc/hostname", "is no Python that can be run")):
        monkeypatch.setenv(litert.VARIABLE, path)
        with pytest.raises(UserError, match=said):
            litert.python()


def test_an_operator_that_a_format_lacks_is_named_with_its_module_and_the_formats_that_have_it(tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="OpenVINO is not installed: pip install 'edgestill[openvino]'")
    net = tmp_path / "net.py"
    net.write_text(STUDENT.replace("{body}", "return x.flatten(2).median(-1).values"))
    overrides = ["train.epochs=1", "compare.seeds=1", "teacher.fit.epochs=6", f"student.model={net}:student"]
    with pytest.raises(UserError, match=r"openvino has no operator aten\.median.*, which odd \(Odd\) needs") as raised:
        job.run(
            load_recipe("digits", [*overrides, "export=[openvino]", "budget={}"]),
            tmp_path / "run",
            track=progress.silent,
        )
    assert "of the other formats installed" in str(raised.value)
    assert not (tmp_path / "run").exists(), "before any training"


@pytest.fixture
def _without_litert(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its converter takes longer to start than all else here."""
    monkeypatch.setenv(litert.VARIABLE, "/nowhere/python")


@pytest.mark.usefixtures("_without_litert")
def test_an_operator_that_onnx_lacks_is_named(tmp_path: Path) -> None:
    net = tmp_path / "net.py"
    net.write_text(STUDENT.replace("{body}", "return torch.linalg.svdvals(x.flatten(2))"))
    overrides = ["train.epochs=1", "compare.seeds=1", "teacher.fit.epochs=6", f"student.model={net}:student"]
    with pytest.raises(
        UserError,
        match=r"^export: onnx has no operator aten\._linalg_svd.*, which odd \(Odd\) needs; of the other formats",
    ) as raised:
        job.run(load_recipe("digits", [*overrides, "export=[onnx]"]), tmp_path / "run", track=progress.silent)
    assert "\n" not in str(raised.value)


@pytest.mark.usefixtures("_without_litert")
def test_a_teacher_that_a_runtime_cannot_run_is_refused_before_any_training(tmp_path: Path) -> None:
    net = tmp_path / "net.py"
    net.write_text(STUDENT.replace("{body}", "return torch.linalg.svdvals(x.flatten(2))"))
    overrides = ["train.epochs=1", "compare.seeds=1", "teacher.fit.epochs=6", f"teacher.model={net}:student"]
    with pytest.raises(
        UserError, match=r"^teacher: its latency is compared, but export: onnx has no operator aten\._linalg_svd"
    ):
        job.run(load_recipe("digits", [*overrides, "export=[onnx]"]), tmp_path / "run", track=progress.silent)


@pytest.mark.usefixtures("bare")
def test_verify_fails_the_run_at_its_limit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["run", "digits", "--quiet", "--out", str(tmp_path / "run"), "--set", "verify.max_abs_error=1e-12"]
    small = ["train.epochs=1", "compare={seeds: 1, baseline: false}", "teacher.fit.epochs=4", "export=[onnx]"]
    assert main(arguments + [word for override in small for word in ("--set", override)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "verify: exports/onnx/student.onnx is not the student on 1000 real samples" in said
    assert result_of(tmp_path / "run")["status"] == "failed"
    assert main(["bench", str(tmp_path / "run"), "--quiet"]) == 2, "its files are not delivered by another verb"
    assert "verify: " in capsys.readouterr().err
