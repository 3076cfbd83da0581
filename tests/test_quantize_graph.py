"""What is promised of a captured graph: the module's own answers, its parameters at their paths, its taps, and a
refusal in one line where there is no such graph."""

import copy
import logging
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from edgestill.errors import UserError
from edgestill.quantize.graph import capture, tapped
from edgestill.recipes.resnet_cifar import resnet8, resnet20
from edgestill.taps import record

aten = torch.ops.aten


class MobileBlock(nn.Module):
    """An inverted residual with ReLU6 and a depthwise convolution, functional padding, pooling and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.expand = nn.Sequential(nn.Conv2d(3, 12, 1, bias=False), nn.BatchNorm2d(12), nn.ReLU6(inplace=True))
        self.depthwise = nn.Sequential(
            nn.Conv2d(12, 12, 3, padding=1, groups=12, bias=False), nn.BatchNorm2d(12), nn.ReLU6(inplace=True)
        )
        self.project = nn.Sequential(nn.Conv2d(12, 3, 1, bias=False), nn.BatchNorm2d(3))
        self.drop, self.linear = nn.Dropout(0.5), nn.Linear(75, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.project(self.depthwise(self.expand(x)))
        x = functional.max_pool2d(functional.pad(x, (0, 1, 0, 1)), 2)
        return self.linear(self.drop(x.flatten(1)))


class PreActivation(nn.Module):
    """Batch norm, ReLU, convolution: the first norm reads the input, the second an addition."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(3), nn.Conv2d(3, 3, 3, padding=1)
        self.norm2, self.linear = nn.BatchNorm2d(3), nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.conv1(functional.relu(self.norm1(x)))
        return self.linear(functional.relu(self.norm2(x)).mean((2, 3)))


class Transformer(nn.Module):
    """Patches as tokens, a class token, fused queries, keys and values, and a module of torch's own."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.first = nn.Conv2d(3, 16, 4, 4), nn.Parameter(torch.randn(1, 1, 16))
        self.places = nn.Parameter(torch.randn(1, 5, 16))
        self.norm, self.qkv, self.out = nn.LayerNorm(16), nn.Linear(16, 48), nn.Linear(16, 16)
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.head = nn.Linear(16, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.first.expand(x.shape[0], -1, -1), x], 1) + self.places
        batch, tokens, width = x.shape
        parts = self.qkv(self.norm(x)).reshape(batch, tokens, 3, 2, width // 2).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(*parts.unbind(0))
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, tokens, width))
        return self.head(self.layer(x)[:, 0])


class ReadTwice(nn.Module):
    """A convolution whose output a batch norm reads, and an addition."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return (self.norm(x) + x).mean((2, 3))


class SharedWeight(nn.Module):
    """Two convolutions of one weight, each with a batch norm of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(3, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3)
        self.conv2, self.norm2 = nn.Conv2d(3, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3)
        self.conv2.weight = self.conv1.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.norm2(self.conv2(functional.relu(self.norm1(self.conv1(x))))).mean((2, 3))


class SharedBias(nn.Module):
    """A linear layer with a batch norm, whose bias another layer has too."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.second = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4)
        self.second.bias = self.first.bias

    def forward(self, x: Tensor) -> Tensor:
        return self.second(functional.relu(self.norm(self.first(x))))


class CalledTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.block = nn.Conv2d(3, 3, 3, padding=1), nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(inplace=True))

    def forward(self, x: Tensor) -> Tensor:
        return self.block(self.conv(self.block(self.conv(x)))).mean((2, 3))


class InPlace(nn.Module):
    """In-place operators whose input is read again under its first name, and one on a view of what nobody reads."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.scale = nn.Linear(8, 8), nn.Parameter(torch.rand(8))

    def forward(self, x: Tensor) -> Tensor:
        x = self.linear(x)
        y = x.relu_()
        x += 1
        x.mul_(self.scale)
        return functional.hardtanh((x + y).view(-1, 2, 4), -1, 1, inplace=True).flatten(1)


class OwnWeight(nn.Module):
    """A linear layer without a module, and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(5, 8))
        self.register_buffer("gain", torch.rand(5))

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.w) * self.gain


def sequence() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(2, 6, 3), nn.BatchNorm1d(6), nn.ReLU(inplace=True), nn.MaxPool1d(2),
        nn.Conv1d(6, 4, 3, padding="same"), nn.BatchNorm1d(4, affine=False),
        nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(4, 3),
    )  # fmt: skip


def perceptron() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(12, 16), nn.BatchNorm1d(16), nn.ReLU(inplace=True), nn.Dropout(0.5), nn.Linear(16, 3)
    )


def grouped() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, padding_mode="reflect"), nn.GroupNorm(2, 8), nn.SiLU(inplace=True),
        nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3),
    )  # fmt: skip


