"""What is promised of 8 bits: grids and gradients by the papers' formulas, on the right values; scales that are those
of the data, then trained, then exported; integers that answer as the fake ones do; the layers that lose most."""

import copy
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn import functional

from edgestill.errors import UserError
from edgestill.export.onnx import export
from edgestill.quantize.fake import (
    LAYER_PARTS,
    ActivationQuantizer,
    WeightQuantizer,
    calibrate,
    fake_quantized,
    mode,
    quantizers,
)
from edgestill.quantize.integer import integer
from edgestill.quantize.sensitivity import divergences, spared, to_spare
from edgestill.recipes.resnet_cifar import resnet8
from edgestill.runtimes import onnx_runtime
from edgestill.taps import record
from small_net import Net, digits, fitted

LAYERS_OF_NET = ["stem", "conv", "linear"]


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.from_numpy(digits())


@pytest.fixture(scope="module")
def net() -> Net:
    return fitted()


@pytest.fixture(scope="module")
def calibrated(net: Net, images: Tensor) -> GraphModule:
    return made(net, images)


def made(net: nn.Module, images: Tensor, **options: object) -> GraphModule:
    module = fake_quantized(net, images[:1], **options)
    calibrate(module, images[:300].split(50))
    return module


def quantized_values(module: GraphModule) -> list[str]:
    """What each quantizer of activations reads: the layer, the operator or the input."""
    weights = {node: str(node.args[1].args[0].target) for node in module.graph.nodes if reads_weight(node)}
    return [
        weights.get(value, value.name if value.op == "placeholder" else str(value.target).split(".")[1])
        for node in module.graph.nodes
        if node.op == "call_module" and "activation_quantizers" in node.target
        for value in [node.args[0]]
    ]


def reads_weight(node: torch.fx.Node) -> bool:
    return str(node.target).startswith(("aten.conv", "aten.linear")) and node.args[1].op == "call_module"


# --- the quantizers against numpy, in float64, from the formulas of arXiv 1902.08153 and 1903.08066


