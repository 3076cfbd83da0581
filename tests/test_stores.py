"""Runs whose teacher is read from a store: captured by a verb, replayed by the loop, refused elsewhere."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from edgestill import progress
from edgestill import runs as job
from edgestill.arms import difficulty, fit_teacher
from edgestill.assemble import assemble
from edgestill.assemble.stores import description_of, identity_of
from edgestill.capture import Captured
from edgestill.cli import main
from edgestill.errors import UserError
from edgestill.objective import Objective
from edgestill.recipe import load_recipe
from edgestill.schedule import Phase, Schedule
from edgestill.signals import Signal
from edgestill.store import Dense, Store
from edgestill.store.size import bytes_of
from edgestill.stores import capture, plan
from edgestill.tasks.samples import Batch
from edgestill.teachers.online import OnlineTeacher
from edgestill.teachers.stored import StoredTeacher
from edgestill.train import Options, train
from test_texts_chat import CHAT, INSTRUCTION
from text_recipes import CLASSES, HERE, TOKENS, result_of, written

KEPT = ["teacher.fit.keep=true", "compare.scratch=false"]
DIGITS = [*KEPT, "teacher.fit.epochs=2", "train.epochs=3"]
CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def _one_cache(tmp_path_factory: pytest.TempPathFactory):
    """The teachers of this file are fitted once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGESTILL_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits") / "store"
    sets = [word for one in [*DIGITS, "capture.views=3", "capture.seed=5"] for word in ("--set", one)]
    assert main(["capture", "digits", "--out", str(folder), "--quiet", *sets]) == 0
    return folder


