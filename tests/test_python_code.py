"""The recipe that needs no download: source code, a tokenizer of its own, a teacher that is fitted once and kept."""

import json
import shutil
import sysconfig
from pathlib import Path
from typing import Any

import pytest

from edgestill import progress
from edgestill import runs as job
from edgestill.recipe import load_recipe

SMALL = [
    "teacher.options={width: 32, layers: 1, heads: 2}",
    "student.options={width: 16, layers: 1, heads: 2}",
    "teacher.fit.epochs=1",
    "train.epochs=0.3",
    "export=[onnx]",
    "budget={}",
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, bare_runs: Any) -> tuple[Path, Path]:
    """The same recipe twice, with one cache, of a Python installation with few modules."""
    folder = tmp_path_factory.mktemp("python-code")
    (folder / "python").mkdir()
    get_path = sysconfig.get_path
    for module in sorted(Path(get_path("stdlib")).glob("*.py"))[::5]:
        shutil.copy(module, folder / "python")
    with pytest.MonkeyPatch.context() as patch, bare_runs(with_report=True):
        patch.setattr(
            sysconfig,
            "get_path",
            lambda name, *more: str(folder / "python") if name == "stdlib" else get_path(name, *more),
        )
        patch.setenv("EDGESTILL_CACHE", str(folder / "cache"))
        for name, more in (("first", []), ("second", ["train.epochs=0.6"])):
            made = load_recipe("python-code", [*SMALL, *more])
            job.run(made, folder / name, track=progress.silent, deliver_files=name == "first")
    return folder / "first", folder / "second"


def result_of(run: Path) -> dict:
    return json.loads((run / "result.json").read_text())


def test_the_teacher_is_fitted_once_and_kept(runs: tuple[Path, Path]) -> None:
    arms = [{json.loads(line)["arm"] for line in (run / "metrics.jsonl").read_text().splitlines()} for run in runs]
    assert arms == [{"teacher", "baseline", "student"}, {"baseline", "student"}]
    first, second = map(result_of, runs)
    assert second["teacher"]["quality"] == first["teacher"]["quality"]
    kept = list((runs[0].parent / "cache" / "teachers").iterdir())
    assert [path.suffix for path in kept] == [".safetensors"]


def test_the_text_is_named_by_its_hash_and_learned_from(runs: tuple[Path, Path]) -> None:
    result = result_of(runs[0])
    assert set(result["fingerprints"]) == {"train", "validation", "test"}
    assert all(len(value) == 32 for value in result["fingerprints"].values())
    assert result["fingerprints"] == result_of(runs[1])["fingerprints"]
    assert result["teacher"]["quality"] < 5, "a byte drawn at random costs 8 bits"
    assert result["artifacts"][0]["quality"] == pytest.approx(result["arms"]["student"]["mean"], abs=1e-4)


def test_completions_stand_side_by_side(runs: tuple[Path, Path]) -> None:
    shown = json.loads((runs[0] / "completions.json").read_text())
    assert len(shown["prompts"]) == 4
    assert list(shown["models"]) == ["teacher", "baseline", "student"]
    for texts in shown["models"].values():
        assert len(texts) == 4
    page = (runs[0] / "report.html").read_text()
    assert "How they write on" in page
