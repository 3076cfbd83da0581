"""Classifier distillation (SimKD): the joined student, what of it learns, and how it is saved, counted and exported."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

import edgestill
from edgestill.errors import UserError
from edgestill.export.onnx import export
from edgestill.losses import hint
from edgestill.models import ImageInput, Model, example, flops, forward, load_model, plain_logits, save_student
from edgestill.objective import Objective, Term
from edgestill.runtimes import onnx_runtime
from edgestill.schedule import Phase, Schedule, Settings
from edgestill.students.classifier import classifier_model, classifier_student, find_head, find_joint
from edgestill.taps import record, stages
from edgestill.tasks.images import Batch
from edgestill.teachers.online import OnlineTeacher
from edgestill.train import Options, train

RECIPES = Path(edgestill.__file__).parent / "recipes"
CLASSES = ("cat", "dog", "fox", "owl")
COLOUR = ImageInput(3, 32, (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
GREY = ImageInput(1, 8, (0.5,), (0.2,))


def make(spec: str, default: ImageInput = COLOUR, **options: object) -> Model:
    torch.manual_seed(0)
    prefix = "" if (":" in spec and ".py:" not in spec) or Path(spec).is_absolute() else f"{RECIPES}/"
    return load_model(prefix + spec, classes=len(CLASSES), default=default, **options)


def network(width: int, channels: int = 3, stride: int = 1, last: nn.Module | None = None) -> nn.Module:
    maps = (nn.Conv2d(channels, width, 3, stride, 1), nn.BatchNorm2d(width), nn.ReLU(inplace=True))
    tail = last or nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.5), nn.Linear(width, 4))
    return nn.Sequential(nn.Sequential(*maps), tail)


def shaken(module: nn.Module) -> nn.Module:
    """Weights and batch norms' statistics unlike any initial ones."""
    generator = torch.Generator().manual_seed(1)
    for name, value in module.state_dict().items():
        if value.is_floating_point():
            value.add_(0.1 * torch.rand(value.shape, generator=generator) * (5 if "var" in name else 1))
    return module


def images(expected: ImageInput, count: int = 3) -> Tensor:
    return torch.randn(example(expected, count).shape, generator=torch.Generator().manual_seed(2))


def answers(model: Model, inputs: Tensor) -> Tensor:
    with torch.no_grad():
        return forward(model.module.eval(), inputs)


