"""Skills of language models: what is written, how likely it is, how that is scored, and what a run makes of it."""

import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from edgestill import load_recipe, progress
from edgestill import runs as job
from edgestill.cli import main
from edgestill.errors import UserError
from edgestill.evaluate.likelihood import continuations, token_ids, whole
from edgestill.evaluate.metric import predictor
from edgestill.evaluate.numbers import last_number, same_number, same_text
from edgestill.evaluate.paired import over_redraws
from edgestill.evaluate.skill import Skill, filled, right_choice
from edgestill.evaluate.skills import Found, check, cut, measure
from edgestill.evaluate.writing import LanguageModel, answers, drafting, prompt_ids
from edgestill.models import load_text_model
from edgestill.skills import _ends, _judged
from small_sums import asked, tokenizer

SUMS = Path(__file__).with_name("small_sums.py")
PROMPTS = ["3+4=", "9+9=1", "7", "1+1=2\n5+"]


def model_of(seed: int, length: int = 24) -> tuple[torch.nn.Module, LanguageModel]:
    """A small Llama whose answers are far from all alike, and how skills ask it: without drafts."""
    loaded = load_text_model(f"{SUMS}:llama", head="tokens", length=length)
    torch.manual_seed(seed)
    for parameter in loaded.module.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.4)
    predict = predictor(loaded.module, loaded.input, torch.device("cpu"))
    return loaded.module, LanguageModel(predict, loaded.input, vocabulary=40, batch=3)


@pytest.fixture(scope="module")
def asked_model() -> tuple[torch.nn.Module, LanguageModel]:
    return model_of(0)


def ids_of(model: LanguageModel, texts: list[str]) -> list[list[int]]:
    return [prompt_ids(model.expected, text) for text in texts]


def test_what_is_written_is_the_most_probable_token_each_time(
    asked_model: tuple[torch.nn.Module, LanguageModel],
) -> None:
    module, model = asked_model
    prompts = ids_of(model, PROMPTS)
    expected = []
    for prompt in prompts:
        ids = list(prompt)
        while len(ids) < len(prompt) + 12 and len(ids) < 24:
            with torch.no_grad():
                following = int(module(torch.tensor([ids])).logits[0, -1, :40].argmax())
            if following == model.expected.tokenizer.eos_token_id:
                break
            ids.append(following)
        expected.append(model.expected.tokenizer.decode(ids[len(prompt) :]))
    assert answers(model, prompts, 12) == expected
    assert len(set(expected)) > 1


@pytest.mark.parametrize("seed", [0, 1], ids=["its own draft", "another model's draft"])
def test_a_draft_changes_the_passes_and_not_what_is_written(
    asked_model: tuple[torch.nn.Module, LanguageModel], seed: int
) -> None:
    module, model = asked_model
    drafted = module if seed == 0 else model_of(seed)[0]
    calls: list[int] = []

    def counted(inputs: np.ndarray) -> np.ndarray:
        calls.append(len(inputs))
        return model.predict(inputs)

    quick = replace(model, predict=counted, draft=drafting(drafted, model.expected, 40))
    prompts = ids_of(model, PROMPTS)
    assert answers(quick, prompts, 12) == answers(model, prompts, 12)
    if seed == 0:
        assert sum(calls) <= 2 * len(PROMPTS)


def test_a_reply_ends_at_a_stop_and_at_the_length(asked_model: tuple[torch.nn.Module, LanguageModel]) -> None:
    _, model = asked_model
    (free,) = answers(model, ids_of(model, ["3+4="]), 12)
    assert len(free) == 12
    stop = free[5:7]
    assert answers(model, ids_of(model, ["3+4="]), 12, [stop]) == [free[: free.index(stop)]]
    (full,) = answers(model, ids_of(model, ["3+4=" * 5]), 12)
    assert len(full) == 24 - 20


