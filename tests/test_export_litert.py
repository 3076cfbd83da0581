"""What is promised of a LiteRT file: the same answers without torch, integers as they were trained, and refusals."""

import copy
import os
import re
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from edgestill.errors import UserError
from edgestill.runtimes.measure import RuntimeProcess
from small_net import BROKEN, Branches, IntegerNet, Median, Net, answers, broken, digits, fitted

pytest.importorskip("ai_edge_litert", reason="needs LiteRT: pip install 'edgestill[litert]'")

from edgestill.export import litert
from edgestill.export.litert import Job, convert, describe, write_empty
from edgestill.export.program import UnsupportedOperator
from edgestill.runtimes import litert_runtime

EXAMPLE = torch.zeros(1, 1, 8, 8)
RUNTIME = Path(litert_runtime.__file__)


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return digits()


@pytest.fixture(scope="module")
def net() -> Net:
    return fitted()


@pytest.fixture(scope="module")
def integer(net: Net, images: np.ndarray) -> IntegerNet:
    return IntegerNet(net, images[:300])


@pytest.fixture(scope="module")
def made(net: Net, integer: IntegerNet, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    try:
        litert.python()
    except UserError as error:
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("made")
    trained = copy.deepcopy(net).train().to(memory_format=torch.channels_last)
    paths = {"float": folder / "model.tflite", "int8": folder / "int8.tflite"}
    convert([Job(trained, EXAMPLE, paths["float"]), Job(integer, EXAMPLE, paths["int8"])])
    assert trained.training
    assert trained.conv.weight.stride() == net.conv.weight.stride()
    return paths


@pytest.fixture
def converter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Makes a script the converter's Python; only the look for litert-torch succeeds by itself."""

    def replace(script: str) -> None:
        path = tmp_path / "python"
        path.write_text(f'#!/bin/sh\ncase "$*" in *find_spec*) exit 0;; esac\n{script}\n')
        path.chmod(0o755)
        monkeypatch.setenv(litert.VARIABLE, str(path))

    return replace


def test_any_batch_answers_as_the_model_in_a_process_without_torch(
    made: dict[str, Path], net: Net, images: np.ndarray, tmp_path: Path
) -> None:
    alone = tmp_path / "alone.py"
    alone.write_bytes(RUNTIME.read_bytes())
    np.save(tmp_path / "in.npy", images[:64])
    with RuntimeProcess(made["float"], alone) as process:
        assert process.runtime == litert_runtime.RUNTIME
        for batch in (1, 7, 64):
            process.ask(predict=str(tmp_path / "in.npy"), output=str(tmp_path / "out.npy"), batch=batch)
            np.testing.assert_allclose(np.load(tmp_path / "out.npy"), answers(net, images[:64]), atol=1e-4)


def test_files_have_float_ends_with_names_and_nothing_of_the_exporting_machine(made: dict[str, Path]) -> None:
    assert sorted(file.name for file in made["float"].parent.iterdir()) == ["int8.tflite", "model.tflite"]
    for path in made.values():
        found = describe(path)
        assert found["inputs"] == [{"name": "input", "shape": [1, 1, 8, 8], "dtype": "float32"}]
        assert found["outputs"] == [{"name": "logits", "shape": [1, 10], "dtype": "float32"}]
        content = path.read_bytes()
        for trace in (b".py", b"site-packages", b"small_net", str(Path.cwd()).encode(), str(Path.home()).encode()):
            assert trace not in content


def test_every_operator_runs_in_integers_between_the_ends(made: dict[str, Path]) -> None:
    # Also a mean of feature maps stays in the runtime's layout: no transpose but that of the input, if it has channels.
    # The stem's single channel makes it a depthwise convolution.
    operators = {"DEPTHWISE_CONV_2D": 1, "CONV_2D": 1, "ADD": 1, "AVERAGE_POOL_2D": 1, "FULLY_CONNECTED": 1}
    for name, ends in (("float", {}), ("int8", {"QUANTIZE": 2, "DEQUANTIZE": 1})):
        found = describe(made[name])["operators"]
        assert {
            kind: count for kind, count in found.items() if kind not in ("RESHAPE", "TRANSPOSE")
        } == operators | ends
        assert found.get("RESHAPE", 0) + found.get("TRANSPOSE", 0) <= 1


def test_integers_are_small_and_answer_as_their_module(
    made: dict[str, Path], integer: IntegerNet, images: np.ndarray
) -> None:
    assert made["int8"].stat().st_size < 0.4 * made["float"].stat().st_size
    expected = answers(integer, images[:1000])
    outputs = litert_runtime.load(made["int8"])(images[:1000])
    assert (outputs.argmax(1) == expected.argmax(1)).mean() > 0.98
    step = integer.grids["logits"][0]
    assert np.abs(outputs - expected).max() < 4 * step
    assert np.abs(outputs / step - np.round(outputs / step)).max() < 1e-3


def test_weights_lie_aligned_in_the_file(made: dict[str, Path]) -> None:
    from ai_edge_litert import schema_py_generated as schema

    for path in made.values():
        content = path.read_bytes()
        model = schema.Model.GetRootAsModel(content, 0)
        vectors = [model.Buffers(index).DataAsNumpy() for index in range(model.BuffersLength())]
        places = [
            content.index(vector.tobytes()) for vector in vectors if not isinstance(vector, int) and len(vector) > 99
        ]
        assert len(places) >= 3
        assert [place % litert.ALIGNMENT for place in places] == [0] * len(places)


def test_an_empty_file_hands_its_input_on(tmp_path: Path, images: np.ndarray) -> None:
    write_empty(tmp_path / "empty.tflite", EXAMPLE)
    np.testing.assert_array_equal(litert_runtime.load(tmp_path / "empty.tflite")(images[:3]), images[:3])
    assert describe(tmp_path / "empty.tflite")["operators"] == {}


def test_an_operator_that_litert_lacks_is_named_and_no_file_is_there(made: dict[str, Path], tmp_path: Path) -> None:
    jobs = [Job(Net(), EXAMPLE, tmp_path / "good.tflite"), Job(Median(), EXAMPLE, tmp_path / "bad.tflite")]
    with pytest.raises(UnsupportedOperator, match=r"^LiteRT has no operator aten\.median\.dim") as raised:
        convert(jobs)
    assert raised.value.operator == "aten.median.dim"
    assert "\n" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_branches_on_values_are_one_clear_line(converter, tmp_path: Path) -> None:
    converter("exit 3")
    with pytest.raises(UserError, match=r"^Branches cannot be exported to LiteRT: .*branches on the values") as raised:
        convert([Job(Branches(), EXAMPLE, tmp_path / "model.tflite")])
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "model.tflite").exists()


