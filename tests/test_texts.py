"""Texts, from a recipe to measured files: one end-to-end run a task, and what is promised of each part."""

import json
import os
import re
import shutil
import signal
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch.nn import functional

import small_texts
from edgestill import progress
from edgestill import run as job
from edgestill.assemble import assemble
from edgestill.cli import main
from edgestill.data.splitting import hold_out
from edgestill.data.texts import load_texts
from edgestill.errors import UserError
from edgestill.evaluate.tokens import BITS_PER_BYTE
from edgestill.models import TextInput, forward, load_text_model
from edgestill.recipe import load_recipe
from edgestill.students.depth import blocks_of, kept_blocks, shallower
from edgestill.tasks.sequences import Sequences
from edgestill.tasks.tokens import packed

HERE = Path(__file__).parent
NETS = f"{HERE}/small_texts.py"
CLASSES = f"""
task: text-classification
data: {{train: "{NETS}:train", test: "{NETS}:test"}}
teacher: {{model: "{NETS}:bert", fit: {{epochs: 6, lr: 3e-3}}}}
student: {{from_teacher: {{depth: 2}}}}
distill: {{terms: [{{loss: hint}}, {{loss: attention_kl}}, {{loss: attention_relation}}]}}
train: {{epochs: 3, lr: 2e-3}}
"""
TOKENS = f"""
task: language-modeling
data: {{train: "{NETS}:train", test: "{NETS}:test", length: 32}}
teacher: {{model: "{NETS}:llama", fit: {{epochs: 6, lr: 3e-3}}}}
student: {{from_teacher: {{depth: 2}}}}
train: {{epochs: 3, lr: 2e-3}}
"""


def written(folder: Path, text: str) -> Path:
    (folder / "recipe.yaml").write_text(text)
    return folder / "recipe.yaml"


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("classes")
    job.run(load_recipe(written(folder, CLASSES)), folder / "run", track=progress.silent)
    return folder / "run"


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokens")
    job.run(load_recipe(written(folder, TOKENS)), folder / "run", track=progress.silent)
    return folder / "run"


def result_of(run: Path) -> dict:
    return json.loads((run / "result.json").read_text())


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


def test_same_seed_same_bits_and_resuming_ends_the_same(classes: Path, tmp_path: Path) -> None:
    recipe = load_recipe(written(tmp_path, CLASSES))
    stopped = tmp_path / "run"

    def interrupt(items, description, total):
        for step, item in enumerate(items):
            if description == "student seed 0" and step == total // 2:
                os.kill(os.getpid(), signal.SIGINT)
            yield item

    with pytest.raises(KeyboardInterrupt):
        job.run(recipe, stopped, track=interrupt, deliver_files=False)
    job.run(recipe, stopped, resume=True, track=progress.silent, deliver_files=False)
    assert result_of(stopped)["arms"] == result_of(classes)["arms"]


def test_a_language_model_goes_from_recipe_to_measured_files(tokens: Path) -> None:
    result = result_of(tokens)
    assert result["metric"] == {"name": "bits per byte", "higher_is_better": False, "chance": 0.0}
    student = result["arms"]["student"]
    assert student["gap"] == pytest.approx(student["mean"] - result["teacher"]["quality"])
    assert student["mean"] < result["arms"]["scratch"]["mean"] < 8
    whole, dynamic = result["artifacts"]
    assert whole["quality"] == pytest.approx(student["mean"], abs=1e-5)
    assert whole["samples"] >= 1000, "as many tokens"
    assert abs(dynamic["quality"] - student["mean"]) < 0.01
    assert result["budget"]["met"]
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tokens / "student").eval()
    assert model.config.num_hidden_layers == 2
    words = model.generate(torch.tensor([[2]]), max_new_tokens=5, do_sample=False)
    assert words.shape[1] > 1