def test_the_likelihood_of_a_continuation_is_the_sum_over_its_tokens(
    asked_model: tuple[torch.nn.Module, LanguageModel],
) -> None:
    module, model = asked_model
    pairs = [("3+4=", "7"), ("1+", "2=3\n"), ("", "12"), ("9+9=" * 7, "18")]
    found, greedy = continuations(model, pairs)
    words = model.expected.tokenizer
    for (context, continuation), value in zip(pairs, found, strict=True):
        ids = (words(context).input_ids or [words.eos_token_id]) + words(continuation).input_ids
        ids = ids[-25:]
        with torch.no_grad():
            logs = module(torch.tensor([ids[:-1]])).logits[0, :, :40].log_softmax(-1)
        count = len(words(continuation).input_ids)
        expected = sum(float(logs[place - 1, ids[place]]) for place in range(len(ids) - count, len(ids)))
        assert value == pytest.approx(expected, abs=1e-4)
    (reply,) = answers(model, ids_of(model, ["3+4="]), 2)
    assert continuations(model, [("3+4=", reply)])[1].tolist() == [True]
    assert not greedy[:2].any()


def test_a_long_text_is_read_piece_by_piece(asked_model: tuple[torch.nn.Module, LanguageModel]) -> None:
    module, model = asked_model
    text = "".join(f"{number}+1={number + 1}\n" for number in range(12))
    ids = [0, *model.expected.tokenizer(text).input_ids]
    total = 0.0
    for start in range(0, len(ids) - 1, 24):
        piece = torch.tensor([ids[start : start + 25]])
        with torch.no_grad():
            logs = module(piece[:, :-1]).logits[..., :40].log_softmax(-1)
        total += float(logs.gather(-1, piece[:, 1:, None]).sum())
    assert whole(model, [text, "1"])[0] == pytest.approx(total, abs=1e-3)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("3 + 4 is 7.", 7),
        ("she pays $1,234.50 in all", 1234.5),
        ("12 apples\n#### 13\nQuestion: 99", 13),
        ("#### 18 dollars for 7 days", 18),
        ("5 - 3", 3),
        ("Answer:\n- 5 apples", 5),
        ("in 2019-12", 12),
        ("(3,4)", 4),
        ("1e5", 1e5),
        ("no apples.12", 12),
        ("3/4 of it", 0.75),
        ("\\boxed{\\frac{1}{4}}", 0.25),
        ("1/0", None),
        ("so \\boxed{-5} it is, of 8", -5),
        ("minus −2", -2),
        (".5", 0.5),
        ("####  none, 6", 6),
        ("nothing", None),
    ],
)
def test_a_number_is_read_from_a_reply(text: str, number: float | None) -> None:
    assert last_number(text) == number


def test_numbers_and_texts_are_compared_by_what_they_say() -> None:
    assert same_number("it is 39", "39.0")
    assert not same_number("it is 39 or 40", "39.0")
    assert not same_number("no idea", "39.0")
    assert not same_number("1000001", "1000000")
    assert same_text("  The  Cat.\nThe dog", "the cat")
    assert not same_text("the dog", "the cat")


ROWS = [{key: values[place] for key, values in asked().items()} for place in range(100)]


def skill(scorer: object, **changed: object) -> Skill:
    usual = {"prompt": "{one}+{other}=", "answer": "{sum}", "tokens": 3}
    return Skill("sums", scorer, ROWS, "rows", **(usual | changed))  # type: ignore[arg-type]


def knowing(model: LanguageModel, right: set[int]) -> LanguageModel:
    """A model that answers the sums of some rows, and 0 to all others: its logits are written down."""
    words = model.expected.tokenizer
    known = {row["one"] * 10 + row["other"]: str(row["sum"]) for place, row in enumerate(ROWS) if place in right}

    def predict(inputs: np.ndarray) -> np.ndarray:
        logits = np.zeros((*inputs.shape[::2], 48), np.float32)
        for row, ids in enumerate(inputs[:, 0]):
            text = words.decode(ids[inputs[row, 1] > 0])
            for place in range(len(text)):
                found = re.search(r"(\d)\+(\d)=(\d*)$", text[: place + 1])
                full = known.get(int(found[1]) * 10 + int(found[2]), "0") if found else ""
                following = full[len(found[3]) :][:1] if found and full.startswith(found[3]) else ""
                logits[row, place, words.convert_tokens_to_ids(following or "\n")] = 9.0
        return logits

    return replace(model, predict=predict, draft=None)


