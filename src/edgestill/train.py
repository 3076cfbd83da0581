"""The training loop: one for teachers that are fitted, baselines and students, readable top to bottom."""

import copy
import signal as signal_module
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import perf_counter
from types import FrameType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from edgestill import checkpoint
from edgestill.batchnorm import WholeBatchNorm
from edgestill.errors import UserError
from edgestill.models import Model, forward, to_device
from edgestill.objective import Objective, Parts
from edgestill.processes import ALONE, Processes, met_by_all
from edgestill.quantize.fake import quantizers
from edgestill.schedule import Schedule, Settings
from edgestill.signals import Signal
from edgestill.taps import record
from edgestill.tasks.samples import Batch, Counts

Log = Callable[[dict[str, Any]], None]
Track = Callable[[Iterable[Any], str, int], Iterable[Any]]


@dataclass(frozen=True)
class Options:
    """How the steps are taken; what they learn is the objective's and the schedule's."""

    optimizer: Literal["sgd", "adamw"] = "sgd"
    weight_decay: float = 5e-4
    ema: float = 0.0
    keep: Literal["last", "best"] = "last"
    clip: float | None = None
    accumulate: int = 1
    on_nonfinite: Literal["stop", "skip"] = "stop"
    device: str = "cpu"
    precision: torch.dtype = torch.float32
    validate_every: int = 1000
    log_every: int = 50
    lower_is_better: bool = False


@dataclass
class Trained:
    """What a training ends with; the student holds the kept weights."""

    validation: float
    steps: dict[str, int] = field(default_factory=dict)
    examples: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    skipped: int = 0
    parameters: int = 0
    """How many of the student's were trained."""


def train(
    student: Model,
    *,
    schedule: Schedule,
    batch_at: Callable[[int, Settings], Batch],
    objective: Objective,
    teacher: Callable[[Batch, Sequence[str]], Signal] | None,
    validate: Callable[[nn.Module], float],
    options: Options,
    folder: Path,
    log: Log,
    track: Track,
    resume: bool = False,
    processes: Processes = ALONE,
) -> Trained:
    """Trains `student` in place and returns how it went.

    Args:
        batch_at: the batch of a step under its settings, or this process's rows of it; a pure function, so that
            resuming needs only the step.
        teacher: the signal of a batch with the teacher's taps that are named; None where no phase needs one.
        validate: quality of a module on the validation split.
        folder: where the checkpoints `last.pt` and `best.pt` go.
        log: takes one dict a logged step.
        track: wraps the steps in a progress bar.
        resume: go on from `last.pt` where there is one.
        processes: those that train together, each with its rows of the batch; process 0 alone validates and saves.

    Raises UserError for a loss that is not finite, with step, part and samples; what was saved before stays.
    Ctrl-C finishes the step and saves before KeyboardInterrupt is raised.
    """
    device = torch.device(options.device)
    module = to_device(student.module, device)
    objective.to(device)
    processes.equal([*module.parameters(), *module.buffers(), *objective.parameters(), *objective.buffers()])
    state = State(module, objective, _optimizer(module, objective, options), options.ema)
    if resume and (saved := processes.first(lambda: checkpoint.load(folder / "last.pt"))):
        state.restore(saved)
    processes.own_randomness()
    trained, meter, started = state.trained, Meter(), perf_counter()
    trained.parameters = sum(one.numel() for one in module.parameters() if one.requires_grad)
    module.train()
    objective.train()

    def describe(step: int, part: str) -> str:
        samples = batch_at(step, schedule.at(step)).indices[:8].tolist()
        return f"the loss part {part!r} is not finite at step {step}, samples {samples} and others of its batch"

    with _interrupt_asked(relayed=processes.count > 1) as asked:
        for step in track(range(state.step, schedule.steps), "", schedule.steps):
            settings = schedule.at(step)
            for group in state.optimizer.param_groups:
                group["lr"] = settings.lr
            batch = batch_at(step, settings)
            before = state.buffers() if options.on_nonfinite == "skip" else None

            state.optimizer.zero_grad(set_to_none=True)
            pieces = [batch] if options.accumulate == 1 else batch.pieces(options.accumulate)
            counts = Counts(*processes.total(batch.counts(student.input)))
            samples, partial = counts.samples, counts if len(pieces) * processes.count > 1 else None
            with WholeBatchNorm(processes) if processes.count > 1 else nullcontext():
                parts = _backward(student, objective, teacher, pieces, settings, device, options.precision, partial)
            parts, stop = _summed(parts, asked(), state.parameters, processes)
            if before is not None and not state.finite(parts):
                state.put_back(before)
                trained.skipped += 1
            else:
                if options.clip is not None:
                    nn.utils.clip_grad_norm_(state.parameters, options.clip)
                state.optimizer.step()
                meter.add(parts, samples, step)
            state.stepped(settings.phase.name, samples)

            phase, last = settings.phase, state.step == schedule.steps
            save = last or stop or state.step % options.validate_every == 0
            if save or state.step % options.log_every == 0 or schedule.at(state.step).phase is not phase:
                # read before any save: what is saved is finite
                with met_by_all():
                    reading = meter.read(describe)
                log({"step": state.step, "phase": phase.name, **reading, **_readable(settings)})
            if processes.main and (last or state.step % options.validate_every == 0):
                trained.validation = validate(state.current)
                log({"step": state.step, "phase": phase.name, "validation": trained.validation})
                module.train()
                gained = -trained.validation if options.lower_is_better else trained.validation
                if gained > state.best:
                    state.best = gained
                    checkpoint.save({"student": state.current.state_dict(), "step": state.step}, folder / "best.pt")
            if save:
                trained.seconds, started = trained.seconds + perf_counter() - started, perf_counter()
                if processes.main:
                    checkpoint.save(state.to_dict(), folder / "last.pt")
                if stop and not last:
                    raise KeyboardInterrupt

    if options.keep == "best" and (kept := processes.first(lambda: checkpoint.load(folder / "best.pt"))):
        module.load_state_dict(kept["student"])
        trained.validation = -state.best if options.lower_is_better else state.best
    else:
        module.load_state_dict(state.current.state_dict())
    return trained


