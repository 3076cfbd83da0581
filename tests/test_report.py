"""The report: everything of a run on one page that needs nothing else, for whole runs and for parts of one."""

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from edgestill import card, report
from edgestill.errors import UserError
from edgestill.evaluate.paired import retained
from edgestill.report import curves, eight_bits, words
from edgestill.words import summary
from synthetic_run import CLASSES, EVERY_FORMAT, LAYER_MAPS, LAYERS, STEPS, load_result, save_result, write_run


class Page(HTMLParser):
    """The visible text of a page, its tags, and every reference that it makes."""

    VOID = ("meta", "img", "br", "link", "wbr")

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.words: list[str] = []
        self.tags: list[str] = []
        self.references: list[str] = []
        self.labels: list[str] = []
        self.open: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        self.text = re.sub(r"\s+", " ", " ".join(self.words))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attributes:
            if name in ("src", "href", "xlink:href", "srcset", "action", "data", "poster"):
                self.references.append(value or "")
            if name == "aria-label":
                self.labels.append(re.sub(r"\s+", " ", value or ""))

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attributes)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.tags[-1:] == ["wbr"] and self.words[-1:] and self.words[-1].endswith("."):
            self.words[-1] += data
        elif self.open[-1:] != ["style"]:
            self.words.append(data)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("whole") / "run")


@pytest.fixture(scope="module")
def page(whole: Path) -> Page:
    return Page(report.write(whole))


def test_the_page_needs_nothing_beside_itself(whole: Path, page: Page) -> None:
    assert "script" not in page.tags
    assert "link" not in page.tags
    assert page.references
    assert all(reference.startswith(("data:image/png;base64,", "#")) for reference in page.references)
    text = (whole / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"@import|https?://|url\((?!#)", text)
    assert "default-src 'none'" in text


