"""Terms over the hidden states and the attentions of a decoder, in a whole run."""

import json
from pathlib import Path

import numpy as np
import pytest

from edgestill import progress
from edgestill import runs as job
from edgestill.recipe import load_recipe
from text_recipes import NETS, TOKENS, written

SPREAD = "initializer_range: 0.3"  # so that attentions differ from the first step on
TERMS = f"""
student: {{model: "{NETS}:llama", options: {{num_hidden_layers: 1, {SPREAD}}}}}
distill: {{loss: none, alpha: 1, terms: [{{loss: hint}}, {{loss: attention_kl}}, {{loss: attention_relation}}]}}
phases: [{{name: distill, share: 1}}]
compare: {{baseline: false, scratch: false}}
"""
SHORT = [f"teacher.options={{num_hidden_layers: 2, {SPREAD}}}", "teacher.fit.epochs=1", "train.lr=1e-2"]
BLOCK = "model.layers.0"
PARTS = {f"hint/{BLOCK}", f"attention_kl/{BLOCK}.self_attn@attention"} | {
    f"attention_relation/{BLOCK}.self_attn@{what}" for what in ("queries", "keys", "values")
}


@pytest.mark.usefixtures("bare")
def test_a_decoder_with_grouped_queries_learns_from_each_term_of_a_run(tmp_path: Path) -> None:
    """Four heads of queries, two of keys and values; nothing but the terms teaches."""
    text = TOKENS.replace("student: {from_teacher: {depth: 2}}\n", "") + TERMS
    with pytest.MonkeyPatch.context() as patch:  # a teacher of one epoch
        patch.setattr(job, "check_teacher", lambda *_: None)
        job.run(
            load_recipe(written(tmp_path, text), SHORT), tmp_path / "run", track=progress.silent, deliver_files=False
        )
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    parts = [line["parts"] for line in lines if line["arm"] == "student" and "parts" in line]
    assert parts[0].keys() == PARTS
    for name in PARTS:
        values = [step[name]["value"] for step in parts]
        assert np.mean(values[-3:]) < 0.6 * values[0], (
            "0.35 to 0.55; of the attentions' parts 0.66 to 0.83 by the hint alone"
        )
