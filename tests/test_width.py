"""Students of some channels and heads of their teacher."""

import copy
import re
import subprocess
import venv
from importlib import metadata
from pathlib import Path

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional

import small_net
import small_texts
from edgestill import progress
from edgestill.assemble import assemble
from edgestill.assemble.students import from_teacher
from edgestill.errors import UserError
from edgestill.models import ImageInput, Model, TextInput, embed, forward, load_model, save_student
from edgestill.recipe import FromTeacher, load_recipe
from edgestill.runs import run
from edgestill.students.cutting import cut
from edgestill.students.depth import losses_without, most_missed
from edgestill.students.heads import heads_of
from edgestill.students.narrower import Width, channels_to_cut, estimate_batch_norms, refuse_wrong
from edgestill.students.structure import INPUTS, groups_of, with_gradients
from text_recipes import CLASSES, written

NETS = Path(__file__).parents[1] / "src/edgestill/recipes/resnet_cifar.py"
IDS = torch.arange(4, 20).reshape(2, 8)
IMAGES = ImageInput(3, 32, (0.5,), (0.5,))
HALF = FromTeacher(width=0.5)


def text_teacher(family: str, **changed: object) -> Model:
    torch.manual_seed(0)
    module, tokenizer = getattr(small_texts, family)(**changed)
    for parameter in module.parameters():  # norms and biases that are not all alike
        parameter.data += 0.1 * torch.randn_like(parameter)
    return Model(module.eval(), f"hf:{family}", {}, TextInput(tokenizer, 32, ("input_ids", "attention_mask"), family))


def image_teacher(spec: str, **options: object) -> Model:
    torch.manual_seed(0)
    teacher = load_model(spec, classes=5, default=IMAGES, options=options)
    for name, value in teacher.module.state_dict().items():
        if value.is_floating_point() and value.dim() == 1:
            value += 0.1 * torch.rand_like(value) * ("mean" not in name)
    teacher.module.eval()
    return teacher


def no_losses(_module: nn.Module) -> list[Tensor]:
    return []