def batch_statistics() -> nn.Module:
    """A batch norm that has no running statistics and takes those of the batch even in evaluation."""
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False), nn.Flatten())


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    # The net, the shape of a sample, and how many batch norms are left of it.
    "resnet8": (resnet8, (3, 16, 16), 0),
    "option A shortcuts": (resnet20, (3, 16, 16), 0),
    "mobile": (MobileBlock, (3, 9, 9), 0),
    "pre-activation": (PreActivation, (3, 6, 6), 2),
    "transformer": (Transformer, (3, 8, 8), 0),
    "read twice": (ReadTwice, (3, 6, 6), 1),
    "shared weight": (SharedWeight, (3, 6, 6), 2),
    "shared bias": (SharedBias, (4,), 1),
    "called twice": (CalledTwice, (3, 6, 6), 0),
    "in place": (InPlace, (8,), 0),
    "own weight": (OwnWeight, (8,), 0),
    "sequence": (sequence, (2, 16), 0),
    "perceptron": (perceptron, (3, 4), 0),
    "group norm": (grouped, (3, 8, 8), 0),
    "statistics of the batch": (batch_statistics, (3, 6, 6), 1),
    "one layer": (lambda: nn.Linear(8, 3), (8,), 0),
}


def used(make: Callable[[], nn.Module]) -> nn.Module:
    """A net in evaluation mode whose batch norms have seen data."""
    torch.manual_seed(1)
    net = make()
    for part in net.modules():
        if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
            if part.affine:
                nn.init.uniform_(part.weight, 0.5, 1.5)
                nn.init.normal_(part.bias)
            if part.track_running_stats:
                part.running_mean.normal_()
                part.running_var.uniform_(0.5, 2)
    return net.eval()


def images(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def operators(module: torch.fx.GraphModule) -> list[object]:
    return [node.target for node in module.graph.nodes if node.op == "call_function"]


@pytest.mark.parametrize("name", NETS)
def test_a_graph_answers_as_its_module_for_any_batch(name: str) -> None:
    make, shape, norms = NETS[name]
    net, rows = used(make), images(7, *shape)
    graph = capture(net, rows)
    for batch in (1, 2, 7):
        with torch.no_grad():
            torch.testing.assert_close(graph(rows[:batch]), net(rows[:batch].clone()), rtol=1e-5, atol=2e-5)
    assert operators(graph).count(aten.batch_norm.default) == norms
    changing = [one for one in operators(graph) if getattr(one, "_schema", None) and one._schema.is_mutable]
    assert changing == []


def test_a_training_module_on_channels_last_is_captured_as_it_evaluates_and_stays_as_it_was() -> None:
    net = used(lambda: resnet8(4)).train().to(memory_format=torch.channels_last)
    net.bn1.eval()
    net.layer2.requires_grad_(False)
    before = copy.deepcopy(net)
    graph = capture(net, images(2, 3, 16, 16))
    assert [part.training for part in net.modules()] == [part.training for part in before.modules()]
    assert all(torch.equal(value, before.state_dict()[key]) for key, value in net.state_dict().items())
    assert net.conv1.weight.stride() == before.conv1.weight.stride()
    assert not {id(one) for one in graph.parameters()} & {id(one) for one in net.parameters()}
    with torch.no_grad():
        torch.testing.assert_close(graph(images(2, 3, 16, 16)), before.eval()(images(2, 3, 16, 16)))


def test_parameters_keep_their_paths_and_whether_they_train_and_buffers_stay_buffers() -> None:
    net = used(ReadTwice)
    net.conv.weight.requires_grad_(False)
    graph = capture(net, images(1, 3, 6, 6))
    assert {path: one.requires_grad for path, one in graph.named_parameters()} == {
        "conv.weight": False, "conv.bias": True, "norm.weight": True, "norm.bias": True,
    }  # fmt: skip
    assert [path for path, _ in graph.named_buffers()] == ["norm.running_mean", "norm.running_var"]
    assert all(torch.equal(value, net.state_dict()[path]) for path, value in graph.state_dict().items())


def test_a_folded_batch_norm_leaves_a_weight_and_a_bias_that_train_as_the_weight_did() -> None:
    net = used(lambda: nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 3)))
    net[0].weight.requires_grad_(False)
    graph = capture(net, images(1, 3, 8, 8))
    assert {path: one.requires_grad for path, one in graph.named_parameters()} == {
        "0.weight": False, "0.bias": False, "2.weight": True, "2.bias": True,
    }  # fmt: skip
    factor = net[1].weight / torch.sqrt(net[1].running_var + net[1].eps)
    torch.testing.assert_close(graph.get_parameter("0.weight"), net[0].weight * factor[:, None, None, None])
    torch.testing.assert_close(graph.get_parameter("0.bias"), net[1].bias - net[1].running_mean * factor)


def test_a_weight_of_two_layers_stays_one() -> None:
    graph = capture(used(SharedWeight), images(1, 3, 6, 6))
    assert sorted(path for path, _ in graph.named_parameters() if "conv" in path) == ["conv1.weight"]
    graph(images(2, 3, 6, 6)).sum().backward()
    assert graph.get_parameter("conv1.weight").grad is not None


