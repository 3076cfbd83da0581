"""What is promised of the check on an emulated ARM: the device's own answers, or one line that says what is missing."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

from edgestill import progress
from edgestill import runs as job
from edgestill.bench import aarch64_root
from edgestill.bench.aarch64_root import apt_mirror, default_root, find_root, make_root
from edgestill.bench.emulated import emulate
from edgestill.errors import UserError
from edgestill.export.onnx import export
from edgestill.quantize.fake import calibrate, fake_quantized
from edgestill.quantize.integer import integer
from edgestill.recipe import load_recipe
from edgestill.runtimes import onnx_runtime

SHARED = Path(__file__).parents[2] / "shared"


def export_int8(model: nn.Module, calibration: np.ndarray, path: Path) -> None:
    """The post-training int8 of a model, its ranges those of `calibration`."""
    rows = torch.from_numpy(calibration)
    quantized = fake_quantized(model, rows[:1])
    calibrate(quantized, rows.split(32))
    export(integer(quantized, signed=False), rows[:1], path)


@pytest.fixture(scope="module")
def digits() -> np.ndarray:
    return (load_digits().images[:, None] / 16).astype(np.float32)


@pytest.fixture(scope="module")
def files(digits: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A fitted network on digits, float32 and int8."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(256, 10)
    )
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(40):
        rows = torch.randint(len(digits), (128,))
        loss = F.cross_entropy(model(torch.from_numpy(digits)[rows]), torch.from_numpy(load_digits().target)[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    folder = tmp_path_factory.mktemp("files")
    made = {"float32": folder / "student.onnx", "int8": folder / "student-int8.onnx"}
    export(model, torch.from_numpy(digits[:1]), made["float32"])
    export_int8(model, digits[:300], made["int8"])
    return made


def host_outputs(path: Path, inputs: np.ndarray, *, optimize: bool) -> np.ndarray:
    predict = onnx_runtime.load(path, optimize=optimize)
    return np.concatenate([predict(inputs[i : i + 8]) for i in range(0, len(inputs), 8)])


def program(path: Path, script: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PATH of one folder, in which only QEMU is; nothing runs it."""
    program(tmp_path / "programs" / "qemu-aarch64-static", "exit 1")
    monkeypatch.setenv("PATH", str(tmp_path / "programs"))
    return tmp_path / "programs"


def pretended_root(folder: Path, script: str) -> Path:
    """A root whose Python is `script` on this host."""
    program(folder / "python", script)
    program(folder / "usr" / "bin" / f"python{aarch64_root.PYTHON}", "exit 1")
    (folder / "wheels" / "onnxruntime").mkdir(parents=True)
    return folder


def test_the_root_is_where_the_variable_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EDGESTILL_AARCH64_ROOT", raising=False)
    assert default_root() == Path.home() / ".cache" / "edgestill" / "aarch64"
    monkeypatch.setenv("EDGESTILL_AARCH64_ROOT", "/somewhere/arm")
    assert default_root() == Path("/somewhere/arm")


def test_missing_qemu_is_one_line_with_what_installs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"qemu-aarch64-static, which is not installed: apt-get install qemu-user-st"):
        find_root()


def test_a_missing_root_is_one_line_with_what_makes_it(programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = programs.parent / "root"
    monkeypatch.setenv("EDGESTILL_AARCH64_ROOT", str(root))
    with pytest.raises(UserError, match=r"no such folder.*`python -m edgestill\.bench\.aarch64_root .*/root`"):
        find_root()
    root.mkdir()
    with pytest.raises(UserError, match=r"that folder is something else: make it"):
        find_root()
    pretended_root(root, "exit 1")
    assert find_root() == root
    (root / "wheels" / "onnxruntime").rmdir()
    with pytest.raises(UserError, match=r"onnxruntime for aarch64, which is not in .*/root: remove that folder"):
        find_root()


@pytest.mark.parametrize("name", ["student.pte", "student.xml", "student.tflite"])
def test_other_formats_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=rf"qemu-aarch64 checks ONNX files only; {name} is none"):
        emulate(name, np.zeros((1, 1, 8, 8)))


