"""What a codec does to the gradient, on real tokens of a trained model: bias, variance, angle, and the student's end.

    python benchmarks/estimators.py [--vocabulary 4096] [--epochs 1.5] [--tokens 16384] [--redraws 200] [--seeds 3]

The built-in recipe python-code with another size of vocabulary: its teacher, fitted once and kept, and its student
before, in the midst of and behind a training on all logits. Writes a dated page to benchmarks/results.

N tokens, V vocabulary, P parameters.
"""

import argparse
import math
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgestill import progress
from edgestill.arms import fit_teacher
from edgestill.assemble import Job, assemble
from edgestill.losses import bucketed, drawn_kl, kl
from edgestill.models import forward
from edgestill.reading import builtin
from edgestill.recipe import load_recipe
from edgestill.run import run
from edgestill.runtimes.measure import hardware
from edgestill.signals import Draws
from edgestill.store import Codec, Dense, Sampled, TopK
from edgestill.stores import capture
from edgestill.teachers.online import OnlineTeacher

ROOT = Path(__file__).resolve().parents[1]
CPU = torch.device("cpu")
BLOCKS = 8  # of a piece over which a gradient is summed up

Told = Callable[[Tensor, np.random.Generator], Any]
"""What of a teacher's logits [N, V] a way of keeping leaves, drawn anew."""


def recipe_of(folder: Path, vocabulary: int, epochs: float) -> Path:
    """python-code with another vocabulary, as files of its own."""
    source = builtin()["python-code"]
    code = source.with_name("python_code.py").read_text(encoding="utf-8")
    (folder / "python_code.py").write_text(code.replace("VOCABULARY = 2048", f"VOCABULARY = {vocabulary}"), "utf-8")
    text = source.read_text(encoding="utf-8").replace("epochs: 1.5", f"epochs: {epochs}")
    (folder / "recipe.yaml").write_text(text, "utf-8")
    return folder / "recipe.yaml"


def ways() -> dict[str, tuple[Told, Callable[[Any, Tensor], Tensor], Callable[[Any], float]]]:
    """By name: what is kept, the loss of it against a student's logits [N, V], and bytes a token."""

    def of(codec: Codec) -> tuple[Told, Callable[[Any, Tensor], Tensor], Callable[[Any], float]]:
        def keep(logits: Tensor, draw: np.random.Generator) -> Any:
            columns = codec.encode(logits, draw.random(len(logits)))
            return codec.decode(columns, logits.shape[-1]), sum(c.nbytes for c in columns.values()) / len(logits)

        def loss(kept: Any, student: Tensor) -> Tensor:
            told = kept[0]
            if isinstance(told, Tensor):
                return kl(student, told)
            if isinstance(told, Draws):
                return drawn_kl(student, told.ids, told.shares, told.entropy)
            return kl(bucketed(student, told.ids, 1.0), told.at(1.0))

        return keep, loss, lambda kept: kept[1]

    def independent(draws: int) -> tuple[Told, Callable[[Any, Tensor], Tensor], Callable[[Any], float]]:
        """What arXiv 2503.16870 draws: each by itself."""

        def keep(logits: Tensor, draw: np.random.Generator) -> Any:
            generator = torch.Generator().manual_seed(int(draw.integers(2**31)))
            probabilities = logits.softmax(-1)
            ids = probabilities.multinomial(draws, replacement=True, generator=generator)
            entropy = -(probabilities * logits.log_softmax(-1)).sum(-1)
            different = np.mean([len(set(row)) for row in ids.tolist()])
            return (ids, entropy, 3.0 * different + 5)

        def loss(kept: Any, student: Tensor) -> Tensor:
            ids, entropy, _ = kept
            return drawn_kl(student, ids, torch.full(ids.shape, 1 / draws), entropy)

        return keep, loss, lambda kept: kept[2]

    def renormalised(k: int) -> tuple[Told, Callable[[Any, Tensor], Tensor], Callable[[Any], float]]:
        """The usual top-k: what is left out is as if it were not there."""

        def keep(logits: Tensor, draw: np.random.Generator) -> Any:
            return logits.topk(k, dim=-1)

        def loss(kept: Any, student: Tensor) -> Tensor:
            values, ids = kept
            target = torch.zeros_like(student).scatter(-1, ids, values.softmax(-1))
            return -(target * student.log_softmax(-1)).sum(-1).mean()

        return keep, loss, lambda kept: 4.0 * k

    made = {"dense": of(Dense())}
    made |= {f"sampled, {draws} draws": of(Sampled(draws, 1.0)) for draws in (8, 12, 16, 24)}
    made |= {f"independent, {draws} draws": independent(draws) for draws in (12, 16, 24)}
    made |= {f"top-{k} with tail": of(TopK(k, (1.0,))) for k in (8, 25, 50, 128)}
    made |= {f"top-{k}, renormalised": renormalised(k) for k in (8, 25, 50)}
    return made


