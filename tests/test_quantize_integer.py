"""What is promised of real 8 bits and of the layers that lose most: integers that answer as the fake ones do, with the
trained scales; the worst layers found, and the fewest spared."""

import copy
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from edgestill.export.onnx import export
from edgestill.quantize.fake import (
    LAYER_PARTS,
    WeightQuantizer,
    calibrate,
    fake_quantized,
    quantizers,
)
from edgestill.quantize.integer import integer
from edgestill.quantize.sensitivity import divergences, spared, to_spare
from edgestill.runtimes import onnx_runtime
from quantized_net import LAYERS_OF_NET, made, trained
from small_net import Net, digits, fitted


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.from_numpy(digits())


@pytest.fixture(scope="module")
def net() -> Net:
    return fitted()


@pytest.fixture(scope="module")
def calibrated(net: Net, images: Tensor) -> GraphModule:
    return made(net, images)


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
        for rows in (images[:1], images[:300]):
            torch.testing.assert_close(real(rows), module(rows), rtol=0, atol=1e-4)
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
    trained_scales = sorted(
        float(one.exp()) for path, one in before.items() if path.startswith("activation") and path.endswith("log_scale")
    )
    np.testing.assert_allclose(sorted(set(activation_scales(real))), trained_scales, rtol=1e-6)


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
    """Four linear layers and a head; the weights of one, `spoiled`, make up for one input that is small."""

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
