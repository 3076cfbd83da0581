"""Taps record what a place in a model puts out, let the gradient through, and leave nothing behind."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

import edgestill
from edgestill.errors import UserError
from edgestill.functions import load_function
from edgestill.taps import record, stages

RECIPES = Path(edgestill.__file__).parent / "recipes"


class InPlace(nn.Module):
    """A linear layer `layer`, and behind it an operation that overwrites its output."""

    def __init__(self, operation: str) -> None:
        super().__init__()
        self.operation, self.layer, self.relu = operation, nn.Linear(3, 4), nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.layer(x)
        if self.operation == "nn.ReLU":
            return self.relu(x)
        if self.operation == "relu_":
            return functional.relu_(x)
        return x.add_(100.0)


def hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def resnet(name: str) -> nn.Module:
    return load_function(f"{RECIPES}/resnet_cifar.py:{name}")()


@pytest.mark.parametrize("operation", ["nn.ReLU", "relu_", "add_"])
def test_a_tap_in_front_of_an_in_place_operation_records_what_it_saw(operation):
    torch.manual_seed(0)
    model, inputs = InPlace(operation), torch.randn(16, 3)
    expected = inputs @ model.layer.weight.T + model.layer.bias
    with record(model, ["layer"]) as taps:
        output = model(inputs)
    torch.testing.assert_close(taps["layer"], expected)
    assert (taps["layer"] < 0).any()
    assert not torch.equal(taps["layer"], output)


@pytest.mark.parametrize("operation", ["nn.ReLU", "relu_", "add_"])
def test_the_gradient_flows_through_a_tap_and_past_it(operation):
    torch.manual_seed(0)
    model, inputs = InPlace(operation), torch.randn(16, 3)
    with record(model, ["layer"]) as taps:
        output = model(inputs)
    (taps["layer"].sum() + output.sum()).backward()
    passed = torch.ones(16, 4) if operation == "add_" else (output > 0).float()
    torch.testing.assert_close(model.layer.weight.grad, (1 + passed).T @ inputs)


def test_recording_does_not_change_the_output():
    torch.manual_seed(0)
    model, inputs = resnet("resnet8").eval(), torch.randn(2, 3, 32, 32)
    plain = model(inputs)
    with record(model, ["layer1", "layer2.0.conv1", "linear"]) as taps:
        assert torch.equal(model(inputs), plain)
    assert torch.equal(taps["linear"], plain)
    assert taps["layer2.0.conv1"].shape == (2, 32, 16, 16)
    assert set(taps) == {"layer1", "layer2.0.conv1", "linear"}


def test_each_forward_fills_the_taps_anew():
    model = nn.Sequential(nn.Linear(2, 2))
    with record(model, ["0"]) as taps:
        assert taps == {}
        first = model(torch.zeros(1, 2))
        assert torch.equal(taps["0"], first)
        second = model(torch.ones(1, 2))
        assert torch.equal(taps["0"], second)
    model(torch.full((1, 2), 7.0))
    assert torch.equal(taps["0"], second)


def test_no_hook_stays_in_the_model():
    model = InPlace("relu_")
    with record(model, ["layer", "relu"]):
        assert hooks(model) == 2
    assert hooks(model) == 0
    with pytest.raises(ZeroDivisionError), record(model, ["layer"]):
        raise ZeroDivisionError
    assert hooks(model) == 0
    with pytest.raises(UserError), record(model, ["layer", "no such"]):
        pass
    assert hooks(model) == 0


def test_a_path_the_model_does_not_have_is_refused_with_the_closest_ones():
    model = resnet("resnet8")
    with (
        pytest.raises(UserError, match=r"no tap 'layer3\.1' in ResNet; did you mean .*'layer3\.0'"),
        record(model, ["layer3.1"]),
    ):
        pass
    for path in ("", "qqqq"):
        with pytest.raises(UserError, match=f"^no tap '{path}' in ResNet$"), record(model, [path]):
            pass


@pytest.mark.parametrize("kind", [tuple, list])
def test_of_several_outputs_the_first_is_recorded(kind):
    class Several(nn.Module):
        def forward(self, x):
            return kind([x + 1, None])

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.part = Several()

        def forward(self, x):
            return self.part(x)[0]

    model = Model()
    with record(model, ["part"]) as taps:
        model(torch.zeros(2))
    assert taps["part"].tolist() == [1, 1]


def test_an_output_that_is_no_tensor_is_refused():
    class Words(nn.Module):
        def forward(self, x):
            return {"logits": x}

    model = nn.Sequential(Words())
    with pytest.raises(UserError, match="tap '0' returns dict, not a tensor"), record(model, ["0"]):
        model(torch.zeros(1))
    assert hooks(model) == 0


@pytest.mark.parametrize("name", ["resnet8", "resnet56"])
def test_the_stages_of_a_residual_network_are_its_layers(name):
    assert stages(resnet(name), torch.zeros(1, 3, 32, 32)) == ["layer1", "layer2", "layer3"]


def test_a_pooled_map_of_one_pixel_is_no_stage():
    digits = load_function(f"{RECIPES}/digits.py:student")()
    assert stages(digits, torch.zeros(1, 1, 8, 8)) == ["stage1", "stage2", "stage3"]


def test_stages_leave_the_model_as_it_was():
    model = resnet("resnet8").train()
    model.bn1.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    stages(model, torch.ones(4, 3, 32, 32))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [name for name, module in model.named_modules() if not module.training] == ["bn1"]


def test_stages_take_the_children_that_put_out_maps_alone():
    class Encoder(nn.Module):
        def forward(self, x):
            return {"last": x}

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.odd, self.head = nn.Conv2d(3, 4, 2, stride=2), Encoder(), nn.Linear(4, 2)

        def forward(self, x):
            return self.head(self.odd(self.stem(x))["last"].mean((2, 3)))

    assert stages(Model(), torch.zeros(1, 3, 8, 8)) == ["stem"]
