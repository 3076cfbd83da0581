"""The loop: same seed same bits, resume equals no interruption, and nothing of the training stays in the student."""

import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgestill.errors import UserError
from edgestill.losses import attention_transfer, hint
from edgestill.models import ImageInput, Model
from edgestill.objective import Objective, Term
from edgestill.schedule import Phase, Schedule, Settings
from edgestill.taps import record
from edgestill.tasks.images import Batch
from edgestill.teachers.online import OnlineTeacher
from edgestill.train import Options, train

CPU = torch.device("cpu")
INPUT = ImageInput(1, 8, (0.5,), (0.5,))


def network(width: int, seed: int) -> Model:
    torch.manual_seed(seed)
    layers = nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
        nn.Dropout(0.2),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(4 * width, 3),
    )
    return Model(layers, "test", {}, INPUT)


def batch_at(step: int, settings: Settings) -> Batch:
    generator = torch.Generator().manual_seed(step)
    pixels = torch.randint(0, 256, (16, 8, 8, 1), generator=generator, dtype=torch.uint8)
    return Batch(pixels, torch.randint(0, 3, (16,), generator=generator), np.arange(16), np.zeros(16, np.int64))


def schedule(steps: int, terms: tuple[str, ...]) -> Schedule:
    return Schedule(
        (
            Phase("distill", 0.5, alpha=0.9, temperature=4.0, lr=0.05, terms=terms),
            Phase("finetune", 0.5, alpha=0.0, temperature=4.0, lr=0.05),
        ),
        steps,
    )


def run(
    folder: Path,
    *,
    steps: int = 12,
    resume: bool = False,
    stop_at: int | None = None,
    calls: list[int] | None = None,
    lines: list[dict] | None = None,
    lr: float | None = None,
    qualities: list[float] | None = None,
    press_at: int | None = None,
    poison: int | None = None,
    smooth: bool = False,
    **options: object,
) -> Model:
    student, teacher = network(4, seed=0), network(8, seed=1)
    if smooth:  # without batch norm (the hint's aligner has one) and dropout a batch is the sum of its pieces
        student.module[1] = student.module[3] = nn.Identity()
    terms = {"hint/1": Term(hint, "1", "1", 0.5), "attention/1": Term(attention_transfer, "1", "1", 2.0)}
    probe = torch.zeros(2, 1, 8, 8)
    with record(student.module, ["1"]) as mine, record(teacher.module, ["1"]) as theirs, torch.no_grad():
        student.module.eval()(probe)
        teacher.module.eval()(probe)
    torch.manual_seed(2)
    objective = Objective(alpha=0.9, terms=terms, examples=(mine, theirs))
    answer = OnlineTeacher(teacher, CPU, torch.float32)

    def teach(batch: Batch, taps):
        if calls is not None:
            calls.append(1)
        return answer(batch, taps)

    def log(line: dict) -> None:
        if lines is not None:
            lines.append(line)

    def track(items, _, total):
        for step in items:
            if step == stop_at:
                raise KeyboardInterrupt
            yield step

    def batch(step: int, settings: Settings) -> Batch:
        made = batch_at(step, settings)
        if step == press_at:
            os.kill(os.getpid(), signal.SIGINT)
        if step == poison:
            return Batch(torch.full(made.pixels.shape, float("nan")), made.labels, made.indices, made.views)
        return made

    plan = schedule(steps, ("attention/1",) if smooth else ("hint/1", "attention/1"))
    if lr is not None:
        plan = Schedule(
            tuple(Phase(p.name, p.share, p.alpha, p.temperature, lr, terms=p.terms) for p in plan.phases), steps
        )
    validation = iter(qualities or [])
    train(
        student,
        schedule=plan,
        batch_at=batch,
        objective=objective,
        teacher=teach,
        validate=lambda module: next(validation, 0.5),
        options=Options(**{"validate_every": 4, "log_every": 1} | options),
        folder=folder,
        log=log,
        track=track,
        resume=resume,
    )
    return student


def same(a: Model, b: Model) -> bool:
    return all(
        torch.equal(x, y) for x, y in zip(a.module.state_dict().values(), b.module.state_dict().values(), strict=True)
    )


def test_same_seed_gives_the_same_bits(tmp_path):
    assert same(run(tmp_path / "a"), run(tmp_path / "b"))


@pytest.mark.parametrize("options", [{}, {"ema": 0.9}, {"optimizer": "adamw"}])
def test_an_interrupted_and_resumed_training_ends_with_the_same_bits(tmp_path, options):
    whole = run(tmp_path / "whole", **options)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", stop_at=9, **options)
    assert same(whole, run(tmp_path / "cut", resume=True, **options))


def test_the_teacher_is_asked_only_in_phases_that_need_it(tmp_path):
    calls: list[int] = []
    run(tmp_path, calls=calls)
    assert len(calls) == 6  # the first of two phases of six steps


