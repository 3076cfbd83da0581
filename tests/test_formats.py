"""Every artifact of `digits` in every format: made, opened by its own runtime, measured, ready for a device."""

import json
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import yaml
from onnx import numpy_helper
from PIL import Image
from safetensors.torch import load_file, save_file

from edgestill import progress, words
from edgestill import run as job
from edgestill.cli import main
from edgestill.errors import UserError
from edgestill.export import formats, litert
from edgestill.recipe import FORMATS, TRAINED, Recipe, load_recipe

ROOT = Path(__file__).parents[1]
QUANTIZED = [
    "train.epochs=10",
    "compare.seeds=1",
    "teacher.fit.epochs=6",
    "phases=[{name: distill, share: 0.8}, {name: quantize, share: 0.2, fake_quantize: int8}]",
]


def installed() -> list[str]:
    found = []
    for name in FORMATS:
        try:
            formats.check([name])
        except UserError:
            continue
        found.append(name)
    return found


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "digits"
    job.run(load_recipe("digits", [*QUANTIZED, f"export=[{', '.join(installed())}]"]), out, track=progress.silent)
    return out


def result_of(run: Path) -> dict:
    return json.loads((run / "result.json").read_text())


def artifacts(run: Path) -> dict[str, dict]:
    return {artifact["name"]: artifact for artifact in result_of(run)["artifacts"]}


def test_the_recipe_knows_the_formats_that_there_are() -> None:
    assert list(FORMATS) == list(formats.FORMATS)
    assert list(TRAINED) == [name for name, kind in formats.FORMATS.items() if kind.how == "graph"]


def test_every_format_is_made_and_each_trained_one_has_its_twin(run: Path) -> None:
    made = artifacts(run)
    asked = installed()
    assert {"onnx", "onnx-int8", "onnx-int8-dynamic"} <= {*asked}
    if os.environ.get("EDGESTILL_ALL_FORMATS"):  # as CI has it
        assert asked == [*FORMATS]
    assert [name for name in made if not name.endswith("-post")] == asked
    assert [name for name in made if name.endswith("-post")] == [f"{name}-post" for name in asked if name in TRAINED]
    for name, artifact in made.items():
        folder = run / "exports" / name
        assert artifact["path"] == str(next(folder.glob("student.*[!n]")).relative_to(run)), name
        assert artifact["bytes"] == sum(file.stat().st_size for file in folder.glob("student.*"))
        wanted = {"int8": "post-training", "float32": None, "float16": None}[artifact["precision"]]
        wanted = "dynamic" if name.endswith("dynamic") else "quantization-aware" if name in TRAINED else wanted
        assert artifact["quantized"] == wanted, name


def test_every_file_answers_as_what_it_was_made_of(run: Path) -> None:
    for name, artifact in artifacts(run).items():
        assert artifact["samples"] == 1000
        if artifact["precision"] == "float32":
            assert artifact["agreement"] == 1.0, name
            assert artifact["max_abs_error"] < 1e-3, name
        elif name in TRAINED or name.endswith("-post"):
            assert artifact["simulated"]["agreement"] > 0.99, name
        assert artifact["agreement"] > 0.9, name
        assert artifact["quality"] > 0.85, name
        assert 0 <= artifact["divergence"] < 0.1, name


def test_every_file_is_measured_beside_the_teacher_in_its_runtime(run: Path) -> None:
    result = result_of(run)
    for artifact in result["artifacts"]:
        latency = artifact["latency_ms"]
        assert 0 < latency["p50"] <= latency["p90"] <= latency["p99"]
        assert artifact["latency_ratio"] > 0
        assert artifact["throughput"] > 0
        assert artifact["throughput_batch"] == (1 if artifact["format"] == "litert" else 32)
        assert artifact["peak_memory_bytes"] >= 0
        assert "energy_mj" not in artifact or artifact["energy_mj"] > 0
    assert result["bench"]["host"] is None
    assert result["bench"]["hardware"]["cores"] >= 1
    assert result["budget"]["artifact"] in installed()


def test_the_phase_that_trains_for_8_bits_is_a_phase_of_the_run(run: Path) -> None:
    result = result_of(run)
    assert [phase["name"] for phase in result["phases"]] == ["distill", "quantize"]
    steps = [phase["steps"] for phase in result["phases"]]
    assert steps[1] / sum(steps) == pytest.approx(0.2, abs=0.01)
    assert result["quantized"]["after"] == steps[0]
    assert result["schedule"][-1]["phase"] == "quantize"
    assert result["schedule"][-1]["step"] == sum(steps) - 1
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    parts = next(line["parts"] for line in lines if line["arm"] == "quantized" and "parts" in line)
    assert set(parts) == {"hard", "soft"}, "it still learns from the teacher"
    assert [layer["layer"] for layer in result["quantization"]["layers"]] == [
        "stage1.0",
        "stage2.0",
        "stage3.0",
        "linear",
    ]


