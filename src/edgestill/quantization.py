"""The student in 8 bits: its layers' losses, the layers that are spared, and the phase that trains it for them."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from edgestill import checkpoint
from edgestill.arms import Log, Outcome, place_of, train_arm
from edgestill.assemble import QUANTIZED, Job
from edgestill.export.formats import FORMATS
from edgestill.models import Model, example, plain_logits
from edgestill.processes import ALONE
from edgestill.quantize.fake import calibrate, fake_quantized
from edgestill.quantize.sensitivity import divergences, to_spare
from edgestill.train import Track

BATCH = 50
TOLERANCE = 0.005
"""How far below the float student's accuracy on validation `keep_float: auto` lets the student in 8 bits be."""


def check(job: Job) -> None:
    """Refuses, before any training, a student that has no fixed graph of operators, layers to spare that it does not
    have, and taps that its graph does not have, where it is to be quantized as a graph."""
    if job.quantizes or any(FORMATS[name].how == "graph" for name in job.recipe.export):
        asked = job.recipe.quantize.keep_float
        _graph(job.student(0), () if asked == "auto" else asked, _taps(job) if job.quantizes else [])


def calibration(job: Job, student: Model) -> list[Tensor]:
    """Batches of random training images, preprocessed as in evaluation."""
    rows = np.random.default_rng(0).permutation(len(job.splits.train.labels))[: job.recipe.quantize.samples]
    chunks = np.array_split(np.sort(rows), -(-len(rows) // BATCH))
    return [torch.from_numpy(job.splits.train.asked.inputs(chunk, student.input)) for chunk in chunks]


def post_training(job: Job, student: Model, keep_float: Sequence[str], taps: Sequence[str] = ()) -> GraphModule:
    """The student as a calibrated graph in fake 8 bits, apart from the layers that stay in float."""
    made = _graph(student, keep_float, taps)
    calibrate(made, calibration(job, student))
    return made


def measure(job: Job, student: Model, track: Track) -> dict[str, Any]:
    """What result.json says of the layers: each one's loss in 8 bits, and which stay in float."""
    asked = job.recipe.quantize.keep_float
    batches = calibration(job, student)
    module = post_training(job, student, ())
    losses = divergences(module, batches, track)
    spared = list(asked)
    if asked == "auto":
        validate = job.validate(student.input)

        def quality(module: nn.Module) -> float:
            return validate(module.to(job.device))

        spared = to_spare(module, losses, quality, quality(plain_logits(student)) - TOLERANCE)
    return {
        "samples": sum(map(len, batches)),
        "layers": [{"layer": layer, "divergence": loss} for layer, loss in losses.items()],
        "kept_float": spared,
        "automatic": asked == "auto",
    }


def train(
    job: Job, student: Model, seed: int, keep_float: Sequence[str], out: Path, log: Log, track: Track, resume: bool
) -> Outcome:
    """The phase that trains the student for 8 bits, from the float student on, by this process alone."""
    model = _model(job, student, keep_float)
    return train_arm(replace(job, processes=ALONE), QUANTIZED, seed, None, out, log, track, resume, model)[1]


def is_trained(out: Path, seed: int) -> bool:
    """Whether the phase that trains for 8 bits was finished."""
    return (place_of(out, QUANTIZED, seed) / "final.pt").is_file()


def worse(job: Job, trained: float, calibrated: float) -> str | None:
    """What is said where the phase for 8 bits left the student worse on validation than calibration alone, beyond
    noise."""
    count, name = int((job.splits.validation.labels >= 0).sum()), job.recipe.phases[-1].name
    if calibrated - trained <= 2 * float(np.sqrt(max(calibrated * (1 - calibrated), 1 / count) / count)):
        return None
    return (
        f"the phase {name} made the student in 8 bits worse: {trained:.1%} on validation, {calibrated:.1%} by "
        f"calibration alone; lower phases.{name}.lr, or leave the phase out"
    )


def trained(job: Job, student: Model, seed: int, keep_float: Sequence[str], out: Path) -> GraphModule | None:
    """The student as the phase that trains it for 8 bits left it; None without such a phase."""
    saved = checkpoint.load(place_of(out, QUANTIZED, seed) / "final.pt") if job.quantizes else None
    if saved is None:
        return None
    module = _model(job, student, keep_float).module
    module.load_state_dict(saved["student"])
    assert isinstance(module, GraphModule)
    return module


def _model(job: Job, student: Model, keep_float: Sequence[str]) -> Model:
    return replace(student, module=post_training(job, student, keep_float, _taps(job)))


def _graph(student: Model, keep_float: Sequence[str], taps: Sequence[str]) -> GraphModule:
    plain = plain_logits(student)
    prefix = "" if plain is student.module else "module."
    return fake_quantized(plain, example(student.input, 1), keep_float=keep_float, taps=taps, prefix=prefix)


def _taps(job: Job) -> list[str]:
    """What the terms of the phase that trains for 8 bits record of the student."""
    terms = [job.terms[name] for name in job.schedule(QUANTIZED).phases[0].terms]
    return sorted({tap for term in terms for tap in term.student_taps})
