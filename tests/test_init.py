"""A recipe written for a teacher, data and a budget: it fits together, follows the facts, quotes what was measured."""

import itertools
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import Tensor, nn

import small_embedders
import small_sums
import small_texts
from edgestill import progress, search
from edgestill.assemble import assemble
from edgestill.cli import main
from edgestill.data.kinds import task_of
from edgestill.functions import load_function
from edgestill.init import init
from edgestill.plan.advise import RESNET8_RESULT, WEIGHT_BYTES, Choice, Facts, Measured, advise
from edgestill.plan.sizes import straddling
from edgestill.reading import builtin
from edgestill.recipe import Recipe, candidates, load_recipe

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
DIGITS = f"{builtin()['digits'].parent}/digits.py"
NET = f"{builtin()['digits'].parent}/resnet_cifar.py:resnet20"
TEXTS = f"{Path(__file__).parent}/small_texts.py"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, where a recipe is written to."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Of a ResNet-20 for the digits."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "net.pt"
    torch.save(load_function(NET)(num_classes=10, in_channels=1).state_dict(), path)
    return str(path)


def saved(folder: Path, made: tuple[Any, Any]) -> str:
    for part in made:
        part.save_pretrained(folder)
    return f"hf:{folder}"


def written(folder: Path, **splits: dict[str, list[Any]]) -> str:
    """A folder with the splits of a data set, a JSON object a line."""
    folder.mkdir()
    for name, columns in splits.items():
        rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder)


def recipes_of(path: Path) -> list[Recipe]:
    return [one.recipe for one in candidates(load_recipe(path)).values()]


def assembled(path: Path) -> list[int]:
    """The parameters of the students of all candidates, each put together as a run does it."""
    jobs, splits = [], None
    for recipe in recipes_of(path):
        jobs.append(assemble(recipe, progress.silent, splits))
        splits = splits or jobs[0].splits
    return [job.student(0).parameters for job in jobs]


def test_an_image_recipe_reads_and_all_its_candidates_are_put_together(here: Path, weights: str) -> None:
    made = init(NET, f"{DIGITS}:splits", "size=120 KB, latency=2 ms", weights=weights, track=progress.silent)
    recipe = load_recipe(made.path)
    assert recipe.task == "image-classification"
    assert recipe.teacher.weights == weights
    assert (recipe.budget.size, recipe.budget.latency, recipe.export) == ("120 KB", "2 ms", ["onnx-int8"])
    sizes = assembled(made.path)
    assert {*sizes} == {*made.students}
    wanted = 120_000 / WEIGHT_BYTES["onnx-int8"]
    assert min(sizes) < wanted / 2 < wanted < max(sizes) < made.parameters
    assert len(sizes) == 2 * len(made.students)
    assert made.techniques == ("attention_transfer", "cka")


def test_a_recipe_says_why_and_where_it_was_measured(here: Path, weights: str) -> None:
    assert main(["init", NET, f"{DIGITS}:splits", "--budget", "size=20 KB", "--weights", weights, "--quiet"]) == 0
    text = (here / "recipe.yaml").read_text()
    assert text.startswith("# Written by edgestill init for resnet_cifar.py:resnet20 (269,434 parameters) and 1,167 ")
    above = re.search(r"((?:    # .*\n)+)    distill:\n", text)
    assert above is not None
    assert "benchmarks/results/2026-11-23-methods.md" in above[1]
    assert max(map(len, text.splitlines())) <= 120


@pytest.mark.parametrize(
    ("teacher", "task", "technique"),
    [("bert", None, "relations"), ("llama", "language-modeling", "skewed_kl")],
)
def test_a_recipe_of_texts_reads_and_all_its_candidates_are_put_together(
    here: Path, teacher: str, task: str | None, technique: str
) -> None:
    spec = saved(here / "teacher", load_function(f"{TEXTS}:{teacher}")())
    made = init(spec, f"{TEXTS}:splits", "size=12 KB", task=task, track=progress.silent)
    recipe = load_recipe(made.path)
    assert recipe.task == (task or "text-classification")
    assert recipe.export == ["onnx-int8-dynamic"]
    assert {*assembled(made.path)} == {*made.students}
    assert technique in made.techniques
    assert recipe.student.search is not None
    for keys in recipe.student.search.distill:
        for term in keys.get("terms", []):
            assert term["options"]["heads"] in (1, 2)


