"""Language models, from a recipe to measured files, and what is promised of their blocks and bits."""

import json
import logging
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

import small_texts
from edgestill import progress
from edgestill import runs as job
from edgestill.assemble import assemble
from edgestill.data.texts import load_texts
from edgestill.errors import UserError
from edgestill.evaluate.tokens import BITS_PER_BYTE
from edgestill.models import TextInput, load_text_model
from edgestill.recipe import load_recipe
from edgestill.tasks.tokens import packed
from text_recipes import NETS, TOKENS, TWO_BLOCKS, result_of, written


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory, bare_runs) -> Path:
    folder = tmp_path_factory.mktemp("tokens")
    with bare_runs():
        job.run(load_recipe(written(folder, TOKENS), TWO_BLOCKS), folder / "run", track=progress.silent)
    return folder / "run"


def test_a_language_model_goes_from_recipe_to_measured_files(tokens: Path) -> None:
    result = result_of(tokens)
    assert result["metric"] == {"name": "bits per byte", "higher_is_better": False, "chance": 0.0}
    student = result["arms"]["student"]
    assert student["gap"] == pytest.approx(student["mean"] - result["teacher"]["quality"])
    assert student["mean"] < result["arms"]["scratch"]["mean"] < 8
    whole, dynamic = result["artifacts"]
    assert whole["quality"] == pytest.approx(student["mean"], abs=1e-5)
    assert whole["samples"] >= 1000, "as many tokens"
    assert abs(dynamic["quality"] - student["mean"]) < 0.01
    assert result["budget"]["met"]
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tokens / "student").eval()
    assert model.config.num_hidden_layers == 1
    words = model.generate(torch.tensor([[2]]), max_new_tokens=5, do_sample=False)
    assert words.shape[1] > 1


def test_bits_per_byte_are_those_of_the_whole_text(tokens: Path) -> None:
    """Independent of how it is cut: the sum of −log2 p over all tokens, each with what its block holds before it."""
    model = load_text_model(str(tokens / "student"), head="tokens", length=32)
    expected = model.input
    assert isinstance(expected, TextInput)
    data = small_texts.test()["text"]
    blocks = packed(load_texts({"test": small_texts.test}, label="none")["test"], expected)
    ids = [3]
    for text in data:
        ids += [*expected.tokenizer(text, add_special_tokens=False)["input_ids"], 3]
    bits, module = 0.0, model.module.eval()
    for start in range(0, len(ids) - 1, 32):
        block = torch.tensor(ids[start : start + 33])
        with torch.no_grad():
            logits = module(block[None, :-1]).logits[0]
        bits += float(functional.cross_entropy(logits, block[1:], reduction="sum")) / np.log(2)
    in_bytes = sum(len(text.encode()) for text in data)
    assert int(blocks.bytes.sum()) == in_bytes
    parts = assemble(load_recipe(written(tokens.parent, TOKENS)), progress.silent)
    assert len(parts.splits.test) == len(blocks)
    assert result_of(tokens)["arms"]["student"]["mean"] == pytest.approx(bits / in_bytes, rel=1e-5)
    assert parts.metric is BITS_PER_BYTE


def test_bytes_are_counted_whatever_the_characters() -> None:
    from transformers import PreTrainedTokenizerFast

    made = small_texts.tokenizer(("été", "😀", "日本"))
    assert isinstance(made, PreTrainedTokenizerFast)
    expected = TextInput(made, 8, ("input_ids",), "")
    texts = ["été 😀 日本 film", "film  ", ""]
    ids, sizes = expected.plain(texts)
    assert [int(size.sum()) for size in sizes] == [len(text.encode()) for text in texts[:2]] + [0]
    assert sizes[0].tolist() == [5, 5, 7, 5]
    assert [len(row) for row in ids] == [4, 1, 0]


def test_blocks_hold_every_token_once() -> None:
    model = load_text_model(f"{NETS}:llama", head="tokens", length=10)
    blocks = packed(load_texts({"train": small_texts.train}, label="none")["train"], model.input)
    learned = np.concatenate([blocks.targets(np.array([row])).ravel() for row in range(len(blocks))])
    np.testing.assert_array_equal(learned[learned >= 0], blocks.ids[1:])
    inputs = blocks.inputs(np.arange(3), model.input)
    assert inputs.shape == (3, 2, 10)
    np.testing.assert_array_equal(inputs[1:, 0, 0], blocks.targets(np.arange(3))[:2, -1], "no token is lost between")


def test_padded_vocabularies_are_aligned(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As of Qwen's sizes: one tokenizer, but more rows of embeddings on one side."""
    text = TOKENS.replace("student: {from_teacher: {depth: 2}}", f'student: {{model: "{NETS}:llama"}}')
    caplog.set_level(logging.WARNING, "edgestill")  # whatever a quiet command before left it at
    parts = assemble(load_recipe(written(tmp_path, text), ["teacher.options={vocab_size: 32}"]), progress.silent)
    assert parts.splits.train.vocabulary == 23
    assert "the 23 that both have count" in caplog.text
    batch = parts.splits.train.batch(np.arange(2), np.zeros(2, np.int64), 0)
    outputs = torch.randn(2, 32, 32)
    assert batch.answers(outputs).shape == (64, 23)


def test_a_tokenizer_of_another_model_is_refused_as_the_likely_cause(tokens: Path, tmp_path: Path) -> None:
    """It has as many ids, for other words: worse than a token at random, and yet far less than 8 bits a byte."""
    shutil.copytree(tokens / "teacher", tmp_path / "teacher")
    whole = json.loads((tmp_path / "teacher" / "tokenizer.json").read_text())
    words = whole["model"]["vocab"]
    own = [word for word in words if word not in small_texts.SPECIAL]
    words |= dict(zip(own, [words[word] for word in own[7:] + own[:7]], strict=True))
    (tmp_path / "teacher" / "tokenizer.json").write_text(json.dumps(whole))
    given = ["student.from_teacher.depth=1", f"teacher={{model: 'hf:{tmp_path / 'teacher'}'}}"]
    with pytest.raises(UserError, match=r"no better than guessing: .* one of 23 tokens at random gives") as refused:
        job.run(load_recipe(written(tmp_path, TOKENS), given), tmp_path / "run", track=progress.silent)
    told = re.search(
        r"guessing: ([\d.]+) bits .* gives ([\d.]+); is its tokenizer .* another model's", str(refused.value)
    )
    found, guess = map(float, told.groups())
    blocks = assemble(load_recipe(written(tmp_path, TOKENS), given), progress.silent).splits.validation
    assert guess == pytest.approx(np.log2(23) * blocks.positions.sum() / blocks.bytes.sum(), abs=1e-3)
    assert guess < found < 8
    assert not (tmp_path / "run" / "arms").exists()
