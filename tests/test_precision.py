"""A teacher in bfloat16 or with weights of 8 bits: near the float one, smaller, and a teacher like any other."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import small_texts
from edgestill import arms, progress
from edgestill import runs as job
from edgestill.assemble import assemble
from edgestill.cli import main
from edgestill.data.texts import load_texts
from edgestill.errors import UserError
from edgestill.evaluate.classification import ACCURACY
from edgestill.evaluate.metric import predictor
from edgestill.models import dequantized, flops, forward, in_float32, load_text_model, lower
from edgestill.models.precision import Int8Linear
from edgestill.recipe import load_recipe
from edgestill.students.depth import blocks_of, shallower
from edgestill.taps import found
from edgestill.tasks.sequences import Sequences
from edgestill.teachers.online import OnlineTeacher
from text_recipes import CLASSES, NETS, TOKENS, stopped_and_resumed, written

HERE = Path(__file__).parent
CPU = torch.device("cpu")
IDS = torch.arange(4, 20).reshape(2, 8)
# how far a logit may be from the float one, as a share of their spread
NEAR = {"float32": 0.0, "bf16": 0.06, "int8": 0.06}


def made(family: str, precision: str, **changed: Any) -> nn.Module:
    """A model of the family that is wide enough for its linear layers to be most of it."""
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "intermediate_size": 128} | changed
    module = getattr(small_texts, family)(**shape)[0].eval()
    lower(module, precision, family)
    return module


def in_bytes(tensors: list[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def linear_weights(module: nn.Module) -> list[Tensor]:
    layers = [part for part in module.modules() if isinstance(part, nn.Linear | Int8Linear)]
    return [tensor for part in layers for tensor in (part.weight, getattr(part, "scale", None)) if tensor is not None]


@pytest.mark.parametrize("precision", ["float32", "bf16", "int8"])
@pytest.mark.parametrize("family", ["llama", "bert"])
def test_logits_are_near_the_float_ones(family: str, precision: str) -> None:
    with torch.no_grad():
        wanted = forward(made(family, "float32"), IDS)
        told = forward(made(family, precision), IDS).float()
    assert float((told - wanted).abs().max()) <= NEAR[precision] * float(wanted.std())
    assert precision == "float32" or not torch.equal(told, wanted)


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_fewer_bits_take_less_memory(family: str) -> None:
    whole, half, eighth = (made(family, precision) for precision in ("float32", "bf16", "int8"))
    assert in_bytes([*half.parameters()]) == in_bytes([*whole.parameters()]) / 2
    shares = in_bytes(linear_weights(eighth)) / in_bytes(linear_weights(whole))
    assert 0.25 < shares < 0.25 + 1 / 32  # a scale beside at least 32 inputs
    others = {name for name, tensor in eighth.named_parameters() if tensor.dtype != torch.int8}
    assert all(eighth.get_parameter(name).dtype == torch.float32 for name in others)
    for module in (half, eighth):
        assert sum(one.numel() for one in module.parameters()) == sum(one.numel() for one in whole.parameters())
        assert [(tap.path, tap.parameters) for tap in found(module, IDS, every=True)] == [
            (tap.path, tap.parameters) for tap in found(whole, IDS, every=True)
        ]


def test_an_int8_layer_answers_as_the_float_layer_that_it_gives_back() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(24, 5)
    layer.weight.data[3] = 0
    eight = Int8Linear(layer)
    inputs = torch.randn(2, 3, 24)
    torch.testing.assert_close(eight(inputs), eight.linear()(inputs), rtol=0, atol=0)
    assert bool(((eight.linear().weight - layer.weight).abs() <= eight.scale[:, None] / 2 + 1e-7).all())
    with torch.autocast("cpu", torch.bfloat16):
        assert eight(inputs).dtype == torch.bfloat16


def test_rotary_frequencies_keep_their_precision() -> None:
    half, whole = made("llama", "bf16"), made("llama", "float32")
    frequencies = half.model.rotary_emb.inv_freq
    torch.testing.assert_close(frequencies, whole.model.rotary_emb.inv_freq, rtol=0, atol=0)


def test_a_weight_that_is_shared_stays() -> None:
    tied = made("llama", "int8", tie_word_embeddings=True)
    assert tied.lm_head.weight is tied.model.embed_tokens.weight
    assert isinstance(tied.model.layers[0].mlp.up_proj, Int8Linear)


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_a_float_copy_answers_alike_and_is_a_plain_model(precision: str) -> None:
    lowered, whole = made("llama", precision), made("llama", "float32")
    copied = in_float32(lowered)
    assert {part.dtype for part in copied.parameters()} == {torch.float32}
    assert [*copied.state_dict()] == [*whole.state_dict()]
    assert in_float32(whole) is whole
    with torch.no_grad():
        wanted, told = forward(lowered, IDS).float(), forward(copied, IDS)
    torch.testing.assert_close(told, wanted, rtol=0, atol=1e-5 if precision == "int8" else 0.02)
    assert len({*map(id, lowered.parameters())} & {*map(id, copied.parameters())}) == 0


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_a_student_of_its_blocks_is_in_float32(precision: str) -> None:
    teacher = made("llama", precision)
    student = shallower(teacher, IDS, [0, 2])
    assert {part.dtype for part in student.parameters()} == {torch.float32}
    assert [type(part) for part in student.modules() if "Int8" in type(part).__name__] == []
    wanted = dequantized(teacher.state_dict())["model.layers.2.mlp.up_proj.weight"].float()
    torch.testing.assert_close(student.model.layers[1].mlp.up_proj.weight.data, wanted, rtol=0, atol=0)
    assert blocks_of(teacher, IDS) == [f"model.layers.{number}" for number in range(4)]


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_operations_are_counted_as_of_the_float_teacher(precision: str) -> None:
    model = load_text_model(f"{NETS}:llama", head="tokens")
    lowered = load_text_model(f"{NETS}:llama", head="tokens", precision=precision)
    assert flops(lowered) == flops(model) > 0


def saved_llama(folder: Path, **changed: Any) -> str:
    """A model whose file is in bfloat16, as those of several billion parameters are."""
    torch.manual_seed(0)
    small_texts.llama(**changed)[0].bfloat16().save_pretrained(folder)
    small_texts.tokenizer().save_pretrained(folder)
    return f"hf:{folder}"


def test_a_file_is_read_in_the_precision_that_it_is_wanted_in(tmp_path: Path) -> None:
    spec = saved_llama(tmp_path / "llama")
    kinds = {
        precision: {
            str(part.dtype) for part in load_text_model(spec, head="tokens", precision=precision).module.parameters()
        }
        for precision in ("float32", "bf16", "int8")
    }
    assert kinds == {
        "float32": {"torch.float32"},
        "bf16": {"torch.bfloat16"},
        "int8": {"torch.float32", "torch.int8"},
    }


LIMITED = """
import resource, sys
sys.path[:0] = {paths!r}
import conftest, small_texts
from edgestill.models import load_text_model
load_text_model({small!r}, head="tokens", precision="bf16")
used = 1024 * int(next(line for line in open("/proc/self/status") if line.startswith("VmData")).split()[1])
resource.setrlimit(resource.RLIMIT_DATA, (used + {room}, resource.RLIM_INFINITY))
load_text_model({large!r}, head="tokens", precision="bf16")
print("bf16")
load_text_model({large!r}, head="tokens")
print("float32")
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits of memory are kept as Linux keeps them")
def test_no_float_copy_is_made_on_the_way(tmp_path: Path) -> None:
    """Within memory for one and a half times the file, in which a float32 model has no room."""
    wide = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12}
    names = {"small": saved_llama(tmp_path / "small"), "large": saved_llama(tmp_path / "large", **wide)}
    room = int(1.5 * (tmp_path / "large" / "model.safetensors").stat().st_size)
    script = LIMITED.format(paths=[str(HERE.parent), str(HERE)], room=room, **names)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.split() == ["bf16"], done.stderr


