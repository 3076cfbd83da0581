"""The main job on real digits: recipe in, measured artifacts out. One run of the built-in recipe serves them, with
fewer epochs: the gain is as clear by then."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from edgestill import arms, progress
from edgestill import runs as job
from edgestill.assemble import assemble
from edgestill.budget import verdict
from edgestill.cli import main
from edgestill.errors import UserError
from edgestill.models import load_model
from edgestill.reading import builtin
from edgestill.recipe import load_recipe
from edgestill.runtimes import onnx_runtime
from edgestill.tasks.images import prepare
from edgestill.words import summary

SMALL = ["train.epochs=2", "compare.seeds=1", "teacher.fit.epochs=4"]


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "digits"
    job.run(load_recipe("digits", ["train.epochs=16"]), out, track=progress.silent)
    return out


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "small"
    job.run(load_recipe("digits", SMALL), out, track=progress.silent)
    return out


def result_of(run: Path) -> dict:
    return json.loads((run / "result.json").read_text())


def test_the_student_learns_more_with_the_teacher_than_without(digits):
    arms = result_of(digits)["arms"]
    low, high = arms["student"]["difference"]["interval"]
    assert 0 < low < arms["student"]["difference"]["mean"] < high
    assert arms["student"]["mean"] > arms["baseline"]["mean"] + 0.02
    assert arms["student"]["retained"] > 0.9


def test_the_result_holds_what_the_contract_says(digits):
    result = result_of(digits)
    assert result["status"] == "done"
    assert result["metric"] == {"name": "accuracy", "higher_is_better": True, "chance": 0.1}
    for role in ("teacher", "student"):
        assert {"parameters", "flops", "bytes", "latency_ms"} <= result[role].keys()
    assert [entry["seed"] for entry in result["arms"]["student"]["seeds"]] == [0, 1, 2]
    assert [artifact["name"] for artifact in result["artifacts"]] == ["onnx", "onnx-int8"]
    for artifact in result["artifacts"]:
        latency = artifact["latency_ms"]
        assert 0 < latency["p50"] <= latency["p90"] <= latency["p99"]
        assert artifact["bytes"] == (digits / artifact["path"]).stat().st_size
        assert artifact["samples"] >= 1000
    assert result["artifacts"][0]["agreement"] == 1.0
    assert [phase["name"] for phase in result["phases"]] == ["warmup", "distill", "finetune"]
    shares = np.array([phase["steps"] for phase in result["phases"]]) / sum(p["steps"] for p in result["phases"])
    np.testing.assert_allclose(shares, [0.2, 0.6, 0.2], atol=0.01)
    assert set(result["seconds"]) == {"teacher", "baseline", "student", "export", "bench"}
    assert set(result["budget"]) == {"met", "artifact", "size", "latency", "quality"}


def test_every_quality_is_that_of_the_file_or_model_that_was_written(digits):
    """Each artifact, opened afresh by its runtime alone, scores what result.json says; so do the saved predictions."""
    parts = assemble(load_recipe(digits / "recipe.yaml"), progress.silent)
    test = parts.splits.test
    student = json.loads((digits / "student" / "edgestill.json").read_text())["input"]
    expected = parts.student(0).input
    assert tuple(student["mean"]) == expected.mean
    inputs = prepare(torch.from_numpy(np.asarray(test.images.pixels[np.arange(len(test))])), expected).numpy()
    with np.load(digits / "predictions.npz") as saved:
        predictions = {name: saved[name] for name in saved.files}
    np.testing.assert_array_equal(predictions["labels"], test.labels)
    for artifact in result_of(digits)["artifacts"]:
        predict = onnx_runtime.load(digits / artifact["path"], optimize="off" not in artifact["quality_measured"])
        right = predict(np.ascontiguousarray(inputs)).argmax(1) == test.labels
        assert right.mean() == artifact["quality"]
        assert (predictions[artifact["name"]].argmax(1) == test.labels).mean() == artifact["quality"]
    seed = result_of(digits)["student"]["seed"]
    shown = result_of(digits)["arms"]["student"]["seeds"][seed]["quality"]
    assert (predictions["student"].argmax(1) == test.labels).mean() == shown


def test_the_kept_student_is_that_of_the_seed_best_on_validation(digits):
    result = result_of(digits)
    best = max(result["arms"]["student"]["seeds"], key=lambda entry: entry["validation"])
    assert result["student"]["seed"] == best["seed"]


def test_the_student_folder_loads_without_edgestill(digits):
    card = (digits / "student" / "README.md").read_text()
    loading = card.partition("```python\n")[2].partition("```")[0]
    code = f"import sys; sys.modules['edgestill'] = None\n{loading}\nprint(sum(p.numel() for p in module.parameters()))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=digits / "student", capture_output=True, text=True, check=True
    )
    assert int(done.stdout) == result_of(digits)["student"]["parameters"]
    assert all(line in card for line in summary(result_of(digits)))
    assert "Licences" in card


@pytest.mark.usefixtures("bare")
def test_the_resolved_recipe_replays_the_run_to_the_same_numbers(small, tmp_path):
    job.run(load_recipe(small / "recipe.yaml"), tmp_path / "again", track=progress.silent, deliver_files=False)
    first, second = result_of(small), result_of(tmp_path / "again")
    assert first["arms"] == second["arms"]
    for name in ("model.safetensors", "edgestill.json"):
        assert (small / "student" / name).read_bytes() == (tmp_path / "again" / "student" / name).read_bytes()


@pytest.mark.usefixtures("bare")
def test_the_baseline_learns_nothing_from_the_teacher(small, tmp_path):
    """Another teacher, another temperature, another alpha: the baseline's bits stay."""
    changed = ["teacher.fit.epochs=6", "distill.alpha=0.5", "distill.temperature=2"]
    job.run(load_recipe("digits", SMALL + changed), tmp_path / "run", track=progress.silent, deliver_files=False)
    assert result_of(small)["arms"]["baseline"] == result_of(tmp_path / "run")["arms"]["baseline"]
    assert result_of(small)["arms"]["student"] != result_of(tmp_path / "run")["arms"]["student"]


