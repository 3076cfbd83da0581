"""Sentence embeddings, from a recipe to a folder that loads without edgestill, and what each part promises."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from scipy.stats import spearmanr
from torch import nn

import small_embedders
import small_texts
from edgestill import arms, progress
from edgestill import runs as job
from edgestill.assemble import STUDENT, assemble
from edgestill.cli import main
from edgestill.data.texts import load_texts
from edgestill.errors import UserError
from edgestill.evaluate.embeddings import RANK_CORRELATION, rank_correlation
from edgestill.evaluate.metric import predictor
from edgestill.export.onnx import export
from edgestill.export.verify import parity
from edgestill.losses import SOFT_LOSSES, pair_regression, similarities
from edgestill.models import TextInput, embed, forward, load_text_model, plain_logits, save_student
from edgestill.models.embedding import SentenceEmbedding
from edgestill.models.sentence_transformers import write_layout, written_layout
from edgestill.objective import Objective
from edgestill.processes import Processes
from edgestill.recipe import load_recipe
from edgestill.signals import Signal
from edgestill.tasks.embeddings import Embeddings
from edgestill.train import Options

HERE = Path(__file__).parent
NETS = f"{HERE}/small_embedders.py"
RECIPE = f"""
task: sentence-embedding
data: {{train: "{NETS}:train", test: "{NETS}:test", validation: "{NETS}:validation"}}
teacher: {{model: "{NETS}:bert", fit: {{epochs: 12, lr: 3e-3}}}}
student: {{from_teacher: {{depth: 2}}}}
distill:
  terms: [{{loss: hint}}, {{loss: hint, student: sentence_embedding, teacher: sentence_embedding}}, {{loss: rkd}}]
