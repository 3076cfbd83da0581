"""Models from their specs, their weights, and students that are saved and loaded again."""

import json
import pickle
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import edgestill
from edgestill.errors import UserError
from edgestill.models import (
    ImageInput,
    Model,
    example,
    flops,
    forward,
    load_model,
    load_weights,
    save_student,
    to_device,
)

RECIPES = Path(edgestill.__file__).parent / "recipes"
RESNET8 = f"{RECIPES}/resnet_cifar.py:resnet8"
COLOUR = ImageInput(3, 32, (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
GREY = ImageInput(1, 16, (0.5,), (0.2,))
CLASSES = ("cat", "dog", "fox", "owl")

NETS = """
from torch import nn

def sized(num_classes, in_channels, width=4):
    pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(nn.Conv2d(in_channels, width, 3), *pool, nn.Linear(width, num_classes))

def fixed():
    return sized(4, 3)

def anything(**options):
    return sized(4, 3, **options)

def tied(num_classes):
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(12, num_classes))
    model[2].weight = model[1].weight
    return model

def number():
    return 3
"""


@pytest.fixture
def nets(tmp_path) -> str:
    (tmp_path / "nets.py").write_text(NETS)
    return str(tmp_path / "nets.py")


def make(spec: str, default: ImageInput = COLOUR, **options) -> Model:
    return load_model(spec, classes=len(CLASSES), default=default, **options)


def answers(model: Model, inputs: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return forward(model.module.eval(), inputs)


def randomized(module: nn.Module, seed: int = 0) -> nn.Module:
    """Weights and batch norms' statistics unlike any initial ones."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in module.state_dict().items():
        if value.is_floating_point():
            value.copy_(torch.rand(value.shape, generator=generator) + (0.5 if "var" in name else -0.5))
    return module


# --- file.py:function


def test_a_function_gets_the_datas_classes_and_channels(nets):
    model = make(f"{nets}:sized", GREY)
    assert answers(model, example(model.input, 2)).shape == (2, 4)
    assert model.input == GREY
    assert model.module[0].in_channels == 1
    assert model.parameters == 4 * 9 + 4 + 4 * 4 + 4


def test_a_function_that_takes_neither_is_called_without(nets):
    assert answers(make(f"{nets}:fixed"), torch.zeros(1, 3, 8, 8)).shape == (1, 4)
    assert make(f"{nets}:anything").module[0].out_channels == 4


def test_options_reach_the_function_and_come_first(nets):
    model = make(f"{nets}:sized", GREY, options={"width": 7, "num_classes": 9, "in_channels": 3})
    assert model.module[0].out_channels == 7
    assert model.module[3].out_features == 9
    assert model.input.channels == 3


def test_mean_std_and_size_may_be_given(nets):
    model = make(f"{nets}:sized", mean=[0.1, 0.2, 0.3], std=[0.5], size=48)
    assert model.input == ImageInput(3, 48, (0.1, 0.2, 0.3), (0.5,))


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("sizd", {}, "has no function 'sizd'; did you mean 'sized'"),
        ("number", {}, "must return a torch.nn.Module; int came"),
        ("sized", {"options": {"depth": 2}}, "cannot be called with .*unexpected keyword argument 'depth'"),
        ("sized", {"mean": [0.5, 0.5]}, "input.mean of .*needs 3 numbers, one a channel; 2 came"),
        ("sized", {"std": [1.0, 1.0]}, "input.std of .*needs 3 numbers"),
        ("sized", {"options": {"in_channels": 1}}, r"takes images of 1 channel\(s\); the data has 3"),
        ("sized", {"weights": "nowhere.pt"}, "no weights file nowhere.pt"),
    ],
)
def test_a_function_that_does_not_fit_is_refused(nets, name, options, said):
    with pytest.raises(UserError, match=said) as refused:
        make(f"{nets}:{name}", **options)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("spec", ["resnet8", "nets.py", "no/such/folder", "timm", ""])
def test_a_spec_of_no_known_form_is_refused_with_the_forms(spec, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"a model is file\.py:function, timm:NAME, hf:FOLDER-OR-ID, or a folder with"):
        make(spec)


def test_the_resnets_have_the_sizes_they_are_known_for():
    """MLPerf Tiny's table; He et al. 2015, table 6."""
    sizes = {"resnet8": 77_946, "resnet20": 269_722, "resnet56": 853_018}
    for name, parameters in sizes.items():
        model = load_model(f"{RECIPES}/resnet_cifar.py:{name}", classes=10, default=COLOUR)
        assert model.parameters == parameters


def test_operations_are_counted_of_one_sample(nets):
    model = make(f"{nets}:sized", ImageInput(1, 10, (0.5,), (0.2,)))
    assert flops(model) == 2 * (8 * 8 * 4 * 9) + 2 * (4 * 4)


# --- saved students


@pytest.mark.parametrize("weights_only", [True, False])
def test_a_saved_student_answers_bit_by_bit_as_before(tmp_path, weights_only):
    model = make(RESNET8)
    to_device(randomized(model.module), torch.device("cpu"))
    save_student(model, tmp_path / "student", CLASSES)
    torch.manual_seed(1)
    if weights_only:
        again = make(RESNET8, weights=tmp_path / "student" / "model.safetensors")
    else:
        again = make(str(tmp_path / "student"), GREY)  # what was saved holds, not this data
        assert again.input == COLOUR
    to_device(again.module, torch.device("cpu"))
    inputs = torch.randn(4, 3, 32, 32).to(memory_format=torch.channels_last)
    assert torch.equal(answers(again, inputs), answers(model, inputs))


def test_a_saved_student_holds_no_more_than_a_plain_model(tmp_path):
    model = make(RESNET8)
    save_student(model, tmp_path / "student", CLASSES)
    assert sorted(path.name for path in (tmp_path / "student").iterdir()) == [
        "edgestill.json",
        "model.py",
        "model.safetensors",
    ]
    assert load_file(tmp_path / "student" / "model.safetensors").keys() == model.module.state_dict().keys()
    about = json.loads((tmp_path / "student" / "edgestill.json").read_text())
    assert about["model"] == "model.py:resnet8"
    assert about["classes"] == list(CLASSES)
    assert about["input"] == {"channels": 3, "size": 32, "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.25, 0.3]}


def test_a_saved_student_loads_without_edgestill(tmp_path):
    model = make(RESNET8)
    randomized(model.module)
    save_student(model, tmp_path / "student", CLASSES)
    inputs = torch.randn(2, 3, 32, 32)
    np.save(tmp_path / "inputs.npy", inputs.numpy())
    script = (
        "import json, sys\n"
        "sys.modules['edgestill'] = None\n"
        "import numpy, torch\n"
        "from safetensors.torch import load_file\n"
        "import model\n"
        "torch.set_num_threads(1)\n"
        "about = json.load(open('edgestill.json'))\n"
        "make = getattr(model, about['model'].split(':')[1])\n"
        "student = make(num_classes=len(about['classes']), in_channels=about['input']['channels'])\n"
        "student.load_state_dict(load_file('model.safetensors'))\n"
        "with torch.no_grad():\n"
        "    rows = student.eval()(torch.from_numpy(numpy.load('../inputs.npy')))\n"
        "numpy.save('../rows.npy', rows.numpy())\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path / "student", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(np.load(tmp_path / "rows.npy"), answers(model, inputs).numpy())


def test_a_saved_student_can_be_trained_on_and_saved_again(tmp_path):
    first = make(RESNET8)
    save_student(first, tmp_path / "first", CLASSES)
    second = make(str(tmp_path / "first"))
    randomized(second.module)
    save_student(second, tmp_path / "second", CLASSES)
    for path in (tmp_path / "first").iterdir():
        path.unlink()  # the second stands alone
    inputs = torch.randn(2, 3, 32, 32)
    assert torch.equal(answers(make(str(tmp_path / "second")), inputs), answers(second, inputs))


def test_a_student_with_tied_weights_can_be_saved(tmp_path, nets):
    model = make(f"{nets}:tied")
    save_student(model, tmp_path / "student", CLASSES)
    inputs = torch.randn(2, 3, 2, 2)
    assert torch.equal(answers(make(str(tmp_path / "student")), inputs), answers(model, inputs))


@pytest.mark.parametrize(
    "text", ["{", "{}", "[]", '{"model": "model.py:f", "options": {}, "classes": [], "input": {}}']
)
def test_a_student_folder_that_is_broken_is_refused(tmp_path, text):
    (tmp_path / "edgestill.json").write_text(text)
    with pytest.raises(UserError, match=r"edgestill\.json does not describe a student: "):
        make(str(tmp_path))


# --- weights


def linear() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def state(**changes: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """The weights of `linear()`, some of them changed, added or (None) left out."""
    made = dict(randomized(linear(), seed=7).state_dict())
    for name, value in changes.items():
        key = name.replace("_at_", ".")
        made.pop(key, None)
        if value is not None:
            made[key] = value
    return made


@pytest.mark.parametrize("ending", ["safetensors", "pt", "pth", "bin"])
@pytest.mark.parametrize("form", ["plain", "nested", "prefixed", "without counters"])
def test_weights_of_every_usual_form_are_loaded(tmp_path, ending, form):
    path, expected = tmp_path / f"weights.{ending}", state()
    saved = dict(expected)
    if form == "prefixed":
        saved = {f"module.{key}": value for key, value in saved.items()}
    if form == "without counters":
        del saved["1.num_batches_tracked"]
    if ending == "safetensors":
        save_file(saved, path)
    else:
        torch.save({"state_dict": saved, "epoch": 3} if form == "nested" else saved, path)
    module = linear()
    load_weights(module, path)
    assert all(torch.equal(value, expected[key]) for key, value in module.state_dict().items())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"0_at_weight": torch.zeros(4, 5)}, "'0.weight' has 4×5, the model needs 4×3"),
        ({"2_at_bias": torch.zeros(()), "2_at_weight": torch.zeros(3, 4)}, "'2.weight' has 3×4, the model needs 2×4"),
        ({"2_at_bias": torch.zeros(())}, "'2.bias' has a scalar, the model needs 2"),
        ({"0_at_bias": None, "2_at_bias": None}, "'0.bias' 4 is missing"),
        ({"3_at_weight": torch.zeros(2)}, "it has '3.weight', the model does not"),
        ({"module_at_0_at_weight": torch.zeros(4, 3)}, "it has 'module.0.weight', the model does not"),
    ],
)
@pytest.mark.parametrize("ending", ["safetensors", "pt"])
def test_weights_that_do_not_fit_are_refused_with_the_first_key(tmp_path, ending, changes, said):
    path, module = tmp_path / f"weights.{ending}", linear()
    (save_file if ending == "safetensors" else torch.save)(state(**changes), path)
    before = {key: value.clone() for key, value in module.state_dict().items()}
    with pytest.raises(UserError) as refused:
        load_weights(module, path)
    assert str(refused.value) == f"{path} does not fit Sequential: {said}"
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())


class Bomb:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("ending", ["pt", "pth", "bin", "safetensors"])
@pytest.mark.parametrize("form", ["zip", "legacy", "bare pickle"])
def test_a_pickle_with_code_is_refused_and_never_run(tmp_path, ending, form):
    path, mark = tmp_path / f"weights.{ending}", tmp_path / "was run"
    content = {"0.weight": torch.zeros(4, 3), "bomb": Bomb(mark)}
    if form == "bare pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(UserError, match=r"is not plain weights|is not a readable weights file") as refused:
        load_weights(linear(), path)
    assert "\n" not in str(refused.value)
    assert not mark.exists()
    with path.open("rb") as file:
        pickle.load(file) if form == "bare pickle" else torch.load(file, weights_only=False)
    assert mark.exists()  # it would have gone off


def test_torchscript_is_refused_without_the_advice_to_run_it(tmp_path):
    with warnings.catch_warnings():  # of its end
        warnings.simplefilter("ignore")
        torch.jit.script(linear()).save(str(tmp_path / "script.pt"))
    with pytest.raises(UserError, match="is not plain weights; only tensors are loaded, never code") as refused:
        load_weights(linear(), tmp_path / "script.pt")
    assert "weights_only" not in str(refused.value)


@pytest.mark.parametrize("ending", ["safetensors", "pt"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("key", ["2.weight", "1.running_var"])
def test_weights_that_are_not_finite_are_refused_with_tensor_and_count(tmp_path, ending, value, key):
    path, saved, module = tmp_path / f"weights.{ending}", state(), linear()
    saved[key].view(-1)[1:3] = value
    (save_file if ending == "safetensors" else torch.save)(saved, path)
    before = {key: value.clone() for key, value in module.state_dict().items()}
    if key == "1.running_var" and value == -float("inf"):
        load_weights(module, path)  # a buffer may hold it, as attention masks do
        return
    with pytest.raises(UserError) as refused:
        load_weights(module, path)
    said = f"{key!r} has 2 NaN or infinite among its {saved[key].numel()}"
    assert str(refused.value).startswith(f"{path}: weights need to be finite numbers; {said}")
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())


@pytest.mark.parametrize("ending", ["safetensors", "pt"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_another_precision_fill_a_float32_model(tmp_path, ending, dtype):
    path, saved, module = tmp_path / f"weights.{ending}", state(), linear()
    other = {key: value.to(dtype) if value.is_floating_point() else value for key, value in saved.items()}
    (save_file if ending == "safetensors" else torch.save)(other, path)
    load_weights(module, path)
    for key, value in module.state_dict().items():
        assert value.dtype == saved[key].dtype
        assert torch.equal(value, other[key].to(value.dtype))


@pytest.mark.parametrize("ending", ["pt", "safetensors"])
@pytest.mark.parametrize("keep", [0, 5, 0.5, 0.99])
def test_a_truncated_file_is_refused(tmp_path, ending, keep):
    path = tmp_path / f"weights.{ending}"
    (save_file if ending == "safetensors" else torch.save)(state(), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: keep if isinstance(keep, int) else int(keep * len(whole))])
    with pytest.raises(UserError, match=r"weights\.\w+ is not ") as refused:
        load_weights(linear(), path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("content", [[1, 2], {"0.weight": 3}, {0: torch.zeros(1)}, torch.zeros(3)])
def test_a_file_without_a_state_dict_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "weights.pt")
    with pytest.raises(UserError, match=r"weights\.pt holds no state dict"):
        load_weights(linear(), tmp_path / "weights.pt")


def test_a_folder_is_no_weights_file(tmp_path):
    with pytest.raises(UserError, match="no weights file"):
        load_weights(linear(), tmp_path)


# --- timm


@pytest.fixture(scope="module")
def timm():
    return pytest.importorskip("timm", reason="timm is not installed", exc_type=ImportError)


def test_a_timm_model_has_the_datas_classes_and_its_own_normalisation(timm, tmp_path):
    model = make("timm:resnet10t", GREY)
    assert model.input == ImageInput(3, 16, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    inputs = torch.randn(2, 3, 16, 16)
    assert answers(model, inputs).shape == (2, 4)
    save_student(model, tmp_path / "student", CLASSES)
    again = make(str(tmp_path / "student"))
    assert again.input == model.input
    assert torch.equal(answers(again, inputs), answers(model, inputs))
    # trained weights were trained at the model's own size
    trained = make("timm:resnet10t", weights=tmp_path / "student" / "model.safetensors")
    assert trained.input.size == timm.create_model("resnet10t").pretrained_cfg["input_size"][1]


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("resnet10", {}, "timm has no model 'resnet10'; did you mean .*'resnet10t'"),
        ("resnet10t", {"widht": 3}, "timm:resnet10t cannot be made with .*widht"),
    ],
)
def test_a_timm_model_that_cannot_be_made_is_refused(timm, name, options, said):
    with pytest.raises(UserError, match=said) as refused:
        make(f"timm:{name}", options=options)
    assert "\n" not in str(refused.value)


# --- Hugging Face


@pytest.fixture(scope="module")
def transformers():
    return pytest.importorskip("transformers", reason="transformers is not installed")


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="module")
def resnet_folder(transformers, tmp_path_factory) -> Path:
    """A residual network without a size of its own, of three channels, with a processor that says 24 pixels."""
    folder = tmp_path_factory.mktemp("hf") / "resnet"
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=len(CLASSES)
    )
    torch.manual_seed(0)
    randomized(transformers.ResNetForImageClassification(config)).save_pretrained(folder)
    processor = transformers.ViTImageProcessor(
        size={"height": 24, "width": 24}, image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6]
    )
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def vit_folder(transformers, tmp_path_factory) -> Path:
    """A vision transformer of 16 pixels without a processor."""
    folder = tmp_path_factory.mktemp("hf") / "vit"
    config = transformers.ViTConfig(
        image_size=16, patch_size=4, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        num_labels=len(CLASSES),
    )  # fmt: skip
    transformers.ViTForImageClassification(config).save_pretrained(folder)
    return folder