def test_exact_numbers_are_counted(asked_model: tuple[torch.nn.Module, LanguageModel]) -> None:
    found = measure(skill("exact-number", stop=("\n",)), knowing(asked_model[1], {*range(30, 70)}))
    assert found.scores.tolist() == [float(30 <= place < 70 or ROWS[place]["sum"] == 0) for place in range(100)]
    assert found.chance == 0
    assert found.replies[44] == "8"
    assert found.asked[44] == "4+4="


def test_of_choices_the_most_probable_counts(asked_model: tuple[torch.nn.Module, LanguageModel]) -> None:
    rows = [row for row in ROWS if row["sum"] > 9 and not row["results"][0].startswith(row["results"][1])]
    chosen = replace(skill("multiple-choice", choices="results", between=""), rows=rows)
    found = measure(chosen, knowing(asked_model[1], {*range(100)}))
    assert found.chance == 0.5
    assert found.scores.mean() == 1
    assert found.replies[0] == str(rows[0]["sum"])
    wrong = measure(replace(chosen, answer="{results[1]}"), knowing(asked_model[1], {*range(100)}))
    assert wrong.scores.mean() == 0


def test_shots_stand_before_the_question(asked_model: tuple[torch.nn.Module, LanguageModel]) -> None:
    seen: list[str] = []
    model = knowing(asked_model[1], {*range(100)})

    def predict(inputs: np.ndarray) -> np.ndarray:
        seen.append(tokenizer().decode(inputs[0, 0][inputs[0, 1] > 0]))
        return model.predict(inputs)

    few = replace(skill("exact-number", shots=ROWS[12:14]), rows=ROWS[50:51])
    measure(few, replace(model, predict=predict))
    assert seen[0] == "1+2= 3\n\n1+3= 4\n\n5+0="
    seen.clear()
    measure(replace(few, chat=True), replace(model, predict=predict))
    assert seen[0] == "1+2=31+3=45+0="


def test_a_function_of_ones_own_scores_replies(asked_model: tuple[torch.nn.Module, LanguageModel]) -> None:
    found = measure(skill(lambda reply, row: float(reply == "0"), stop=("\n",)), knowing(asked_model[1], set()))
    assert found.scores.mean() == 1


def test_instructions_are_followed_or_not(asked_model: tuple[torch.nn.Module, LanguageModel]) -> None:
    rows = [
        {"prompt": "1+1=", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]},
        {
            "prompt": "1+1=",
            "instruction_id_list": ["punctuation:no_comma", "keywords:existence"],
            "kwargs": [{}, {"keywords": ["seven"]}],
        },
    ]
    found = measure(Skill("if", "instructions", rows, "rows", tokens=3), knowing(asked_model[1], {*range(100)}))
    assert found.scores.tolist() == [1, 0]


