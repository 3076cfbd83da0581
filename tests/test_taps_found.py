"""Stages, blocks and attentions are found in models of every family, by nothing but their structure."""

from pathlib import Path

import pytest
import torch
from torch import nn

import edgestill
from edgestill.functions import load_function
from edgestill.taps import found, record, stages

RECIPES = Path(edgestill.__file__).parent / "recipes"
SMALL = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 32}
TEXT = SMALL | {"vocab_size": 50, "max_position_embeddings": 32} | dict.fromkeys(("bos_token_id", "eos_token_id"))
IMAGE = SMALL | {"image_size": 32, "patch_size": 8}
HIERARCHY = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 2, 2, 1]}
VGG = [f"features.{number}" for number in (2, 6, 13, 20, 27)]  # the activations in front of each pooling


def blocks_of(prefix: str, count: int) -> list[str]:
    return [f"{prefix}.{number}" for number in range(count)]


def paths(taps, kind: str) -> list[str]:
    return [tap.path for tap in taps if tap.kind == kind]


def check(model: nn.Module, example: torch.Tensor, expected: list[str]) -> list:
    """The default taps are as expected, and what `found` says of each tap is what `record` then records."""
    taps = found(model, example)
    assert stages(model, example) == expected
    with torch.no_grad(), record(model.eval(), [tap.path for tap in taps]) as recorded:
        model(example)
    assert {tap.path: tap.shape for tap in taps} == {path: (*tensor.shape,) for path, tensor in recorded.items()}
    assert len({tap.path for tap in taps}) == len(taps)
    counts = [tap.parameters for tap in taps]
    assert counts == sorted(counts)
    assert counts[-1] <= sum(parameter.numel() for parameter in model.parameters())
    return taps


# --- timm


@pytest.fixture(scope="module")
def timm():
    return pytest.importorskip("timm", reason="timm is not installed", exc_type=ImportError)


@pytest.mark.parametrize(
    ("name", "expected", "first_blocks"),
    [
        ("resnet18", ["layer1", "layer2", "layer3", "layer4"], ["layer1.0", "layer1.1", "layer2.0"]),
        ("resnet50", ["layer1", "layer2", "layer3", "layer4"], ["layer1.0", "layer1.1", "layer1.2"]),
        ("convnext_atto", blocks_of("stages", 4), ["stages.0.blocks.0", "stages.0.blocks.1", "stages.1.blocks.0"]),
        ("mobilenetv3_small_050", ["blocks.0", "blocks.1", "blocks.3", "blocks.5"], ["blocks.0.0", "blocks.1.0"]),
        ("mobilenetv4_conv_small", ["blocks.0", "blocks.1", "blocks.2", "blocks.4"], []),
        ("efficientnet_b0", ["blocks.0", "blocks.1", "blocks.2", "blocks.4", "blocks.6"], ["blocks.0.0", "blocks.1.0"]),
        ("regnetx_002", ["s1", "s2", "s3", "s4"], []),
        ("densenet121", [f"features.denseblock{number}" for number in (1, 2, 3, 4)], []),
        ("vgg11_bn", VGG, []),
        ("poolformer_s12", blocks_of("stages", 4), ["stages.0.blocks.0", "stages.0.blocks.1"]),
        ("pvt_v2_b0", blocks_of("stages", 4), ["stages.0.blocks.0", "stages.0.blocks.1"]),
    ],
)
def test_the_stages_of_timms_hierarchical_models(timm, name, expected, first_blocks):
    model = timm.create_model(name, num_classes=5)
    taps = check(model, torch.randn(2, 3, 64, 64), expected)
    assert paths(taps, "block")[: len(first_blocks)] == first_blocks
    if name == "densenet121":  # its layers put out what they add alone
        assert paths(taps, "block") == []
    sides = [tap.shape[2] for tap in taps if tap.kind == "stage"]
    assert sides == sorted(set(sides), reverse=True)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224"])
def test_plain_transformers_of_timm_have_blocks(timm, name):
    model = timm.create_model(name, num_classes=5, img_size=32, depth=3)
    taps = check(model, torch.randn(2, 3, 32, 32), blocks_of("blocks", 3))
    assert paths(taps, "stage") == []
    assert paths(taps, "attention") == [f"blocks.{number}.attn@attention" for number in range(3)]


