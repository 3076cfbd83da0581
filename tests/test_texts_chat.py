"""Conversations, of which the assistant's tokens alone are learned."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch

import small_texts
from edgestill import progress
from edgestill import runs as job
from edgestill.assemble import assemble
from edgestill.data.texts import load_texts
from edgestill.errors import UserError
from edgestill.recipe import load_recipe
from edgestill.words import summary
from text_recipes import HERE, written

TEMPLATE = (
    "{% for message in messages %}[CLS] {{ message.role }} : {{ message.content }} [SEP] {% endfor %}"
    "{% if add_generation_prompt %}[CLS] assistant :{% endif %}"
)
CHAT = f"""
import sys
sys.path.insert(0, {str(HERE)!r})
import small_texts


def chat():
    model, _ = small_texts.llama(vocab_size=26, num_hidden_layers=2)
    made = small_texts.tokenizer(("user", "assistant", ":"))
    made.chat_template = {TEMPLATE!r}
    return model, made


def rows(count, seed):
    data = small_texts.sentences(count, seed)
    word = {{"pos": "good film", "neg": "bad"}}
    return {{"prompt": data["text"], "response": [word[label] for label in data["label"]]}}


def train():
    return rows(800, 0)


def test():
    return rows(200, 1)
"""
INSTRUCTION = """
task: instruction
data: {train: "chat.py:train", test: "chat.py:test", length: 40, validation: 0.1}
teacher: {model: "chat.py:chat", fit: {epochs: 8, lr: 3e-3}}
student: {from_teacher: {depth: 1}}
train: {epochs: 2, lr: 2e-3}
compare: {scratch: false}
export: [onnx]
"""


@pytest.mark.usefixtures("bare")
def test_the_assistants_tokens_alone_are_learned(tmp_path: Path) -> None:
    (tmp_path / "chat.py").write_text(CHAT)
    result = job.run(load_recipe(written(tmp_path, INSTRUCTION)), tmp_path / "run", track=progress.silent)
    parts = assemble(load_recipe(tmp_path / "run" / "recipe.yaml"), progress.silent)
    blocks, tokenizer = parts.splits.test, parts.teacher.input.tokenizer
    targets = blocks.targets(np.arange(3))
    told = [tokenizer.decode(row[row >= 0]) for row in targets]
    data = small_texts.sentences(200, 1)
    word = {"pos": "good film [SEP]", "neg": "bad [SEP]"}
    assert told == [word[label] for label in data["label"][:3]]
    assert int(blocks.bytes.sum()) == sum(len(word[label]) - len(" [SEP]") for label in data["label"])
    batch = blocks.batch(np.arange(3), np.zeros(3, np.int64), 0)
    assert batch.counts(parts.teacher.input).positions == len(batch.labels) == (targets >= 0).sum()
    assert batch.answers(torch.randn(3, targets.shape[1], 26)).shape == (len(batch.labels), 26)
    # the label is in the prompt: who reads it needs next to no bits, who guesses one for each answer
    assert result["teacher"]["quality"] < 0.1
    assert result["artifacts"][0]["quality"] == pytest.approx(result["arms"]["student"]["mean"], abs=1e-4)
    longer = load_recipe(tmp_path / "run" / "recipe.yaml", ["data.length=12"])
    assert assemble(longer, progress.silent).splits.train.cut > 0


@pytest.mark.usefixtures("bare")
def test_conversations_without_an_answer_are_counted_apart_from_those_that_are_cut(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Tokens are words; four are around the prompt, and three before the answer."""
    (tmp_path / "chat.py").write_text(CHAT)
    recipe = load_recipe(written(tmp_path, INSTRUCTION), ["data.length=17", "train.epochs=0.5", "teacher.fit.epochs=1"])
    caplog.set_level(logging.WARNING, "edgestill")  # whatever a quiet command before left it at
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job, "check_teacher", lambda *_: None)
        result = job.run(recipe, tmp_path / "run", track=progress.silent, deliver_files=False)
    cut, lost = {}, {}
    for name, count, seed in (("train", 800, 0), ("test", 200, 1)):
        data = small_texts.sentences(count, seed)
        begins = [len(text.split()) + 4 + 3 for text in data["text"]]
        ends = [begin + (3 if label == "pos" else 2) for begin, label in zip(begins, data["label"], strict=True)]
        lost[name] = sum(begin > 17 for begin in begins)
        cut[name] = sum(begin <= 17 and end > 18 for begin, end in zip(begins, ends, strict=True))
    assert lost["train"] > 0 < cut["train"]
    assert result["data"]["skipped"] == lost
    told = result["data"]["cut"]
    assert told["test"] == cut["test"]
    assert told["train"] + told["validation"] == cut["train"], "a split that is held out has its own"
    assert 0 < told["validation"] < 0.3 * cut["train"]
    assert result["data"]["train"] + result["data"]["validation"] == 800 - lost["train"]
    assert f"{lost['train']} conversations of the train split are left out: nothing of their answers" in caplog.text
    assert f"left out {lost['test']} conversations of the test split, without an answer to learn" in summary(result)


@pytest.mark.parametrize(
    ("change", "override", "said"),
    [
        ("made.chat_template = None", [], "has no chat template, which says how a conversation is written"),
        (
            "made.chat_template = '{{ messages[-1].content }}'",
            [],
            "writes earlier messages other",
        ),
        (
            "made.chat_template = '{{ raise_exception(\"no such role\") }}'",
            [],
            "does not write a conversation of user, assistant: no such role; change the conversations, or the template",
        ),
        ("made.chat_template = '{% for %}'", [], "does not write a conversation of user, assistant: "),
        ("pass", ["data.length=12", "data.too_long=refuse"], "have more tokens than data.length, 12"),
        (
            "pass",
            ["data.columns={prompt: question}"],
            "needs a column 'question'; its columns are 'prompt'",
        ),
    ],
)
def test_conversations_that_cannot_be_learned_are_refused(
    change: str, override: list[str], said: str, tmp_path: Path
) -> None:
    (tmp_path / "chat.py").write_text(CHAT.replace("    return model, made", f"    {change}\n    return model, made"))
    with pytest.raises(UserError, match=said):
        assemble(load_recipe(written(tmp_path, INSTRUCTION), override), progress.silent)


def test_a_conversation_that_begins_with_an_answer_is_refused(tmp_path: Path) -> None:
    messages = [{"role": "assistant", "content": "good film"}, {"role": "user", "content": "bad"}]
    (tmp_path / "chat.py").write_text(f"{CHAT}\n\ndef answers():\n    return {{'messages': [{messages!r}] * 40}}\n")
    recipe = load_recipe(written(tmp_path, INSTRUCTION), [f"data.train={tmp_path}/chat.py:answers"])
    with pytest.raises(UserError, match="begins with the assistant, whose answer is to nothing: put a user's message"):
        assemble(recipe, progress.silent)


def test_messages_are_read_as_they_are_published(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    (tmp_path / "a.jsonl").write_text(json.dumps({"messages": messages}) + "\n")
    texts = load_texts({"train": str(tmp_path / "a.jsonl")}, label="messages")["train"]
    assert json.loads(texts.texts[0]) == messages
    (tmp_path / "b.jsonl").write_text(json.dumps({"messages": messages[:1]}) + "\n")
    with pytest.raises(UserError, match="with a message of the assistant's; row 0 has"):
        load_texts({"train": str(tmp_path / "b.jsonl")}, label="messages")