@pytest.fixture(scope="module")
def hub(tmp_path_factory) -> str:
    """A folder with a residual network in the form of the Hugging Face hub."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    folder = tmp_path_factory.mktemp("hub") / "resnet"
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=len(CLASSES)
    )
    torch.manual_seed(0)
    transformers.ResNetForImageClassification(config).save_pretrained(folder)
    return f"hf:{folder}"


def from_spec(spec: str, request: pytest.FixtureRequest) -> Model:
    if spec.startswith("timm:"):
        pytest.importorskip("timm", reason="timm is not installed", exc_type=ImportError)
    return make(request.getfixturevalue("hub") if spec == "hub" else spec)


PAIRS = {  # student, teacher: where their last maps are, and the size of the projector's
    ("resnet_cifar.py:resnet8", "resnet_cifar.py:resnet20"): ("layer3", "layer3", 8),
    ("digits.py:student", "resnet_cifar.py:resnet8"): ("stage3", "layer3", 8),
    ("resnet_cifar.py:resnet8", "timm:resnet10t"): ("layer3", "global_pool.pool", 1),
    ("timm:mobilenetv2_035", "resnet_cifar.py:resnet8"): ("global_pool.pool", "layer3", 1),
    ("timm:mobilenetv3_small_050", "resnet_cifar.py:resnet8"): ("act2", "layer3", 1),
    ("hub", "resnet_cifar.py:resnet8"): ("resnet.encoder.stages.1", "layer3", 4),
    ("resnet_cifar.py:resnet8", "hub"): ("layer3", "resnet.encoder.stages.1", 4),
}


@pytest.mark.parametrize(("specs", "expected"), PAIRS.items(), ids=[" ".join(specs) for specs in PAIRS])
def test_the_teachers_classifier_sits_on_the_projected_maps_of_the_student(specs, expected, request, tmp_path):
    student, teacher = (from_spec(spec, request) for spec in specs)
    shaken(student.module), shaken(teacher.module)
    joined, joint = classifier_model(student, teacher)
    stage, teacher_stage, size = expected
    assert (joint.student_tap, joint.teacher_tap, joint.size) == (f"{stage}.1", teacher_stage, (size, size))

    inputs = images(COLOUR)
    with record(joined.module, [joint.student_tap]) as mine, record(teacher.module, [joint.teacher_tap]) as theirs:
        logits, taught = answers(joined, inputs), answers(teacher, inputs)
    maps, target = mine[joint.student_tap], theirs[joint.teacher_tap]
    assert maps.shape[1:] == (target.shape[1], size, size)
    head = teacher.module.get_submodule(joint.teacher.classifier)
    with torch.no_grad():
        torch.testing.assert_close(logits, head(maps.mean((2, 3))))
        # what the teacher's classifier makes of the teacher's own maps is what the teacher says
        torch.testing.assert_close(taught, head(target.mean((2, 3))), rtol=1e-4, atol=1e-4)

    save_student(joined, tmp_path / "student", CLASSES)
    again = load_model(str(tmp_path / "student"), classes=len(CLASSES), default=GREY)
    assert again.input == student.input
    assert torch.equal(answers(again, inputs), logits)


def test_the_student_that_comes_stays_as_it_is_and_nothing_is_hooked():
    student, teacher = network(4).train(), network(6).train()
    student[0][1].eval()
    before = {key: value.clone() for key, value in student.state_dict().items()}
    state = torch.get_rng_state()
    classifier_student(student, teacher, torch.zeros(2, 3, 8, 8), torch.zeros(2, 3, 8, 8))
    torch.set_rng_state(state)
    joined = classifier_student(student, teacher, torch.zeros(2, 3, 8, 8), torch.zeros(2, 3, 8, 8))
    assert student.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[key]) for key, value in student.state_dict().items())
    assert student.training
    assert joined.training
    assert not student[0][1].training
    assert {type(module).__module__.split(".")[0] for module in joined.modules()} == {"torch"}
    for module in (*student.modules(), *teacher.modules(), *joined.modules()):
        assert not module._forward_hooks


def test_a_baseline_of_the_same_architecture_takes_nothing_of_the_teachers():
    student, teacher = network(4), shaken(network(6))
    made = []
    for copy in (True, False):
        torch.manual_seed(5)
        probes = (torch.zeros(2, 3, 8, 8), torch.zeros(2, 3, 8, 8))
        made.append((classifier_student(student, teacher, *probes, copy=copy), torch.rand(1)))
    (joined, after), (baseline, baseline_after) = made
    assert torch.equal(after, baseline_after)  # the arms draw the same numbers
    assert joined.state_dict().keys() == baseline.state_dict().keys()
    differ = {k for k, value in joined.state_dict().items() if not torch.equal(value, baseline.state_dict()[k])}
    assert differ == {"1.3.weight", "1.3.bias"}
    assert [name for name, parameter in joined.named_parameters() if not parameter.requires_grad] == [*sorted(differ)][
        ::-1
    ]
    assert all(parameter.requires_grad for parameter in baseline.parameters())
    assert torch.equal(joined[1][3].weight, teacher[1][3].weight)
    assert joined[1][3].weight.data_ptr() != teacher[1][3].weight.data_ptr()


def test_the_last_maps_are_those_of_the_last_stage():
    for spec in ("resnet_cifar.py:resnet8", "resnet_cifar.py:resnet56", "digits.py:teacher"):
        module = make(spec).module
        assert (
            find_head(module, torch.zeros(1, 3, 32, 32), "teacher").stage
            == stages(module, torch.zeros(1, 3, 32, 32))[-1]
        )


# --- the authors' figures


def waves(*shape: int, step: float) -> Tensor:
    return torch.sin(step * torch.arange(1, torch.Size(shape).numel() + 1, dtype=torch.float64)).float().reshape(shape)


class Given(nn.Module):
    """Puts out its input as the last maps."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.maps, self.linear = nn.Conv2d(channels, channels, 1, bias=False), nn.Linear(channels, 3)
        nn.init.dirac_(self.maps.weight)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.linear(self.maps(inputs).mean((2, 3)))