def test_every_sample_is_answered_in_order(programs: Path, files: dict[str, Path], digits: np.ndarray) -> None:
    root = pretended_root(programs.parent / "root", f'exec "{sys.executable}" "$@"')
    steps = []

    def track(items, description, total):
        for item in items:
            steps.append((description, total))
            yield item

    made = emulate(files["float32"], digits[:21], root=root, track=track)
    np.testing.assert_array_equal(made.outputs, host_outputs(files["float32"], digits[:21], optimize=True))
    assert made.runtime == f"{onnx_runtime.RUNTIME} aarch64, emulated cortex-a72"
    assert steps == [("emulating ARM", 3)] * 3


def test_graph_optimisation_reaches_the_runtime(programs: Path, files: dict[str, Path], digits: np.ndarray) -> None:
    said = programs.parent / "said"
    root = pretended_root(programs.parent / "root", f'echo "$@" >> {said}; exec "{sys.executable}" "$@"')
    for optimize in (True, False):
        emulate(files["int8"], digits[:2], optimize=optimize, root=root)
    assert ["--no-optimize" in line for line in said.read_text().split("--threads")[1:]] == [False, True]


def test_what_the_runtime_refuses_is_one_line(programs: Path, files: dict[str, Path], digits: np.ndarray) -> None:
    root = pretended_root(programs.parent / "root", f'exec "{sys.executable}" "$@"')
    cut = programs.parent / "cut.onnx"
    cut.write_bytes(files["float32"].read_bytes()[:100])
    with pytest.raises(UserError, match=r"cut\.onnx is not a complete ONNX file for onnxruntime"):
        emulate(cut, digits[:1], root=root)
    with pytest.raises(UserError, match=r"student\.onnx could not be run; it takes inputs of shape \[batch, 1, 8, 8\]"):
        emulate(files["float32"], np.zeros((1, 3, 8, 8)), root=root)
    with pytest.raises(UserError, match=r"there is no file .*absent\.onnx"):
        emulate(programs.parent / "absent.onnx", digits[:1], root=root)
    with pytest.raises(UserError, match=r"at least one sample, got none"):
        emulate(files["float32"], digits[:0], root=root)


@pytest.mark.parametrize(
    ("script", "said"),
    [
        (
            "echo 'qemu: uncaught target signal 11' >&2; kill -SEGV $$",
            r"exit code -11: qemu: uncaught target signal 11",
        ),
        ("exit 3", r"exit code 3: it wrote nothing"),
        (
            """echo '{"error": "onnx_runtime.py cannot be imported: No module", "missing": "onnxruntime"}'; exit 2""",
            r"cannot be imported: No module: remove .*/root and make it again with `python -m edgestill\.bench",
        ),
    ],
)
def test_a_crash_is_one_line(
    script: str, said: str, programs: Path, files: dict[str, Path], digits: np.ndarray
) -> None:
    root = pretended_root(programs.parent / "root", script)
    with pytest.raises(UserError, match=said) as caught:
        emulate(files["float32"], digits[:1], root=root)
    assert "\n" not in str(caught.value)


def test_the_root_needs_three_programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aarch64_root.shutil, "which", lambda *_, **__: None)
    with pytest.raises(UserError, match=r"apt-get install qemu-user-static debootstrap dpkg \(Debian"):
        make_root(tmp_path / "root")


def test_the_root_is_made_whole_or_not_at_all(programs: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """Every program is a stand-in: what is not unpacked, a failing step and a folder that is taken."""
    root, said = programs.parent / "arm" / "root", programs.parent / "said"
    for name in ("mkdir", "touch", "dirname", "readlink"):
        program(programs / name, f'PATH=/usr/bin:/bin; exec {name} "$@"')
    program(programs / "debootstrap", 'echo "E: Failed getting release file"; echo "see the log"; exit 1')
    program(programs / "dpkg", f'echo "$2" >> {said}')
    with pytest.raises(UserError, match=r"failed with exit code 1: E: Failed getting release file; .*--mirror URL"):
        make_root(root, mirror="http://localhost/debian")
    assert list(root.parent.iterdir()) == []

    archives = "var/cache/apt/archives"
    program(
        programs / "debootstrap",
        f'echo "$@" > {said}\nfor folder; do case "$folder" in /*) break;; esac; done\n'
        f'mkdir -p "$folder/{archives}"; touch "$folder/{archives}/libc6_2_arm64.deb" "$folder/{archives}/login_1.deb"',
    )
    pip = program(programs / "pip", f'echo "pip $@ $PIP_CONSTRAINT" >> {said}')
    monkeypatch.setattr(aarch64_root.sys, "executable", str(pip))
    monkeypatch.setenv("PIP_CONSTRAINT", "constraints.txt")
    program(programs / "env", 'echo "Python 3.11.2"')
    assert make_root(root, mirror="http://localhost/debian") == "Python 3.11.2"
    debootstrap, unpacked, wheels = said.read_text().splitlines()
    assert "--arch=arm64" in debootstrap
    assert debootstrap.endswith("http://localhost/debian")
    assert unpacked.endswith("libc6_2_arm64.deb")
    assert "manylinux_2_28_aarch64" in wheels
    assert "constraints.txt" not in wheels
    assert [path.name for path in root.parent.iterdir()] == ["root"]
    assert "4 of 4" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"root is there already: remove it"):
        make_root(root)