def test_a_hugging_face_folder_has_its_own_normalisation_and_size(resnet_folder):
    model = make(f"hf:{resnet_folder}")
    assert model.input == ImageInput(3, 24, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert answers(model, example(model.input, 2)).shape == (2, 4)
    given = make(f"hf:{resnet_folder}", mean=[0.5, 0.5, 0.5], size=32)
    assert given.input == ImageInput(3, 32, (0.5, 0.5, 0.5), (0.4, 0.5, 0.6))


def test_a_hugging_face_folder_without_a_processor_has_the_datas_normalisation(vit_folder):
    model = make(f"hf:{vit_folder}")
    assert model.input == ImageInput(3, 16, COLOUR.mean, COLOUR.std)
    assert answers(model, example(model.input, 2)).shape == (2, 4)
    assert flops(model) > 0


def test_a_hugging_face_student_is_saved_as_a_hugging_face_folder(transformers, resnet_folder, tmp_path):
    model = make(f"hf:{resnet_folder}")
    to_device(randomized(model.module, seed=3), torch.device("cpu"))
    save_student(model, tmp_path / "student", CLASSES)
    inputs = torch.randn(2, 3, 24, 24).to(memory_format=torch.channels_last)
    expected = answers(model, inputs)
    plain = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "student").eval()
    again = make(str(tmp_path / "student"), GREY)
    assert again.input == model.input
    for module in (plain, again.module):
        with torch.no_grad():
            torch.testing.assert_close(module(inputs).logits, expected, rtol=1e-5, atol=1e-5)
    save_student(again, tmp_path / "again", CLASSES)
    assert make(str(tmp_path / "again")).input == model.input


