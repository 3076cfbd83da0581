"""Methods against each other: ResNet-8 from ResNet-56 on CIFAR-10, all arms of a seed in lockstep on one teacher pass.

    python benchmarks/methods.py train --seed 0 [--images 15000] [--epochs 12]    writes one seed's results
    python benchmarks/methods.py cost                                             measures what a step costs
    python benchmarks/methods.py page                                             makes the table of what is there

Every arm has the same initial weights, views, steps and learning rates, and the alpha and temperature of the recipe; a
term comes beside plain kl, with the weight that balances their gradients: no arm was tuned. Each arm reads the test set
once, with its final weights.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import date
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edgestill import folder, progress
from edgestill.assemble import BASELINE, STUDENT, Job, assemble
from edgestill.data.images import spaced
from edgestill.data.splitting import subset
from edgestill.evaluate.metric import predictor
from edgestill.evaluate.paired import over_seeds
from edgestill.models import Model, forward
from edgestill.objective import Objective, Parts
from edgestill.recipe import Recipe, load_recipe
from edgestill.schedule import Settings
from edgestill.signals import Signal
from edgestill.taps import record
from edgestill.tasks.images import Batch
from edgestill.teachers.online import OnlineTeacher

RESULTS = Path(__file__).parent / "results" / "methods"
LAST = {"student": ["layer3"], "teacher": ["layer3"], "weight": "balanced"}
CPU = torch.device("cpu")


def term(loss: str, **more: Any) -> dict[str, Any]:
    return {"terms": [{"loss": loss, "weight": "balanced", **more}]}


METHODS: dict[str, dict[str, Any]] = {
    BASELINE: {},
    "kl": {"loss": "kl"},
    "kl, standardized": {"loss": "kl", "standardize": True, "temperature": 2},
    "reverse_kl": {"loss": "reverse_kl"},
    "jensen_shannon": {"loss": "jensen_shannon"},
    "dkd": {"loss": "dkd"},
    "nkd": {"loss": "nkd"},
    "dist": {"loss": "dist"},
    "kl + hint": term("hint"),
    "kl + pyramid": term("pyramid"),
    "kl + attention_transfer": term("attention_transfer"),
    "kl + sp": term("sp", **LAST),
    "kl + rkd": term("rkd", **LAST),
    "kl + pkt": term("pkt", **LAST),
    "kl + cc": term("cc", **LAST),
    "kl + cka": term("cka", **LAST),
    "kl + crd": term("crd", **LAST),
    "kl + review": term("review"),
}


def jobs(options: argparse.Namespace) -> dict[str, Job]:
    """A job an arm, all of them on the same part of the data."""
    whole = assemble(recipe(options, {}), progress.silent).splits
    splits = replace(whole, train=subset(whole.train, spaced(len(whole.train), options.images)))
    return {name: assemble(recipe(options, METHODS[name]), progress.silent, splits) for name in options.methods}


def recipe(options: argparse.Namespace, distill: dict[str, Any]) -> Recipe:
    sets = [
        f"data.source={options.data}",
        f"teacher.weights={options.weights}",
        f"train.epochs={options.epochs}",
        "train.device=cpu",
        "train.threads=1",
        "phases=[{name: distill, share: 1}]",
        *(f"distill.{key}={json.dumps(value)}" for key, value in distill.items()),
    ]
    return load_recipe("cifar10-resnet8", sets)


class Arm:
    """One student with its objective and optimizer."""

    def __init__(self, name: str, job: Job, seed: int) -> None:
        self.name, self.job = name, job
        torch.manual_seed(seed)
        self.student: Model = job.student(seed)
        self.objective: Objective = job.objective(BASELINE if name == BASELINE else STUDENT)
        self.schedule = job.schedule(BASELINE if name == BASELINE else STUDENT)
        self.student.module.to(memory_format=torch.channels_last).train()
        self.parameters = [*self.student.module.parameters()]
        self.optimizer = torch.optim.SGD(
            [*self.parameters, *self.objective.parameters()], lr=0.0, momentum=0.9, nesterov=True, weight_decay=1e-4
        )

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The student's logits and taps."""
        with record(self.student.module, self.objective.student_taps) as taps:
            return forward(self.student.module, batch.inputs(self.student.input, CPU)), taps

    def parts(
        self, outputs: Tensor, taps: dict[str, Tensor], batch: Batch, signal: Signal, settings: Settings
    ) -> Parts:
        indices = torch.from_numpy(batch.indices)
        parts: Parts = self.objective(
            outputs, batch.labels, signal, taps, alpha=settings.alpha, terms=settings.terms, indices=indices
        )
        return parts

    def step(self, step: int, batch: Batch, signal: Signal) -> None:
        settings = self.schedule.at(step)
        self.optimizer.param_groups[0]["lr"] = settings.lr
        parts = self.parts(*self.forward(batch), batch, signal, settings)
        if self.objective.balancing:
            parts = self.objective.balance(parts, self.parameters)
        self.optimizer.zero_grad(set_to_none=True)
        parts.loss.backward()
        self.optimizer.step()