def test_a_converter_that_fails_is_one_line_with_its_last(converter, tmp_path: Path) -> None:
    converter("echo first >&2; echo 'no room on the device' >&2; exit 3")
    with pytest.raises(UserError, match=r"python, ended with exit code 3: no room on the device$"):
        convert([Job(Net(), EXAMPLE, tmp_path / "model.tflite")])
    assert not (tmp_path / "model.tflite").exists()


def test_a_converter_that_hangs_is_stopped(converter, tmp_path: Path) -> None:
    converter("echo $$ > $(dirname $0)/pid; exec sleep 60")
    began = time.monotonic()
    with pytest.raises(UserError, match=r"took longer than 0\.5 seconds and was stopped"):
        convert([Job(Net(), EXAMPLE, tmp_path / "model.tflite")], timeout=0.5)
    assert time.monotonic() - began < 20
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_a_missing_environment_is_refused_with_the_commands_that_make_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(litert.VARIABLE, str(tmp_path / "none"))
    version = torch.__version__.partition("+")[0]
    commands = rf"python -m venv ~/\.cache/edgestill/litert && .*pip install torch=={re.escape(version)} 'litert-torch"
    with pytest.raises(UserError, match=f"there is no {tmp_path / 'none'}.*{commands}.*EDGESTILL_LITERT_PYTHON"):
        litert.python()
    monkeypatch.setenv(litert.VARIABLE, sys.executable)
    with pytest.raises(UserError, match=f"{re.escape(sys.executable)} does not have: {commands}"):
        litert.python()
    monkeypatch.delenv(litert.VARIABLE)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(UserError, match=rf"there is no {tmp_path}/\.cache/edgestill/litert/bin/python"):
        litert.python()


@pytest.mark.parametrize("how", [*BROKEN, None])
def test_a_file_that_cannot_be_opened_is_one_clear_line(made: dict[str, Path], tmp_path: Path, how: str | None) -> None:
    path = tmp_path / "broken.tflite"
    if how is not None:
        path.write_bytes(broken(made["float"].read_bytes(), how))
    with pytest.raises(ValueError, match=re.escape(str(path))) as raised:
        litert_runtime.load(path)
    assert "\n" not in str(raised.value)


def test_inputs_of_another_shape_are_refused_by_name(tmp_path: Path, images: np.ndarray) -> None:
    path = tmp_path / "empty.tflite"
    write_empty(path, EXAMPLE)
    predict = litert_runtime.load(path)
    for inputs in (images[:2, :, :4], images[0]):
        with pytest.raises(ValueError, match=re.escape(str(path))):
            predict(inputs)


def test_integer_ends_of_other_tools_are_quantized_by_the_scales_in_the_file(tmp_path: Path) -> None:
    from ai_edge_litert import schema_py_generated as schema

    grid = schema.QuantizationParametersT(scale=[0.5], zeroPoint=[-3])
    end = schema.TensorT(name="x", type=schema.TensorType.INT8, shape=[1, 4], buffer=0, hasRank=True, quantization=grid)
    graph = schema.SubGraphT(tensors=[end], inputs=[0], outputs=[0], operators=[])
    model = schema.ModelT(version=3, subgraphs=[graph], buffers=[schema.BufferT()], operatorCodes=[])
    (tmp_path / "int8.tflite").write_bytes(litert._packed(model))
    predict = litert_runtime.load(tmp_path / "int8.tflite")
    outputs = predict(np.array([[0, 0.7, -1000, 1000]], np.float32))
    np.testing.assert_array_equal(outputs, [[0, 0.5, -62.5, 65]])