train: {{epochs: 4, lr: 2e-3}}
"""
ALONE = [f"data.train={NETS}:texts", "compare={baseline: false, scratch: false}"]


def written(folder: Path, text: str = RECIPE) -> Path:
    (folder / "recipe.yaml").write_text(text)
    return folder / "recipe.yaml"


def saved(folder: Path, made: tuple[Any, Any], pooling: Any = None) -> Path:
    """A Hugging Face folder, with what sentence-transformers writes beside it where a `pooling` is given."""
    module, tokenizer = made
    module.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if pooling is not None:
        write_layout(folder, pooling, 16, 40)
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, bare_runs: Any) -> Path:
    folder = tmp_path_factory.mktemp("embeddings")
    with bare_runs(with_report=True):
        job.run(load_recipe(written(folder)), folder / "run", track=progress.silent)
    return folder / "run"


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    return saved(tmp_path_factory.mktemp("teacher"), small_embedders.bert(), "mean")


def result_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "result.json").read_text())


def test_an_embedder_goes_from_recipe_to_measured_files(whole: Path) -> None:
    result = result_of(whole)
    assert result["status"] == "done"
    assert result["metric"] == {
        "name": "rank correlation", "higher_is_better": True, "chance": 0.0, "agreement": "cosine"
    }  # fmt: skip
    assert result["classes"] == []
    assert list(result["arms"]) == ["baseline", "student", "scratch"]
    assert result["teacher"]["quality"] > 0.6
    student = result["arms"]["student"]
    assert student["mean"] > max(0.6, result["arms"]["scratch"]["mean"])
    assert student["retained"] == pytest.approx(student["mean"] / result["teacher"]["quality"])
    assert result["phases"][0]["examples"] == 1600, "a pair is one"
    plain, dynamic = result["artifacts"]
    assert plain["agreement"] == pytest.approx(1, abs=1e-6)
    assert plain["max_abs_error"] < 1e-5
    assert plain["quality"] == pytest.approx(student["mean"], abs=1e-4)
    assert 0.99 < dynamic["agreement"] < 1
    assert plain["samples"] == 240, "each text is one"
    assert "divergence" not in plain
    assert 0 < plain["shortest"]["tokens"] < plain["tokens"]
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    parts = next(line["parts"] for line in lines if line["arm"] == "student" and "parts" in line)
    assert {"hard", "soft", "hint/sentence_embedding", "hint/encoder.layer.0"} <= {*parts}


def test_what_is_written_of_a_run_speaks_of_embeddings(whole: Path) -> None:
    page = re.sub(r"<style.*?</style>|<[^>]+>", " ", (whole / "report.html").read_text(), flags=re.DOTALL)
    assert "Mean cosine: of the file’s embeddings" in page
    for nonsense in ("By class", "Where the student left the teacher", "agreement"):
        assert nonsense.lower() not in page.partition("The recipe, as resolved")[0].lower(), nonsense
    card = (whole / "student" / "README.md").read_text()
    assert "| rank correlation | cosine |" in card
    assert "to the student's embeddings" in card
    assert "class" not in card
    with np.load(whole / "predictions.npz") as kept:
        assert {kept[name].shape for name in kept.files} == {(120,)}
        test = small_embedders.test()["label"]
        assert spearmanr(kept["student"], test).statistic == pytest.approx(
            result_of(whole)["arms"]["student"]["mean"], abs=1e-4
        )


def test_the_folder_loads_without_edgestill_as_the_file_answers(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By transformers alone, pooled by the lines of the model card, on texts of different lengths."""
    from transformers import AutoModel

    texts = ["the film was good", "a really dull plot and a weak cast is bad film"]
    card = (whole / "student" / "README.md").read_text()
    loading = card.partition("```python\n")[2].partition("```")[0]
    assert '["one text", "another text"]' in loading
    monkeypatch.chdir(whole / "student")
    names: dict[str, Any] = {}
    exec(loading.replace('["one text", "another text"]', repr(texts)), names)
    plain, inputs = names["embeddings"].detach().numpy(), names["inputs"]
    assert AutoModel.from_pretrained(whole / "student").config.num_hidden_layers == 2
    session = onnxruntime.InferenceSession(whole / "exports" / "onnx" / "student.onnx")
    assert [end.name for end in session.get_outputs()] == ["sentence_embedding"]
    given = {name: inputs[name].numpy() for name in ("input_ids", "attention_mask")}
    np.testing.assert_allclose(session.run(None, given)[0], plain, atol=1e-5)
    again = load_text_model(str(whole / "student"), head="embedding")
    with torch.no_grad():
        ours = forward(again.module.eval(), {name: inputs[name] for name in given})
    np.testing.assert_allclose(ours.numpy(), plain, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(plain, axis=1), 1, atol=1e-5)
    alone = {name: rows[:1, : int(given["attention_mask"][0].sum())] for name, rows in given.items()}
    np.testing.assert_allclose(session.run(None, alone)[0][0], plain[0], atol=1e-5)


def test_the_folder_is_laid_out_for_sentence_transformers(whole: Path) -> None:
    folder = whole / "student"
    modules = json.loads((folder / "modules.json").read_text())
    assert [(part["path"], part["type"].rpartition(".")[2]) for part in modules] == [
        ("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")
    ]  # fmt: skip
    assert all((folder / part["path"]).is_dir() for part in modules)
    pooling = json.loads((folder / "1_Pooling" / "config.json").read_text())
    assert pooling.pop("word_embedding_dimension") == 16
    assert {key for key, value in pooling.items() if value} == {"pooling_mode_mean_tokens"}
    assert json.loads((folder / "sentence_bert_config.json").read_text())["max_seq_length"] == 48


