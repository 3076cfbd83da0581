"""From the trained student to its files: export, verify, evaluate, bench.

N samples, C channels, H height, W width, K classes.
"""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.fx import GraphModule

from edgestill.assemble import Job, cpu_threads
from edgestill.bench import emulated
from edgestill.bench.host import Artifact, Measurement, bench
from edgestill.bench.remote import bench_remote, reach
from edgestill.data.images import spaced
from edgestill.errors import UserError, first_line
from edgestill.evaluate.embeddings import RANK_CORRELATION
from edgestill.evaluate.tokens import BITS_PER_BYTE
from edgestill.export import device, executorch, formats, litert, onnx, openvino
from edgestill.export.device import BACKENDS
from edgestill.export.formats import FORMATS, Format
from edgestill.export.program import UnsupportedOperator, module_with
from edgestill.export.verify import Parity, artifact_outputs, module_outputs, opened, outputs, parity, together
from edgestill.models import Expected, ImageInput, Model, example, in_float32, plain_logits
from edgestill.quantize.integer import integer
from edgestill.recipe import EMULATED, RUNTIMES, Recipe
from edgestill.runtimes.measure import artifact_files, hardware
from edgestill.tasks.images import ImageSamples
from edgestill.train import Track

BENCH_SAMPLES = 200
EMULATED_SAMPLES = 200
MOST_SAME = 16  # texts of a language model that files are at least compared on
SHORTEST = " at the shortest length"
POST = "-post"
"""Behind the name of a format: the same file by post-training, beside the one that a quantize phase trained."""
BATCHES = (1, 64)


@dataclass(frozen=True)
class Student:
    """What files are made of: the float student, and in 8 bits as calibrated alone and as trained (None where no
    format, or no phase, asks for it)."""

    model: Model
    calibrated: GraphModule | None = None
    trained: GraphModule | None = None
    calibration: NDArray[np.float32] | None = None


def check(job: Job) -> None:
    """Refuses, before any training, what would fail behind it: a student, or a teacher, with which latency is compared,
    of which a format's file cannot be made; another host that cannot be measured on."""
    models = {"student": job.student(0), "teacher": job.teacher}
    with tempfile.TemporaryDirectory() as folder:
        for backend in dict.fromkeys(FORMATS[name].backend for name in job.recipe.export):
            if backend != "litert" or not _converts(models, Path(folder)):
                for role, model in models.items():
                    _try(FORMATS[backend], role, model, Path(folder))
    host = job.recipe.bench.host
    if host not in (None, EMULATED):
        reach(host, job.recipe.bench.python, {FORMATS[name].runtime_file for name in job.recipe.export})


def _converts(models: Mapping[str, Model], folder: Path) -> bool:
    """Whether LiteRT takes all of the models, in one call: its converter takes longer to start than to convert."""
    try:
        litert.convert([_litert_job(model, folder / f"{role}.tflite") for role, model in models.items()])
    except UserError:  # of which of them it does not say
        return False
    return True


def _litert_job(model: Model, path: Path) -> litert.Job:
    return litert.Job(plain_logits(model), probe_of(model.input)[0], path)


def _try(kind: Format, role: str, model: Model, folder: Path) -> None:
    """UserError where no file of a format can be made of a model."""
    module, (probe, names_in) = _exported(model), probe_of(model.input)
    try:
        with _explained(kind, module, probe, role):
            write(kind, module, probe, folder / f"{role}{kind.suffix}", None, names_in)
    except UserError as error:
        raise error if role == "student" else UserError(f"teacher: its latency is compared, but {error}") from None


def _exported(model: Model) -> nn.Module:
    """What a file is made of: float32, also of a teacher that answers in less, to compare alike with alike."""
    return plain_logits(replace(model, module=in_float32(model.module)))


def format_of(name: str) -> Format:
    return FORMATS[name.removesuffix(POST)]


def names(recipe: Recipe) -> list[str]:
    """The artifacts of a run: those that the recipe asks for, a trained one with its post-training twin behind it."""
    found = []
    for name in recipe.export:
        found.append(name)
        if recipe.phases[-1].fake_quantize and FORMATS[name].how == "graph":
            found.append(name + POST)
    return found