def test_it_is_written_into_the_run_folder_and_leaves_nothing_else(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    before = {path.name for path in run.iterdir()}
    assert report.write(run) == run / "report.html"
    assert {path.name for path in run.iterdir()} == before | {"report.html"}


def test_tags_are_closed_and_references_inside_the_page_lead_somewhere_unique(whole: Path, page: Page) -> None:
    assert page.open == []
    text = (whole / "report.html").read_text(encoding="utf-8")
    names = re.findall(r'\bid="([^"]+)"', text)
    assert len(names) == len(set(names))
    wanted = {*re.findall(r'href="#([^"]+)"', text), *re.findall(r"url\(#([^)]+)\)", text)}
    assert wanted <= set(names)


def test_the_headline_says_what_was_kept_gained_and_how_small_and_fast(page: Page) -> None:
    assert "kept of the teacher 93.6 %" in page.text  # (0.8805 - 0.1) / (0.9339 - 0.1)
    assert "gained over the baseline +2.0 points interval +1.4 to +2.6, over 3 seeds" in page.text
    assert "35× smaller" in page.text  # 3,474,218 / 98,496
    assert "12× faster" in page.text  # 3.21 / 0.271


def test_every_model_and_artifact_has_its_row(page: Page) -> None:
    assert "86.1 ± 0.2 %" in page.text
    assert "onnx onnxruntime 1.32.0 · 1 thread 88.0 % 93.5 % 100 % 3.1 × 10⁻⁶" in page.text
    assert "onnx-int8 onnxruntime 1.32.0 · 1 thread 87.6 % 93.1 % 97.31 % 0.73" in page.text
    assert "98.5 KB 0.271 0.284 0.347 720 KB" in page.text
    assert "graph optimisation on (onnx), graph optimisation off (onnx-int8)" in page.text


def test_samples_that_were_left_out_or_lost_their_end_are_counted(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    result = load_result(run)
    result["data"] |= {"skipped": {"train": 3}, "cut": {"train": 40, "test": 7}}
    save_result(run, result)
    told = Page(report.write(run)).text
    for line in ("left out of train 3", "cut in train 40", "cut in test 7"):
        assert line in told


def test_a_teacher_at_chance_leaves_nothing_to_be_kept(tmp_path: Path) -> None:
    result = load_result(write_run(tmp_path / "run"))
    result["arms"]["student"]["retained"] = retained(0.6, 0.5, 0.5)
    assert summary(result)[0].startswith("kept     nothing of a teacher at chance: ")


def test_every_limit_of_the_budget_has_its_verdict(page: Page) -> None:
    assert "Budget missed: quality judged on onnx-int8" in page.text
    assert "Size 98.5 KB at most 120 KB: met" in page.text
    assert "Latency, p50 0.271 ms at most 2 ms: met" in page.text
    assert "Quality 87.6 % at least 88.0 %: missed" in page.text


def test_every_plot_is_there_and_is_described_in_words(page: Page) -> None:
    plots = [label.split(".")[0] for label in page.labels if ". " in label]
    assert plots == [
        "Accuracy against size",
        "Accuracy against latency",
        "Validation quality, a line a seed",
        "Loss of the student by part, weighted, seed 0",
        "The schedule and its phases",
        "hint: auto",
        "Accuracy by class",
        "Kept and lost: the student against the teacher",
    ]


def test_every_layer_map_has_its_pairs_and_a_measured_one_its_heat_map(page: Page) -> None:
    assert (
        "Pairs of hint: auto student tap teacher tap similarity "
        "layer1 layer1.4 0.77 layer2 layer2.4 0.78 layer3 layer3.8 0.83"
    ) in page.text
    assert "Linear CKA on 512 samples; framed: the pairs." in page.text
    assert "attention_transfer: depth student tap teacher tap layer1 layer1 layer2 layer2 layer3 layer3" in page.text
    assert "hint: auto. layer1 from layer1.4, similarity 0.77; layer2 from layer2.4, similarity 0.78; " in "".join(
        page.labels
    )
    assert "0.19" in page.text  # of a pair that was not chosen: only its cell says so


def with_maps(run: Path, *entries: dict[str, object]) -> Page:
    save_result(run, {**load_result(run), "layer_maps": list(entries)})
    return Page(report.write(run))


def test_losses_with_one_map_share_its_picture_and_losses_with_two_have_two(tmp_path: Path) -> None:
    run, hint = write_run(tmp_path / "run"), LAYER_MAPS[0]
    transfer = {**hint, "loss": "my/losses.py:transfer"}
    page = with_maps(run, hint, transfer)
    assert page.text.count("Pairs of") == 1
    assert "Pairs of hint, transfer: auto" in page.text
    page = with_maps(run, hint, {**transfer, "pairs": [["layer1", "layer1.0"]]})
    assert page.text.count("Pairs of") == 2


def test_a_result_without_layer_maps_has_no_room_for_them(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    heading = "Which layer learned from which"
    assert heading in Page(report.write(run)).text
    assert heading not in with_maps(run).text
    save_result(run, {key: value for key, value in load_result(run).items() if key != "layer_maps"})
    assert heading not in Page(report.write(run)).text


def test_many_taps_with_long_and_evil_names_and_unmeasured_cells_are_drawn(tmp_path: Path) -> None:
    evil = "<script>$x$</script>"
    student = [f"{evil}.encoder.layer.{place}.attention.output" for place in range(12)]
    teacher = [f"vit.encoder.layer.{place}.attention.output.dense" for place in range(24)]
    similarity = [[None if row == 3 else row * column / 400 for column in range(24)] for row in range(12)]
    entry = {"loss": "hint", "map": "auto", "student": student, "teacher": teacher, "similarity": similarity,
             "pairs": [[student[row], teacher[2 * row]] for row in range(12)], "samples": 64}  # fmt: skip
    page = with_maps(write_run(tmp_path / "run"), entry)
    assert page.open == []
    assert "script" not in page.tags
    assert f"Taps: student {evil}.encoder.layer.*.attention.output, teacher vit.encoder.layer.*." in page.text
    assert f"{student[2]} {teacher[4]} 0.02 {student[3]} {teacher[6]} –" in page.text


@pytest.mark.parametrize("change", [{"similarity": [[0.5]]}, {"similarity": []}, {"student": [], "teacher": []}])
def test_a_similarity_that_does_not_fit_its_taps_is_not_drawn(tmp_path: Path, change: dict[str, object]) -> None:
    page = with_maps(write_run(tmp_path / "run"), {**LAYER_MAPS[0], **change})
    assert "hint: auto student tap teacher tap layer1 layer1.4 layer2 layer2.4" in page.text


def test_accuracy_by_class_counts_what_was_kept_lost_and_gained(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", classes=("cat", "dog"))
    labels = np.array([0, 0, 0, 0, 1, 1, -1])
    teacher, student = np.array([0, 0, 0, 1, 1, 0, 0]), np.array([0, 0, 1, 1, 1, 1, 1])
    np.savez(run / "predictions.npz", labels=labels, teacher=_sure(teacher), student=_sure(student))
    (run / "examples.npz").unlink()
    text = Page(report.write(run)).text
    assert "cat 4 75.0 % 50.0 % 25.0 % 0.0 % −25.0" in text
    assert "dog 2 50.0 % 100.0 % 0.0 % 50.0 % +50.0" in text


def _sure(answers: np.ndarray) -> np.ndarray:
    return np.where(np.arange(2) == answers[:, None], 0.9, 0.1).astype(np.float32)


def test_the_examples_show_the_true_class_and_both_answers(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", classes=("cat", "dog"))
    np.savez(run / "predictions.npz", labels=np.array([1, 0]), teacher=_sure(np.array([1, 0])),
             student=_sure(np.array([0, 0])))  # fmt: skip
    np.savez(run / "examples.npz", pixels=np.full((1, 8, 8, 1), 7, np.uint8), indices=np.array([0]))
    page = Page(report.write(run))
    assert page.tags.count("img") == 1
    assert "dog #0 teacher: dog 90 % ✓ student: cat 90 % ✗" in page.text


def test_words_from_the_run_are_text_and_never_markup(tmp_path: Path) -> None:
    evil = '<script>alert("$x$")</script>&'
    run = write_run(tmp_path / "run", classes=(evil, *CLASSES[1:]))
    result = load_result(run)
    result["recipe"] = evil
    result["artifacts"][0]["name"] = evil
    save_result(run, result)
    (run / "recipe.yaml").write_text(f"# {evil}\n")
    (run / "environment.json").write_text(json.dumps({evil: {evil: evil}}))
    page = Page(report.write(run))
    assert "script" not in page.tags
    assert page.text.count(evil) >= 6


def test_letters_of_any_alphabet_are_drawn_without_a_warning(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", classes=("猫", "собака", "كلب"))
    assert "猫" in report.write(run).read_text(encoding="utf-8")


@pytest.mark.parametrize("missing", ["recipe.yaml", "environment.json", "metrics.jsonl", "predictions.npz",
                                     "examples.npz", "result.json"])  # fmt: skip
def test_a_run_without_one_of_its_files_has_a_report(tmp_path: Path, missing: str) -> None:
    run = write_run(tmp_path / "run")
    (run / missing).unlink()
    assert "edgestill report" in Page(report.write(run)).text


@pytest.mark.parametrize(
    "missing", ["teacher", "student arms", "artifacts phases seconds", "budget schedule data", "classes metric recipe"]
)
def test_a_result_without_some_of_its_keys_has_a_report(tmp_path: Path, missing: str) -> None:
    run = write_run(tmp_path / "run", seeds=1)
    save_result(run, {key: value for key, value in load_result(run).items() if key not in missing.split()})
    assert Page(report.write(run)).open == []


def test_a_run_that_has_just_begun_says_so(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("task: image-classification\n")
    (tmp_path / "metrics.jsonl").write_text('{"arm": "student", "seed": 0, "step": 0, "loss": NaN, "parts"')
    text = Page(report.write(tmp_path)).text
    assert "This run has no result yet" in text
    assert "No training has been logged" in text


def test_an_interrupted_run_says_so_and_that_nothing_was_exported(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", artifacts=False)
    save_result(run, {**load_result(run), "status": "interrupted"})
    text = Page(report.write(run)).text
    assert "This run was interrupted" in text
    assert "No artifact has been exported in this run yet." in text
    assert "Budget" not in text


def test_one_seed_has_no_interval_and_a_run_without_baseline_no_difference(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", seeds=1)
    result = load_result(run)
    assert "one seed, so no interval" in Page(report.write(run)).text
    del result["arms"]["baseline"], result["arms"]["student"]["difference"]
    save_result(run, result)
    assert "baseline +" not in Page(report.write(run)).text


def test_an_interval_around_zero_claims_no_difference(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    result = load_result(run)
    result["arms"]["student"]["difference"].update(mean=0.001, interval=[-0.004, 0.006])
    save_result(run, result)
    assert "interval −0.4 to +0.6, over 3 seeds; it includes zero" in Page(report.write(run)).text


def test_where_lower_is_better_the_gap_stands_for_the_retained_share(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    result = load_result(run)
    result["metric"] = {"name": "perplexity", "higher_is_better": False, "chance": None}
    result["teacher"] |= {"quality": 12.0, "validation_quality": 11.8}
    result["arms"]["baseline"].update(mean=16.5, std=0.1)
    result["arms"]["student"].update(mean=14.25, std=0.1)
    result["arms"]["student"]["difference"].update(mean=-2.25, interval=[-2.5, -2.0])
    for artifact in result["artifacts"]:
        artifact["quality"] = 14.5
    result["budget"]["quality"] = {"limit": 15.0, "value": 14.5, "met": True}
    save_result(run, result)
    text = Page(report.write(run)).text
    assert "gap to the teacher +2.25 perplexity" in text
    assert "gained over the baseline −2.25 perplexity interval −2.5 to −2" in text
    assert "Quality 14.5 at most 15: met" in text


def test_the_same_folder_gives_the_same_bytes(tmp_path: Path, whole: Path) -> None:
    first = report.write(whole).read_bytes()
    again = report.write(write_run(tmp_path / "another name")).read_bytes()
    assert first == again


def test_a_folder_that_is_no_run_is_refused_and_left_alone(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="needs a run folder"):
        report.write(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_writing_a_report_imports_no_torch_and_no_pyplot(whole: Path) -> None:
    program = (
        "import sys; from edgestill import report; assert 'matplotlib' not in sys.modules; "
        "report.write(sys.argv[1]); print(sorted({'torch', 'matplotlib.pyplot'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program, str(whole)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_teacher_that_knew_the_validation_images_is_remarked(tmp_path):
    run = write_run(tmp_path)
    result = load_result(run)
    result["teacher"] |= {"quality": 0.9, "validation_quality": 0.91}
    save_result(run, result)
    assert "trained on these validation images" not in report.write(run).read_text()
    result["teacher"]["validation_quality"] = 0.99
    save_result(run, result)
    assert "trained on these validation images" in report.write(run).read_text()


@pytest.fixture(scope="module")
def every_format(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("every") / "run", every_format=True)


@pytest.fixture(scope="module")
def full_page(every_format: Path) -> Page:
    return Page(report.write(every_format))


def test_float_and_both_ways_to_8_bits_stand_side_by_side_for_each_format(full_page: Page) -> None:
    assert (
        "onnx float 88.01 % – 100 % – 318 KB 0.13 dynamic 87.61 % −0.40 98.02 % – 101 KB 0.34 "
        "post-training 87.42 % −0.59 97.31 % 99.91 % 98.5 KB 0.085 "
        "quantization-aware 87.97 % −0.04 97.68 % 99.91 % 98.5 KB 0.084 executorch float"
    ) in full_page.text
    assert (
        "openvino post-training only float 88.01 % – 100 % – 361 KB 0.15 post-training 87.59 % −0.42" in full_page.text
    )
    assert full_page.text.count("post-training only") == 2  # and litert


def test_a_difference_in_8_bits_is_to_the_float_file_of_the_same_format(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", every_format=True)
    result = load_result(run)
    of = {artifact["name"]: artifact for artifact in result["artifacts"]}
    of["litert"]["quality"] = 0.8741
    result["artifacts"].remove(of["executorch"])
    found = {group["name"]: group for group in eight_bits.formats(result, words.metric(result))}
    assert [row["difference"] for row in found["litert"]["rows"]] == ["–", "−0.10"]
    assert [row["difference"] for row in found["executorch"]["rows"]] == ["–", "–"]
    assert found["executorch"]["note"] == "no float file to compare with"


def test_a_run_without_8_bits_has_no_room_for_them(tmp_path: Path, page: Page) -> None:
    assert "In 8 bits" not in page.text
    run = write_run(tmp_path / "run", every_format=True)
    result = load_result(run)
    result["artifacts"] = [artifact for artifact in result["artifacts"] if not artifact["quantized"]]
    del result["quantization"], result["quantized"]
    save_result(run, result)
    text = Page(report.write(run)).text
    assert "In 8 bits" not in text
    assert "in 8 bits" not in text


def test_files_in_8_bits_without_measured_layers_have_their_table_alone_and_layers_their_bars(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", every_format=True)
    result = load_result(run)
    save_result(run, {key: value for key, value in result.items() if key != "quantization"})
    text = Page(report.write(run)).text
    assert "What 8 bits cost each format" in text
    assert "The layers that lose most" not in text
    save_result(run, {**result, "artifacts": [], "budget": {}})
    text = Page(report.write(run)).text
    assert "What 8 bits cost each format" not in text
    assert "The layers that lose most in 8 bits" in text


def test_the_layers_that_lose_most_are_drawn_the_worst_first_and_the_rest_counted(full_page: Page) -> None:
    said = next(label for label in full_page.labels if label.startswith("The layers that lose most"))
    assert "bits. conv1 0.021 (in float), fc 0.0061, layer1.0.conv1 9.8 × 10⁻⁴, " in said
    assert said.count(", ") == eight_bits.SHOWN - 1
    left = len(LAYERS) - eight_bits.SHOWN
    assert f"{left} more layers are not drawn, of 2.2 × 10⁻⁷ at most." in full_page.text
    assert "KL divergence to the float student, in nats, mean on 300 training images." in full_page.text
    assert "0.021 · in float" in full_page.text


@pytest.mark.parametrize(
    ("kept", "automatic", "said"),
    [
        (["fc", "conv1"], True, "Kept in float, chosen automatically: fc, conv1."),
        (["fc"], False, "Kept in float, as the recipe asks: fc."),
        ([], True, "None had to be kept in float, which was decided automatically."),
        ([], False, "None is kept in float."),
    ],
)
def test_which_layers_stay_in_float_is_said_and_who_chose_them(kept: list[str], automatic: bool, said: str) -> None:
    layers = [{"layer": "conv1", "divergence": -1e-12}, {"layer": "fc", "divergence": 0.0}]
    plot = eight_bits.layer_losses({"quantization": {"layers": layers, "kept_float": kept, "automatic": automatic}})
    assert plot is not None
    assert plot.note.endswith(said)
    assert ("in float" in plot.svg) == bool(kept)


def test_relative_latency_throughput_and_their_host_are_told(full_page: Page) -> None:
    assert (
        "onnx-int8 onnxruntime 1.32.0 · 1 thread 88.0 % 93.5 % 97.68 % 0.81 – – 98.5 KB 0.271 0.282 0.328 0.084 5,166"
        in (full_page.text)
    )
    assert "Throughput: in batches of 32 (onnx, executorch, openvino), one by one (litert)." in full_page.text
    assert "were measured on user@pi (Raspberry Pi 4 Model B Rev 1.4, aarch64)." in full_page.text
    assert "latency of one sample on user@pi, p50" in full_page.text
    assert "1 thread on user@pi" in full_page.text


def test_speed_is_that_over_the_teacher_in_the_runtime_of_the_file(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", every_format=True)
    result = load_result(run)
    result["budget"]["artifact"] = "litert-int8"
    save_result(run, result)
    text = Page(report.write(run)).text
    assert "12× faster 0.388 ms a sample, the teacher 4.48 ms" in text  # 0.388 / 0.0866, not onnxruntime's 3.21


def test_energy_and_emulated_arm_are_told_only_where_they_were_measured(tmp_path: Path, full_page: Page) -> None:
    assert "On an emulated ARM processor (onnxruntime 1.32.0), agreement with this host’s answers on 200 images: " in (
        full_page.text
    )
    assert "onnx-int8 100 % (max error 0.0021)" in full_page.text
    assert "mJ/sample" not in full_page.text
    run = write_run(tmp_path / "run")
    result = load_result(run)
    result["artifacts"][1]["energy_mj"] = 1.23
    save_result(run, result)
    text = Page(report.write(run)).text
    assert "emulated" not in text
    assert "memory energy" in text
    assert "720 KB 1.23" in text


def test_many_files_have_plots_of_their_own_and_a_key_instead_of_names(full_page: Page) -> None:
    told = {label.split(".")[0]: label for label in full_page.labels if label.startswith("Accuracy against")}
    assert list(told) == [
        "Accuracy against size", "Accuracy against latency", "Accuracy against size, the files",
        "Accuracy against latency, the files",
    ]  # fmt: skip
    assert "teacher 3.47 MB" in told["Accuracy against size"]
    assert "litert" not in told["Accuracy against size"]
    assert "teacher" not in told["Accuracy against size, the files"]
    names = [name for name, *_ in EVERY_FORMAT]
    assert all(f"{name} " in told["Accuracy against size, the files"] for name in names)
    assert " ".join(names) in full_page.text


def test_no_two_of_many_files_look_alike() -> None:
    artifacts = [{"name": name, "format": name.partition("-")[0], "precision": precision, "quantized": how}
                 for name, precision, how, *_ in EVERY_FORMAT]  # fmt: skip
    looks = words.roles(artifacts)
    assert len({looks[artifact["name"]] for artifact in artifacts}) == len(artifacts)
    assert {looks[name].marker for name in ("onnx", "onnx-int8", "onnx-int8-post", "onnx-int8-dynamic")} == {"D"}
    assert looks["executorch-int8"].colour == looks["onnx-int8"].colour != looks["onnx-int8-post"].colour


def test_the_phase_for_8_bits_is_drawn_behind_the_students_training(every_format: Path, full_page: Page) -> None:
    assert "student in 8 bits seed 0 88.5 %" in "".join(full_page.labels)
    lines = [{"arm": arm, "seed": 0, "step": 40} for arm in ("student", "quantized")]
    assert [line["step"] for line in curves._run_on(lines, {"after": STEPS})] == [40, STEPS + 40]
    assert [line["arm"] for line in curves._run_on(lines, {})] == ["student"]
    loss = next(label for label in full_page.labels if label.startswith("Loss of the student"))
    assert "soft from 6.7 to 1.11" in loss  # to the mean of the last two of the phase for 8 bits: 0.9 · 1.23
    assert "nan" not in loss


def test_a_training_that_collapsed_is_inside_its_plot() -> None:
    values = [0.5, *[0.97] * 20, 0.1, 0.1]
    for higher in (True, False):
        of = words.Metric("quality", higher, 0.0, higher)
        heights = values if higher else [-value for value in values]
        low, high = curves._window(heights, [heights[20], heights[-1]], None, of)
        assert low < min(heights) < max(heights) < high
        low, high = curves._window(heights[:-2], [heights[20]], None, of)
        assert not low < heights[0] < high  # the steep beginning


def test_a_run_interrupted_in_its_phase_for_8_bits_has_a_report(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", every_format=True)
    result = {**load_result(run), "status": "interrupted", "artifacts": [], "budget": {}}
    del result["quantized"], result["bench"]
    save_result(run, result)
    page = Page(report.write(run))
    assert page.open == []
    assert "student in 8 bits seed" not in "".join(page.labels)


def test_the_model_card_tells_how_each_file_was_made_and_where_it_was_timed(every_format: Path, whole: Path) -> None:
    needed = {"date": "2026-11-22", "licences": {}}
    results = [{**load_result(run), **needed} for run in (every_format, whole)]
    for result in results:
        result["student"]["options"] = {}
    full, plain = map(card.write, results)
    assert (
        "| exports/litert-int8/student.litert | int8, post-training | ai-edge-litert 2.3.0 | 87.31 % | 96.90 % "
        "| 97,200 | 0.388 | 0.087 |"
    ) in full
    assert "Latency was measured on user@pi." in full
    assert "| exports/model.onnx | float32 | onnxruntime 1.32.0 | 88.01 % | 100.00 % | 318,144 | 0.412 | – |" in plain
    assert "was measured on" not in plain
    results[0]["budget"]["artifact"] = "litert-int8"
    assert "exports/litert-int8/student.litert: 87.31 % accuracy, agrees" in card.write(results[0])
    assert "11.5 times faster than the teacher" in card.write(results[0])