def test_the_plan_of_a_written_recipe_tries_both_techniques(here: Path) -> None:
    spec = saved(here / "teacher", load_function(f"{TEXTS}:bert")())
    made = init(spec, f"{TEXTS}:splits", "size=1 MB", track=progress.silent)
    quick = ["teacher.fit={epochs: 8, lr: 3e-3}", "student.search.from_teacher={depth: [1, 2]}", "train.epochs=2"]
    found = search(load_recipe(made.path, quick), here / "plan", train=False, track=progress.silent)["search"]
    assert {one["technique"] for one in found["candidates"] if "quality" in one} == {*made.techniques}


def test_a_recipe_of_embeddings_learns_without_labels_too(here: Path) -> None:
    spec = saved(here / "teacher", small_embedders.bert())
    splits = {"train": small_embedders.train(), "test": small_embedders.test()}
    made = init(spec, written(here / "pairs", **splits), "size=12 KB", track=progress.silent)
    assert load_recipe(made.path).task == "sentence-embedding"
    assert {*assembled(made.path)} == {*made.students}
    splits |= {"train": {"text": small_embedders.texts()}, "validation": small_embedders.validation()}
    data = written(here / "texts", **splits)
    made = init(spec, data, "size=12 KB", task="sentence-embedding", out="texts.yaml", track=progress.silent)
    assert load_recipe(made.path).compare.baseline is False
    assert assemble(recipes_of(made.path)[-1], progress.silent).student(0).parameters in made.students


def test_a_recipe_of_conversations_reads_and_all_its_candidates_are_put_together(here: Path) -> None:
    def asked(texts: list[str]) -> dict[str, list[Any]]:
        sides = [text.partition("=") for text in texts]
        return {"prompt": [f"{side[0]}=" for side in sides], "response": [side[2] for side in sides]}

    spec = saved(here / "teacher", small_sums.llama(width=16, layers=3))
    data = written(here / "sums", train=asked(small_sums.train()[:300]), test=asked(small_sums.test()[:40]))
    made = init(spec, data, "size=4 KB", track=progress.silent)
    assert load_recipe(made.path).task == "instruction"
    assert {*assembled(made.path)} == {*made.students}


