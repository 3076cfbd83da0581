"""Mistakes in a run of texts, each refused in one line that says what to do, before any work."""

import json
from pathlib import Path
from typing import Any

import pytest

import small_texts
from edgestill.cli import main
from test_texts_chat import CHAT, INSTRUCTION
from text_recipes import CLASSES, TOKENS, written


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
