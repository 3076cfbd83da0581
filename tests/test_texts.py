"""Texts, from a recipe to measured files: one end-to-end run of a classifier, and what is promised of each part."""

import json
import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

import small_texts
from edgestill import progress
from edgestill import runs as job
from edgestill.arms import check_teacher
from edgestill.assemble import assemble
from edgestill.cli import main
from edgestill.data.texts import load_texts
from edgestill.errors import UserError
from edgestill.models import TextInput, load_text_model, save_student
from edgestill.recipe import load_recipe
from edgestill.tasks.sequences import Sequences
from text_recipes import CLASSES, NETS, THREE_BLOCKS, result_of, stopped_and_resumed, written


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("classes")
    job.run(load_recipe(written(folder, CLASSES), THREE_BLOCKS), folder / "run", track=progress.silent)
    return folder / "run"


def test_a_classifier_goes_from_recipe_to_measured_files(classes: Path) -> None:
    result = result_of(classes)
    assert result["status"] == "done"
    assert result["classes"] == ["neg", "pos"]
    assert result["teacher"]["quality"] > 0.9
    assert list(result["arms"]) == ["baseline", "student", "scratch"]
    assert result["arms"]["student"]["mean"] > 0.85
    assert result["arms"]["student"]["difference"]["to"] in ("baseline", "scratch")
    assert [artifact["name"] for artifact in result["artifacts"]] == ["onnx", "onnx-int8-dynamic"]
    whole, dynamic = result["artifacts"]
    assert whole["agreement"] == 1
    assert whole["max_abs_error"] < 1e-4
    assert whole["quality"] == result["arms"]["student"]["seeds"][0]["quality"]
    assert dynamic["agreement"] > 0.97
    assert dynamic["bytes"] < whole["bytes"]
    for artifact in result["artifacts"]:
        assert artifact["samples"] == 200
        assert 0 < artifact["shortest"]["tokens"] < artifact["tokens"]
        assert artifact["shortest"]["latency_ms"]["p50"] > 0
        assert artifact["latency_ratio"] > 0
    lines = [json.loads(line) for line in (classes / "metrics.jsonl").read_text().splitlines()]
    parts = next(line["parts"] for line in lines if line["arm"] == "student" and "parts" in line)
    assert {name.partition("/")[0] for name in parts} == {"hard", "soft", "hint", "attention_kl", "attention_relation"}
    assert (classes / "report.html").is_file()


def test_the_student_is_a_plain_hugging_face_folder_with_its_tokenizer(classes: Path) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(classes / "student").eval()
    tokenizer = AutoTokenizer.from_pretrained(classes / "student")
    assert model.config.num_hidden_layers == 2
    data = small_texts.test()
    batch = tokenizer(data["text"], padding=True, return_tensors="pt")
    with torch.no_grad():
        told = model(batch["input_ids"], batch["attention_mask"]).logits.argmax(1)
    right = (told.numpy() == np.array([label == "pos" for label in data["label"]])).mean()
    assert right == pytest.approx(result_of(classes)["arms"]["student"]["seeds"][0]["quality"])