def test_bits_and_perplexity_are_those_of_the_blocks(asked_model: tuple[torch.nn.Module, LanguageModel]) -> None:
    module, model = asked_model
    rows = [{"text": "1+2=3"}, {"text": "7+7=14"}]
    ids = [0, *tokenizer()("1+2=3").input_ids, 0, *tokenizer()("7+7=14").input_ids, 0]
    with torch.no_grad():
        logs = module(torch.tensor([ids[:-1]])).logits[0, :, :40].log_softmax(-1)
    nats = -float(logs.gather(-1, torch.tensor(ids[1:])[:, None]).sum())
    bits, perplexity = (Skill("text", name, rows, "rows") for name in ("bits-per-byte", "perplexity"))
    found = measure(bits, model)
    assert float(bits.score(found.scores, found.weights)) == pytest.approx(nats / np.log(2) / 11, rel=1e-5)
    found = measure(perplexity, model)
    assert float(perplexity.score(found.scores, found.weights)) == pytest.approx(
        np.exp(nats / (len(ids) - 1)), rel=1e-5
    )


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"choices": ["a", "b"], "answer": 1}, 1),
        ({"choices": ["a", "b"], "answer": "B"}, 1),
        ({"choices": ["x", "y"], "answer": "y"}, 1),
        ({"choices": {"text": ["x", "y"], "label": ["1", "2"]}, "answer": "1"}, 0),
        ({"choices": {"text": ["4", "1"], "label": ["1", "2"]}, "answer": "1"}, 0),
        ({"choices": ["8", "2", "24", "120"], "answer": 2}, 2),
        ({"choices": ["8", "2", "24", "120"], "answer": "2"}, 1),
        ({"choices": ["8", "2"], "answer": 8}, 0),
    ],
)
def test_the_right_choice_is_named_in_several_ways(row: dict, expected: int) -> None:
    assert right_choice(Skill("s", "multiple-choice", [row], "rows"), row, 0)[1] == expected


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (skill("exact-number", prompt="{first}+"), "cannot be filled"),
        (skill("exact-number", answer="none"), "take the scorer exact-text"),
        (skill("multiple-choice"), "at least two choices"),
        (skill("multiple-choice", choices="results", answer="99"), "none of its 2 choices"),
        (skill("instructions", prompt=None), "needs a column 'prompt'"),
        (skill("instructions"), "instruction_id_list"),
        (Skill("s", "bits-per-byte", [{"words": "a"}], "rows"), "needs a column 'text'"),
        (Skill("s", "bits-per-byte", [{"text": None}], "rows"), "row 0 has no text"),
        (Skill("s", "bits-per-byte", [{"text": ""}], "rows"), "rows has no text"),
        (Skill("s", "exact-text", [{"question": None, "answer": "a"}], "rows"), "column 'question' is empty .row 0"),
        (Skill("s", "exact-text", [{"question": "q", "answer": "..."}], "rows"), "compares a line of letters"),
        (skill(lambda reply, row: int(reply)), "scorer: fails for the reply ''"),
        (skill(lambda reply, row: 5), "a number in 0…1; 5.0 came"),
        (skill("exact-number", shots=[{"first": 1}], examples="others"), "filled from others"),
        (
            Skill("s", "instructions", [{"prompt": "p", "instruction_id_list": ["x"], "kwargs": [3]}], "rows"),
            "an object an instruction",
        ),
    ],
)
def test_rows_that_do_not_fit_are_refused(given: Skill, said: str) -> None:
    with pytest.raises(UserError, match=said):
        check(given)


def test_prompts_that_are_too_long_are_counted(asked_model: tuple[torch.nn.Module, LanguageModel]) -> None:
    expected = asked_model[1].expected
    rows = [{"question": "1" * count, "answer": "1", "choices": ["1", "22"]} for count in (10, 21, 22, 23, 24, 30)]
    assert cut(Skill("s", "exact-number", rows, "rows", tokens=3), expected) == 4
    assert cut(Skill("s", "multiple-choice", rows, "rows", between=""), expected) == 2


def test_a_reply_ends_where_the_teacher_ends_its_turns(asked_model: tuple[torch.nn.Module, LanguageModel]) -> None:
    _, model = asked_model
    (free,) = answers(model, ids_of(model, ["3+4="]), 12)
    ended = replace(model, ends=frozenset(tokenizer()(free[4]).input_ids))
    assert answers(ended, ids_of(model, ["3+4="]), 12) == [free[: free.index(free[4])]]


def test_turns_end_where_the_teachers_folder_says() -> None:
    loaded = load_text_model(f"{SUMS}:llama", head="tokens")
    assert _ends(SimpleNamespace(teacher=loaded)) == {0}  # type: ignore[arg-type]
    loaded.module.generation_config.eos_token_id = [0, 9]
    assert _ends(SimpleNamespace(teacher=loaded)) == {0, 9}  # type: ignore[arg-type]