def make_artifacts(job: Job, student: Student, out: Path, track: Track) -> dict[str, Path]:
    """Writes the run's artifacts to exports/, a folder each, with what a device needs to run them: name -> file."""
    made: dict[str, Path] = {}
    for name in names(job.recipe):
        made[name] = out / "exports" / name / f"student{format_of(name).suffix}"
        made[name].parent.mkdir(parents=True, exist_ok=True)
    probe, names_in = probe_of(student.model.input)
    # LiteRT's converter takes longer to start than to convert: one call for all its files.
    together = [name for name in made if format_of(name).backend == "litert"]
    groups = [[name] for name in made if name not in together] + [together] * bool(together)
    groups.sort(key=lambda group: format_of(group[0]).precision != "float32")  # 8 bits may be made of a float file
    for group in track(groups, "exporting", len(groups)):
        kind, modules = format_of(group[0]), {made[name]: _module(name, student) for name in group}
        first = next(iter(modules.values()))
        with _explained(kind, first, probe):
            if group == together:
                litert.convert([litert.Job(module, probe, path) for path, module in modules.items()])
            else:
                write(kind, first, probe, made[group[0]], student.calibration, names_in, made.get(kind.backend))
        expected = student.model.input
        if isinstance(expected, ImageInput):
            for name in group:
                device.write(format_of(name), made[name], expected, job.splits.train.classes, _pictures(job))
    return made


def _pictures(job: Job) -> dict[str, int | None]:
    """What the pictures of the data are, for a device to make others alike."""
    assert isinstance(job.splits.train, ImageSamples)
    _, height, width, channels = job.splits.train.images.pixels.shape
    return {"height": height, "width": width, "channels": channels, "size": job.recipe.data.size}


def _module(name: str, student: Student) -> nn.Module:
    """What a file is made of: the quantized graph where its 8 bits come from that, else the float student."""
    kind = format_of(name)
    if kind.how != "graph":
        return plain_logits(student.model)
    trained = student.trained is not None and not name.endswith(POST)
    graph = student.trained if trained else student.calibrated
    assert graph is not None
    return integer(graph, signed=kind.backend != "onnx")


@contextmanager
def _explained(kind: Format, module: nn.Module, probe: Tensor, role: str = "student") -> Iterator[None]:
    """An operator that a format lacks: with the module that it is in, and the installed formats that have it."""
    try:
        yield
    except UnsupportedOperator as error:
        of_images = probe.is_floating_point()  # texts have no other format
        where = module_with(error.operator, module, probe) if of_images else ""
        others = [name for name in BACKENDS if of_images and name != kind.backend and _takes(name, module, probe)]
        raise UserError(
            f"export: {kind.name} has no operator {error.operator}{f', which {where} needs' if where else ''}; "
            f"of the other formats installed {', '.join(others) or 'none'} take{'s' * (len(others) < 2)} the {role}"
        ) from error


def _takes(name: str, module: nn.Module, probe: Tensor) -> bool:
    """Whether a format's file can be made of a module: by making it."""
    try:
        formats.check([name])
        with tempfile.TemporaryDirectory() as folder:
            write(FORMATS[name], module, probe, Path(folder) / f"tried{FORMATS[name].suffix}", None)
    except UserError:
        return False
    return True


def probe_of(expected: Expected) -> tuple[Tensor, tuple[str, ...]]:
    """What a file is made for: an input of one sample, and the names of a text model's inputs."""
    probe = example(expected, 1)
    if isinstance(expected, ImageInput):
        return probe, ()
    values = {"input_ids": probe, "attention_mask": torch.ones_like(probe), "token_type_ids": torch.zeros_like(probe)}
    return torch.stack([values[name] for name in expected.names], dim=1), expected.names


def write(
    kind: Format,
    module: nn.Module,
    probe: Tensor,
    path: Path,
    calibration: NDArray[np.float32] | None,
    names_in: tuple[str, ...] = (),
    plain: Path | None = None,
) -> None:
    """Writes a module as a file of a format. `calibration`: preprocessed images, for a format with its own tool;
    `names_in`: the inputs of a text model; `plain`: the module's float file of this backend, where it was written."""
    try:
        _write(kind, module, probe, path, calibration, names_in, plain)
    except UserError:
        raise
    except Exception as error:  # whatever the tool of a format raises
        raise UserError(f"{type(module).__name__} cannot be made a {kind.name} file: {first_line(error)}") from error