def test_the_verbs_go_on_from_a_run(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    again = shutil.copytree(whole, tmp_path / "again")
    assert main(["evaluate", str(again), "--quiet"]) == 0
    assert result_of(again)["artifacts"][0]["quality"] == result_of(whole)["artifacts"][0]["quality"]
    assert main(["taps", str(again / "student"), "--all"]) == 0
    listed = capsys.readouterr().out
    assert "encoder.layer.1 " in listed
    assert "sentence_embedding" in listed


def test_similarities_are_the_cosines_to_all_other_texts() -> None:
    rows = np.random.default_rng(0).normal(size=(7, 5))
    units = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    expected = np.stack([np.delete(row, place) for place, row in enumerate(units @ units.T)])
    np.testing.assert_allclose(similarities(torch.from_numpy(rows)).numpy(), expected, atol=1e-12)
    narrow = torch.from_numpy(rows).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        told = similarities(narrow)
    assert told.dtype == torch.float32
    torch.testing.assert_close(told, similarities(narrow.float()))
    assert similarities(torch.ones(1, 3)).shape == (1, 0)


def test_the_gradient_in_a_cosine_is_the_temperature_times_the_probabilities_apart() -> None:
    """What the factor T² leaves: it is bounded by T, of the size of the hard part's."""
    cosines = (torch.rand(6, 5, dtype=torch.float64) * 2 - 1).requires_grad_()
    teacher = torch.rand(6, 5).double()
    (gradient,) = torch.autograd.grad(SOFT_LOSSES["kl"](cosines, teacher, temperature=0.05), cosines)
    apart = (cosines / 0.05).softmax(1) - (teacher / 0.05).softmax(1)
    torch.testing.assert_close(gradient, 0.05 * apart.detach() / 6)


def test_the_hard_part_is_the_error_of_the_pairs_that_have_a_label() -> None:
    rows = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    labels, mask = torch.tensor([0.2, 0.0, 1.0]).double(), torch.tensor([True, False, True])
    cosine = nn.functional.cosine_similarity(rows[:3], rows[3:])
    expected = ((cosine - labels) ** 2)[mask].mean()
    found = pair_regression(similarities(rows), labels, mask=mask)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(*(torch.autograd.grad(value, rows)[0] for value in (found, expected)))
    alone = pair_regression(similarities(rows), torch.zeros(6), mask=torch.zeros(6, dtype=torch.bool))
    assert float(alone.detach()) == 0
    assert not torch.autograd.grad(alone, rows)[0].any()


@pytest.mark.parametrize("loss", SOFT_LOSSES)
def test_every_divergence_learns_from_a_teacher_of_another_width(loss: str) -> None:
    """Where a loss asks for a class, it is the teacher's nearest text."""
    torch.manual_seed(0)
    signal = Signal(similarities(torch.randn(8, 16)), {})
    rows = torch.randn(8, 6, requires_grad=True)
    objective = Objective(loss=SOFT_LOSSES[loss], alpha=0.9, temperature=0.05, hard=pair_regression)
    labels, mask = torch.zeros(4), torch.zeros(4, dtype=torch.bool)
    logits = similarities(rows)
    parts = objective(logits, labels, signal, mask=mask)
    given = {} if loss == "regression" else {"temperature": 0.05}
    torch.testing.assert_close(parts.values["soft"], SOFT_LOSSES[loss](logits, signal.logits, **given))
    first = float(parts.values["soft"].detach())
    optimizer = torch.optim.Adam([rows], lr=0.05)
    for _ in range(200):
        optimizer.zero_grad()
        parts = objective(similarities(rows), labels, signal, mask=mask)
        parts.loss.backward()
        optimizer.step()
    assert float(parts.values["soft"].detach()) < first / 2


def test_the_metric_is_spearmans_over_the_pairs_that_have_a_number() -> None:
    draw = np.random.default_rng(0)
    values = draw.integers(0, 6, 200).astype(np.float32)  # many are equal
    found = (values / 5 + draw.normal(size=200)).round(1).astype(np.float32)
    assert rank_correlation(found, values) == pytest.approx(spearmanr(found, values).statistic)
    known = draw.random(200) < 0.7
    some = np.where(known, values, np.float32(np.nan))
    assert rank_correlation(found, some) == pytest.approx(spearmanr(found[known], values[known]).statistic)
    assert rank_correlation(np.ones(200, np.float32), values) == 0
    rounded = found + draw.choice([-1e-8, 1e-8], 200).astype(np.float32)
    assert rank_correlation(rounded, values) == pytest.approx(rank_correlation(found, values))


def test_a_text_is_embedded_once_a_split(teacher: Path) -> None:
    data = {"text": ["good film", "bad film", "good film"], "text_pair": ["bad film", "a plot", "a plot"]}
    texts = load_texts({"test": lambda: data | {"label": [1, 2, 3]}}, label="similarity")["test"]
    samples, model = Embeddings(texts), load_text_model(f"hf:{teacher}", head="embedding")
    asked: list[int] = []
    predict = predictor(model.module, model.input, torch.device("cpu"))

    def counted(rows: np.ndarray) -> np.ndarray:
        asked.append(len(rows))
        return predict(rows)

    kept = RANK_CORRELATION.answers(counted, samples, model.input)
    assert sum(asked) == 3
    tokens = model.input.tokenizer
    with torch.no_grad():
        pair = [forward(model.module, {**tokens(text, return_tensors="pt")})[0] for text in ("good film", "a plot")]
    assert kept[2] == pytest.approx(float(pair[0] @ pair[1]), abs=1e-6)


def test_a_batch_has_the_first_texts_and_behind_them_the_second_ones(teacher: Path) -> None:
    parts = assemble(load_recipe(written(teacher), [f"data.train={NETS}:some_labels"]), progress.silent)
    samples, data = parts.splits.train, small_embedders.some_labels()
    assert isinstance(samples, Embeddings)
    rows = np.array([5, 2, 9])
    batch, expected = samples.batch(rows, np.zeros(3, np.int64), 0), parts.teacher.input
    assert isinstance(expected, TextInput)
    inputs = batch.inputs(expected, torch.device("cpu"))
    told = expected.tokenizer.batch_decode(inputs["input_ids"], skip_special_tokens=True)
    assert told == [data[name][row] for name in ("text", "text_pair") for row in rows]
    known = np.array([data["label"][row] is not None for row in rows])
    np.testing.assert_array_equal(batch.mask.numpy(), known)
    low, high = (extreme(label for label in data["label"] if label is not None) for extreme in (min, max))
    scaled = [0 if data["label"][row] is None else (data["label"][row] - low) / (high - low) for row in rows]
    np.testing.assert_allclose(batch.labels.numpy(), scaled, atol=1e-6)
    counts = batch.counts(expected)
    assert counts == (known.sum(), 6, int(inputs["attention_mask"].sum()), 3)
    assert batch.answers(torch.randn(6, 4)).shape == (6, 5)
    assert batch.valid(expected, torch.device("cpu")).sum() == counts.tokens


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_tokens_are_pooled_as_they_say(pooling: Any, side: str) -> None:
    if pooling == "cls" and side == "left":
        return  # the first token is the first column: sentence-transformers has no other either
    hidden, lengths = np.random.default_rng(0).normal(size=(3, 6, 4)).astype(np.float32), [6, 2, 4]
    mask = np.arange(6) < np.array(lengths)[:, None]
    if side == "left":
        mask = mask[:, ::-1].copy()
    of_text = [hidden[row][mask[row]] for row in range(3)]
    pick = {"mean": lambda rows: rows.mean(0), "cls": lambda rows: rows[0], "last": lambda rows: rows[-1]}[pooling]
    expected = np.stack([pick(rows) / np.linalg.norm(pick(rows)) for rows in of_text])
    made = SentenceEmbedding(pooling)
    found = made(torch.from_numpy(hidden), torch.from_numpy(mask).long())
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)
    whole = made(torch.from_numpy(of_text[1])[None])
    np.testing.assert_allclose(whole[0].numpy(), expected[1], atol=1e-6)