QUICK = ["teacher.fit.epochs=4", "train.epochs=0.5", "compare.scratch=false"]


@pytest.fixture(scope="module", params=["bf16", "int8"])
def lowered(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, bare_runs: Any
) -> tuple[str, Path]:
    folder = tmp_path_factory.mktemp(request.param)
    recipe = load_recipe(written(folder, CLASSES), [*QUICK, "export=[onnx]", f"teacher.precision={request.param}"])
    with bare_runs(with_report=True, with_teacher=True):
        job.run(recipe, folder / "run", track=progress.silent)
    return request.param, folder / "run"


def test_a_whole_run_with_a_lowered_teacher(lowered: tuple[str, Path]) -> None:
    """Fitted in float32 and kept so; what is measured of it is what it teaches as."""
    precision, run = lowered
    result = json.loads((run / "result.json").read_text())
    assert result["status"] == "done"
    assert result["teacher"]["precision"] == precision
    assert f"taught in {precision}" in (run / "report.html").read_text()
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    parts = next(line["parts"] for line in lines if line["arm"] == "student" and "parts" in line)
    assert {name.partition("/")[0] for name in parts} == {"hard", "soft", "hint", "attention_kl", "attention_relation"}
    for folder in ("teacher", "student"):
        assert {tensor.dtype for tensor in load_file(run / folder / "model.safetensors").values()} == {torch.float32}
    told = probabilities(run / "teacher", precision)
    with np.load(run / "predictions.npz") as saved:
        np.testing.assert_allclose(saved["teacher"], told, atol=1e-6)
        assert np.abs(saved["teacher"] - probabilities(run / "teacher", "float32")).max() > 1e-5
    assert result["teacher"]["quality"] == (told.argmax(1) == labels()).mean()