def _backward(
    student: Model,
    objective: Objective,
    teacher: Callable[[Batch, Sequence[str]], Signal] | None,
    pieces: list[Batch],
    settings: Settings,
    device: torch.device,
    precision: torch.dtype,
    counts: Counts | None,
) -> Parts:
    """Adds the gradient of a batch, given in pieces, and returns its parts. `counts`: those of the whole batch, where
    there is more of it than one piece."""
    whole: Parts | None = None
    active = [objective.terms[name] for name in settings.terms]
    teacher_taps = sorted({tap for term in active for tap in term.teacher_taps})
    student_taps = sorted({tap for term in active for tap in term.student_taps})
    for piece in pieces:
        signal = teacher(piece, teacher_taps) if teacher is not None and settings.phase.needs_teacher else None
        autocast = torch.autocast(device.type, precision, enabled=precision != torch.float32)
        with autocast, record(student.module, student_taps) as taps:
            logits = piece.answers(forward(student.module, piece.inputs(student.input, device)))
        parts: Parts = objective(
            logits,
            piece.labels.to(device),
            signal,
            taps,
            alpha=settings.alpha,
            temperature=settings.temperature,
            terms=settings.terms,
            mask=None if piece.mask is None else piece.mask.to(device),
            counts=counts,
            indices=torch.from_numpy(piece.indices),
            tokens=piece.valid(student.input, device) if active else None,
        )
        if objective.balancing:
            parts = objective.balance(parts, [*student.module.parameters()])
        parts.loss.backward()  # type: ignore[no-untyped-call]
        whole = parts.detached() if whole is None else whole + parts.detached()
    assert whole is not None
    return whole


def _summed(parts: Parts, asked: bool, parameters: list[nn.Parameter], processes: Processes) -> tuple[Parts, bool]:
    """Makes the gradients those of the whole batch, and returns its parts and whether any process was asked to stop."""
    if processes.count == 1:
        return parts, asked
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    told = torch.stack([*parts.values.values(), parts.loss.new_tensor(float(asked))])
    processes.sum_([*gradients, told])
    *values, stop = told.unbind()
    return Parts(dict(zip(parts.values, values, strict=True)), parts.weights), bool(stop > 0)