def test_both_arms_start_from_the_same_weights(tmp_path, monkeypatch):
    """Seen where the loop takes them over, with a term whose aligner draws random weights too."""
    seen = {}

    def loop(student, *, folder, **_):
        seen[folder.parts[-2]] = (student.module.state_dict()["linear.weight"].clone(), torch.get_rng_state())
        raise KeyboardInterrupt

    monkeypatch.setattr(arms, "train", loop)
    terms = "distill.terms=[{loss: hint, map: width}]"
    parts = assemble(load_recipe("digits", [*SMALL, terms]), progress.silent)
    for arm in ("baseline", "student"):
        with pytest.raises(KeyboardInterrupt):
            arms.train_arm(parts, arm, 3, None, tmp_path, lambda line: None, progress.silent, resume=False)
    for ours, theirs in zip(seen["baseline"], seen["student"], strict=True):
        assert torch.equal(ours, theirs)


def test_what_is_chosen_is_chosen_on_validation(small):
    """The quality that the loop reads is that of the validation split, and of no other."""
    parts = assemble(load_recipe(small / "recipe.yaml"), progress.silent)
    module = load_model(str(small / "student"), classes=10, default=parts.default_input).module
    validation, expected = parts.splits.validation, parts.student(0).input
    inputs = prepare(torch.from_numpy(np.asarray(validation.images.pixels[np.arange(len(validation))])), expected)
    with torch.no_grad():
        right = module.eval()(inputs).argmax(1).numpy() == validation.labels
    assert parts.validate(expected)(module) == pytest.approx(right.mean())


def test_retained_is_above_chance(small):
    result = result_of(small)
    student, teacher = result["arms"]["student"], result["teacher"]["quality"]
    assert student["retained"] == pytest.approx((student["mean"] - 0.1) / (teacher - 0.1))


@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_split_without_labels_is_refused_where_quality_is_measured(split, tmp_path):
    (tmp_path / "few.py").write_text(
        "import numpy as np\n\n"
        "def splits():\n"
        "    pixels = np.zeros((20, 8, 8), np.uint8)\n"
        "    labels = np.arange(20) % 2\n"
        "    named = {name: (pixels, labels) for name in ('train', 'validation', 'test')}\n"
        f"    return named | {{{split!r}: (pixels, None)}}\n"
    )
    with pytest.raises(UserError, match=f"the {split} split has no labels"):
        assemble(load_recipe("digits", [f"data={tmp_path / 'few.py'}:splits"]), progress.silent)


