"""A job on paper: its arithmetic against built models, real stores, and hand calculation; and what it refuses."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import transformers
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from edgestill import progress
from edgestill.cli import main
from edgestill.paper import on_paper
from edgestill.plan.here import measured
from edgestill.plan.memory import Held, memory
from edgestill.plan.transformer import Transformer, read_config
from edgestill.recipe import load_recipe
from edgestill.recipe.paper import load_paper
from edgestill.stores import capture, plan
from text_recipes import TOKENS, written

T = 16
SAME = {"vocab_size": 1000, "hidden_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4}
LLAMA = {**SAME, "intermediate_size": 344, "num_key_value_heads": 2}
GPT2 = {
    "vocab_size": 1000,
    "n_embd": 128,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 64,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
MODELS = {
    "llama": ("Llama", "CausalLM", {**LLAMA, "tie_word_embeddings": False}),
    "llama, tied": ("Llama", "CausalLM", {**LLAMA, "tie_word_embeddings": True}),
    "llama, biased": ("Llama", "CausalLM", {**LLAMA, "attention_bias": True, "mlp_bias": True}),
    "mistral": ("Mistral", "CausalLM", {**LLAMA, "head_dim": 24}),
    "qwen2": ("Qwen2", "CausalLM", LLAMA),
    "qwen3": ("Qwen3", "CausalLM", {**LLAMA, "head_dim": 24}),
    "gpt2": ("GPT2", "LMHeadModel", GPT2),
    "bert": ("Bert", "ForSequenceClassification", {**SAME, "intermediate_size": 512, "num_labels": 5}),
}  # fmt: skip
SMALL = "teacher: {layers: 2, width: 64, heads: 4, feed_forward: 128, vocabulary: 500}\n"
JOB = f"{SMALL}{SMALL.replace('teacher', 'student')}tokens: 1M\nlength: 128\nbatch: 4096\nhardware: l4\n"


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The teacher of the stores is fitted once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGESTILL_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def built(name: str) -> torch.nn.Module:
    family, kind, options = MODELS[name]
    config = getattr(transformers, f"{family}Config")(**options)
    torch.manual_seed(0)
    return getattr(transformers, f"{family}{'For' if kind == 'CausalLM' else ''}{kind}")(config)


def sizes(module: torch.nn.Module, folder: Path) -> Transformer:
    module.config.save_pretrained(folder)
    return read_config(folder)


@pytest.mark.parametrize("name", MODELS)
def test_parameters_and_operations_are_those_of_the_built_model(name: str, tmp_path: Path) -> None:
    module = built(name).eval()
    found = sizes(module, tmp_path)
    assert found.parameters == sum(parameter.numel() for parameter in module.parameters())
    ids = torch.ones(2, T, dtype=torch.long)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as forward, torch.no_grad():
        module(ids)
    assert forward.get_total_flops() == 2 * found.forward_flops(T)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as both:
        module(ids).logits.sum().backward()
    assert both.get_total_flops() == 2 * found.train_flops(T)


@pytest.mark.parametrize("how", ["float32", "autocast", "bf16"])
@pytest.mark.parametrize("name", MODELS)
def test_what_the_backward_pass_keeps_is_what_autograd_saves(name: str, how: str, tmp_path: Path) -> None:
    module = built(name)
    found = sizes(module, tmp_path)
    module.train().to(torch.bfloat16 if how == "bf16" else torch.float32)
    saved: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    autocast = torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast")
    with autocast, torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        module(torch.ones(2, T, dtype=torch.long), attention_mask=torch.ones(2, T, dtype=torch.long))
    weights = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}
    shapes = {shape for one in module.parameters() for shape in (one.shape, one.shape[::-1])}
    copies = {at for at, one in saved.items() if one.dtype == torch.bfloat16 and one.shape in shapes}
    held = sum(one.untyped_storage().nbytes() for at, one in saved.items() if at not in weights | copies)
    said = 2 * (found.layers * found.layer_kept(T, how) + found.end_kept(T, how))
    assert said == pytest.approx(held, rel=0.05 if found.dropout else 0.025)


def test_the_built_in_jobs_are_the_models_that_they_name() -> None:
    """As published: Llama 3.1 8B and 70B, Llama 3.2 1B and 3B."""
    found = [on_paper(load_paper(name)) for name in ("8b-1b", "70b-3b")]
    counts = [result[role]["parameters"] for result in found for role in ("teacher", "student")]
    assert counts == [8_030_261_248, 1_235_814_400, 70_553_706_496, 3_212_749_824]


def test_a_built_in_job_by_hand() -> None:
    result = on_paper(load_paper("8b-1b"))
    # 2 × (parameters less embeddings and norms) and 4·T·H·D of attention in each layer
    teacher = 2 * (8_030_261_248 - 128_256 * 4096 - 65 * 4096) + 4 * 4096 * 4096 * 32
    student = 3 * (2 * (1_235_814_400 - 33 * 2048) + 4 * 4096 * 2048 * 16)
    assert result["teacher"]["forward_flops_a_token"] == teacher
    assert result["student"]["train_flops_a_token"] == student
    tokens = 10**10 // 4096 * 4096
    spent, rate = result["seconds"], 8 * 989.4e12
    assert spent["teacher"] == pytest.approx(tokens * teacher / (0.5 * rate))
    # AdamW: 7 numbers of 4 bytes a parameter and step, an eighth of them on each device
    optimizer = 10_006 * 7 * 4 * 1_235_814_400 / 8 / 3.35e12
    assert spent["student"] == pytest.approx(tokens * student / (0.4 * rate) + optimizer)
    dense, top_k, sampled = (store["bytes_a_position"] for store in result["stores"])
    assert (dense, top_k, sampled) == (2 * 128_256, 6 * 32 + 4, 5 * 16 + 5)
    assert result["stores"][2]["bytes"] == pytest.approx(tokens * 85, rel=0.01)


def test_memory_by_hand() -> None:
    small = Transformer(2, 8, 2, 1, 4, 16, 1000)
    how = Held(precision="float32", teacher="float32")
    parts = memory(small, small, how, length=4, texts=10_000, told=4000)
    assert parts["teacher weights"] == parts["student weights"] == 4 * small.parameters
    assert parts["optimizer"] == 8 * small.parameters
    assert parts["logits"] == 3 * 4 * 1000 * 40_000  # the teacher's, the student's, and their gradient
    assert parts["total"] == sum(size for name, size in parts.items() if name != "total")
    few = memory(small, small, how, length=4, texts=1, told=4000)
    assert few["gradients"] == 4 * small.parameters, (
        "with few tokens the fullest moment is the end of the backward pass"
    )
    sharded = memory(
        small, small, Held(precision="float32", teacher="float32", devices=4), length=4, texts=1, told=4000
    )
    assert sharded["optimizer"] == 2 * small.parameters


def test_recomputing_takes_less_memory_and_more_operations() -> None:
    plain, again = (
        on_paper(load_paper("8b-1b", ["train.texts=4", f"train.recompute={flag}"])) for flag in ("false", "true")
    )
    used = [result["memory"]["stored"]["bytes"]["activations"] for result in (plain, again)]
    assert used[1] < used[0] / 4
    assert again["seconds"]["student"] > plain["seconds"]["student"] * 1.2
    assert again["seconds"]["teacher"] == plain["seconds"]["teacher"]


def test_a_store_pays_after_its_capture() -> None:
    once, thrice = (on_paper(load_paper("8b-1b", [f"epochs={epochs}"]))["seconds"] for epochs in (1, 3))
    assert once["stored"] == pytest.approx(once["online"])
    assert thrice["online"] - thrice["stored"] == pytest.approx(2 * thrice["teacher"])
    assert once["break_even"] == pytest.approx(1)
    slow = on_paper(load_paper("8b-1b", ["store.codec=dense", "epochs=3"]))
    assert slow["seconds"]["disk_bound"]
    assert slow["seconds"]["epoch"] == pytest.approx(slow["stores"][0]["bytes"] / 2e9), "read at 2 GB a second"
    assert slow["seconds"]["break_even"] is None


@pytest.mark.parametrize("codec", ["dense", "top-k", "sampled"])
def test_bytes_of_a_store_are_those_of_plan_and_of_the_disk(codec: str, tmp_path: Path, kept: None) -> None:
    sets = ["teacher.fit.keep=true", "teacher.fit.epochs=2", f"capture.codec={codec}", "capture.k=8"]
    recipe = load_recipe(written(tmp_path, TOKENS), sets)
    said = plan(recipe, track=progress.silent)
    capture(recipe, tmp_path / "store", track=progress.silent)
    disk = sum(path.stat().st_size for path in (tmp_path / "store" / "shards").iterdir())
    planned = next(one for one in said["codecs"] if one["name"] == codec)
    length = round(said["positions"] / said["samples"])
    sizes = f"{{layers: 2, width: 64, heads: 4, feed_forward: 128, vocabulary: {said['classes']}}}"
    different = [f"store.different={(planned['bytes_a_position'] - 5) / 3}"] if codec == "sampled" else []
    models = [f"teacher={sizes}", f"student={sizes}", "store.k=8", *different]
    job = load_paper(written(tmp_path, JOB), [*models, f"tokens={said['positions']}", f"length={length}"])
    found = next(store for store in on_paper(job)["stores"] if store["name"] == codec)
    assert found["bytes_a_position"] == pytest.approx(planned["bytes_a_position"])
    assert found["bytes"] == pytest.approx(planned["bytes"], rel=0.01)
    if codec != "sampled":  # whose different classes the plan knows of a few passes alone
        assert found["bytes"] == pytest.approx(disk, rel=0.01)


def test_the_command_prints_a_table_and_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["paper", "8b-1b"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("teacher   8.03B parameters, 16.1 GB")
    assert any("(published)" in line and "(assumed)" in line for line in lines)
    assert main(["paper", str(written(tmp_path, JOB)), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["hardware"]["of"] == {"peak": "published", "share": "assumed", "reserve": "assumed"}
    assert found["teacher"]["parameters"] == 2 * (4 * 64 * 64 + 3 * 64 * 128 + 128) + 2 * 500 * 64 + 64


def test_a_config_stands_for_sizes_and_its_path_is_the_jobs(tmp_path: Path) -> None:
    module = built("bert")
    module.config.save_pretrained(tmp_path / "net")
    models = "teacher: {config: net}\nstudent: {config: net/config.json}\n"
    found = on_paper(load_paper(written(tmp_path, f"{models}tokens: 1M\nlength: 16\n")))
    assert found["teacher"]["parameters"] == sum(parameter.numel() for parameter in module.parameters())
    assert found["stores"][0]["bytes_a_position"] == 2 * 5, "an answer a text, of five classes"
    assert found["notes"] == ["the student is no smaller than its teacher"]


def test_a_job_that_fits_nowhere_says_what_helps(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["paper", "70b-3b", "--set", "hardware={name: l4, devices: 8}"]) == 0
    out = capsys.readouterr().out
    line = next(line for line in out.splitlines() if "does not fit" in line)
    assert "train.recompute: true" in line
    count = int(line.partition(" devices, sharded")[0].split()[-1])
    assert count > 8
    sets = [f"hardware={{name: l4, devices: {count}}}", "train.recompute=true"]
    assert main(["paper", "70b-3b", "--json", *(word for one in sets for word in ("--set", one))]) == 0
    assert json.loads(capsys.readouterr().out)["memory"]["online"]["fits"], "what it says holds"


@pytest.mark.parametrize("job", ["8b-1b", "70b-3b"])
def test_the_page_shows_what_the_command_prints(job: str, capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parents[1] / "docs" / "planning.md").read_text(encoding="utf-8")
    assert main(["paper", job]) == 0
    assert " ".join(capsys.readouterr().out.split()) in " ".join(page.split())


def test_this_machine_is_measured() -> None:
    on = measured()
    assert 1e9 < on.peak_float32 < 1e14
    assert 1e8 < on.bandwidth < 1e13
    assert on.of == ("measured", "assumed", "assumed"), "the shares are of another machine"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("tokens=10G", "job: tokens: a count needs one of the units K, M, B, T, as in '10B'; '10G' came"),
        ("tokens=0", "job: tokens: Input should be greater than or equal to 1; 0 came"),
        ("tokens=100", "tokens must be at least one text of 128 (length); 100 came"),
        ("hardware=h100", "hardware.name must be one of a100-80gb, h100-sxm, h200, l4, rtx-4090, here; 'h100' came; "
                          "did you mean 'h200' or 'h100-sxm'?"),
        ("teacher.layer=2", "job: unknown key 'layer' in teacher; did you mean 'layers'?"),
        ("hardware.devices=33", "batch: 33 devices need a text each a step; 4096 tokens are 32"),
        ("hardware={name: here, devices: 2}", "hardware.devices: here is one device; 2 came"),
        ("batch=64", "batch, tokens a step, must be at least length (128); 64 came"),
        ("student.heads=3", "width must be a multiple of heads, or head_width said; 64, 3 came"),
        ("student.key_value_heads=3", "heads must be a multiple of key_value_heads; 4, 3 came"),
        ("student={layers: 2}", "student: width, heads, feed_forward, vocabulary must be written, or config: FILE"),
        ("student.config=net", "student: config says all sizes; layers came beside it"),
        ("student={config: nowhere}", "no config.json at"),
        ("store={codec: top-k, k: 500}", "store.k: top-k keeps fewer than all 500 classes; 500 came: take dense"),
        ("store.different=17", "different must lie in 1…draws (16); 17 came"),
        ("train={weights: bf16, precision: float32}", "weights: bf16 needs precision: bf16; float32 came"),
        ("hardware.disk=2 GBs", "a size needs one of the units"),
        ("tokns=1B", "job: unknown key 'tokns'; did you mean 'tokens'?"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(change: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = JOB.replace("hardware: l4", "hardware: {name: l4}")
    assert main(["paper", str(written(tmp_path, job)), "--set", change]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_a_model_of_a_family_that_is_not_known_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "lama"}')
    job = written(tmp_path, JOB)
    assert main(["paper", str(job), "--set", f"teacher={{config: {tmp_path}}}"]) == 2
    assert "'lama' came; did you mean 'llama'?: write its sizes" in capsys.readouterr().err
    assert main(["paper", "9b-1b"]) == 2
    assert "no job file '9b-1b', and no built-in one (70b-3b, 8b-1b); did you mean" in capsys.readouterr().err