@pytest.mark.parametrize("family", small_texts.CLASSIFIERS + small_texts.GENERATORS)
def test_a_text_model_of_half_the_width_is_a_plain_one_of_its_family(family: str, tmp_path: Path) -> None:
    """Heads, hidden and feed-forward channels: what it computes is the teacher without the others, or it is refused."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    teacher = text_teacher(family)
    student = from_teacher(HALF, teacher, None)
    before, after = (heads_of(model.module, IDS) for model in (teacher, student))
    assert [heads.queries for heads in after] == [heads.queries // 2 for heads in before]
    assert [heads.size for heads in after] == [heads.size for heads in before]
    assert student.module.get_input_embeddings().embedding_dim == 8
    save_student(student, tmp_path, ("a", "b"))
    kind = AutoModelForCausalLM if family in small_texts.GENERATORS else AutoModelForSequenceClassification
    with torch.no_grad():
        told = forward(student.module, IDS)
        torch.testing.assert_close(kind.from_pretrained(tmp_path).eval()(IDS).logits, told, rtol=0, atol=0)
    uncut = from_teacher(FromTeacher(width=1), teacher, None)
    with torch.no_grad():
        assert torch.equal(forward(uncut.module, IDS), forward(teacher.module, IDS))


@pytest.mark.parametrize(
    ("spec", "options", "size"),
    [
        (f"{NETS}:resnet8", {}, 32),
        (f"{NETS}:resnet56", {}, 32),
        ("timm:mobilenetv3_small_050", {}, 64),
        ("timm:densenet121", {}, 64),
        ("timm:convnext_atto", {}, 64),
        ("timm:vit_tiny_patch16_224", {"img_size": 32, "patch_size": 8, "depth": 2}, 32),
    ],
)
def test_a_vision_model_of_half_the_width_loads_from_its_folder(
    spec: str, options: dict[str, object], size: int, tmp_path: Path
) -> None:
    """Residuals, shortcuts that pad channels, depthwise convolutions, squeezes, concatenations, layer norms, heads."""
    teacher = image_teacher(spec, **options)
    teacher.input = ImageInput(3, size, (0.5,), (0.5,))
    student = from_teacher(HALF, teacher, None)
    assert student.parameters < (0.4 if "vit" in spec else 0.3) * teacher.parameters
    save_student(student, tmp_path, tuple("abcde"))
    again = load_model(str(tmp_path), classes=5, default=IMAGES)
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        torch.testing.assert_close(again.module.eval()(images), student.module(images), rtol=0, atol=0)
    if "vit" in spec:  # what timm's function can say is a plain timm model
        assert again.spec == spec
        assert again.options["embed_dim"] == 128  # of 3 heads 2 are kept
        assert again.options["num_heads"] == 2


def test_a_vision_transformer_loses_blocks_and_heads_at_once(tmp_path: Path) -> None:
    """Its blocks are numbered anew, as timm counts them."""
    teacher = image_teacher("timm:vit_tiny_patch16_224", img_size=32, patch_size=8, depth=5)
    teacher.input = ImageInput(3, 32, (0.5,), (0.5,))
    student = from_teacher(FromTeacher(width=0.67, keep=[0, 2, 4]), teacher, None)
    assert [len(student.module.blocks), student.options["depth"], student.options["num_heads"]] == [3, 3, 2]
    last, whole = student.module.blocks[2].norm1, teacher.module.blocks[4].norm1
    assert len(last.weight) == 128
    assert {*last.weight.tolist()} <= {*whole.weight.tolist()}
    assert student.origin == {"blocks.0": "blocks.0", "blocks.1": "blocks.2", "blocks.2": "blocks.4"}


def clean_venv(folder: Path) -> Path:
    """The Python of a new environment that has torch with what it requires, and safetensors: nothing else is there."""
    venv.create(folder, with_pip=False, symlinks=True)
    site = next(folder.glob("lib/python*/site-packages"))
    needed, seen = ["torch", "safetensors", "numpy"], set()
    while needed:
        name = needed.pop()
        if name in seen:
            continue
        seen.add(name)
        distribution = metadata.distribution(name)
        for file in distribution.files or ():
            top = site / file.parts[0]
            if file.parts[0] not in ("..", "__pycache__") and not top.exists():
                top.symlink_to(distribution.locate_file(file.parts[0]))
        for required in distribution.requires or ():
            if "extra ==" not in required and not re.search(r"platform_(system|machine)|sys_platform", required):
                needed.append(re.split(r"[^\w.-]", required)[0])
    return folder / "bin" / "python"


def test_a_generated_file_builds_the_student_in_a_clean_venv(tmp_path: Path) -> None:
    """Blocks and channels of a ResNet-56, where torch and safetensors are alone."""
    teacher = image_teacher(f"{NETS}:resnet56")
    student = from_teacher(FromTeacher(width=0.5, depth=0.4), teacher, None)
    save_student(student, tmp_path, tuple("abcde"))
    images = torch.randn(2, 3, 32, 32)
    torch.save(images, tmp_path / "images.pt")
    function = student.spec.partition(":")[2]
    script = (
        "import importlib.util, sys\nsys.path.insert(0, '.')\n"
        "assert not any(map(importlib.util.find_spec, ('edgestill', 'timm', 'torch_pruning', 'pydantic')))\n"
        "import torch, model\nfrom safetensors.torch import load_file\n"
        f"net = model.{function}()\nnet.load_state_dict(load_file('model.safetensors'))\n"
        "torch.set_num_threads(1)\ntorch.save(net.eval()(torch.load('images.pt')), 'told.pt')\n"
    )
    python = clean_venv(tmp_path / "venv")
    subprocess.run([python, "-I", "-c", script], cwd=tmp_path, check=True, capture_output=True)
    with torch.no_grad():
        torch.testing.assert_close(torch.load(tmp_path / "told.pt"), student.module(images))
    blocks = [path for path, module in student.module.named_modules() if type(module).__name__ == "Block"]
    assert len(blocks) == 11  # 0.4 of 27
    assert {"layer2.0", "layer3.0"} <= {*blocks}  # they change the shape


def test_the_vectors_of_an_embedder_stay_as_long_as_they_are() -> None:
    torch.manual_seed(0)
    module = transformers.BertModel(transformers.BertConfig(**small_texts.SHAPE, vocab_size=23)).eval()
    embed(module, "mean")
    expected = TextInput(small_texts.tokenizer(), 32, ("input_ids", "attention_mask"), "bert")
    teacher = Model(module, "hf:bert", {}, expected)
    with pytest.raises(UserError, match="its hidden channels are its answer, and heads go with them: set feed_forward"):
        from_teacher(HALF, teacher, None)
    student = from_teacher(FromTeacher(width={"feed_forward": 0.5}), teacher, None)
    assert student.module.config.intermediate_size == 16
    assert forward(student.module, IDS).shape == (2, 16)


def test_a_student_of_a_student_is_built_by_its_file(tmp_path: Path) -> None:
    """The file of the second holds that of the first: what each leaves out, and its sizes, stay apart."""
    model = image_teacher(f"{NETS}:resnet20")
    images = torch.randn(2, 3, 32, 32)
    for place, section in enumerate((FromTeacher(depth=0.8, width=0.5), FromTeacher(depth=0.8))):
        student = from_teacher(section, model, None)
        save_student(student, tmp_path / str(place), tuple("abcde"))
        model = load_model(str(tmp_path / str(place)), classes=5, default=IMAGES)
        with torch.no_grad():
            torch.testing.assert_close(model.module.eval()(images), student.module(images), rtol=0, atol=0)
    assert sum(type(module).__name__ == "Block" for module in model.module.modules()) == 6  # 9, 7, 6


@pytest.mark.parametrize("kind", ["convolutional", "transformer"])
def test_vision_models_of_hugging_face_are_cut_and_load(kind: str, tmp_path: Path) -> None:
    """Also with random weights, which are none of the teacher's."""
    torch.manual_seed(0)
    if kind == "transformer":
        shape = small_texts.SHAPE | {"num_hidden_layers": 2, "image_size": 32, "patch_size": 8, "num_labels": 5}
        module = transformers.ViTForImageClassification(transformers.ViTConfig(**shape))
    else:
        sizes = {"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [2, 2], "layer_type": "basic"}
        module = transformers.ResNetForImageClassification(transformers.ResNetConfig(**sizes, num_labels=5))
    teacher = Model(module.eval(), "hf:somewhere", {}, IMAGES)
    section = FromTeacher(width=0.5, depth=0.75)
    student, fresh = from_teacher(section, teacher, None), from_teacher(section, teacher, None, weights=False)
    save_student(student, tmp_path, tuple("abcde"))
    again = load_model(str(tmp_path), classes=5, default=IMAGES)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        told = forward(student.module, images)
        torch.testing.assert_close(forward(again.module.eval(), images), told, rtol=0, atol=0)
        assert not torch.allclose(forward(fresh.module.eval(), images), told, atol=1e-3)
    assert fresh.parameters == student.parameters < 0.4 * teacher.parameters


@pytest.mark.parametrize("kind", ["magnitude", "activation", "taylor"])
def test_channels_that_do_nothing_are_those_that_are_cut(kind: str) -> None:
    """Half of the channels of every group are planted as zeros: the cut model computes the same."""
    torch.manual_seed(3)
    whole = image_teacher(f"{NETS}:resnet8").module
    probe = torch.randn(4, 3, 32, 32)
    with with_gradients(whole):
        groups = groups_of(whole, probe, [])
    for group in groups:
        planted = torch.randperm(group.count)[: group.count // 2].tolist()
        for (path, side), units in group.places.items():
            layer = whole.get_submodule(path)
            gone = [channel for unit in planted for channel in units[unit]]
            with torch.no_grad():
                if side == INPUTS:
                    layer.weight[:, gone] = 0
                else:
                    for value in (layer.weight, layer.bias, getattr(layer, "running_mean", None)):
                        if value is not None:
                            value[gone] = 0

    def losses(module: nn.Module):
        for seed in (0, 1):
            images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(seed))
            yield functional.cross_entropy(module(images), torch.arange(4))

    removed, _ = channels_to_cut(whole, probe, Width(channels=0.5), kind, losses)
    student = copy.deepcopy(whole)
    cut(student, removed)
    assert student.conv1.out_channels == 8
    with torch.no_grad():
        torch.testing.assert_close(student(probe), whole(probe))


@pytest.mark.parametrize("kind", ["magnitude", "activation", "taylor"])
def test_heads_and_feed_forward_channels_that_do_nothing_are_those_that_are_cut(kind: str) -> None:
    """Of grouped queries a group is cut whole; of a fused gate both halves."""
    for family in ("llama", "modernbert"):
        teacher = text_teacher(family)
        with with_gradients(teacher.module):
            groups = groups_of(teacher.module, IDS, heads_of(teacher.module, IDS))
        for number, group in enumerate(groups):
            inside = group.heads or len(group.places) in (2, 3)
            for (path, side), units in group.places.items():
                if inside and path not in ("head.dense", "head.norm", "classifier"):  # what is not in a block
                    gone = [channel for unit in range(number % 2, group.count, 2) for channel in units[unit]]
                    weight = teacher.module.get_submodule(path).weight.data
                    weight.index_fill_(int(side == INPUTS), torch.tensor(gone), 0.0)

        def losses(module: nn.Module):
            for ids in (IDS, IDS.flip(0, 1)):
                yield functional.cross_entropy(forward(module, ids).flatten(0, -2), torch.arange(2).repeat(8)[:2])

        def of_tokens(module: nn.Module):
            for ids in (IDS, IDS.flip(0, 1)):
                yield functional.cross_entropy(forward(module, ids).flatten(0, -2), ids.flatten())

        given = of_tokens if family == "llama" else losses
        wanted = Width(0.5, 1.0, 0.5)
        removed, _ = channels_to_cut(teacher.module, IDS, wanted, kind, given)
        for group in groups:
            for (path, side), units in group.places.items():
                if side == INPUTS and (path, side) in removed:
                    weight = teacher.module.get_submodule(path).weight
                    assert not weight[:, sorted(removed[path, side])].any(), (family, path)
                    assert len(removed[path, side]) == sum(map(len, units)) // 2


def test_a_student_starts_better_than_random_and_its_batch_norms_are_of_its_own_channels() -> None:
    net = small_net.fitted()
    images = torch.from_numpy(small_net.digits())
    labels = torch.from_numpy(small_net.load_digits().target)

    def losses(module: nn.Module):
        for rows in torch.arange(512).split(64):
            yield functional.cross_entropy(module(images[rows]), labels[rows])

    removed, _ = channels_to_cut(net, images[:2], Width(channels=0.75), "activation", losses)
    student = copy.deepcopy(net)
    cut(student, removed)
    refuse_wrong(net, student, student, removed, images[:2])
    estimate_batch_norms(student, losses)
    seen: list[Tensor] = []
    handle = student.norm1.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        found = (student(images).argmax(1) == labels).float().mean()
        list(losses(student))
    handle.remove()
    mean = torch.stack([batch.mean((0, 2, 3)) for batch in seen[1:]]).mean(0)
    torch.testing.assert_close(student.norm1.running_mean, mean)
    assert found > 0.5  # of a student with random weights a tenth


class Shuffled(nn.Module):
    """Channels that change places in a way that no graph of layers shows."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.linear = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(8, 5)
        self.first.weight.data *= 10 * torch.arange(1, 9)[:, None, None, None]  # the last half is kept

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = self.second(x.flip(1)) + x[:, :, 1:-1, 1:-1]
        return self.linear(x.mean((2, 3)))


class Hidden(Shuffled):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return super().forward(x)


@pytest.mark.parametrize(
    ("module", "section", "line"),
    [
        (Shuffled(), HALF, "channels of Shuffled cannot be followed through all of its operations"),
        (Hidden(), HALF, "graph of Hidden cannot be traced: no gradient passes through it"),
        (nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 5)), HALF, "cuts nothing of Sequential, which has nothing"),
    ],
)
def test_a_model_that_cannot_be_cut_is_refused(module: nn.Module, section: FromTeacher, line: str) -> None:
    torch.manual_seed(0)
    with pytest.raises(UserError, match=line):
        from_teacher(section, Model(module.eval(), "net.py:net", {}, IMAGES, source="def net(): ..."), None)


def test_a_width_that_cannot_be_is_refused() -> None:
    with pytest.raises(UserError, match=r"0\.9 of 2 heads leaves them all: what cuts some is 0\.5, or a share"):
        from_teacher(FromTeacher(width=0.9), text_teacher("bert"), None)
    with pytest.raises(UserError, match="heads and hidden channels go together: set one width for all"):
        from_teacher(FromTeacher(width={"heads": 0.5, "hidden": 1}), text_teacher("bert"), None)
    only = from_teacher(FromTeacher(width={"feed_forward": 0.5}), text_teacher("bert"), None)
    assert only.module.config.intermediate_size == 16
    assert only.module.config.hidden_size == 16
    free = from_teacher(FromTeacher(width={"heads": 0.5, "hidden": 0.75}), text_teacher("llama", head_dim=4), None)
    assert (free.module.config.hidden_size, free.module.config.num_key_value_heads) == (12, 1)


def test_heads_whose_queries_keys_and_values_lie_head_by_head_are_refused() -> None:
    """As in GPT-NeoX: one layer puts out all three of a head, then those of the next."""
    torch.manual_seed(0)
    config = transformers.GPTNeoXConfig(**small_texts.SHAPE, **small_texts.LONG, vocab_size=23)
    expected = TextInput(small_texts.tokenizer(), 32, ("input_ids", "attention_mask"), "neox")
    teacher = Model(transformers.GPTNeoXForCausalLM(config).eval(), "hf:neox", {}, expected)
    with pytest.raises(UserError, match="its heads cannot be told apart"):
        from_teacher(HALF, teacher, None)


def test_blocks_of_a_convolutional_net_are_kept_as_asked() -> None:
    teacher = image_teacher(f"{NETS}:resnet20")
    kept = from_teacher(FromTeacher(keep=[0, 3, 4, 6]), teacher, None)
    assert [type(kept.module.get_submodule(path)).__name__ for path in ("layer1.0", "layer1.1", "layer2.1")] == [
        "Block",
        "Identity",
        "Block",
    ]
    with pytest.raises(UserError, match=r"block 3 \(layer2.0\) changes the shape of what it takes"):
        from_teacher(FromTeacher(keep=[0, 6]), teacher, None)
    with pytest.raises(UserError, match="2 of the teacher's 9 blocks change the shape of what they take, and cannot"):
        from_teacher(FromTeacher(depth=1), teacher, None)


def test_a_run_has_a_student_of_its_fitted_teacher_and_terms_between_what_was_one(tmp_path: Path) -> None:
    """The arm `scratch` has the same sizes, and the default layer map is where each part came from."""
    sets = ["student={from_teacher: {width: 0.5}}", "teacher.fit.epochs=2", "teacher.fit.keep=false", "train.epochs=1"]
    sets += ["distill.terms=[{loss: hint}]", "compare.seeds=1"]
    result = run(load_recipe("digits", sets), tmp_path / "run", track=progress.silent, deliver_files=False)
    arms = {name: arm["seeds"][0]["quality"] for name, arm in result["arms"].items()}
    assert set(arms) == {"baseline", "student", "scratch"}
    assert arms["student"] > arms["scratch"]
    (mapped,) = result["layer_maps"]
    assert mapped["map"] == "origin"
    assert mapped["pairs"] == [(f"stage{number}", f"stage{number}") for number in (1, 2, 3)]


def test_terms_pair_the_blocks_of_a_student_with_those_that_they_were(tmp_path: Path) -> None:
    recipe = CLASSES.replace("{depth: 2}", "{depth: 2, keep: last}").replace("epochs: 6", "epochs: 1")
    job = assemble(load_recipe(written(tmp_path, recipe)), progress.silent)
    pairs = {mapped.loss: mapped.pairs for mapped in job.maps}
    layer = "bert.encoder.layer"
    assert pairs["hint"] == [(f"{layer}.0", f"{layer}.2"), (f"{layer}.1", f"{layer}.3")]
    assert pairs["attention_relation"][0] == (f"{layer}.1.attention.self@queries", f"{layer}.3.attention.self@queries")
    with pytest.raises(UserError, match="keep: important asks a teacher that is trained"):
        load_recipe(written(tmp_path, recipe.replace("keep: last", "keep: important")))


def test_blocks_that_pass_on_what_they_are_given_are_not_missed() -> None:
    teacher = text_teacher("llama")
    paths = [f"model.layers.{place}" for place in range(4)]
    for place in (0, 2):
        for path in ("self_attn.o_proj", "mlp.down_proj"):
            teacher.module.get_submodule(f"{paths[place]}.{path}").weight.data.zero_()
    with torch.no_grad():
        whole = forward(teacher.module, IDS)
    missed = losses_without(teacher.module, paths, lambda module: [(forward(module, IDS) - whole).square().mean()])
    assert missed[0] == missed[2] == 0 < min(missed[1], missed[3])
    assert most_missed(range(4), dict(enumerate(missed)), 2) == [1, 3]


def test_what_is_measured_is_measured_once_for_each_state_of_the_teacher() -> None:
    """Batch norms are estimated on real images, but those of an uncut copy, which is the teacher bit for bit."""
    sets = ["student={from_teacher: {width: 0.5}}", "teacher.fit.keep=false"]
    job = assemble(load_recipe("digits", sets), progress.silent)
    job.teacher.module.requires_grad_(False)  # as where it was asked
    first = job.student(0)
    (measured,) = job.built.values()
    second = job.student(1)
    assert [*job.built.values()] == [measured]
    assert all(parameter.requires_grad for parameter in first.module.parameters())
    assert first.module is not second.module
    batches = {name: int(value) for name, value in first.module.state_dict().items() if "num_batches" in name}
    assert batches
    assert all(count == 1 for count in batches.values()), "of 100 labelled images in one batch"
    for name, value in first.module.state_dict().items():
        assert torch.equal(value, second.module.state_dict()[name])
    job.teacher.module.linear.weight.data.add_(1.0)  # as where it is fitted
    assert not torch.equal(job.student(0).module.linear.weight, first.module.linear.weight)
    uncut = from_teacher(FromTeacher(width=1), job.teacher, job.splits.train).module.state_dict()
    assert all(torch.equal(value, uncut[name]) for name, value in job.teacher.module.state_dict().items())
