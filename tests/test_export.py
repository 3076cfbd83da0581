"""What is promised of an exported file: alone, small, the same answers, and honest when it is not the same model."""

import copy
import re
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

from edgestill.errors import UserError
from edgestill.export.onnx import export, quantize_dynamic
from edgestill.export.verify import Parity, artifact_outputs, module_outputs, opened, outputs, parity
from edgestill.quantize.fake import calibrate, fake_quantized
from edgestill.quantize.integer import integer
from edgestill.runtimes import onnx_runtime

RUNTIME = Path(onnx_runtime.__file__)


def verify(
    path: Path, module: nn.Module, rows: np.ndarray, *, optimize: bool = True, batches: tuple[int, ...] = (1, 64)
) -> Parity:
    expected = module_outputs(module, rows)
    with opened(path, RUNTIME, 1, optimize, torch=False) as answer:
        return parity(expected, outputs(answer, rows, batches), path)


class Residual(nn.Module):
    """A convolution net with batch norms, a skip connection and an in-place ReLU, for [B, 1, 8, 8]."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.stem, self.norm1 = nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv, self.norm2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.act, self.linear = nn.ReLU(inplace=True), nn.Linear(width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.act(self.norm1(self.stem(x)))
        x = self.act(x + self.norm2(self.conv(x)))
        return self.linear(x.mean((2, 3)))


def fitted(images: np.ndarray, labels: np.ndarray, seed: int) -> Residual:
    torch.manual_seed(seed)
    model = Residual().to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(40):
        rows = torch.randint(len(images), (128,))
        loss = F.cross_entropy(model(torch.from_numpy(images)[rows]), torch.from_numpy(labels)[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return (load_digits().images[:, None] / 16).astype(np.float32)


@pytest.fixture(scope="module")
def model(images: np.ndarray) -> Residual:
    return fitted(images, load_digits().target, seed=0)


@pytest.fixture(scope="module")
def exported(model: Residual, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exported") / "model.onnx"
    export(model, torch.zeros(1, 1, 8, 8), path)
    return path


def quantize(model: nn.Module, calibration: np.ndarray, path: Path) -> None:
    graph = fake_quantized(model, torch.zeros(1, 1, 8, 8))
    calibrate(graph, torch.from_numpy(calibration).split(50))
    export(integer(graph, signed=False), torch.zeros(1, 1, 8, 8), path)


@pytest.fixture(scope="module")
def quantized(model: Residual, images: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("quantized") / "int8.onnx"
    quantize(model, images[:300], path)
    return path


def operators(path: Path) -> list[str]:
    return [node.op_type for node in onnx.load(path).graph.node]


def test_any_batch_size_answers_as_the_model(exported: Path, model: Residual, images: np.ndarray) -> None:
    predict = onnx_runtime.load(exported)
    with torch.no_grad():
        expected = copy.deepcopy(model).eval()(torch.from_numpy(images[:64])).numpy()
    for batch in (1, 7, 64):
        np.testing.assert_allclose(predict(images[:batch]), expected[:batch], atol=1e-4)


def test_one_valid_file_with_named_ends_and_nothing_of_the_exporting_machine(exported: Path, quantized: Path) -> None:
    for path in (exported, quantized):
        assert [file.name for file in path.parent.iterdir()] == [path.name]
        onnx.checker.check_model(onnx.load(path), full_check=True)
        graph = onnx.load(path).graph
        ends = [
            (value.name, [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim])
            for value in (*graph.input, *graph.output)
        ]
        assert ends == [("input", ["batch", 1, 8, 8]), ("logits", ["batch", 10])]
        content = path.read_bytes()
        for trace in (b"pkg.torch", b"stack_trace", b".py", b"quant.pre_process", str(Path.cwd()).encode()):
            assert trace not in content
    size = sum(parameter.numel() * 4 for parameter in Residual().parameters())
    assert exported.stat().st_size < size + 2000


def test_batch_norms_are_folded_into_convolutions(exported: Path) -> None:
    assert "BatchNormalization" not in operators(exported)
    assert operators(exported).count("Conv") == 2


def test_export_leaves_the_module_as_it_was(images: np.ndarray, tmp_path: Path) -> None:
    model = Residual().to(memory_format=torch.channels_last).train()
    model.norm1.eval()
    before = copy.deepcopy(model)
    export(model, torch.from_numpy(images[:3]), tmp_path / "model.onnx")
    verify(tmp_path / "model.onnx", model, images[:3])
    assert [part.training for part in model.modules()] == [part.training for part in before.modules()]
    assert model.stem.weight.stride() == before.stem.weight.stride()
    for key, value in before.state_dict().items():
        assert torch.equal(model.state_dict()[key], value), key


def test_a_failed_export_leaves_no_file(tmp_path: Path) -> None:
    class Unexportable(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * float(x.sum().item() if x.sum() > 0 else 2)

    with pytest.raises(Exception):  # noqa: B017 - the exporter's own, whichever it is
        export(Unexportable(), torch.zeros(1, 4), tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_verify_finds_the_same_answers(exported: Path, model: Residual, images: np.ndarray) -> None:
    found = verify(exported, model, images[:1000])
    assert (found.samples, found.agreement) == (1000, 1.0)
    assert found.max_abs_error < 1e-4
    assert 0 <= found.divergence + 1e-12 < 1e-6


def test_verify_catches_a_file_of_another_model(exported: Path, images: np.ndarray) -> None:
    torch.manual_seed(5)
    found = verify(exported, Residual(), images[:200])
    assert found.agreement < 0.5
    assert found.max_abs_error > 0.5
    assert found.divergence > 0.1


def test_verify_refuses_a_file_with_other_classes(exported: Path, model: Residual, images: np.ndarray) -> None:
    other = copy.deepcopy(model)
    other.linear = nn.Linear(24, 7)
    with pytest.raises(UserError, match=r"\(8, 10\).*\(8, 7\)"):
        verify(exported, other, images[:8])


def test_verify_compares_every_batch_size(model: Residual, images: np.ndarray, tmp_path: Path) -> None:
    class SingleIsOff(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = copy.deepcopy(model)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x) + torch.ones(x.shape[0]).mean() / x.shape[0]

    export(SingleIsOff(), torch.zeros(1, 1, 8, 8), tmp_path / "model.onnx")
    assert verify(tmp_path / "model.onnx", model, images[:64], batches=(64,)).max_abs_error < 0.02
    assert verify(tmp_path / "model.onnx", model, images[:64], batches=(1, 64)).max_abs_error > 0.9


def test_int8_is_smaller_and_agrees(exported: Path, quantized: Path, model: Residual, images: np.ndarray) -> None:
    assert quantized.stat().st_size < 0.6 * exported.stat().st_size
    found = verify(quantized, model, images[:1000], optimize=False)
    assert found.agreement > 0.97
    assert 1e-4 < found.max_abs_error < 2


def test_int8_stores_integers_with_a_scale_for_each_channel(quantized: Path) -> None:
    constants = {constant.name: constant for constant in onnx.load(quantized).graph.initializer}
    assert constants["conv.weight_levels"].data_type == onnx.TensorProto.INT8
    scales = [constant for constant in constants.values() if constant.data_type == onnx.TensorProto.FLOAT]
    assert [24] in [list(scale.dims) for scale in scales if "bias" not in scale.name]
    assert not [name for name, constant in constants.items() if constant.data_type == 1 and len(constant.dims) > 1]


def test_onnxruntime_runs_every_convolution_and_the_head_in_int8(quantized: Path, tmp_path: Path) -> None:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(quantized, options, providers=["CPUExecutionProvider"])
    found = operators(tmp_path / "optimised.onnx")
    assert (found.count("QLinearConv"), found.count("QGemm"), found.count("Conv")) == (2, 1, 0)


@pytest.mark.parametrize(("rows", "reason"), [(slice(0), "0 came"), (slice(1), "1 came"), (slice(3), "finite")])
def test_int8_refuses_calibration_it_cannot_use(
    model: Residual, images: np.ndarray, tmp_path: Path, rows: slice, reason: str
) -> None:
    calibration = images[rows] * (np.nan if reason == "finite" else 1)
    with pytest.raises(UserError, match=reason):
        quantize(model, calibration, tmp_path / "int8.onnx")
    assert list(tmp_path.iterdir()) == []


def test_dynamic_int8_needs_no_calibration_and_agrees(
    exported: Path, model: Residual, images: np.ndarray, tmp_path: Path
) -> None:
    quantize_dynamic(exported, tmp_path / "int8.onnx")
    assert (tmp_path / "int8.onnx").stat().st_size < 0.6 * exported.stat().st_size
    assert "ConvInteger" in operators(tmp_path / "int8.onnx")
    assert verify(tmp_path / "int8.onnx", model, images[:1000]).agreement > 0.97


@pytest.mark.parametrize("content", ["half", "text", "nothing", None])
def test_a_file_that_cannot_be_opened_is_one_clear_line(exported: Path, tmp_path: Path, content: str | None) -> None:
    broken = tmp_path / "broken.onnx"
    whole = exported.read_bytes()
    if content is not None:
        broken.write_bytes({"half": whole[: len(whole) // 2], "text": b"not a model", "nothing": b""}[content])
    for refusal, open_it in (
        (ValueError, onnx_runtime.load),
        (UserError, lambda path: artifact_outputs(path, [[1.0]], runtime=RUNTIME)),
    ):
        with pytest.raises(refusal, match=re.escape(str(broken))) as raised:
            open_it(broken)
        assert "\n" not in str(raised.value)


def test_inputs_of_another_shape_are_refused_by_name(exported: Path) -> None:
    with pytest.raises(UserError, match=re.escape(str(exported))):
        artifact_outputs(exported, np.zeros((2, 3, 8, 8), np.float32), runtime=RUNTIME)


def test_a_runtime_that_ends_by_itself_is_one_clear_line(exported: Path, images: np.ndarray, tmp_path: Path) -> None:
    runtime = tmp_path / "ends.py"
    runtime.write_text("import os\n\nRUNTIME = 'ends'\n\ndef load(*_, **__):\n    return lambda inputs: os._exit(9)\n")
    with pytest.raises(UserError, match=r"model\.onnx ended with exit code 9") as raised:
        artifact_outputs(exported, images[:8], runtime=runtime)
    assert "\n" not in str(raised.value)


def test_an_error_of_ones_own_while_a_file_is_open_stays_what_it_is(exported: Path) -> None:
    with pytest.raises(RuntimeError, match="mine"), opened(exported, RUNTIME, 1, True, False):
        raise RuntimeError("mine")