def test_the_baseline_draws_labelled_samples_only_and_the_student_all():
    parts = assemble(load_recipe("digits", SMALL), progress.silent)
    ranks = np.linspace(0, 1, len(parts.splits.train), endpoint=False)
    seen = {}
    for arm in ("baseline", "student"):
        schedule, batch_at = parts.schedule(arm), parts.batches(arm, 0, ranks)
        batches = [batch_at(step, schedule.at(step)) for step in range(schedule.steps)]
        seen[arm] = torch.cat([batch.labels for batch in batches])
    assert (seen["baseline"] >= 0).all()
    assert (seen["student"] < 0).any()
    assert len(seen["baseline"]) == len(seen["student"])


@pytest.mark.usefixtures("bare")
def test_resuming_a_finished_run_trains_nothing_and_keeps_its_numbers(small, tmp_path):
    copied = tmp_path / "run"
    shutil.copytree(small, copied)
    before, lines = result_of(copied), (copied / "metrics.jsonl").read_text()
    job.run(load_recipe("digits", SMALL), copied, resume=True, track=progress.silent, deliver_files=False)
    assert result_of(copied)["arms"] == before["arms"]
    steps = [json.loads(line) for line in (copied / "metrics.jsonl").read_text().splitlines()]
    assert len(steps) == len(lines.splitlines())


@pytest.mark.usefixtures("bare")
def test_an_interrupted_run_says_so_and_goes_on(tmp_path):
    def stop_in_student(items, description, total):
        for count, item in enumerate(items):
            if description == "student seed 0" and count == 20:
                raise KeyboardInterrupt
            yield item

    with pytest.raises(KeyboardInterrupt):
        job.run(load_recipe("digits", SMALL), tmp_path / "cut", track=stop_in_student, deliver_files=False)
    assert result_of(tmp_path / "cut")["status"] == "interrupted"
    job.run(load_recipe("digits", SMALL), tmp_path / "cut", resume=True, track=progress.silent, deliver_files=False)
    job.run(load_recipe("digits", SMALL), tmp_path / "whole", track=progress.silent, deliver_files=False)
    assert result_of(tmp_path / "cut")["arms"] == result_of(tmp_path / "whole")["arms"]
    assert result_of(tmp_path / "cut")["status"] == "done"


@pytest.mark.parametrize(
    ("overrides", "said"),
    [(["distill.alpha=0.7"], r"distill.alpha was 0.9, 0.7 came"), (["train.threads=2"], r"threads was 1, 2 came")],
)
def test_resuming_another_run_is_refused_naming_the_difference(small, tmp_path, monkeypatch, overrides, said):
    monkeypatch.setattr(job.deliver, "check", lambda _: pytest.fail("the files that are tried take long"))
    copied = tmp_path / "run"
    shutil.copytree(small, copied)
    before = (copied / "result.json").read_bytes()
    with pytest.raises(UserError, match=said):
        job.run(load_recipe("digits", SMALL + overrides), copied, resume=True, track=progress.silent)
    assert (copied / "result.json").read_bytes() == before


def test_resuming_with_other_data_is_refused(small, tmp_path):
    copied = tmp_path / "run"
    shutil.copytree(small, copied)
    environment = json.loads((copied / "environment.json").read_text())
    environment["data"]["test"] = "0" * 32
    (copied / "environment.json").write_text(json.dumps(environment))
    with pytest.raises(UserError, match="fingerprint of the split test"):
        job.run(load_recipe("digits", SMALL), copied, resume=True, track=progress.silent)


