"""What is promised of an ExecuTorch file: delegated to XNNPACK, in integers too, any batch, refusals in one line."""

import copy
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from edgestill.errors import UserError
from edgestill.runtimes.measure import RuntimeProcess
from small_net import BROKEN, Branches, IntegerNet, Median, Net, answers, broken, digits, fitted

pytest.importorskip("executorch", reason="needs ExecuTorch: pip install 'edgestill[executorch]'")

from edgestill.export.executorch import describe, export, write_empty
from edgestill.export.program import UnsupportedOperator
from edgestill.runtimes import executorch_runtime

EXAMPLE = torch.zeros(1, 1, 8, 8)


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
def exported(net: Net, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exported") / "model.pte"
    export(net, EXAMPLE, path, largest_batch=64)
    return path


@pytest.fixture(scope="module")
def quantized(integer: IntegerNet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("quantized") / "int8.pte"
    export(integer, EXAMPLE, path)
    return path


def test_any_batch_answers_as_the_model_also_above_the_largest(exported: Path, net: Net, images: np.ndarray) -> None:
    predict = executorch_runtime.load(exported)
    expected = answers(net, images[:150])
    for batch in (1, 7, 64, 150):
        np.testing.assert_allclose(predict(images[:batch]), expected[:batch], atol=1e-4)


def test_every_operator_is_delegated_and_described(exported: Path, quantized: Path) -> None:
    found = describe(exported)
    assert found == {
        "operators": {
            "xnnpack::StaticTranspose": 2,
            "xnnpack::DepthwiseConv2d": 1,  # of the one channel of the input
            "xnnpack::Conv2d": 1,
            "xnnpack::Add": 1,
            "xnnpack::GlobalAvgPooling2d": 1,
            "xnnpack::StaticReshape": 1,
            "xnnpack::FullyConnected": 1,
        },
        "inputs": [{"name": "input", "shape": ["batch", 1, 8, 8], "dtype": "float32"}],
        "outputs": [{"name": "logits", "shape": ["batch", 10], "dtype": "float32"}],
        "largest_batch": 64,
    }
    # The same operators in integers, between a step into them and one out of them.
    in_integers = {f"{name}.int8": count for name, count in found["operators"].items()}
    ends = {"xnnpack::Convert.int8": 1, "xnnpack::Convert": 1}
    assert describe(quantized) == found | {"operators": in_integers | ends}


def test_integers_are_small_and_answer_as_their_module(
    exported: Path, quantized: Path, integer: IntegerNet, images: np.ndarray
) -> None:
    assert quantized.stat().st_size < 0.4 * exported.stat().st_size
    expected = answers(integer, images[:1000])
    outputs = executorch_runtime.load(quantized)(images[:1000])
    assert (outputs.argmax(1) == expected.argmax(1)).mean() > 0.98
    step = integer.grids["logits"][0]
    assert np.abs(outputs - expected).max() < 4 * step
    assert np.abs(outputs / step - np.round(outputs / step)).max() < 1e-3


def test_integers_of_different_grids_can_be_concatenated(net: Net, images: np.ndarray, tmp_path: Path) -> None:
    class Joined(IntegerNet):
        def forward(self, x: Tensor) -> Tensor:
            (x,) = self.on_grid("input", x)
            stem = functional.conv2d(x, self.weight("stem"), self.stem_bias, padding=1).relu()
            x, kept = self.on_grid("stem", stem, readers=2)
            (x,) = self.on_grid("conv", functional.conv2d(x, self.weight("conv"), self.conv_bias, padding=1))
            (x,) = self.on_grid("joined", torch.cat([kept, x], 1))
            (x,) = self.on_grid("mean", x.mean((2, 3)))
            return x

    module = Joined(net, images[:300])
    export(module, EXAMPLE, tmp_path / "model.pte")
    outputs = executorch_runtime.load(tmp_path / "model.pte")(images[:64])
    assert np.abs(outputs - answers(module, images[:64])).max() < 3 * module.grids["mean"][0]


def test_one_file_with_nothing_of_the_exporting_machine(exported: Path, quantized: Path) -> None:
    for path in (exported, quantized):
        assert [file.name for file in path.parent.iterdir()] == [path.name]
        content = path.read_bytes()
        for trace in (b".py", b"stack_trace", b"site-packages", str(Path.cwd()).encode(), str(Path.home()).encode()):
            assert trace not in content
    assert exported.stat().st_size < 4 * sum(parameter.numel() for parameter in Net().parameters()) + 6000


def test_reshapes_and_poolings_of_a_batch_are_delegated_too(tmp_path: Path, images: np.ndarray) -> None:
    class Flattened(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.pool, self.linear = nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Linear(172, 10)

        def forward(self, x: Tensor) -> Tensor:
            maps = self.conv(x)
            pooled = self.pool(maps).view(x.size(0), -1)
            gaps = maps[:, :, ::2, ::3].flatten(1)
            return self.linear(torch.cat([pooled, gaps, maps.flatten(1)], 1))

    torch.manual_seed(0)
    module = Flattened().eval()
    export(module, EXAMPLE, tmp_path / "model.pte")
    found = describe(tmp_path / "model.pte")["operators"]
    assert found["xnnpack::StaticReshape"] == 2  # the flattened slice, with gaps in memory, stays outside
    assert found["xnnpack::GlobalAvgPooling2d"] == 1
    outputs = executorch_runtime.load(tmp_path / "model.pte")(images[:5])
    np.testing.assert_allclose(outputs, answers(module, images[:5]), atol=1e-5)


def test_export_leaves_the_module_as_it_was(tmp_path: Path) -> None:
    net = Net().to(memory_format=torch.channels_last).train()
    net.norm1.eval()
    before = copy.deepcopy(net)
    export(net, EXAMPLE, tmp_path / "model.pte", largest_batch=2)
    assert [part.training for part in net.modules()] == [part.training for part in before.modules()]
    assert net.conv.weight.stride() == before.conv.weight.stride()
    for key, value in before.state_dict().items():
        assert torch.equal(net.state_dict()[key], value), key


def test_an_empty_file_hands_its_input_on(tmp_path: Path, images: np.ndarray) -> None:
    write_empty(tmp_path / "empty.pte", EXAMPLE)
    np.testing.assert_array_equal(executorch_runtime.load(tmp_path / "empty.pte")(images[:3]), images[:3])


def test_an_operator_without_a_kernel_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedOperator, match=r"^ExecuTorch has no operator aten\.median\.dim") as raised:
        export(Median(), EXAMPLE, tmp_path / "model.pte")
    assert raised.value.operator == "aten.median.dim"
    assert "\n" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_branches_on_values_are_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"^Branches cannot be exported to ExecuTorch: .*branches on the values"
    ) as raised:
        export(Branches(), EXAMPLE, tmp_path / "model.pte")
    assert "\n" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("how", [*BROKEN, None])
def test_a_file_that_cannot_be_opened_is_one_clear_line(exported: Path, tmp_path: Path, how: str | None) -> None:
    path = tmp_path / "broken.pte"
    if how is not None:
        path.write_bytes(broken(exported.read_bytes(), how))
    with pytest.raises(ValueError, match=re.escape(str(path))) as raised:
        executorch_runtime.load(path)
    assert "\n" not in str(raised.value)


def test_inputs_of_another_shape_are_refused_by_name(exported: Path, images: np.ndarray) -> None:
    predict = executorch_runtime.load(exported)
    for inputs in (images[:2, :, :4], images[0]):
        with pytest.raises(ValueError, match=re.escape(str(exported))):
            predict(inputs)


def test_a_file_whose_threads_are_gone_refuses_instead_of_ending_the_process(
    exported: Path, quantized: Path, images: np.ndarray
) -> None:
    first, second = executorch_runtime.load(exported, threads=2), executorch_runtime.load(quantized, threads=1)
    assert second(images[:2]).shape == (2, 10)
    with pytest.raises(ValueError, match=r"model\.pte was opened with 2 threads"):
        first(images[:2])


def test_the_runtime_file_runs_alone(exported: Path, net: Net, images: np.ndarray, tmp_path: Path) -> None:
    alone = tmp_path / "alone.py"
    alone.write_bytes(Path(executorch_runtime.__file__).read_bytes())
    np.save(tmp_path / "in.npy", images[:70])
    with RuntimeProcess(exported, alone, threads=2, torch=True) as process:
        process.ask(predict=str(tmp_path / "in.npy"), output=str(tmp_path / "out.npy"), batch=64)
        assert process.runtime == executorch_runtime.RUNTIME
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), answers(net, images[:70]), atol=1e-4)
