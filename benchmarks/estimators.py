"""What a codec does to the gradient, on real tokens of a trained model: bias, variance, angle, and the student's end.

    python benchmarks/estimators.py [--vocabulary 4096] [--epochs 1.5] [--tokens 16384] [--redraws 200] [--seeds 3]

The built-in recipe python-code with another size of vocabulary: its teacher, fitted once and kept, and its student
before, in the midst of and behind a training on all logits. Writes a dated page to benchmarks/results.

N tokens, V vocabulary, P parameters.
"""

import argparse
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from edgestill import progress
from edgestill.arms import fit_teacher
from edgestill.assemble import Job, assemble
from edgestill.losses import bucketed, drawn_kl, kl
from edgestill.models import Model, forward
from edgestill.reading import builtin
from edgestill.recipe import load_recipe
from edgestill.runs import run
from edgestill.runtimes.measure import hardware
from edgestill.signals import Draws
from edgestill.store import Codec, Dense, Sampled, TopK
from edgestill.stores import capture
from edgestill.tasks.samples import Batch
from edgestill.teachers.online import OnlineTeacher

ROOT = Path(__file__).resolve().parents[1]
CPU = torch.device("cpu")
BLOCKS = 8  # of a batch
DIRECTIONS = 50

State = dict[str, Tensor]
Table = dict[str, list[float]]


class Way(NamedTuple):
    """A way of keeping a teacher's logits [N, V]: what of them is kept, drawn anew; the loss of it against a student's
    logits; bytes a token; and whether another draw keeps something else."""

    keep: Callable[[Tensor, np.random.Generator], Any]
    loss: Callable[[Any, Tensor], Tensor]
    size: Callable[[Any], float]
    random: bool


def recipe_of(folder: Path, vocabulary: int, epochs: float) -> Path:
    """python-code with another vocabulary, as files of its own."""
    source = builtin()["python-code"]
    code = source.with_name("python_code.py").read_text(encoding="utf-8")
    (folder / "python_code.py").write_text(code.replace("VOCABULARY = 2048", f"VOCABULARY = {vocabulary}"), "utf-8")
    text = source.read_text(encoding="utf-8").replace("epochs: 1.5", f"epochs: {epochs}")
    (folder / "recipe.yaml").write_text(text, "utf-8")
    return folder / "recipe.yaml"


def ways() -> dict[str, Way]:
    """The codecs, and what others do, by name."""

    def of(codec: Codec) -> Way:
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

        return Way(keep, loss, lambda kept: kept[1], isinstance(codec, Sampled))

    def independent(draws: int) -> Way:
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

        return Way(keep, loss, lambda kept: kept[2], True)

    def renormalised(k: int) -> Way:
        """The usual top-k: what is left out is as if it were not there."""

        def keep(logits: Tensor, draw: np.random.Generator) -> Any:
            return logits.topk(k, dim=-1)

        def loss(kept: Any, student: Tensor) -> Tensor:
            values, ids = kept
            target = torch.zeros_like(student).scatter(-1, ids, values.softmax(-1))
            return -(target * student.log_softmax(-1)).sum(-1).mean()

        return Way(keep, loss, lambda kept: 4.0 * k, False)

    made = {"dense": of(Dense())}
    made |= {f"sampled, {draws} draws": of(Sampled(draws, 1.0)) for draws in (8, 12, 16, 24)}
    made |= {f"independent, {draws} draws": independent(draws) for draws in (12, 16, 24)}
    made |= {f"top-{k} with tail": of(TopK(k, (1.0,))) for k in (8, 25, 50, 128)}
    made |= {f"top-{k}, renormalised": renormalised(k) for k in (8, 25, 50)}
    return made


def gradients_of(
    student: Model, batch: Batch, losses: Callable[[Tensor], Iterator[Tensor]], share: float
) -> Iterator[Tensor]:
    """Of each loss of one forward pass, times `share`, in all parameters [P]."""
    parameters = [one for one in student.module.parameters() if one.requires_grad]
    answers = batch.answers(forward(student.module, batch.inputs(student.input, CPU)))
    for loss in losses(answers):
        parts = torch.autograd.grad(loss * share, parameters, retain_graph=True)
        yield torch.cat([part.flatten() for part in parts])


def snapshots(job: Job, teacher: OnlineTeacher) -> dict[str, State]:
    """The student at the start, in the middle and at the end of a training on all logits."""
    student = job.student(0)
    schedule, batch_at = job.schedule("student"), job.batches("student", 0, None)
    optimizer = torch.optim.AdamW(student.module.parameters(), lr=job.recipe.train.lr)
    found: dict[str, State] = {"start": {key: value.clone() for key, value in student.module.state_dict().items()}}
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


