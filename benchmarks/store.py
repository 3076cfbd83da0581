"""What a store costs: opening, reading cold and warm, and a training's memory, on ten million synthetic rows of ten
classes; and a step that reads against a step without any teacher.

    python benchmarks/store.py [--rows 10_000_000] [--steps 150]

The step: ResNet-8 on 128 images of 32×32, and python-code's student on 16 blocks of 128 tokens, by turns without a
teacher, from a store, and with the teacher asked. Writes a dated page to benchmarks/results.
"""

import argparse
import os
import resource
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from threading import Semaphore, Thread
from time import perf_counter
from typing import Any

import numpy as np
import torch

from edgestill import progress
from edgestill.assemble import assemble, description_of
from edgestill.capture import capture, finish
from edgestill.data.images import Images
from edgestill.functions import load_function
from edgestill.models import ImageInput, Model
from edgestill.objective import Objective
from edgestill.reading import builtin
from edgestill.recipe import load_recipe
from edgestill.runtimes.measure import hardware
from edgestill.schedule import Phase, Schedule
from edgestill.signals import Signal
from edgestill.store import Dense, Description, Store, Views, write_store
from edgestill.store.shards import commit, record_batch, schema, write
from edgestill.store.store import SHARDS, shard_path
from edgestill.tasks.images import ImageSamples
from edgestill.teachers.online import OnlineTeacher
from edgestill.teachers.stored import StoredTeacher
from edgestill.train import Options, train

ROOT = Path(__file__).resolve().parents[1]
CPU = torch.device("cpu")
BATCH, CLASSES = 128, 10


def synthetic(folder: Path, rows: int) -> Description:
    """A store of random logits."""
    of = Description("none", "none", "none", rows, rows, CLASSES, Views(), Dense(), (), 128, 32_768, 64)
    (folder / SHARDS).mkdir(parents=True)
    columns, draw, pieces = of.codec.columns(CLASSES), np.random.default_rng(0), []
    layout = schema(columns, single=True)
    for shard in range(of.shards):

        def batches(shard: int = shard) -> Iterator[object]:
            for number in range(shard * of.batches, (shard + 1) * of.batches):
                places = np.arange(number * of.rows, min((number + 1) * of.rows, rows))
                if not len(places):
                    return
                logits = draw.standard_normal((len(places), CLASSES), np.float32).astype(np.float16).view(np.uint16)
                said = {"sample": places, "view": np.zeros_like(places), "loss": np.zeros(len(places))}
                yield record_batch(said, {"logits": logits}, columns, np.ones(len(places), np.int64), layout)

        pieces.append(write(shard_path(folder, shard), layout, batches()))
        commit(shard_path(folder, shard))
    write_store(folder, of, pieces)
    return of