def test_a_continuation_is_tokenized_with_what_stands_before_it() -> None:
    words = Tokenizer(models.WordLevel({"a": 0, "b": 1, "ab": 2, "?": 3}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.Split(" ", "removed")
    made = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="?", pad_token="?")
    expected = replace(model_of(0)[1].expected, tokenizer=made)
    model = LanguageModel(lambda _: np.zeros(0, np.float32), expected, 4)
    assert token_ids(model, ("a b", " ab")) == ([0, 1, 2], 2)
    assert token_ids(model, ("", "b")) == ([3, 1], 1)


def test_shares_are_drawn_in_pairs() -> None:
    scores = (np.arange(60) % 2).astype(float)
    found = Found(scores, np.ones(60), 0.0, [], [])
    same = {"scores": scores.tolist(), "weights": [1.0] * 60}
    judged = _judged(Skill("s", "exact-number", [], "rows"), found, same)
    assert judged["retained"] == 1
    assert judged["retained_interval"] == (1, 1), "of the same answers in every draw"
    assert judged["interval"][0] < 0.45


def test_a_template_takes_columns_and_their_parts() -> None:
    row = {"body": "Two.", "answers": [3.0], "question": "How many?"}
    made = Skill("s", "exact-number", [row], "rows", prompt="{body} {question}\nA:", answer="{answers[0]}")
    assert filled(made, row, "prompt") == "Two. How many?\nA:"
    assert filled(made, row, "answer") == "3.0"
    assert filled(replace(made, prompt=None), row, "prompt") == "How many?"


def test_the_bootstrap_is_the_normal_interval_of_a_mean() -> None:
    scores = np.random.default_rng(3).random(400)
    found = over_redraws(lambda drawn: (drawn * scores).sum(-1) / drawn.sum(-1), len(scores))
    assert found is not None
    half = 1.96 * scores.std(ddof=1) / np.sqrt(400)
    assert found[0] == pytest.approx(scores.mean() - half, abs=0.15 * half)
    assert found[1] == pytest.approx(scores.mean() + half, abs=0.15 * half)
    assert over_redraws(lambda drawn: drawn.sum(-1), 1) is None


RECIPE = f"""
task: language-modeling
data: {{train: "{SUMS}:train", test: "{SUMS}:test", length: 32}}
teacher: {{model: "{SUMS}:llama", fit: {{epochs: 5, lr: 6e-3}}}}
student: {{model: "{SUMS}:llama", options: {{width: 24, layers: 1}}}}
train: {{epochs: 2, lr: 6e-3}}
compare: {{scratch: false}}
skills:
  bits: {{scorer: bits-per-byte, data: "{SUMS}:test"}}
  sums: {{scorer: exact-number, data: "{SUMS}:asked", prompt: "{{one}}+{{other}}=", answer: "{{sum}}", tokens: 4}}
  odd: {{scorer: "{SUMS}:odd", data: "{SUMS}:asked", prompt: "{{one}}+{{other}}=", tokens: 4, samples: 50}}
budget: {{keep: {{sums: 0.99}}}}
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, bare_runs: Any) -> Path:
    folder = tmp_path_factory.mktemp("skills")
    (folder / "recipe.yaml").write_text(RECIPE)
    with bare_runs(with_report=True):
        job.run(load_recipe(folder / "recipe.yaml"), folder / "run", track=progress.silent)
    return folder / "run"


def result_of(folder: Path) -> dict:
    return json.loads((folder / "result.json").read_text())


def test_a_run_asks_all_its_models(run: Path) -> None:
    result = result_of(run)
    assert list(result["skills"]) == ["bits", "sums", "odd"]
    for entry in result["skills"].values():
        assert list(entry["models"]) == ["teacher", "baseline", "student", "onnx", "onnx-int8-dynamic"]
    bits, sums, odd = (result["skills"][name] for name in ("bits", "sums", "odd"))
    assert bits["models"]["teacher"]["score"] == pytest.approx(result["teacher"]["quality"], rel=1e-6)
    assert bits["models"]["student"]["score"] == pytest.approx(result["arms"]["student"]["mean"], rel=1e-6)
    assert bits["models"]["onnx"]["score"] == pytest.approx(result["artifacts"][0]["quality"], rel=1e-5)
    assert sums["models"]["teacher"]["score"] > 0.5
    assert (sums["samples"], odd["samples"], odd["scorer"]) == (100, 50, "odd")
    student, teacher = sums["models"]["student"], sums["models"]["teacher"]
    assert student["retained"] == pytest.approx(student["score"] / teacher["score"])
    low, high = student["retained_interval"]
    assert low <= student["retained"] <= high
    student = bits["models"]["student"]
    assert student["retained"] == pytest.approx((8 - student["score"]) / (8 - bits["models"]["teacher"]["score"]))


def test_the_float_file_writes_what_the_student_writes(run: Path) -> None:
    kept = json.loads((run / "skills" / "sums.json").read_text())
    assert kept["models"]["onnx"]["replies"] == kept["models"]["student"]["replies"]
    assert kept["asked"][:2] == ["0+0=", "0+1="]
    replies = kept["models"]["teacher"]["replies"]
    right = [float(same_number(reply, str(row["sum"]))) for reply, row in zip(replies, ROWS, strict=True)]
    assert kept["models"]["teacher"]["scores"] == right


def test_what_is_not_kept_misses_the_budget(run: Path) -> None:
    result = result_of(run)
    kept = result["skills"]["sums"]["models"][result["budget"]["artifact"]]["retained"]
    verdict = result["budget"]["keep sums"]
    assert (verdict["value"], verdict["met"]) == (kept, kept >= 0.99)
    assert kept < 0.99
    assert result["budget"]["met"] is False


def test_the_report_shows_skills(run: Path) -> None:
    page = (run / "report.html").read_text()
    assert "What they can do" in page
    assert "What is retained of each skill" in page
    assert "Skill sums" in page


def test_skills_are_changed_on_a_trained_run(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = result_of(run)
    changed = ["--set=skills.odd.samples=20", "--set=budget={keep: {odd: 0.01}}"]
    assert main(["evaluate", str(run), "--quiet", *changed]) == 0
    result = result_of(run)
    assert result["skills"]["odd"]["samples"] == 20
    assert result["skills"]["sums"] == before["skills"]["sums"]
    assert result["budget"]["met"] is True
    assert main(["evaluate", str(run), "--quiet", "--set=budget={keep: {odd: 1.0, sums: 1.0}}"]) == 3
    assert "MISSED" in capsys.readouterr().out
    assert main(["evaluate", str(run), "--quiet", "--set=train.lr=1"]) == 2
    before, replies = result_of(run), (run / "skills" / "odd.json").read_bytes()
    hard = ["--set=budget={keep: {odd: 0.5}}", "--set=skills.odd.prompt='7'", "--set=skills.odd.tokens=1"]
    (run.parent / "never.py").write_text("def score(reply, row):\n    return 0\n")
    hard.append(f"--set=skills.odd.scorer={run.parent / 'never.py'}:score")
    assert main(["evaluate", str(run), "--quiet", *hard]) == 2
    assert "cannot be kept" in capsys.readouterr().err
    after = result_of(run)
    assert (after["skills"], after["artifacts"]) == (before["skills"], before["artifacts"]), "nothing is lost"
    assert (run / "skills" / "odd.json").read_bytes() == replies


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ("skills.sums.scorer=exact-numbers", "did you mean 'exact-number'"),
        ("budget.keep={sum: 0.9}", "there is no skill 'sum'"),
        ("skills.sums.tokens=40", "leaves a prompt no room"),
        ("skills.odd.tokens=40", "leaves a prompt no room"),
        ("data.too_long=refuse", "have no room in 6 tokens"),
        ("skills={../result: {scorer: perplexity, data: x.txt}}", "skills"),
        ("skills.sums.stop=['']", "skills.sums.stop"),
        ("skills.sums.length=4096", "at most 96 tokens"),
        ("skills.sums.data=nowhere.jsonl", "is not there"),
        ("skills.sums.shots=3", "shots and examples belong together"),
        ("skills.bits.prompt=x", "is not for the scorer bits-per-byte"),
        ("skills.bits.tokens=8", "tokens: is not for the scorer bits-per-byte"),
        ("skills.bits.scorer=lm-eval", "needs `task`"),
        ("skills={perplexity: {scorer: perplexity, data: x.txt}}", "there is no skill 'sums'"),
        ("task=text-classification", "are those of language models"),
    ],
)
def test_skills_that_cannot_be_are_refused_before_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changed: str, said: str
) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    short = ["--set=data.length=6"] if "refuse" in changed else []
    assert main(["run", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "run"), "--set", changed, *short]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_a_skill_that_the_teacher_lacks_cannot_be_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    changed = ["--set=teacher.fit.epochs=0.05", '--set=skills.sums.answer="{sum}99"']
    assert main(["run", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "run"), "--quiet", *changed]) == 2
    assert "cannot be kept" in capsys.readouterr().err


TASK_ROWS = {
    "arc_easy": {"question": "4+4=", "choices": {"text": ["8", "3"], "label": ["A", "B"]}, "answerKey": "A"},
    "arithmetic_1dc": {"context": "4+4=", "completion": "8"},
    "gsm8k": {"question": "4+4=", "answer": "Well.\n#### 8"},
    "lambada_openai": {"text": "4+4= 8"},  # whose first measure is no mean of its samples
}


@pytest.mark.parametrize("task", TASK_ROWS)
def test_tasks_of_lm_eval_are_asked_with_local_data(
    task: str,
    tmp_path: Path,
    asked_model: tuple[torch.nn.Module, LanguageModel],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("lm_eval", reason="lm-eval is not installed")
    monkeypatch.chdir(tmp_path)  # no git repository
    rows = [TASK_ROWS[task], json.loads(json.dumps(TASK_ROWS[task]).replace("4+4", "5+5"))]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shots = {"examples": str(tmp_path / "rows.jsonl"), "number_of_shots": 1} if task == "gsm8k" else {}
    asked_by = Skill(task, "lm-eval", [], str(tmp_path / "rows.jsonl"), task=task, tokens=3, **shots)
    check(asked_by)
    model = replace(knowing(asked_model[1], {44}), expected=replace(asked_model[1].expected, length=90))
    found = measure(asked_by, model)
    assert len(found.scores) == 2
    assert set(found.scores) <= {0.0, 1.0}
    if task == "arithmetic_1dc":
        assert found.scores.tolist() == [1, 0]
    assert found.chance == (0.5 if task == "arc_easy" else 0)
    assert found.higher_is_better
    assert "git" not in capfd.readouterr().err


def test_a_task_of_whole_texts_counts_each_by_its_words(
    tmp_path: Path, asked_model: tuple[torch.nn.Module, LanguageModel]
) -> None:
    pytest.importorskip("lm_eval", reason="lm-eval is not installed")
    texts = ["1+1=2 so", "2+2=4 yes and"]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"page": text}) + "\n" for text in texts))
    asked_by = Skill("w", "lm-eval", [], str(tmp_path / "rows.jsonl"), task="wikitext")
    model = replace(asked_model[1], vocabulary=48)
    found = measure(asked_by, model)
    assert found.weights.tolist() == [2, 3]
    assert (found.scores * found.weights).tolist() == pytest.approx((-whole(model, texts)).tolist(), rel=1e-6)
    assert (found.higher_is_better, found.chance) == (False, None)


def test_an_unknown_task_of_lm_eval_is_named(tmp_path: Path) -> None:
    pytest.importorskip("lm_eval", reason="lm-eval is not installed")
    with pytest.raises(UserError, match="no task 'arc_eezy'; did you mean 'arc_easy'"):
        check(Skill("s", "lm-eval", [], "rows.jsonl", task="arc_eezy"))


def test_a_task_of_lm_eval_that_reads_its_own_data_is_refused() -> None:
    """It would ask the Hub."""
    pytest.importorskip("lm_eval", reason="lm-eval is not installed")
    with pytest.raises(UserError, match="lm-eval's task squadv2 reads its data by code of its own"):
        check(Skill("s", "lm-eval", [], "rows.jsonl", task="squadv2"))


@pytest.mark.parametrize(
    ("row", "changed", "said"),
    [
        ({"question": "4+4="}, {}, "arc_easy cannot be asked with the data of .*rows.jsonl: 'choices' is undefined"),
        ({"ctx_b": "4"}, {"task": "hellaswag"}, "hellaswag needs the column 'ctx_a', which .*rows.jsonl lacks"),
        (TASK_ROWS["arc_easy"], {"measure": "f1"}, "no measure 'f1': it has acc, acc_norm"),
        (TASK_ROWS["arc_easy"], {"source": "none.jsonl"}, "none.jsonl"),
    ],
)
def test_a_task_that_cannot_be_asked_is_refused_before_any_model_is(
    row: dict[str, str], changed: dict[str, str], said: str, tmp_path: Path
) -> None:
    pytest.importorskip("lm_eval", reason="lm-eval is not installed")
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    skill = Skill("s", "lm-eval", [], str(tmp_path / "rows.jsonl"), task="arc_easy")
    with pytest.raises(UserError, match=said):
        check(replace(skill, **changed))