def angles(job: Job, states: Mapping[str, State], batches: list[Batch], teacher: OnlineTeacher) -> Table:
    """By way of keeping, over all tokens: bytes a token, and at each state degrees between its gradient and the whole
    one."""
    student, made = job.student(0), ways()
    count = sum(len(batch.labels) for batch in batches)
    turned: Table = {name: [] for name in made}
    sizes = Counter[str]()
    for state in states.values():
        student.module.load_state_dict(state)
        student.module.eval()
        draw, totals = np.random.default_rng(1), dict.fromkeys(["whole", *made], torch.zeros(()))
        for batch in batches:
            logits = teacher(batch, []).logits
            kept = {name: way.keep(logits, draw) for name, way in made.items()}

            def losses(own: Tensor, logits: Tensor = logits, kept: dict[str, Any] = kept) -> Iterator[Tensor]:
                yield kl(own, logits)
                yield from (way.loss(kept[name], own) for name, way in made.items())

            parts = gradients_of(student, batch, losses, len(logits) / count)
            totals = {name: totals[name] + part.double() for name, part in zip(totals, parts, strict=True)}
            sizes.update({name: way.size(kept[name]) * len(logits) for name, way in made.items()})
        for name in made:
            turned[name].append(angle(totals[name], totals["whole"]))
    return {name: [sizes[name] / count / len(states), *each] for name, each in turned.items()}


def biases(
    job: Job, state: State, batch: Batch, teacher: OnlineTeacher, redraws: int
) -> dict[str, tuple[str, str, str]]:
    """By way of keeping, on one batch: how far its gradient is from the whole one in the mean over redraws, and how far
    a single one, both over the whole one's length."""
    student = job.student(0)
    student.module.load_state_dict(state)
    student.module.eval()
    logits, found = teacher(batch, []).logits, {}
    assert isinstance(logits, Tensor)
    (whole,) = gradients_of(student, batch, lambda own: iter([kl(own, logits)]), 1.0)
    directions = torch.randn(DIRECTIONS, len(whole), generator=torch.Generator().manual_seed(0))
    for name, way in ways().items():
        draw = np.random.default_rng(1)
        times = redraws if way.random else 1

        def losses(own: Tensor, way: Way = way, draw: Any = draw, times: int = times) -> Iterator[Tensor]:
            return (way.loss(way.keep(logits, draw), own) for _ in range(times))

        total, along, squares = torch.zeros(len(whole), dtype=torch.float64), [], []
        for one in gradients_of(student, batch, losses, 1.0):
            off = one - whole
            total += off
            along.append(directions @ off)
            squares.append(float(off.square().sum()))
        length = float(whole.norm())
        off_mean = float(total.norm()) / times / length
        z = ""
        if way.random:
            each = torch.stack(along)
            z = f"{float((each.mean(0) / (each.std(0) / times**0.5)).abs().max()):.1f}"
        found[name] = (f"{off_mean:.4f}", f"{np.mean(squares) ** 0.5 / length:.4f}", z)
    return found


def gradients(job: Job, options: argparse.Namespace) -> list[str]:
    teacher = OnlineTeacher(job.teacher, CPU, torch.float32)
    states, blocks = snapshots(job, teacher), job.splits.train
    chosen = np.random.default_rng(0).permutation(len(blocks))[: options.tokens // int(np.median(blocks.positions))]
    batches = [
        blocks.batch(chosen[start : start + BLOCKS], np.zeros(BLOCKS, np.int64), 0, None)
        for start in range(0, len(chosen), BLOCKS)
    ]
    whole = angles(job, states, batches, teacher)
    off = biases(job, states["middle"], batches[0], teacher, options.redraws)
    lines = [
        "| kept | bytes a token | degrees at the start | middle | end | off in the mean | largest z | off once |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, (size, *turned) in whole.items():
        mean, once, z = off[name]
        lines.append(f"| {name} | {size:.1f} | {' | '.join(f'{one:.2f}' for one in turned)} | {mean} | {z} | {once} |")
    return lines


def qualities(recipe: Path, options: argparse.Namespace, folder: Path) -> list[str]:
    """The student's bits per byte from stores of each codec, over seeds."""
    common = [*options.overrides, f"compare.seeds={options.seeds}", "compare.baseline=false", "train.threads=1"]
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
        f"--tokens {options.tokens} --redraws {options.redraws} --seeds {options.seeds}"
        f"{''.join(f' --set {one}' for one in options.overrides)}`.",
        "",
        f"The gradient of forward KL at temperature 1 in all weights of the student over {options.tokens:,} tokens, at "
        "the start, in the middle and at the end of a training on all logits: degrees between that of what was kept "
        "and that of all logits. How far it is off, over the length of that of all logits, on the first "
        f"{BLOCKS} blocks in the middle of the training: in the mean over {options.redraws} redraws, with the largest "
        f"|z| of that along {DIRECTIONS} random directions (of unbiased draws about 2.7), and of a single draw. "
        "DistillKit publishes 114 and 300 bytes a token, for 50 and 128 classes.",
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