@pytest.mark.parametrize(
    ("changed", "key"), [("student.py", "student.model"), ("weights.safetensors", "teacher.weights")]
)
@pytest.mark.usefixtures("bare")
def test_resuming_with_other_code_or_weights_is_refused(small, tmp_path, changed, key):
    """Under the same names: the recipe alone does not tell."""
    (tmp_path / "student.py").write_text(Path(str(builtin()["digits"])).with_suffix(".py").read_text())
    shutil.copy(small / "teacher" / "model.safetensors", tmp_path / "weights.safetensors")
    overrides = [f"student.model={tmp_path}/student.py:student", f"teacher.weights={tmp_path}/weights.safetensors"]
    recipe = load_recipe("digits", [*SMALL, *overrides])
    job.run(recipe, tmp_path / "run", track=progress.silent, deliver_files=False)
    job.run(recipe, tmp_path / "run", resume=True, track=progress.silent, deliver_files=False)
    before = (tmp_path / "run" / "result.json").read_bytes()
    if changed == "student.py":
        (tmp_path / changed).write_text((tmp_path / changed).read_text() + "\n")
    else:
        state = load_file(tmp_path / changed)
        save_file({name: tensor + 1e-3 for name, tensor in state.items()}, tmp_path / changed)
    with pytest.raises(UserError, match=f"the content of {key} was"):
        job.run(recipe, tmp_path / "run", resume=True, track=progress.silent, deliver_files=False)
    assert (tmp_path / "run" / "result.json").read_bytes() == before


@pytest.mark.parametrize("package", ["python", "torch", "numpy", "edgestill", "pillow"])
def test_resuming_with_another_version_is_refused(small, tmp_path, package):
    copied = tmp_path / "run"
    shutil.copytree(small, copied)
    environment = json.loads((copied / "environment.json").read_text())
    now = environment["versions"][package]
    environment["versions"][package] = "0.0.1"
    (copied / "environment.json").write_text(json.dumps(environment))
    before = (copied / "result.json").read_bytes()
    with pytest.raises(UserError, match=rf"the version of {package} was '0\.0\.1', '{re.escape(now)}' came"):
        job.run(load_recipe("digits", SMALL), copied, resume=True, track=progress.silent)
    assert (copied / "result.json").read_bytes() == before


@pytest.mark.usefixtures("bare")
def test_resuming_with_another_version_of_what_trains_nothing_goes_on(small, tmp_path):
    copied = tmp_path / "run"
    shutil.copytree(small, copied)
    environment = json.loads((copied / "environment.json").read_text())
    environment["versions"] |= {"onnxruntime": "0.0.1", "onnx": "0.0.1"}
    del environment["versions"]["numpy"]  # a run of an earlier edgestill need not have named all
    (copied / "environment.json").write_text(json.dumps(environment))
    result = job.run(load_recipe("digits", SMALL), copied, resume=True, track=progress.silent, deliver_files=False)
    assert result["status"] == "done"


@pytest.mark.usefixtures("bare")
def test_resuming_cuts_the_metrics_back_to_what_was_saved(small, tmp_path):
    """A kill leaves lines of steps that were not saved, and half a line; resumed, each step stands there once."""
    copied = tmp_path / "run"
    shutil.copytree(small, copied)
    shutil.rmtree(copied / "arms" / "student")
    with open(copied / "metrics.jsonl", "a") as file:
        file.write('{"arm": "student", "se')
    job.run(load_recipe("digits", SMALL), copied, resume=True, track=progress.silent, deliver_files=False)

    def steps(run: Path) -> list[tuple]:
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        return [(line["arm"], line["step"], line.get("loss"), line.get("validation")) for line in lines]

    assert steps(copied) == steps(small)


def test_a_teacher_no_better_than_guessing_stops_the_run_with_a_hint(small, tmp_path):
    overrides = [f"teacher.model={small / 'teacher'}", "teacher.fit=null", "teacher.input.mean=[60.0]"]
    with pytest.raises(UserError, match=r"no better than guessing: .* normalisation"):
        job.run(load_recipe("digits", SMALL + overrides), tmp_path / "run", track=progress.silent, deliver_files=False)
    assert result_of(tmp_path / "run")["status"] == "failed"


@pytest.mark.usefixtures("bare")
def test_a_saved_student_serves_as_teacher(small, tmp_path):
    overrides = [f"teacher.model={small / 'teacher'}", "teacher.fit=null"]
    result = job.run(
        load_recipe("digits", SMALL + overrides), tmp_path / "run", track=progress.silent, deliver_files=False
    )
    assert result["teacher"]["quality"] == result_of(small)["teacher"]["quality"]


