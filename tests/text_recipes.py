"""Recipes of small runs of texts."""

import json
from pathlib import Path

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


def result_of(run: Path) -> dict:
    return json.loads((run / "result.json").read_text())
