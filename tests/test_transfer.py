"""Ways of transfer through the whole job on real digits: every method, found maps, the teacher's classifier, a teacher
of more classes."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from edgestill.assemble import assemble, with_measured_maps
from edgestill.cli import main
from edgestill.errors import UserError
from edgestill.losses import SOFT_LOSSES, TERM_LOSSES
from edgestill.models import load_model
from edgestill.progress import silent
from edgestill.reading import builtin
from edgestill.recipe import load_recipe
from edgestill.runs import run

SMALL = ["train.epochs=1", "compare.seeds=1", "teacher.fit.epochs=4", "phases=[{name: only, share: 1}]"]
DIGITS = builtin()["digits"].parent / "digits.py"


def trained(out: Path, *sets: str) -> dict:
    return run(load_recipe("digits", [*SMALL, *sets]), out, track=silent, deliver_files=False)


def logged_parts(out: Path) -> list[dict]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [line["parts"] for line in lines if line["arm"] == "student" and "parts" in line]


@pytest.fixture(scope="module")
def teacher_weights(tmp_path_factory, bare_runs) -> str:
    """Of one fitted teacher, which the trainings below share."""
    out = tmp_path_factory.mktemp("fitted")
    with bare_runs():
        trained(out / "run", "compare.baseline=false")
    return f"teacher.weights={out / 'run' / 'teacher' / 'model.safetensors'}"


@pytest.mark.parametrize("loss", sorted(set(TERM_LOSSES) - {"attention_kl", "attention_relation"}))
@pytest.mark.usefixtures("bare")
def test_the_student_of_every_term_is_the_plain_one(loss, tmp_path, teacher_weights):
    trained(
        tmp_path / "run",
        teacher_weights,
        f"distill.terms=[{{loss: {loss}, weight: balanced}}]",
        "compare.baseline=false",
        "train.epochs=0.5",
    )
    parts = logged_parts(tmp_path / "run")
    assert all(np.isfinite(part["value"]) for line in parts for part in line.values())
    assert any(name.startswith(loss) and part["weight"] > 0 for name, part in parts[-1].items())
    plain = load_model(f"{DIGITS}:student", classes=10, default=assemble_input()).module.state_dict()
    saved = load_file(tmp_path / "run" / "student" / "model.safetensors")
    assert {name: tensor.shape for name, tensor in saved.items()} == {
        name: tensor.shape for name, tensor in plain.items()
    }


def assemble_input():
    return assemble(load_recipe("digits", SMALL), silent).default_input


@pytest.mark.parametrize("loss", [*SOFT_LOSSES, "none"])
@pytest.mark.usefixtures("bare")
def test_every_soft_loss_trains_from_a_recipe(loss, tmp_path, teacher_weights):
    sets = [f"distill.loss={loss}", "distill.alpha=0.5", "compare.baseline=false", "train.epochs=0.5"]
    trained(tmp_path / "run", teacher_weights, *sets)
    last = logged_parts(tmp_path / "run")[-1]
    assert [*last] == (["hard"] if loss == "none" else ["hard", "soft"])
    assert all(np.isfinite(part["value"]) for part in last.values())


def test_an_auto_map_is_measured_on_the_trained_baseline_and_told(tmp_path, teacher_weights):
    term = "distill.terms=[{loss: hint, map: auto, student: [stage2], teacher: [stage1, stage2, stage3]}]"
    result = trained(tmp_path / "run", teacher_weights, term, "train.epochs=4")
    (told,) = result["layer_maps"]
    assert told["map"] == "auto"
    (row,) = told["similarity"]
    assert [*map(list, told["pairs"])] == [
        ["stage2", told["teacher"][int(np.argmax(row))]]
    ]  # of one tap: the most similar
    assert told["samples"] == 512
    job = assemble(load_recipe("digits", [*SMALL, teacher_weights, term, "train.epochs=4"]), silent)
    student = job.student(0, "baseline")
    saved = torch.load(tmp_path / "run" / "arms" / "baseline" / "0" / "final.pt", weights_only=True)
    for weights, alike in ((student.module.state_dict(), False), (saved["student"], True)):
        student.module.load_state_dict(weights)
        (measured,) = with_measured_maps(job, student).maps[0].similarity
        assert (measured == pytest.approx(row, abs=2e-4)) is alike  # the baseline's, not that of a fresh student
    assert "auto" in (tmp_path / "run" / "report.html").read_text()
    again = run(load_recipe("digits", [*SMALL, teacher_weights, term, "train.epochs=4"]), tmp_path / "run",
                track=silent, deliver_files=False, resume=True)  # fmt: skip
    assert again["layer_maps"] == result["layer_maps"]


def test_an_auto_map_without_a_student_that_has_learned_is_refused(capsys, tmp_path):
    sets = ["--set", "distill.terms=[{loss: hint, map: auto}]", "--set", "compare.baseline=false"]
    assert main(["run", "digits", "--out", str(tmp_path / "run"), *sets]) == 2
    assert "auto is measured on a student that has learned" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("bare")
def test_a_student_with_weights_has_its_auto_map_measured_before_any_training(tmp_path, teacher_weights):
    trained(tmp_path / "first", teacher_weights)
    weights = f"student.weights={tmp_path / 'first' / 'student' / 'model.safetensors'}"
    term = "distill.terms=[{loss: hint, map: auto}]"
    job = assemble(load_recipe("digits", [*SMALL, teacher_weights, weights, term, "compare.baseline=false"]), silent)
    assert not job.unmeasured
    assert job.maps[0].similarity is not None


@pytest.mark.usefixtures("bare")
def test_a_map_waits_for_a_teacher_that_is_fitted_first(tmp_path, teacher_weights):
    trained(tmp_path / "first", teacher_weights)
    weights = f"student.weights={tmp_path / 'first' / 'student' / 'model.safetensors'}"
    sets = [weights, "distill.terms=[{loss: hint, map: auto}]", "compare.baseline=false"]
    assert assemble(load_recipe("digits", [*SMALL, *sets]), silent).unmeasured
    fitted = trained(tmp_path / "fitted", *sets)
    given = trained(tmp_path / "given", teacher_weights, *sets)
    assert fitted["layer_maps"][0]["similarity"] == given["layer_maps"][0]["similarity"]


@pytest.mark.usefixtures("bare")
def test_the_classifier_that_is_frozen_does_not_stand_in_the_way_of_a_balanced_term(tmp_path, teacher_weights):
    sets = ["student.classifier=teacher", "distill.terms=[{loss: hint, map: direct, weight: balanced}]"]
    trained(tmp_path / "run", teacher_weights, *sets, "compare.baseline=false")
    assert logged_parts(tmp_path / "run")[-1]["hint/stage3.1"]["weight"] > 0


def test_options_of_terms_are_those_of_the_loss_and_its_module(teacher_weights):
    def job(term):
        return assemble(load_recipe("digits", [*SMALL, teacher_weights, f"distill.terms=[{term}]"]), silent)

    crd = next(iter(job("{loss: crd, options: {temperature: 0.1, negatives: 8}}").terms.values()))
    assert crd.loss.keywords == {"temperature": 0.1}
    assert crd.module.keywords == {"negatives": 8}
    cwd = next(iter(job("{loss: cwd, options: {temperature: 4}}").terms.values()))
    assert cwd.loss.keywords == {"temperature": 4}
    for term, said in {
        "{loss: crd, options: {student_negatives: 1}}": "no option 'student_negatives'; it has .*negatives",
        "{loss: crd, options: {negatives: 0}}": "negatives must be 1 or more",
        "{loss: review, options: {width: 0}}": "width must be 1 or more",
        "{loss: review, aligner: linear}": "aligns its taps itself; `aligner: linear` came",
        "{loss: cwd, options: {temperature: 0}}": "cwd needs a temperature above 0; 0 came",
        "{loss: crd, options: {temperature: -1}}": "crd needs a temperature above 0; -1 came",
        "{loss: attention_kl, student: stage1, teacher: stage1}": "compares attentions, .*; tap 'stage1' came",
        "{loss: attention_kl}": "attention_kl needs a model with attention; none was found",
        "{loss: attention_relation, student: stage1, teacher: stage1}": "it takes PATH@queries, .*; tap 'stage1' came",
    }.items():
        with pytest.raises(UserError, match=said):
            job(term)


def test_an_auto_map_over_taps_that_nothing_aligns_is_refused_before_any_training(teacher_weights):
    term = "distill.terms=[{loss: hint, map: auto, student: [stage3], teacher: [stage1, flatten, stage3]}]"
    with pytest.raises(UserError, match="map: auto may pair 'stage3' with 'flatten', and no aligner brings"):
        assemble(load_recipe("digits", [*SMALL, teacher_weights, term]), silent)


def test_first_last_and_every_nth_reach_the_terms(teacher_weights):
    for kind, expected in (("first", "stage1"), ("last", "stage3"), ("every-2", "stage2")):
        term = f"distill.terms=[{{loss: sp, map: {kind}, student: [stage3], teacher: [stage1, stage2, stage3]}}]"
        job = assemble(load_recipe("digits", [*SMALL, teacher_weights, term]), silent)
        assert [found.teacher for found in job.terms.values()] == [expected]


@pytest.mark.usefixtures("bare")
def test_the_teachers_classifier_stays_in_the_student_and_the_baseline_has_its_own(tmp_path, teacher_weights):
    sets = ["student.classifier=teacher", "distill={alpha: 1, loss: none, terms: [{loss: hint, map: direct}]}"]
    result = trained(tmp_path / "run", teacher_weights, *sets, "train.epochs=6")
    assert [*logged_parts(tmp_path / "run")[-1]] == ["hint/stage3.1"]
    saved = load_file(tmp_path / "run" / "student" / "model.safetensors")
    fitted = load_file(teacher_weights.partition("=")[2])
    assert torch.equal(saved["linear.weight"], fitted["linear.weight"])
    final = {
        arm: torch.load(tmp_path / "run" / "arms" / arm / "0" / "final.pt", weights_only=True)["student"]
        for arm in ("student", "baseline")
    }
    assert {name: tensor.shape for name, tensor in final["student"].items()} == {
        name: tensor.shape for name, tensor in final["baseline"].items()
    }
    assert not torch.equal(final["baseline"]["linear.weight"], fitted["linear.weight"])
    assert result["student"]["parameters"] > 100_000  # the projector and the classifier count


@pytest.mark.usefixtures("bare")
def test_a_teacher_of_more_classes_is_read_at_those_that_the_data_has(tmp_path, teacher_weights):
    """Of ten digits, the data has three, in another order."""
    (tmp_path / "three.py").write_text(
        "import numpy as np\n"
        "from sklearn.datasets import load_digits\n"
        "def splits():\n"
        "    digits = load_digits()\n"
        "    rows = [np.flatnonzero(digits.target == number) for number in (7, 1, 4)]\n"
        "    pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)\n"
        "    part = lambda cut: (np.concatenate([pixels[r[cut]] for r in rows]),\n"
        "                        np.repeat([0, 1, 2], [len(r[cut]) for r in rows]))\n"
        "    return {'train': part(slice(120)), 'test': part(slice(120, None))}\n"
    )
    data = [f"data.source={tmp_path / 'three.py'}:splits", "data.labels_per_class=null", teacher_weights]
    ten = "teacher.options={num_classes: 10}"
    with pytest.raises(UserError, match=r"puts out 10, the data has 3 classes: name those .* in teacher\.classes"):
        assemble(load_recipe("digits", [*SMALL, *data, ten]), silent)
    for classes in ("[7, 1]", "[7, 1, 10]"):
        with pytest.raises(UserError, match=r"teacher\.classes: needs one of the teacher's outputs 0…9 for each"):
            assemble(load_recipe("digits", [*SMALL, *data, ten, f"teacher.classes={classes}"]), silent)
    sets = [*data, ten, "teacher.classes=[7, 1, 4]", "train.epochs=8"]
    term = "distill.terms=[{loss: hint, map: auto, weight: 0.001}, {loss: sp, weight: 0}]"
    result = run(load_recipe("digits", [*SMALL, *sets, term]), tmp_path / "run", track=silent)
    assert [told["samples"] for told in result["layer_maps"]] == [result["data"]["train"], None]  # fewer than 512
    assert result["teacher"]["quality"] > 0.9
    assert result["arms"]["student"]["mean"] > 0.8
    assert result["status"] == "done"


def test_weights_of_a_model_with_two_outputs_a_class_are_of_no_use(tmp_path, teacher_weights):
    state = load_file(teacher_weights.partition("=")[2])
    state["linear.weight"] = state["linear.weight"][:7]
    save_file(state, tmp_path / "seven.safetensors")
    with pytest.raises(UserError, match=r"linear.weight"):
        assemble(load_recipe("digits", [*SMALL, f"teacher.weights={tmp_path / 'seven.safetensors'}"]), silent)


VIT = """
from torch import nn