@pytest.mark.parametrize("options", [{}, {"num_label": 3}])
def test_a_hugging_face_model_that_cannot_be_made_is_refused(resnet_folder, tmp_path, options):
    folder = resnet_folder if options else tmp_path / "nowhere"
    with pytest.raises(UserError, match="no Hugging Face image classifier") as refused:
        make(f"hf:{folder}", options=options)
    assert "\n" not in str(refused.value)


def hf_copy(folder: Path, to: Path, change) -> str:
    """A Hugging Face folder whose weights are changed."""
    shutil.copytree(folder, to)
    weights = load_file(to / "model.safetensors")
    change(weights)
    save_file(weights, to / "model.safetensors", metadata={"format": "pt"})
    return f"hf:{to}"


def test_a_hugging_face_model_with_broken_weights_is_refused_in_one_line(resnet_folder, tmp_path):
    def spoil(weights):
        weights["classifier.1.bias"][2] = float("nan")

    with pytest.raises(UserError, match=r"nan: weights need to be finite numbers; 'classifier.1.bias' has 1 NaN"):
        make(hf_copy(resnet_folder, tmp_path / "nan", spoil))
    spec = hf_copy(resnet_folder, tmp_path / "cut", lambda weights: None)
    path, mark = tmp_path / "cut" / "model.safetensors", tmp_path / "was run"
    for content in (path.read_bytes()[:-100], b"", pickle.dumps(Bomb(mark))):
        path.write_bytes(content)
        with pytest.raises(UserError, match="cut holds no readable weights file") as refused:
            make(spec)
        assert "\n" not in str(refused.value)
    path.unlink()
    torch.save({"bomb": Bomb(mark)}, path.with_name("pytorch_model.bin"))
    with pytest.raises(UserError, match="only tensors are loaded, never code") as refused:
        make(spec)
    assert "\n" not in str(refused.value)
    assert not mark.exists()


