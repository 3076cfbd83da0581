"""From the trained student to its files: export, verify, evaluate, bench, and the budget's verdict.

N samples, C channels, H height, W width, K classes.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgestill.assemble import Job, cpu_threads
from edgestill.bench.host import bench
from edgestill.data.images import Images, spaced
from edgestill.evaluate.classification import accuracy, inputs, logits
from edgestill.export.onnx import export, quantize_int8
from edgestill.export.verify import verify
from edgestill.models import ImageInput, Model, example, plain_logits
from edgestill.runtimes import onnx_runtime
from edgestill.train import Track
from edgestill.units import parse_bytes, parse_seconds

CALIBRATION_SAMPLES = 300
VERIFY_SAMPLES = 1000
BENCH_SAMPLES = 200


def make_artifacts(job: Job, student: Model, out: Path, track: Track) -> dict[str, Path]:
    """Writes the recipe's artifacts to exports/: name -> file."""
    (out / "exports").mkdir(exist_ok=True)
    made: dict[str, Path] = {}
    for name in track(job.recipe.export, "exporting", len(job.recipe.export)):
        float_file = _float_file(job, out)
        if not made:
            export(plain_logits(student.module), example(student.input, 1), float_file)
        if name == "onnx":
            made[name] = float_file
        else:
            rows = np.random.default_rng(0).permutation(len(job.splits.train.labels))[:CALIBRATION_SAMPLES]
            made[name] = out / "exports" / "student-int8.onnx"
            quantize_int8(float_file, inputs(job.splits.train, np.sort(rows), student.input), made[name])
    return made


def _float_file(job: Job, out: Path) -> Path:
    """The float file: an artifact where the recipe asks for it, else only what int8 is made from."""
    return out / ("exports" if "onnx" in job.recipe.export else "arms") / "student.onnx"


def describe_artifacts(
    job: Job, student: Model, made: dict[str, Path], out: Path, track: Track
) -> tuple[list[dict[str, Any]], dict[str, NDArray[np.float32]]]:
    """Verifies each artifact against the student and scores it on the test set: descriptions, and logits [N, K]."""
    samples = _real_inputs(job, student.input, VERIFY_SAMPLES)
    threads = job.recipe.budget.threads
    described, answers = [], {}
    for name, path in track(made.items(), "verifying, evaluating", len(made)):
        quantized = name.endswith("int8")
        parity = verify(path, plain_logits(student.module), samples, threads=threads, optimize=not quantized)
        predict = onnx_runtime.load(path, threads=cpu_threads(job.recipe), optimize=not quantized)
        answers[name] = logits(predict, job.splits.test, student.input)
        described.append(
            {
                "name": name,
                "format": "onnx",
                "precision": "int8" if quantized else "float32",
                "path": str(path.relative_to(out)),
                "bytes": path.stat().st_size,
                "quality": accuracy(answers[name], job.splits.test.labels),
                **asdict(parity),
                # without 8-bit dot products, x86's fused int8 kernels saturate and answer otherwise than a device
                "quality_measured": "graph optimisation off" if quantized else "graph optimisation on",
            }
        )
    return described, answers


def bench_artifacts(
    job: Job, student: Model, made: dict[str, Path], out: Path, track: Track
) -> dict[str, dict[str, Any]]:
    """Latency, memory and bytes of the artifacts, of the float student and of the teacher in the same runtime,
    interleaved: name -> what result.json holds."""
    teacher_file = out / "arms" / "teacher.onnx"
    if not teacher_file.is_file():
        export(plain_logits(job.teacher.module), example(job.teacher.input, 1), teacher_file)
    files = {"teacher": teacher_file, "student": _float_file(job, out)}
    files |= {name: path for name, path in made.items() if name != "onnx"}
    samples = {name: _real_inputs(job, student.input, BENCH_SAMPLES) for name in files}
    samples["teacher"] = _real_inputs(job, job.teacher.input, BENCH_SAMPLES)
    measured = bench(files, samples, threads=job.recipe.budget.threads, track=track)
    if "onnx" in made:  # the same file
        measured["onnx"] = measured["student"]
    return {
        name: {
            "bytes": m.bytes,
            "latency_ms": {"p50": m.p50 * 1e3, "p90": m.p90 * 1e3, "p99": m.p99 * 1e3},
            "load_seconds": m.load_seconds,
            "peak_memory_bytes": m.peak_memory_bytes,
            "runtime": m.runtime,
            "threads": m.threads,
            "repeats": m.repeats,
        }
        for name, m in measured.items()
    }


def verdict(job: Job, artifacts: list[dict[str, Any]]) -> dict[str, Any]:
    """The budget's verdict a limit, of the artifact that misses the limits by least; the smallest among equals,
    so that nothing is chosen by its quality on the test set."""
    budget = job.recipe.budget
    limits: dict[str, tuple[float, Any]] = {}
    if budget.size is not None:
        limits["size"] = (parse_bytes(budget.size), lambda a: a["bytes"])
    if budget.latency is not None:
        limits["latency"] = (parse_seconds(budget.latency), lambda a: a["latency_ms"]["p50"] / 1e3)
    if budget.memory is not None:
        limits["memory"] = (parse_bytes(budget.memory), lambda a: a["peak_memory_bytes"])
    if budget.quality is not None:
        limits["quality"] = (budget.quality, lambda a: a["quality"])

    def judge(artifact: dict[str, Any]) -> dict[str, dict[str, Any]]:
        judged = {}
        for name, (limit, read) in limits.items():
            value = read(artifact)
            met = value >= limit if name == "quality" else value <= limit
            judged[name] = {"limit": limit, "value": value, "met": bool(met)}
        return judged

    def missed_by(judged: dict[str, dict[str, Any]]) -> float:
        """How far the limits are missed, each relative to itself."""
        return sum(
            float(abs(v["value"] - v["limit"]) / max(v["limit"], 1e-12)) for v in judged.values() if not v["met"]
        )

    chosen, judged = min(
        ((artifact, judge(artifact)) for artifact in artifacts),
        key=lambda pair: (missed_by(pair[1]), pair[0]["bytes"]),
    )
    return {"met": all(v["met"] for v in judged.values()), "artifact": chosen["name"], **judged}


def _real_inputs(job: Job, expected: ImageInput, count: int) -> NDArray[np.float32]:
    """`count` real images, from the test split on: float32 [N, C, H, W]."""
    parts: list[NDArray[np.float32]] = []
    for images in (job.splits.test, job.splits.validation, job.splits.train):
        left = count - sum(len(part) for part in parts)
        if left > 0:
            parts.append(_some(images, expected, left))
    return np.concatenate(parts)


def _some(images: Images, expected: ImageInput, count: int) -> NDArray[np.float32]:
    """Evenly spaced: a folder's images come class by class."""
    return inputs(images, spaced(len(images.labels), count), expected)
