"""What edgestill adds to a step: ResNet-8 from ResNet-56 on 32×32 images, against a bare PyTorch loop in this file.

    python benchmarks/step.py [--rounds 12] [--steps 20] [--threads 2]

Same batches, views, memory layout and threads; the four loops take turns, so that a slow minute of the host meets all.
Ratios are of medians over rounds. Writes a dated page to benchmarks/results.
"""

import argparse
import tempfile
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from edgestill import folder
from edgestill.data.curriculum import draw
from edgestill.data.images import Images
from edgestill.data.views import augment
from edgestill.functions import load_function
from edgestill.models import ImageInput, Model
from edgestill.objective import Objective
from edgestill.reading import builtin
from edgestill.schedule import Phase, Schedule
from edgestill.tasks.images import Views, batch
from edgestill.teachers.online import OnlineTeacher
from edgestill.train import Options, train

BATCH = 128
EXPECTED = ImageInput(3, 32, (0.49, 0.48, 0.45), (0.25, 0.24, 0.26))
CPU = torch.device("cpu")
SKIPPED = 3  # steps at the beginning of a turn that are not timed


def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    return load_function(f"{builtin()['digits'].parent / 'resnet_cifar.py'}:{name}")()


def data() -> Images:
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (4096, 32, 32, 3), dtype=np.uint8)
    return Images(pixels, generator.integers(0, 10, 4096), tuple("0123456789"), "random", "random")


def timed(steps: int) -> tuple[list[float], Callable]:
    """Seconds of a turn's steps, and the `track` that takes them: neither the first nor the last, which saves."""
    marks: list[float] = []

    def track(items: Iterator[int], _: str, total: int) -> Iterator[int]:
        for item in items:
            marks.append(perf_counter())
            yield item

    return marks, track


def seconds_of(marks: list[float]) -> list[float]:
    return np.diff(marks)[SKIPPED:].tolist()


def edgestill_loop(images: Images, teacher: OnlineTeacher | None, steps: int) -> list[float]:
    alpha = 0.9 if teacher else 0.0
    marks, track = timed(steps)
    pool = np.arange(len(images))
    views = Views(crop=4, flip=True)
    with tempfile.TemporaryDirectory() as place:
        train(
            Model(network("resnet8"), "resnet8", {}, EXPECTED),
            schedule=Schedule((Phase("only", 1.0, alpha, 4.0, 0.01),), steps),
            batch_at=lambda step, _: batch(images, *draw(step, pool, BATCH, 0), views, 0),
            objective=Objective(alpha=alpha),
            teacher=teacher,
            validate=lambda module: 0.0,
            options=Options(validate_every=10**9, log_every=10),
            folder=Path(place),
            log=lambda line: None,
            track=track,
        )
    return seconds_of(marks)


def bare_loop(images: Images, teacher: nn.Module | None, steps: int) -> list[float]:
    student = network("resnet8").to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=5e-4)
    mean, std = (torch.tensor(values) for values in (EXPECTED.mean, EXPECTED.std))
    marks, track = timed(steps)
    for step in track(range(steps), "", steps):
        rows = np.arange(step * BATCH, (step + 1) * BATCH) % len(images)
        pixels = torch.from_numpy(augment(images.pixels[rows], rows, seed=0, epoch=0, crop=4, flip=True))
        inputs = ((pixels - 255 * mean) / (255 * std)).permute(0, 3, 1, 2)
        labels = torch.from_numpy(images.labels[rows])
        if teacher is not None:
            with torch.no_grad():
                teacher(inputs)
        loss = functional.cross_entropy(student(inputs), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    return seconds_of(marks)


def views_only(images: Images, steps: int) -> list[float]:
    rows, spent = np.arange(BATCH), []
    for step in range(steps):
        started = perf_counter()
        augment(images.pixels[rows], rows, seed=0, epoch=step, crop=4, flip=True)
        spent.append(perf_counter() - started)
    return spent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    images = data()
    plain = network("resnet56").to(memory_format=torch.channels_last).eval()
    online = OnlineTeacher(Model(network("resnet56"), "resnet56", {}, EXPECTED), CPU, torch.float32)
    loops: dict[str, Callable[[], list[float]]] = {
        "bare": lambda: bare_loop(images, None, options.steps),
        "edgestill": lambda: edgestill_loop(images, None, options.steps),
        "bare + teacher forward": lambda: bare_loop(images, plain, options.steps),
        "edgestill distilling": lambda: edgestill_loop(images, online, options.steps),
        "views": lambda: views_only(images, options.steps),
    }
    rounds: dict[str, list[float]] = {name: [] for name in loops}
    for number in range(options.rounds + 1):
        for name, loop in loops.items():
            spent = median(loop())
            if number:  # the first round warms up
                rounds[name].append(spent)
    write(rounds, options)


def ratio(rounds: dict[str, list[float]], a: str, b: str) -> tuple[float, float, float]:
    """Median and extremes over rounds of a/b, pair by pair."""
    ratios = [x / y for x, y in zip(rounds[a], rounds[b], strict=True)]
    return median(ratios), min(ratios), max(ratios)


def write(rounds: dict[str, list[float]], options: argparse.Namespace) -> None:
    about = folder.environment(options.threads, {}, [0], "cpu")
    without_teacher = [
        total - (both - alone)
        for total, both, alone in zip(
            rounds["edgestill distilling"], rounds["bare + teacher forward"], rounds["bare"], strict=True
        )
    ]
    rounds = rounds | {"edgestill distilling, teacher's forward taken out": without_teacher}
    lines = [
        f"# The step, {date.today()}",
        "",
        f"`python benchmarks/step.py --rounds {options.rounds} --steps {options.steps} --threads {options.threads}`",
    ]
    hardware, versions = about["hardware"], about["versions"]
    lines += [
        f"on {hardware['cpu']}, {hardware['cores']} cores, Python {versions['python']}, torch {versions['torch']}."
    ]
    lines += [
        f"ResNet-8 from ResNet-56, batch {BATCH}, 32×32, crop and flip, channels-last, float32. A turn's median",
        "step counts; median, least and most are over rounds. Random pixels: only time is measured.",
        "",
    ]
    lines += ["| loop | ms a step | least | most | images a second |", "|---|---|---|---|---|"]
    for name, spent in rounds.items():
        low, mid, high = min(spent) * 1e3, median(spent) * 1e3, max(spent) * 1e3
        lines.append(f"| {name} | {mid:.2f} | {low:.2f} | {high:.2f} | {BATCH / mid * 1e3:.0f} |")
    lines += ["", "| ratio of times, pair by pair | median | least | most | goal |", "|---|---|---|---|---|"]
    for a, b, goal in (
        ("edgestill", "bare", "at most 1.053 (0.95 of the images)"),
        ("edgestill distilling, teacher's forward taken out", "bare", "at most 1.053 (0.95 of the images)"),
        ("edgestill distilling", "bare + teacher forward", "at most 1.05"),
        ("views", "bare", "below 0.10"),
    ):
        mid, low, high = ratio(rounds, a, b)
        lines.append(f"| {a} ÷ {b} | {mid:.3f} | {low:.3f} | {high:.3f} | {goal} |")
    page = "\n".join(lines) + "\n"
    (Path(__file__).parent / "results" / f"{date.today()}-step.md").write_text(page)
    print(page)


if __name__ == "__main__":
    main()