@pytest.mark.parametrize(
    ("family", "pooling"), [("bert", "mean"), ("bert", "cls"), ("llama", "mean"), ("llama", "last")]
)
def test_padding_changes_no_embedding_and_a_student_keeps_the_pooling(
    family: str, pooling: Any, tmp_path: Path
) -> None:
    """Of encoders and decoders: loaded, of some blocks, saved, loaded again, and as a file."""
    torch.manual_seed(0)
    folder = saved(tmp_path / "teacher", getattr(small_embedders, family)(), pooling)
    recipe = written(tmp_path, RECIPE.replace(f'"{NETS}:bert", fit: {{epochs: 12, lr: 3e-3}}', f'"hf:{folder}"'))
    parts = assemble(load_recipe(recipe), progress.silent)
    student = parts.student(0, STUDENT)
    assert student.module.config.num_hidden_layers == 2
    assert student.input.length == 40, "what sentence-transformers says that it takes"
    save_student(student, tmp_path / "student", ())
    assert written_layout(str(tmp_path / "student")) == (pooling, 40)
    again = load_text_model(str(tmp_path / "student"), head="embedding")
    ids = torch.arange(4, 20).reshape(2, 8)
    ids[0, 3:], mask = 0, torch.ones(2, 8).long()
    mask[0, 3:] = 0
    rows = torch.stack([ids, mask], 1)
    module = plain_logits(again).eval()
    export(module, rows[:1], tmp_path / "student.onnx", ("input_ids", "attention_mask"))
    session = onnxruntime.InferenceSession(tmp_path / "student.onnx")
    with torch.no_grad():
        padded, alone = module(ids, mask), module(ids[:1, :3], mask[:1, :3])
        torch.testing.assert_close(padded, plain_logits(student).eval()(ids, mask))
    torch.testing.assert_close(padded[:1], alone, atol=1e-5, rtol=0)
    told = session.run(None, {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})[0]
    np.testing.assert_allclose(told, padded.numpy(), atol=1e-5)


