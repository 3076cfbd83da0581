"""The store of a recipe: captured, and looked through."""

import tempfile
from pathlib import Path

import torch

from edgestill import progress
from edgestill.arms import answers, check_teacher, fit_teacher, fits_teacher
from edgestill.assemble import Job, assemble, bytes_of, cpu_threads, description_of
from edgestill.capture import Captured, begin, finish, refuse_full_disk
from edgestill.capture import capture as capture_shards
from edgestill.errors import UserError
from edgestill.processes import connect
from edgestill.recipe import Recipe
from edgestill.store import Store
from edgestill.teachers.online import OnlineTeacher
from edgestill.train import Track


def capture(recipe: Recipe, out: str | Path, *, track: Track = progress.track) -> Captured:
    """Captures what the recipe's teacher says of its training samples into a store, from which `teacher.store` trains;
    goes on with one that was stopped, and mends one that is damaged.

    Raises UserError, before the teacher is asked, for a folder that holds something else, a disk that is too full, or
    a teacher that is no better than guessing.
    """
    processes = connect(recipe.train.device)
    torch.set_num_threads(cpu_threads(recipe, processes))
    job = processes.agree(lambda: assemble(recipe, track if processes.main else progress.silent, processes=processes))
    if recipe.task == "sentence-embedding":
        raise UserError("capture: sentence-embedding learns from the texts of a whole batch, which no store holds")
    if fits_teacher(job):
        _fit_to_keep(job, track)
    place, description = Path(out), description_of(job)

    def check() -> None:
        begin(place, description)
        refuse_full_disk(place, round(bytes_of(description)))
        quality = job.metric.quality(
            answers(job, job.teacher, job.splits.validation, "teacher: validation", track), job.splits.validation
        )
        check_teacher(job.metric, quality, job.splits.validation.labels, job.teacher)

    processes.first(check)
    precision = torch.bfloat16 if recipe.train.precision == "bf16" else torch.float32
    teacher = OnlineTeacher(job.teacher, job.device, precision)
    found = capture_shards(
        place, description, job.splits.train, teacher, track=track, rank=processes.rank, count=processes.count
    )
    kept, made, asked = processes.total(found)  # by which all are through
    processes.first(lambda: finish(place, description))
    return Captured(kept, made, asked)


def _fit_to_keep(job: Job, track: Track) -> None:
    """Fits the teacher, or takes it from where it was kept: a run that trains from the store needs the same."""
    fit = job.recipe.teacher.fit
    if fit is None or not fit.keep:
        raise UserError(
            "teacher.fit.keep: a store is of one teacher, which has to stay: set it to true, or give weights"
        )
    with tempfile.TemporaryDirectory() as folder:
        fit_teacher(job, Path(folder), lambda line: None, track, resume=False)


def verify(place: Path) -> tuple[Store, list[str]]:
    """A store, every byte of which is read, and what of it is not as it was written, each in a few words."""
    store = Store.open(place)
    found = []
    for number, pieces in enumerate(store.pieces):
        bad = [f"record batch {piece}" if piece < len(pieces) - 1 else "its end" for piece in store.damaged(number)]
        found += [f"shard {number:05}: {', '.join(bad)}"] if bad else []
    return store, found
