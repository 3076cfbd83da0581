"""What is promised of an OpenVINO model: the same answers without torch, in half and in integers, and refusals."""

import copy
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from edgestill.errors import UserError
from edgestill.runtimes.measure import RuntimeProcess
from small_net import BROKEN, Branches, Median, Net, answers, broken, digits, fitted

pytest.importorskip("openvino", reason="needs OpenVINO: pip install 'edgestill[openvino]'")
pytest.importorskip("nncf", reason="needs NNCF: pip install 'edgestill[openvino]'")

from edgestill.export.openvino import describe, export, quantize_int8, write_empty
from edgestill.export.program import UnsupportedOperator
from edgestill.runtimes import openvino_runtime

EXAMPLE = torch.zeros(1, 1, 8, 8)
RUNTIME = Path(openvino_runtime.__file__)


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return digits()


@pytest.fixture(scope="module")
def net() -> Net:
    return fitted()


@pytest.fixture(scope="module")
def exported(net: Net, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exported") / "model.xml"
    export(net, EXAMPLE, path)
    return path


@pytest.fixture(scope="module")
def half(net: Net, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("half") / "model.xml"
    export(net, EXAMPLE, path, half=True)
    return path


@pytest.fixture(scope="module")
def quantized(exported: Path, images: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("quantized") / "int8.xml"
    quantize_int8(exported, images[:300], path)
    return path


def weights(path: Path) -> int:
    return path.with_suffix(".bin").stat().st_size


def test_any_batch_answers_as_the_model_in_a_process_without_torch(
    exported: Path, net: Net, images: np.ndarray, tmp_path: Path
) -> None:
    alone = tmp_path / "alone.py"
    alone.write_bytes(RUNTIME.read_bytes())
    np.save(tmp_path / "in.npy", images[:64])
    with RuntimeProcess(exported, alone) as process:
        assert process.runtime == openvino_runtime.RUNTIME
        for batch in (1, 7, 64):
            process.ask(predict=str(tmp_path / "in.npy"), output=str(tmp_path / "out.npy"), batch=batch)
            np.testing.assert_allclose(np.load(tmp_path / "out.npy"), answers(net, images[:64]), atol=1e-4)


def test_two_files_with_named_ends_and_nothing_of_the_exporting_machine(
    exported: Path, half: Path, quantized: Path
) -> None:
    for path in (exported, half, quantized):
        assert sorted(file.name for file in path.parent.iterdir()) == [path.with_suffix(".bin").name, path.name]
        found = describe(path)
        assert found["inputs"] == [{"name": "input", "shape": ["batch", 1, 8, 8], "dtype": "float32"}]
        assert found["outputs"] == [{"name": "logits", "shape": ["batch", 10], "dtype": "float32"}]
        content = path.read_text()
        for trace in (".py", "site-packages", str(Path.cwd()), str(Path.home())):
            assert trace not in content
    assert describe(exported)["operators"] == {
        "Convolution": 2,
        "Add": 4,
        "Relu": 2,
        "ReduceMean": 1,
        "MatMul": 1,
    }


def test_half_stores_the_weights_in_half(exported: Path, half: Path, net: Net, images: np.ndarray) -> None:
    assert weights(half) < 0.55 * weights(exported)
    outputs, expected = openvino_runtime.load(half)(images[:1000]), answers(net, images[:1000])
    assert 1e-5 < np.abs(outputs - expected).max() < 0.05
    assert (outputs.argmax(1) == expected.argmax(1)).mean() > 0.99


def test_integers_are_smaller_and_agree(exported: Path, quantized: Path, net: Net, images: np.ndarray) -> None:
    assert weights(quantized) < 0.35 * weights(exported)
    assert describe(quantized)["operators"]["FakeQuantize"] >= 4
    outputs, expected = openvino_runtime.load(quantized)(images[:1000]), answers(net, images[:1000])
    assert (outputs.argmax(1) == expected.argmax(1)).mean() > 0.97
    assert 1e-3 < np.abs(outputs - expected).max() < 2


def test_quantizing_and_exporting_write_nothing_to_the_terminal(
    net: Net, exported: Path, images: np.ndarray, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    export(net, EXAMPLE, tmp_path / "model.xml")
    quantize_int8(exported, images[:4], tmp_path / "int8.xml")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("rows", "reason"), [(0, "at least 2 .* got 0"), (1, "at least 2 .* got 1: give 200 to 500"), (3, "finite")]
)
def test_int8_refuses_calibration_it_cannot_use(
    exported: Path, images: np.ndarray, tmp_path: Path, rows: int, reason: str
) -> None:
    calibration = images[:rows] * (np.nan if reason == "finite" else 1)
    with pytest.raises(UserError, match=reason):
        quantize_int8(exported, calibration, tmp_path / "int8.xml")
    assert list(tmp_path.iterdir()) == []


def test_export_leaves_the_module_as_it_was(tmp_path: Path) -> None:
    net = Net().to(memory_format=torch.channels_last).train()
    net.norm1.eval()
    before = copy.deepcopy(net)
    export(net, EXAMPLE, tmp_path / "model.xml")
    assert [part.training for part in net.modules()] == [part.training for part in before.modules()]
    assert net.conv.weight.stride() == before.conv.weight.stride()
    for key, value in before.state_dict().items():
        assert torch.equal(net.state_dict()[key], value), key


def test_an_empty_model_hands_its_input_on(tmp_path: Path, images: np.ndarray) -> None:
    write_empty(tmp_path / "empty.xml", EXAMPLE)
    np.testing.assert_array_equal(openvino_runtime.load(tmp_path / "empty.xml")(images[:3]), images[:3])


def test_an_operator_that_openvino_lacks_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedOperator, match=r"^OpenVINO has no operator aten\.median\.dim") as raised:
        export(Median(), EXAMPLE, tmp_path / "model.xml")
    assert raised.value.operator == "aten.median.dim"
    assert "\n" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_branches_on_values_are_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"^Branches cannot be exported to OpenVINO: .*branches on the values"
    ) as raised:
        export(Branches(), EXAMPLE, tmp_path / "model.xml")
    assert "\n" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", [".xml", ".bin"])
@pytest.mark.parametrize("how", [*BROKEN, None])
def test_a_model_that_cannot_be_opened_is_one_clear_line(
    exported: Path, tmp_path: Path, how: str | None, suffix: str
) -> None:
    path = tmp_path / "broken.xml"
    for each in (".xml", ".bin"):
        content = exported.with_suffix(each).read_bytes()
        if each != suffix:
            path.with_suffix(each).write_bytes(content)
        elif how is not None:
            path.with_suffix(each).write_bytes(broken(content, how))
    with pytest.raises(ValueError, match=re.escape(str(path.with_suffix("")))) as raised:
        openvino_runtime.load(path)
    assert "\n" not in str(raised.value)


def test_inputs_of_another_shape_are_refused_by_name(exported: Path, images: np.ndarray) -> None:
    predict = openvino_runtime.load(exported)
    for inputs in (images[:2, :, :4], images[0]):
        with pytest.raises(ValueError, match=re.escape(str(exported))) as raised:
            predict(inputs)
        assert "\n" not in str(raised.value)
