"""The built-in recipe cifar10-resnet8, run whole, as a dated page in benchmarks/results.

python benchmarks/cifar10_resnet8.py --data my/cifar10 --weights my/resnet56.safetensors [--out RUN] [--set K=V]…
python benchmarks/cifar10_resnet8.py --finished RUN     writes the page of a run that is there
"""

import argparse
import json
from pathlib import Path

import edgestill as es
from edgestill.units import format_bytes, format_seconds
from edgestill.words import percent, points, summary

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="../shared/data/cifar10")
    parser.add_argument("--weights", default="../shared/weights/cifar10_resnet/resnet56.safetensors")
    parser.add_argument("--out", default="runs/cifar10-resnet8", type=Path)
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    parser.add_argument("--finished", type=Path)
    options = parser.parse_args()
    run = options.finished
    if run is None:
        run = options.out
        sets = [f"data={options.data}", f"teacher.weights={options.weights}", *options.overrides]
        es.run(es.load_recipe("cifar10-resnet8", sets), run)
    result, environment = (json.loads((run / name).read_text()) for name in ("result.json", "environment.json"))
    name = f"{result['date'][:10]}-cifar10-resnet8"
    del result["schedule"]
    for role in ("teacher", "student"):  # a path of the machine that ran it
        result[role]["model"] = Path(result[role]["model"]).name
    kept = {
        key: environment[key] for key in ("versions", "hardware", "system", "threads", "git_commit", "seeds", "data")
    }
    (RESULTS / f"{name}.json").write_text(json.dumps({"result": result, "environment": kept}, indent=1) + "\n")
    (RESULTS / f"{name}.md").write_text(page(result, kept, options.overrides))


def page(result: dict, environment: dict, overrides: list[str]) -> str:
    hardware = environment["hardware"]
    sets = "".join(f" --set {override}" for override in overrides)
    lines = [f"# cifar10-resnet8, {result['date']}", "", "```", *summary(result), "```", ""]
    lines += [
        f"Command: `edgestill run cifar10-resnet8 --set data=… --set teacher.weights=resnet56.safetensors{sets}`  ",
        f"Hardware: {hardware['cpu']}, {hardware['cores']} cores, {environment['threads']} training thread(s), "
        f"device {hardware['device']}; {environment['system']}  ",
        "Versions: " + ", ".join(f"{name} {version}" for name, version in environment["versions"].items()) + "  ",
        f"Code: commit {environment['git_commit']}",
        "",
        "| | accuracy | bytes | p50 ms | p90 | p99 | peak memory | agreement |",
        "|---|---|---|---|---|---|---|---|",
    ]
    teacher, arms = result["teacher"], result["arms"]
    lines.append(f"| teacher, float32 ONNX | {percent(teacher['quality'])} | {_measured(teacher)} | |")
    for name, arm in arms.items():
        lines.append(f"| {name} (PyTorch, {len(arm['seeds'])} seed) | {percent(arm['mean'])} | | | | | | |")
    for artifact in result["artifacts"]:
        scored = f"{percent(artifact['quality'])} ({artifact['quality_measured']})"
        lines.append(f"| {artifact['name']} | {scored} | {_measured(artifact)} | {percent(artifact['agreement'])} |")
    difference = arms["student"]["difference"]
    lines += ["", f"Student − baseline: {points(difference['mean'])} points, 95 % interval "]
    lines[-1] += (
        f"[{points(difference['interval'][0])}, {points(difference['interval'][1])}] over {difference['over']}."
    )
    seconds = ", ".join(f"{name} {format_seconds(value)}" for name, value in result["seconds"].items())
    lines += ["", f"Times: {seconds}. All figures measured in this run."]
    return "\n".join(lines) + "\n"


def _measured(entry: dict) -> str:
    latency = " | ".join(f"{entry['latency_ms'][name]:.3f}" for name in ("p50", "p90", "p99"))
    return f"{entry['bytes']:,} | {latency} | {format_bytes(entry['peak_memory_bytes'])}"


if __name__ == "__main__":
    main()