def train(options: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    found = jobs(options)
    arms = [Arm(name, job, options.seed) for name, job in found.items()]
    base = next(iter(found.values()))
    teacher = OnlineTeacher(base.teacher, CPU, torch.float32)
    taps = sorted({tap for arm in arms for tap in arm.objective.teacher_taps})
    schedule = next(arm.schedule for arm in arms if arm.name != BASELINE)
    batch_at = base.batches(STUDENT, options.seed, None)
    for step in progress.track(range(schedule.steps), f"seed {options.seed}", schedule.steps):
        batch = batch_at(step, schedule.at(step))
        signal = teacher(batch, taps)
        for arm in arms:
            arm.step(step, batch, signal)
    test = base.splits.test
    quality = {
        arm.name: base.metric.quality(
            base.metric.answers(predictor(arm.student.module, arm.student.input, CPU), test, arm.student.input), test
        )
        for arm in arms
    }
    balanced = {arm.name: arm.objective.balances for arm in arms if arm.objective.balances}
    about = folder.environment(
        1, {"train": base.splits.train.fingerprint, "test": test.fingerprint}, [options.seed], "cpu"
    )
    del about["command"]
    RESULTS.mkdir(parents=True, exist_ok=True)
    written = {"date": str(date.today()), "images": options.images, "epochs": options.epochs, "steps": schedule.steps}
    written |= {"seed": options.seed, "test_accuracy": quality, "weights": balanced, "environment": about}
    (RESULTS / f"seed-{options.seed}.json").write_text(json.dumps(written, indent=1) + "\n")
    print(json.dumps(quality, indent=1))


def cost(options: argparse.Namespace) -> None:
    """What each objective costs, forward and backward to the student's logits and taps, against the student's own
    forward and backward; arms by turns, on one teacher pass."""
    torch.set_num_threads(1)
    arms = [Arm(name, job, 0) for name, job in jobs(options).items()]
    base = arms[0].job
    teacher = OnlineTeacher(base.teacher, CPU, torch.float32)
    taught = sorted({tap for arm in arms for tap in arm.objective.teacher_taps})
    batch_at, schedule = base.batches(STUDENT, 0, None), arms[-1].schedule
    spent: dict[str, list[tuple[float, float]]] = {arm.name: [] for arm in arms}
    for step in progress.track(range(options.steps), "cost", options.steps):
        batch = batch_at(step, schedule.at(step))
        signal = teacher(batch, taught)
        for arm in arms:
            started = perf_counter()
            outputs, taps = arm.forward(batch)
            forwarded = perf_counter()
            leaves = {name: tap.detach().requires_grad_() for name, tap in taps.items()}
            logits_leaf = outputs.detach().requires_grad_()
            arm.parts(logits_leaf, leaves, batch, signal, arm.schedule.at(step)).loss.backward()
            compared = perf_counter()
            ends = [(outputs, logits_leaf), *((taps[name], leaf) for name, leaf in leaves.items())]
            torch.autograd.backward([end for end, _ in ends], [leaf.grad for _, leaf in ends])
            done = perf_counter()
            spent[arm.name].append((compared - forwarded, done - started - (compared - forwarded)))
    kl = np.array(spent["kl"]).sum(1)
    written = {}
    for name, pairs in spent.items():
        loss, student = np.array(pairs).T
        written[name] = {
            "loss_milliseconds": float(np.median(loss) * 1e3),
            "loss_share_of_student": float(np.median(loss / student)),
            "relative_to_kl": float(np.median((loss + student) / kl)),
        }
    about = folder.environment(1, {}, [0], "cpu")
    del about["command"]
    RESULTS.mkdir(parents=True, exist_ok=True)
    page = {"date": str(date.today()), "steps": options.steps, "cost": written, "environment": about}
    (RESULTS / "cost.json").write_text(json.dumps(page, indent=1) + "\n")
    for name, row in written.items():
        share = row["loss_share_of_student"]
        print(f"{name:<26} {row['loss_milliseconds']:7.2f} ms  {share:6.1%}  ×{row['relative_to_kl']:.3f}")


def page(_: argparse.Namespace) -> None:
    """The table of the seeds that are there."""
    seeds = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("seed-*.json"))]
    if not seeds:
        raise SystemExit(f"no seed's results in {RESULTS}: train some first")
    costs = json.loads((RESULTS / "cost.json").read_text()) if (RESULTS / "cost.json").exists() else None
    text = "\n".join(_page(seeds, costs)) + "\n"
    (RESULTS.parent / f"{seeds[-1]['date']}-methods.md").write_text(text)
    print(text)


