"""The recipe python-code over three seeds: student and baseline at equal steps, paired, and how long it takes.

    python benchmarks/python_code.py [--seeds 3] [--out runs/python-code]

Writes benchmarks/results/DATE-python-code.md. A run that was interrupted is gone on with; of one that is done the page
alone is written.
"""

import argparse
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from edgestill import progress
from edgestill.recipe import load_recipe
from edgestill.runs import run
from edgestill.runtimes.measure import hardware

ROOT = Path(__file__).resolve().parents[1]
NEEDED = 0.15  # bits per byte by which the teacher is to be better than the baseline


def page(result: dict[str, Any], environment: dict[str, Any]) -> str:
    here, seconds, arms = hardware(), result["seconds"], result["arms"]
    teacher, difference = result["teacher"], arms["student"]["difference"]
    lead = arms["baseline"]["mean"] - teacher["quality"]
    lines = [
        f"# python-code, {result['date']}",
        "",
        f"Hardware: {here['cpu']}, {here['cores']} cores, {environment['threads']} thread(s) of training.  ",
        "Command: `python benchmarks/python_code.py`.",
        "",
        f"Data: the standard library of Python {environment['versions']['python']}, {result['data']['train']:,} blocks "
        f"of 128 tokens for training and {result['data']['test']:,} for the test, whose fingerprint is "
        f"{result['fingerprints']['test']}.",
        "",
        "| | parameters | bits per byte, by seed | mean ± standard deviation |",
        "|---|---|---|---|",
        f"| teacher | {teacher['parameters']:,} | {teacher['quality']:.4f} | |",
    ]
    for arm, summary in arms.items():
        seeds = ", ".join(f"{seed['quality']:.4f}" for seed in summary["seeds"])
        spread = f" ± {summary['std']:.4f}" if summary["std"] else ""
        lines.append(f"| {arm} | {result['student']['parameters']:,} | {seeds} | {summary['mean']:.4f}{spread} |")
    low, high = difference["interval"]
    lines += [
        "",
        f"The teacher is {lead:.4f} bits per byte better than the baseline ({NEEDED} are needed). Student minus "
        f"{difference['to']}: **{difference['mean']:+.4f} [{low:+.4f}, {high:+.4f}]**, 95 % over {difference['over']}.",
        "",
        "| file | bytes | bits per byte | agreement | p50 ms at tokens | over the teacher |",
        "|---|---|---|---|---|---|",
    ]
    for artifact in result["artifacts"]:
        lines.append(
            f"| {artifact['name']} | {artifact['bytes']:,} | {artifact['quality']:.4f} | {artifact['agreement']:.2%} | "
            f"{artifact['latency_ms']['p50']:.2f} at {artifact['tokens']} | {artifact['latency_ratio']:.2f} |"
        )
    told = ", ".join(f"{name} {value:.0f}" for name, value in seconds.items())
    return "\n".join([*lines, "", f"Seconds, all seeds: {told}."]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "python-code")
    options = parser.parse_args()
    path = options.out / "result.json"
    if not path.is_file() or json.loads(path.read_text())["status"] != "done":
        recipe = load_recipe("python-code", [f"compare.seeds={options.seeds}"])
        run(recipe, options.out, resume=path.is_file(), track=progress.track)
    text = page(json.loads(path.read_text()), json.loads((options.out / "environment.json").read_text()))
    date = datetime.now(UTC).strftime("%Y-%m-%d")
    (ROOT / "benchmarks" / "results" / f"{date}-python-code.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