def labels() -> np.ndarray:
    return np.array([label == "pos" for label in small_texts.test()["label"]])


def probabilities(folder: Path, precision: str) -> np.ndarray:
    """Of a saved classifier on the test set, as the run asks it: sorted by length, 64 texts a call."""
    model = load_text_model(str(folder), head="classes", classes=("neg", "pos"), precision=precision)
    samples = Sequences(load_texts({"test": small_texts.test})["test"])
    return (
        torch.from_numpy(ACCURACY.answers(predictor(model.module, model.input, CPU), samples, model.input))
        .softmax(-1)
        .numpy()
    )


def test_the_verbs_go_on_with_a_lowered_teacher(lowered: tuple[str, Path]) -> None:
    _, run = lowered
    before = json.loads((run / "result.json").read_text())
    assert main(["export", str(run), "--quiet"]) == 0
    after = json.loads((run / "result.json").read_text())
    assert after["teacher"]["bytes"] == before["teacher"]["bytes"] > 4 * after["teacher"]["parameters"]


@pytest.mark.usefixtures("bare")
def test_resuming_with_a_lowered_teacher_ends_the_same(lowered: tuple[str, Path], tmp_path: Path) -> None:
    precision, whole = lowered
    recipe = load_recipe(written(tmp_path, CLASSES), [*QUICK, "export=[onnx]", f"teacher.precision={precision}"])
    stopped = stopped_and_resumed(whole, tmp_path / "run", recipe)
    results = [json.loads((run / "result.json").read_text()) for run in (stopped, whole)]
    assert results[0]["arms"] == results[1]["arms"]


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_signals_are_in_float32(tmp_path: Path, precision: str) -> None:
    overrides = [f"teacher={{model: '{saved_llama(tmp_path / 'llama')}', precision: {precision}}}"]
    parts = assemble(load_recipe(written(tmp_path, TOKENS), overrides), progress.silent)
    assert {part.dtype for part in parts.teacher.module.parameters()} != {torch.float32}
    assert {part.dtype for part in parts.student(0).module.parameters()} == {torch.float32}
    batch = parts.batches("student", 0, None)(0, parts.schedule("student").at(0))
    taps = ["model.layers.1", "model.layers.1.self_attn@attention", "model.layers.1.self_attn@values"]
    for training in (torch.float32, torch.bfloat16):
        signal = OnlineTeacher(parts.teacher, CPU, training)(batch, taps)
        assert {value.dtype for value in (signal.logits, *signal.taps.values())} == {torch.float32}


def test_a_kept_teacher_serves_every_precision(tmp_path: Path) -> None:
    recipe = written(tmp_path, CLASSES)
    kept = {
        arms._same_teacher(assemble(load_recipe(recipe, [f"teacher.precision={one}"]), progress.silent))
        for one in ("float32", "bf16", "int8")
    }
    assert len(kept) == 1


NARROW = """
import torch
from torch import nn


class Narrow(nn.Module):
    def __init__(self, num_classes=2, vocab_size=23):
        super().__init__()
        self.table, self.layer, self.head = nn.Embedding(vocab_size, 8), {layer}, nn.Linear(8, num_classes)

    def forward(self, input_ids, attention_mask=None):
        return {head}(self.layer(self.table(input_ids).float()).mean(1))


def narrow(num_classes=2, vocab_size=23):
    sys.path.insert(0, {here!r})
    import small_texts
    return Narrow(num_classes, vocab_size), small_texts.tokenizer()
"""


def test_what_cannot_be_lowered_is_refused_before_any_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = str(written(tmp_path, CLASSES))
    (tmp_path / "narrow.py").write_text(
        "import sys\n" + NARROW.format(layer="nn.LayerNorm(8)", head="self.head", here=str(HERE))
    )
    narrow = f"teacher={{model: '{tmp_path}/narrow.py:narrow', fit: {{epochs: 1}}}}"
    other = [f"student={{model: '{NETS}:bert'}}", "distill.terms=[]"]
    cases = [
        (["teacher.precision=int4"], "teacher.precision: Input should be 'float32', 'bf16' or 'int8'; 'int4' came"),
        ([narrow, *other, "teacher.precision=bf16"], "narrow does not answer in bf16: "),
        (
            ["task=language-modeling", f"teacher.model={NETS}:gpt2", "distill.terms=[]", "teacher.precision=int8"],
            "teacher.precision: int8 is for the weights of linear layers, of which",
        ),
    ]
    for overrides, said in cases:
        flags = [flag for override in overrides for flag in ("--set", override)]
        assert main(["train", recipe, "--quiet", "--out", str(tmp_path / "run"), *flags]) == 2
        told = capsys.readouterr().err
        assert said in told
        assert told.count("\n") == 1
        assert not (tmp_path / "run").exists()
    with pytest.raises(
        UserError, match=r"teacher\.precision: bf16 is for text models; the task is image-classification"
    ):
        load_recipe("digits", ["teacher.precision=bf16"])
