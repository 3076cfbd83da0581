"""PATH@attention records what the attention in a module looks at, as the model itself computes it, and changes nothing.

Shapes: B batch, N heads, T queries, S keys, D width of a head.
"""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional

from edgestill.errors import UserError
from edgestill.taps import record
from edgestill.taps.attention import probabilities

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 32}
TEXT = SMALL | {"vocab_size": 50, "max_position_embeddings": 32}
IDS = torch.arange(14).reshape(2, 7) % 50


class Attention(nn.Module):
    """Self-attention [B, T, D] of two heads; `explicit`, by a softmax of its own."""

    def __init__(self, explicit: bool = False, **arguments) -> None:
        super().__init__()
        self.explicit, self.arguments = explicit, arguments
        self.qkv = nn.Linear(8, 24)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        if self.explicit:
            return ((q @ k.mT / 2).softmax(-1) @ v).transpose(1, 2).flatten(2)
        return functional.scaled_dot_product_attention(q, k, v, **self.arguments).transpose(1, 2).flatten(2)


class Block(nn.Module):
    def __init__(self, *attentions) -> None:
        super().__init__()
        self.parts = nn.ModuleList(attentions)

    def forward(self, x):
        for part in self.parts:
            x = x + part(x)
        return x


def hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def tapped(model, taps, *args, **kwargs):
    with record(model, taps) as recorded:
        model(*args, **kwargs)
    return recorded