def test_bits_per_byte_are_those_of_the_whole_text(tokens: Path) -> None:
    """Independent of how it is cut: the sum of −log2 p over all tokens, each with what its block holds before it."""
    model = load_text_model(str(tokens / "student"), head="tokens", length=32)
    expected = model.input
    assert isinstance(expected, TextInput)
    data = small_texts.test()["text"]
    blocks = packed(load_texts({"test": small_texts.test}, label="none")["test"], expected)
    ids = [3]
    for text in data:
        ids += [*expected.tokenizer(text, add_special_tokens=False)["input_ids"], 3]
    bits, module = 0.0, model.module.eval()
    for start in range(0, len(ids) - 1, 32):
        block = torch.tensor(ids[start : start + 33])
        with torch.no_grad():
            logits = module(block[None, :-1]).logits[0]
        bits += float(functional.cross_entropy(logits, block[1:], reduction="sum")) / np.log(2)
    in_bytes = sum(len(text.encode()) for text in data)
    assert int(blocks.bytes.sum()) == in_bytes
    parts = assemble(load_recipe(written(tokens.parent, TOKENS)), progress.silent)
    assert len(parts.splits.test) == len(blocks)
    assert result_of(tokens)["arms"]["student"]["mean"] == pytest.approx(bits / in_bytes, rel=1e-5)
    assert parts.metric is BITS_PER_BYTE


def test_bytes_are_counted_whatever_the_characters() -> None:
    from transformers import PreTrainedTokenizerFast

    made = small_texts.tokenizer(("été", "😀", "日本"))
    assert isinstance(made, PreTrainedTokenizerFast)
    expected = TextInput(made, 8, ("input_ids",), "")
    texts = ["été 😀 日本 film", "film  ", ""]
    ids, sizes = expected.plain(texts)
    assert [int(size.sum()) for size in sizes] == [len(text.encode()) for text in texts[:2]] + [0]
    assert sizes[0].tolist() == [5, 5, 7, 5]
    assert [len(row) for row in ids] == [4, 1, 0]


def test_blocks_hold_every_token_once() -> None:
    model = load_text_model(f"{NETS}:llama", head="tokens", length=10)
    blocks = packed(load_texts({"train": small_texts.train}, label="none")["train"], model.input)
    learned = np.concatenate([blocks.targets(np.array([row])).ravel() for row in range(len(blocks))])
    np.testing.assert_array_equal(learned[learned >= 0], blocks.ids[1:])
    inputs = blocks.inputs(np.arange(3), model.input)
    assert inputs.shape == (3, 2, 10)
    np.testing.assert_array_equal(inputs[1:, 0, 0], blocks.targets(np.arange(3))[:2, -1], "no token is lost between")


