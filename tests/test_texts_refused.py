"""What texts and their models may be that is easily taken for something else."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import small_texts
from edgestill import arms, progress
from edgestill.assemble import STUDENT, assemble
from edgestill.cli import main
from edgestill.data.texts import load_texts
from edgestill.errors import UserError
from edgestill.models import Model, TextInput, forward, load_text_model, reload, save_student
from edgestill.recipe import load_recipe
from text_recipes import CLASSES, NETS, TOKENS, written


def test_lines_end_where_the_system_says(tmp_path: Path) -> None:
    """Not at every separator that Unicode has: these stand inside of texts."""
    text = "one\u2028two\u0085three\x0cfour"
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": text}, ensure_ascii=False) + "\n", encoding="utf-8")
    (tmp_path / "a.tsv").write_text(f"text\tlabel\n{text}\tpos\n", encoding="utf-8")
    for name in ("a.jsonl", "a.tsv"):
        assert load_texts({"train": str(tmp_path / name)}, label="none")["train"].texts == [text]
    (tmp_path / "long.csv").write_text("text\n" + "word " * 40_000 + "\n")
    assert len(load_texts({"train": str(tmp_path / "long.csv")}, label="none")["train"].texts[0]) == 200_000


@pytest.mark.parametrize("label", ["none", "messages"])
def test_half_of_a_character_is_refused_with_its_row(label: str, tmp_path: Path) -> None:
    rows = [{"prompt": text, "response": "b", "text": text} for text in ("a", "\ud800")]
    (tmp_path / "a.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    with pytest.raises(UserError, match=r"a\.jsonl: row 1 holds half of a character"):
        load_texts({"train": str(tmp_path / "a.jsonl")}, label=label)


def test_a_split_of_a_language_model_needs_text(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text('{"text": ""}\n' * 3)
    recipe = load_recipe(written(tmp_path, TOKENS), [f"data.test={tmp_path / 'empty.jsonl'}"])
    with pytest.raises(UserError, match=r"the test split holds no text, of which bits a byte could be told: .*empty"):
        assemble(recipe, progress.silent)


def test_a_decoder_finds_the_last_token_by_the_tokenizers_padding(tmp_path: Path) -> None:
    other = tmp_path / "other.py"
    other.write_text(
        f"import sys\nsys.path.insert(0, {str(Path(__file__).parent)!r})\nimport small_texts\n\n"
        "def classifier():\n    model, made = small_texts.llama_classifier()\n"
        "    model.config.pad_token_id = 1\n    return model, made\n"
    )
    model = load_text_model(f"{other}:classifier", head="classes", classes=("a", "b"))
    rows = torch.tensor([[4, 5, 6, 0, 0]])
    with torch.no_grad():
        alone = forward(model.module.eval(), {"input_ids": rows[:, :3], "attention_mask": torch.ones(1, 3).long()})
        padded = forward(model.module, {"input_ids": rows, "attention_mask": (rows > 0).long()})
    torch.testing.assert_close(padded, alone, atol=1e-5, rtol=0)


def test_another_fit_is_another_kept_teacher(tmp_path: Path) -> None:
    recipe = written(tmp_path, CLASSES)
    usual = ["distill.terms=[]", "student.from_teacher.depth=1"]
    changes = ["", "teacher.fit.lr=1e-3", "teacher.options={num_hidden_layers: 3}", "data.length=20", "train.clip=2"]
    kept = [
        arms._same_teacher(assemble(load_recipe(recipe, usual + [change] * bool(change)), progress.silent))
        for change in changes
    ]
    assert len({*kept}) == len(changes)
    again = assemble(load_recipe(recipe, ["train.lr=1e-4", "distill.terms=[]", "distill.alpha=0.5"]), progress.silent)
    assert arms._same_teacher(again) == kept[0], "what the student learns by is none of the teacher's"


def test_bits_per_byte_may_be_more_than_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert load_recipe(written(tmp_path, TOKENS), ["budget.quality=1.8"]).budget.quality == 1.8
    with pytest.raises(UserError, match=r"budget.quality: .*less than or equal to 1; 1.8 came"):
        load_recipe(written(tmp_path, CLASSES), ["budget.quality=1.8"])
    with pytest.raises(UserError, match=r"teacher\.classes: a student of the teacher's parts"):
        load_recipe(written(tmp_path, CLASSES), ["teacher={model: 'hf:a', classes: [1, 0]}"])


def test_an_automatic_map_of_a_student_that_begins_trained_is_measured_at_once(tmp_path: Path) -> None:
    small_texts.bert()[0].save_pretrained(tmp_path / "teacher")
    small_texts.tokenizer().save_pretrained(tmp_path / "teacher")
    overrides = [f"teacher={{model: 'hf:{tmp_path / 'teacher'}'}}", "distill.terms=[{loss: hint, map: auto}]"]
    job = assemble(load_recipe(written(tmp_path, CLASSES), [*overrides, "compare.baseline=false"]), progress.silent)
    assert not job.unmeasured
    assert job.maps[0].similarity is not None
    assert job.student(0, STUDENT).module.config.num_hidden_layers == 2


def test_blocks_that_are_shared_cannot_be_chosen_from(tmp_path: Path) -> None:
    from transformers import AlbertConfig, AlbertForSequenceClassification

    from edgestill.students.depth import shallower

    config = AlbertConfig(vocab_size=23, embedding_size=8, **small_texts.SHAPE, **small_texts.LONG)
    with pytest.raises(UserError, match=r"student\.from_teacher"):
        shallower(AlbertForSequenceClassification(config), torch.arange(4, 20).reshape(2, 8), [0])


PLAIN = """
import torch
from torch import nn


