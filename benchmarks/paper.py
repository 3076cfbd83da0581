"""The arithmetic of `edgestill paper` against what happens: parameters and operations of built models, seconds and peak
memory of real training steps, bytes of real stores.

    python benchmarks/paper.py [--steps 7] [--repeats 3] [--threads 1]

Each pair trains in processes of its own. The first pair tells which shares of a matrix product's rate teacher and
student reach, and what the process takes over its tensors' bytes; the others are predicted from that. Seconds are those
of the processor, which other work on the machine does not lengthen. Writes a dated page to benchmarks/results.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from time import process_time
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from edgestill import progress
from edgestill.data.texts import Texts
from edgestill.models import Encoded, Model, TextInput
from edgestill.objective import Objective
from edgestill.paper import on_paper
from edgestill.plan.hardware import Hardware
from edgestill.plan.here import measured
from edgestill.plan.memory import Held, memory
from edgestill.plan.paper import Work, flops, seconds
from edgestill.plan.transformer import Transformer, read_config
from edgestill.recipe import load_recipe
from edgestill.recipe.paper import Paper
from edgestill.runtimes.measure import hardware
from edgestill.schedule import Phase, Schedule
from edgestill.signals import Signal
from edgestill.stores import capture, plan
from edgestill.tasks.sequences import Sequences
from edgestill.tasks.tokens import Blocks
from edgestill.teachers.online import OnlineTeacher
from edgestill.train import Options, train

ROOT = Path(__file__).resolve().parents[1]
SKIPPED = 1  # steps at the beginning that are not timed
HOW = Held(precision="float32", weights="float32", optimizer="adamw", teacher="float32")


class Pair(NamedTuple):
    """Teacher and student as (layers, width, heads, key and value heads), and what they learn from."""

    kind: str
    teacher: tuple[int, int, int, int]
    student: tuple[int, int, int, int]
    vocabulary: int
    length: int
    texts: int


PAIRS = (
    Pair("llama", (8, 512, 8, 8), (4, 256, 4, 4), 4096, 128, 8),
    Pair("llama", (8, 512, 8, 8), (4, 256, 4, 4), 32000, 128, 8),
    Pair("llama", (12, 768, 12, 4), (6, 384, 6, 2), 8192, 256, 4),
    Pair("llama", (8, 1024, 16, 16), (4, 512, 8, 8), 4096, 64, 8),
    Pair("llama", (8, 512, 8, 2), (4, 256, 4, 2), 4096, 1024, 2),
    Pair("llama", (4, 256, 4, 4), (2, 128, 2, 2), 4096, 64, 4),
    Pair("bert", (12, 768, 12, 12), (6, 384, 12, 12), 30522, 128, 8),
)


class Padding:
    """What of a tokenizer a batch needs."""

    pad_token_id = 0


def built(pair: Pair, of: Sequence[int]) -> Any:
    """A model of random weights."""
    import transformers

    torch.manual_seed(0)
    layers, width, heads, key_value_heads = of
    same = {
        "vocab_size": pair.vocabulary,
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "max_position_embeddings": pair.length,
    }
    if pair.kind == "bert":
        config = transformers.BertConfig(**same, intermediate_size=4 * width)
        return transformers.BertForSequenceClassification(config)
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            **same,
            intermediate_size=8 * width // 3 // 8 * 8,
            num_key_value_heads=key_value_heads,
            tie_word_embeddings=True,
            pad_token_id=0,
        )
    )


def samples_of(pair: Pair, expected: TextInput) -> Any:
    """Random tokens for four batches."""
    number, length = 4 * pair.texts, pair.length
    draws = np.random.default_rng(0).integers(1, pair.vocabulary, number * (length + 1)).astype(np.int32)
    if pair.kind == "llama":
        starts = np.arange(number) * (length + 1)
        return Blocks(draws, starts, starts + length + 1, np.ones_like(draws, np.int64), "random", "random")
    said = Texts(("",) * number, None, np.arange(number) % 2, ("a", "b"), "random", "random")
    encoded = Encoded(draws, np.arange(number + 1) * length, None, 0)
    return Sequences(said, {(expected.fingerprint, length): encoded})


def peak() -> int:
    """Bytes of this process at its fullest."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])


def trained(pair: Pair, steps: int) -> dict[str, float]:
    """Median seconds of a step and, of them, of the teacher, and the process's bytes at the peak."""
    expected = TextInput(Padding(), pair.length, ("input_ids", "attention_mask"), "none")
    samples = samples_of(pair, expected)
    teacher, student = (Model(built(pair, of), pair.kind, {}, expected) for of in (pair.teacher, pair.student))
    online = OnlineTeacher(teacher, torch.device("cpu"), torch.float32)
    spent, asked, held = [], [], []

    def timed(batch: Any, taps: Sequence[str]) -> Signal:
        started = process_time()
        signal = online(batch, taps)
        asked.append(process_time() - started)
        return signal

    def track(items: Iterator[int], _: str, total: int) -> Iterator[int]:
        for step in items:
            started = process_time()
            yield step
            spent.append(process_time() - started)
            held.append(peak())

    def batch_at(step: int, _: object) -> Any:
        return samples.batch(np.arange(step * pair.texts, (step + 1) * pair.texts) % len(samples), np.zeros(1), 0)

    with tempfile.TemporaryDirectory() as place:
        train(
            student,
            schedule=Schedule((Phase("only", 1.0, 0.9, 1.0, 1e-5),), steps),
            batch_at=batch_at,
            objective=Objective(alpha=0.9, temperature=1.0),
            teacher=timed,
            validate=lambda module: 0.0,
            options=Options(optimizer="adamw", validate_every=10**9, log_every=10**9),
            folder=Path(place),
            log=lambda line: None,
            track=track,  # type: ignore[arg-type]
        )
    times = slice(SKIPPED, -1)  # the last one saves
    return {"step": float(np.median(spent[times])), "teacher": float(np.median(asked[times])), "peak": held[-2]}