def lsq(
    values: np.ndarray, scale: np.ndarray, zero: int, lowest: int, highest: int, gradient: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The quantized values, and the gradients of the values and, value by value, of the scale."""
    level = np.round(values / scale) + zero
    inside = (lowest <= level) & (level <= highest)
    level = np.clip(level, lowest, highest)
    of_scale = np.where(inside, level - zero - values / scale, level - zero)
    return (level - zero) * scale, gradient * inside, gradient * of_scale


@pytest.mark.parametrize(("zero", "scale"), [(0, 0.013), (97, 0.011), (255, 0.02)])
def test_activations_and_their_gradients_are_those_of_the_formula(zero: int, scale: float) -> None:
    random = np.random.default_rng(zero)
    values, gradient = random.normal(size=(6, 5, 4)), random.normal(size=(6, 5, 4))
    part = ActivationQuantizer()
    part.mode = "quantize"
    with torch.no_grad():
        part.log_scale.fill_(np.log(scale))
        part.zero_point.fill_(zero)
    x = torch.tensor(values, dtype=torch.float32, requires_grad=True)
    found = part(x)
    found.backward(torch.tensor(gradient, dtype=torch.float32))

    expected, of_values, of_scale = lsq(values, np.float64(scale), zero, 0, 255, gradient)
    assert 0 < (of_values == 0).sum() < values.size  # some are clipped, some are not
    np.testing.assert_allclose(found.detach(), expected, atol=1e-6)
    np.testing.assert_allclose(x.grad, of_values, atol=1e-6)
    # 20 values a sample; and the logarithm's gradient is the scale's, times the scale.
    np.testing.assert_allclose(part.log_scale.grad, [of_scale.sum() / np.sqrt(20 * 255) * scale], rtol=1e-3)


@pytest.mark.parametrize("shape", [(5, 7), (4, 3, 2, 2), (4, 3, 5)])
def test_weights_and_their_gradients_are_those_of_the_formula_channel_by_channel(shape: tuple[int, ...]) -> None:
    random = np.random.default_rng(len(shape))
    spread = np.logspace(-2, 1, shape[0]).reshape(-1, *[1] * (len(shape) - 1))
    values, gradient = random.normal(size=shape) * spread, random.normal(size=shape)
    part = WeightQuantizer(torch.tensor(values))
    part.mode = "quantize"
    largest = np.abs(values).reshape(shape[0], -1).max(1)
    np.testing.assert_allclose(part.scale.detach(), largest / 127, rtol=1e-5)
    with torch.no_grad():
        part.log_scale.sub_(0.7)  # so that some are clipped
    scale = part.scale.detach().numpy().astype(np.float64).reshape(spread.shape)
    weight = torch.tensor(values, dtype=torch.float32, requires_grad=True)
    found = part(weight)
    found.backward(torch.tensor(gradient, dtype=torch.float32))

    expected, of_values, of_scale = lsq(values, scale, 0, -127, 127, gradient)
    assert 0 < (of_values == 0).sum() < values.size
    np.testing.assert_allclose(found.detach(), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(weight.grad, of_values, atol=1e-6)
    summed = of_scale.reshape(shape[0], -1).sum(1) / np.sqrt(values[0].size * 127) * scale.reshape(-1)
    np.testing.assert_allclose(part.log_scale.grad, summed, rtol=1e-3, atol=1e-6)


def test_a_quantizer_that_is_off_or_observes_changes_nothing() -> None:
    x = torch.randn(3, 4)
    for part in (ActivationQuantizer(), WeightQuantizer(x)):
        for part.mode in ("off", "observe"):
            assert part(x) is x


# --- which values


def test_the_quantized_values_of_a_residual_network_are_those_written_out_here() -> None:
    module = fake_quantized(resnet8(), torch.zeros(1, 3, 16, 16))
    assert quantized_values(module) == [
        "x",
        "relu",  # of conv1, which alone reads it
        "relu", "layer1.0.conv2.weight", "relu",  # of layer1.0.conv1; in front of the addition; of the addition
        "relu", "layer2.0.conv2.weight", "layer2.0.shortcut.weight", "relu",
        "relu", "layer3.0.conv2.weight", "layer3.0.shortcut.weight", "relu",
        "mean", "linear.weight",
    ]  # fmt: skip
    layers = ["conv1", *(f"layer{one}.0.{conv}" for one in (1, 2, 3) for conv in ("conv1", "conv2")), "linear"]
    layers += ["layer2.0.shortcut", "layer3.0.shortcut"]
    weights = [path for path, part in module.named_modules() if isinstance(part, WeightQuantizer)]
    assert sorted(weights) == sorted(f"{layer}.weight_quantizer" for layer in layers)
    assert module.meta[LAYER_PARTS].keys() == set(layers)


def test_what_pooling_and_reshaping_hand_on_has_the_grid_of_their_input() -> None:
    class Pooled(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            x = functional.pad(functional.max_pool2d(self[1](self[0](x)), 2), (1, 1, 1, 1))
            return self[2](x.flatten(1))

    net = Pooled(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU6(), nn.Linear(144, 3))
    module = fake_quantized(net, torch.zeros(1, 1, 8, 8))
    assert quantized_values(module) == ["x", "hardtanh", "max_pool2d", "pad", "flatten", "2.weight"]
    names = [node.target for node in module.graph.nodes if "activation_quantizers" in str(node.target)]
    assert [int(name.rpartition(".")[2]) for name in names] == [0, 1, 1, 1, 1, 2]


def test_a_pad_of_another_value_than_zero_has_a_grid_of_its_own() -> None:
    class Padded(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return self[1](functional.pad(self[0](x).sigmoid(), (1, 1), value=5.0))

    net = Padded(nn.Linear(4, 4), nn.Linear(6, 3))
    x = torch.randn(40, 4)
    module = made(net, x)
    assert quantized_values(module) == ["x", "0.weight", "pad", "1.weight"]
    torch.testing.assert_close(module(x), net(x), atol=0.05, rtol=0)


def test_additions_of_tokens_and_of_constants_stay_in_float() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.places, self.linear = nn.Conv2d(1, 4, 4, 4), nn.Parameter(torch.rand(4, 4)), nn.Linear(4, 4)
            self.shift = nn.Parameter(torch.rand(1, 4, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            x = (self.conv(x) + self.shift).flatten(2).transpose(1, 2) + self.places
            return (x + self.linear(x)).mean(1)

    module = fake_quantized(Tokens(), torch.zeros(1, 1, 8, 8))
    assert quantized_values(module) == ["x", "conv.weight", "add", "linear.weight"]


def test_every_call_of_a_layer_that_runs_twice_is_quantized() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 1, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(functional.relu(self.conv(x)))

    module = fake_quantized(Twice(), torch.zeros(1, 1, 8, 8))
    assert quantized_values(module) == ["x", "relu", "conv.weight"]
    assert module.meta[LAYER_PARTS] == {
        "conv": ("conv.weight_quantizer", *(f"activation_quantizers.{number}" for number in range(3)))
    }


@pytest.mark.parametrize(
    ("net", "path"),
    [
        (nn.Linear(8, 3), "weight"),
        (nn.Sequential(nn.MultiheadAttention(8, 2, batch_first=True)), "0.in_proj_weight"),
    ],
)
def test_a_weight_without_a_module_of_its_own_is_quantized_too(net: nn.Module, path: str) -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = net

        def forward(self, x: Tensor) -> Tensor:
            return self.inner[0](x, x, x, need_weights=False)[0] if isinstance(net, nn.Sequential) else self.inner(x)

    x = torch.randn(20, 5, 8)
    attention = isinstance(net, nn.Sequential)
    module = made(Attention() if attention else net, x)
    assert isinstance(module.get_submodule(f"{'inner.' if attention else ''}{path}_quantizer"), WeightQuantizer)
    torch.testing.assert_close(integer(module, signed=True)(x), module(x))


def test_a_first_layer_that_stays_in_float_has_neither_weights_nor_input_in_8_bits(net: Net, images: Tensor) -> None:
    module = made(net, images, keep_float=["stem"])
    assert quantized_values(module) == ["relu", "conv.weight", "relu", "mean", "linear.weight"]
    assert "stem" not in module.meta[LAYER_PARTS]
    with torch.no_grad(), record(net, ["norm1"]) as expected:
        net(images[:9])
    with torch.no_grad():
        first = next(node for node in module.graph.nodes if node.target == torch.ops.aten.conv2d.default)
        weight, bias = module.stem.weight, module.stem.bias
        assert [first.args[0].op, first.args[1].op] == ["placeholder", "get_attr"]
        torch.testing.assert_close(functional.conv2d(images[:9], weight, bias, padding=1), expected["norm1"])


@pytest.mark.parametrize(
    ("keep_float", "reason"),
    [
        (["stam"], "keep_float: the student has no layer 'stam'; did you mean 'stem'"),
        (LAYERS_OF_NET, "none that is not"),
    ],
)
def test_layers_to_spare_that_leave_nothing_or_are_not_there_are_refused(keep_float: list[str], reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        fake_quantized(Net(), torch.zeros(1, 1, 8, 8), keep_float=keep_float)


# --- calibration


def test_calibrated_scales_are_those_of_the_smallest_and_largest_value(net: Net, images: Tensor) -> None:
    module = fake_quantized(net, images[:1])
    calibrate(module, iter([images[:7] - 0.3, images[7:20] * 1.5]))
    rows = torch.cat([images[:7] - 0.3, images[7:20] * 1.5])
    with torch.no_grad(), record(net, ["norm1", "norm2", "linear"]) as taps:
        net(rows)
        stem = taps["norm1"].relu()
        added = (stem + taps["norm2"]).relu()
        values = [rows, stem, taps["norm2"], added, added.mean((2, 3)), taps["linear"]]
    found = [part for part in quantizers(module) if isinstance(part, ActivationQuantizer)]
    for part, value in zip(found, values, strict=True):
        low, high = min(0.0, float(value.min())), max(0.0, float(value.max()))
        assert float(part.scale) == pytest.approx((high - low) / 255, rel=1e-4)
        assert float(part.zero_point) == np.round(-low / ((high - low) / 255))
    assert {part.mode for part in quantizers(module)} == {"quantize"}


def test_calibrating_again_forgets_what_was_seen_before(net: Net, images: Tensor) -> None:
    again = made(net, images * 100)
    with pytest.raises(UserError, match="finite"):
        calibrate(again, [images * 100, images * torch.nan])
    calibrate(again, images[:300].split(50))
    for key, value in made(net, images).state_dict().items():
        torch.testing.assert_close(again.state_dict()[key], value, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("batches", "reason"),
    [
        ([], "0 came: calibrate on 200 to 500"),
        ([torch.zeros(1, 1, 8, 8)], "1 came"),
        ([torch.zeros(5, 1, 8, 8), torch.full((5, 1, 8, 8), torch.nan)], "must be finite"),
        ([torch.full((5, 1, 8, 8), torch.inf)], "must be finite"),
    ],
)
def test_samples_that_calibrate_nothing_are_refused_and_leave_the_module_off(
    net: Net, images: Tensor, batches: list[Tensor], reason: str
) -> None:
    module = fake_quantized(net, images[:1])
    with pytest.raises(UserError, match=reason):
        calibrate(module, batches)
    assert {part.mode for part in quantizers(module)} == {"off"}


@pytest.mark.parametrize(("low", "high"), [(-1.3, 0.7), (0.2, 3.0), (-4.0, -1.0), (0.0, 0.0)])
def test_zero_is_on_every_grid_and_the_ends_are_within_a_level(low: float, high: float) -> None:
    module = fake_quantized(nn.Linear(1, 1), torch.zeros(1, 1))
    calibrate(module, [torch.tensor([[low], [high]])])
    part = module.get_submodule("activation_quantizers.0")
    with torch.no_grad():
        for part.log_scale.data in (part.log_scale.data, part.log_scale.data + 0.1):  # trained, too
            assert float(part(torch.zeros(1, 1))) == 0
    ends = torch.tensor([[low], [high]])
    torch.testing.assert_close(part(ends), ends, rtol=0, atol=float(part.scale.detach()))


# --- as a module that trains


def test_taps_hand_on_what_their_modules_put_out_on_its_grid(net: Net, images: Tensor) -> None:
    paths = ["norm1", "norm2", "linear", "act"]
    module = made(net, images, taps=paths)
    with torch.no_grad():
        with record(net, paths) as expected, record(module, paths) as off, mode(module, "off"):
            torch.testing.assert_close(module(images[:9]), net(images[:9]), rtol=1e-4, atol=1e-4)
        with record(module, paths) as found:
            answers = module(images[:9])
    for path in paths:
        torch.testing.assert_close(off[path], expected[path], rtol=1e-4, atol=1e-4)
    assert not torch.equal(found["norm2"], off["norm2"])
    assert len(found["norm2"].unique()) <= 256
    torch.testing.assert_close(found["linear"], answers, rtol=0, atol=0)
    torch.testing.assert_close(answers, made(net, images)(images[:9]), rtol=0, atol=0)


def test_a_container_is_a_tap(images: Tensor) -> None:
    torch.manual_seed(0)
    net = resnet8(10, 1).eval()
    module = made(net, images, taps=["layer1", "layer2.0"])
    with torch.no_grad(), mode(module, "off"), record(net, ["layer1", "layer2.0"]) as expected:
        net(images[:4])
        with record(module, ["layer1", "layer2.0"]) as found:
            module(images[:4])
    for path in expected:
        torch.testing.assert_close(found[path], expected[path], rtol=1e-4, atol=1e-4)


def trained(net: Net, images: Tensor, seed: int) -> tuple[GraphModule, list[float]]:
    """A few steps after a float net on other answers than its own, so that there is something to learn."""
    torch.manual_seed(seed)
    module = made(net, images).train()
    targets = net(images).detach().roll(1, dims=1)
    optimizer = torch.optim.SGD(module.parameters(), 0.05, momentum=0.9)
    losses = []
    for _ in range(12):
        rows = torch.randint(len(images), (64,))
        loss = functional.cross_entropy(module(images[rows]), targets[rows].softmax(1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    return module, losses


def test_training_lowers_the_loss_and_moves_weights_and_scales_alike_with_the_same_seed(
    net: Net, images: Tensor
) -> None:
    start = made(net, images).state_dict()
    module, losses = trained(net, images, 0)
    assert np.mean(losses[-3:]) < 0.7 * np.mean(losses[:3])
    moved = {key for key, value in module.state_dict().items() if not torch.equal(value, start[key])}
    assert moved == {key for key, _ in module.named_parameters()}
    again = trained(net, images, 0)[0].state_dict()
    assert all(torch.equal(value, again[key]) for key, value in module.state_dict().items())
    assert not torch.equal(trained(net, images, 1)[0].state_dict()["stem.weight"], again["stem.weight"])


def test_with_the_quantizers_off_it_is_the_float_graph_and_a_copy_keeps_them_on(net: Net, images: Tensor) -> None:
    module = made(net, images)
    other = copy.deepcopy(module)
    with torch.no_grad():
        with mode(module, "off"):
            torch.testing.assert_close(module(images), net(images), rtol=1e-4, atol=1e-4)
            assert not torch.equal(other(images), module(images))
        torch.testing.assert_close(other(images), module(images), rtol=0, atol=0)
        assert not torch.allclose(module(images), net(images), atol=1e-3)


def test_a_training_is_saved_and_loaded_into_a_module_made_anew(net: Net, images: Tensor) -> None:
    module, _ = trained(net, images, 0)
    other = made(net, images)
    other.load_state_dict(module.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(other(images[:50]), module(images[:50]), rtol=0, atol=0)


# --- integers


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("case", ["calibrated", "trained", "stem in float", "taps"])
def test_integers_answer_as_the_fake_ones(net: Net, images: Tensor, case: str, signed: bool) -> None:
    module = {
        "calibrated": lambda: made(net, images),
        "trained": lambda: trained(net, images, 0)[0],
        "stem in float": lambda: made(net, images, keep_float=["stem"]),
        "taps": lambda: made(net, images, taps=["norm1", "linear"]),
    }[case]()
    before = copy.deepcopy(module.state_dict())
    real = integer(module, signed=signed)
    with torch.no_grad():
        level = float([*quantizers(module)][-1].scale) if case == "never" else 1e-4
        for rows in (images[:1], images[:300]):
            torch.testing.assert_close(real(rows), module(rows), rtol=0, atol=level)
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
    kept = {"stem"} if case == "stem in float" else set()
    assert {path for path, _ in real.named_parameters() if "weight" in path} == {f"{layer}.weight" for layer in kept}
    for layer in {*LAYERS_OF_NET} - kept:
        weight, levels = before[f"{layer}.weight"], real.get_buffer(f"{layer}.weight_levels")
        scale = before[f"{layer}.weight_quantizer.log_scale"].exp()
        assert levels.dtype == torch.int8
        torch.testing.assert_close(real.get_buffer(f"{layer}.weight_scale"), scale)
        wide = scale.reshape(-1, *[1] * (weight.dim() - 1))
        expected = (weight / wide).round().clamp(-127, 127)
        assert (levels - expected).abs().max() <= (0 if case != "trained" else 1)
    assert set(activation_scales(real)) == {
        pytest.approx(float(one.exp()), rel=1e-6) for path, one in before.items() if path.startswith("activation") and
        path.endswith("log_scale")
    }  # fmt: skip


def activation_scales(real: GraphModule) -> Iterator[float]:
    for node in real.graph.nodes:
        if "quantize_per_tensor" in str(node.target):
            yield node.args[1]


@pytest.mark.parametrize(("signed", "lowest"), [(True, -128), (False, 0)])
def test_all_256_levels_are_used(signed: bool, lowest: int) -> None:
    net = nn.Linear(1, 1, bias=False)
    nn.init.ones_(net.weight)
    module = fake_quantized(net, torch.zeros(1, 1))
    calibrate(module, [torch.tensor([[-1.0], [1.55]])])  # a scale of 0.01 and a zero point of 100
    levels = (torch.arange(-20, 276)[:, None] - 100) * 0.01
    real = integer(module, signed=signed)
    seen = []

    class Watch(torch.fx.Interpreter):
        def run_node(self, node: torch.fx.Node) -> object:
            found = super().run_node(node)
            if "quantized_decomposed.quantize_per_tensor" in str(node.target):
                seen.append(found)
            return found

    with torch.no_grad():
        answers = Watch(real).run(levels)
        torch.testing.assert_close(answers, module(levels), rtol=0, atol=1e-6)
    torch.testing.assert_close(answers, levels.clamp(-1, 1.55), rtol=0, atol=1e-5)
    assert seen[0].unique().tolist() == list(range(lowest, lowest + 256))


def test_onnxruntime_answers_as_the_fake_integers_and_fuses_them(
    net: Net, images: Tensor, calibrated: GraphModule, tmp_path: Path
) -> None:
    import onnx
    import onnxruntime

    path = tmp_path / "int8.onnx"
    export(integer(calibrated, signed=False), images[:1], path)
    predict = onnx_runtime.load(path, optimize=False)
    with torch.no_grad():
        expected = calibrated(images).numpy()
    found = np.concatenate([predict(rows) for rows in images.numpy().reshape(-1, 3, 1, 8, 8)])
    level = float(calibrated.get_submodule("activation_quantizers.5").scale.detach())
    error = np.abs(found - expected)
    assert error.max() < 2.5 * level  # A tie that rounds the other way moves what follows by a level.
    assert (error < level / 2).mean() > 0.99

    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    operators = [node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node]
    fused = ("QLinearConv", "QGemm", "QLinearAdd", "Conv", "Gemm", "Add")
    assert {name: operators.count(name) for name in fused} == dict(zip(fused, (2, 1, 1, 0, 0, 0), strict=True))


# --- which layers lose most


class Chain(nn.Sequential):
    """Four linear layers and a head; `spoiled` has one input whose values dwarf the others', and its weights undo it."""

    def __init__(self, spoiled: int) -> None:
        torch.manual_seed(0)
        super().__init__(*(part for _ in range(4) for part in (nn.Linear(16, 16), nn.Tanh())), nn.Linear(16, 4))
        with torch.no_grad():
            for place in (0, 2, 4, 6, 8):
                self[place].weight.mul_(2)
            self[spoiled].weight[:, 0] *= 100  # one weight of each row is all that the row's grid can tell apart
            self[spoiled].weight[:, 0] -= self[spoiled].weight[:, 0].mean()
            self.register_buffer("small", torch.ones(16))
            self.small[0] = 0.01
        self.spoiled = spoiled

    def forward(self, x: Tensor) -> Tensor:
        for place, part in enumerate(self):
            x = part(x * self.small if place == self.spoiled else x)
        return x


@pytest.fixture(scope="module")
def rows() -> Tensor:
    return torch.randn(400, 16, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("spoiled", [2, 6])
def test_the_layer_whose_weights_are_spoiled_loses_most(rows: Tensor, spoiled: int) -> None:
    module = made(Chain(spoiled), rows)
    with pytest.raises(RuntimeError), torch.no_grad():
        divergences(module, [rows[:5], rows[:5, :3]])
    assert {part.mode for part in quantizers(module)} == {"quantize"}
    losses = divergences(module, rows.split(100))
    assert list(losses) == ["0", "2", "4", "6", "8"]
    assert losses[str(spoiled)] > 5 * max(loss for layer, loss in losses.items() if layer != str(spoiled))
    assert {part.mode for part in quantizers(module)} == {"quantize"}


def test_a_layers_divergence_is_that_of_its_own_8_bits_alone(rows: Tensor) -> None:
    net = Chain(2)
    module = made(net, rows)
    only = made(net, rows, keep_float=["0", "4", "6", "8"])
    with torch.no_grad():
        expected, found = net(rows).double().log_softmax(1), only(rows).double().log_softmax(1)
    by_hand = float((expected.exp() * (expected - found)).sum(1).mean())
    assert divergences(module, rows.split(77))["2"] == pytest.approx(by_hand, rel=1e-4)
    tracked = []
    divergences(module, [rows], lambda items, what, total: tracked.append((list(items), what, total)) or items)
    assert tracked == [(["0", "2", "4", "6", "8"], "layers in 8 bits", 5)]


@pytest.mark.parametrize("layers", [["stem"], ["conv"], ["linear"], ["stem", "conv"]])
def test_layers_that_are_spared_are_those_of_a_module_made_without_them(
    net: Net, images: Tensor, calibrated: GraphModule, layers: list[str]
) -> None:
    other = made(net, images, keep_float=layers)
    with torch.no_grad():
        before = calibrated(images)
        with spared(calibrated, layers):
            torch.testing.assert_close(calibrated(images), other(images), rtol=0, atol=0)
        with pytest.raises(ZeroDivisionError), spared(calibrated, layers):
            raise ZeroDivisionError
        torch.testing.assert_close(calibrated(images), before, rtol=0, atol=0)


LOSSES = {"stem": 0.5, "conv": 0.1, "linear": 0.9, "more": 0.2, "last": 0.3}


def parts_of(layers: dict[str, float]) -> GraphModule:
    """A module with a quantizer of weights a layer, and nothing that computes."""
    module = GraphModule(nn.Module(), torch.fx.Graph())
    for layer in layers:
        module.add_module(layer, WeightQuantizer(torch.ones(1, 1)))
        module.get_submodule(layer).mode = "quantize"
    module.meta[LAYER_PARTS] = {layer: (layer,) for layer in layers}
    module.meta["edgestill_map_parts"] = ()
    return module


@pytest.mark.parametrize(
    ("qualities", "target", "expected", "tries"),
    [
        ([0.9], 0.9, [], 1),
        ([0.7, 0.8, 0.9], 0.8, ["linear"], 2),
        ([0.7, 0.75, 0.9], 0.8, ["linear", "stem"], 3),
        ([0.5, 0.7, 0.6], 0.8, ["linear"], 3),  # out of reach: what came nearest
        ([0.7, 0.7, 0.7], 0.8, [], 3),  # and the fewest of those
    ],
)
def test_the_fewest_layers_that_reach_the_target_are_spared(
    qualities: list[float], target: float, expected: list[str], tries: int
) -> None:
    module = parts_of(LOSSES)
    seen = []

    def quality(tried: nn.Module) -> float:
        seen.append({path for path, part in tried.named_modules() if path and part.mode == "off"})
        return qualities[len(seen) - 1]

    assert to_spare(module, LOSSES, quality, target) == expected
    assert seen == [set(), {"linear"}, {"linear", "stem"}][:tries]
    assert {part.mode for part in quantizers(module)} == {"quantize"}