def test_a_run_trains_from_a_store_and_asks_its_teacher_one_pass_alone(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asks, rows = OnlineTeacher.__call__, []

    def asked(self: OnlineTeacher, batch: Batch, taps: list[str]) -> Signal:
        rows.extend(zip(batch.views.tolist(), batch.indices.tolist(), strict=True))
        return asks(self, batch, taps)

    monkeypatch.setattr(OnlineTeacher, "__call__", asked)
    recipe = load_recipe("digits", [*DIGITS, f"teacher.store={digits}"])
    result = job.run(recipe, tmp_path / "run", track=progress.silent, deliver_files=False)
    assert result["arms"]["student"]["mean"] > 0.5
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert any("soft" in line.get("parts", {}) for line in lines if line["arm"] == "student")
    assert result_of(tmp_path / "run")["teacher"]["quality"] > 0.5, "it is measured all the same"
    assert rows == [(0, sample) for sample in range(64)], "whether it is the one that was captured"


KILLED = """
import os, signal, sys
from pathlib import Path

from edgestill import progress
from edgestill.recipe import load_recipe
from edgestill.stores import capture
from edgestill.teachers.online import OnlineTeacher

asks, rows = OnlineTeacher.__call__, open(sys.argv[2], "w")


def asked(self, batch, taps):
    for view, index in zip(batch.views.tolist(), batch.indices.tolist()):
        print(view, index, file=rows, flush=True)
    asked.left -= 1
    if not asked.left:
        os.kill(os.getpid(), signal.SIGKILL)
    return asks(self, batch, taps)


asked.left, OnlineTeacher.__call__ = int(sys.argv[3]), asked
capture(load_recipe("digits", sys.argv[4:]), Path(sys.argv[1]), track=progress.silent)
"""


@pytest.mark.usefixtures("digits")  # its teacher is fitted
def test_a_capture_that_is_killed_asks_no_more_than_a_shard_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a store that is far smaller than what a file may have: 3,306 rows of 32 bytes."""
    sets = [*DIGITS, "capture.views=3", "capture.batch=8"]
    told = [tmp_path / "store", tmp_path / "rows", "200", *sets]
    killed = subprocess.run([sys.executable, "-c", KILLED, *told], check=False)
    assert killed.returncode == -9
    asks, rows, said = OnlineTeacher.__call__, [], []

    def asked(self: OnlineTeacher, batch: Batch, taps: list[str]) -> Signal:
        rows.extend(zip(batch.views.tolist(), batch.indices.tolist(), strict=True))
        return asks(self, batch, taps)

    def track(items: Iterable[int], description: str, total: int) -> Iterator[int]:
        for done, item in enumerate(items):
            said.append((description, done, total))
            yield item

    with monkeypatch.context() as patch:
        patch.setattr(OnlineTeacher, "__call__", asked)
        capture(load_recipe("digits", sets), tmp_path / "store", track=track)
    before = [tuple(map(int, line.split())) for line in (tmp_path / "rows").read_text().splitlines()]
    of = Store.open(tmp_path / "store").description
    again = {*before} & {*rows[8:]}  # the first pass of all is what the teacher is known by
    assert rows[:8] == before[:8]
    assert 0 < len(again) <= of.rows * of.batches <= of.total / 50
    assert len({*before} | {*rows}) == of.total == 3306
    own = [done for description, done, total in said if (description, total) == ("capturing rows", of.total)]
    assert own == [*range(of.total)], "of the rows that were there too"
    capture(load_recipe("digits", sets), tmp_path / "whole", track=progress.silent)
    for path in (tmp_path / "whole").rglob("*.*"):
        assert path.read_bytes() == (tmp_path / "store" / path.relative_to(tmp_path / "whole")).read_bytes()


def test_what_stands_behind_a_training_needs_no_store_and_keeps_its_name(
    digits: Path, tmp_path: Path, bare: None
) -> None:
    store = shutil.copytree(digits, tmp_path / "store")
    recipe = load_recipe("digits", [*DIGITS, f"teacher.store={store}", "train.epochs=1", "export=[onnx]"])
    job.run(recipe, tmp_path / "run", track=progress.silent, deliver_files=False)
    shutil.rmtree(store)
    assert main(["export", str(tmp_path / "run"), "--quiet"]) in (0, 3)
    assert load_recipe(tmp_path / "run" / "recipe.yaml").teacher.store == str(store)


def test_the_loop_replays_the_views_that_were_captured(digits: Path) -> None:
    parts = assemble(load_recipe("digits", [*DIGITS, f"teacher.store={digits}", "train.epochs=9"]), progress.silent)
    schedule, ranks = parts.schedule("student"), np.linspace(0, 1, len(parts.splits.train), endpoint=False)
    batch_at, seen = parts.batches("student", 1, ranks), set()
    for step in range(schedule.steps):
        batch = batch_at(step, schedule.at(step))
        seen |= {*batch.views.tolist()}
        again = parts.splits.train.batch(batch.indices, batch.views, 5, None)
        assert torch.equal(batch.pixels, again.pixels)
    assert seen == {0, 1, 2}


def test_a_stored_run_has_the_bits_of_an_online_one_through_the_same_codec(digits: Path, tmp_path: Path) -> None:
    """The teacher asked in the batches of the capture, its logits through float16."""
    parts = assemble(load_recipe("digits", [*DIGITS, f"teacher.store={digits}"]), progress.silent)
    store = Store.open(digits)
    fit_teacher(parts, tmp_path / "teacher", lambda line: None, progress.silent, resume=False)
    online, count, size = OnlineTeacher(parts.teacher, CPU, torch.float32), len(parts.splits.train), 64
    rows = np.arange(3 * count)
    told = []
    for start in range(0, len(rows), size):
        views, indices = np.divmod(rows[start : start + size], count)
        logits = online(parts.splits.train.batch(indices, views, 5, None), []).logits
        assert isinstance(logits, torch.Tensor)
        told.append(Dense().decode(Dense().encode(logits, np.zeros(len(logits))), 10))
    every = torch.cat(told)

    def through_the_codec(batch: Batch, taps: list[str]) -> Signal:
        return Signal(every[batch.views * count + batch.indices])

    ends = []
    for name, teacher in (("stored", StoredTeacher(store, CPU)), ("online", through_the_codec)):
        student = parts.student(0)
        schedule = Schedule((Phase("only", 1.0, 0.9, 4.0, 0.05),), 20)
        torch.manual_seed(0)
        train(
            student,
            schedule=schedule,
            batch_at=parts.batches("student", 0, None),
            objective=Objective(alpha=0.9, temperature=4.0),
            teacher=teacher,
            validate=lambda module: 0.0,
            options=Options(),
            folder=tmp_path / name,
            log=lambda line: None,
            track=progress.silent,
        )
        ends.append(student.module.state_dict())
    assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0])


@pytest.mark.parametrize(
    ("text", "sets", "tolerance"),
    [
        (TOKENS, ["capture.codec=sampled", "capture.draws=8"], 0.1),
        (TOKENS, ["capture.codec=top-k", "capture.k=20"], 0.1),
        (CLASSES, ["capture.codec=dense"], 0.02),
    ],
    ids=["tokens-sampled", "tokens-top-k", "classes-dense"],
)
@pytest.mark.usefixtures("bare")
def test_texts_are_trained_from_a_store(text: str, sets: list[str], tolerance: float, tmp_path: Path) -> None:
    # in one order, whatever the rounding of a ranking
    short = ["distill.terms=[]", "teacher.fit.epochs=4", "train.epochs=1", "phases=[{name: only, share: 1}]", *KEPT]
    recipe = load_recipe(written(tmp_path, text), [*short, *sets])
    found = capture(recipe, tmp_path / "store", track=progress.silent)
    assert found.made > 0
    assert capture(recipe, tmp_path / "store", track=progress.silent).asked == 0, "all of it is there"
    recipe = load_recipe(tmp_path / "recipe.yaml", [*short, f"teacher.store={tmp_path / 'store'}"])
    result = job.run(recipe, tmp_path / "run", track=progress.silent, deliver_files=False)
    online = job.run(
        load_recipe(tmp_path / "recipe.yaml", short), tmp_path / "online", track=progress.silent, deliver_files=False
    )
    first = []
    for folder in ("run", "online"):
        lines = [json.loads(line) for line in (tmp_path / folder / "metrics.jsonl").read_text().splitlines()]
        first.append(next(line["parts"]["soft"]["value"] for line in lines if "soft" in line.get("parts", {})))
    assert first[0] == pytest.approx(first[1], rel=tolerance, abs=1e-3)
    own, other = (one["arms"]["student"]["mean"] for one in (result, online))
    assert own == pytest.approx(other, rel=0.05)


@pytest.mark.parametrize(
    ("sets", "said"),
    [
        (["train.mixup=0.2"], "train.mixup: a store holds what the teacher says of single samples"),
        (["distill.terms=[{loss: hint}]"], "needs the teacher's tap stage1, and the store .* holds none"),
        (["data.validation=0.2"], "has another (input|data)"),
        (["train.views.crop=2"], "has another views"),
        (["teacher.fit.epochs=1"], "has another teacher: "),
    ],
)
def test_a_store_that_does_not_belong_is_refused_before_training(
    sets: list[str], said: str, digits: Path, tmp_path: Path
) -> None:
    recipe = load_recipe("digits", [*DIGITS, f"teacher.store={digits}", *sets])
    with pytest.raises(UserError, match=said) as refused:
        job.run(recipe, tmp_path / "run", track=progress.silent, deliver_files=False)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "run" / "arms" / "baseline").exists()


@pytest.mark.parametrize(
    ("text", "sets", "changed"),
    [
        (CLASSES, ["teacher.options={num_hidden_layers: 2}"], {"configuration", "teacher"}),
        (CLASSES, ["teacher.options={hidden_act: relu}"], {"configuration"}),
        (CLASSES, ["data.length=9"], {"input"}),
        (CLASSES, ["data.validation=0.3"], {"data", "samples", "positions"}),
        (INSTRUCTION, [], {"data", "positions"}),  # of another chat template, in the same file
        ("digits", ["data.size=7"], {"input"}),
        ("digits", ["teacher.input.mean=[0.4]"], {"input"}),
    ],
    ids=["depth", "activation", "length", "texts", "template", "size", "mean"],
)
def test_what_another_answer_may_come_from_is_told_apart(
    text: str, sets: list[str], changed: set[str], tmp_path: Path
) -> None:
    found = []
    for place, more, chat in (("a", [], CHAT), ("b", sets, CHAT.replace(" : ", " : : "))):
        (tmp_path / place).mkdir()
        (tmp_path / place / "chat.py").write_text(chat)
        torch.manual_seed(0)  # weights that nobody fits
        recipe = load_recipe(text if text == "digits" else written(tmp_path / place, text), more)
        found.append(identity_of(assemble(recipe, progress.silent)))
    assert {key for key, value in found[0].items() if found[1][key] != value} == changed


def test_a_configuration_that_no_file_of_the_recipe_says_is_told_apart(tmp_path: Path) -> None:
    found = []
    for act in ("gelu", "relu"):
        place = tmp_path / act
        place.mkdir()
        (place / "act").write_text(act)
        (place / "nets.py").write_text(
            f"import sys\nfrom pathlib import Path\nsys.path.insert(0, {str(HERE)!r})\nimport small_texts\n\n\n"
            "def net(num_classes=2):\n"
            "    return small_texts.bert(num_classes, hidden_act=(Path(__file__).parent / 'act').read_text())\n"
        )
        torch.manual_seed(0)
        recipe = load_recipe(written(place, CLASSES), [f"teacher.model={place}/nets.py:net"])
        found.append(identity_of(assemble(recipe, progress.silent)))
    assert {key for key, value in found[0].items() if found[1][key] != value} == {"configuration"}


CALLED = f"""
import runpy
import sys
from pathlib import Path

from torch import nn

sys.path.insert(0, {str(HERE)!r})
from small_search import net, splits

HERE = Path(__file__).parent


class Answers(nn.Module):
    def forward(self, logits):
        return runpy.run_path(HERE / "helper.py")["answers"](logits)


def teacher(num_classes=2, in_channels=1):
    return nn.Sequential(net(12, num_classes, in_channels), Answers())
"""
CALLING = """
task: image-classification
data: {source: "FILE:splits", validation: 0.3}
teacher: {model: "FILE:teacher", fit: {epochs: 6, batch_size: 32, keep: true}}
student: {model: "FILE:net"}
train: {epochs: 1, batch_size: 32}
compare: {seeds: 1}
"""


@pytest.mark.parametrize(
    ("codec", "said"),
    [
        ("dense", "its logit of class [01] is"),
        ("sampled", "its (entropy|loss) is"),
        ("top-k", "its (logit, less the greatest, of class [01]|logarithm of the others' mass .*) is"),
    ],
)
@pytest.mark.usefixtures("bare")
def test_a_teacher_that_answers_otherwise_is_refused_though_its_file_is_the_same(
    codec: str, said: str, tmp_path: Path
) -> None:
    """What it calls in another file has changed."""
    file, store = tmp_path / "nets.py", tmp_path / "store"
    file.write_text(CALLED)
    (tmp_path / "helper.py").write_text("def answers(logits):\n    return logits\n")
    recipe = written(tmp_path, CALLING.replace("FILE", str(file)))
    sets = [f"capture.codec={codec}", "capture.k=1"]
    capture(load_recipe(recipe, sets), store, track=progress.silent)
    (tmp_path / "helper.py").write_text("def answers(logits):\n    return logits * 1.1\n")
    said = rf"answers otherwise than when the store {store} was captured: of view 0 of sample \d+ {said}"
    with pytest.raises(UserError, match=said) as refused:
        job.run(load_recipe(recipe, [f"teacher.store={store}"]), tmp_path / "run", track=progress.silent)
    assert "\n" not in str(refused.value)
    with pytest.raises(UserError, match="answers otherwise"):
        capture(load_recipe(recipe, sets), store, track=progress.silent)
    noise = "1e-4 * (not logits.requires_grad) * logits.sin()"  # it is fitted again, and its weights are the same
    (tmp_path / "helper.py").write_text(f"def answers(logits):\n    return logits + {noise}\n")
    (tmp_path / "other.py").write_text(f"# renamed\n{CALLED}")
    sets += ["compare.baseline=false", f"teacher.model={tmp_path}/other.py:teacher", f"teacher.store={store}"]
    result = job.run(load_recipe(recipe, sets), tmp_path / "other", track=progress.silent, deliver_files=False)
    assert result["status"] == "done", "as far away as another machine's is, of a file with another name and text"


def test_the_ranking_from_a_store_is_that_of_the_teacher(tmp_path: Path) -> None:
    """Of blocks of text by what a byte costs, though a store holds what a token does."""
    short = ["distill.terms=[]", "teacher.fit.epochs=2", *KEPT]
    recipe = written(tmp_path, TOKENS)
    capture(load_recipe(recipe, [*short, "capture.codec=sampled"]), tmp_path / "store", track=progress.silent)
    found = []
    for more in ([], [f"teacher.store={tmp_path / 'store'}"]):
        parts = assemble(load_recipe(recipe, [*short, *more]), progress.silent)
        fit_teacher(parts, tmp_path / "teacher", lambda line: None, progress.silent, resume=False)
        found.append(difficulty(parts, progress.silent))
    asked, stored = found
    assert asked is not None
    assert stored is not None
    bytes_ = parts.splits.train.bytes
    assert len(set(bytes_.tolist())) > 1, "blocks of as many bytes would be ranked alike by tokens"
    np.testing.assert_allclose(stored, asked, atol=2 / len(asked))  # neighbours may change places by rounding


def test_a_codec_that_cannot_serve_a_loss_names_the_one_that_can(tmp_path: Path, capsys) -> None:
    sets = [word for one in [*DIGITS, "capture.codec=sampled"] for word in ("--set", one)]
    assert main(["capture", "digits", "--out", str(tmp_path / "store"), "--quiet", *sets]) == 0
    assert main(["store", "verify", str(tmp_path / "store")]) == 0
    assert "are as they were written" in capsys.readouterr().out
    for override, said in (
        ("distill.loss=dkd", "take the codec dense"),
        ("distill.temperature=2", "at a temperature of 4, not 2"),
    ):
        more = ["--set", f"teacher.store={tmp_path / 'store'}", "--set", override]
        assert main(["train", "digits", "--quiet", "--out", str(tmp_path / "run"), *sets, *more]) == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_terms_learn_from_taps_that_were_captured(tmp_path: Path) -> None:
    """Maps in 8 bits for any term, means for one that begins with them; what a term needs and is not there is said."""
    terms = [
        "distill.terms=[{loss: hint, student: stage2, teacher: stage2}, {loss: rkd, student: stage3, teacher: stage3}]"
    ]
    recipe = load_recipe("digits", [*DIGITS, "capture.taps={stage2: int8, stage3: pooled}", *terms])
    capture(recipe, tmp_path / "store", track=progress.silent)
    stored = [*DIGITS, f"teacher.store={tmp_path / 'store'}"]
    losses = []
    for sets in (stored, DIGITS):
        out = tmp_path / f"run{len(losses)}"
        made = load_recipe("digits", [*sets, *terms, "compare.baseline=false", "train.epochs=1"])
        job.run(made, out, track=progress.silent, deliver_files=False)
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        first = next(line["parts"] for line in lines if line["arm"] == "student" and "hint" in str(line.get("parts")))
        losses.append({name: part["value"] for name, part in first.items() if name not in ("hard", "soft")})
    assert losses[0].keys() == losses[1].keys()
    for name, value in losses[0].items():
        assert value == pytest.approx(losses[1][name], rel=0.1), name
    assert all(part > 0 for part in losses[0].values())
    wrong = [*stored, "distill.terms=[{loss: hint, student: stage3, teacher: stage3}]"]
    with pytest.raises(UserError, match="holds its mean over positions: capture it as int8"):
        assemble(load_recipe("digits", wrong), progress.silent)


@pytest.mark.parametrize("codec", ["dense", "top-k", "sampled"])
def test_a_plan_says_how_large_a_store_becomes(codec: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sets = [*DIGITS, "capture.k=4", "capture.views=2", f"capture.codec={codec}"]
    planned = plan(load_recipe("digits", sets), track=progress.silent)
    assert (planned["passes"], planned["views"]) == (-(-2 * planned["samples"] // 64), 2)
    capture(load_recipe("digits", sets), tmp_path / "store", track=progress.silent)
    size = sum(path.stat().st_size for path in (tmp_path / "store" / "shards").iterdir())
    own = next(one for one in planned["codecs"] if one["name"] == codec)
    assert planned["seconds"] == own["seconds"]  # its own work included
    said = own["bytes"]
    assert said == pytest.approx(size, rel=0.01 if codec != "sampled" else 0.03)
    assert main(["plan", "digits", "--quiet", *(word for one in sets for word in ("--set", one))]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert next(line for line in lines if "capture.codec" in line).startswith(codec)


def test_the_plan_on_the_page_is_what_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    """But for a time, and for how sure the teacher is; a codec that does not fit is named, with why."""
    page = (HERE.parent / "docs" / "stores.md").read_text(encoding="utf-8")
    command, *shown = re.search(r"^\$ edgestill (plan digits.*?)^```", page, re.MULTILINE | re.DOTALL)[1].splitlines()
    assert main([*command.split(), "--quiet", "--set", "teacher.fit.epochs=2"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == len(shown) == 5
    for line, other in zip(printed, shown, strict=True):
        alike = slice(0, {"dense": 40, "sampled": 10}.get(line.split()[0]))
        assert line[alike] == other[alike]


def test_a_store_larger_than_the_disk_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = SimpleNamespace(free=20_000)
    monkeypatch.setattr("edgestill.capture.shutil.disk_usage", lambda place: free)
    with pytest.raises(UserError, match=r"needs 5\d,\d\d\d bytes more, and its disk has 20,000 free"):
        capture(load_recipe("digits", DIGITS), tmp_path / "store", track=progress.silent)
    assert not (tmp_path / "store").exists()


def test_what_is_there_needs_no_room(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing where all is there, a shard's where one is damaged or is not there."""
    sets, store = [*DIGITS, "capture.views=3", "capture.seed=5"], shutil.copytree(digits, tmp_path / "store")
    shards = sorted((store / "shards").iterdir())
    content = shards[4].read_bytes()

    def captured(free: int) -> Captured | None:
        with monkeypatch.context() as patch:
            patch.setattr("edgestill.capture.shutil.disk_usage", lambda place: SimpleNamespace(free=free))
            return capture(load_recipe("digits", sets), store, track=progress.silent)

    assert captured(free=0) == (len(shards), 0, 0)
    for broken in (content[:500] + b"broken" + content[506:], None):
        shards[4].unlink()
        if broken is not None:
            shards[4].write_bytes(broken)
        with pytest.raises(UserError, match=r"needs \d,\d\d\d bytes more, and its disk has 1,000 free"):
            captured(free=1000)
        assert captured(free=int(1.1 * len(content))) == (len(shards) - 1, 1, 64)
        assert shards[4].read_bytes() == content


def test_draws_need_the_room_that_they_are_measured_to_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of ten classes one or two are drawn where the teacher is sure."""
    sets = [*DIGITS, "distill.temperature=1", "capture.codec=sampled", "capture.draws=12"]
    recipe = load_recipe("digits", sets)
    parts = assemble(recipe, progress.silent)
    most = bytes_of(description_of(parts))
    monkeypatch.setattr("edgestill.capture.shutil.disk_usage", lambda place: SimpleNamespace(free=int(0.9 * most)))
    capture(recipe, tmp_path / "store", track=progress.silent)
    assert sum(path.stat().st_size for path in (tmp_path / "store" / "shards").iterdir()) < 0.9 * most


@pytest.mark.parametrize(
    ("sets", "said"),
    [
        (["capture.codec=top-k"], "keeps fewer than all 10 classes; 32 came: take dense"),
        (["train.mixup=0.2"], "of single samples: set mixup to 0"),
        (["capture.codec=sampled", "capture.temperatures=[1, 4]"], "sampled draws at one temperature; 1, 4 came"),
    ],
)
def test_what_no_store_can_hold_is_refused(sets: list[str], said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        capture(load_recipe("digits", [*DIGITS, *sets]), tmp_path / "store", track=progress.silent)
    assert not (tmp_path / "store").exists()


def test_what_cannot_be_captured_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["capture", "digits", "--out", str(tmp_path / "store"), "--quiet"]) == 2
    assert "teacher.fit.keep" in capsys.readouterr().err
    assert main(["store", "verify", str(tmp_path)]) == 2
    assert "is no store" in capsys.readouterr().err