@pytest.mark.parametrize("family", small_texts.CLASSIFIERS + small_texts.GENERATORS)
def test_a_student_of_some_blocks_is_its_teachers_with_the_others_left_out(family: str, tmp_path: Path) -> None:
    """Of every family, told by structure alone: saved, loaded by transformers, and computed with these blocks."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    torch.manual_seed(0)
    teacher = getattr(small_texts, family)()[0].eval()
    probe = torch.arange(4, 20).reshape(2, 8)
    paths = blocks_of(teacher, probe)
    assert len(paths) == 4
    student = shallower(teacher, probe, [0, 2]).eval()
    student.save_pretrained(tmp_path)
    kind = AutoModelForCausalLM if family in small_texts.GENERATORS else AutoModelForSequenceClassification
    with torch.no_grad():
        told = student(probe).logits
        torch.testing.assert_close(kind.from_pretrained(tmp_path).eval()(probe).logits, told, rtol=0, atol=0)
        kept = teacher.get_submodule(paths[0].rpartition(".")[0])
        del kept[3], kept[1]  # the teacher itself, cut by hand
        teacher.config.num_hidden_layers = 2
        torch.testing.assert_close(forward(teacher, probe), told, rtol=0, atol=1e-6)
    fresh = shallower(small_texts.bert()[0], probe, [0], weights=False)
    assert fresh.config.num_hidden_layers == 1


def test_blocks_are_kept_as_asked() -> None:
    assert kept_blocks(12, 4, "spread") == [0, 4, 7, 11]
    assert kept_blocks(12, 0.5, "first") == [0, 1, 2, 3, 4, 5]
    assert kept_blocks(6, 2, "last") == [4, 5]
    assert kept_blocks(6, 1, "spread") == [0]
    with pytest.raises(UserError, match="the teacher has 6 blocks; 7 were asked for"):
        kept_blocks(6, 7, "spread")
    with pytest.raises(UserError, match="the teacher's blocks are 0…5; 6 came"):
        kept_blocks(6, None, [0, 6])
    with pytest.raises(UserError, match="no list of blocks to choose from"):
        blocks_of(torch.nn.Sequential(torch.nn.Embedding(9, 4), torch.nn.Linear(4, 4)), torch.ones(2, 3).long())


def test_padding_changes_nothing() -> None:
    """A text answers alone as in a batch with longer ones, and so do its terms: hints, attentions, relations."""
    from edgestill.losses import attention_kl, attention_relation, hint, sp
    from edgestill.objective import Objective, Term
    from edgestill.signals import Signal
    from edgestill.taps import record

    torch.manual_seed(0)
    student, teacher = small_texts.bert()[0].eval(), small_texts.bert()[0].eval()
    ids = torch.tensor([[2, 4, 5, 3, 0, 0], [2, 6, 7, 8, 9, 3]])
    layer = "bert.encoder.layer.3"
    terms = {
        "hint": Term(hint, layer, layer),
        "attention": Term(attention_kl, f"{layer}.attention.self@attention", f"{layer}.attention.self@attention"),
        "relation": Term(attention_relation, f"{layer}@values", f"{layer}@values"),
    }

    def parts(rows: torch.Tensor, chosen: dict[str, Term]) -> dict[str, float]:
        mask = (rows > 0).long()
        objective = Objective(terms=chosen, alpha=1.0)
        with torch.no_grad(), record(teacher, objective.teacher_taps) as taps:
            logits = teacher(rows, mask).logits
        with record(student, objective.student_taps) as own:
            told = student(rows, mask).logits
        made = objective(told, torch.zeros(len(rows)).long(), Signal(logits, taps), own, tokens=mask.bool())
        return {name: float(value.detach()) for name, value in made.values.items()}

    together, alone = parts(ids, terms), [parts(ids[:1, :4], terms), parts(ids[1:], terms)]
    for name in terms:
        by_token = (4 * alone[0][name] + 6 * alone[1][name]) / 10
        assert together[name] == pytest.approx(by_token, rel=1e-4), name
        assert together[name] > 0
    assert together["soft"] == pytest.approx((alone[0]["soft"] + alone[1]["soft"]) / 2, rel=1e-4)
    similar = {"sp": Term(sp, layer, layer)}
    longer = torch.cat([ids, torch.zeros(2, 3).long()], 1)
    assert parts(ids, similar)["sp"] == pytest.approx(parts(longer, similar)["sp"], rel=1e-3)


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
teacher: {{model: "{NETS}:bert", fit: {{epochs: 20, lr: 3e-3}}}}
student: {{model: "{NETS}:distilbert"}}
train: {{epochs: 15, lr: 3e-3}}
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


def test_a_split_of_texts_is_read_from_any_kind_of_file(tmp_path: Path) -> None:
    import datasets

    rows = [{"text": 'a "good" film', "label": "pos"}, {"text": "bad, dull", "label": "neg"}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "a.json").write_text(json.dumps(rows))
    (tmp_path / "a.csv").write_text('text,label\n"a ""good"" film",pos\n"bad, dull",neg\n')
    (tmp_path / "a.tsv").write_text('text\tlabel\na "good" film\tpos\nbad, dull\tneg\n')
    (tmp_path / "b.tsv").write_text('a "good" film\tpos\nbad, dull\tneg\n')
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "a.parquet")
    read = [
        load_texts({"train": str(tmp_path / f"a.{kind}")})["train"]
        for kind in ["jsonl", "json", "csv", "tsv", "parquet"]
    ]
    read.append(load_texts({"train": str(tmp_path / "b.tsv")}, columns={"text": 0, "label": 1})["train"])
    for texts in read:
        assert list(texts.texts) == ['a "good" film', "bad, dull"]
        assert (texts.labels.tolist(), texts.classes) == ([1, 0], ("neg", "pos"))
        assert texts.fingerprint == read[0].fingerprint
    (tmp_path / "a.txt").write_text("line one\nline two\n")
    assert load_texts({"train": str(tmp_path / "a.txt")}, label="none")["train"].texts == ["line one\nline two\n"]
    rest, held = hold_out(load_texts({"train": small_texts.train})["train"], 0.1, seed=0)
    assert (len(rest), len(held)) == (720, 80)
    assert rest.texts[0] in small_texts.train()["text"]


KINDS = ("jsonl", "json", "csv", "tsv", "parquet")
BAD = {
    "empty": ("", "jsonl", {}, "the train split needs texts; .* has none"),
    "no column": (
        '{"a": "x"}',
        "jsonl",
        {},
        "needs a column 'text'; its columns are 'a': name the right",
    ),
    "named column": ('{"text": "x"}', "jsonl", {"text": "b"}, "needs a column 'b'; its columns are 'text'"),
    "no text": ('{"text": 3}', "jsonl", {}, "column 'text' needs texts; row 0 has '3'"),
    "no json": ('{"text": ', "jsonl", {}, "line 1 is not JSON"),
    "ragged": ("text,label\na", "csv", {}, "line 2 needs 2 cells"),
    "mixed labels": ('{"text": "a", "label": 1.5}', "jsonl", {}, "labels need to be all whole numbers or all class"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_data_is_one_line(name: str, tmp_path: Path) -> None:
    content, kind, columns, said = BAD[name]
    (tmp_path / f"train.{kind}").write_text(content)
    with pytest.raises(UserError, match=said) as raised:
        load_texts({"train": str(tmp_path / f"train.{kind}")}, columns=columns)
    assert "\n" not in str(raised.value)


REFUSED = {
    "too many embeddings": (
        CLASSES, ["teacher.options={vocab_size: 20}"],
        r"its tokenizer \(.*\) has 23 ids, the model embeds 20: it is another model's",
    ),
    "too long": (CLASSES, ["data.length=500"], "data.length: .* takes at most 48 tokens; 500 came"),
    "not cut": (CLASSES, ["data.length=8", "data.too_long=refuse"], "have more tokens than the 8 that the teacher"),
    "few blocks": (TOKENS, ["train.batch_size=4096"], "makes .* blocks of 32 tokens, less than a batch of 4096"),
    "vocabularies": (
        TOKENS, ["student={model: %s:gpt2_of_more}"],
        "vocabularies differ: the teacher .* has 23 tokens .* and 23 logits, the student .* 24",
    ),
    "depth": (CLASSES, ["student.from_teacher.depth=9"], "the teacher has 4 blocks; 9 were asked for"),
    "format": (CLASSES, ["export=[onnx-int8]"], "text models are exported to onnx, onnx-int8-dynamic; onnx-int8 came"),
    "views": (CLASSES, ["train.views.flip=true"], "train.views: is for images"),
    "numbers": (CLASSES, ["data.label=number", "distill.loss=kl"], "for which it is regression or none; kl came"),
    "classes": (CLASSES, ["teacher.options={num_classes: 3}"], "class counts differ: the teacher .* puts out 3"),
    "relation": (
        CLASSES, ["distill.terms=[{loss: attention_relation, student: bert.encoder.layer.0, map: first}]"],
        "it takes PATH@queries, @keys and @values as they are",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_together_is_refused_before_anything_is_written(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, overrides, said = REFUSED[name]
    more = tmp_path / "more.py"
    more.write_text(
        f"import sys\nsys.path.insert(0, {str(HERE)!r})\nimport small_texts\n\n"
        "def gpt2_of_more():\n"
        "    model, _ = small_texts.gpt2()\n"
        "    model.resize_token_embeddings(24)\n"
        "    return model, small_texts.tokenizer(('new',))\n"
    )
    sets = [word for override in overrides for word in ("--set", override.replace("%s", str(more)))]
    arguments = ["run", str(written(tmp_path, text)), "--out", str(tmp_path / "run"), "--quiet", *sets]
    assert main(arguments) == 2
    told = capsys.readouterr().err
    assert re.search(said, told), told
    assert told.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_padded_vocabularies_are_aligned(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As of Qwen's sizes: one tokenizer, but more rows of embeddings on one side."""
    text = TOKENS.replace("student: {from_teacher: {depth: 2}}", f'student: {{model: "{NETS}:llama"}}')
    parts = assemble(load_recipe(written(tmp_path, text), ["teacher.options={vocab_size: 32}"]), progress.silent)
    assert parts.splits.train.vocabulary == 23
    batch = parts.splits.train.batch(np.arange(2), np.zeros(2, np.int64), 0)
    outputs = torch.randn(2, 32, 32)
    assert batch.answers(outputs).shape == (64, 23)