def uncached(folder: Path) -> None:
    """Asks the system to forget what it holds of the files."""
    for path in folder.rglob("*.arrow"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def reading(store: Store, draw: np.random.Generator, batches: int) -> float:
    """Signals a second, in batches of random rows."""
    rows = [draw.integers(0, store.description.samples, BATCH) for _ in range(batches)]
    started = perf_counter()
    for indices in rows:
        store.signal(np.zeros_like(indices), indices)
    return batches * BATCH / (perf_counter() - started)


def anonymous() -> int:
    """Bytes of this process that are no mapped file."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def large(rows: int) -> list[str]:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "store"
        started = perf_counter()
        synthetic(folder, rows)
        written, size = (
            perf_counter() - started,
            sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
        )
        uncached(folder)
        started = perf_counter()
        store = Store.open(folder)
        opened = perf_counter() - started
        draw = np.random.default_rng(1)
        cold = reading(store, draw, 400)
        warm = reading(store, draw, 2000)
        # a linear student, so that what grows is the store's
        module = torch.nn.Linear(CLASSES, CLASSES)
        optimizer, objective = torch.optim.SGD(module.parameters(), lr=0.1), Objective(alpha=0.9, temperature=4.0)
        memory = []
        for step in range(4000):
            indices = draw.integers(0, rows, BATCH)
            signal = store.signal(np.zeros_like(indices), indices)
            parts = objective(module(torch.ones(BATCH, CLASSES)), torch.zeros(BATCH, dtype=torch.long), signal)
            optimizer.zero_grad()
            parts.loss.backward()
            optimizer.step()
            if step % 1000 == 999:
                memory.append(anonymous() / 2**20)
        return [
            f"| rows | {rows:,} of {CLASSES} classes, {size:,} bytes, written in {written:.1f} s |",
            f"| opened | {opened * 1e3:.1f} ms |",
            f"| signals a second in batches of {BATCH} rows, cold, each checked | {cold:,.0f} |",
            f"| the same, warm | {warm:,.0f} |",
            f"| memory beside mapped files after 1,000, 2,000, 3,000, 4,000 steps | "
            f"{', '.join(f'{one:.0f}' for one in memory)} MiB |",
        ]


Loop = tuple[str, Callable[[Any, Sequence[str]], Signal] | None, float]
"""A name, a teacher or none, and its weight."""


def by_turns(loops: list[Loop], steps: int, make: Callable[[], Model], batch_at: Any, temperature: float) -> list[str]:
    """Trainings that take their steps by turns: each one's over the first's, which has no teacher."""
    draw = np.random.default_rng(0)  # who comes behind whom changes: what a step leaves in the caches meets all
    order = iter([int(number) for _ in range(steps) for number in draw.permutation(len(loops))])
    turns = [Semaphore(0) for _ in loops]
    spent: dict[str, list[float]] = {name: [] for name, _, _ in loops}

    def loop(number: int, folder: Path) -> None:
        name, teacher, alpha = loops[number]

        def track(items: Iterator[int], _: str, total: int) -> Iterator[int]:
            for item in items:
                turns[number].acquire()
                started = perf_counter()
                yield item
                spent[name].append(perf_counter() - started)
                if (following := next(order, None)) is not None:
                    turns[following].release()

        train(
            make(),
            schedule=Schedule((Phase("only", 1.0, alpha, temperature, 1e-4),), steps),
            batch_at=batch_at,
            objective=Objective(alpha=alpha, temperature=temperature),
            teacher=teacher,
            validate=lambda module: 0.0,
            options=Options(optimizer="adamw", validate_every=10**9, log_every=10),
            folder=folder,
            log=lambda line: None,
            track=track,
        )

    with tempfile.TemporaryDirectory() as place:
        threads = [Thread(target=loop, args=(number, Path(place) / str(number))) for number in range(len(loops))]
        turns[next(order)].release()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    floor = np.array(spent[loops[0][0]][3:-1])
    lines = [f"| {loops[0][0]} | {np.median(floor) * 1e3:.1f} ms |"]
    for name, _, _ in loops[1:]:
        low, middle, high = np.percentile(np.array(spent[name][3:-1]) / floor, [25, 50, 75])
        lines.append(f"| {name} ÷ {loops[0][0]} | {middle:.3f} ({low:.3f}–{high:.3f}) |")
    return lines


def of_images(steps: int) -> list[str]:
    """ResNet-8 of ResNet-20, on 32×32 images."""
    draw = np.random.default_rng(0)
    images = Images(
        draw.integers(0, 256, (4096, 32, 32, 3), np.uint8), draw.integers(0, CLASSES, 4096), tuple("abcdefghij"), "", ""
    )
    samples, expected = ImageSamples(images), ImageInput(3, 32, (0.5,) * 3, (0.25,) * 3)
    nets = builtin()["digits"].parent / "resnet_cifar.py"

    def model(name: str) -> Model:
        torch.manual_seed(0)
        return Model(load_function(f"{nets}:{name}")(), name, {}, expected)

    def batch_at(step: int, _: object) -> Any:
        return samples.batch((np.arange(BATCH) + step * BATCH) % 4096, np.zeros(BATCH, np.int64), 0, None)

    with tempfile.TemporaryDirectory() as place:
        online = OnlineTeacher(model("resnet20"), CPU, torch.float32)
        of = Description("t", "i", "d", 4096, 4096, CLASSES, Views(), Dense(), (), 128, 4096, 1)
        capture(Path(place) / "store", of, samples, online)
        finish(Path(place) / "store")
        stored = StoredTeacher(Store.open(Path(place) / "store"), CPU)
        loops: list[Loop] = [("images, no teacher", None, 0.0), ("images, from a store", stored, 0.9)]
        loops.append(("images, the teacher asked", online, 0.9))
        return by_turns(loops, steps, lambda: model("resnet8"), batch_at, 4.0)


def of_tokens(steps: int) -> list[str]:
    """The models of python-code, on its blocks."""
    with tempfile.TemporaryDirectory() as place:
        loops: list[Loop] = [("tokens, no teacher", None, 0.0)]
        for name, codec in (("dense", "dense"), ("top-k", "top-k"), ("sampled", "sampled")):
            recipe = load_recipe("python-code", [f"capture.codec={codec}", "capture.k=8", "capture.draws=12"])
            job = assemble(recipe, progress.silent)
            few = job.splits.train.at(np.arange(512), "some")
            online = OnlineTeacher(job.teacher, CPU, torch.float32)
            of = replace(description_of(job), data="some", samples=512, positions=int(few.positions.sum()))
            capture(Path(place) / name, of, few, online)
            finish(Path(place) / name)
            stored = StoredTeacher(Store.open(Path(place) / name), CPU)
            loops.append((f"tokens, from a store, {name}", stored, 0.9))
        loops.append(("tokens, the teacher asked", online, 0.9))

        def batch_at(step: int, _: object) -> Any:
            return few.batch((np.arange(16) + step * 16) % 512, np.zeros(16, np.int64), 0, None)

        return by_turns(loops, steps, lambda: job.student(0), batch_at, 1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--steps", type=int, default=150)
    options = parser.parse_args()
    torch.set_num_threads(1)
    here, date = hardware(), datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    page = [
        f"# A store, {date}",
        "",
        f"Hardware: {here['cpu']}, {here['cores']} cores, 1 thread. torch {torch.__version__}.  ",
        f"Command: `python benchmarks/store.py --rows {options.rows} --steps {options.steps}`.",
        "",
        "| what | measured |",
        "|---|---|",
        *large(options.rows),
        *of_images(options.steps),
        *of_tokens(options.steps),
    ]
    (ROOT / "benchmarks" / "results" / f"{date[:10]}-store.md").write_text("\n".join(page) + "\n")
    print("\n".join(page))


if __name__ == "__main__":
    main()