# --- the probabilities


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"scale": 0.3},
        {"is_causal": True},
        {"attn_mask": torch.arange(60).reshape(2, 1, 5, 6) % 3 > 0},
        {"attn_mask": torch.tensor([[True, False, True, True, False, True]])},
        {"attn_mask": torch.arange(5)[:, None] > torch.zeros(6)},
        {"attn_mask": torch.linspace(-3, 3, 30).reshape(5, 6), "scale": 1.0},
    ],
    ids=["plain", "scale", "causal", "bool mask", "key mask", "a row that sees nothing", "additive mask"],
)
def test_the_probabilities_are_those_that_torch_multiplies_the_values_by(arguments):
    torch.manual_seed(0)
    query, key = (torch.randn(2, 3, length, 4, requires_grad=True) for length in (5, 6))
    value = torch.eye(6).expand(2, 3, 6, 6)  # values of which the output is the probabilities
    expected = functional.scaled_dot_product_attention(query, key, value, **arguments)
    weights = torch.randn_like(expected)
    wanted = torch.autograd.grad((expected * weights).sum(), (query, key))
    got = probabilities(query, key, value, **arguments)
    torch.testing.assert_close(got, expected)
    for mine, theirs in zip(torch.autograd.grad((got * weights).sum(), (query, key)), wanted, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_grouped_queries_are_attended_with_their_groups_keys():
    torch.manual_seed(0)
    inputs = torch.randn(2, 5, 8)

    class Grouped(nn.Module):
        def forward(self, x):
            q, k = x.unflatten(-1, (4, 2)).transpose(1, 2), x[..., :4].unflatten(-1, (2, 2)).transpose(1, 2)
            return functional.scaled_dot_product_attention(q, k, k, enable_gqa=True)

    model = nn.Sequential(Grouped())
    taps = tapped(model, ["0", "0@attention", "0@queries", "0@keys", "0@values"], inputs)
    assert taps["0@attention"].shape == (2, 4, 5, 5)
    torch.testing.assert_close(taps["0@attention"] @ taps["0@values"], taps["0"])
    assert torch.equal(taps["0@keys"][:, 0], taps["0@keys"][:, 1])
    assert taps["0@queries"].shape == taps["0@keys"].shape == (2, 4, 5, 2)


# --- recording


def test_all_four_parts_and_plain_taps_come_from_one_forward():
    torch.manual_seed(0)
    model, inputs = Block(Attention(), Attention()), torch.randn(2, 5, 8)
    names = ["parts.0", *(f"parts.0@{part}" for part in ("attention", "queries", "keys", "values")), "parts.1@values"]
    taps = tapped(model, names, inputs)
    assert set(taps) == set(names)
    q, k, v = model.parts[0].qkv(inputs).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
    torch.testing.assert_close(taps["parts.0@attention"], (q @ k.mT / 2).softmax(-1))
    for part, expected in (("queries", q), ("keys", k), ("values", v)):
        torch.testing.assert_close(taps[f"parts.0@{part}"], expected)
    torch.testing.assert_close((taps["parts.0@attention"] @ v).transpose(1, 2).flatten(2), taps["parts.0"])


def test_recording_changes_no_output_and_leaves_nothing_behind():
    torch.manual_seed(0)
    model, inputs = Block(Attention(), Attention()), torch.randn(2, 5, 8)
    plain = model(inputs)
    with record(model, ["parts.0@attention"]) as taps:
        assert torch.equal(model(inputs), plain)
        first = taps["parts.0@attention"]
        model(2 * inputs)
        assert not torch.equal(taps["parts.0@attention"], first)
    assert hooks(model) == 0
    assert torch.overrides._get_current_function_mode() is None
    kept = taps["parts.0@attention"]
    model(inputs)
    assert taps["parts.0@attention"] is kept


def test_a_forward_that_fails_leaves_nothing_behind_and_the_next_one_is_recorded():
    model, inputs = Block(Attention(), Attention()), torch.randn(2, 5, 8)
    with record(model, ["parts.0@attention"]) as taps:
        with pytest.raises(RuntimeError):
            model(torch.randn(2, 5, 9))
        assert taps == {}
        model(inputs)
        assert set(taps) == {"parts.0@attention"}
    assert hooks(model) == 0
    assert torch.overrides._get_current_function_mode() is None


def test_only_what_is_asked_for_is_computed():
    """The probabilities are the only thing here that takes a softmax."""
    model, inputs = Block(Attention(), Attention()), torch.randn(2, 5, 8)
    counts = {}
    for taps in (["parts.0@keys"], ["parts.0@attention"], ["parts.0@attention", "parts.1@attention"]):
        with torch.profiler.profile() as profile, torch.no_grad():
            tapped(model, taps, inputs)
        counts[len(taps), taps[0]] = sum(
            event.count for event in profile.key_averages() if event.key == "aten::softmax"
        )
    assert list(counts.values()) == [0, 1, 2]


def test_dropout_does_not_reach_the_probabilities():
    torch.manual_seed(0)
    model, inputs = Block(Attention(dropout_p=0.5)), torch.randn(2, 5, 8)
    sums = tapped(model, ["parts.0@attention"], inputs)["parts.0@attention"].sum(-1)
    torch.testing.assert_close(sums, torch.ones(2, 2, 5))


@pytest.mark.parametrize("explicit", [False, True], ids=["fused", "explicit"])
def test_the_gradient_flows_to_what_made_the_queries_and_keys(explicit):
    torch.manual_seed(0)
    model, inputs = Block(Attention(explicit)), torch.randn(2, 5, 8)
    weights = torch.randn(2, 2, 5, 5)
    (tapped(model, ["parts.0@attention"], inputs)["parts.0@attention"] * weights).sum().backward()
    got = model.parts[0].qkv.weight.grad.clone()
    model.zero_grad()
    q, k, _ = model.parts[0].qkv(inputs).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
    ((q @ k.mT / 2).softmax(-1) * weights).sum().backward()
    torch.testing.assert_close(got, model.parts[0].qkv.weight.grad)
    assert got[:16].abs().sum() > 0
    assert got[16:].abs().sum() == 0  # the values have no part in it


@pytest.mark.parametrize("explicit", [False, True], ids=["fused", "explicit"])
def test_under_autocast_the_probabilities_are_float32(explicit):
    torch.manual_seed(0)
    model, inputs = Block(Attention(explicit)), torch.randn(2, 5, 8)
    exact = tapped(model, ["parts.0@attention"], inputs)["parts.0@attention"]
    with torch.autocast("cpu", torch.bfloat16):
        parts = ["attention"] if explicit else ["attention", "queries", "keys"]
        taps = tapped(model, [f"parts.0@{part}" for part in parts], inputs)
    attention = taps["parts.0@attention"]
    assert attention.dtype == torch.float32
    if not explicit:  # the model's queries and keys are bfloat16, what they make is not
        queries, keys = taps["parts.0@queries"], taps["parts.0@keys"]
        assert queries.dtype == keys.dtype == torch.bfloat16
        torch.testing.assert_close(attention, (queries.float() @ keys.float().mT / 2).softmax(-1))
    torch.testing.assert_close(attention, exact, atol=0.02, rtol=0)
    torch.testing.assert_close(attention.sum(-1), torch.ones(2, 2, 5), atol=1e-5 if not explicit else 1e-2, rtol=0)
    attention.sum().backward()


def test_a_teacher_is_tapped_without_gradients():
    model = Block(Attention())
    with torch.no_grad():
        assert not tapped(model, ["parts.0@attention"], torch.randn(2, 5, 8))["parts.0@attention"].requires_grad


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_torchs_own_multi_head_attention_is_seen(need_weights, training):
    torch.manual_seed(0)

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x):
            return self.attention(x, x, x, need_weights=need_weights)[0]

    model, inputs = Model().train(training), torch.randn(3, 5, 8)
    with torch.set_grad_enabled(training):
        plain = model(inputs)
        with record(model, ["attention@attention", "attention"]) as taps:
            torch.testing.assert_close(model(inputs), plain)
    expected = model.attention(inputs, inputs, inputs, average_attn_weights=False)[1]
    torch.testing.assert_close(taps["attention@attention"], expected)
    torch.testing.assert_close(taps["attention"], plain)