@pytest.mark.parametrize(
    ("side", "loss", "first_logits"),
    [
        (6, 9.836625, [8.313429, 17.649553, 14.333167]),
        (4, 9.808826, [8.602409, 17.722132, 14.136677]),
        (2, 9.965258, [8.583789, 17.027802, 13.270509]),
    ],
)
def test_loss_and_logits_are_those_of_the_authors(side, loss, first_logits):
    """Figures of the class SimKD (DefangChen/SimKD, models/util.py) with the MSELoss of train_student.py, on the same
    maps and weights, in training mode; the student's maps larger than the teacher's, as large, smaller."""
    maps, target = waves(2, 5, side, side, step=0.23), waves(2, 8, 4, 4, step=0.19)
    student, teacher = Given(5), Given(8)
    for value in teacher.linear.state_dict().values():
        value.copy_(waves(*value.shape, step=0.11))
    joint = find_joint(student, teacher, maps, target)
    joined = classifier_student(student, teacher, maps, target).train()
    for value in joined.get_submodule(joint.student_tap).state_dict().values():
        if value.is_floating_point():
            value.copy_(waves(*value.shape, step=0.37) + (1.5 if value.dim() == 1 else 0))
    with torch.no_grad(), record(joined, [joint.student_tap]) as taps:
        logits = joined(maps)
    target = functional.adaptive_avg_pool2d(target, joint.size)
    assert float(hint(taps[joint.student_tap], target)) == pytest.approx(loss, rel=1e-4)
    assert logits[0].tolist() == pytest.approx(first_logits, rel=1e-4)


# --- what cannot be joined


class Unseen(nn.Module):
    """An activation that no module puts out; of an image of zeros nothing would be seen of it."""

    def __init__(self) -> None:
        super().__init__()
        self.maps, self.linear = nn.Conv2d(3, 8, 3, bias=False), nn.Linear(8, 4)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.linear(self.maps(inputs).relu().mean((2, 3)))