def test_a_mixer_has_blocks_and_no_attention(timm):
    model = timm.create_model("mixer_s32_224", num_classes=5, img_size=64)
    taps = check(model, torch.randn(2, 3, 64, 64), blocks_of("blocks", 8))
    assert paths(taps, "attention") == []


def test_maps_with_the_channels_last_are_maps(timm):
    small = {"img_size": 64, "window_size": 4, "embed_dim": 12, "depths": (2, 2, 2, 2), "num_heads": (1, 2, 2, 2)}
    model = timm.create_model("swin_tiny_patch4_window7_224", num_classes=5, **small)
    taps = check(model, torch.randn(2, 3, 64, 64), blocks_of("layers", 4))
    assert [tap.shape for tap in taps if tap.kind == "stage"][:2] == [(2, 16, 16, 12), (2, 8, 8, 24)]
    assert paths(taps, "block")[:3] == ["layers.0.blocks.0", "layers.0.blocks.1", "layers.1.blocks.0"]
    assert len(paths(taps, "attention")) == 8


# --- Hugging Face


@pytest.fixture(scope="module")
def transformers():
    return pytest.importorskip("transformers", reason="transformers is not installed")


@pytest.mark.parametrize(
    ("family", "task", "options", "expected"),
    [
        ("ResNet", "ForImageClassification", HIERARCHY | {"embedding_size": 8}, blocks_of("resnet.encoder.stages", 4)),
        # a RegNet's stem wraps one convolution twice, and is no stage for it
        ("RegNet", "Model", HIERARCHY | {"embedding_size": 8, "groups_width": 8}, blocks_of("encoder.stages", 4)),
        ("ConvNext", "ForImageClassification", HIERARCHY, blocks_of("convnext.encoder.stages", 4)),
        ("Segformer", "Model", HIERARCHY | {"num_attention_heads": [1, 1, 2, 2]}, blocks_of("stages", 4)),
        (
            "MobileNetV2",
            "Model",
            {"depth_multiplier": 0.35, "image_size": 64},
            ["conv_stem", *(f"layer.{number}" for number in (1, 4, 11, 15))],
        ),
        (
            "Swin",
            "ForImageClassification",
            {"image_size": 64, "embed_dim": 8, "depths": [1, 2, 2], "num_heads": [1, 2, 4], "window_size": 4},
            # each of its layers ends with the step down to the next resolution
            ["swin.encoder.layers.0.blocks.0", "swin.encoder.layers.1.blocks.1", "swin.encoder.layers.2"],
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_stages_of_hugging_faces_hierarchical_models(transformers, family, task, options, expected):
    model = getattr(transformers, family + task)(getattr(transformers, f"{family}Config")(**options))
    check(model, torch.randn(2, 3, 64, 64), expected)


@pytest.mark.parametrize(
    ("family", "task", "options", "expected"),
    [
        ("ViT", "ForImageClassification", IMAGE, blocks_of("vit.layers", 3)),
        ("DeiT", "ForImageClassificationWithTeacher", IMAGE, blocks_of("deit.layers", 3)),
        ("Beit", "ForImageClassification", IMAGE, blocks_of("beit.layers", 3)),
        ("Bert", "ForSequenceClassification", TEXT, blocks_of("bert.encoder.layer", 3)),
        ("ModernBert", "Model", TEXT | dict.fromkeys(("cls_token_id", "sep_token_id")), blocks_of("layers", 3)),
        ("Llama", "ForCausalLM", TEXT | {"num_key_value_heads": 2}, blocks_of("model.layers", 3)),
        ("Llama", "ForCausalLM", TEXT | {"num_hidden_layers": 1}, ["model.layers.0"]),
        ("Qwen3", "ForCausalLM", TEXT | {"num_key_value_heads": 2, "head_dim": 4}, blocks_of("model.layers", 3)),
        ("GPT2", "LMHeadModel", TEXT | {"n_embd": 16, "n_layer": 3, "n_head": 4}, blocks_of("transformer.h", 3)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_plain_transformers_of_hugging_face_have_blocks(transformers, family, task, options, expected):
    model = getattr(transformers, family + task)(getattr(transformers, f"{family}Config")(pad_token_id=0, **options))
    example = torch.randn(2, 3, 32, 32) if "image_size" in options else torch.arange(14).reshape(2, 7)
    taps = check(model, example, expected)
    attentions = paths(taps, "attention")
    assert all(path.startswith(f"{block}.") for path, block in zip(attentions, expected, strict=True))


# --- plain modules


def test_the_blocks_of_a_residual_network_stand_beside_its_stages():
    model = load_function(f"{RECIPES}/resnet_cifar.py:resnet20")()
    taps = check(model, torch.randn(2, 3, 32, 32), ["layer1", "layer2", "layer3"])
    assert paths(taps, "block") == [f"layer{layer}.{block}" for layer in (1, 2, 3) for block in range(3)]
    assert [tap.path for tap in taps][:4] == ["layer1.0", "layer1.1", "layer1.2", "layer1"]
    assert taps[3].parameters == 464 + 6 * (16 * 16 * 9 + 32)  # conv1 and bn1, and three blocks of two convolutions


def test_a_single_image_is_taken_for_a_batch():
    model = load_function(f"{RECIPES}/resnet_cifar.py:resnet8")()
    assert [tap.shape for tap in found(model, torch.randn(1, 3, 32, 32)) if tap.kind == "stage"] == [
        (2, 16, 32, 32),
        (2, 32, 16, 16),
        (2, 64, 8, 8),
    ]


def test_every_module_that_puts_out_a_tensor_is_listed_when_asked_for():
    digits = load_function(f"{RECIPES}/digits.py:student")()
    taps = found(digits, torch.zeros(2, 1, 8, 8), every=True)
    assert {tap.path for tap in taps} == {name for name, _ in digits.named_modules() if name}
    assert paths(taps, "stage") == ["stage1", "stage2", "stage3"]
    assert taps[-1].path == "linear"
    assert taps[-1].parameters == sum(parameter.numel() for parameter in digits.parameters())


def test_a_step_down_at_the_end_of_a_stage_does_not_hide_the_stage():
    def block(width):
        return nn.Sequential(nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.ReLU()), nn.BatchNorm2d(width))

    def stage(width):
        return nn.Sequential(nn.Sequential(block(width), block(width)), nn.Conv2d(width, 2 * width, 2, stride=2))

    model = nn.Sequential(stage(4), stage(8), nn.Flatten(), nn.LazyLinear(2))
    model(torch.zeros(2, 4, 8, 8))
    assert stages(model, torch.zeros(2, 4, 8, 8)) == ["0.0", "1.0"]


def test_a_block_that_widens_and_steps_down_is_one_stage():
    class Down(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.widen = nn.Sequential(
                nn.Sequential(nn.Conv2d(width, 2 * width, 1), nn.ReLU()), nn.BatchNorm2d(2 * width)
            )
            self.step = nn.Conv2d(2 * width, 2 * width, 2, stride=2)

        def forward(self, x):
            return self.step(self.widen(x))

    assert stages(nn.Sequential(Down(4), Down(8)), torch.zeros(2, 4, 8, 8)) == ["0", "1"]


def test_a_border_that_a_convolution_takes_off_is_no_step_down():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 2, stride=2))
    assert stages(model, torch.zeros(2, 3, 16, 16)) == ["1", "2"]


def test_the_parts_of_a_block_are_no_blocks(transformers):
    model = transformers.ResNetModel(transformers.ResNetConfig(**HIERARCHY, embedding_size=8, layer_type="basic"))
    taps = found(model, torch.randn(2, 3, 64, 64))
    expected = [("stages.0", 1), ("stages.1", 2), ("stages.2", 2), ("stages.3", 1)]
    assert paths(taps, "block") == [
        path for stage, count in expected for path in blocks_of(f"encoder.{stage}.layers", count)
    ]


def test_layers_that_share_their_weights_have_one_attention(transformers):
    model = transformers.AlbertModel(transformers.AlbertConfig(**TEXT, embedding_size=8))
    taps = check(model, torch.arange(14).reshape(2, 7), ["encoder.albert_layer_groups.0"])
    assert paths(taps, "attention") == ["encoder.albert_layer_groups.0.albert_layers.0.attention@attention"]


def test_finding_leaves_the_model_as_it_was():
    model = load_function(f"{RECIPES}/resnet_cifar.py:resnet8")().train()
    model.bn1.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found(model, torch.ones(4, 3, 32, 32), every=True)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [name for name, module in model.named_modules() if not module.training] == ["bn1"]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    with pytest.raises(RuntimeError):
        found(model, torch.ones(4, 5, 32, 32))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert [name for name, module in model.named_modules() if not module.training] == ["bn1"]