class Bag(nn.Module):
    def __init__(self, num_classes, vocab_size):
        super().__init__()
        self.table, self.head = nn.Embedding(vocab_size, 8), nn.Linear(8, num_classes)

    def forward(self, {argument}, attention_mask=None):
        return self.head(self.table({argument}).mean(1))


def bag(num_classes=2, vocab_size=23):
    return Bag(num_classes, vocab_size)
"""


def test_a_plain_module_is_saved_and_used_again(tmp_path: Path) -> None:
    net = tmp_path / "net.py"
    net.write_text(PLAIN.replace("{argument}", "input_ids"))
    names = {"head": "classes", "classes": ("a", "b")}
    model = load_text_model(f"{net}:bag", **names, tokenizer=small_texts.tokenizer())
    save_student(model, tmp_path / "saved", ("a", "b"))
    again = load_text_model(str(tmp_path / "saved"), **names)
    assert isinstance(again.input, TextInput)
    ids = torch.arange(4, 12)[None]
    torch.testing.assert_close(again.module(ids), model.module(ids))
    fresh = load_text_model(f"{net}:bag", **names, tokenizer=small_texts.tokenizer())
    reload(Model(fresh.module, "", {}, fresh.input), tmp_path / "saved")
    torch.testing.assert_close(fresh.module(ids), model.module(ids))
    (tmp_path / "other.py").write_text(PLAIN.replace("{argument}", "ids"))
    with pytest.raises(UserError, match="its forward needs to take `input_ids`"):
        load_text_model(f"{tmp_path}/other.py:bag", **names, tokenizer=small_texts.tokenizer())
    assert isinstance(model.module, nn.Module)


def test_an_operator_that_onnx_lacks_is_named_for_texts_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    net = tmp_path / "net.py"
    net.write_text(
        PLAIN.replace("{argument}", "input_ids").replace(
            "self.table(input_ids).mean(1)",
            "torch.linalg.svdvals(self.table(input_ids)).sum(1, keepdim=True).expand(-1, 8)",
        )
    )
    recipe = written(tmp_path, CLASSES)
    arguments = ["run", str(recipe), "--out", str(tmp_path / "run"), "--quiet", "--set", "distill.terms=[]"]
    assert main([*arguments, "--set", f"student={{model: {net}:bag}}"]) == 2
    told = capsys.readouterr().err
    assert "onnx has no operator aten._linalg_svd" in told
    assert told.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_texts_are_asked_on_an_emulated_processor_as_whole_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    from edgestill.bench.emulated import emulate
    from edgestill.export.onnx import export
    from edgestill.models import plain_logits
    from test_emulated import pretended_root, program

    program(tmp_path / "programs" / "qemu-aarch64-static", "exit 1")
    monkeypatch.setenv("PATH", str(tmp_path / "programs"))
    root = pretended_root(tmp_path / "root", f'exec "{sys.executable}" "$@"')
    model = load_text_model(f"{NETS}:bert", head="classes", classes=("a", "b"))
    assert isinstance(model.input, TextInput)
    rows = torch.stack([torch.arange(4, 20).reshape(2, 8), torch.ones(2, 8).long()], 1)
    export(plain_logits(model), rows[:1], tmp_path / "model.onnx", model.input.names)
    with torch.no_grad():
        wanted = plain_logits(model).eval()(*rows.unbind(1)).numpy()
    np.testing.assert_allclose(emulate(tmp_path / "model.onnx", rows.numpy(), root=root).outputs, wanted, atol=1e-5)