class Vit(nn.Module):
    def __init__(self, width, depth, num_classes):
        super().__init__()
        self.patches = nn.Conv2d(1, width, 2, stride=2)
        layer = lambda: nn.TransformerEncoderLayer(width, 2, 2 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.layers = nn.ModuleList(layer() for _ in range(depth))
        self.head = nn.Linear(width * 16, num_classes)

    def forward(self, images):
        tokens = self.patches(images).flatten(2).transpose(1, 2)
        for layer in self.layers:
            tokens = layer(tokens)
        return self.head(tokens.flatten(1))

def teacher(num_classes=10):
    return Vit(32, 4, num_classes)

def student(num_classes=10):
    return Vit(16, 2, num_classes)
"""


@pytest.mark.usefixtures("bare")
def test_attention_goes_from_transformer_to_transformer_and_blocks_from_one_to_a_convolutional_student(tmp_path):
    (tmp_path / "vit.py").write_text(VIT)
    fitted = "teacher.fit={epochs: 6, batch_size: 64, lr: 0.003, optimizer: adamw}"
    sets = [f"teacher.model={tmp_path / 'vit.py'}:teacher", "compare.baseline=false", "train.lr=0.02"]
    attention = "distill.terms=[{loss: attention_kl, weight: balanced}]"
    trained(tmp_path / "run", *sets, fitted, f"student.model={tmp_path / 'vit.py'}:student", attention)
    taps = [f"attention_kl/layers.{place}.self_attn@attention" for place in (0, 1)]
    last = logged_parts(tmp_path / "run")[-1]
    assert [*last] == ["hard", "soft", *taps]
    assert all(last[tap]["weight"] > 0 and last[tap]["value"] > 0 for tap in taps)
    given = f"teacher.weights={tmp_path / 'run' / 'teacher' / 'model.safetensors'}"
    result = trained(tmp_path / "other", *sets, given, "distill.terms=[{loss: hint, weight: balanced}]")
    assert result["layer_maps"][0]["pairs"] == [
        ("stage1", "layers.0"),
        ("stage2", "layers.2"),
        ("stage3", "layers.3"),
    ]
    assert all(part["weight"] > 0 for part in logged_parts(tmp_path / "other")[-1].values())