class Shared(nn.Module):
    """One ReLU for all places."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.relu, self.linear = (
            nn.Conv2d(3, 8, 3),
            nn.Conv2d(8, 8, 3),
            nn.ReLU(),
            nn.Linear(8, 4),
        )

    def forward(self, inputs: Tensor) -> Tensor:
        return self.linear(self.relu(self.conv2(self.relu(self.conv1(inputs)))).mean((2, 3)))


def pooled(*behind: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), *behind)


UNFIT = {
    "convolution": (
        nn.Sequential(nn.Conv2d(8, 4, 1), pooled()),
        "no torch.nn.Linear puts out the logits of Sequential",
    ),
    "norm behind": (pooled(nn.Linear(8, 4), nn.Softmax(-1)), "no torch.nn.Linear puts out the logits of Sequential"),
    "norm before": (pooled(nn.LayerNorm(8), nn.Linear(8, 4)), "'1.3' of Sequential takes 8 features, and no maps have"),
    "hidden layer": (
        pooled(nn.Linear(8, 9), nn.Linear(9, 4)),
        "'1.3' of Sequential takes 9 features, and no maps have",
    ),
    "flat": (
        nn.Sequential(nn.Flatten(), nn.Linear(512, 4)),
        "'1.1' of Sequential takes 512 features, and no maps have",
    ),
    "largest": (nn.Sequential(nn.AdaptiveMaxPool2d(1), nn.Flatten(1), nn.Linear(8, 4)), None),
}


@pytest.mark.parametrize("role", ["student", "teacher"])
@pytest.mark.parametrize("kind", [*UNFIT, "unseen", "shared", "vit"])
def test_a_model_whose_classifier_takes_something_else_is_refused(kind, role):
    said: str | None = "takes 8 features, and no maps have this mean"
    if kind == "unseen":
        unfit: nn.Module = Unseen()
    elif kind == "shared":
        unfit = Shared()
    elif kind == "vit":
        transformers = pytest.importorskip("transformers", reason="transformers is not installed")
        sizes = {"image_size": 8, "patch_size": 4, "hidden_size": 16, "intermediate_size": 16, "num_labels": 4}
        config = transformers.ViTConfig(num_hidden_layers=1, num_attention_heads=2, **sizes)
        unfit, said = transformers.ViTForImageClassification(config), "'classifier' of ViT.* takes 16 features"
    else:
        last, said = UNFIT[kind]
        unfit = network(8, last=last)
    pair = (unfit, network(6)) if role == "student" else (network(6), unfit)
    probe = torch.zeros(2, 3, 8, 8)
    if said is None:  # the largest value: what the pooling puts out are maps of one pixel, and their mean fits
        classifier_student(*pair, probe, probe)
        return
    with pytest.raises(UserError, match=f"^classifier: teacher needs a {role} whose .*{said}") as refused:
        classifier_student(*pair, probe, probe)
    assert "\n" not in str(refused.value)


def test_sizes_that_do_not_go_together_are_refused():
    probe = torch.zeros(2, 3, 8, 8)
    with pytest.raises(UserError, match="the student has 3, the teacher 4"):
        classifier_student(network(5, last=pooled(nn.Linear(5, 3))), network(6), probe, probe)
    for reduction in (0, 7):
        with pytest.raises(UserError, match=rf"reduction must lie in 1…6, .*; {reduction} came"):
            classifier_student(network(5), network(6), probe, probe, reduction=reduction)


def test_a_student_that_runs_on_nothing_but_its_own_parts_is_refused():
    class Narrow(nn.Module):
        """Asks its own layers for the width."""

        def __init__(self) -> None:
            super().__init__()
            self.body, self.linear = nn.Conv2d(3, 8, 3), nn.Linear(8, 4)

        def forward(self, inputs: Tensor) -> Tensor:
            return self.linear(self.body(inputs).mean((2, 3)).reshape(-1, self.body.out_channels))

    probe = torch.zeros(2, 3, 8, 8)
    with pytest.raises(UserError, match="Narrow does not run with a projector behind 'body' and another classifier"):
        classifier_student(Narrow(), network(6), probe, probe)


# --- training


def batch_at(step: int, settings: Settings) -> Batch:
    generator = torch.Generator().manual_seed(step)
    pixels = torch.randint(0, 256, (16, 8, 8, 1), generator=generator, dtype=torch.uint8)
    return Batch(pixels, torch.randint(0, 4, (16,), generator=generator), np.arange(16), np.zeros(16, np.int64))


def trained(
    folder: Path, *, stop_at: int | None = None, resume: bool = False, **options: object
) -> tuple[Model, Model]:
    torch.manual_seed(0)
    teacher = Model(shaken(network(8, channels=1)), "test", {}, GREY)
    student = Model(network(4, channels=1), "test", {}, GREY)
    probe = example(GREY, 2)
    joint = find_joint(student.module, teacher.module, probe, probe)
    student.module = classifier_student(student.module, teacher.module, probe, probe)

    def track(items, _, total):
        for step in items:
            if step == stop_at:
                raise KeyboardInterrupt
            yield step

    phases = (
        Phase("distill", 0.5, alpha=1.0, temperature=1.0, lr=0.05, terms=("hint",)),
        Phase("finetune", 0.5, alpha=0.0, temperature=1.0, lr=0.05),  # cross-entropy alone
    )
    train(
        student,
        schedule=Schedule(phases, 8),
        batch_at=batch_at,
        objective=Objective(alpha=1.0, terms={"hint": Term(hint, joint.student_tap, joint.teacher_tap)}),
        teacher=OnlineTeacher(teacher, torch.device("cpu"), torch.float32),
        validate=lambda module: 0.5,
        options=Options(**{"validate_every": 2, "log_every": 4, "weight_decay": 0.1} | options),
        folder=folder,
        log=lambda line: None,
        track=track,
        resume=resume,
    )
    return student, teacher


@pytest.mark.parametrize(
    "options", [{"optimizer": "sgd"}, {"optimizer": "adamw"}, {"ema": 0.9}, {"clip": 0.1}, {"on_nonfinite": "skip"}]
)
def test_the_classifier_keeps_the_teachers_bits_while_all_else_learns(tmp_path, options):
    student, teacher = trained(tmp_path, **options)
    torch.manual_seed(0)
    network(8, channels=1)  # the teacher's draws come first
    fresh = classifier_student(network(4, channels=1), teacher.module, example(GREY, 2), example(GREY, 2))
    kept = {n for n, p in student.module.named_parameters() if torch.equal(p, fresh.get_parameter(n))}
    assert kept == {"1.3.weight", "1.3.bias"}
    assert torch.equal(student.module[1][3].weight, teacher.module[1][3].weight)
    assert torch.equal(student.module[1][3].bias, teacher.module[1][3].bias)


@pytest.mark.parametrize("options", [{}, {"optimizer": "adamw", "ema": 0.9}])
def test_an_interrupted_training_ends_with_the_same_bits(tmp_path, options):
    whole, _ = trained(tmp_path / "whole", **options)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "parts", stop_at=5, **options)
    resumed, _ = trained(tmp_path / "parts", resume=True, **options)
    expected = whole.module.state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in resumed.module.state_dict().items())


# --- saved, counted, exported


def test_a_saved_student_loads_without_edgestill_and_without_its_teacher(tmp_path):
    student, teacher = make("resnet_cifar.py:resnet8"), make("digits.py:teacher")
    joined, _ = classifier_model(student, teacher)
    shaken(joined.module)
    save_student(joined, tmp_path / "student", CLASSES)
    files = sorted(path.name for path in (tmp_path / "student").iterdir())
    assert files == ["edgestill.json", "model.py", "model.safetensors"]
    inputs = images(COLOUR)
    np.save(tmp_path / "inputs.npy", inputs.numpy())
    script = (
        "import json, sys\n"
        "sys.modules['edgestill'] = None\n"
        "import numpy, torch\n"
        "from safetensors.torch import load_file\n"
        "import model\n"
        "torch.set_num_threads(1)\n"
        "about = json.load(open('edgestill.json'))\n"
        "student = getattr(model, about['model'].split(':')[1])(**about['options'])\n"
        "weights = load_file('model.safetensors')\n"
        "assert list(student.state_dict()) == sorted(weights, key=list(student.state_dict()).index)\n"
        "student.load_state_dict(weights)\n"
        "with torch.no_grad():\n"
        "    rows = student.eval()(torch.from_numpy(numpy.load('../inputs.npy')))\n"
        "numpy.save('../rows.npy', rows.numpy())\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path / "student", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(np.load(tmp_path / "rows.npy"), answers(joined, inputs).numpy())


def test_a_saved_student_has_the_keys_of_the_same_layers_built_plainly(tmp_path):
    joined, _ = classifier_model(make("digits.py:student"), make("resnet_cifar.py:resnet8"))
    save_student(joined, tmp_path, CLASSES)

    def block(inputs: int, outputs: int, kernel: int) -> list[nn.Module]:
        conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
        return [conv, nn.BatchNorm2d(outputs), nn.ReLU()]

    plain = make("digits.py:student").module
    plain.stage3 = nn.Sequential(plain.stage3, nn.Sequential(*block(32, 32, 1), *block(32, 32, 3), *block(32, 64, 1)))
    plain.linear = nn.Linear(64, 4)
    saved = load_file(tmp_path / "model.safetensors")
    assert {key: value.shape for key, value in saved.items()} == {k: v.shape for k, v in plain.state_dict().items()}


def test_a_saved_student_can_be_joined_again_and_saved_again(tmp_path):
    first, _ = classifier_model(make("digits.py:student"), make("resnet_cifar.py:resnet8"))
    save_student(first, tmp_path / "first", CLASSES)
    again = make(str(tmp_path / "first"))
    save_student(again, tmp_path / "again", CLASSES)
    second, joint = classifier_model(again, make("digits.py:teacher"))
    in_memory, _ = classifier_model(first, make("digits.py:teacher"))
    in_memory.module.load_state_dict(second.module.state_dict())
    inputs = images(COLOUR)
    for number, model in enumerate((second, in_memory)):
        save_student(model, tmp_path / f"second{number}", CLASSES)
        loaded = make(str(tmp_path / f"second{number}"))
        assert torch.equal(answers(loaded, inputs), answers(second, inputs))
    assert torch.equal(answers(make(str(tmp_path / "again")), inputs), answers(first, inputs))
    assert joint.student_tap == "stage3.1"


def test_projector_and_classifier_are_counted():
    student, teacher = make("digits.py:student"), make("resnet_cifar.py:resnet8")
    joined, _ = classifier_model(student, teacher, reduction=4)
    weights = 32 * 16 + 16 * 16 * 9 + 16 * 64
    norms = 2 * (16 + 16 + 64)
    assert joined.parameters - student.parameters == weights + norms + (64 - 32) * 4
    assert flops(joined) - flops(student) == 2 * weights * 8 * 8 + 2 * (64 - 32) * 4


@pytest.mark.parametrize("kind", ["as large", "larger", "larger by half", "hub"])
def test_the_exported_file_answers_as_the_module(kind, tmp_path, request):
    student = make("resnet_cifar.py:resnet8")
    if kind == "hub":
        student = make(request.getfixturevalue("hub"))
    elif kind != "as large":
        student.input = ImageInput(3, {"larger": 64, "larger by half": 48}[kind], (0.5,), (0.2,))
    joined, joint = classifier_model(student, make("digits.py:teacher"))
    assert joint.size == ((4, 4) if kind == "hub" else (8, 8))
    shaken(joined.module)
    export(plain_logits(joined), example(joined.input, 1), tmp_path / "student.onnx")
    inputs = images(joined.input)
    rows = onnx_runtime.load(tmp_path / "student.onnx", threads=1)(inputs.numpy())
    np.testing.assert_allclose(rows, answers(joined, inputs).numpy(), rtol=1e-4, atol=1e-4)