def test_the_trained_scales_are_those_in_the_file(run: Path) -> None:
    seed = result_of(run)["student"]["seed"]
    state = torch.load(run / "arms" / "quantized" / str(seed) / "final.pt", weights_only=True)["student"]
    trained = {key: value.exp().numpy() for key, value in state.items() if key.endswith("log_scale")}
    in_file, in_twin = (
        [
            numpy_helper.to_array(constant)
            for constant in onnx.load(run / "exports" / name / "student.onnx").graph.initializer
        ]
        for name in ("onnx-int8", "onnx-int8-post")
    )
    assert trained
    for key, scale in trained.items():
        assert any(np.array_equal(constant.reshape(-1), scale.reshape(-1)) for constant in in_file), key
    weights = [scale for key, scale in trained.items() if "weight_quantizer" in key]
    assert not any(np.array_equal(constant, scale) for constant in in_twin for scale in weights), (
        "they were not trained"
    )


def test_the_float_student_is_what_it_was_before_the_phase(run: Path, tmp_path: Path) -> None:
    recipe = load_recipe("digits", QUANTIZED)
    result = result_of(run)
    again = job.run(recipe, tmp_path / "again", track=progress.silent, deliver_files=False)
    assert json.loads(json.dumps(again["arms"])) == result["arms"]
    assert again["quantized"] == result["quantized"], "same seed, same bits"
    assert set(result["arms"]) == {"baseline", "student"}