def _page(seeds: list[dict[str, Any]], costs: dict[str, Any] | None) -> Iterator[str]:
    first = seeds[0]
    hardware, versions = first["environment"]["hardware"], first["environment"]["versions"]
    yield f"# Methods, {seeds[-1]['date']}"
    yield ""
    yield f"ResNet-56 into ResNet-8, CIFAR-10, {first['images']:,} training images, {first['epochs']:g} epochs, "
    yield f"batch 128, seeds {', '.join(str(seed['seed']) for seed in seeds)}. Same initial weights, views, steps and "
    yield "learning rates in every arm; alpha 0.9, temperature 4 (2 where standardized); terms beside plain kl, their "
    yield "weight balanced over the first 20 steps; nothing was tuned. Test accuracy of the final weights on 10,000 "
    yield f"images, read once an arm and seed. {hardware['cpu']}, one thread, torch {versions['torch']}, "
    yield f"commit {first['environment']['git_commit'][:7]}."
    yield ""
    yield "| method | mean | std | − kl, points | 95 % interval over seeds | step ÷ kl's | loss ÷ student |"
    yield "|---|---|---|---|---|---|---|"
    kl = [seed["test_accuracy"]["kl"] for seed in seeds]
    rows = {name: [seed["test_accuracy"][name] for seed in seeds] for name in first["test_accuracy"]}
    ranked = []
    for name, values in sorted(rows.items(), key=lambda item: -float(np.mean(item[1]))):
        cells = [name, f"{np.mean(values):.2%}", f"{np.std(values, ddof=1) * 100:.2f}" if len(values) > 1 else "–"]
        if name == "kl" or len(seeds) < 2:
            cells += ["–", "–"]
        else:
            difference = over_seeds(values, kl)
            low, high = difference.interval or (float("nan"), float("nan"))
            cells += [f"{difference.mean * 100:+.2f}", f"[{low * 100:+.2f}, {high * 100:+.2f}]"]
            if low > 0 or high < 0:
                ranked.append(f"{name} {'above' if low > 0 else 'below'} kl")
        paid = costs["cost"].get(name) if costs else None
        cells += [f"{paid['relative_to_kl']:.3f}", f"{paid['loss_share_of_student']:.1%}"] if paid else ["–", "–"]
        yield f"| {' | '.join(cells)} |"
    yield ""
    yield f"Pairs whose interval excludes zero: {'; '.join(ranked) or 'none'}. The others are not ranked."
    yield "Equal alpha is not equal pull: on the standard pair of `edgestill losses` `jensen_shannon` has a fifth of"
    yield "kl's gradient and `dkd` five times it, and the authors of standardized logits give them ten times"
    yield "the weight. A balanced weight is measured in the first steps and held; whether it suits the later ones was"
    yield "not measured."
    if costs:
        yield ""
        yield f"Costs: medians over {costs['steps']} steps taken by turns, {costs['date']}, one thread: the "
        yield "objective's forward and backward, aligners included, over the student's own. Not in the"
        unseen = [(name, paid) for name, paid in costs["cost"].items() if name not in rows]
        listed = ", ".join(f"{name} {paid['loss_share_of_student']:.0%}" for name, paid in unseen)
        yield f"comparison, but measured: {listed}." if listed else "table: none."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    verbs = parser.add_subparsers(required=True)
    for name, verb in (("train", train), ("cost", cost), ("page", page)):
        sub = verbs.add_parser(name)
        sub.set_defaults(verb=verb)
        sub.add_argument("--data", default="../shared/data/cifar10")
        sub.add_argument("--weights", default="../shared/weights/cifar10_resnet/resnet56.safetensors")
        sub.add_argument("--images", type=int, default=15000)
        sub.add_argument("--epochs", type=float, default=12)
        sub.add_argument("--steps", type=int, default=60)
        sub.add_argument("--seed", type=int, default=0)
        sub.add_argument("--methods", nargs="+", default=[*METHODS])
    options = parser.parse_args()
    options.verb(options)


if __name__ == "__main__":
    main()
