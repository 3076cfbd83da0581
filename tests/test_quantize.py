"""What is promised of fake 8 bits: grids and gradients by the papers' formulas, on the right values; scales that are
those of the data, then trained; taps and copies as of any module."""

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn import functional

from edgestill.errors import UserError
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
from edgestill.recipes.resnet_cifar import resnet8
from edgestill.taps import record
from quantized_net import LAYERS_OF_NET, made, trained
from small_net import Net, digits, fitted


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.from_numpy(digits())


@pytest.fixture(scope="module")
def net() -> Net:
    return fitted()


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
    part = WeightQuantizer(torch.tensor(values, dtype=torch.float32))
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
        assert float(part.scale.detach()) == pytest.approx((high - low) / 255, rel=1e-4)
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
        assert float(part(torch.zeros(1, 1))) == 0
        part.log_scale.add_(0.1)  # as training would
        assert float(part(torch.zeros(1, 1))) == 0
        part.log_scale.sub_(0.1)
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


def test_training_lowers_the_loss_and_moves_weights_and_scales_alike_with_the_same_seed(
    net: Net, images: Tensor
) -> None:
    start = made(net, images).state_dict()
    module, losses = trained(net, images, 0)
    assert np.mean(losses[-3:]) < 0.7 * np.mean(losses[:3])
    moved = {key for key, value in module.state_dict().items() if not torch.equal(value, start[key])}
    assert moved <= {key for key, _ in module.named_parameters()}
    for layer in LAYERS_OF_NET:
        assert {f"{layer}.weight", f"{layer}.bias", f"{layer}.weight_quantizer.log_scale"} <= moved
    assert all(parameter.grad.abs().sum() > 0 for parameter in module.parameters())
    assert sum("activation_quantizers" in key for key in moved) >= 3
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
