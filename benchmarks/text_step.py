"""What edgestill adds to a step of language models: a Llama-like pair, against the bare cost of its parts.

    python benchmarks/text_step.py [--steps 30] [--threads 1]

The floor is the teacher's forward and the student's forward and backward, of logits whose gradient is given: no loss at
all. edgestill's loop, with labels and soft labels, torch's cross-entropy without any soft labels, and the loss of TRL's
GKD trainer at `lmbda=0` where it is installed (`pip install --no-deps trl`) take steps on the same batches by turns.
Writes a dated page to benchmarks/results.

B texts, T tokens, V ids.
"""

import argparse
import importlib.util
import tempfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch

from edgestill.models import Model, TextInput
from edgestill.objective import Objective
from edgestill.runtimes.measure import hardware
from edgestill.schedule import Phase, Schedule
from edgestill.tasks.tokens import Blocks
from edgestill.teachers.online import OnlineTeacher
from edgestill.train import Options, train

ROOT = Path(__file__).resolve().parents[1]
CPU = torch.device("cpu")
SKIPPED = 3  # steps at the beginning that are not timed
B, T = 8, 128


class Padding:
    """What of a tokenizer a batch needs."""

    pad_token_id = 0


def llama(width: int, layers: int, vocabulary: int) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=8 * width // 3 // 8 * 8,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        num_key_value_heads=width // 64,
        max_position_embeddings=T,
        tie_word_embeddings=True,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config)


def floor_step(student: Any, teacher: Any, ids: torch.Tensor) -> Callable[[int], None]:
    """The teacher's forward, the student's forward and backward, and AdamW's step: nothing that learns."""
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-5)
    given = torch.full((B, T, student.config.vocab_size), 1e-6)

    def take(step: int) -> None:
        rows = ids[(step * B) % len(ids) :][:B, :-1]
        with torch.no_grad():
            teacher(rows, use_cache=False)
        logits = student(rows, use_cache=False).logits
        optimizer.zero_grad(set_to_none=True)
        logits.backward(given)
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()

    return take


def plain_step(student: Any, teacher: Any, ids: torch.Tensor) -> Callable[[int], None]:
    """The floor with torch's own cross-entropy: what a loss costs that learns nothing of the teacher."""
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-5)

    def take(step: int) -> None:
        rows = ids[(step * B) % len(ids) :][:B]
        with torch.no_grad():
            teacher(rows[:, :-1], use_cache=False)
        logits = student(rows[:, :-1], use_cache=False).logits
        optimizer.zero_grad(set_to_none=True)
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten()).backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()

    return take


def trl_step(student: Any, teacher: Any, ids: torch.Tensor) -> Callable[[int], None] | None:
    """A step of TRL's loss for generalised distillation on given answers, None where it is not installed."""
    if importlib.util.find_spec("trl") is None:
        return None
    from trl.experimental.gkd import GKDTrainer

    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-5)

    def take(step: int) -> None:
        rows = ids[(step * B) % len(ids) :][:B, :-1]
        with torch.no_grad():
            told = teacher(input_ids=rows, use_cache=False).logits
        logits = student(input_ids=rows, use_cache=False).logits
        loss = GKDTrainer.generalized_jsd_loss(
            student_logits=logits[:, :-1], teacher_logits=told[:, :-1], labels=rows[:, 1:], beta=0.0
        )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()

    return take


def seconds(pair: tuple[int, int, int, int, int], steps: int) -> dict[str, np.ndarray]:
    """Seconds of each loop's steps, taken by turns inside edgestill's `track`."""
    wide, deep, narrow, shallow, vocabulary = pair
    draws = np.random.default_rng(0).integers(1, vocabulary, 4 * B * (T + 1) + 1).astype(np.int32)
    starts = np.arange(4 * B) * (T + 1)
    blocks = Blocks(draws, starts, starts + T + 1, np.ones_like(draws, np.int64), "random", "random")
    ids = torch.from_numpy(draws[: 4 * B * (T + 1)].astype(np.int64)).view(4 * B, T + 1)
    expected = TextInput(Padding(), T, ("input_ids", "attention_mask"), "none")
    teacher = llama(wide, deep, vocabulary).eval()
    others = {
        "floor": floor_step(llama(narrow, shallow, vocabulary), teacher, ids),
        "cross-entropy alone": plain_step(llama(narrow, shallow, vocabulary), teacher, ids),
    }
    if rival := trl_step(llama(narrow, shallow, vocabulary), teacher, ids):
        others["TRL's GKD, lmbda 0"] = rival
    spent: list[list[float]] = []

    def track(items: Iterator[int], _: str, total: int) -> Iterator[int]:
        for step in items:
            row = []
            for take in others.values():
                started = perf_counter()
                take(step)
                row.append(perf_counter() - started)
            started = perf_counter()
            yield step
            spent.append([*row, perf_counter() - started])

    with tempfile.TemporaryDirectory() as place:
        train(
            Model(llama(narrow, shallow, vocabulary), "llama", {}, expected),
            schedule=Schedule((Phase("only", 1.0, 0.9, 1.0, 1e-5),), steps),
            batch_at=lambda step, _: blocks.batch(np.arange(step * B, (step + 1) * B) % len(blocks), np.zeros(B), 0),
            objective=Objective(alpha=0.9, temperature=1.0),
            teacher=OnlineTeacher(Model(teacher, "llama", {}, expected), CPU, torch.float32),
            validate=lambda module: 0.0,
            options=Options(optimizer="adamw", clip=1.0, validate_every=10**9, log_every=10),
            folder=Path(place),
            log=lambda line: None,
            track=track,
        )
    columns = np.array(spent[SKIPPED:-1]).T
    return dict(zip([*others, "edgestill"], columns, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    here, date = hardware(), datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    page = [
        f"# A step of language models, {date}",
        "",
        f"Hardware: {here['cpu']}, {here['cores']} cores, {options.threads} thread(s). torch {torch.__version__}.  ",
        f"Command: `python benchmarks/text_step.py --steps {options.steps} --threads {options.threads}`.",
        "",
        f"{B} texts of {T} tokens. Median of ratios, step by step, to the floor: teacher forward, student forward and "
        "backward of logits with a given gradient, clipping, AdamW. Quartiles behind.",
        "",
        "| teacher | student | ids | floor, ms | loop | ÷ floor |",
        "|---|---|---|---|---|---|",
    ]
    for pair in ((512, 8, 256, 4, 4096), (512, 8, 256, 4, 32000), (1024, 8, 512, 4, 4096), (1024, 8, 512, 4, 32000)):
        found = seconds(pair, options.steps)
        floor = found.pop("floor")
        for name, spent in found.items():
            low, middle, high = np.percentile(spent / floor, [25, 50, 75])
            page.append(
                f"| {pair[0]} × {pair[1]} | {pair[2]} × {pair[3]} | {pair[4]:,} | {1e3 * np.median(floor):.0f} | "
                f"{name} | {middle:.3f} ({low:.3f}–{high:.3f}) |"
            )
            print(page[-1], flush=True)
    (ROOT / "benchmarks" / "results" / f"{date[:10]}-text-step.md").write_text("\n".join(page) + "\n")


if __name__ == "__main__":
    main()