class State:
    """All that a resumed training needs: what is trained, how far it is, and the random state."""

    def __init__(self, module: nn.Module, objective: Objective, optimizer: torch.optim.Optimizer, ema: float) -> None:
        self.module, self.objective, self.optimizer, self.ema = module, objective, optimizer, ema
        self.average = copy.deepcopy(module).requires_grad_(False) if ema else None
        self.parameters = [one for one in (*module.parameters(), *objective.parameters()) if one.requires_grad]
        self.step, self.best, self.trained = 0, float("-inf"), Trained(validation=float("nan"))

    @property
    def current(self) -> nn.Module:
        """What is validated and kept: the averaged student where there is one."""
        return self.average or self.module

    def stepped(self, phase: str, examples: int) -> None:
        """Counts a step and lets the average follow."""
        if self.average is not None:
            _average(self.average, self.module, min(self.ema, (1 + self.step) / (10 + self.step)))
        self.step += 1
        self.trained.steps[phase] = self.trained.steps.get(phase, 0) + 1
        self.trained.examples[phase] = self.trained.examples.get(phase, 0) + examples

    def buffers(self) -> list[Tensor]:
        """Copies of what a forward pass changes: running statistics."""
        return [buffer.clone() for buffer in (*self.module.buffers(), *self.objective.buffers())]

    def put_back(self, buffers: list[Tensor]) -> None:
        for buffer, before in zip((*self.module.buffers(), *self.objective.buffers()), buffers, strict=True):
            buffer.copy_(before)

    def finite(self, parts: Parts) -> bool:
        """Whether a step's loss and gradient are finite."""
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        return bool(torch.isfinite(parts.loss) & torch.isfinite(nn.utils.get_total_norm(gradients)))

    def to_dict(self) -> dict[str, Any]:
        return {
            "student": self.module.state_dict(),
            "objective": self.objective.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average.state_dict() if self.average is not None else None,
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
            "step": self.step,
            "best": self.best,
            "trained": asdict(self.trained),
        }

    def restore(self, saved: dict[str, Any]) -> None:
        self.module.load_state_dict(saved["student"])
        self.objective.load_state_dict(saved["objective"])
        self.optimizer.load_state_dict(saved["optimizer"])
        if self.average is not None:
            self.average.load_state_dict(saved["average"])
        torch.set_rng_state(saved["random"])
        if saved["random_cuda"]:
            torch.cuda.set_rng_state_all(saved["random_cuda"])
        self.step, self.best = saved["step"], saved["best"]
        self.trained = Trained(**saved["trained"])


class Meter:
    """Means of the parts since the last reading; touches the device only when read."""

    def __init__(self) -> None:
        self.parts: list[Parts] = []
        self.steps: list[int] = []
        self.examples = 0
        self.since = perf_counter()

    def add(self, parts: Parts, examples: int, step: int) -> None:
        self.parts.append(parts)
        self.steps.append(step)
        self.examples += examples

    def read(self, describe: Callable[[int, str], str]) -> dict[str, Any]:
        """Loss and parts as numbers; UserError, worded by `describe(step, part)`, of the first that is not finite."""
        if not self.parts:  # every step since the last reading was skipped
            return {}
        names = [*self.parts[-1].values]
        table = torch.stack([torch.stack([parts.values[name] for name in names]) for parts in self.parts]).cpu()
        bad = torch.nonzero(~torch.isfinite(table))
        if len(bad):
            row, column = bad[0].tolist()
            raise UserError(f"{describe(self.steps[row], names[column])}: lower train.lr, or look at these samples")
        means = dict(zip(names, table.mean(0).tolist(), strict=True))
        weights = self.parts[-1].weights
        now = perf_counter()
        reading = {
            "loss": sum(weights[name] * mean for name, mean in means.items()),
            "parts": {name: {"value": mean, "weight": weights[name]} for name, mean in means.items()},
            "examples_per_second": round(self.examples / (now - self.since), 1),
        }
        self.parts, self.steps, self.examples, self.since = [], [], 0, now
        return reading


@contextmanager
def _interrupt_asked(relayed: bool) -> Iterator[Callable[[], bool]]:
    """Whether Ctrl-C was pressed since; a second one interrupts at once, unless it may be the first one `relayed` by a
    launcher. Only the main thread can listen."""
    asked: list[bool] = []

    def listen(number: int, frame: FrameType | None) -> None:
        if asked and not relayed:
            raise KeyboardInterrupt
        asked.append(True)

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    previous = signal_module.signal(signal_module.SIGINT, listen)
    try:
        yield lambda: bool(asked)
    finally:
        signal_module.signal(signal_module.SIGINT, previous)


def _readable(settings: Settings) -> dict[str, Any]:
    return {
        "lr": settings.lr,
        "alpha": settings.alpha,
        "temperature": settings.temperature,
        "admitted": settings.admitted,
    }


def _optimizer(module: nn.Module, objective: nn.Module, options: Options) -> torch.optim.Optimizer:
    """Of what both modules train. The scales of quantizers do not decay: towards zero, their logarithm would grow."""
    scales = [part.log_scale for part in quantizers(module)]
    apart = {id(scale) for scale in scales}
    every = (*module.parameters(), *objective.parameters())
    parameters = [one for one in every if one.requires_grad and id(one) not in apart]
    groups: list[dict[str, Any]] = [{"params": parameters}]
    if scales:
        groups.append({"params": scales, "weight_decay": 0.0})
    if options.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=0.0, weight_decay=options.weight_decay)
    return torch.optim.SGD(groups, lr=0.0, momentum=0.9, nesterov=True, weight_decay=options.weight_decay)


def _average(average: nn.Module, module: nn.Module, decay: float) -> None:
    with torch.no_grad():
        own: list[Tensor] = [*average.parameters()]
        torch._foreach_lerp_(own, [*module.parameters()], 1 - decay)
        for mine, theirs in zip(average.buffers(), module.buffers(), strict=True):
            mine.copy_(theirs)
