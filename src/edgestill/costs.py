"""What the candidates of a search cost before any training: their files, measured, and a training step."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from math import ceil, floor, log10
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from edgestill import deliver, progress, quantization
from edgestill.assemble import SCRATCH, Job
from edgestill.bench.host import Artifact
from edgestill.errors import UserError
from edgestill.export.formats import FORMATS
from edgestill.models import Model, flops, forward, to_device
from edgestill.plan.fits import Limit, best_file, missed_by, needed
from edgestill.recipe import RUNTIMES, Recipe
from edgestill.tasks.samples import Batch
from edgestill.units import format_bytes, format_seconds, parse_bytes, parse_seconds

BYTES = {"float32": 4, "float16": 2, "int8": 1}
"""Of a weight, at least."""
AT_ONCE = 8
"""Files that are measured by turns: a process each."""
STEPS = 5
Result = dict[str, Any]


def formats_of(recipe: Recipe) -> list[str]:
    """The formats that the budget is for."""
    runtime = recipe.budget.runtime
    return [name for name in recipe.export if runtime is None or FORMATS[name].backend == RUNTIMES[runtime]]


def limits_of(recipe: Recipe) -> list[Limit]:
    """The limits that a file meets or misses without training."""
    budget, search = recipe.budget, recipe.student.search
    headroom = search.headroom if search is not None else 0.0
    found = []
    if budget.size is not None:
        found.append(Limit("size", parse_bytes(budget.size)))
    if budget.latency is not None:
        found.append(Limit("latency", parse_seconds(budget.latency), headroom))
    if budget.memory is not None:
        found.append(Limit("memory", parse_bytes(budget.memory), headroom))
    return found


def untrained(job: Job, recipe: Recipe) -> Model:
    """A candidate of the sizes that it is going to have, with random weights. Those that begin alike, as biases of 0,
    are told apart: a file holds equal ones once, so would be smaller than behind the training."""
    model = replace(job, recipe=recipe, built={}).student(0, SCRATCH)
    drawn = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.module.parameters():
            if parameter.is_floating_point():
                parameter.add_(1e-3 * torch.randn(parameter.shape, generator=drawn))
    return model


def of(job: Job, recipes: Mapping[str, Recipe], limits: Sequence[Limit], batch: Batch) -> dict[str, Result]:
    """What students cost, by name: parameters, operations, seconds of a step on a batch, their files in the budget's
    formats measured by turns, and whether one fits. Where none does, `why`."""
    found: dict[str, Result] = {}
    models: dict[str, Model] = {}
    largest = next((limit.value for limit in limits if limit.name == "size"), None)
    for name, recipe in recipes.items():
        try:
            model = untrained(job, recipe)
            step, forward_pass = step_seconds(job, model, batch)
        except UserError as error:
            found[name] = {"fits": False, "why": f"cannot be built: {error}"}
            continue
        found[name] = {
            "spec": model.spec,
            "parameters": model.parameters,
            "flops": flops(model),
            "step_seconds": step,
            "forward_seconds": forward_pass,
            "fits": False,
        }
        least = least_bytes(job, model)
        if largest is not None and least > largest:
            found[name] |= {
                "why": f"outside the budget: its weights alone take {format_bytes(least)} of {format_bytes(largest)}",
                "least_bytes": least,
            }
        else:
            models[name] = model
    for name, measured in measure(job, models).items():
        found[name] |= measured
        if "files" in measured:
            judge(found[name], limits)
    return found


def least_bytes(job: Job, model: Model) -> int:
    """What the smallest of its files takes at least: its matrices and kernels; all else may be folded."""
    weights = sum(one.numel() for one in model.module.parameters() if one.dim() > 1)
    return weights * min(BYTES[FORMATS[name].precision] for name in formats_of(job.recipe))


def measure(job: Job, models: Mapping[str, Model]) -> dict[str, Result]:
    """Each model's `files` in the budget's formats, measured by turns where the recipe says, and `where`; `why` it has
    none."""
    with tempfile.TemporaryDirectory() as folder:
        return dict(_measured(job, models, Path(folder)))


def _measured(job: Job, models: Mapping[str, Model], folder: Path) -> Iterator[tuple[str, Result]]:
    asked = replace(job, recipe=job.recipe.model_copy(update={"export": formats_of(job.recipe)}))
    artifacts: dict[str, Artifact] = {}
    samples, refused = {}, {}
    for place, (name, model) in enumerate(models.items()):
        own = folder / str(place)
        try:
            made = deliver.make_artifacts(asked, _parts(asked, model), own, progress.silent)
        except UserError as error:
            refused[name] = str(error)
            continue
        (folder / "arms").mkdir(exist_ok=True)
        for format_name in formats_of(job.recipe):
            kind, key = FORMATS[format_name], f"{place} {format_name}"
            empty = deliver.empty(kind, model.input, folder)
            artifacts[key] = Artifact(made[format_name], kind.runtime_file, empty, kind.torch, kind.batched)
            samples[key] = deliver.real_inputs(job, model.input, deliver.BENCH_SAMPLES)[-1]
    found, where = deliver.timed(job, artifacts, samples, progress.silent) if artifacts else ({}, {})
    for place, name in enumerate(models):
        if name in refused:
            yield name, {"why": refused[name]}
            continue
        files = {one: deliver.figures(found[f"{place} {one}"]) for one in formats_of(job.recipe)}
        yield name, {"files": [{"name": one, **values} for one, values in files.items()], "where": where}


def _parts(job: Job, model: Model) -> deliver.Student:
    """An untrained model in what its formats are made from."""
    kinds = [FORMATS[name] for name in job.recipe.export]
    graph = calibration = None
    if any(kind.how == "own" for kind in kinds):
        calibration = torch.cat(quantization.calibration(job, model)).numpy()
    if any(kind.how == "graph" for kind in kinds):
        kept = job.recipe.quantize.keep_float
        graph = quantization.post_training(job, model, () if kept == "auto" else kept)
    return deliver.Student(model, graph, None, calibration)


def judge(candidate: Result, limits: Sequence[Limit]) -> None:
    """Which of a candidate's files is the best, whether it fits, and why it does not."""
    files = {
        one["name"]: {
            "size": one["bytes"],
            "latency": one["latency_ms"]["p50"] / 1e3,
            "memory": one["peak_memory_bytes"],
        }
        for one in candidate["files"]
    }
    candidate["file"], candidate["judged"] = best_file(files, limits)
    candidate["missed_by"] = missed_by(candidate["judged"])
    candidate["fits"] = not candidate["missed_by"]
    if not candidate["fits"]:
        said = [
            f"{name} {written(name, one['value'])} of {written(name, one['limit'])}"
            + (f" less {1 - one['allowed'] / one['limit']:.0%}" if one["allowed"] < one["limit"] else "")
            for name, one in candidate["judged"].items()
            if not one["fits"]
        ]
        candidate["why"] = f"outside the budget: {', '.join(said)}"