def test_the_file_takes_texts_of_any_number_and_length(classes: Path) -> None:
    session = onnxruntime.InferenceSession(classes / "exports" / "onnx" / "student.onnx")
    assert [(end.name, end.shape) for end in session.get_inputs()] == [
        ("input_ids", ["batch", "length"]),
        ("attention_mask", ["batch", "length"]),
    ]
    short, long = (np.arange(2, 2 + count)[None] for count in (3, 20))
    padded = np.zeros((2, 20), np.int64)
    padded[0, :3], padded[1] = short[0], long[0]
    mask = (padded > 0).astype(np.int64)

    def told(ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        return session.run(None, {"input_ids": ids, "attention_mask": mask})[0]

    together = told(padded, mask)
    np.testing.assert_allclose(together[0], told(short, np.ones_like(short))[0], atol=1e-5)
    np.testing.assert_allclose(together[1], told(long, np.ones_like(long))[0], atol=1e-5)


def test_the_verbs_go_on_from_a_run_of_texts(classes: Path, tmp_path: Path) -> None:
    again = shutil.copytree(classes, tmp_path / "again")
    assert main(["export", str(again), "--quiet", "--set", "export=[onnx]"]) == 0
    before, after = result_of(classes)["artifacts"][0], result_of(again)["artifacts"][0]
    assert after["quality"] == before["quality"]
    assert (again / after["path"]).read_bytes() == (classes / before["path"]).read_bytes()
    for verb in ("evaluate", "bench", "report"):
        assert main([verb, str(again)] + ["--quiet"] * (verb != "report")) == 0


@pytest.mark.usefixtures("bare")
def test_same_seed_same_bits_and_resuming_ends_the_same(classes: Path, tmp_path: Path) -> None:
    recipe = load_recipe(written(tmp_path, CLASSES), THREE_BLOCKS)
    stopped = stopped_and_resumed(classes, tmp_path / "run", recipe)
    assert result_of(stopped)["arms"] == result_of(classes)["arms"]


@pytest.mark.usefixtures("bare")
def test_accumulating_gradients_of_texts_is_one_batch(tmp_path: Path) -> None:
    terms = ["compare.baseline=false", "compare.scratch=false", "train.epochs=0.3", "train.clip=null"]
    recipe = written(tmp_path, CLASSES.replace("{loss: attention_relation}", "{loss: attention_relation, weight: 2}"))
    losses = []
    for pieces in (1, 4):
        made = load_recipe(recipe, [*terms, f"train.accumulate={pieces}", "teacher.fit.epochs=2"])
        out = tmp_path / f"run{pieces}"
        with pytest.MonkeyPatch.context() as patch:  # a teacher of so few epochs is no better than guessing
            patch.setattr(job, "check_teacher", lambda *_: None)
            job.run(made, out, track=progress.silent, deliver_files=False)
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        losses.append([line["loss"] for line in lines if line["arm"] == "student" and "loss" in line])
    # dropout draws otherwise in pieces: the first loss is of equal weights all the same
    assert losses[0][0] == pytest.approx(losses[1][0], rel=0.25)


@pytest.mark.usefixtures("bare")
def test_numbers_are_learned_as_numbers(tmp_path: Path) -> None:
    data = small_texts.sentences(400, 0)
    for name, rows in (("train", slice(300)), ("test", slice(300, 400))):
        lines = [
            json.dumps({"a": text, "score": 2.5 if label == "pos" else -1.0})
            for text, label in zip(data["text"][rows], data["label"][rows], strict=True)
        ]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    text = f"""
task: text-classification
data: {{source: ., columns: {{text: a, label: score}}, label: number}}
teacher: {{model: "{NETS}:bert", options: {{num_hidden_layers: 2}}, fit: {{epochs: 15, lr: 3e-3}}}}
student: {{model: "{NETS}:bert", options: {{num_hidden_layers: 1}}}}
train: {{epochs: 10, lr: 3e-3}}
compare: {{baseline: false}}
"""
    recipe = load_recipe(written(tmp_path, text))
    result = job.run(recipe, tmp_path / "run", track=progress.silent, deliver_files=False)
    assert result["metric"]["name"] == "correlation"
    assert result["teacher"]["quality"] > 0.8
    assert result["arms"]["student"]["mean"] > 0.6


def test_two_sentences_and_two_tokenizers(tmp_path: Path) -> None:
    """Pairs, with a student whose tokenizer is another: each model gets the texts in its own tokens."""
    data = small_texts.sentences(60, 0)
    half = len(data["text"]) // 2
    rows = [
        {"text": one, "text_pair": other, "label": int(a == b)}
        for one, other, a, b in zip(
            data["text"][:half], data["text"][half:], data["label"][:half], data["label"][half:], strict=True
        )
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    texts = load_texts({"train": str(tmp_path / "rows.jsonl")})["train"]
    model = load_text_model(f"{NETS}:bert", head="classes", classes=texts.classes, pairs=True)
    assert isinstance(model.input, TextInput)
    assert model.input.names == ("input_ids", "attention_mask", "token_type_ids")
    samples = Sequences(texts)
    inputs = samples.inputs(np.arange(2), model.input)
    own = model.input.tokenizer(
        [row["text"] for row in rows[:2]],
        [row["text_pair"] for row in rows[:2]],
        padding=True,
        return_tensors="np",
        return_token_type_ids=True,
    )
    for place, name in enumerate(model.input.names):
        np.testing.assert_array_equal(inputs[:, place], own[name])
    assert texts.classes == ("0", "1")


@pytest.mark.usefixtures("bare")
def test_cut_texts_are_counted(tmp_path: Path) -> None:
    recipe = load_recipe(written(tmp_path, CLASSES), ["data.length=10", "train.epochs=0.2", "teacher.fit.epochs=2"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job, "check_teacher", lambda *_: None)
        result = job.run(recipe, tmp_path / "run", track=progress.silent, deliver_files=False)
    tokenizer = small_texts.tokenizer()
    longer = sum(len(ids) > 10 for ids in tokenizer(small_texts.test()["text"])["input_ids"])
    assert longer > 0
    assert result["data"]["cut"]["test"] == longer


def test_the_taps_of_a_text_model_are_listed(classes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["taps", str(classes / "student")]) == 0
    listed = capsys.readouterr().out
    assert "bert.encoder.layer.1.attention.self@attention" in listed
    assert main(["taps", f"{NETS}:llama", "--json"]) == 0
    paths = [tap["path"] for tap in json.loads(capsys.readouterr().out)]
    assert "model.layers.3" in paths
    assert main(["taps", "hf:/nowhere"]) == 2
    assert "no Hugging Face image classifier" in capsys.readouterr().err


def test_a_classifier_that_guesses_may_have_another_models_tokenizer(tmp_path: Path) -> None:
    parts = assemble(load_recipe(written(tmp_path, CLASSES)), progress.silent)
    said = r"no better than guessing: 40.0% .* is its tokenizer \(.*\) another model's"
    with pytest.raises(UserError, match=said):
        check_teacher(parts.metric, 0.4, parts.splits.validation, parts.teacher)


def test_what_is_saved_does_not_depend_on_what_was_tokenized_before(tmp_path: Path) -> None:
    model = load_text_model(f"{NETS}:bert", head="classes", classes=("neg", "pos"), length=8)
    for name in ("before", "behind"):
        save_student(model, tmp_path / name, ("neg", "pos"))
        model.input.tokenizer(["good good good", "bad"], padding=True, truncation=True, max_length=2)
    files = [{path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("before", "behind")]
    assert files[0] == files[1]