def gradient(
    student: nn.Module, pieces: list[tuple[Any, Tensor]], told: list[Any], loss: Callable[[Any, Tensor], Tensor]
) -> Tensor:
    """Of the mean over tokens, in all parameters [P]."""
    parameters = [one for one in student.parameters() if one.requires_grad]
    total = torch.zeros(sum(one.numel() for one in parameters), dtype=torch.float64)
    count = sum(len(logits) for _, logits in pieces)
    for (batch, logits), kept in zip(pieces, told, strict=True):
        answers = batch.answers(forward(student, batch.inputs(batch.expected, CPU)))
        value = loss(kept, answers) * (len(logits) / count)
        parts = torch.autograd.grad(value, parameters)
        total += torch.cat([part.flatten() for part in parts]).double()
    return total


class Piece:
    """A batch with the model's input beside it."""

    def __init__(self, batch: Any, expected: Any) -> None:
        self.batch, self.expected = batch, expected

    def __getattr__(self, name: str) -> Any:
        return getattr(self.batch, name)


def snapshots(job: Job, teacher: OnlineTeacher) -> dict[str, dict[str, Tensor]]:
    """The student at the start, in the middle and at the end of a training on all logits."""
    student = job.student(0)
    schedule, batch_at = job.schedule("student"), job.batches("student", 0, None)
    optimizer = torch.optim.AdamW(student.module.parameters(), lr=job.recipe.train.lr)
    found = {"start": {key: value.clone() for key, value in student.module.state_dict().items()}}
    for step in range(schedule.steps):
        settings = schedule.at(step)
        for group in optimizer.param_groups:
            group["lr"] = settings.lr
        batch = batch_at(step, settings)
        loss = kl(batch.answers(forward(student.module, batch.inputs(student.input, CPU))), teacher(batch, []).logits)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step + 1 in (schedule.steps // 2, schedule.steps):
            name = "end" if step + 1 == schedule.steps else "middle"
            found[name] = {key: value.clone() for key, value in student.module.state_dict().items()}
    return found


def angle(one: Tensor, other: Tensor) -> float:
    """In degrees."""
    cosine = float(one @ other / (one.norm() * other.norm()))
    return math.degrees(math.acos(min(1.0, max(-1.0, cosine))))


def gradients(job: Job, options: argparse.Namespace) -> list[str]:
    teacher = OnlineTeacher(job.teacher, CPU, torch.float32)
    states, student = snapshots(job, teacher), job.student(0)
    student.module.eval()
    blocks = job.splits.train
    length = int(np.median(blocks.positions))
    chosen = np.random.default_rng(0).permutation(len(blocks))[: max(BLOCKS, options.tokens // length)]
    pieces = []
    for start in range(0, len(chosen), BLOCKS):
        batch = blocks.batch(chosen[start : start + BLOCKS], np.zeros(BLOCKS), 0, None)
        pieces.append((Piece(batch, student.input), teacher(batch, []).logits))
    few = pieces[:1]
    lines = [
        "| kept | bytes a token | angle at start, middle, end | bias: largest z of 50 directions | variance ÷ ‖g‖² |",
        "|---|---|---|---|---|",
    ]
    for name, (keep, loss, size) in ways().items():
        draw, angles, sizes = np.random.default_rng(1), [], []
        for state in states.values():
            student.module.load_state_dict(state)
            whole = gradient(student.module, pieces, [logits for _, logits in pieces], lambda told, own: kl(own, told))
            told = [keep(logits, draw) for _, logits in pieces]
            sizes.append(np.mean([size(one) for one in told]))
            angles.append(angle(gradient(student.module, pieces, told, loss), whole))
        student.module.load_state_dict(states["middle"])
        whole = gradient(student.module, few, [logits for _, logits in few], lambda told, own: kl(own, told))
        directions = torch.randn(50, len(whole), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        random = "draws" in name
        drawn = [
            gradient(student.module, few, [keep(logits, draw) for _, logits in few], loss) - whole
            for _ in range(options.redraws if random else 1)
        ]
        off = torch.stack([directions @ one for one in drawn])  # [redraws, 50]
        if random:
            z = off.mean(0).abs() / (off.std(0) / len(off) ** 0.5)
            bias = f"{float(z.max()):.2f}"
            spread = float(torch.stack([one.square().sum() for one in drawn]).mean() / whole.square().sum())
            variance = f"{spread:.4f}"
        else:
            bias, variance = f"‖bias‖ ÷ ‖g‖ {float(drawn[0].norm() / whole.norm()):.4f}", "0"
        lines.append(
            f"| {name} | {np.mean(sizes):.1f} | {', '.join(f'{one:.2f}°' for one in angles)} | {bias} | {variance} |"
        )
        print(lines[-1], flush=True)
    return lines


def qualities(recipe: Path, options: argparse.Namespace, folder: Path) -> list[str]:
    """The student's bits per byte from stores of each codec, over seeds."""
    common = [f"compare.seeds={options.seeds}", "compare.baseline=false", "train.threads=1"]
    lines = ["| trained from | bits per byte, mean ± standard deviation | store, bytes |", "|---|---|---|"]
    for name, sets in {
        "dense": ["capture.codec=dense"],
        "sampled, 12 draws": ["capture.codec=sampled", "capture.draws=12"],
        "top-8 with tail": ["capture.codec=top-k", "capture.k=8"],
    }.items():
        store = folder / name.replace(" ", "-")
        capture(load_recipe(recipe, [*common, *sets]), store, track=progress.track)
        made = load_recipe(recipe, [*common, f"teacher.store={store}"])
        result = run(made, folder / f"run-{store.name}", track=progress.track, deliver_files=False)
        arm = result["arms"]["student"]
        size = sum(path.stat().st_size for path in store.rglob("*.arrow"))
        lines.append(f"| {name} | {arm['mean']:.4f} ± {arm['std'] or 0:.4f} | {size:,} |")
        print(lines[-1], flush=True)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabulary", type=int, default=4096)
    parser.add_argument("--epochs", type=float, default=1.5)
    parser.add_argument("--tokens", type=int, default=16_384)
    parser.add_argument("--redraws", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=3, help="0 leaves the trainings out")
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "estimators")
    options = parser.parse_args()
    torch.set_num_threads(1)
    folder = options.out / str(options.vocabulary)
    folder.mkdir(parents=True, exist_ok=True)
    recipe = recipe_of(folder, options.vocabulary, options.epochs)
    job = assemble(load_recipe(recipe, [*options.overrides, "train.threads=1"]), progress.track)
    fit_teacher(job, folder / "teacher", lambda line: None, progress.track, resume=True)
    here, date = hardware(), datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    page = [
        f"# Codecs on {options.vocabulary:,} ids, {date}",
        "",
        f"Hardware: {here['cpu']}, {here['cores']} cores, 1 thread. torch {torch.__version__}.  ",
        f"Command: `python benchmarks/estimators.py --vocabulary {options.vocabulary} --epochs {options.epochs:g} "
        f"--tokens {options.tokens} --redraws {options.redraws} --seeds {options.seeds}`.",
        "",
        f"Gradients of the whole student over {options.tokens:,} tokens; bias and variance over "
        f"{options.redraws} redraws on {BLOCKS} blocks, in the middle of the training. DistillKit publishes 114 and "
        "300 bytes a token, for 50 and 128 classes.",
        "",
        *gradients(job, options),
    ]
    if options.seeds:
        page += ["", *qualities(recipe, options, folder)]
    out = ROOT / "benchmarks" / "results" / f"{date[:10]}-estimators-{options.vocabulary}.md"
    out.write_text("\n".join(page) + "\n", encoding="utf-8")
    print("\n".join(page))


if __name__ == "__main__":
    main()