@pytest.mark.parametrize(
    "overrides",
    [
        ["distill.terms=[{loss: attention_transfer, map: depth, weight: 10}]"],
        ["distill.terms=[{loss: hint, student: [stage1, stage3], teacher: [stage1, stage3], map: width, weight: 0.1}]"],
        ["train.ema=0.99", "train.label_smoothing=0.1", "train.mixup=0.2", "train.tracker=tensorboard"],
        ["train.precision=bf16", "train.optimizer=adamw", "train.lr=1e-2", "train.views.policy=strong"],
        ["compare.baseline=false", "export=[onnx-int8]", "budget={}"],
        ["phases=[{name: all, share: 1}]", "student.input.size=12", "train.keep=best", "export=[onnx]"],
        ["distill.terms=[{loss: crd, map: last, weight: 1e-3, options: {width: 16, negatives: 64}}]"],
    ],
    ids=[
        "attention",
        "hints",
        "ema-mixup-tensorboard",
        "bf16-adamw-strong",
        "no-baseline-int8-only",
        "other-size-best",
        "contrast-memory",
    ],
)
@pytest.mark.usefixtures("bare")
def test_every_way_of_training_runs(tmp_path, overrides):
    whole = any(override.startswith(("export", "student.input")) for override in overrides)
    recipe = load_recipe("digits", [*SMALL, "train.epochs=5", *overrides])
    result = job.run(recipe, tmp_path / "run", track=progress.silent, deliver_files=whole)
    assert result["status"] == "done"
    assert result["arms"]["student"]["mean"] > 0.3
    assert not whole or [artifact["name"] for artifact in result["artifacts"]] == list(recipe.export)
    keys = torch.load(tmp_path / "run" / "arms" / "student" / "0" / "final.pt", weights_only=True)["student"].keys()
    plain = assemble(load_recipe(tmp_path / "run" / "recipe.yaml"), progress.silent).student(0)
    assert list(keys) == list(plain.module.state_dict())
    if "train.tracker=tensorboard" in overrides:
        assert list((tmp_path / "run" / "tensorboard").iterdir())


@pytest.mark.usefixtures("bare")
def test_a_loss_of_the_users_own_works_from_the_recipe(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from edgestill import losses\n\n"
        "def softened(student, teacher, *, temperature, share=1.0):\n"
        "    return share * losses.kl(student, teacher, temperature=temperature)\n"
    )
    overrides = [*SMALL, f"distill.loss={tmp_path / 'mine.py'}:softened", "distill.options={share: 0.5}"]
    own = job.run(load_recipe("digits", overrides), tmp_path / "own", track=progress.silent, deliver_files=False)
    assert own["arms"]["student"]["mean"] > 0.3
    with pytest.raises(UserError, match=r"unexpected keyword argument 'count'"):
        assemble(load_recipe("digits", [*overrides, "train.accumulate=2"]), progress.silent)
    with pytest.raises(UserError, match=r"no option 'shore'; it has share"):
        assemble(load_recipe("digits", [*overrides, "distill.options={shore: 0.5}"]), progress.silent)


def test_the_steps_behind_the_trainings_run_alone(small, tmp_path, capsys):
    copied = tmp_path / "run"
    shutil.copytree(small, copied)
    before = result_of(copied)
    (copied / "report.html").unlink()
    shutil.rmtree(copied / "exports")
    assert main(["bench", str(copied), "--quiet"]) == 2
    assert "edgestill export" in capsys.readouterr().err
    for verb in ("export", "evaluate", "bench"):
        assert main([verb, str(copied), "--quiet", "--json"]) in (0, 3)
        said = json.loads(capsys.readouterr().out)
        assert [a["quality"] for a in said["artifacts"]] == [a["quality"] for a in before["artifacts"]]
    assert main(["report", str(copied)]) == 0
    assert (copied / "report.html").is_file()
    capsys.readouterr()
    assert main(["compare", str(small), str(copied)]) == 0
    assert len(capsys.readouterr().out.strip().splitlines()) == 3