def _write(
    kind: Format,
    module: nn.Module,
    probe: Tensor,
    path: Path,
    calibration: NDArray[np.float32] | None,
    names_in: tuple[str, ...],
    plain: Path | None,
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        if kind.how in ("own", "dynamic") and plain is None:
            plain = Path(folder) / f"float{kind.suffix}"
            _write(FORMATS[kind.backend], module, probe, plain, None, names_in, None)
        if kind.backend == "executorch":
            executorch.export(module, probe, path)
        elif kind.backend == "litert":
            litert.convert([litert.Job(module, probe, path)])
        elif kind.backend == "openvino" and kind.precision == "int8":
            assert calibration is not None
            assert plain is not None
            openvino.quantize_int8(plain, calibration, path)
        elif kind.backend == "openvino":
            openvino.export(module, probe, path, half=kind.precision == "float16")
        elif kind.how == "dynamic":
            assert plain is not None
            onnx.quantize_dynamic(plain, path)
        else:
            onnx.export(module, probe, path, names_in)


def describe_artifacts(
    job: Job, student: Student, made: Mapping[str, Path], out: Path, track: Track
) -> tuple[list[dict[str, Any]], dict[str, NDArray[np.float32]]]:
    """Verifies each artifact against the student and scores it on the test set: descriptions, and logits [N, K]."""
    stretches = real_inputs(job, student.model.input, job.recipe.verify.samples)
    expected = [module_outputs(plain_logits(student.model), samples, max(BATCHES)) for samples in stretches]
    simulated: dict[bool, NDArray[np.float32]] = {}
    described, answers = [], {}
    for name, path in track(made.items(), "verifying, evaluating", len(made)):
        kind, trained = format_of(name), student.trained is not None and not name.endswith(POST)
        optimize = kind.how != "graph" or kind.backend != "onnx"
        with opened(path, kind.runtime_file, cpu_threads(job.recipe), optimize, kind.torch) as answer:
            found = [outputs(answer, samples, BATCHES) for samples in stretches]
            answers[name] = job.metric.answers(
                partial(_batched, answer), job.splits.test, student.model.input, batch=_a_call(job)
            )
        entry = {
            "name": name,
            "format": kind.backend,
            "precision": kind.precision,
            "quantized": _quantized(kind, trained),
            "path": str(path.relative_to(out)),
            "bytes": sum(file.stat().st_size for file in artifact_files(path)),
            "quality": job.metric.quality(answers[name], job.splits.test),
            **_agreement([_parity(job, *pair, path) for pair in zip(expected, found, strict=True)]),
        }
        if kind.how == "graph":
            if trained not in simulated:
                graph = student.trained if trained else student.calibrated
                assert graph is not None
                simulated[trained] = module_outputs(graph, stretches[0], max(BATCHES))
            near = parity(simulated[trained], found[0], path)
            entry["simulated"] = {"agreement": near.agreement, "max_abs_error": near.max_abs_error}
        if kind.backend == "onnx":
            # without 8-bit dot products, x86's fused int8 kernels saturate and answer otherwise than a device
            entry["quality_measured"] = f"graph optimisation {'on' if optimize else 'off'}"
        described.append(entry)
    return described, answers


def _parity(job: Job, expected: NDArray[np.float32], answers: Sequence[NDArray[np.float32]], path: Path) -> Parity:
    return parity(expected, answers, path, embeddings=job.metric is RANK_CORRELATION)


def _agreement(parts: Sequence[Parity]) -> dict[str, Any]:
    """What result.json holds of it."""
    return {name: value for name, value in asdict(together(parts)).items() if value is not None}


def _a_call(job: Job) -> int:
    """Samples of the test set that a file is asked in one call: their answers pass through a file, and those of a
    language model are large."""
    return job.metric.batch if job.metric is BITS_PER_BYTE else 8 * job.metric.batch


def _batched(answer: Callable[[NDArray[np.float32], int], NDArray[np.float32]], rows: NDArray[np.float32]) -> Any:
    return answer(rows, max(BATCHES))


def _quantized(kind: Format, trained: bool) -> str | None:
    if kind.how == "graph" and trained:
        return "quantization-aware"
    return {None: None, "dynamic": "dynamic"}.get(kind.how, "post-training")


def check_parity(job: Job, artifacts: list[dict[str, Any]]) -> None:
    """UserError for a file that is further from the student than the recipe's `verify` allows."""
    limits = job.recipe.verify
    asked = [artifact for artifact in artifacts if artifact["name"] in job.recipe.export]
    for artifact in asked:  # a post-training twin may well lose what the phase wins back
        # what a phase trained for 8 bits is no longer the float student
        trained = artifact["quantized"] == "quantization-aware"
        agreement = artifact["simulated"]["agreement"] if trained else artifact["agreement"]
        if artifact["precision"] == "float32" and not artifact["max_abs_error"] <= limits.max_abs_error:
            found = (
                f"an output is off by {artifact['max_abs_error']:.3g}, verify.max_abs_error is {limits.max_abs_error:g}"
            )
        elif artifact["precision"] != "float32" and agreement < limits.agreement:
            found = f"it agrees on {agreement:.1%}, verify.agreement is {limits.agreement:.1%}"
            if job.metric is RANK_CORRELATION:
                found = f"its embeddings' mean cosine is {agreement:.6f}, verify.agreement is {limits.agreement:g}"
        else:
            continue
        raise UserError(
            f"verify: {artifact['path']} is not the student on {artifact['samples']} real samples: {found}; take "
            "another format, spare layers with quantize.keep_float, or set the limit by what the device may lose"
        )


def bench_artifacts(
    job: Job, student: Student, made: Mapping[str, Path], out: Path, track: Track
) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """Latency, memory and bytes of the artifacts, and of the float teacher and student in each of their runtimes,
    interleaved: name -> what result.json holds, and where that was."""
    backends = list(dict.fromkeys(format_of(name).backend for name in made))
    files = {name: (format_of(name), path) for name, path in made.items()}
    for backend in backends:
        for name, (model, path) in _compared(job, student, made, out, backend).items():
            _reference(model, name.partition(":")[0], FORMATS[backend], path)
            files[name] = FORMATS[backend], path
    artifacts = {
        name: Artifact(
            path,
            kind.runtime_file,
            empty(kind, (job.teacher if name.startswith("teacher:") else student.model).input, out),
            kind.torch,
            kind.batched,
        )
        for name, (kind, path) in files.items()
    }
    own, teachers = (real_inputs(job, model.input, BENCH_SAMPLES) for model in (student.model, job.teacher))
    samples = {name: (teachers if name.startswith("teacher:") else own)[-1] for name in files}
    shortest = {name: (teachers if name.startswith("teacher:") else own)[0] for name in files}
    if len(own) > 1:  # texts: at their shortest length too
        artifacts |= {f"{name}{SHORTEST}": artifact for name, artifact in artifacts.items()}
        samples |= {f"{name}{SHORTEST}": inputs[:, :, : _shortest(inputs)] for name, inputs in shortest.items()}
    measured, where = timed(job, artifacts, samples, track)
    found = {name: figures(measured[name]) for name in files}
    for name in files if len(own) > 1 else ():
        latency = figures(measured[f"{name}{SHORTEST}"])["latency_ms"]
        found[name] |= {"tokens": samples[name].shape[-1]}
        found[name]["shortest"] = {"tokens": samples[f"{name}{SHORTEST}"].shape[-1], "latency_ms": latency}
    for name, (kind, _) in files.items():
        teacher = found[f"teacher:{kind.backend}"]
        found[name]["latency_ratio"] = found[name]["latency_ms"]["p50"] / teacher["latency_ms"]["p50"]
    if job.recipe.bench.host == EMULATED:
        for name, path in ((name, path) for name, path in made.items() if format_of(name).backend == "onnx"):
            chosen = own[-1][:EMULATED_SAMPLES]
            found[name]["emulated"] = _emulated(job, path, chosen, format_of(name).how != "graph", track)
    main = RUNTIMES[job.recipe.budget.runtime] if job.recipe.budget.runtime else backends[0]
    found["teacher"] = found[f"teacher:{main}"]
    found["student"] = found.get(main) or found[f"student:{main}"]
    return found, where


def timed(
    job: Job, artifacts: Mapping[str, Artifact], samples: Mapping[str, NDArray[Any]], track: Track
) -> tuple[dict[str, Measurement], dict[str, Any]]:
    """Artifacts measured by turns where the recipe says, and where that was."""
    threads, host = job.recipe.budget.threads, job.recipe.bench.host
    if host is None or host == EMULATED:
        return bench(artifacts, samples, threads=threads, track=track), {"host": None, "hardware": hardware()}
    measured, found = bench_remote(
        host, artifacts, samples, threads=threads, python=job.recipe.bench.python, track=track
    )
    return measured, {"host": host, "hardware": found}


def figures(m: Measurement) -> dict[str, Any]:
    """What result.json holds of a measurement."""
    entry = {
        "bytes": m.bytes,
        "latency_ms": {"p50": m.p50 * 1e3, "p90": m.p90 * 1e3, "p99": m.p99 * 1e3},
        "throughput": m.throughput,
        "throughput_batch": m.throughput_batch,
        "load_seconds": m.load_seconds,
        "peak_memory_bytes": m.peak_memory_bytes,
        "runtime": m.runtime,
        "threads": m.threads,
        "repeats": m.repeats,
    }
    return entry if m.energy_joules is None else entry | {"energy_mj": m.energy_joules * 1e3}


def _emulated(job: Job, path: Path, samples: NDArray[np.float32], optimize: bool, track: Track) -> dict[str, Any]:
    """How far a file's answers on an emulated ARM processor, with the optimisation that a device uses, are from those
    that it is scored by here."""
    here = artifact_outputs(path, samples, runtime=FORMATS["onnx"].runtime_file, optimize=optimize)
    there = emulated.emulate(path, samples, track=track)
    return {"runtime": there.runtime, **_agreement([_parity(job, here, [there.outputs], path)])}


def _compared(
    job: Job, student: Student, made: Mapping[str, Path], out: Path, backend: str
) -> dict[str, tuple[Model, Path]]:
    """The float models that latency is compared with in a runtime, and their files: the teacher, and the student unless
    that is an artifact."""
    models = {"teacher": job.teacher} | ({} if backend in made else {"student": student.model})
    suffix = FORMATS[backend].suffix
    return {f"{role}:{backend}": (model, out / "arms" / f"{role}-{backend}{suffix}") for role, model in models.items()}


def _reference(model: Model, role: str, kind: Format, path: Path) -> None:
    """Writes the file of a float model that latency is compared with, once."""
    if not path.is_file():
        try:
            probe, names_in = probe_of(model.input)
            write(kind, _exported(model), probe, path, None, names_in)
        except UserError as error:
            raise UserError(f"bench: the {role}, to compare with: {error}") from error


def empty(kind: Format, expected: Expected, out: Path) -> Path:
    """A model that does nothing with such inputs, in the format: what memory is measured over."""
    shape = probe_of(expected)[0].shape[1:]
    path = out / "arms" / f"empty-{kind.backend}-{'x'.join(map(str, shape))}{kind.suffix}"
    if not path.is_file():
        write_empty(kind, expected, path)
    return path


def write_empty(kind: Format, expected: Expected, path: Path) -> None:
    """Writes a file that takes a model's inputs and does nothing with them."""
    probe, names_in = probe_of(expected)
    if names_in:
        onnx.write_empty(path, probe, names_in)
    else:
        BACKENDS[kind.backend].write_empty(path, probe)


def real_inputs(job: Job, expected: Expected, count: int) -> list[NDArray[Any]]:
    """`count` real samples, from the test split on, as an artifact takes them: images as one array; texts as two, the
    shorter half and the longer, of which each is as long as its longest; of a language model, that many tokens."""
    splits = (job.splits.test, job.splits.validation, job.splits.train)
    if isinstance(expected, ImageInput):
        parts: list[NDArray[Any]] = []
        for samples in splits:
            left = count - sum(len(part) for part in parts)
            if left > 0:  # evenly spaced: a folder's images come class by class
                parts.append(samples.asked.inputs(spaced(len(samples), left), expected))
        return [np.concatenate(parts)]
    test = job.splits.test.asked
    sizes = test.sizes(expected)
    per_sample = int(sizes.mean()) if job.metric is BITS_PER_BYTE else 1
    rows = spaced(len(test), max(MOST_SAME, -(-count // max(per_sample, 1))))
    rows = rows[np.argsort(sizes[rows], kind="stable")]
    half = max(1, len(rows) // 2)
    return [test.inputs(part, expected) for part in (rows[:half], rows[half:] if len(rows) > 1 else rows)]


def _shortest(inputs: NDArray[np.int64]) -> int:
    """How many tokens the first, the shortest text has. A block of packed text is as long as the others: it is cut."""
    valid = inputs[0, 1] if inputs.shape[1] > 1 else np.ones(inputs.shape[2])
    length = int(valid.sum())
    return length if length < inputs.shape[2] or length < 16 else length // 8