def test_exporting_again_makes_the_same_trained_files(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    again = shutil.copytree(run, tmp_path / "again")
    before = artifacts(run)
    assert main(["export", str(again), "--quiet", "--set", "export=[onnx, onnx-int8]"]) in (0, 3)
    assert yaml.safe_load((again / "recipe.yaml").read_text())["export"] == ["onnx", "onnx-int8"]
    made = artifacts(again)
    assert list(made) == ["onnx", "onnx-int8", "onnx-int8-post"]
    for name, artifact in made.items():
        assert (again / artifact["path"]).read_bytes() == (run / before[name]["path"]).read_bytes()
        assert artifact["quality"] == before[name]["quality"]
    refused = {
        "train.lr=1": "of a trained run export, verify",
        "quantize.keep_float=[linear]": "was trained with [] in float",
    }
    for override, said in refused.items():
        assert main(["export", str(again), "--quiet", "--set", override]) == 2
        assert said in capsys.readouterr().err
    recipe = yaml.safe_load((again / "recipe.yaml").read_text())
    (again / "recipe.yaml").write_text(yaml.safe_dump(recipe | {"export": ["onnx-int8"]}))
    for verb in ("evaluate", "bench"):
        assert main([verb, str(again), "--quiet"]) == 2
        assert "asks for other artifacts than there are" in capsys.readouterr().err


def test_an_interrupted_phase_for_8_bits_is_gone_on_with(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    again = shutil.copytree(run, tmp_path / "again")
    (again / "arms" / "quantized" / str(result_of(run)["student"]["seed"]) / "final.pt").unlink()
    assert main(["export", str(again), "--quiet"]) == 2
    assert "ended in its phase for 8 bits; `edgestill run" in capsys.readouterr().err


def test_a_phase_for_8_bits_that_does_harm_is_told(tmp_path: Path) -> None:
    harmful = [
        "train.epochs=2",
        "compare.seeds=1",
        "teacher.fit.epochs=6",
        "export=[onnx-int8]",
        "phases=[{name: distill, share: 0.8}, {name: quantize, share: 0.2, fake_quantize: int8, lr: 10000}]",
    ]
    result = job.run(load_recipe("digits", harmful), tmp_path / "run", track=progress.silent, deliver_files=False)
    quantized = result["quantized"]
    assert quantized["validation"] < quantized["post_training_validation"]
    assert "the phase quantize made the student in 8 bits worse" in quantized["worse"]
    assert "lower phases.quantize.lr" in quantized["worse"]
    assert any(line.startswith("8 bits") for line in words.summary(result))


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment with numpy, Pillow and the runtimes that need nothing more."""
    folder = tmp_path_factory.mktemp("clean")
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    packages = ["onnxruntime", "numpy", "pillow"]
    packages += ["openvino"] * ("openvino" in installed()) + ["ai-edge-litert"] * ("litert" in installed())
    environment = os.environ | {"PIP_CONSTRAINT": str(ROOT / "constraints.txt"), "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    done = subprocess.run([python, "-m", "pip", "install", "-q", *packages], env=environment, capture_output=True)
    if done.returncode:
        pytest.skip("no package registry can be reached to fill a clean environment")
    return python


@pytest.mark.parametrize("name", ["onnx", "onnx-int8"])
def test_a_device_classifies_a_picture_with_the_folder_of_the_artifact_alone(
    run: Path, clean: Path, tmp_path: Path, name: str
) -> None:
    from edgestill.recipes import digits

    pixels, labels = digits.splits()["test"]
    device = shutil.copytree(run / "exports" / name, tmp_path / "device")
    card = json.loads((device / "card.json").read_text())
    assert card["inputs"] == [{"name": "input", "shape": ["batch", 1, 8, 8], "dtype": "float32"}]
    assert card["outputs"][0]["name"] == "logits"
    assert card["labels"] == [str(label) for label in range(10)]
    assert card["operators"]["Conv"] == 3

    def said(picture: Image.Image, **options: object) -> str:
        picture.save(tmp_path / "picture.png", **options)
        command = [clean, device / "run.py", tmp_path / "picture.png"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    right = [said(Image.fromarray(pixels[row])).split()[1] == str(labels[row]) for row in range(5)]
    assert sum(right) >= 4
    # As in training: on its side with a note of that, wider than high, on a transparent ground.
    upright, turned = Image.fromarray(pixels[0]), Image.Exif()
    turned[0x0112] = 6
    assert said(upright.transpose(Image.Transpose.ROTATE_90), exif=turned) == said(upright)
    colour = np.stack([pixels[0], pixels[0], pixels[0]], -1)
    assert said(Image.fromarray(colour)) == said(upright)
    wide = Image.new("L", (16, 8), 255)
    wide.paste(upright, (4, 0))
    assert said(wide) == said(upright)
    clear = Image.merge("LA", (Image.new("L", (8, 8), 0), Image.fromarray(255 - pixels[0])))
    assert said(clear) == said(upright)
    (tmp_path / "text.png").write_text("no picture")
    refused = subprocess.run([clean, device / "run.py", tmp_path / "text.png"], capture_output=True, text=True)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)


def test_a_device_sees_pictures_as_the_data_and_the_model_do(tmp_path: Path) -> None:
    """Wide grey pictures, for a square model of three channels: stretched and spread, as in training."""
    from edgestill.data.images import Images
    from edgestill.data.pictures import like_data, like_model, to_pixels
    from edgestill.models import ImageInput
    from edgestill.runtimes.classify import normalised
    from edgestill.tasks.images import ImageSamples

    pixels = np.random.default_rng(0).integers(0, 256, (2, 8, 16, 1), dtype=np.uint8)
    expected = ImageInput(3, 12, (0.4,), (0.2,))
    samples = ImageSamples(Images(pixels, np.zeros(2, np.int64), ("a",), "", ""))
    trained_on = samples.inputs(np.arange(2), expected)
    for row in range(2):
        picture = like_data(to_pixels(Image.fromarray(pixels[row, ..., 0]), 1, None), 8, 16)
        seen = normalised(like_model(picture, 3, 12), {"mean": [0.4], "std": [0.2]})
        np.testing.assert_allclose(seen, trained_on[row : row + 1], atol=0.02)  # a device rounds to whole pixels
    large = like_data(to_pixels(Image.fromarray(np.zeros((40, 64), np.uint8)), 1, None), 8, 16)
    assert large.shape == (8, 16, 1)


@pytest.mark.parametrize("name", [name for name in FORMATS if not name.startswith("onnx")])
def test_so_do_the_folders_of_the_other_formats(run: Path, clean: Path, tmp_path: Path, name: str) -> None:
    from edgestill.recipes import digits

    if name not in installed():
        pytest.skip(f"what {name} needs is not installed")
    pixels, labels = digits.splits()["test"]
    device = shutil.copytree(run / "exports" / name, tmp_path / "device")
    python = sys.executable if name.startswith("executorch") else clean  # its runtime needs torch, which is large
    right = 0
    for row in range(5):
        Image.fromarray(pixels[row]).save(tmp_path / "picture.png")
        command = [python, device / "run.py", tmp_path / "picture.png"]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        right += done.stdout.split()[1] == str(labels[row])
    assert right >= 4


def test_layers_that_stay_in_float_do(tmp_path: Path) -> None:
    overrides = [
        "train.epochs=2",
        "compare.seeds=1",
        "teacher.fit.epochs=6",
        "export=[onnx-int8]",
        "verify.agreement=0",
    ]
    result = job.run(
        load_recipe("digits", [*overrides, "quantize.keep_float=[stage1.0]"]), tmp_path / "run", track=progress.silent
    )
    assert result["quantization"]["kept_float"] == ["stage1.0"]
    graph = onnx.load(tmp_path / "run" / "exports" / "onnx-int8" / "student.onnx").graph
    weights = [numpy_helper.to_array(constant) for constant in graph.initializer]
    assert sorted(weight.dtype.name for weight in weights if weight.ndim == 4) == ["float32", "int8", "int8"]
    with pytest.raises(UserError, match=r"no layer 'stage1'; did you mean 'stage1.0'"):
        job.run(load_recipe("digits", [*overrides, "quantize.keep_float=[stage1]"]), tmp_path / "no")
    assert not (tmp_path / "no").exists()


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


def test_a_teacher_that_a_runtime_cannot_run_is_refused_before_any_training(tmp_path: Path) -> None:
    net = tmp_path / "net.py"
    net.write_text(STUDENT.replace("{body}", "return torch.linalg.svdvals(x.flatten(2))"))
    overrides = ["train.epochs=1", "compare.seeds=1", "teacher.fit.epochs=6", f"teacher.model={net}:student"]
    with pytest.raises(
        UserError, match=r"^teacher: its latency is compared, but export: onnx has no operator aten\._linalg_svd"
    ):
        job.run(load_recipe("digits", [*overrides, "export=[onnx]"]), tmp_path / "run", track=progress.silent)


def test_verify_fails_the_run_at_its_limit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["run", "digits", "--quiet", "--out", str(tmp_path / "run"), "--set", "verify.max_abs_error=1e-12"]
    arguments += ["--set", "train.epochs=1", "--set", "compare.seeds=1", "--set", "teacher.fit.epochs=6"]
    assert main([*arguments, "--set", "export=[onnx]"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "verify: exports/onnx/student.onnx is not the student on 1000 real samples" in said
    assert result_of(tmp_path / "run")["status"] == "failed"
    assert main(["bench", str(tmp_path / "run"), "--quiet"]) == 2, "its files are not delivered by another verb"
    assert "verify: " in capsys.readouterr().err


@pytest.fixture(scope="module")
def uneven(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained student, the same in float, but with channels of a map up to 300 times as large as others, as
    networks with depthwise convolutions have them (Nagel et al. 2019, arXiv 1906.04721)."""
    weights = load_file(run / "student" / "model.safetensors")
    for norm, next_conv in (("stage1.1", "stage2.0"), ("stage2.1", "stage3.0")):
        factors = torch.logspace(0, np.log10(300), len(weights[f"{norm}.weight"]))
        weights[f"{norm}.weight"] *= factors
        weights[f"{norm}.bias"] *= factors
        weights[f"{next_conv}.weight"] /= factors.reshape(1, -1, 1, 1)
    path = tmp_path_factory.mktemp("uneven") / "student.safetensors"
    save_file(weights, path)
    return path


def for_8_bits_alone(run: Path, weights: Path, *overrides: str) -> Recipe:
    """A trained student goes through the phase for 8 bits, and no other."""
    return load_recipe(
        "digits",
        [
            f"teacher.model={run / 'teacher'}",
            "teacher.fit=null",
            f"student.weights={weights}",
            "phases=[{name: quantize, share: 1, fake_quantize: int8}]",
            "compare.seeds=1",
            "export=[onnx-int8]",
            "budget={}",
            *overrides,
        ],
    )


def test_what_post_training_loses_the_phase_wins_back(run: Path, uneven: Path, tmp_path: Path) -> None:
    result = job.run(for_8_bits_alone(run, uneven, "train.epochs=8"), tmp_path / "run", track=progress.silent)
    assert list(result["arms"]) == ["student"]
    in_float = result["arms"]["student"]["mean"]
    assert in_float == pytest.approx(result_of(run)["arms"]["student"]["mean"], abs=0.002)
    assert [phase["name"] for phase in result["phases"]] == ["quantize"]
    assert [artifact["name"] for artifact in result["artifacts"]] == ["onnx-int8", "onnx-int8-post"]
    trained, post = (artifact["quality"] for artifact in result["artifacts"])
    assert post < in_float - 0.05
    assert trained >= (in_float + post) / 2


def test_auto_spares_layers_where_8_bits_cost_much_and_none_where_they_do_not(
    run: Path, uneven: Path, tmp_path: Path
) -> None:
    spared = []
    for place, weights in enumerate((run / "student" / "model.safetensors", uneven)):
        recipe = for_8_bits_alone(run, weights, "quantize.keep_float=auto", "train.epochs=0.1")
        result = job.run(recipe, tmp_path / str(place), track=progress.silent)
        assert result["quantization"]["automatic"]
        spared.append(result["quantization"]["kept_float"])
    assert spared[0] == []
    assert 1 <= len(spared[1]) <= 2, "at most half"