def test_the_mirror_is_that_of_this_systems_apt(programs: Path) -> None:
    assert apt_mirror() is None
    lines = r"Debian\tDebian-Security\thttp://a/security\nDebian\tDebian\thttp://b/debian/\n"
    program(programs / "apt-get", f"printf '{lines}'")
    assert apt_mirror() == "http://b/debian/"
    program(programs / "apt-get", r"printf 'Ubuntu\tUbuntu\thttp://c/ubuntu\n'")
    assert apt_mirror() is None


def test_the_command_says_what_is_wrong_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(aarch64_root.sys, "argv", ["aarch64_root", str(tmp_path)])
    assert aarch64_root.main() == 2
    assert (
        capsys.readouterr().err == f"{tmp_path} is there already: remove it to make it again, or name another folder\n"
    )


def root_or_skip() -> Path:
    try:
        return find_root()
    except UserError as missing:
        pytest.skip(str(missing))


@pytest.mark.parametrize(("precision", "optimize"), [("float32", True), ("int8", True), ("int8", False)])
def test_digits_on_an_emulated_processor(
    precision: str, optimize: bool, files: dict[str, Path], digits: np.ndarray
) -> None:
    root = root_or_skip()
    made = emulate(files[precision], digits[:64], optimize=optimize, root=root)
    here = host_outputs(files[precision], digits[:64], optimize=optimize)
    assert made.runtime == "onnxruntime 1.24.4 aarch64, emulated cortex-a72"
    assert made.outputs.shape == here.shape
    assert (made.outputs.argmax(1) == here.argmax(1)).mean() >= (1 if precision == "float32" else 0.95)
    # int8 answers lie on a grid: a rounding that ties otherwise moves one by a step of it
    assert np.abs(made.outputs - here).max() <= (1e-4 if precision == "float32" else 2 * step(here))


def step(outputs: np.ndarray) -> float:
    """The distance between neighbouring values that a quantized output can take."""
    return float(np.diff(np.unique(outputs)).min())


@pytest.mark.slow
def test_the_int8_cifar10_student_answers_on_arm_as_here(tmp_path: Path) -> None:
    root_or_skip()
    data, weights = SHARED / "data" / "cifar10", SHARED / "weights" / "cifar10_resnet" / "resnet20.safetensors"
    if not data.exists() or not weights.exists():
        pytest.skip("the shared copies of CIFAR-10 and of ResNet-20 are not on this machine")
    recipe = load_recipe("cifar10-resnet8")
    overrides = [
        f"data.source={data}",
        f"teacher.model={recipe.teacher.model.replace('resnet56', 'resnet20')}",
        f"teacher.weights={weights}",
        "train.epochs=2",
        "compare.baseline=false",
        "budget={}",
        "bench.host=qemu-aarch64",
    ]
    result = job.run(load_recipe("cifar10-resnet8", overrides), tmp_path / "run", track=progress.silent)
    for artifact in result["artifacts"]:
        on_arm = artifact["emulated"]
        print(artifact["name"], artifact["quality"], on_arm)
        assert on_arm["runtime"] == "onnxruntime 1.24.4 aarch64, emulated cortex-a72"
        assert on_arm["samples"] == 200
        assert on_arm["agreement"] >= (1 if artifact["precision"] == "float32" else 0.98)
        assert artifact["quality"] > 0.4
