"""A finished CIFAR-10 run and its teacher in every format, beside MLPerf Tiny's reference files: one dated table.

python benchmarks/device.py --data my/cifar10 --weights my/resnet56.safetensors --reference my/mlperf_tiny
python benchmarks/device.py RUN     writes the page of a run that is there

RUN is the folder of the recipe cifar10-resnet8 with every format in `export` and a last phase with
`fake_quantize: int8`. Quality of student and reference files is over the whole test set, of the teacher's files over
evenly spaced images of it (they are slow). Latencies are of one call of `bench`: all files take turns.
"""

import argparse
import json
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch

import edgestill as es
from edgestill import deliver, progress, quantization
from edgestill.assemble import Job, assemble
from edgestill.bench.host import Artifact, bench
from edgestill.data.images import spaced
from edgestill.export.formats import FORMATS, Format
from edgestill.export.verify import opened
from edgestill.recipe import load_recipe
from edgestill.runtimes.measure import artifact_files, hardware
from edgestill.words import percent, points

RESULTS = Path(__file__).parent / "results"
LATENCY_IMAGES = 200
RESAMPLES = 10_000
PHASES = (
    "phases=[{name: warmup, share: 0.2, order: easiest-first}, {name: distill, share: 0.5}, "
    "{name: finetune, share: 0.2, alpha: 0, terms: []}, {name: quantize, share: 0.1, fake_quantize: int8}]"
)
REFERENCES = {"float32": "pretrainedResnet.tflite", "int8": "pretrainedResnet_quant.tflite"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, nargs="?")
    parser.add_argument("--data", default="../shared/data/cifar10")
    parser.add_argument("--weights", default="../shared/weights/cifar10_resnet/resnet56.safetensors")
    parser.add_argument("--reference", type=Path, default=Path("../shared/weights/mlperf_tiny"))
    parser.add_argument("--teacher-images", type=int, default=2000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    run = options.run or Path("runs/device")
    if options.run is None:
        sets = [f"data={options.data}", f"teacher.weights={options.weights}", f"export=[{', '.join(FORMATS)}]", PHASES]
        es.run(es.load_recipe("cifar10-resnet8", sets), run)
    job = assemble(load_recipe(run / "recipe.yaml"), progress.track)
    result = json.loads((run / "result.json").read_text())
    with tempfile.TemporaryDirectory() as folder:
        rows = table(job, result, run, options, Path(folder))
    date = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    page = "\n".join([*head(job, result, run, options, date), *rows, *intervals(result, run)]) + "\n"
    (RESULTS / f"{date[:10]}-device.md").write_text(page)
    print(page)


def head(job: Job, result: dict, run: Path, options: argparse.Namespace, date: str) -> list[str]:
    here, environment = hardware(), json.loads((run / "environment.json").read_text())
    test, versions = len(job.splits.test.labels), environment["versions"]
    return [
        f"# ResNet-8, its teacher and MLPerf Tiny's files, in every runtime, {date}",
        "",
        f"Hardware: {here['cpu']}, {here['cores']} cores; one thread; all latencies of one interleaved bench.  ",
        f"Code: commit {environment['git_commit']}, torch {versions['torch']}.  ",
        f"In PyTorch: student {percent(result['arms']['student']['mean'])}, "
        f"teacher {percent(result['teacher']['quality'])}.",
        "",
        f"CIFAR-10's test set: {test:,} images for the student's and the reference files, {options.teacher_images:,} "
        "evenly spaced ones for the teacher's. Agreement is with the float PyTorch model, of the student's files over "
        "the run's `verify.samples`. Static int8 ONNX files are scored with graph optimisation off for the student, on "
        "for the teacher. The latency ratio is p50 over that of the float teacher in the same runtime. `-post` is "
        "post-training, beside the file that a phase trained in 8 bits.",
        "",
        "| file | bytes | accuracy | images | agreement | p50 ms | latency ratio | p50 over MLPerf int8 |",
        "|---|---|---|---|---|---|---|---|",
    ]


def table(job: Job, result: dict, run: Path, options: argparse.Namespace, folder: Path) -> list[str]:
    labels = job.splits.test.labels
    files: dict[str, tuple[Format, Path]] = {}
    scores: dict[str, tuple[float, int, str]] = {}
    for artifact in result["artifacts"]:
        name = f"student {artifact['name']}"
        files[name] = (deliver.format_of(artifact["name"]), run / artifact["path"])
        scores[name] = (artifact["quality"], len(labels), percent(artifact["agreement"]))
    places = spaced(len(labels), options.teacher_images)
    images = job.splits.test.inputs(places, job.teacher.input)
    with torch.no_grad():
        module = job.teacher.module.eval()
        in_torch = torch.cat([module(rows) for rows in torch.from_numpy(images).split(250)]).argmax(1).numpy()
    for format_, path in teachers(job, folder).items():
        files[f"teacher {format_}"] = (FORMATS[format_], path)
        found = predicted(FORMATS[format_], path, images).argmax(1)
        quality, agreement = float((found == labels[places]).mean()), float((found == in_torch).mean())
        scores[f"teacher {format_}"] = (quality, len(places), percent(agreement))
    # Channels last, 0…255: the int8 file's own scale and zero point make pixel − 128 of it.
    pixels = job.splits.test.images.pixels[np.arange(len(labels))].astype(np.float32)
    for precision, file in REFERENCES.items():
        name, path = f"MLPerf Tiny {precision}", options.reference / file
        files[name] = (FORMATS["litert"], path)
        right = predicted(FORMATS["litert"], path, pixels).argmax(1) == labels
        scores[name] = (float(right.mean()), len(labels), "")
    some = spaced(len(labels), LATENCY_IMAGES)
    kinds = {
        "student": job.splits.test.inputs(some, job.student(0).input),
        "teacher": job.splits.test.inputs(some, job.teacher.input),
        "MLPerf": pixels[some],
    }
    samples = {name: kinds[name.split()[0]] for name in files}
    artifacts = {}
    for name, (kind, path) in files.items():
        empty = folder / f"empty-{samples[name].shape[-1]}-{kind.backend}{kind.suffix}"
        deliver.BACKENDS[kind.backend].write_empty(empty, torch.from_numpy(samples[name][:1]))
        artifacts[name] = Artifact(path, kind.runtime_file, empty, kind.torch, kind.batched)
    measured = bench(artifacts, samples, track=progress.track)
    lines = []
    for name, (quality, count, agreement) in scores.items():
        kind, path = files[name]
        p50, teacher = measured[name].p50, measured[f"teacher {kind.backend}"].p50
        size = sum(file.stat().st_size for file in artifact_files(path))
        lines.append(
            f"| {name} | {size:,} | {percent(quality)} | {count:,} | {agreement} | {p50 * 1e3:.3f} "
            f"| {p50 / teacher:.3f} | {p50 / measured['MLPerf Tiny int8'].p50:.2f} |"
        )
    return [*lines, "", f"Runtimes: {', '.join(dict.fromkeys(m.runtime for m in measured.values()))}.", ""]


def intervals(result: dict, run: Path) -> list[str]:
    answers = np.load(run / "predictions.npz")
    right = {name: answers[name].argmax(1) == answers["labels"] for name in answers if name != "labels"}
    lines = ["Paired differences of accuracy over the test images, in points, with 95 % bootstrap intervals:", ""]
    lines += ["| file | minus float | minus post-training |", "|---|---|---|"]
    for artifact in result["artifacts"]:
        name, post = artifact["name"], artifact["name"] + deliver.POST
        if artifact["precision"] == "int8":
            trained = difference(right[name], right[post]) if post in right else ""
            lines.append(f"| {name} | {difference(right[name], right[artifact['format']])} | {trained} |")
    return lines


def teachers(job: Job, folder: Path) -> dict[str, Path]:
    """The teacher as a file of each format, its 8 bits calibrated as the student's."""
    student = deliver.Student(
        job.teacher,
        quantization.post_training(job, job.teacher, ()),
        calibration=torch.cat(quantization.calibration(job, job.teacher)).numpy(),
    )
    return {
        name: path
        for name, path in deliver.make_artifacts(job, student, folder, progress.track).items()
        if not name.endswith(deliver.POST)
    }


def predicted(kind: Format, path: Path, images: np.ndarray) -> np.ndarray:
    with opened(path, kind.runtime_file, 1, True, kind.torch) as answer:
        return np.concatenate([answer(rows, 100) for rows in np.array_split(images, -(-len(images) // 500))])


def difference(mine: np.ndarray, other: np.ndarray) -> str:
    """Mean and 95 % interval of paired right answers, in points."""
    paired = mine.astype(float) - other
    draws = np.random.default_rng(0).multinomial(len(paired), np.full(len(paired), 1 / len(paired)), size=RESAMPLES)
    low, high = np.quantile(draws @ paired / len(paired), (0.025, 0.975))
    return f"{points(paired.mean())} [{points(low)}, {points(high)}]"


if __name__ == "__main__":
    main()