@pytest.mark.usefixtures("bare")
def test_texts_alone_are_learned_from_the_teacher(whole: Path, tmp_path: Path) -> None:
    """By a student of another width, whose similarities come nearer to the teacher's."""
    text = RECIPE.replace(f'"{NETS}:bert", fit: {{epochs: 12, lr: 3e-3}}', f'"hf:{whole / "teacher"}"')
    text = text.replace("{from_teacher: {depth: 2}}", f'{{model: "{NETS}:narrow"}}')
    terms = ["distill.terms=[{loss: hint, student: sentence_embedding, teacher: sentence_embedding}]"]
    recipe = load_recipe(written(tmp_path, text), [*ALONE, *terms, "train.epochs=8", "train.lr=5e-3"])
    result = job.run(recipe, tmp_path / "run", track=progress.silent, deliver_files=False)
    assert list(result["arms"]) == ["student"]
    assert result["data"]["labelled"] == 0
    parts = assemble(recipe, progress.silent)
    trained = load_text_model(str(tmp_path / "run" / "student"), head="embedding")

    def apart(model: Any) -> float:
        answers = [
            RANK_CORRELATION.answers(
                predictor(one.module, one.input, torch.device("cpu")), parts.splits.test, one.input
            )
            for one in (model, parts.teacher)
        ]
        return float(np.corrcoef(*answers)[0, 1])

    assert apart(trained) > 0.6 > 0.3 > apart(parts.student(0))


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ([f"data.test={NETS}:texts"], "the test split needs pairs of texts, each with a number"),
        ([f"data.validation={NETS}:texts"], "the validation split needs pairs of texts, each with a number"),
        ([f"data.test={NETS}:words_for_labels"], "labels need to be numbers; row 0 has 'alike'"),
        ([f"data.train={NETS}:texts"], r"set compare.baseline=false and compare.scratch=false, or give some"),
        (
            [f"data.train={NETS}:texts", "data.validation=0.1"],
            "data.validation: needs pairs of texts with a number each",
        ),
        (ALONE, "teacher.fit: the training split has no pairs"),
        (["train.accumulate=2"], "train.accumulate: sentence-embedding compares the texts of a whole batch"),
        (
            ["train.batch_size=2"],
            "train.batch_size: sentence-embedding compares the texts of a batch: at least 3; 2 came",
        ),
        (["distill.terms=[{loss: crd}]"], "crd: it remembers samples of one text"),
        (["train.label_smoothing=0.1"], "train.label_smoothing: is for classes"),
        (["teacher.classes=[0, 1]", "student={model: a}"], "teacher.classes: is for classes"),
    ],
)
def test_what_cannot_be_learned_or_measured_is_refused(overrides: list[str], said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said) as refused:
        assemble(load_recipe(written(tmp_path), overrides), progress.silent)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("phases.distill.alpha=0", r"phases.distill: the training split has no pairs .* this phase has no part of it"),
        ("distill.loss=none", "this phase has no part of it"),
        ("phases.distill.order=easiest-first", "easiest-first goes by labels: set order to uniform"),
    ],
)
def test_phases_that_need_labels_are_refused_without_any(
    override: str, said: str, teacher: Path, tmp_path: Path
) -> None:
    overrides = [*ALONE, f"teacher={{model: 'hf:{teacher}'}}", "distill.terms=[]", override]
    with pytest.raises(UserError, match=said):
        assemble(load_recipe(written(tmp_path), overrides), progress.silent)