def child(pair: Pair, steps: int, threads: int) -> dict[str, float]:
    """What `trained` finds, memory above that of a process with all libraries loaded, which has trained a tiny pair."""
    torch.set_num_threads(threads)
    tiny = (1, 64, 1, 1)
    trained(pair._replace(teacher=tiny, student=tiny, vocabulary=512, length=16, texts=2), 3)
    Path("/proc/self/clear_refs").write_text("5")
    before = peak()
    found = trained(pair, steps)
    return found | {"peak": found["peak"] - before}


def in_processes(pair: Pair, options: argparse.Namespace) -> dict[str, np.ndarray]:
    """What `child` finds in some fresh processes."""
    command = [sys.executable, __file__, "--steps", str(options.steps), "--threads", str(options.threads)]
    found = []
    for _ in range(options.repeats):
        done = subprocess.run([*command, "--child", json.dumps(pair)], capture_output=True, text=True, check=True)
        found.append(json.loads(done.stdout.splitlines()[-1]))
    return {key: np.array([one[key] for one in found]) for key in found[0]}


def sizes(model: Any) -> Transformer:
    """As the command reads them."""
    with tempfile.TemporaryDirectory() as place:
        model.config.save_pretrained(place)
        return read_config(Path(place))


def counted(pair: Pair) -> tuple[list[Transformer], list[str]]:
    """The sizes of a pair, and rows that set parameters and operations against those of the built models."""
    found, rows = [], []
    for of in (pair.teacher, pair.student):
        module = built(pair, of).eval()
        size = sizes(module)
        ids = torch.ones(1, pair.length, dtype=torch.long)
        with FlopCounterMode(display=False) as forward, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            module(ids)
        with FlopCounterMode(display=False) as both, sdpa_kernel(SDPBackend.MATH):
            module(ids).logits.sum().backward()
        built_ones = (
            sum(one.numel() for one in module.parameters()),
            forward.get_total_flops(),
            both.get_total_flops(),
        )
        said = (size.parameters, size.forward_flops(pair.length), size.train_flops(pair.length))
        figures = " | ".join(f"{a:,} | {b:,}" for a, b in zip(said, built_ones, strict=True))
        rows.append(f"| {pair.kind} {of[1]} × {of[0]}, {pair.vocabulary:,} ids, {pair.length} tokens | {figures} |")
        found.append(size)
    return found, rows


def predicted(pair: Pair, models: list[Transformer], on: Hardware) -> dict[str, float]:
    """The same figures as `child`'s, on paper."""
    work = Work(texts=pair.texts, length=pair.length, batch=pair.texts)
    spent = seconds(*models, work, on, 1, HOW, store=0, disk=1)
    held = memory(*models, HOW, length=pair.length, texts=pair.texts, told=4.0 * models[0].answers)
    step = spent["teacher"] + spent["student"]
    return {"step": step, "teacher": spent["teacher"], "peak": held["total"] * on.reserve, "tensors": held["total"]}


def calibrated(pair: Pair, models: list[Transformer], found: dict[str, np.ndarray], on: Hardware) -> Hardware:
    """The hardware with the shares and the reserve that a pair shows."""
    one = {key: float(np.median(value)) for key, value in found.items()}
    work = Work(texts=pair.texts, length=pair.length, batch=pair.texts)
    spent, rate = flops(*models, work, False), on.rate("float32")
    held = memory(*models, HOW, length=pair.length, texts=pair.texts, told=4.0 * models[0].answers)["total"]
    optimizer = seconds(*models, work, on, 1, HOW, store=0, disk=1)["optimizer"]
    learned = one["step"] - one["teacher"] - optimizer
    shares = {"teacher": spent["teacher"] / one["teacher"] / rate, "student": spent["student"] / learned / rate}
    return replace(on, **shares, reserve=one["peak"] / held)


