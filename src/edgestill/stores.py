"""The store of a recipe: planned, captured, and looked through."""

import tempfile
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from edgestill import folder, progress
from edgestill.arms import answers, check_teacher, fit_teacher, fits_teacher
from edgestill.assemble import (
    Job,
    assemble,
    check_served,
    check_taps,
    coarsest,
    codec_of,
    cpu_threads,
    description_of,
    online,
    without_store,
)
from edgestill.capture import Captured, begin, bytes_missing, check_begun, finish, free_bytes, trial
from edgestill.capture import capture as capture_shards
from edgestill.errors import UserError
from edgestill.processes import Processes, connect
from edgestill.recipe import Recipe
from edgestill.store import CODECS, Codec, Description, Sampled, Store
from edgestill.store.size import bytes_of
from edgestill.store.store import COPY, STORE, read_store
from edgestill.train import Track


def capture(recipe: Recipe, out: str | Path, *, track: Track = progress.track) -> Captured | None:
    """Captures what the recipe's teacher says of its training samples into a store, from which `teacher.store` trains;
    goes on with one that was stopped, and mends one that is damaged.

    Returns what was done, in the first of several processes. Raises UserError, before anything is captured, for what
    no store can hold or its codec cannot serve, a disk that is too full, a teacher that is no better than guessing, a
    folder that holds something else.
    """
    processes = connect(recipe.train.device)
    job = _job(recipe, processes, track)
    place, description = Path(out), description_of(job)
    check_served(job.recipe, description.codec, "capture: its store")
    check_taps(job, description.taps, "capture keeps")

    def check() -> None:
        if any((place / name).is_file() for name in (STORE, COPY)):
            begin(place, description)  # which refuses another
        refuse_full_disk(place, job, description)
        quality = job.metric.quality(
            answers(job, job.teacher, job.splits.validation, "teacher: validation", track), job.splits.validation
        )
        check_teacher(job.metric, quality, job.splits.validation, job.teacher)
        begin(place, description)
        check_begun(place, job.splits.train, online(job), coarsest(job))

    processes.first(check)
    own = folder.held(place) if processes.main else nullcontext()
    with own:
        found = capture_shards(
            place,
            description,
            job.splits.train,
            online(job),
            track=track if processes.main else progress.silent,
            rank=processes.rank,
            count=processes.count,
        )
        kept, made, asked = processes.total(found)  # by which all are through
        processes.first(lambda: finish(place))
    return Captured(kept, made, asked) if processes.main else None


def refuse_full_disk(place: Path, job: Job, description: Description) -> None:
    """UserError where what is not yet captured of a store would not fit on its disk. Only where the most that it may
    have does not fit, the teacher is asked what draws take, and what is there is read."""
    samples, teacher, free = job.splits.train, online(job), free_bytes(place)
    needed = bytes_of(description)
    if needed > free and isinstance(description.codec, Sampled):
        needed = bytes_of(description, trial(description, samples, teacher, {"": description.codec})[1][""].of_position)
    if needed > free:
        needed = bytes_missing(place, needed, samples, teacher)
    if needed > free:
        raise UserError(
            f"the store {place} needs {needed:,} bytes more, and its disk has {free:,} free: make room, take a "
            "smaller codec, or fewer views"
        )


def plan(recipe: Recipe, *, track: Track = progress.track) -> dict[str, Any]:
    """What a capture of a recipe is going to cost, from a short measurement of its teacher: `passes`, `seconds` of all
    of them with the recipe's codec, and for each codec its bytes a position and of the whole store, and its seconds;
    `left_out` says why of those that the classes or temperatures do not fit."""
    job = _job(recipe, connect(recipe.train.device), track)
    description = description_of(job)
    codecs: dict[str, Codec] = {}
    left_out: dict[str, str] = {}
    for name in CODECS:
        try:
            codecs[name] = codec_of(recipe, name, description.classes)
        except UserError as error:
            left_out[name] = str(error)
    seconds, kept = trial(description, job.splits.train, online(job), codecs)
    passes = -(-description.total // description.batch)
    whole = {name: passes * (seconds + one.seconds) for name, one in kept.items()}
    return {
        "samples": description.samples,
        "views": description.views.count,
        "positions": description.positions,
        "classes": description.classes,
        "batch": description.batch,
        "passes": passes,
        "seconds": whole.get(recipe.capture.codec, passes * seconds),
        "chosen": recipe.capture.codec,
        "codecs": [
            {
                "name": name,
                "bytes_a_position": kept[name].of_position,
                "bytes": bytes_of(replace(description, codec=codec), kept[name].of_position),
                "seconds": whole[name],
            }
            for name, codec in codecs.items()
        ],
        "left_out": left_out,
    }


def _job(recipe: Recipe, processes: Processes, track: Track) -> Job:
    """The parts, with a teacher that stays; what the recipe says of a store to read from does not matter."""
    recipe = without_store(recipe)
    torch.set_num_threads(cpu_threads(recipe, processes))
    job = processes.agree(lambda: assemble(recipe, track if processes.main else progress.silent, processes=processes))
    if fits_teacher(job):
        description_of(job)  # what no store can hold is refused before the teacher is fitted
        _fit_to_keep(job, track)
    return job


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
    if (place / COPY).is_file():
        try:
            read_store(place, COPY)
        except UserError:
            found.append(COPY)
    return store, found