def test_a_hugging_face_model_saved_in_half_precision_is_trained_in_full(resnet_folder, tmp_path):
    def halve(weights):
        weights |= {key: value.bfloat16() if value.is_floating_point() else value for key, value in weights.items()}

    spec = hf_copy(resnet_folder, tmp_path / "half", halve)
    config = json.loads((tmp_path / "half" / "config.json").read_text())
    (tmp_path / "half" / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}))
    module = make(spec).module
    assert {value.dtype for value in module.parameters()} == {torch.float32}
    saved = load_file(tmp_path / "half" / "model.safetensors")
    assert torch.equal(module.state_dict()["classifier.1.weight"], saved["classifier.1.weight"].float())


OWN_CODE = """
from pathlib import Path
Path({mark!r}).touch()
from transformers import ResNetConfig, ResNetForImageClassification

class OwnConfig(ResNetConfig):
    model_type = "own"

class OwnModel(ResNetForImageClassification):
    config_class = OwnConfig
"""


@pytest.fixture
def own_code(resnet_folder, tmp_path, monkeypatch) -> tuple[str, Path]:
    """A Hugging Face folder whose model is code of its own, and the file that this code writes when it runs."""
    from transformers import dynamic_module_utils

    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    folder, mark = tmp_path / "own", tmp_path / "was run"
    shutil.copytree(resnet_folder, folder)
    config = json.loads((folder / "config.json").read_text())
    own = {"AutoConfig": "own.OwnConfig", "AutoModelForImageClassification": "own.OwnModel"}
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "own", "auto_map": own}))
    (folder / "own.py").write_text(OWN_CODE.format(mark=str(mark)))
    return f"hf:{folder}", mark