def stores(folder: Path) -> list[str]:
    """Rows of real captures of python-code's teacher on these pages, against the arithmetic and `edgestill plan`."""
    text = "\n".join(page.read_text(encoding="utf-8") for page in sorted((ROOT / "docs").glob("*.md")))
    (folder / "train.txt").write_text(text[:150_000], encoding="utf-8")
    (folder / "test.txt").write_text(text[150_000:180_000], encoding="utf-8")
    same = [f"data.train={folder}/train.txt", f"data.test={folder}/test.txt", "teacher.fit.epochs=2"]
    rows = []
    for codec in ("dense", "top-k", "sampled"):
        recipe = load_recipe("python-code", [*same, f"capture.codec={codec}"])
        capture(recipe, folder / codec, track=progress.silent)
        size = sum(path.stat().st_size for path in (folder / codec / "shards").iterdir())
        said = plan(recipe, track=progress.silent)
        one = next(one for one in said["codecs"] if one["name"] == codec)
        each = one["bytes_a_position"]
        # of a sampled store the different classes are the data's: from the plan's few passes
        different = (each - 5) / 3
        model = {"layers": 1, "width": 64, "heads": 1, "feed_forward": 64, "vocabulary": said["classes"]}
        job = Paper.model_validate(
            {"teacher": model, "student": model, "tokens": said["positions"], "length": 128, "batch": 128}
            | {"store": {"codec": codec, **({"different": different} if codec == "sampled" else {})}}
        )
        paper = next(store for store in on_paper(job)["stores"] if store["name"] == codec)["bytes"]
        rows.append(f"| {codec} | {each:,.1f} | {paper:,} | {one['bytes']:,} | {size:,} | {paper / size:.4f} |")
        print(rows[-1], flush=True)
    return rows


def row(pair: Pair, said: dict[str, float], found: dict[str, np.ndarray], first: bool) -> str:
    """A pair's figures, predicted and measured, with their ratio and the spread over the processes."""
    cells = []
    for key, unit, digits in (("step", 1.0, 2), ("teacher", 1.0, 2), ("peak", 1e6, 0)):
        value, low, high = np.median(found[key]) / unit, found[key].min() / unit, found[key].max() / unit
        spread = f"{value:.{digits}f} ({low:.{digits}f}–{high:.{digits}f})"
        cells.append(f"{said[key] / unit:.{digits}f} | {spread} | {said[key] / unit / value:.2f}")
    teacher, student = (f"{of[1]} × {of[0]}" for of in (pair.teacher, pair.student))
    name = f"{pair.kind} {teacher} → {student}, {pair.vocabulary:,} ids, {pair.texts} × {pair.length}"
    return f"| {name}{' (calibration)' if first else ''} | {' | '.join(cells)} |"


def page(options: argparse.Namespace) -> list[str]:
    on = measured()
    counts: list[str] = []
    rows = []
    for place, pair in enumerate(PAIRS):
        models, one = counted(pair)
        counts += one
        found = in_processes(pair, options)
        on = on if place else calibrated(pair, models, found, on)
        rows.append(row(pair, predicted(pair, models, on), found, not place))
        print(rows[-1], flush=True)
    with tempfile.TemporaryDirectory() as place:
        stored = stores(Path(place))
    here, date = hardware(), datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    arguments = f"--steps {options.steps} --repeats {options.repeats} --threads {options.threads}"
    return [
        f"# A job on paper, against what happens, {date}",
        "",
        f"Hardware: {here['cpu']}, {here['cores']} cores, {options.threads} thread(s). torch {torch.__version__}.  ",
        f"Command: `python benchmarks/paper.py {arguments}`.",
        "",
        "## Parameters and operations of a text",
        "",
        "Predicted and built (torch's FLOP counter, attention by its plain kernel).",
        "",
        "| model | parameters | built | forward | counted | forward and backward | counted |",
        "|---|---|---|---|---|---|---|",
        *counts,
        "",
        "## A step: seconds of the processor, and peak memory in MB",
        "",
        f"A matrix product of 1,024 × 1,024 × 1,024 measured {on.peak_float32 / 1e9:.1f} GFLOP/s, a copy "
        f"{on.bandwidth / 1e9:.1f} GB/s. The first pair reached {on.teacher:.3f} of that rate in the teacher's forward "
        f"pass and {on.student:.3f} in training, and took {on.reserve:.3f} of its tensors' bytes; these are the three "
        f"figures that the other rows are predicted with. Median of {options.repeats} fresh processes (least–most), of "
        f"{options.steps - SKIPPED - 1} steps each. Memory is VmHWM above the same process with all libraries loaded.",
        "",
        "| pair, texts × tokens | step, predicted | measured | ratio | teacher, predicted | measured | ratio "
        "| peak, predicted | measured | ratio |",
        "|---|---|---|---|---|---|---|---|---|---|",
        *rows,
        "",
        "## Bytes of a store",
        "",
        "`python-code`, fitted for two epochs on 150,000 characters of docs/, captured. Of `sampled` the different "
        "classes a position come from `edgestill plan`, which asks the teacher for a few passes: no arithmetic knows "
        "them.",
        "",
        "| codec | bytes a position | on paper | `edgestill plan` | on disk | paper ÷ disk |",
        "|---|---|---|---|---|---|",
        *stored,
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.child:
        print(json.dumps(child(Pair(*json.loads(options.child)), options.steps, options.threads)))
        return
    found = page(options)
    date = found[0].split(", ")[-1][:10]
    (ROOT / "benchmarks" / "results" / f"{date}-paper.md").write_text("\n".join(found) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
