"""Mistakes in a run of texts, each refused in one line that says what to do, before any work."""

from pathlib import Path
from typing import Any

import pytest

import small_texts
from edgestill.cli import main
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