def test_a_run_that_ended_in_its_export_is_exported_by_the_verb(small, tmp_path, capsys, monkeypatch):
    """result.json as a kill behind the trainings leaves it, and as one leaves it in a resumed run before its end."""
    copied = tmp_path / "run"
    shutil.copytree(small, copied)
    seen: list[dict] = []
    monkeypatch.setattr(job.deliver, "make_artifacts", lambda *_: seen.append(result_of(copied)) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        job.run(load_recipe("digits", SMALL), copied, resume=True, track=progress.silent)
    monkeypatch.undo()
    assert seen[0]["status"] == "running"  # as a kill at this moment leaves it
    (copied / "result.json").write_text(json.dumps(seen[0]))
    for verb, needed in (("evaluate", "export"), ("bench", "export")):
        assert main([verb, str(copied), "--quiet"]) == 2
        assert f"edgestill {needed}" in capsys.readouterr().err
        assert result_of(copied) == seen[0]
    unmeasured = seen[0] | {"status": "failed", "error": "OSError: …", "artifacts": result_of(small)["artifacts"]}
    unmeasured["artifacts"] = [{k: v for k, v in a.items() if k != "latency_ms"} for a in unmeasured["artifacts"]]
    (copied / "result.json").write_text(json.dumps(unmeasured))
    assert main(["evaluate", str(copied), "--quiet"]) == 2
    assert "no measurements yet" in capsys.readouterr().err
    assert main(["export", str(copied), "--quiet"]) in (0, 3)
    assert result_of(copied)["status"] == "done"
    assert "error" not in result_of(copied)
    assert result_of(copied)["arms"] == result_of(small)["arms"]
    early = {key: value for key, value in seen[0].items() if key not in ("student", "phases", "layer_maps")}
    (copied / "result.json").write_text(json.dumps(early))  # killed in a resumed run, over the folder of a whole one
    for verb in ("export", "evaluate", "bench"):
        assert main([verb, str(copied), "--quiet"]) == 2
        assert "no trained student yet" in capsys.readouterr().err


@pytest.mark.usefixtures("bare")
def test_a_missed_budget_is_exit_code_3_and_the_verdict_names_the_limit(small, tmp_path, capsys):
    arguments = ["run", "digits", "--quiet", "--out", str(tmp_path / "run"), "--set", "budget.size=1 KB"]
    fitted = [f"teacher.model={small / 'teacher'}", "teacher.fit=null", "compare.baseline=false", "export=[onnx]"]
    arguments += [part for override in SMALL + fitted for part in ("--set", override)]
    assert main(arguments) == 3
    assert "MISSED" in capsys.readouterr().out
    budget = result_of(tmp_path / "run")["budget"]
    assert not budget["met"]
    assert not budget["size"]["met"]
    assert budget["size"]["limit"] == 1000


def test_the_verdict_is_about_the_artifact_that_misses_by_least(small):
    parts = assemble(load_recipe("digits", [*SMALL, "budget={size: 5 KB}"]), progress.silent)
    artifacts = result_of(small)["artifacts"]
    judged = verdict(parts, artifacts)
    assert judged["artifact"] == min(artifacts, key=lambda artifact: artifact["bytes"])["name"]
    assert not judged["met"]
    precise = assemble(load_recipe("digits", [*SMALL, "budget={latency: 10 s, quality: 0.5}"]), progress.silent)
    better = [artifact | {"quality": 0.4 if artifact["name"] == judged["artifact"] else 0.9} for artifact in artifacts]
    assert verdict(precise, better)["artifact"] != judged["artifact"]


def test_the_recipe_in_the_run_folder_is_resolved(small):
    recipe = yaml.safe_load((small / "recipe.yaml").read_text())
    assert Path(recipe["student"]["model"].rpartition(":")[0]).is_absolute()
    assert recipe["train"]["epochs"] == 2.0


def test_a_folder_that_another_process_is_at_work_in_is_left_alone(small, tmp_path, capsys):
    """A real process holds it: it is refused while that lives, and free again however that ends."""
    out = shutil.copytree(small, tmp_path / "run")
    code = (
        "import json, sys; from pathlib import Path; from edgestill import folder\n"
        "out = Path(sys.argv[1])\n"
        "with folder.status(out, json.loads((out / 'result.json').read_text())):\n"
        "    print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, out], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout.readline() == b"held\n"
    assert (
        main(["run", "digits", "--out", str(out), "--resume", "--quiet"] + [w for s in SMALL for w in ("--set", s)])
        == 2
    )
    assert f"another process is at work in {out}" in capsys.readouterr().err
    assert main(["bench", str(out), "--quiet"]) == 2
    assert "another process is at work" in capsys.readouterr().err
    assert result_of(out)["status"] == "running"
    holder.kill()
    holder.communicate()
    job.run(load_recipe("digits", SMALL), out, resume=True, track=progress.silent, deliver_files=False)
    assert not (out / ".lock").exists()
