"""Mistakes in a run of texts, each refused in one line that says what to do, before any work."""

import json
from pathlib import Path
from typing import Any

import pytest

import small_texts
from edgestill.cli import main
from test_texts_chat import CHAT, INSTRUCTION
from text_recipes import CLASSES, HERE, TOKENS, written


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """The line that `edgestill run` ends with, of a recipe and what is set in it."""

    def run(recipe: str, *overrides: str) -> str:
        given = [part for override in overrides for part in ("--set", override)]
        out = tmp_path / "run"
        capsys.readouterr()  # what the test itself wrote
        assert main(["run", str(written(tmp_path, recipe)), "--out", str(out), "--quiet", *given]) == 2
        told = capsys.readouterr().err
        assert told.count("\n") == 1
        assert not (out / "arms").exists(), "no work was begun"
        return told

    return run


@pytest.mark.parametrize(
    ("family", "recipe", "why"),
    [("llama", TOKENS, "Couldn't instantiate"), ("bert", CLASSES, "it knows no token but the special ones")],
)
def test_a_model_without_its_tokenizer(family: str, recipe: str, why: str, refused: Any, tmp_path: Path) -> None:
    """transformers makes an empty one for BERT, to which every text is alike."""
    getattr(small_texts, family)()[0].save_pretrained(tmp_path / "bare")
    told = refused(recipe, f"teacher.model=hf:{tmp_path / 'bare'}")
    assert f"no Hugging Face tokenizer beside the model '{tmp_path / 'bare'}': {why}" in told
    assert "; save the model's own there" in told


def test_a_folder_that_is_not_there(refused: Any, tmp_path: Path) -> None:
    told = refused(TOKENS, f"teacher.model=hf:{tmp_path / 'nowhere'}")
    assert "nowhere': there is no such folder; give one that holds a saved model, or an id of the Hub" in told


@pytest.mark.parametrize(
    ("recipe", "overrides", "said"),
    [
        (TOKENS, ["data.train=few.jsonl", "train.batch_size=1"], "makes 1 block of 32 tokens, of which a share"),
        (TOKENS, ["data.length=1"], "data.length: a language model needs blocks of at least 2 tokens; 1 came"),
        (CLASSES, ["data.length=1"], ":bert adds 2 special tokens to a sample, so that at least 3"),
        (CLASSES, ["data.length=2"], "at least 3 are needed; 2 came: raise it"),
        (INSTRUCTION, ["data.length=3"], "within the first 3 tokens of its 800 conversations"),
        (INSTRUCTION, ["data.train=chat.py:few"], "makes 6 conversations with an answer, less than a batch of 32"),
        (
            INSTRUCTION,
            ["data.train=chat.py:few", "train.batch_size=2", "data.validation=0.01"],
            "data.validation: the training split makes 6 conversations with an answer, of which a share of 0.01 leaves",
        ),
        (
            INSTRUCTION,
            ["data.length=12", "train.batch_size=800"],
            "less than a batch of 800: give more conversations, raise data.length, or lower train.batch_size",
        ),
    ],
)
def test_too_little_to_learn_from(
    recipe: str, overrides: list[str], said: str, refused: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where the paths of --set begin
    (tmp_path / "few.jsonl").write_text(json.dumps({"text": "good film the plot was fine"}))
    (tmp_path / "chat.py").write_text(f"{CHAT}\n\ndef few():\n    return rows(6, 0)\n")
    assert said in refused(recipe, *overrides)


def test_a_batch_of_the_fit_that_is_larger_than_the_data(refused: Any) -> None:
    said = "teacher.fit.batch_size: the training split has {}, less than a batch of 1000: lower it, or give more data"
    assert said.format("720 labelled samples") in refused(CLASSES, "teacher.fit.batch_size=1000")
    assert " blocks, less than a batch of 1000" in refused(TOKENS, "teacher.fit.batch_size=1000")


OTHER = f"""
import json, sys
sys.path.insert(0, {str(HERE)!r})
import small_texts
from tokenizers import Tokenizer


def exchanged():
    model, made = small_texts.llama()
    whole = json.loads(made.backend_tokenizer.to_str())
    words = whole["model"]["vocab"]
    words["film"], words["movie"] = words["movie"], words["film"]
    made._tokenizer = Tokenizer.from_str(json.dumps(whole))
    return model, made


def more():
    return small_texts.llama(vocab_size=24)[0], small_texts.tokenizer(("more",))
"""


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("exchanged", "; the first id that differs is 16, the teacher's 'film' and the student's 'movie'; token by"),
        ("more", "; the first id that differs is 23, the teacher's no token and the student's 'more'; token by"),
    ],
)
def test_vocabularies_that_differ_name_the_first_token_that_does(
    name: str, said: str, refused: Any, tmp_path: Path
) -> None:
    (tmp_path / "other.py").write_text(OTHER)
    assert said in refused(TOKENS.replace("{from_teacher: {depth: 2}}", f'{{model: "other.py:{name}"}}'))


@pytest.mark.parametrize("missing", [False, True])
def test_a_class_that_no_training_sample_is_labelled_with(missing: bool, refused: Any, tmp_path: Path) -> None:
    """Of names that are given with the data, as tables have them; a sample without a label may not stand for it."""
    import datasets

    names = datasets.ClassLabel(names=["good film", "bad", "goodfilm"])
    columns = datasets.Features({"text": datasets.Value("string"), "label": names})
    data = small_texts.sentences(100, 0)["text"]
    for split, labels in (("train", [0, 1, None if missing else 0, 1] * 25), ("test", [0, 1, 2, 1] * 25)):
        table = datasets.Dataset.from_dict({"text": data, "label": labels}, features=columns)
        table.to_parquet(tmp_path / f"{split}.parquet")
        data = data[::-1]
    told = refused(CLASSES, f"data={{train: '{tmp_path}/train.parquet', test: '{tmp_path}/test.parquet'}}")
    assert "samples of the class 'goodfilm', and none is labelled so in the training split: label some in" in told
    assert told.endswith("or leave these out; did you mean 'good film'?\n")