def test_a_prefix_is_taken_off_all_paths() -> None:
    class Around(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = used(MobileBlock)

        def forward(self, x: Tensor) -> Tensor:
            return self.module(x)

    graph = tapped(capture(Around(), images(1, 3, 9, 9), "module."), ["expand"])
    assert {path.partition(".")[0] for path, _ in graph.named_parameters()} == {
        "expand", "depthwise", "project", "linear",
    }  # fmt: skip
    with record(graph, ["expand"]) as taps, torch.no_grad():
        graph(images(2, 3, 9, 9))
    torch.testing.assert_close(taps["expand"], used(MobileBlock).expand(images(2, 3, 9, 9)))


def test_a_graph_is_copied_saved_and_switched_like_any_module() -> None:
    graph = tapped(capture(used(MobileBlock), images(1, 3, 9, 9)), ["expand"])
    rows = images(3, 3, 9, 9)
    expected = graph(rows)
    other = copy.deepcopy(graph)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    torch.testing.assert_close(graph(rows), expected, rtol=0, atol=0)
    assert not torch.equal(other(rows), expected)
    other.load_state_dict(graph.state_dict())
    torch.testing.assert_close(other(rows), expected, rtol=0, atol=0)
    torch.testing.assert_close(graph.train()(rows), expected, rtol=0, atol=0)
    assert graph.training
    graph.eval().to(memory_format=torch.channels_last)
    torch.testing.assert_close(graph(rows.to(memory_format=torch.channels_last)), expected)


@pytest.mark.parametrize(
    ("name", "paths"),
    [
        ("resnet8", ["bn1", "layer1", "layer1.0", "layer2.0.bn2", "layer2.0.shortcut", "linear"]),
        ("mobile", ["expand", "expand.1", "expand.2", "depthwise", "project.1", "linear"]),
        ("pre-activation", ["norm1", "conv1", "norm2"]),
        ("transformer", ["patches", "norm", "layer", "layer.self_attn", "layer.linear1", "head"]),
        ("called twice", ["conv", "block", "block.0"]),
        ("perceptron", ["0", "2", "3", "4"]),
        ("read twice", ["conv", "norm"]),
    ],
)
def test_taps_record_what_the_modules_put_out(name: str, paths: list[str]) -> None:
    make, shape, _ = NETS[name]
    net, rows = used(make), images(3, *shape)
    graph = tapped(capture(net, rows), paths)
    with torch.no_grad(), record(net, paths) as expected, record(graph, paths) as found:
        torch.testing.assert_close(graph(rows), net(rows), rtol=1e-5, atol=2e-5)
    assert found.keys() == set(paths)
    for path in paths:
        torch.testing.assert_close(found[path], expected[path], rtol=1e-5, atol=2e-5)


def test_a_graph_without_taps_has_the_parameters_of_one_with_them() -> None:
    plain = capture(used(MobileBlock), images(1, 3, 9, 9))
    with_taps = tapped(capture(used(MobileBlock), images(1, 3, 9, 9)), ["expand", "expand.2"])
    assert plain.state_dict().keys() == with_taps.state_dict().keys()


@pytest.mark.parametrize(
    ("name", "path", "reason"),
    [
        ("mobile", "expand.0", "no tap 'expand.0'.*tap the batch norm"),
        ("mobile", "depthwize", "no tap 'depthwize'.*did you mean 'depthwise"),
    ],
)
def test_a_tap_that_the_graph_does_not_compute_is_refused(name: str, path: str, reason: str) -> None:
    make, shape, _ = NETS[name]
    with pytest.raises(UserError, match=reason) as raised:
        tapped(capture(used(make), images(1, *shape)), [path])
    assert "\n" not in str(raised.value)


def test_a_module_of_several_outputs_has_no_tap() -> None:
    class Pair(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x + 1, x * 2

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pair, self.linear = Pair(), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            one, other = self.pair(x)
            return self.linear(one) + other

    with pytest.raises(UserError, match=r"no tap 'pair'.*one tensor"):
        tapped(capture(Net(), torch.zeros(1, 4)), ["pair"])


class Branches(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.sum() > 0 else x


class PartInPlace(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        x = x * 2
        x[:, 0] = 0
        return x + 1


class ViewInPlace(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        x = x * 2
        x.view(-1, 2, 2).relu_()
        return x + 1


@pytest.mark.parametrize(
    ("net", "reason"),
    [
        (Branches(), "Branches has no fixed graph of operators: .*; a forward pass without branches"),
        (PartInPlace(), "changes no part of a tensor in place, aten.fill_.* in the student"),
        (ViewInPlace(), "changes no part of a tensor in place, aten.relu_.* in the student"),
        (nn.Sequential(nn.Linear(4, 4), ViewInPlace()), "in place, aten.relu_.* in 1 does"),
    ],
)
def test_a_module_without_such_a_graph_is_one_clear_line(
    net: nn.Module, reason: str, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(UserError, match=reason) as raised:
        capture(net, torch.zeros(1, 4))
    assert "\n" not in str(raised.value)
    assert capfd.readouterr() == ("", "")
    assert [entry for entry in caplog.records if entry.levelno >= logging.WARNING] == []