def test_several_processes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="compares the texts of a whole batch, which one process has; 2 were started"):
        assemble(load_recipe(written(tmp_path)), progress.silent, processes=Processes(count=2))


def test_the_easiest_pairs_are_those_whose_number_the_teacher_comes_nearest_to(tmp_path: Path) -> None:
    parts = assemble(load_recipe(written(tmp_path), ["phases.distill.order=easiest-first"]), progress.silent)
    samples = parts.splits.train
    assert isinstance(samples, Embeddings)
    found = samples.cosines + np.linspace(0, 1, len(samples), dtype=np.float32)
    losses = RANK_CORRELATION.losses(found, samples)
    np.testing.assert_array_equal(np.argsort(losses, kind="stable"), np.arange(len(samples)))
    assert isinstance(parts.options(STUDENT), Options)


def test_files_are_compared_by_the_cosine_of_their_embeddings() -> None:
    rows = np.eye(4, dtype=np.float32)[:2]
    turned = np.array([[1, 0, 0, 0], [0.8, 0.6, 0, 0]], np.float32)
    found = parity(rows, [turned], "a", embeddings=True)
    assert found.agreement == pytest.approx((1 + 0.6) / 2)
    assert found.divergence is None
    for seed in range(20):  # rounding goes either way
        same = np.random.default_rng(seed).normal(size=(50, 16)).astype(np.float32)
        assert parity(same, [same], "a", embeddings=True).agreement <= 1


def test_a_file_whose_embeddings_point_elsewhere_is_refused(whole: Path, tmp_path: Path) -> None:
    again = shutil.copytree(whole, tmp_path / "again")
    with pytest.raises(
        UserError, match=r"its embeddings' mean cosine is 0\.99\d+, verify.agreement is 1; take another"
    ):
        job.export_again(again, overrides=["verify.agreement=1", "export=[onnx-int8-dynamic]"], track=progress.silent)