# --- refusals


def test_a_path_with_several_attentions_names_those_with_one():
    model = nn.Sequential(Block(Attention(), Attention()), Block(Attention()))
    inputs = torch.randn(2, 5, 8)
    with pytest.raises(
        UserError, match=r"'0@keys': 2 attentions were seen in '0'; .*: '0\.parts\.0@keys', '0\.parts\.1@keys'$"
    ):
        tapped(model, ["0@keys"], inputs)
    assert hooks(model) == 0
    assert tapped(model, ["1@attention"], inputs)["1@attention"].shape == (2, 2, 5, 5)
    deep = nn.Sequential(nn.Sequential(*(Block(Attention()) for _ in range(6))))
    with pytest.raises(UserError, match=r"name one of them: '0\.0@attention', .*'0\.3@attention' and 2 more$"):
        tapped(deep, ["0@attention"], inputs)


def test_a_path_that_computes_several_attentions_itself_says_so():
    class Twice(Attention):
        def forward(self, x):
            return super().forward(super().forward(x))

    with pytest.raises(UserError, match=r"2 attentions were seen in '0'; '0' computes them all itself"):
        tapped(nn.Sequential(Twice()), ["0@attention"], torch.randn(2, 5, 8))


def test_a_path_without_attention_says_what_to_do():
    with pytest.raises(UserError, match=r"no attention was seen in '0': name an .*attn_implementation='sdpa'"):
        tapped(nn.Sequential(nn.Linear(8, 8)), ["0@attention"], torch.randn(2, 5, 8))


def test_an_explicit_softmax_shows_its_probabilities_alone():
    torch.manual_seed(0)
    model, inputs = Block(Attention(explicit=True)), torch.randn(2, 5, 8)
    q, k, _ = model.parts[0].qkv(inputs).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
    got = tapped(model, ["parts.0@attention"], inputs)["parts.0@attention"]
    torch.testing.assert_close(got, (q @ k.mT / 2).softmax(-1))
    with pytest.raises(UserError, match=r"'parts\.0@queries': .*explicit softmax.*attn_implementation='sdpa'"):
        tapped(model, ["parts.0@queries"], inputs)


def test_a_softmax_of_another_meaning_does_not_count_beside_a_fused_attention():
    class Gated(Attention):
        def forward(self, x):
            return super().forward(x) * x.unflatten(-1, (2, 4)).softmax(-1).flatten(2)

    torch.manual_seed(0)
    model, inputs = nn.Sequential(Gated()), torch.randn(2, 5, 8)
    q, k, _ = model[0].qkv(inputs).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
    got = tapped(model, ["0@attention"], inputs)["0@attention"]
    torch.testing.assert_close(got, (q @ k.mT / 2).softmax(-1))


@pytest.mark.parametrize(
    ("tap", "said"),
    [
        ("parts.0@atention", r"behind the @ stands attention, queries, keys, values; did you mean 'attention'"),
        ("parts.7@attention", r"no tap 'parts\.7@attention' in Block; did you mean .*'parts\.0'"),
        ("@attention", r"no tap '@attention' in Block$"),
    ],
)
def test_a_tap_that_is_not_named_rightly_is_refused(tap, said):
    model = Block(Attention())
    with pytest.raises(UserError, match=said), record(model, [tap]):
        pass
    assert hooks(model) == 0


# --- real models


@pytest.fixture(scope="module")
def transformers():
    return pytest.importorskip("transformers", reason="transformers is not installed")


