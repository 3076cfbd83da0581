"""The planner on CIFAR-10: of ResNet-56, cut in 20 ways, the student for each of three budgets, against random ones.

    python benchmarks/search.py SIZE LATENCY [--data my/cifar10] [--weights my/resnet56.safetensors] [--store DIR] …
    python benchmarks/search.py --page [--out DIR]

For a budget as "50 KB" "0.2 ms": the search from a store, the chosen student's training for 10 epochs, its file
measured five more times; then students that are drawn at random among those that fit, until their trainings have cost
as much as the search and its choice's training. Trainings cost their operations, which other work on the machine does
not change; measuring the files costs as many as were trained in that time. It goes on with what is in --out. `--page`
writes a dated page of all that is there.
"""

import argparse
import json
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from edgestill import load_recipe, progress, run, search
from edgestill.recipe import candidates
from edgestill.runs import bench_again
from edgestill.words import percent

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
SPACE = "{from_teacher: {depth: [3, 6, 9, 15, 27], width: [0.25, 0.5, 0.75, 1.0]}}"
MEASUREMENTS = 5


def measured(options: argparse.Namespace) -> None:
    """One budget, from the search to the random students."""
    out = options.out / options.size.replace(" ", "")
    sets = [
        f"data.source={options.data.resolve()}",
        f"teacher.weights={options.weights.resolve()}",
        f"student={{search: {SPACE}}}",
        f"budget={{size: {options.size}, latency: {options.latency}, runtime: onnxruntime, threads: 1}}",
        "export=[onnx-int8]",
        "compare={seeds: 1, baseline: false, scratch: false}",
        f"train.epochs={options.epochs}",
        "train.threads=1",
        "train.precision=bf16",
        "capture.views=10",
        *([f"teacher.store={options.store.resolve()}"] if options.store else []),
    ]
    recipe = load_recipe("cifar10-resnet8", sets)
    result = search(recipe, out, resume=(out / "recipe.yaml").exists(), track=progress.track)
    found, chosen = result["search"], out / "chosen"
    notes = options.out / f"{out.name}.json"
    said = json.loads(notes.read_text()) if notes.is_file() else {"measurements": [], "random": []}
    while len(said["measurements"]) < MEASUREMENTS:
        budget = bench_again(chosen, track=progress.track)["budget"]
        said["measurements"].append(budget)
        notes.write_text(json.dumps(said))
    flops = {one["name"]: one.get("flops", 0) for one in found["candidates"]}
    trials = sum(flops[one["name"]] * rung["share"] for one in found["candidates"] for rung in one.get("rungs", ()))
    cost = trials * (1 + found["seconds"]["costs"] / found["seconds"]["trials"]) / flops[found["chosen"]] + 1
    fitting = [one["name"] for one in found["candidates"] if one["fits"]]
    space = {name: one.recipe for name, one in candidates(recipe).items()}
    order = [fitting[number] for number in np.random.default_rng(len(fitting)).permutation(len(fitting))]
    used = sum(flops[one["name"]] for one in said["random"]) / flops[found["chosen"]]
    for number, name in [*enumerate(order)][len(said["random"]) :]:
        if used >= cost:
            break
        used += flops[name] / flops[found["chosen"]]
        place = out / f"random-{number}"
        own = run(space[name], place, resume=place.exists(), track=progress.track, deliver_files=False)
        seed = own["arms"]["student"]["seeds"][0]
        said["random"].append({"name": name} | {key: seed[key] for key in ("quality", "validation")})
        notes.write_text(json.dumps(said))
    said |= {"size": options.size, "latency": options.latency, "costs": [cost, used], "epochs": options.epochs}
    said |= {key: result[key] for key in ("search", "arms", "artifacts", "student", "teacher", "date")}
    notes.write_text(json.dumps(said, indent=1))


def page(folder: Path) -> str:
    done = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"), key=lambda path: len(path.name))]
    done = [one for one in done if "search" in one]
    where = done[0]["search"]["where"]["hardware"]
    rows, fronts = [], []
    for one in done:
        found, student = one["search"], one["arms"]["student"]["seeds"][0]
        best = max(one["random"], key=lambda drawn: drawn["validation"])
        mean = float(np.mean([drawn["quality"] for drawn in one["random"]]))
        artifact = one["artifacts"][0]
        met = sum(budget["met"] for budget in one["measurements"])
        latencies = [budget["latency"]["value"] * 1e3 for budget in one["measurements"]]
        rows.append(
            f"| {one['size']}, {one['latency']} | {sum(c['fits'] for c in found['candidates'])} of "
            f"{len(found['candidates'])} | {found['chosen']} | {artifact['bytes']:,} | {min(latencies):.3f}–"
            f"{max(latencies):.3f} | {met} of {len(latencies)} | {percent(student['quality'])} | "
            f"{percent(artifact['quality'])} | {percent(best['quality'])} ({best['name']}) | {percent(mean)} | "
            f"{len(one['random'])} | {one['costs'][0]:.1f}, {one['costs'][1]:.1f} |"
        )
        fronts += ["", f"## {one['size']}, {one['latency']}", ""]
        fronts += ["| candidate | bytes | p50 ms | validation by rung | |", "|---|---|---|---|---|"]
        for c in found["candidates"]:
            qualities = ", ".join(f"{percent(r['quality'])} at {r['share']:.0%}" for r in c.get("rungs", ()))
            file = c["files"][0] if "files" in c else None
            size, p50 = (f"{file['bytes']:,}", f"{file['latency_ms']['p50']:.3f}") if file else ("", "")
            why = "chosen" if c["name"] == found["chosen"] else c.get("why", "")
            fronts.append(f"| {c['name']}{' (front)' * bool(c.get('front'))} | {size} | {p50} | {qualities} | {why} |")
    return "\n".join(
        [
            f"# The planner on CIFAR-10, {datetime.now(UTC):%Y-%m-%d}",
            "",
            f"Hardware: {where.get('cpu', where)}, 1 thread, other work beside it. Command: "
            f"`python benchmarks/search.py SIZE LATENCY` for each budget; {done[0]['epochs']:g} epochs, one seed.",
            "",
            "| budget | fit | chosen | bytes | p50 ms, five more times | met | test, float | test, int8 file | "
            "best of random by validation | mean of random | random | cost: search and training, random |",
            "|---|---|---|---|---|---|---|---|---|---|---|---|",
            *rows,
            "",
            "Cost: in trainings of the chosen student, by operations; measuring files as what is trained meanwhile.",
            *fronts,
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("size", nargs="?")
    parser.add_argument("latency", nargs="?")
    parser.add_argument("--page", action="store_true")
    parser.add_argument("--data", default=SHARED / "data" / "cifar10", type=Path)
    parser.add_argument("--weights", default=SHARED / "weights" / "cifar10_resnet" / "resnet56.safetensors", type=Path)
    parser.add_argument("--store", type=Path)
    parser.add_argument("--epochs", default=10.0, type=float)
    parser.add_argument("--out", default=ROOT / "runs" / "search", type=Path)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.page:
        text = page(options.out)
        (ROOT / "benchmarks" / "results" / f"{datetime.now(UTC):%Y-%m-%d}-search.md").write_text(text, encoding="utf-8")
        print(text)
    elif options.size and options.latency:
        measured(options)
    else:
        parser.error("a size and a latency, or --page")


if __name__ == "__main__":
    main()
