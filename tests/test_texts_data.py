"""Texts as they are read, and what is refused of them before anything is written."""

import json
import re
from pathlib import Path

import pytest

import small_texts
from edgestill.cli import main
from edgestill.data.splitting import hold_out
from edgestill.data.texts import load_texts
from edgestill.errors import UserError
from edgestill.models import load_text_model
from text_recipes import CLASSES, HERE, TOKENS, written


def test_a_split_of_texts_is_read_from_any_kind_of_file(tmp_path: Path) -> None:
    import datasets

    rows = [{"text": 'a "good" film', "label": "pos"}, {"text": "bad, dull", "label": "neg"}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "a.json").write_text(json.dumps(rows))
    (tmp_path / "a.csv").write_text('text,label\n"a ""good"" film",pos\n"bad, dull",neg\n')
    (tmp_path / "a.tsv").write_text('text\tlabel\na "good" film\tpos\nbad, dull\tneg\n')
    (tmp_path / "b.tsv").write_text('a "good" film\tpos\nbad, dull\tneg\n')
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "a.parquet")
    read = [
        load_texts({"train": str(tmp_path / f"a.{kind}")})["train"]
        for kind in ["jsonl", "json", "csv", "tsv", "parquet"]
    ]
    read.append(load_texts({"train": str(tmp_path / "b.tsv")}, columns={"text": 0, "label": 1})["train"])
    for texts in read:
        assert list(texts.texts) == ['a "good" film', "bad, dull"]
        assert (texts.labels.tolist(), texts.classes) == ([1, 0], ("neg", "pos"))
        assert texts.fingerprint == read[0].fingerprint
    (tmp_path / "a.txt").write_text("line one\nline two\n")
    assert load_texts({"train": str(tmp_path / "a.txt")}, label="none")["train"].texts == ["line one\nline two\n"]
    rest, held = hold_out(load_texts({"train": small_texts.train})["train"], 0.1, seed=0)
    assert (len(rest), len(held)) == (720, 80)
    assert rest.texts[0] in small_texts.train()["text"]


BAD = {
    "empty": ("", "jsonl", {}, "the train split needs texts; .* has none: put some in, or name other files"),
    "no column": (
        '{"a": "x"}',
        "jsonl",
        {},
        "needs a column 'text'; its columns are 'a': name the right",
    ),
    "named column": ('{"text": "x"}', "jsonl", {"text": "b"}, "needs a column 'b'; its columns are 'text'"),
    "no text": ('{"text": 3}', "jsonl", {}, "column 'text' needs texts; row 0 has '3'"),
    "no json": ('{"text": ', "jsonl", {}, "line 1 is not JSON"),
    "ragged": ("text,label\na", "csv", {}, "line 2 needs 2 cells"),
    "mixed labels": ('{"text": "a", "label": 1.5}', "jsonl", {}, "labels need to be all whole numbers or all class"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_data_is_one_line(name: str, tmp_path: Path) -> None:
    content, kind, columns, said = BAD[name]
    (tmp_path / f"train.{kind}").write_text(content)
    with pytest.raises(UserError, match=said) as raised:
        load_texts({"train": str(tmp_path / f"train.{kind}")}, columns=columns)
    assert "\n" not in str(raised.value)


def test_an_id_beyond_a_gap_is_another_models(tmp_path: Path) -> None:
    """As many tokens as embeddings, one of them with an id that none has."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    words = {"[PAD]": 0, "[UNK]": 1, "good": 2, "bad": 1000}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    BertForSequenceClassification(BertConfig(vocab_size=4, **sizes)).save_pretrained(tmp_path)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(tmp_path)
    with pytest.raises(UserError, match="has 1,001 ids, the model embeds 4: it is another model's"):
        load_text_model(f"hf:{tmp_path}", head="classes", classes=("a", "b"))


REFUSED = {
    "too many embeddings": (
        CLASSES, ["teacher.options={vocab_size: 20}"],
        r"its tokenizer \(.*\) has 23 ids, the model embeds 20: it is another model's",
    ),
    "too long": (CLASSES, ["data.length=500"], "data.length: .* takes at most 48 tokens; 500 came"),
    "not cut": (CLASSES, ["data.length=8", "data.too_long=refuse"], "have more tokens than the 8 that the teacher"),
    "few blocks": (TOKENS, ["train.batch_size=4096"], "makes .* blocks of 32 tokens, less than a batch of 4096"),
    "vocabularies": (
        TOKENS, ["student={model: %s:gpt2_of_more}"],
        "vocabularies differ: the teacher .* has 23 tokens .* and 23 logits, the student .* 24",
    ),
    "depth": (CLASSES, ["student.from_teacher.depth=9"], "the teacher has 4 blocks; 9 were asked for"),
    "format": (CLASSES, ["export=[onnx-int8]"], "text models are exported to onnx, onnx-int8-dynamic; onnx-int8 came"),
    "views": (CLASSES, ["train.views.flip=true"], "train.views: is for images"),
    "numbers": (CLASSES, ["data.label=number", "distill.loss=kl"], "for which it is regression or none; kl came"),
    "classes": (CLASSES, ["teacher.options={num_classes: 3}"], "class counts differ: the teacher .* puts out 3"),
    "relation": (
        CLASSES, ["distill.terms=[{loss: attention_relation, student: bert.encoder.layer.0, map: first}]"],
        "it takes PATH@queries, @keys and @values as they are",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_together_is_refused_before_anything_is_written(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, overrides, said = REFUSED[name]
    more = tmp_path / "more.py"
    more.write_text(
        f"import sys\nsys.path.insert(0, {str(HERE)!r})\nimport small_texts\n\n"
        "def gpt2_of_more():\n"
        "    model, _ = small_texts.gpt2()\n"
        "    model.resize_token_embeddings(24)\n"
        "    return model, small_texts.tokenizer(('new',))\n"
    )
    sets = [word for override in overrides for word in ("--set", override.replace("%s", str(more)))]
    arguments = ["run", str(written(tmp_path, text)), "--out", str(tmp_path / "run"), "--quiet", *sets]
    assert main(arguments) == 2
    told = capsys.readouterr().err
    assert re.search(said, told), told
    assert told.count("\n") == 1
    assert not (tmp_path / "run").exists()