def test_paths_are_as_they_were_given_where_they_are_relative_to_the_recipe(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(here / "teacher", small_texts.bert())
    written(here / "films", train=small_texts.sentences(120, 3), test=small_texts.sentences(60, 4))
    init("hf:teacher", "films", "size=12 KB", track=progress.silent)
    raw = yaml.safe_load(Path("recipe.yaml").read_text())
    assert (raw["teacher"]["model"], raw["data"]) == ("hf:teacher", {"source": "films"})
    (here / "recipes").mkdir()
    init("hf:teacher", "films", "size=12 KB", out="recipes/films.yaml", track=progress.silent)
    monkeypatch.chdir(here / "recipes")
    recipe = load_recipe("films.yaml")
    assert (recipe.teacher.model, recipe.data.source) == (f"hf:{here}/teacher", f"{here}/films")


def test_a_classifier_that_is_new_is_fitted_first(here: Path) -> None:
    model, tokenizer = small_texts.bert()
    spec = saved(here / "teacher", (model.bert, tokenizer))
    made = init(spec, f"{TEXTS}:splits", "latency=2 ms", track=progress.silent)
    assert load_recipe(made.path).teacher.fit is not None


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear(x.flatten(1))
        return out


def plain() -> nn.Module:
    return Plain()


def test_mistakes_are_one_line(here: Path, weights: str, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(Plain().state_dict(), here / "plain.pt")
    (here / "taken.yaml").write_text("mine")
    (here / "one.jsonl").write_text('{"text": "a"}\n')
    (here / "odd").mkdir()
    for name in ("train", "test"):
        (here / "odd" / f"{name}.jsonl").write_text('{"sound": 1}\n')
    usual = {"teacher": NET, "data": f"{DIGITS}:splits", "--budget": "size=20 KB", "--weights": weights}
    for change, said in (
        ({"data": "nowhere"}, "nowhere"),
        ({"data": "one.jsonl"}, "name a folder that has train*"),
        ({"data": "odd"}, "'sound'"),
        ({"teacher": "nets.py:large"}, "there is no file"),
        ({"teacher": "nowhere", "--weights": None}, "no model"),
        ({"teacher": f"{__file__}:plain", "--weights": "plain.pt"}, "cannot be cut"),
        ({"--weights": None}, "--weights"),
        ({"--weights": "none.pt"}, "no file none.pt"),
        ({"--budget": "size=20 KB, latensy=2 ms"}, "unknown key 'latensy' in budget; did you mean 'latency'?"),
        ({"--budget": "latency=2 sm"}, "recipe: budget.latency: a time needs one of the units"),
        ({"--budget": "size"}, "--budget takes key=value"),
        ({"--budget": "size=1 KB, size=2 KB"}, "twice"),
        ({"--budget": "threads=1"}, "set budget.size, budget.latency or budget.memory"),
        ({"--budget": "size=2 MB, memory=1 MB"}, "contradicts"),
        ({"--budget": "size=2 MB, runtime=onyx"}, "recipe: budget.runtime"),
        ({"--task": "image-segmentation"}, "recipe: task"),
        ({"--out": "taken.yaml"}, "is there already"),
        ({"--out": "no/recipe.yaml"}, "there is no folder no"),
    ):
        given = usual | change
        words = [given.pop("teacher"), given.pop("data")]
        words += [word for name, value in given.items() if value is not None for word in (name, value)]
        assert main(["init", *words, "--quiet"]) == 2, change
        error = capsys.readouterr().err
        assert error.startswith("edgestill: "), change
        assert error.count("\n") == 1, change
        assert said in error, (change, error)
        assert not (here / "recipe.yaml").exists(), change
    assert (here / "taken.yaml").read_text() == "mine"


def test_the_task_is_told_from_the_data(tmp_path: Path) -> None:
    (tmp_path / "photos" / "cat").mkdir(parents=True)
    Image.new("L", (4, 4)).save(tmp_path / "photos" / "cat" / "0.png")
    (tmp_path / "plain.txt").write_text("Once upon a time.")
    (tmp_path / "pairs.tsv").write_text("sentence1\tsentence2\tlabel\na\tb\t3.8\nc\td\t1\n")
    chat = [[{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]]
    pixels = np.zeros((3, 8, 8), np.uint8)
    cases: list[tuple[object, tuple[str, bool]]] = [
        (str(tmp_path / "photos"), ("image-classification", False)),
        ((pixels, [0, 1, 2]), ("image-classification", False)),
        (lambda: (pixels, [0, 1, 2], ["a", "b", "c"]), ("image-classification", False)),
        (str(tmp_path / "plain.txt"), ("language-modeling", False)),
        (lambda: ["one", "two"], ("language-modeling", False)),
        (lambda: {"text": ["a", "b"], "label": ["pos", None]}, ("text-classification", False)),
        (lambda: {"text": ["a", "b"], "label": [0.5, 1]}, ("text-classification", True)),
        (lambda: {"text": ["a"], "text_pair": ["b"], "label": [1]}, ("text-classification", False)),
        (lambda: {"text": ["a"], "text_pair": ["b"]}, ("sentence-embedding", False)),
        (str(tmp_path / "pairs.tsv"), ("sentence-embedding", False)),
        (lambda: {"messages": chat}, ("instruction", False)),
        (lambda: {"question": ["1+1"], "answer": ["2"]}, ("instruction", False)),
    ]
    for split, told in cases:
        assert task_of(split) == told, split


IMAGE = Facts(
    "image-classification", 45_000, 45_000, 853_018, {"depth": [6, 9]}, classes=10, side=32, wanted=108_000.0,
    maps=True, last_stage="layer3", runtime="onnxruntime",
)  # fmt: skip
TEXT = Facts(
    "text-classification", 6_920, 6_920, 22_700_000, {"depth": [2, 3]}, classes=2, wanted=15e6, blocks=0.5,
    attention=True, relation_heads=12,
)  # fmt: skip
CASES = [
    IMAGE,
    replace(IMAGE, wanted=None, runtime=None),
    replace(IMAGE, wanted=20_000.0),
    replace(IMAGE, labelled=300),
    *(replace(IMAGE, runtime=runtime) for runtime in ("executorch", "openvino", "litert")),
    replace(IMAGE, maps=False, last_stage=None),
    replace(IMAGE, maps=False, last_stage=None, attention=True),
    TEXT,
    replace(TEXT, blocks=1 / 3),
    replace(TEXT, numbers=True, classes=0),
    replace(TEXT, attention=False, fresh=True),
    replace(TEXT, task="sentence-embedding", classes=0),
    replace(TEXT, task="sentence-embedding", classes=0, labelled=0),
    replace(TEXT, task="language-modeling", classes=0),
    replace(TEXT, task="instruction", classes=0, parameters=260_032),
]


def choice(facts: Facts, key: str) -> Choice:
    return next(one for one in advise(facts) if one.key == key)


def names(facts: Facts) -> list[str]:
    return [technique["name"] for technique in choice(facts, "student.search.distill").value]


def test_choices_follow_the_facts() -> None:
    assert names(IMAGE) == ["attention_transfer", "cka"]
    assert names(replace(IMAGE, wanted=20_000.0)) == ["cka", "kl"]  # a gap of 43, where 11 was measured
    assert names(replace(IMAGE, maps=False, attention=True)) == ["kl", "relations"]
    assert names(TEXT) == ["kl", "relations"]
    few = choice(replace(IMAGE, labelled=300), "phases")
    assert choice(IMAGE, "phases").value[-1]["alpha"] == 0
    assert (few.value[-1]["alpha"], "300 of 45,000" in few.reason) == (0.5, True)
    gap = [choice(replace(TEXT, blocks=blocks), "student.search.distill").reason for blocks in (0.5, 1 / 3)]
    assert ["few of the teacher's blocks" in reason for reason in gap] == [False, True]
    epochs = [choice(replace(IMAGE, samples=samples), "train").value["epochs"] for samples in (1_000, 45_000, 10**6)]
    assert epochs == [200, 30, 10]
    assert choice(replace(IMAGE, samples=200), "train").value["batch_size"] == 16
    assert choice(replace(IMAGE, runtime="litert"), "export").value == ["litert-int8"]


def test_a_reason_quotes_what_was_measured_or_says_that_nothing_was() -> None:
    for facts in CASES:
        for one in advise(facts):
            quoted = {number for measured in one.measured for number in re.findall(r"\d[\d,]*\.\d+", measured.number)}
            said = {*re.findall(r"(?<![\d.])\d[\d,]*\.\d+(?!\.?\d)", one.reason)} - {"2402.03898", "0.9", "0.5", "0.26"}
            assert said <= quoted, one
            assert one.measured or "not measured here" in one.reason.lower(), one
            for measured in one.measured:
                assert measured.number in one.reason or measured.file == RESNET8_RESULT, one


@pytest.mark.skipif(not RESULTS.is_dir(), reason="the pages of benchmarks/results are not in an installed package")
def test_what_is_cited_stands_in_a_dated_file_of_the_results() -> None:
    cited: set[Measured] = {measured for facts in CASES for one in advise(facts) for measured in one.measured}
    assert len(cited) > 30
    for one in cited:
        assert re.match(r"\d{4}-\d{2}-\d{2}-", one.file)
        lines = (RESULTS / one.file).read_text(encoding="utf-8").splitlines()
        held = [line for line in lines if one.row in line and one.number in line]
        assert held, one


@pytest.mark.skipif(not RESULTS.is_dir(), reason="the pages of benchmarks/results are not in an installed package")
def test_bytes_of_a_weight_are_those_of_the_page_of_all_formats() -> None:
    page = (RESULTS / "2026-11-29-device.md").read_text(encoding="utf-8")
    for name, size in WEIGHT_BYTES.items():
        row = re.search(rf"^\| student {name} \| ([\d,]+) \|", page, re.MULTILINE)
        assert row is not None
        assert size == pytest.approx(int(row[1].replace(",", "")) / 77_946, abs=0.02)


def test_sizes_lie_on_both_sides_of_what_is_wanted() -> None:
    depths = {number: 1e5 * number for number in range(1, 9)}
    widths = {0.25: 0.07, 0.5: 0.26, 0.75: 0.57, 1.0: 1.0}
    for wanted, room in itertools.product((2e4, 1e5, 4e5, 6.5e5), (False, True)):
        some, chosen = straddling(depths, widths, wanted, room=room)
        sizes = [depths[depth] * widths[width] for depth in some for width in chosen]
        assert min(sizes) < wanted < max(sizes) < 8e5
        assert 4 <= len(sizes) <= 8
        assert not room or min(sizes) <= wanted / 2 or wanted < 5e4
    some, chosen = straddling(depths, widths, None)
    assert min(depths[depth] * widths[width] for depth in some for width in chosen) < 1e5
    assert straddling({1: 1e5}, {1.0: 1.0}, 5e4) == ([], [])
    assert straddling({1: 1e5}, {0.5: 0.3, 0.75: 0.6, 1.0: 1.0}, 5e4) == ([1], [0.5, 0.75])
