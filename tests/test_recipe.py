"""Recipes: what is read, what is refused in one line, and what --set does."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from edgestill import losses
from edgestill.errors import UserError
from edgestill.reading import builtin
from edgestill.recipe import SOFT_LOSSES, TERM_LOSSES, Recipe, dump, load_recipe, validate

SMALL = """
task: image-classification
data: pictures
teacher: {model: nets.py:large, weights: large.safetensors}
student: {model: nets.py:small}
"""
TERMS = "distill: {terms: [{loss: hint}, {loss: attention_transfer, weight: 5}]}\n"


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """Writes a recipe (SMALL, and what is given) to a folder of its own and loads it from another one."""
    (tmp_path / "recipes").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    def load(*overrides: str, more: str = "", text: str = SMALL) -> Recipe:
        path = tmp_path / "recipes" / "recipe.yaml"
        path.write_text(text + more, encoding="utf-8")
        return load_recipe(path, overrides)

    return load


def test_a_recipe_needs_no_more_than_task_data_teacher_and_student(recipe):
    made = recipe()
    assert (made.distill.loss, made.distill.alpha, made.distill.temperature, made.distill.terms) == ("kl", 0.9, 4, [])
    assert [phase.name for phase in made.phases] == ["warmup", "distill", "finetune"]
    assert made.phases[2].alpha == 0
    assert made.phases[2].terms == []
    assert made.export == ["onnx", "onnx-int8"]
    assert made.budget.threads == 1


@pytest.mark.parametrize("key", ["task", "data", "teacher", "student", "teacher.model"])
def test_what_is_required_is_named_when_it_is_missing(recipe, key):
    raw = yaml.safe_load(SMALL)
    *parents, last = key.split(".")
    place = raw
    for parent in parents:
        place = place[parent]
    del place[last]
    with pytest.raises(UserError) as refused:
        recipe(text=yaml.safe_dump(raw))
    assert str(refused.value) == f"recipe: {key} is required"


REFUSED = {
    # unknown keys, with the closest known one
    "distil.alpha=1": "unknown key 'distil'; did you mean 'distill'?",
    "distill.aplha=1": "unknown key 'aplha' in distill; did you mean 'alpha'?",
    "train.views.filp=true": "unknown key 'filp' in train.views; did you mean 'flip'?",
    "distill.terms=[{loss: hint, wieght: 1}]": "unknown key 'wieght' in distill.terms.0; did you mean 'weight'?",
    "phases.warmup.oder=uniform": "unknown key 'oder' in phases.warmup; did you mean 'order'?",
    "data.sorce=x": "unknown key 'sorce' in data; did you mean 'source'",
    # features that are not built yet
    "student={}": "student: needs one of `model`, `from_teacher` and `search`",
    "student.from_teacher={depth: 0.5}": "student: needs one of `model`, `from_teacher` and `search`",
    "student={from_teacher: {}}": "student.from_teacher: needs `depth`, a list of blocks in `keep`, `width`",
    "student={from_teacher: {depth: 2, keep: [1]}}": "student.from_teacher: needs `depth`, or a list of blocks in",
    "student={from_teacher: {keep: [3, 1]}}": "student.from_teacher: keep: needs blocks in rising order",
    "student={from_teacher: {vocabulary: data}}": "student.from_teacher.vocabulary: is for text models; the task is",
    "data={source: a, columns: {text: b}}": "data.columns: is for texts",
    "student.search={depth: [0.5]}": "unknown key 'depth' in student.search",
    "student={search: {}}": "student.search: needs one of from_teacher, model and candidates; none of them came",
    "compute.time=2 h": "compute.time: is of a search; the recipe has no student.search",
    "compute.time=2 ours": "compute.time: a time needs one of the units us, ms, s, min, h",
    "capture.codec=topk": "capture.codec: ",
    "train.fake_quantize=true": "unknown key 'fake_quantize' in train",
    "export=[onnx, executorch-int4]": "export.1: .*'executorch-int4' came; did you mean 'executorch-int8'",
    "export=[gguf]": "export.0: must be one of onnx, onnx-int8, .*'gguf' came",
    "budget.runtime=openvino": "budget.runtime: openvino runs openvino files; export names onnx, onnx-int8 alone",
    "quantize.samples=1": "quantize: samples: ranges over many images are needed.*; 1 came",
    "export=[gguf-q8_0]": "export.0: .*'gguf-q8_0' came",
    "export=[coreml]": "export.0: .*'coreml' came",
    "task=text-generation": "task: .*'image-classification', .*; 'text-generation' came",
    "budget.runtime=tensorrt": "budget.runtime: .*'tensorrt' came",
    # wrong types
    "teacher=3": "teacher: needs keys of its own; 3 came",
    "distill=[1]": r"distill: needs keys of its own; \[1\] came",
    "teacher.model=3": "teacher.model: .*string; 3 came",
    "distill.alpha=high": "distill.alpha: a share needs .*; 'high' has none",
    "distill.alpha=[1]": r"distill.alpha: .*number; \[1\] came",
    "distill.alpha=true": "distill.alpha: .*number; True came",
    "train.batch_size=1.5": "train.batch_size: .*integer; 1.5 came",
    "train.batch_size='128'": "train.batch_size: .*integer; '128' came",
    "compare.seeds=true": "compare.seeds: .*integer; True came",
    "train.views.flip=1": "train.views.flip: .*boolean; 1 came",
    "export=onnx": "export: .*list; 'onnx' came",
    "phases=3": "phases: .*list; 3 came",
    "phases=[3]": "phases.0: needs keys of its own; 3 came",
    "teacher.input.mean=[0.5, x]": "teacher.input.mean.1: .*number; 'x' came",
    "train=": "train: needs keys of its own; None came",
    # out of range
    "distill.alpha=1.5": "distill.alpha: .*less than or equal to 1; 1.5 came",
    "distill.alpha=-0.1": "distill.alpha: .*greater than or equal to 0; -0.1 came",
    "distill.alpha=150 %": "distill.alpha: .*less than or equal to 1; '150 %' came",
    "distill.alpha=.nan": "distill.alpha: .*nan came",
    "phases.distill.alpha=2": "phases.distill.alpha: .*less than or equal to 1; 2 came",
    "distill.temperature=0": "distill.temperature: .*greater than 0; 0 came",
    "distill.temperature=-1": "distill.temperature: .*greater than 0; -1 came",
    "distill.temperature=.inf": "distill.temperature: .*finite number; inf came",
    "phases.warmup.temperature=0": "phases.warmup.temperature: .*greater than 0; 0 came",
    "train.epochs=0": "train.epochs: .*greater than 0; 0 came",
    "train.lr=-1": "train.lr: .*greater than 0; -1 came",
    "train.batch_size=0": "train.batch_size: .*greater than or equal to 1; 0 came",
    "train.label_smoothing=1": "train.label_smoothing: .*less than 1; 1 came",
    "train.ema=1": "train.ema: .*less than 1; 1 came",
    "teacher.input.std=[0, 1, 1]": "teacher.input.std.0: .*greater than 0; 0 came",
    "budget.quality=87": "budget.quality: .*less than or equal to 1; 87 came",
    "budget.quality=nan": "budget.quality: .*'nan' came",
    "data.validation=0": "data: validation: a share between 0 and 1 or a split; 0.0 came",
    "data.validation=100 %": "data: validation: a share between 0 and 1 or a split; 1.0 came",
    "train.batch_size=99999999999999999999": "train.batch_size: .*99999999999999999999 came",
    # choices
    "distill.loss=kll": "distill.loss: must be one of kl, .*, none or file.py:function; 'kll' came; did you mean 'kl'",
    "distill.terms=[{loss: hint, map: every-N}]": "distill.terms.0.map: must be one of direct, .*; 'every-N' came",
    "distill.terms=[{loss: hint, map: dept}]": "distill.terms.0.map: .*; 'dept' came; did you mean 'depth'",
    "distill.terms=[{loss: hint, weight: balance}]": "distill.terms.0.weight: .*'balance' came",
    "distill.terms=[{loss: hint, aligner: fc}]": "distill.terms.0.aligner: .*'fc' came",
    "teacher.classes=[1]": "teacher.classes: .*at least 2",
    "teacher.classes=[0, -1]": "teacher.classes.1: .*-1 came",
    "distill.terms=[{loss: hnt}]": "distill.terms.0.loss: must be one of hint, .*; 'hnt' came; did you mean 'hint'?",
    "train.optimizer=adam": "train.optimizer: .*'sgd' or 'adamw'; 'adam' came",
    "train.keep=first": "train.keep: .*'last' or 'best'; 'first' came",
    # shares
    "phases.warmup.share=0.5": r"phases: the shares must sum to 1; 0.5 \+ 0.6 \+ 0.2 = 1.3",
    "phases.warmup.share=0.19": r"phases: the shares must sum to 1; 0.19 \+ 0.6 \+ 0.2 = 0.99",
    "phases.warmup.share=0": "phases.warmup.share: .*greater than 0; 0 came",
    "phases=[]": "phases: at least one is needed",
    "phases.distill.name=warmup": "phases: 'warmup' stands there twice",
    "export=[onnx, onnx]": "export: 'onnx' stands there twice",
    "export=[]": r"export: .*at least 1 item.*; \[\] came",
    # units
    "budget.size=120": "budget.size: a size needs a number with a unit such as '120 KB'; 120 has none",
    "budget.size=120 KX": "budget.size: a size needs one of the units .*; '120 KX' came; did you mean 'KB'?",
    "budget.size=120 kb": "budget.size: .*'120 kb' came; did you mean 'KB'?",
    "budget.size=-5 KB": "budget.size: a size must be a finite number of at least 0; '-5 KB' came",
    "budget.size=1e999 KB": "budget.size: a size must be a finite number of at least 0; '1e999 KB' came",
    "budget.latency=2 mss": "budget.latency: a time needs one of the units us, ms, .*; '2 mss' came; did you mean 'ms'",
    "budget.memory=2 ms": "budget.memory: a size needs one of the units .*; '2 ms' came",
    # a key of one kind of model alone
    "teacher.trust_remote_code=true": "teacher: trust_remote_code is for hf: models alone; .*large came: leave it out",
    "student.trust_remote_code=1": "student.trust_remote_code: .*boolean; 1 came",
    "data.on_error=ignore": "data.on_error: .*'stop' or 'skip'; 'ignore' came",
    # nothing to learn, or to measure against
    "distill={loss: none, alpha: 1}": "phases.warmup: nothing is learned with loss: none, alpha 1 and no term",
    "distill={loss: none, alpha: 1, terms: [{loss: hint, weight: balanced}]}": "weight: .* none in phases.warmup",
    "distill={loss: none, options: {skew: 0.2}}": "distill.options: loss: none takes none; skew came",
    "distill.terms=[{loss: hint, student: []}]": "distill.terms.0.student: .*at least 1 item",
    "teacher.classes=[1, 2, 1]": "teacher.classes: each output stands for one class; 1 stands there twice",
    # two ways at once
    "data={source: a, train: b}": "data: takes `source` or `train` and `test`, not both",
    "data={train: b}": "data: needs `source` .*, or both `train` and `test`",
}


def test_a_part_of_the_teachers_classes_and_its_whole_classifier_do_not_go_together(recipe):
    with pytest.raises(UserError, match=r"^recipe: teacher\.classes: .* takes the teacher's classifier whole$"):
        recipe("teacher.classes=[1, 2]", "student.classifier=teacher")


@pytest.mark.parametrize("override", REFUSED)
def test_a_mistake_is_refused_in_one_line_that_names_the_key(recipe, override):
    with pytest.raises(UserError, match=f"^recipe: {REFUSED[override]}") as refused:
        recipe(override)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 250


BROKEN = {
    "a: [": "is not valid YAML at line 1, column 5: ",
    "task: a: b": "is not valid YAML at line 1, column 8: ",
    "\0": "is not valid YAML: ",
    "": "needs keys such as task, data, teacher and student",
    "- task": "needs keys such as task, data, teacher and student",
    "just words": "needs keys such as task, data, teacher and student",
    "when: 2026-99-99": "is not valid YAML: month must be in 1..12",
    "!!python/object/apply:os.abort []": "is not valid YAML at line 1, column 1: could not determine a constructor",
    "[" * 3000: "is not valid YAML: nested too deeply",
    "? [1, 2]\n: 3": "is not valid YAML at line 1, column 3: found unhashable key",
}


@pytest.mark.parametrize("text", BROKEN)
def test_a_file_that_is_no_recipe_is_refused_in_one_line(recipe, text):
    with pytest.raises(UserError) as refused:
        recipe(text=text)
    assert BROKEN[text] in str(refused.value)
    assert "recipe.yaml" in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "key", "line"),
    [
        (SMALL + "data: other\n", "data", 6),
        (SMALL.replace("data: pictures", "data: {source: a, size: 3, source: b}"), "source", 3),
        (SMALL + "train:\n  lr: 1\n  epochs: 2\n  'lr': 3\n", "lr", 9),
    ],
)
def test_a_key_that_stands_there_twice_is_refused(recipe, text, key, line):
    with pytest.raises(UserError, match=rf"at line {line}, column \d+: the key '{key}' stands there twice$"):
        recipe(text=text)
    with pytest.raises(UserError, match=r"--set train is not valid YAML at line 1, column 9: the key 'lr' stands"):
        recipe("train={lr: 1, lr: 2}")


def test_a_key_may_override_a_merged_one(recipe):
    merged = "budget: &b {size: 1 KB, threads: 1}\ncompare: {seeds: 2}\n"
    text = SMALL + merged + "train: {threads: 2, views: &v {crop: 1, flip: true}}\n"
    assert recipe(text=text).train.views.crop == 1
    anchored = "distill: {options: {a: {b: &x {<<: &y {p: 1}, p: 2}}, c: {<<: *x, p: 3}}}\n"
    assert recipe(text=SMALL + anchored).distill.options == {"a": {"b": {"p": 2}}, "c": {"p": 3}}


def test_a_home_folder_is_expanded(recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home" / "vit").mkdir(parents=True)
    made = recipe("student.weights=~/x.pt", "data={train: ~/a.csv, test: '~/b-*.parquet'}", "student.model=hf:~/vit",
                  text=SMALL.replace("nets.py:large", "~/nets.py:large"))  # fmt: skip
    assert made.student.weights == f"{tmp_path}/home/x.pt"
    assert (made.data.train, made.data.test) == (f"{tmp_path}/home/a.csv", f"{tmp_path}/home/b-*.parquet")
    assert made.student.model == f"hf:{tmp_path}/home/vit"
    assert made.teacher.model == f"{tmp_path}/home/nets.py:large"


def test_keys_that_are_no_words_are_refused(recipe):
    with pytest.raises(UserError, match=r"^recipe: 1: "):
        recipe(more="1: 2\n")


def test_a_file_that_is_no_text_is_refused(tmp_path):
    (tmp_path / "recipe.yaml").write_bytes(b"\xff\xfe\x00\x01\x80")
    with pytest.raises(UserError, match=r"recipe\.yaml is not a recipe: it is not UTF-8 text"):
        load_recipe(tmp_path / "recipe.yaml")


@pytest.mark.parametrize("name", ["digit", "nowhere/recipe.yaml", "."])
def test_a_recipe_that_is_not_there_is_refused_with_the_built_in_ones(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"no recipe file .*\(cifar10-resnet8, digits, python-code\)") as refused:
        load_recipe(name)
    assert ("did you mean 'digits'?" in str(refused.value)) == (name == "digit")


def test_the_first_of_several_mistakes_is_told_and_how_many_follow(recipe):
    with pytest.raises(UserError, match=r"unknown key 'tempreature' .*did you mean 'temperature'\? \(and 1 more\)$"):
        recipe("distill.alpha=2", "distill.tempreature=3")


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-3", 0.001), ("1E-3", 0.001), ("5e0", 5.0), ("2.5e+1", 25.0), ("1", 1.0), ("0.5", 0.5), (".5", 0.5)],
)
def test_numbers_are_read_as_people_write_them(recipe, text, value):
    assert recipe(f"train.lr={text}").train.lr == value
    assert recipe(more=f"train: {{lr: {text}}}\n").train.lr == value


def test_words_that_look_like_numbers_stay_words(recipe):
    made = recipe("teacher.options={variant: e5, code: 1e, version: 1.2.3}")
    assert made.teacher.options == {"variant": "e5", "code": "1e", "version": "1.2.3"}


def test_shares_may_be_percentages(recipe):
    made = recipe("distill.alpha=85 %", "budget.quality=87.5 %", "train.lr_ramp=5%", "data.validation=15 %")
    assert made.distill.alpha == 0.85
    assert made.budget.quality == 0.875
    assert made.train.lr_ramp == pytest.approx(0.05)
    assert made.data.validation == pytest.approx(0.15)
    made = recipe(more="phases: [{name: a, share: 40 %}, {name: b, share: 60 %}]\n")
    assert [phase.share for phase in made.phases] == pytest.approx([0.4, 0.6])


def test_set_takes_values_of_every_form(recipe):
    made = recipe(
        "distill.temperature=2",
        "train.views.crop=4",
        "train.views={flip: true, crop: 2}",
        "budget={size: 20 KB, latency: 1 ms, runtime: onnxruntime, threads: 1}",
        "export=[onnx]",
        "train.tracker=tensorboard",
        "teacher.input.mean=[0.5, 0.4, 0.3]",
        "teacher.options.width=3",
        "teacher.weights=null",
    )
    assert made.distill.temperature == 2.0
    assert (made.train.views.flip, made.train.views.crop) == (True, 2)
    assert (made.budget.size, made.budget.latency) == ("20 KB", "1 ms")
    assert made.export == ["onnx"]
    assert made.train.tracker == "tensorboard"
    assert made.teacher.input.mean == [0.5, 0.4, 0.3]
    assert made.teacher.options == {"width": 3}
    assert made.teacher.weights is None


def test_the_last_set_of_a_key_holds(recipe):
    assert recipe("distill.temperature=2", "distill.temperature=3").distill.temperature == 3


def test_set_keeps_the_rest_of_a_section(recipe):
    made = recipe("distill.alpha=0.5", more="distill: {temperature: 7}\n")
    assert (made.distill.alpha, made.distill.temperature) == (0.5, 7)


@pytest.mark.parametrize("more", ["", "phases: [{name: warmup, share: 0.2}, {name: distill, share: 0.8}]\n"])
def test_set_finds_a_phase_by_its_name_whether_the_recipe_has_it_or_the_default(recipe, more):
    made = recipe("phases.distill.temperature=9", "phases.distill.lr=0.01", more=more)
    assert [phase.temperature for phase in made.phases][:2] == [None, 9]
    assert made.phases[1].lr == 0.01
    assert made.phases[1].share == (0.8 if more else 0.6)


def test_set_finds_an_entry_by_its_place(recipe):
    made = recipe(
        "distill.terms.1.weight=7",
        "phases.0.order=uniform",
        "export.1=onnx-int8",
        more=TERMS + "export: [onnx, onnx]\n",
    )
    assert [term.weight for term in made.distill.terms] == [1, 7]
    assert made.phases[0].order == "uniform"
    assert made.export == ["onnx", "onnx-int8"]


def test_a_phases_own_terms_may_be_set(recipe):
    made = recipe("phases.distill.terms=[{loss: hint, map: width}]", more=TERMS)
    assert [term.loss for term in made.distill.terms] == ["hint", "attention_transfer"]
    assert [term.loss for term in made.phases[1].terms] == ["hint"]
    assert made.phases[0].terms is None


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("distill.alpha", "--set takes key=value, as in distill.temperature=2; 'distill.alpha' came"),
        ("=3", "--set takes key=value"),
        ("distill..alpha=3", "--set takes key=value"),
        ("distill.alpha=[", "--set distill.alpha is not valid YAML"),
        ("phases.wramup.lr=1", "--set phases.wramup: no entry 'wramup' among warmup, distill, finetune; did you mean"),
        ("phases.3.lr=1", "--set phases.3: no entry '3' among warmup, distill, finetune"),
        ("distill.terms.2.weight=1", "--set distill.terms.2: no entry '2' among 2"),
        ("teacher.model.x.y=1", "--set teacher.model.x: there is '"),
        ("teacher.model.x=1", "--set teacher.model.x: teacher.model is '"),
    ],
)
def test_a_set_that_cannot_be_done_is_refused(recipe, override, said):
    with pytest.raises(UserError) as refused:
        recipe(override, more=TERMS)
    assert str(refused.value).startswith(said)
    assert "\n" not in str(refused.value)


def test_data_may_be_a_word_or_its_splits(recipe, tmp_path):
    assert recipe().data.source == str(tmp_path / "recipes" / "pictures")
    assert recipe("data=more pictures").data.source == str(tmp_path / "here" / "more pictures")
    made = recipe("data.validation=0.2")
    assert (made.data.source, made.data.validation) == (str(tmp_path / "recipes" / "pictures"), 0.2)
    made = recipe("data={train: a/train-*.parquet, test: a/test-*.parquet}")
    assert made.data.train == str(tmp_path / "here" / "a" / "train-*.parquet")


def test_paths_of_the_file_are_relative_to_it_and_those_of_set_to_the_current_folder(recipe, tmp_path):
    there, here = tmp_path / "recipes", tmp_path / "here"
    made = recipe(
        "student.model=my_nets.py:tiny",
        "student.weights=../start.pt",
        "data.test=test.parquet",
        "phases.distill.terms=[{loss: my_losses.py:far}]",
        "distill.terms.1.loss=my_losses.py:near",
        more="distill: {loss: losses.py:soft, terms: [{loss: losses.py:term}, {loss: hint}]}\n",
        text=SMALL.replace("data: pictures", "data: {train: ./train, test: test, validation: held/out.parquet}"),
    )
    assert made.teacher.model == f"{there}/nets.py:large"
    assert made.teacher.weights == f"{there}/large.safetensors"
    assert made.student.model == f"{here}/my_nets.py:tiny"
    assert made.student.weights == f"{tmp_path}/start.pt"
    assert made.data.train == f"{there}/train"
    assert made.data.test == f"{here}/test.parquet"
    assert made.data.validation == f"{there}/held/out.parquet"
    assert made.distill.loss == f"{there}/losses.py:soft"
    assert [term.loss for term in made.distill.terms] == [f"{there}/losses.py:term", f"{here}/my_losses.py:near"]
    assert made.phases[1].terms[0].loss == f"{here}/my_losses.py:far"


def test_what_is_no_path_stays_as_it_is(recipe, tmp_path):
    made = recipe("data=uoft-cs/cifar10", "teacher.model=timm:resnet18", "student.model=hf:microsoft/resnet-18")
    assert made.data.source == "uoft-cs/cifar10"
    assert made.teacher.model == "timm:resnet18"
    assert made.student.model == "hf:microsoft/resnet-18"
    assert recipe("data={train: 'o/n:train', test: 'o/n:test'}").data.train == "o/n:train"
    (tmp_path / "here" / "local").mkdir()
    assert recipe("student.model=hf:local").student.model == f"hf:{tmp_path}/here/local"
    # a folder of the owner's name: a mistyped path is likelier than a Hub id
    assert recipe("data=local/trian").data.source == f"{tmp_path}/here/local/trian"


def test_a_function_of_a_recipe_need_not_be_there_to_be_read(recipe):
    assert recipe("distill.loss=nowhere.py:soft").distill.loss.endswith("/here/nowhere.py:soft")


@pytest.mark.parametrize("name", ["digits", "cifar10-resnet8"])
def test_a_recipe_that_was_dumped_is_read_back_equal(name, tmp_path, monkeypatch):
    made = load_recipe(
        name, ["phases.distill.terms=[{loss: hint, options: {}}]", "budget.memory=8 MB", "train.lr=1e-5"]
    )
    path = tmp_path / "elsewhere" / "recipe.yaml"
    path.parent.mkdir()
    path.write_text(dump(made), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    again = load_recipe(path)
    assert again == made
    assert dump(again) == dump(made)


def test_options_of_nothing_survive_a_dump(recipe, tmp_path):
    made = recipe("teacher.options={drop: null, nested: {rate: null}}")
    (tmp_path / "again.yaml").write_text(dump(made), encoding="utf-8")
    assert load_recipe(tmp_path / "again.yaml").teacher.options == {"drop": None, "nested": {"rate": None}}


@pytest.mark.parametrize("name", builtin())
def test_built_in_recipes_are_valid_and_have_a_description(name):
    made = load_recipe(name)
    assert abs(sum(phase.share for phase in made.phases) - 1) < 1e-9
    assert builtin()[name].read_text(encoding="utf-8").startswith("# ")
    assert Path(made.teacher.model.rpartition(":")[0]).is_file()


def test_every_key_has_a_description_and_the_schema_is_json():
    schema = Recipe.model_json_schema()
    for name, section in [("Recipe", schema), *schema["$defs"].items()]:
        assert section["additionalProperties"] is False
        for key, field in section["properties"].items():
            assert field.get("description"), f"{name}.{key}"


def test_the_schema_accepts_what_is_accepted():
    """The built-in recipes, and the short forms; not what is out of range."""
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed")
    check = jsonschema.Draft202012Validator(Recipe.model_json_schema())
    for path in builtin().values():
        check.validate(yaml.safe_load(path.read_text(encoding="utf-8").replace("1e-4", "1.0e-4")))
    small = yaml.safe_load(SMALL)
    forms = {
        "data": ["pictures", {"train": "a", "test": "b", "validation": "10 %"}],
        "distill": [
            {"alpha": "85 %"},
            {"alpha": 0.85},
            {"terms": [{"loss": "hint", "student": "a", "teacher": ["b"]}]},
        ],
        "phases": [[{"name": "a", "share": "40 %", "alpha": "0 %"}, {"name": "b", "share": 0.6}]],
        "budget": [{"quality": "85 %", "size": "1 KB"}],
        "train": [{"lr_ramp": "5 %", "lr": 1}],
    }
    for key, values in forms.items():
        for value in values:
            check.validate(small | {key: value})
            validate(small | {key: value})
    for key, value in {"data": 3, "distill": {"alpha": 2}, "phases": [{"name": "a", "share": 0}]}.items():
        assert not check.is_valid(small | {key: value})
        with pytest.raises(UserError):
            validate(small | {key: value})


def test_a_recipe_cannot_be_changed(recipe):
    made = recipe()
    with pytest.raises(ValueError, match="frozen"):
        made.distill.alpha = 0.5


def test_the_losses_that_a_recipe_may_name_are_those_there_are():
    assert set(SOFT_LOSSES) == set(losses.SOFT_LOSSES)
    assert set(TERM_LOSSES) == set(losses.TERM_LOSSES)


def test_a_typo_is_refused_without_anything_heavy():
    script = (
        "import sys\n"
        "from edgestill.recipe import load_recipe\n"
        "from edgestill import UserError\n"
        "try: load_recipe('digits', ['distill.aplha=1'])\n"
        "except UserError: pass\n"
        "else: raise SystemExit('was taken')\n"
        "heavy = {'torch', 'numpy', 'datasets', 'onnx', 'onnxruntime', 'matplotlib'} & sys.modules.keys()\n"
        "print(sorted(heavy))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["bench.host=qemu-aarch64", "export=[openvino]", "budget={}"], "qemu-aarch64 checks ONNX files only"),
        (["quantize.keep_float=auto", "export=[onnx-int8-dynamic]"], "keep_float: spares layers in onnx-int8, .* none"),
        (
            ["phases=[{name: q, share: 1, fake_quantize: int8}]"],
            "phases.q: with no other phase the student needs weights",
        ),
        (
            ["phases=[{name: q, share: 0.5, fake_quantize: int8}, {name: f, share: 0.5}]"],
            "phases.q: fake_quantize is for the last phase",
        ),
        (
            [
                "phases=[{name: f, share: 0.9}, {name: q, share: 0.1, fake_quantize: int8}]",
                "export=[onnx, openvino-int8]",
            ],
            "phases.q: fake_quantize trains for onnx-int8, executorch-int8, litert-int8",
        ),
    ],
)
def test_files_and_phases_that_do_not_go_together_are_refused(overrides: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        load_recipe("digits", overrides)