def test_code_that_a_model_brings_runs_only_when_the_recipe_says_so(own_code):
    spec, mark = own_code
    with pytest.raises(UserError, match=r"brings code of its own, .* `trust_remote_code: true` beside") as refused:
        make(spec)
    assert "\n" not in str(refused.value)
    assert not mark.exists()
    model = make(spec, trust_remote_code=True)
    assert mark.exists()
    assert type(model.module).__name__ == "OwnModel"
    assert answers(model, example(model.input, 2)).shape == (2, 4)


def test_a_processor_with_code_of_its_own_is_refused_not_passed_over(resnet_folder, tmp_path):
    folder, mark = tmp_path / "own", tmp_path / "was run"
    shutil.copytree(resnet_folder, folder)
    path = folder / "preprocessor_config.json"
    processor = json.loads(path.read_text()) | {
        "image_processor_type": "Own",
        "auto_map": {"AutoImageProcessor": "own.Own"},
    }
    path.write_text(json.dumps(processor))
    (folder / "own.py").write_text(f"from pathlib import Path\nPath({str(mark)!r}).touch()\nclass Own: pass\n")
    with pytest.raises(UserError, match="brings code of its own"):
        make(f"hf:{folder}")
    assert not mark.exists()


def test_trust_is_no_option_of_the_model(own_code):
    spec, mark = own_code
    with pytest.raises(UserError, match="stands beside `model`, not in its options"):
        make(spec, options={"trust_remote_code": True})
    assert not mark.exists()


def test_a_timm_student_of_one_channel_loads_from_its_folder(tmp_path: Path) -> None:
    """It declares means of three channels, and sees images of another size."""
    given = {"options": {"in_chans": 1, "img_size": 8, "patch_size": 4, "depth": 1}, "mean": [0.5], "std": [0.5]}
    default = ImageInput(1, 8, (0.4,), (0.3,))
    model = load_model("timm:vit_tiny_patch16_224", classes=3, default=default, **given)
    assert model.input == ImageInput(1, 8, (0.5,), (0.5,))
    save_student(model, tmp_path, ("a", "b", "c"))
    again = load_model(str(tmp_path), classes=3, default=default)
    assert again.input == model.input