@pytest.fixture(scope="module")
def timm():
    return pytest.importorskip("timm", reason="timm is not installed", exc_type=ImportError)


FAMILIES = {
    "Bert": ({}, "encoder.layer.{}.attention.self"),
    "GPT2": ({"n_embd": 16, "n_layer": 2, "n_head": 4}, "h.{}"),
    "Llama": ({"num_key_value_heads": 2}, "layers.{}.self_attn"),
    "Qwen3": ({"num_key_value_heads": 2, "head_dim": 4}, "layers.{}"),
    "ModernBert": ({}, "layers.{}.attn"),
    "ViT": ({"image_size": 16, "patch_size": 8}, "layers.{}.attention"),
    "Beit": ({"image_size": 16, "patch_size": 8, "use_relative_position_bias": True}, "layers.{}"),
}


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize(
    ("family", "padded"),
    [(family, padded) for family in FAMILIES for padded in (False, True) if not (padded and family in ("ViT", "Beit"))],
)
def test_the_attentions_are_those_that_hugging_face_puts_out(transformers, family, padded, implementation):
    options, path = FAMILIES[family]
    images = "image_size" in options
    special = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"))
    config = getattr(transformers, f"{family}Config")(**(SMALL if images else TEXT | special) | options)
    torch.manual_seed(0)
    model = getattr(transformers, f"{family}Model")._from_config(
        copy.deepcopy(config), attn_implementation=implementation
    )
    eager = getattr(transformers, f"{family}Model")._from_config(copy.deepcopy(config), attn_implementation="eager")
    eager.load_state_dict(model.state_dict())
    inputs = (torch.randn(2, 3, 16, 16),) if images else (IDS,)
    mask = {"attention_mask": (torch.arange(7) < torch.tensor([[7], [4]])).long()} if padded else {}
    paths = [f"{path.format(layer)}@attention" for layer in range(2)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = eager.eval()(*inputs, **mask, output_attentions=True).attentions
        taps = tapped(model.eval(), paths, *inputs, **mask)
    for tap, theirs in zip(paths, expected, strict=True):
        keep = (
            mask["attention_mask"].bool() if padded else torch.ones(theirs.shape[0], theirs.shape[2], dtype=torch.bool)
        )
        mine = taps[tap].transpose(1, 2)[
            keep
        ]  # [valid queries, N, S]: what a padded query looks at is anybody's choice
        torch.testing.assert_close(mine, theirs.transpose(1, 2)[keep], atol=1e-5, rtol=0)


def test_timms_vision_transformer_matches_its_attention_written_out(timm):
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=5).eval()
    images, weights = torch.randn(2, 3, 32, 32), torch.randn(2, 3, 5, 5)
    with record(model, ["blocks.1.attn@attention", "blocks.0", "blocks.1@values"]) as taps:
        model(images)
    attn, normed = model.blocks[1].attn, model.blocks[1].norm1(taps["blocks.0"])
    q, k, v = attn.qkv(normed).reshape(2, 5, 3, 3, 64).permute(2, 0, 3, 1, 4)
    expected = (attn.q_norm(q) @ attn.k_norm(k).mT * attn.scale).softmax(-1)
    torch.testing.assert_close(taps["blocks.1.attn@attention"], expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(taps["blocks.1@values"], v, atol=1e-5, rtol=0)
    wanted = torch.autograd.grad((expected * weights).sum(), (attn.qkv.weight, model.cls_token), retain_graph=True)
    got = torch.autograd.grad((taps["blocks.1.attn@attention"] * weights).sum(), (attn.qkv.weight, model.cls_token))
    for mine, theirs in zip(got, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-4)


def test_of_windows_the_attention_is_one_for_each(timm):
    torch.manual_seed(0)
    model = timm.create_model(
        "swin_tiny_patch4_window7_224", img_size=32, window_size=4, embed_dim=12, depths=(2, 2), num_heads=(1, 2)
    ).eval()
    images = torch.randn(2, 3, 32, 32)
    path = "layers.0.blocks.1.attn"
    attention = tapped(model, [f"{path}@attention"], images)[f"{path}@attention"]
    assert attention.shape == (2 * 4, 1, 16, 16)
    explicit = copy.deepcopy(model)
    for module in explicit.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False
    torch.testing.assert_close(tapped(explicit, [f"{path}@attention"], images)[f"{path}@attention"], attention)
    with pytest.raises(UserError, match="explicit softmax"):
        tapped(explicit, [f"{path}@keys"], images)
