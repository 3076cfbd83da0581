"""Kills at random moments of the whole job: resumed, it ends with the same bits and numbers as a run left alone."""

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

KILLS = int(os.environ.get("EDGESTILL_KILLS", "50"))
SETS = ["train.epochs=6", "compare.seeds=2", "teacher.fit.epochs=4", "train.ema=0.9"]


def start(out: Path, resume: bool) -> subprocess.Popen:
    sets = [part for override in SETS for part in ("--set", override)]
    arguments = ["run", "digits", "--quiet", "--out", str(out), *sets, *(["--resume"] if resume else [])]
    return subprocess.Popen(
        [sys.executable, "-m", "edgestill", *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def numbers(out: Path) -> dict:
    """What must not depend on interruptions: all but times and dates."""
    result = json.loads((out / "result.json").read_text())
    timed = {"latency_ms", "latency_ratio", "throughput", "load_seconds", "peak_memory_bytes", "repeats"}
    kept = {key: result[key] for key in ("status", "metric", "arms", "phases", "data", "schedule")}
    kept["artifacts"] = [{k: v for k, v in a.items() if k not in timed} for a in result["artifacts"]]
    kept["teacher"] = {key: value for key, value in result["teacher"].items() if key not in timed}
    steps = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    kept["metrics"] = sorted(
        (s["arm"], s["seed"], s["step"], s.get("loss", -1), s.get("validation", -1)) for s in steps
    )
    return kept


@pytest.mark.slow
def test_killed_runs_end_as_runs_left_alone(tmp_path):
    whole = tmp_path / "whole"
    process = start(whole, resume=False)
    _, said = process.communicate(timeout=300)
    assert process.returncode in (0, 3), said
    expected, weights = numbers(whole), (whole / "student" / "model.safetensors").read_bytes()

    generator, kills, runs = random.Random(0), 0, 0
    while kills < KILLS:
        out = tmp_path / f"run{runs}"
        runs += 1
        resume = False
        while True:
            process = start(out, resume)
            try:
                _, said = process.communicate(timeout=generator.uniform(2.0, 16.0))
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.communicate()
                kills += 1
                resume = out.exists()
                continue
            assert process.returncode in (0, 3), said
            break
        assert numbers(out) == expected
        assert (out / "student" / "model.safetensors").read_bytes() == weights
        assert not list(out.rglob("*.partial*"))
    print(f"{kills} kills in {runs} runs")
