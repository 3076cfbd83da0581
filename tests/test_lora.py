"""Students trained by adapters of low rank: what trains, what it ends as, and what is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import small_texts
from edgestill import checkpoint, progress
from edgestill import runs as job
from edgestill.assemble import assemble
from edgestill.cli import main
from edgestill.errors import UserError
from edgestill.models import forward, load_text_model
from edgestill.recipe import load_recipe
from edgestill.students.lora import Lora, adapted, targets_of
from edgestill.taps import record
from edgestill.train import Options, _optimizer
from test_texts_refused import PLAIN
from text_recipes import CLASSES, TOKENS, stopped_and_resumed, written

pytest.importorskip("peft", reason="adapters are peft's")

IDS = torch.arange(4, 20).reshape(2, 8)
QUICK = ["student.lora={rank: 2, alpha: 8, dropout: 0.1}", "teacher.fit.epochs=4", "train.epochs=1", "train.lr=1e-2"]
INSIDE = ("query", "key", "value", "attention.output.dense", "intermediate.dense", "output.dense")


def perturbed(module: nn.Module) -> None:
    """As if it had been trained: a student begins with adapters that add nothing."""
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)


@pytest.mark.parametrize("family", small_texts.CLASSIFIERS + small_texts.GENERATORS)
def test_adapters_begin_as_nothing_and_end_in_the_weights(family: str) -> None:
    """Of every family, on all linear layers of its blocks and on none outside."""
    torch.manual_seed(0)
    module = getattr(small_texts, family)()[0].eval()
    before = {key: value.clone() for key, value in module.state_dict().items()}
    kinds = {path: type(part) for path, part in module.named_modules()}
    targets = targets_of(module, IDS)
    linear = [path for path, kind in kinds.items() if kind.__name__ in ("Linear", "Conv1D")]
    assert [*targets] == [path for path in linear if any(part.isdigit() for part in path.split("."))]
    assert len(targets) >= 16
    with torch.no_grad():
        plain = forward(module, IDS)
        with adapted(module, Lora(2, 8.0, 0.0, targets)), record(module, [targets[0]]) as taps:
            torch.testing.assert_close(forward(module, IDS), plain, rtol=0, atol=0)
            perturbed(module)
            told = forward(module, IDS)
            assert taps[targets[0]].shape[:2] == IDS.shape
        assert (told - plain).abs().max() > 1e-3
        torch.testing.assert_close(forward(module, IDS), told, rtol=0, atol=1e-5)
    assert {path: type(part) for path, part in module.named_modules()} == kinds
    after = module.state_dict()
    assert after.keys() == before.keys()
    changed = {key for key in after if not torch.equal(after[key], before[key])}
    assert changed == {f"{path}.weight" for path in targets}
    assert all(parameter.requires_grad for parameter in module.parameters())
    assert not hasattr(module, "peft_config")


def test_adapters_alone_get_gradients_and_a_place_in_the_optimizer() -> None:
    module = small_texts.bert()[0]
    with adapted(module, Lora(2, 8.0, 0.0, targets_of(module, IDS)), ("classifier.weight", "classifier.bias")):
        forward(module, IDS).sum().backward()
        trained = {name for name, parameter in module.named_parameters() if parameter.grad is not None}
        assert all("lora_" in name or name.startswith("classifier.") for name in trained)
        assert len(trained) == 2 * 4 * 6 + 2
        optimizer = _optimizer(module, nn.Identity(), Options(optimizer="adamw"))
        held = {id(one) for group in optimizer.param_groups for one in group["params"]}
        assert held == {id(module.get_parameter(name)) for name in trained}
    assert {*map(id, module.parameters())} & held == {*map(id, module.classifier.parameters())}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, bare_runs: Any) -> Path:
    folder = tmp_path_factory.mktemp("lora")
    recipe = load_recipe(written(folder, CLASSES), [*QUICK, "train.ema=0.9", "export=[onnx]"])
    with bare_runs(with_report=True):
        job.run(recipe, folder / "run", track=progress.silent)
    return folder / "run"


def result_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "result.json").read_text())  # type: ignore[no-any-return]


def test_a_whole_run_trains_adapters_and_delivers_a_plain_student(whole: Path) -> None:
    result = result_of(whole)
    assert result["status"] == "done"
    assert list(result["arms"]) == ["baseline", "student"], "random weights are no start for adapters"
    ranks = 2 * 2 * (4 * (16 + 16) + (16 + 32) + (32 + 16))  # blocks, rank, inputs and outputs of its layers
    assert result["student"]["trained_parameters"] == ranks < result["student"]["parameters"]
    assert f"{ranks:,} parameters trained of {result['student']['parameters']:,}" in (whole / "report.html").read_text()
    assert f"of which {ranks:,} were trained" in (whole / "student" / "README.md").read_text()
    assert result["artifacts"][0]["max_abs_error"] < 1e-4
    plain = small_texts.bert(num_hidden_layers=2)[0]
    for arm in ("baseline", "student"):
        final = checkpoint.load(whole / "arms" / arm / "0" / "final.pt")
        assert final is not None
        assert final["student"].keys() == plain.state_dict().keys()


def test_the_saved_student_answers_as_the_adapted_one(whole: Path) -> None:
    """The folder, by transformers alone, against the averaged adapters of the last checkpoint around the start."""
    from transformers import AutoModelForSequenceClassification

    parts = assemble(load_recipe(whole / "recipe.yaml"), progress.silent)
    job.reload(parts.teacher, whole / "teacher")
    student = parts.student(0).module.eval()
    begun = {key: value.clone() for key, value in student.state_dict().items()}
    last = checkpoint.load(whole / "arms" / "student" / "0" / "last.pt")
    assert last is not None
    assert parts.lora is not None
    with torch.no_grad(), adapted(student, parts.lora):
        first = forward(student, IDS)
        student.load_state_dict(last["average"])
        told = forward(student, IDS)
    saved = AutoModelForSequenceClassification.from_pretrained(whole / "student").eval()
    with torch.no_grad():
        torch.testing.assert_close(saved(IDS).logits, told, rtol=0, atol=1e-5)
    assert (told - first).abs().max() > 1e-2
    frozen = [key for key in begun if not any(f"{path}.weight" == key for path in parts.lora.targets)]
    assert "classifier.weight" in frozen
    for key in frozen:
        torch.testing.assert_close(saved.state_dict()[key], begun[key], rtol=0, atol=0)


@pytest.mark.usefixtures("bare")
def test_same_seed_same_bits_and_resuming_ends_the_same(whole: Path, tmp_path: Path) -> None:
    recipe = load_recipe(written(tmp_path, CLASSES), [*QUICK, "train.ema=0.9", "export=[onnx]"])
    stopped = stopped_and_resumed(whole, tmp_path / "run", recipe)
    assert result_of(stopped)["arms"] == result_of(whole)["arms"]
    ends = [checkpoint.load(run / "arms" / "student" / "0" / "final.pt") for run in (stopped, whole)]
    assert all(torch.equal(ends[0]["student"][key], ends[1]["student"][key]) for key in ends[1]["student"])


def test_the_verbs_go_on_from_a_run_with_adapters(whole: Path, tmp_path: Path) -> None:
    again = shutil.copytree(whole, tmp_path / "again")
    assert main(["evaluate", str(again), "--quiet"]) == 0
    assert result_of(again)["artifacts"][0]["quality"] == result_of(whole)["artifacts"][0]["quality"]


@pytest.mark.usefixtures("bare")
def test_a_new_classifier_is_trained_beside_the_adapters(tmp_path: Path) -> None:
    """Of a model whose folder has none; of one that has it, it is left as it is."""
    torch.manual_seed(0)
    bert = small_texts.bert()[0]
    bert.save_pretrained(tmp_path / "whole")
    bert.bert.save_pretrained(tmp_path / "body")
    for name in ("whole", "body"):
        small_texts.tokenizer().save_pretrained(tmp_path / name)
    fresh = {
        name: load_text_model(f"hf:{tmp_path / name}", head="classes", classes=("neg", "pos")).fresh
        for name in ("whole", "body")
    }
    assert fresh == {"whole": (), "body": ("classifier.bias", "classifier.weight")}
    lora = [*QUICK, f"student={{model: 'hf:{tmp_path / 'body'}', lora: {{rank: 1, targets: [query]}}}}"]
    recipe = load_recipe(written(tmp_path, CLASSES), [*lora, "distill.terms=[]", "compare.baseline=false"])
    job.run(recipe, tmp_path / "run", track=progress.silent, deliver_files=False)
    assert result_of(tmp_path / "run")["student"]["trained_parameters"] == 4 * 32 + 2 * 16 + 2
    final = checkpoint.load(tmp_path / "run" / "arms" / "student" / "0" / "final.pt")
    assert final is not None
    state = bert.state_dict()
    moved = {key for key, value in final["student"].items() if not torch.equal(value, state[key])}
    queries = {f"bert.encoder.layer.{number}.attention.self.query.weight" for number in range(4)}
    assert moved == queries | {*fresh["body"]}


@pytest.mark.usefixtures("bare")
def test_a_language_model_is_trained_by_adapters(tmp_path: Path) -> None:
    overrides = [*QUICK, "teacher.precision=bf16", "distill.terms=[{loss: hint, weight: balanced}]"]
    job.run(
        load_recipe(written(tmp_path, TOKENS), overrides), tmp_path / "run", track=progress.silent, deliver_files=False
    )
    result = result_of(tmp_path / "run")
    assert result["student"]["trained_parameters"] < result["student"]["parameters"] / 2
    assert result["arms"]["student"]["mean"] < 8


def test_what_has_nothing_to_adapt_is_refused_before_any_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = str(written(tmp_path, CLASSES))
    (tmp_path / "net.py").write_text(PLAIN.replace("{argument}", "input_ids"))
    bag = f"student={{model: '{tmp_path}/net.py:bag', lora: {{}}}}"
    cases = [
        (["student.lora={rank: 0}"], "student.lora.rank: Input should be greater than or equal to 1; 0 came"),
        (["student.lora={dropout: 1}"], "student.lora.dropout: Input should be less than 1"),
        ([bag, "distill.terms=[]"], "student.lora: Bag has no list of blocks to choose from"),
        (
            ["student.lora={targets: [querry]}"],
            "student.lora.targets: BertForSequenceClassification has no linear layer 'querry'; did you mean 'query'",
        ),
    ]
    for overrides, said in cases:
        flags = [flag for override in overrides for flag in ("--set", override)]
        assert main(["train", recipe, "--quiet", "--out", str(tmp_path / "run"), *flags]) == 2
        told = capsys.readouterr().err
        assert said in told
        assert told.count("\n") == 1
        assert not (tmp_path / "run").exists()
    with pytest.raises(UserError, match=r"student\.lora: is for text models; the task is image-classification"):
        load_recipe("digits", ["student.lora={}"])
    tied = small_texts.llama(tie_word_embeddings=True)[0]
    with pytest.raises(UserError, match="lm_head shares its weight with another layer"):
        targets_of(tied, IDS, ["q_proj", "lm_head"])


def test_a_plain_module_is_adapted_where_its_layers_are_named(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(PLAIN.replace("{argument}", "input_ids"))
    student = f"student={{model: '{tmp_path}/net.py:bag', lora: {{rank: 1, targets: [head]}}}}"
    parts = assemble(load_recipe(written(tmp_path, CLASSES), [student, "distill.terms=[]"]), progress.silent)
    assert parts.lora == Lora(1, 16.0, 0.0, ("head",))


def test_without_peft_the_command_that_installs_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "peft", None)  # as Python marks what cannot be imported
    recipe = str(written(tmp_path, CLASSES))
    assert main(["train", recipe, "--quiet", "--out", str(tmp_path / "run"), "--set", "student.lora={}"]) == 2
    assert "student.lora needs peft (pip install 'edgestill[lora]')" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_what_fails_inside_leaves_the_weights_that_were_there() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    before = {name: value.clone() for name, value in module.state_dict().items()}

    def fails() -> None:
        with adapted(module, Lora(2, 4.0, 0.0, ("0",))):
            for name, parameter in module.named_parameters():
                if "lora" in name:
                    nn.init.ones_(parameter)
            raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        fails()
    after = module.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert all(parameter.requires_grad for parameter in module.parameters())