def relax(candidate: Result) -> str:
    """Which limits would have to give for a candidate, and by how much."""
    return " and ".join(
        f"budget.{name} from {written(name, candidate['judged'][name]['limit'])} to {written(name, enough)} "
        f"({enough / candidate['judged'][name]['limit'] - 1:+.0%})"
        for name, limit in needed(candidate["judged"]).items()
        for enough in [_rounded_up(limit)]
    )


def relax_size(candidate: Result, limits: Sequence[Mapping[str, Any]]) -> str:
    """The same of a candidate whose weights alone are too many."""
    limit = next(one["value"] for one in limits if one["name"] == "size")
    least = candidate["least_bytes"]
    return f"budget.size from {format_bytes(limit)} to more than {format_bytes(least)} ({least / limit - 1:+.0%})"


def _rounded_up(value: float) -> float:
    """To three digits, as it is written: what is written has to be enough."""
    place = 10.0 ** (floor(log10(value)) - 2)
    return ceil(value / place * (1 - 1e-12)) * place


def written(name: str, value: float) -> str:
    """A limit's value for people."""
    return format_seconds(value) if name == "latency" else format_bytes(value)


def step_seconds(job: Job, model: Model, batch: Batch) -> tuple[float, float]:
    """Seconds of a training step of a model on a batch, and of its forward pass alone: medians of a few."""
    precision = torch.bfloat16 if job.recipe.train.precision == "bf16" else torch.float32
    module = to_device(model.module, job.device).train()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.0)
    steps, passes = [], []
    for _ in range(STEPS):
        started = perf_counter()
        with torch.autocast(job.device.type, precision, enabled=precision != torch.float32):
            outputs = forward(module, batch.inputs(model.input, job.device))
        passes.append(perf_counter() - started)
        outputs.float().logsumexp(-1).mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if job.device.type == "cuda":
            torch.cuda.synchronize()
        steps.append(perf_counter() - started)
    return sorted(steps)[STEPS // 2], sorted(passes)[STEPS // 2]