def test_cut_texts_are_counted(tmp_path: Path) -> None:
    recipe = load_recipe(written(tmp_path, CLASSES), ["data.length=10", "train.epochs=0.2", "teacher.fit.epochs=2"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job, "check_teacher", lambda *_: None)
        result = job.run(recipe, tmp_path / "run", track=progress.silent, deliver_files=False)
    tokenizer = small_texts.tokenizer()
    longer = sum(len(ids) > 10 for ids in tokenizer(small_texts.test()["text"])["input_ids"])
    assert longer > 0
    assert result["data"]["cut"]["test"] == longer


TEMPLATE = (
    "{% for message in messages %}[CLS] {{ message.role }} : {{ message.content }} [SEP] {% endfor %}"
    "{% if add_generation_prompt %}[CLS] assistant :{% endif %}"
)
CHAT = f"""
import sys
sys.path.insert(0, {str(HERE)!r})
import small_texts


def chat():
    model, _ = small_texts.llama(vocab_size=26)
    made = small_texts.tokenizer(("user", "assistant", ":"))
    made.chat_template = {TEMPLATE!r}
    return model, made


def rows(count, seed):
    data = small_texts.sentences(count, seed)
    word = {{"pos": "good film", "neg": "bad"}}
    return {{"prompt": data["text"], "response": [word[label] for label in data["label"]]}}


def train():
    return rows(800, 0)


def test():
    return rows(200, 1)
"""
INSTRUCTION = """
task: instruction
data: {train: "chat.py:train", test: "chat.py:test", length: 40, validation: 0.1}
teacher: {model: "chat.py:chat", fit: {epochs: 8, lr: 3e-3}}
student: {from_teacher: {depth: 2}}
train: {epochs: 2, lr: 2e-3}
compare: {scratch: false}
export: [onnx]
"""


def test_the_assistants_tokens_alone_are_learned(tmp_path: Path) -> None:
    (tmp_path / "chat.py").write_text(CHAT)
    result = job.run(load_recipe(written(tmp_path, INSTRUCTION)), tmp_path / "run", track=progress.silent)
    parts = assemble(load_recipe(tmp_path / "run" / "recipe.yaml"), progress.silent)
    blocks, tokenizer = parts.splits.test, parts.teacher.input.tokenizer
    targets = blocks.targets(np.arange(3))
    told = [tokenizer.decode(row[row >= 0]) for row in targets]
    data = small_texts.sentences(200, 1)
    word = {"pos": "good film [SEP]", "neg": "bad [SEP]"}
    assert told == [word[label] for label in data["label"][:3]]
    assert int(blocks.bytes.sum()) == sum(len(word[label]) - len(" [SEP]") for label in data["label"])
    batch = blocks.batch(np.arange(3), np.zeros(3, np.int64), 0)
    assert batch.counts(parts.teacher.input).positions == len(batch.labels) == (targets >= 0).sum()
    assert batch.answers(torch.randn(3, targets.shape[1], 26)).shape == (len(batch.labels), 26)
    # the label is in the prompt: who reads it needs next to no bits, who guesses one for each answer
    assert result["teacher"]["quality"] < 0.1
    assert result["artifacts"][0]["quality"] == pytest.approx(result["arms"]["student"]["mean"], abs=1e-4)
    longer = load_recipe(tmp_path / "run" / "recipe.yaml", ["data.length=12"])
    assert assemble(longer, progress.silent).splits.train.cut > 0


@pytest.mark.parametrize(
    ("change", "override", "said"),
    [
        ("made.chat_template = None", [], "has no chat template, which says how a conversation is written"),
        (
            "made.chat_template = '{{ messages[-1].content }}'",
            [],
            "writes earlier messages other",
        ),
        ("pass", ["data.length=12", "data.too_long=refuse"], "have more tokens than data.length, 12"),
        (
            "pass",
            ["data.columns={prompt: question}"],
            "needs a column 'question'; its columns are 'prompt'",
        ),
    ],
)
def test_conversations_that_cannot_be_learned_are_refused(
    change: str, override: list[str], said: str, tmp_path: Path
) -> None:
    (tmp_path / "chat.py").write_text(CHAT.replace("    return model, made", f"    {change}\n    return model, made"))
    with pytest.raises(UserError, match=said):
        assemble(load_recipe(written(tmp_path, INSTRUCTION), override), progress.silent)


def test_messages_are_read_as_they_are_published(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    (tmp_path / "a.jsonl").write_text(json.dumps({"messages": messages}) + "\n")
    texts = load_texts({"train": str(tmp_path / "a.jsonl")}, label="messages")["train"]
    assert json.loads(texts.texts[0]) == messages
    (tmp_path / "b.jsonl").write_text(json.dumps({"messages": messages[:1]}) + "\n")
    with pytest.raises(UserError, match="with a message of the assistant's; row 0 has"):
        load_texts({"train": str(tmp_path / "b.jsonl")}, label="messages")


def test_terms_and_lengths_that_two_models_cannot_share_are_refused(tmp_path: Path) -> None:
    other = tmp_path / "other.py"
    other.write_text(
        f"import sys\nsys.path.insert(0, {str(HERE)!r})\nimport small_texts\n\n"
        "def bert():\n    model, _ = small_texts.bert(vocab_size=24)\n"
        "    return model, small_texts.tokenizer(('new',))\n\n"
        "def short():\n    return small_texts.llama(max_position_embeddings=16)\n\n"
        "def encoder():\n"
        "    from transformers import BertConfig, BertLMHeadModel\n"
        "    config = BertConfig(**small_texts.SHAPE, **small_texts.LONG, vocab_size=23, pad_token_id=0)\n"
        "    return BertLMHeadModel(config), small_texts.tokenizer()\n\n"
        "def swapped():\n    model, made = small_texts.bert()\n"
        "    model.config.id2label = {0: 'pos', 1: 'neg'}\n    return model, made\n"
    )
    terms = CLASSES.replace("{from_teacher: {depth: 2}}", f'{{model: "{other}:bert"}}')
    with pytest.raises(UserError, match="teacher and student split texts into other tokens, which terms cannot pair"):
        assemble(load_recipe(written(tmp_path, terms)), progress.silent)
    assemble(load_recipe(tmp_path / "recipe.yaml", ["distill.terms=[]"]), progress.silent)
    shorter = TOKENS.replace("{from_teacher: {depth: 2}}", f'{{model: "{other}:short"}}').replace(", length: 32", "")
    parts = assemble(load_recipe(written(tmp_path, shorter)), progress.silent)
    assert parts.teacher.input.length == parts.student(0).input.length == 16
    assert parts.splits.train.inputs(np.arange(1), parts.teacher.input).shape[2] == 16
    encoder = TOKENS.replace(f"{NETS}:llama", f"{other}:encoder")
    with pytest.raises(UserError, match="looks at the tokens behind the one that it answers: it is an encoder"):
        assemble(load_recipe(written(tmp_path, encoder)), progress.silent)
    swapped = CLASSES.replace(f"{NETS}:bert", f"{other}:swapped")
    with pytest.raises(UserError, match=r"the same in another order; set teacher.classes=\[1, 0\]"):
        assemble(load_recipe(written(tmp_path, swapped)), progress.silent)


def test_a_length_of_the_width_of_a_head_is_no_attention_and_samples_are_counted_apart() -> None:
    from edgestill.losses import attention_relation, hint, rkd
    from edgestill.objective import Objective, Term
    from edgestill.signals import Signal

    values, pooled = torch.randn(4, 2, 8, 8), torch.randn(4, 16)
    hidden, tokens = torch.randn(4, 8, 16), torch.ones(4, 8, dtype=torch.bool)
    terms = {
        "relation": Term(attention_relation, "v@values", "v@values"),
        "pooled": Term(hint, "pooled", "pooled"),
        "rkd": Term(rkd, "hidden", "hidden"),
        "own": Term(lambda student, teacher: (student - teacher).square().mean(), "hidden", "hidden"),
    }
    student = {"v@values": values, "pooled": pooled, "hidden": hidden}
    teacher = {name: torch.randn_like(tap) for name, tap in student.items()}
    objective = Objective(alpha=0.5, terms=terms)
    logits, labels = torch.randn(4 * 8, 5), torch.zeros(4 * 8).long()
    signal = Signal(torch.randn(4 * 8, 5), teacher)
    whole = objective(logits, labels, signal, student, tokens=tokens)
    assert float(whole.values["pooled"]) == pytest.approx(float((pooled - teacher["pooled"]).square().mean()), rel=1e-5)
    assert float(whole.values["own"]) == pytest.approx(float((hidden - teacher["hidden"]).square().mean()), rel=1e-5)
    objective = Objective(alpha=0.5, terms={name: term for name, term in terms.items() if name != "own"})
    counted = objective(logits, labels, signal, student, tokens=tokens, counts=(32, 32, 32, 4))
    for name in ("relation", "pooled", "rkd", "hard", "soft"):
        assert float(counted.values[name]) == pytest.approx(float(whole.values[name]), rel=1e-5), name


def test_the_taps_of_a_text_model_are_listed(classes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["taps", str(classes / "student")]) == 0
    listed = capsys.readouterr().out
    assert "bert.encoder.layer.1.attention.self@attention" in listed
    assert main(["taps", f"{NETS}:llama", "--json"]) == 0
    paths = [tap["path"] for tap in json.loads(capsys.readouterr().out)]
    assert "model.layers.3" in paths
    assert main(["taps", "hf:/nowhere"]) == 2
    assert "no Hugging Face image classifier" in capsys.readouterr().err
