"""What edgestill adds to a step: ResNet-8 from ResNet-56 on 32×32 images, against a bare PyTorch loop in this file.

    python benchmarks/step.py [--steps 120] [--threads 2]

Same batches, views, memory layout and threads; the loops take steps by turns, so that a slow moment of the host meets
all of them. torchdistill's box stands beside them where it is installed (`pip install --no-deps torchdistill`). Writes
a dated page to benchmarks/results.
"""

import argparse
import tempfile
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
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
SKIPPED = 5  # steps at the beginning that are not timed


def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    return load_function(f"{builtin()['digits'].parent / 'resnet_cifar.py'}:{name}")()


def data() -> Images:
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (4096, 32, 32, 3), dtype=np.uint8)
    return Images(pixels, generator.integers(0, 10, 4096), tuple("0123456789"), "random", "random")


def bare_step(images: Images, teacher: nn.Module | None) -> Callable[[int], None]:
    """A step of a loop that anybody would write: the teacher answers, and its answer is not used."""
    student = network("resnet8").to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=5e-4)
    mean, std = (torch.tensor(values) for values in (EXPECTED.mean, EXPECTED.std))

    def take(step: int) -> None:
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

    return take


def torchdistill_step(images: Images, teacher: nn.Module) -> Callable[[int], None] | None:
    """A step of torchdistill's DistillationBox on the same views, None where it is not installed."""
    try:
        from torchdistill.core.distillation import DistillationBox
        from torchdistill.losses import mid_level  # noqa: F401  # registers KDLoss
    except (ImportError, RuntimeError):
        return None
    whole = {"student_module_path": ".", "student_module_io": "output"}
    whole |= {"teacher_module_path": ".", "teacher_module_io": "output"}
    soft = {"key": "KDLoss", "kwargs": {**whole, "temperature": 4.0, "alpha": 0.1}}
    config = {
        "num_epochs": 1,
        "teacher": {"forward_proc": "forward_batch_only", "sequential": [], "requires_grad": False},
        "student": {"forward_proc": "forward_batch_only", "sequential": []},
        "optimizer": {
            "key": "SGD",
            "kwargs": {"lr": 0.01, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4},
        },
        "criterion": {
            "key": "WeightedSumLoss",
            "kwargs": {"sub_terms": {"kd": {"criterion": soft, "weight": 1.0}}},
        },
    }
    student = network("resnet8").to(memory_format=torch.channels_last).train()
    box = DistillationBox(teacher, student, {}, config, CPU, None, False, 1)
    mean, std = (torch.tensor(values) for values in (EXPECTED.mean, EXPECTED.std))

    def take(step: int) -> None:
        rows = np.arange(step * BATCH, (step + 1) * BATCH) % len(images)
        pixels = torch.from_numpy(augment(images.pixels[rows], rows, seed=0, epoch=0, crop=4, flip=True))
        inputs = ((pixels - 255 * mean) / (255 * std)).permute(0, 3, 1, 2)
        box.post_forward_process(box.forward_process(inputs, torch.from_numpy(images.labels[rows])))

    return take


def alternate(images: Images, teacher: OnlineTeacher | None, others: list[Callable[[int], None]], steps: int):
    """Seconds of edgestill's steps and of the other loops' steps, taken by turns: inside `track`, which edgestill's
    loop asks for its next step. The last step, which saves, is left out."""
    pool, views = np.arange(len(images)), Views(crop=4, flip=True)
    spent: list[list[float]] = []

    def track(items: Iterator[int], _: str, total: int) -> Iterator[int]:
        for step in items:
            row = []
            for take in others:
                started = perf_counter()
                take(step)
                row.append(perf_counter() - started)
            started = perf_counter()
            yield step
            spent.append([perf_counter() - started, *row])

    alpha = 0.9 if teacher else 0.0
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
    return np.array(spent[SKIPPED:-1]).T


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    images = data()
    plain = network("resnet56").to(memory_format=torch.channels_last).eval()
    online = OnlineTeacher(Model(network("resnet56"), "resnet56", {}, EXPECTED), CPU, torch.float32)
    rows = np.arange(BATCH)

    def only_views(step: int) -> None:
        augment(images.pixels[rows], rows, seed=0, epoch=step, crop=4, flip=True)

    alone, bare, views = alternate(images, None, [bare_step(images, None), only_views], options.steps)
    others = [bare_step(images, None), bare_step(images, plain)]
    if rival := torchdistill_step(images, plain):
        others.append(rival)
    distilling, bare_beside, with_teacher, *rivals = alternate(images, online, others, options.steps)
    spent = {
        "edgestill": alone,
        "bare": bare,
        "views": views,
        "edgestill distilling": distilling,
        "bare + teacher forward": with_teacher,
        "bare, beside": bare_beside,
        "edgestill distilling, teacher's forward taken out": distilling - (with_teacher - bare_beside),
    }
    if rivals:
        spent["torchdistill's box, distilling"] = rivals[0]
    write(spent, options)


RATIOS = (
    ("edgestill", "bare", "at most 1.053: 0.95 of the images a second"),
    ("edgestill distilling, teacher's forward taken out", "bare, beside", "at most 1.053"),
    ("edgestill distilling", "bare + teacher forward", "at most 1.05"),
    ("views", "bare", "below 0.10"),
    ("torchdistill's box, distilling", "bare + teacher forward", "for comparison"),
)


def write(spent: dict[str, np.ndarray], options: argparse.Namespace) -> None:
    about = folder.environment(options.threads, {}, [0], "cpu")
    hardware, versions = about["hardware"], about["versions"]
    lines = [
        f"# The step, {date.today()}",
        "",
        f"`python benchmarks/step.py --steps {options.steps} --threads {options.threads}`",
        f"on {hardware['cpu']}, {hardware['cores']} cores, Python {versions['python']}, torch {versions['torch']}.",
        f"ResNet-8 from ResNet-56, batch {BATCH}, 32×32, crop and flip, channels-last, float32, random pixels.",
        "The loops take steps by turns; quartiles are over steps.",
        "",
        "| loop | ms a step, median | lower quartile | upper quartile | images a second |",
        "|---|---|---|---|---|",
    ]
    for name, seconds in spent.items():
        low, mid, high = np.percentile(seconds, [25, 50, 75]) * 1e3
        lines.append(f"| {name} | {mid:.2f} | {low:.2f} | {high:.2f} | {BATCH / mid * 1e3:.0f} |")
    lines += ["", "| ratio of times, step by step | median | lower quartile | upper quartile | goal |"]
    lines.append("|---|---|---|---|---|")
    for a, b, goal in (row for row in RATIOS if row[0] in spent):
        low, mid, high = np.percentile(spent[a] / spent[b], [25, 50, 75])
        lines.append(f"| {a} ÷ {b} | {mid:.3f} | {low:.3f} | {high:.3f} | {goal} |")
    page = "\n".join(lines) + "\n"
    (Path(__file__).parent / "results" / f"{date.today()}-step.md").write_text(page)
    print(page)


if __name__ == "__main__":
    main()