def test_nothing_of_the_training_stays_in_the_student(tmp_path):
    student = run(tmp_path)
    assert list(student.module.state_dict()) == list(network(4, 0).module.state_dict())
    assert not any(module._forward_hooks for module in student.module.modules())


def test_every_part_is_logged_by_name_with_its_weight(tmp_path):
    lines: list[dict] = []
    run(tmp_path, lines=lines)
    first = lines[0]
    assert set(first["parts"]) == {"hard", "soft", "hint/1", "attention/1"}
    assert first["parts"]["soft"]["weight"] == 0.9
    total = sum(part["value"] * part["weight"] for part in first["parts"].values())
    assert first["loss"] == pytest.approx(total)
    assert set(next(line for line in lines if line["phase"] == "finetune")["parts"]) == {"hard"}


def test_terms_reach_the_student_through_their_taps(tmp_path):
    """Without a gradient through the taps, the convolution in front of them would learn the same with and without."""
    lines: list[dict] = []
    run(tmp_path, lines=lines, steps=60, lr=0.02)
    hints = [line["parts"]["hint/1"]["value"] for line in lines if "hint/1" in line.get("parts", {})]
    assert np.mean(hints[-5:]) < 0.8 * np.mean(hints[:5])


def test_a_loss_that_is_not_finite_stops_with_step_and_part(tmp_path):
    with pytest.raises(UserError, match=r"part '\S+' is not finite at step \d+.*train.lr"):
        run(tmp_path, lr=1e30)


def test_the_average_lags_behind_the_last_weights(tmp_path):
    start, last = network(4, 0), run(tmp_path / "last", steps=2)
    averaged = run(tmp_path / "ema", steps=2, ema=0.999, validate_every=1)
    first_step = torch.load(tmp_path / "ema" / "last.pt", weights_only=True)
    assert first_step["step"] == 2

    def weight(model: Model) -> Tensor:
        return model.module.state_dict()["0.weight"]

    low, high = torch.minimum(weight(start), weight(last)), torch.maximum(weight(start), weight(last))
    assert not torch.equal(weight(averaged), weight(last))
    assert ((weight(averaged) >= low - 1e-3) & (weight(averaged) <= high + 1e-3)).all()


def test_keep_best_ends_with_the_weights_that_validated_best(tmp_path):
    best = run(tmp_path / "best", keep="best", qualities=[0.5, 0.9, 0.4])
    until_best = torch.load(tmp_path / "best" / "best.pt", weights_only=True)
    assert until_best["step"] == 8
    assert torch.equal(best.module.state_dict()["0.weight"], until_best["student"]["0.weight"])
    assert not same(best, run(tmp_path / "last", qualities=[0.5, 0.9, 0.4]))


def test_ctrl_c_finishes_the_step_and_saves_it(tmp_path):
    """The signal comes inside step 5: it is finished and saved though no save was due, and resuming loses nothing."""
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", press_at=5)
    assert torch.load(tmp_path / "cut" / "last.pt", weights_only=True)["step"] == 6
    assert same(run(tmp_path / "whole"), run(tmp_path / "cut", resume=True))


def test_a_step_that_is_not_finite_keeps_the_last_good_checkpoint(tmp_path):
    with pytest.raises(UserError, match=r"part 'hard' is not finite at step 9, samples \[0, 1, 2"):
        run(tmp_path, poison=9, log_every=100)
    saved = torch.load(tmp_path / "last.pt", weights_only=True)
    assert saved["step"] == 8
    assert all(torch.isfinite(value).all() for value in saved["student"].values())


def test_skipping_drops_the_step_whole_and_counts_it(tmp_path):
    """Neither weights nor running statistics see the step: the poisoned last step leaves what nine steps made."""
    poisoned = run(tmp_path / "skip", poison=11, on_nonfinite="skip", validate_every=11)
    before = torch.load(tmp_path / "skip" / "best.pt", weights_only=True)
    assert before["step"] == 11
    state = poisoned.module.state_dict()
    assert all(torch.equal(state[name], value) for name, value in before["student"].items())
    assert torch.load(tmp_path / "skip" / "last.pt", weights_only=True)["trained"]["skipped"] == 1


def test_clipping_bounds_the_step(tmp_path):
    start = network(4, 0).module[0].weight
    free, clipped = (run(tmp_path / str(clip), steps=2, clip=clip).module[0].weight for clip in (None, 1e-4))
    assert (clipped - start).norm() < 0.1 * (free - start).norm()


@pytest.mark.parametrize("number", [2, 3])
def test_a_batch_in_pieces_gives_the_gradient_of_the_whole(tmp_path, number):
    whole = run(tmp_path / "whole", smooth=True)
    pieces = run(tmp_path / "pieces", smooth=True, accumulate=number)
    for a, b in zip(whole.module.parameters(), pieces.module.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