MODELS = """
import torch
from torch import nn


class Bag(nn.Module):
    def __init__(self, width=8, vocab_size=23):
        super().__init__()
        self.table = nn.Embedding(vocab_size, width)

    def forward(self, input_ids, attention_mask=None):
        return self.table(input_ids)


class Deaf(Bag):
    def forward(self, input_ids):
        return self.table(input_ids)


class Own(Bag):
    def forward(self, input_ids, attention_mask=None):
        mask = (torch.ones_like(input_ids) if attention_mask is None else attention_mask).unsqueeze(-1)
        return (self.table(input_ids) * mask).sum(1)


class Taken(Bag):
    def __init__(self, vocab_size=23):
        super().__init__(vocab_size=vocab_size)
        self.sentence_embedding = nn.Identity()


class Numbers(Bag):
    def forward(self, input_ids, attention_mask=None):
        return self.table(input_ids).sum()


def bag(vocab_size): return Bag()
def deaf(vocab_size): return Deaf()
def own(vocab_size): return Own()
def taken(vocab_size): return Taken()
def numbers(vocab_size): return Numbers()
"""


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("bag", None),
        ("own", None),
        ("deaf", "embeds a text otherwise where it is padded"),
        ("taken", "has a `sentence_embedding` of its own"),
        ("numbers", r"needs to put out a vector for each text \[B, D\] or token \[B, T, D\]; \[\] came"),
    ],
)
def test_a_function_may_return_vectors_of_texts_or_of_tokens(
    model: str, said: str | None, teacher: Path, tmp_path: Path
) -> None:
    (tmp_path / "nets.py").write_text(MODELS)
    text = RECIPE.replace("{from_teacher: {depth: 2}}", f'{{model: "{tmp_path}/nets.py:{model}"}}')
    recipe = load_recipe(written(tmp_path, text), ["distill.terms=[]"])
    if said is not None:
        with pytest.raises(UserError, match=said):
            assemble(recipe, progress.silent)
        return
    student = assemble(recipe, progress.silent).student(0)
    ids, mask = torch.tensor([[4, 5, 6, 0]]), torch.tensor([[1, 1, 1, 0]])
    found = forward(student.module, {"input_ids": ids, "attention_mask": mask})
    expected = nn.functional.normalize(student.module.table.weight[4:7].sum(0), dim=0)
    torch.testing.assert_close(found[0], expected)


@pytest.mark.parametrize(
    ("path", "content", "said"),
    [
        ("modules.json", [{"path": "2_Dense", "type": "sentence_transformers.models.Dense"}], "modules have Dense"),
        (
            "1_Pooling/config.json",
            {"pooling_mode_max_tokens": True},
            "pools by max; sentence-embedding takes one of mean",
        ),
        (
            "1_Pooling/config.json",
            {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True},
            "pools by mean and cls",
        ),
        ("1_Pooling/config.json", {"pooling_mode": "weightedmean"}, "pools by weightedmean"),
        ("sentence_bert_config.json", {"max_seq_length": 40, "do_lower_case": True}, "has texts lower-cased"),
    ],
)
def test_what_a_folder_says_and_is_not_known_is_refused(
    path: str, content: Any, said: str, teacher: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(teacher, tmp_path / "model")
    (folder / path).write_text(json.dumps(content))
    with pytest.raises(UserError, match=said):
        load_text_model(f"hf:{folder}", head="embedding")
    (folder / "modules.json").unlink()
    (folder / "sentence_bert_config.json").unlink()
    assert written_layout(str(folder)) == ("mean", None)
    (folder / "modules.json").write_text("{")
    with pytest.raises(UserError, match=r"modules\.json is not JSON"):
        load_text_model(f"hf:{folder}", head="embedding")


def test_newer_folders_name_their_pooling_in_one_word(teacher: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(teacher, tmp_path / "model")
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode": "lasttoken"}))
    assert written_layout(str(folder)) == ("last", 40)


def test_a_teacher_that_pools_otherwise_is_another_kept_teacher(teacher: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(teacher, tmp_path / "model")
    fitted = f"teacher={{model: 'hf:{folder}', fit: {{epochs: 1, keep: true}}}}"
    kept = []
    for pooling in ("mean", "cls"):
        write_layout(folder, pooling, 16, 40)
        kept.append(arms._same_teacher(assemble(load_recipe(written(tmp_path), [fitted]), progress.silent)))
    assert kept[0] != kept[1]


def test_the_defaults_are_those_of_embeddings(tmp_path: Path) -> None:
    recipe = load_recipe(written(tmp_path), ["phases.distill.temperature=0.1"])
    assert [(phase.name, phase.share, phase.temperature) for phase in recipe.phases] == [("distill", 1.0, 0.1)]
    assert (recipe.distill.loss, recipe.distill.temperature) == ("kl", 0.05)
    assert [phase.name for phase in load_recipe(written(tmp_path)).phases] == ["distill"]
    module = small_texts.bert()[0]
    embed(module.bert, "cls")
    assert module.bert.sentence_embedding.pooling == "cls"
