"""Recipes of small runs of texts."""

import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgestill import progress
from edgestill import runs as job
from edgestill.recipe import Recipe

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
# of the runs whose files are made: an export takes seconds a block
THREE_BLOCKS = ["teacher.options={num_hidden_layers: 3}"]
TWO_BLOCKS = ["teacher.options={num_hidden_layers: 2}", "student.from_teacher.depth=1"]


def written(folder: Path, text: str) -> Path:
    (folder / "recipe.yaml").write_text(text)
    return folder / "recipe.yaml"


def stopped_and_resumed(whole: Path, folder: Path, recipe: Recipe) -> Path:
    """A copy of a run whose student is trained anew, stopped in the midst of it and gone on with."""
    shutil.copytree(whole, folder)
    shutil.rmtree(folder / "arms" / "student")

    def interrupt(items: Any, description: str, total: int) -> Iterator[Any]:
        for step, item in enumerate(items):
            if description == "student seed 0" and step == total // 2:
                os.kill(os.getpid(), signal.SIGINT)
            yield item

    with pytest.raises(KeyboardInterrupt):
        job.run(recipe, folder, resume=True, track=interrupt, deliver_files=False)
    assert not (folder / "arms" / "student" / "0" / "outcome.json").exists()
    job.run(recipe, folder, resume=True, track=progress.silent, deliver_files=False)
    return folder


def result_of(run: Path) -> dict:
    return json.loads((run / "result.json").read_text())
