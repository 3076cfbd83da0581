"""CIFAR-10 from a store: ten views of every image captured once, then ResNet-8 and its baseline for 100 epochs.

    python benchmarks/cifar10_store.py [--data my/cifar10] [--weights my/resnet56.safetensors] [--out RUN] [--set K=V]…

It goes on with what is in RUN, and where all is done writes a dated page to benchmarks/results: the files, the gain
over the baseline, and the total time beside that of a teacher that is asked in every step.
"""

import argparse
import json
from pathlib import Path
from time import perf_counter

from edgestill import progress
from edgestill.recipe import load_recipe
from edgestill.runs import run
from edgestill.stores import capture, plan
from edgestill.words import percent, points

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
VIEWS, BATCH = 10, 128


def captured(sets: list[str], out: Path) -> dict[str, float]:
    """Captures, and returns what was planned and what it took: seconds, bytes. Several calls add up."""
    notes = out / "capture.json"
    recipe = load_recipe("cifar10-resnet8", [*sets, f"capture.views={VIEWS}"])
    if not notes.is_file():
        planned = plan(recipe, track=progress.track)
        size = next(codec["bytes"] for codec in planned["codecs"] if codec["name"] == "dense")
        said = {"planned_seconds": planned["seconds"], "planned_bytes": size, "seconds": 0.0, "done": False}
        notes.write_text(json.dumps(said))
    said = json.loads(notes.read_text())
    if not said["done"]:
        started = perf_counter()
        try:
            capture(recipe, out / "store", track=progress.track)
            said["done"] = True
        finally:
            said["seconds"] += perf_counter() - started
            notes.write_text(json.dumps(said))
    size = sum(path.stat().st_size for path in (out / "store").rglob("*") if path.is_file())
    return said | {"bytes": size}


def page(result: dict, environment: dict, store: dict[str, float], command: str) -> str:
    here, seconds, arms = environment["hardware"], result["seconds"], result["arms"]
    student, baseline = arms["student"], arms["baseline"]
    seeds, difference = len(student["seeds"]), student["difference"]
    taught = sum(phase["steps"] for phase in result["phases"] if phase["name"] != "finetune") * seeds
    a_batch = BATCH * store["seconds"] / (VIEWS * result["data"]["train"])
    asked = taught * a_batch
    online, stored = seconds["student"] + asked, seconds["student"] + store["seconds"]
    lines = [
        f"# CIFAR-10 from a store, {result['date']}",
        "",
        f"Hardware: {here['cpu']}, {here['cores']} cores, {environment['threads']} thread, other work beside it.  ",
        f"Command: `{command}`.",
        "",
        f"| | accuracy on the test, mean ± standard deviation of {seeds} seeds | bytes | p50 ms | over the teacher |",
        "|---|---|---|---|---|",
        f"| teacher, float32 ONNX | {percent(result['teacher']['quality'])} | {result['teacher']['bytes']:,} | "
        f"{result['teacher']['latency_ms']['p50']:.3f} | 1 |",
    ]
    for name, arm in (("baseline", baseline), ("student", student)):
        each = ", ".join(percent(seed["quality"]) for seed in arm["seeds"])
        lines.append(f"| {name} | {percent(arm['mean'])} ± {percent(arm['std'] or 0)} ({each}) | | | |")
    for artifact in result["artifacts"]:
        lines.append(
            f"| {artifact['name']}, of the seed that validation chose | {percent(artifact['quality'])} | "
            f"{artifact['bytes']:,} | {artifact['latency_ms']['p50']:.3f} | {artifact['latency_ratio']:.3f} |"
        )
    low, high = difference["interval"]
    return "\n".join(
        [
            *lines,
            "",
            f"Student − baseline: {points(difference['mean'])} points [{points(low)}, {points(high)}] over "
            f"{difference['over']}. MLPerf Tiny's int8 reference: 86.97 %, 98,496 bytes (quoted, another runtime).",
            "",
            "| | planned | measured |",
            "|---|---|---|",
            f"| capture of ten views, minutes | {store['planned_seconds'] / 60:.1f} | {store['seconds'] / 60:.1f} |",
            f"| store, bytes | {store['planned_bytes']:,} | {store['bytes']:,} |",
            f"| {seeds} baselines, minutes | | {seconds['baseline'] / 60:.0f} |",
            f"| {seeds} students from the store, minutes | | {seconds['student'] / 60:.0f} |",
            f"| students and capture, minutes | | {stored / 60:.0f} |",
            "",
            f"With the teacher asked in each of the {taught:,} steps that it teaches, at {a_batch * 1e3:.0f} ms "
            f"a batch (estimated from the capture): {online / 60:.0f} minutes, {online / stored:.2f} times as long.",
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=SHARED / "data" / "cifar10", type=Path)
    parser.add_argument("--weights", default=SHARED / "weights" / "cifar10_resnet" / "resnet56.safetensors", type=Path)
    parser.add_argument("--epochs", default=100, type=int)
    parser.add_argument("--seeds", default=3, type=int)
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    parser.add_argument("--out", default=ROOT / "runs" / "cifar10-store", type=Path)
    options = parser.parse_args()
    out: Path = options.out
    out.mkdir(parents=True, exist_ok=True)
    sets = [f"data.source={options.data.resolve()}", f"teacher.weights={options.weights.resolve()}", "train.threads=1"]
    sets += [f"train.batch_size={BATCH}", *options.overrides]  # the store is of one precision, that of the training
    store = captured(sets, out)
    sets += [f"teacher.store={out / 'store'}", f"train.epochs={options.epochs}", f"compare.seeds={options.seeds}"]
    recipe = load_recipe("cifar10-resnet8", sets)
    result = run(recipe, out / "run", resume=(out / "run").exists(), track=progress.track)
    more = "".join(f" --set {override}" for override in options.overrides)
    command = f"python benchmarks/cifar10_store.py --epochs {options.epochs} --seeds {options.seeds}{more}"
    text = page(result, json.loads((out / "run" / "environment.json").read_text()), store, command)
    (ROOT / "benchmarks" / "results" / f"{result['date'][:10]}-cifar10-store.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
