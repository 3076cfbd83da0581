"""A phase that trains for 8 bits: what it wins, what it costs, which layers it spares. One run alone makes files."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from safetensors.torch import load_file, save_file

from digits_runs import QUANTIZED, result_of
from edgestill import progress, words
from edgestill import runs as job
from edgestill.errors import UserError
from edgestill.recipe import Recipe, load_recipe


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, bare_runs) -> Path:
    out = tmp_path_factory.mktemp("runs") / "digits"
    with bare_runs():
        job.run(load_recipe("digits", QUANTIZED), out, track=progress.silent, deliver_files=False)
    return out


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


@pytest.mark.usefixtures("bare")
def test_the_float_student_is_what_it_was_before_the_phase(run: Path, tmp_path: Path) -> None:
    result = result_of(run)
    again = job.run(load_recipe("digits", QUANTIZED), tmp_path / "again", track=progress.silent, deliver_files=False)
    assert json.loads(json.dumps(again["arms"])) == result["arms"]
    assert again["quantized"] == result["quantized"], "same seed, same bits"
    assert set(result["arms"]) == {"baseline", "student"}


@pytest.mark.usefixtures("bare")
def test_a_phase_for_8_bits_that_does_harm_is_told(run: Path, tmp_path: Path) -> None:
    recipe = for_8_bits_alone(
        run, run / "student" / "model.safetensors", "phases.quantize.lr=10000", "train.epochs=0.4"
    )
    result = job.run(recipe, tmp_path / "run", track=progress.silent, deliver_files=False)
    quantized = result["quantized"]
    assert quantized["validation"] < quantized["post_training_validation"]
    assert "the phase quantize made the student in 8 bits worse" in quantized["worse"]
    assert "lower phases.quantize.lr" in quantized["worse"]
    assert any(line.startswith("8 bits") for line in words.summary(result))


@pytest.mark.usefixtures("bare")
def test_layers_that_stay_in_float_do(run: Path, tmp_path: Path) -> None:
    """With and without the phase: the file that it trained, and that of post-training."""
    weights = run / "student" / "model.safetensors"
    overrides = ["train.epochs=0.1", "verify.agreement=0"]
    recipe = for_8_bits_alone(run, weights, *overrides, "quantize.keep_float=[stage1.0]")
    result = job.run(recipe, tmp_path / "run", track=progress.silent)
    assert result["quantization"]["kept_float"] == ["stage1.0"]
    assert [artifact["name"] for artifact in result["artifacts"]] == ["onnx-int8", "onnx-int8-post"]
    for artifact in result["artifacts"]:
        graph = onnx.load(tmp_path / "run" / artifact["path"]).graph
        constants = [numpy_helper.to_array(constant) for constant in graph.initializer]
        assert sorted(each.dtype.name for each in constants if each.ndim == 4) == ["float32", "int8", "int8"]
    with pytest.raises(UserError, match=r"no layer 'stage1'; did you mean 'stage1.0'"):
        job.run(for_8_bits_alone(run, weights, *overrides, "quantize.keep_float=[stage1]"), tmp_path / "no")
    assert not (tmp_path / "no").exists()


@pytest.mark.usefixtures("bare")
def test_what_post_training_loses_the_phase_wins_back(run: Path, uneven: Path, tmp_path: Path) -> None:
    recipe = for_8_bits_alone(run, uneven, "train.epochs=8")
    result = job.run(recipe, tmp_path / "run", track=progress.silent, deliver_files=False)
    assert list(result["arms"]) == ["student"]
    assert result["arms"]["student"]["mean"] == pytest.approx(result_of(run)["arms"]["student"]["mean"], abs=0.002)
    assert [phase["name"] for phase in result["phases"]] == ["quantize"]
    in_float = result["arms"]["student"]["seeds"][0]["validation"]
    trained, post = result["quantized"]["validation"], result["quantized"]["post_training_validation"]
    assert post < in_float - 0.05
    assert trained >= (in_float + post) / 2


@pytest.mark.usefixtures("bare")
def test_auto_spares_layers_where_8_bits_cost_much_and_none_where_they_do_not(
    run: Path, uneven: Path, tmp_path: Path
) -> None:
    spared = []
    for place, weights in enumerate((run / "student" / "model.safetensors", uneven)):
        recipe = for_8_bits_alone(run, weights, "quantize.keep_float=auto", "train.epochs=0.1")
        result = job.run(recipe, tmp_path / str(place), track=progress.silent, deliver_files=False)
        assert result["quantization"]["automatic"]
        spared.append(result["quantization"]["kept_float"])
    assert spared[0] == []
    assert 1 <= len(spared[1]) <= 2, "at most half"
