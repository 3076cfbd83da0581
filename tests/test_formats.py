"""Every artifact of `digits` in every format: made, opened by its own runtime, measured, ready for a device."""

import json
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import yaml
from onnx import numpy_helper
from PIL import Image

from digits_runs import QUANTIZED, installed, result_of
from edgestill import deliver, progress
from edgestill import runs as job
from edgestill.cli import main
from edgestill.export import formats
from edgestill.recipe import FORMATS, TRAINED, load_recipe
from edgestill.recipes import digits

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, bare_runs: Any) -> Path:
    out = tmp_path_factory.mktemp("runs") / "digits"
    with bare_runs(with_report=True, with_teacher=True):
        job.run(load_recipe("digits", [*QUANTIZED, f"export=[{', '.join(installed())}]"]), out, track=progress.silent)
    return out


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


def test_8_bits_are_made_of_the_float_file_that_was_written_or_of_one_of_their_own(
    tmp_path: Path,
) -> None:
    kind, probe = formats.FORMATS["onnx-int8-dynamic"], torch.zeros(1, 1, 8, 8)
    first, other = (digits.student().eval() for _ in range(2))
    deliver.write(formats.FORMATS["onnx"], first, probe, tmp_path / "float.onnx", None)
    deliver.write(kind, first, probe, tmp_path / "own.onnx", None)
    deliver.write(kind, other, probe, tmp_path / "given.onnx", None, plain=tmp_path / "float.onnx")
    assert (tmp_path / "given.onnx").read_bytes() == (tmp_path / "own.onnx").read_bytes()
    deliver.write(kind, other, probe, tmp_path / "other.onnx", None)
    assert (tmp_path / "other.onnx").read_bytes() != (tmp_path / "own.onnx").read_bytes()


def test_8_bits_by_a_tool_are_of_the_float_file_beside_them(run: Path, tmp_path: Path) -> None:
    from edgestill.export import onnx as exporter

    exporter.quantize_dynamic(run / "exports" / "onnx" / "student.onnx", tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == (run / "exports/onnx-int8-dynamic/student.onnx").read_bytes()


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
    if name not in installed():
        pytest.skip(f"what {name} needs is not installed")
    pixels, labels = digits.splits()["test"]
    with np.load(run / "predictions.npz") as saved:
        measured = saved[name].argmax(1)
        np.testing.assert_array_equal(saved["labels"], labels)
    device = shutil.copytree(run / "exports" / name, tmp_path / "device")
    python = sys.executable if name.startswith("executorch") else clean  # its runtime needs torch, which is large
    for row in np.flatnonzero(measured == labels)[:2]:
        Image.fromarray(pixels[row]).save(tmp_path / "picture.png")
        command = [python, device / "run.py", tmp_path / "picture.png"]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stdout.split()[1] == str(labels[row])
