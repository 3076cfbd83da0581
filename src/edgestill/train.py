"""The training loop: one for teachers that are fitted, baselines and students, readable top to bottom."""

import copy
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any, Literal

import torch
from torch import Tensor, nn

from edgestill import checkpoint
from edgestill.errors import UserError
from edgestill.models import Model, forward, to_device
from edgestill.objective import Objective, Parts
from edgestill.schedule import Schedule, Settings
from edgestill.signals import Signal
from edgestill.taps import record
from edgestill.tasks.images import Batch

Log = Callable[[dict[str, Any]], None]
Track = Callable[[Iterable[Any], str, int], Iterable[Any]]


@dataclass(frozen=True)
class Options:
    """How the steps are taken; what they learn is the objective's and the schedule's."""

    optimizer: Literal["sgd", "adamw"] = "sgd"
    weight_decay: float = 5e-4
    ema: float = 0.0
    keep: Literal["last", "best"] = "last"
    device: str = "cpu"
    precision: torch.dtype = torch.float32
    validate_every: int = 1000
    log_every: int = 50


@dataclass
class Trained:
    """What a training ends with; the student holds the kept weights."""

    validation: float
    steps: dict[str, int] = field(default_factory=dict)
    examples: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0


def train(
    student: Model,
    *,
    schedule: Schedule,
    batch_at: Callable[[int, Settings], Batch],
    objective: Objective,
    teacher: Callable[[Batch], Signal] | None,
    validate: Callable[[nn.Module], float],
    options: Options,
    folder: Path,
    log: Log,
    track: Track,
    resume: bool = False,
) -> Trained:
    """Trains `student` in place and returns how it went.

    Args:
        batch_at: the batch of a step under its settings; a pure function.
        teacher: the signal of a batch; None where no phase needs one.
        validate: quality of a module on the validation split, higher is better.
        folder: where the checkpoints `last.pt` and `best.pt` go.
        log: takes one dict a logged step.
        track: wraps the steps in a progress bar.
        resume: go on from `last.pt` where there is one.
    """
    device = torch.device(options.device)
    module = to_device(student.module, device)
    objective.to(device)
    state = State(module, objective, _optimizer([*module.parameters(), *objective.parameters()], options), options.ema)
    if resume and (saved := checkpoint.load(folder / "last.pt")):
        state.restore(saved)
    trained, meter, started = state.trained, Meter(), perf_counter()
    module.train()
    objective.train()

    for step in track(range(state.step, schedule.steps), "", schedule.steps):
        settings = schedule.at(step)
        for group in state.optimizer.param_groups:
            group["lr"] = settings.lr
        batch = batch_at(step, settings)

        signal = teacher(batch) if teacher is not None and settings.phase.needs_teacher else None
        taps_needed = [objective.terms[name].student for name in settings.terms]
        autocast = torch.autocast(device.type, options.precision, enabled=options.precision != torch.float32)
        with autocast, record(module, taps_needed) as taps:
            logits = forward(module, batch.inputs(student.input, device))
        parts = objective(
            logits,
            batch.labels.to(device),
            signal,
            taps,
            alpha=settings.alpha,
            temperature=settings.temperature,
            terms=settings.terms,
            mask=None if batch.mask is None else batch.mask.to(device),
        )
        state.optimizer.zero_grad(set_to_none=True)
        parts.loss.backward()
        state.optimizer.step()
        state.stepped(settings.phase.name, len(batch.indices))

        meter.add(parts, len(batch.indices))
        last = state.step == schedule.steps
        if last or state.step % options.log_every == 0 or schedule.at(state.step).phase is not settings.phase:
            log({"step": state.step, "phase": settings.phase.name, **meter.read(step), **_readable(settings)})

        if last or state.step % options.validate_every == 0:
            trained.validation = validate(state.current)
            log({"step": state.step, "phase": settings.phase.name, "validation": trained.validation})
            module.train()
            if trained.validation > state.best:
                state.best = trained.validation
                checkpoint.save({"student": state.current.state_dict(), "step": state.step}, folder / "best.pt")
            trained.seconds, started = trained.seconds + perf_counter() - started, perf_counter()
            checkpoint.save(state.to_dict(), folder / "last.pt")

    if options.keep == "best" and (kept := checkpoint.load(folder / "best.pt")):
        module.load_state_dict(kept["student"])
        trained.validation = state.best
    else:
        module.load_state_dict(state.current.state_dict())
    return trained


class State:
    """All that a resumed training needs: what is trained, how far it is, and the random state."""

    def __init__(self, module: nn.Module, objective: Objective, optimizer: torch.optim.Optimizer, ema: float) -> None:
        self.module, self.objective, self.optimizer, self.ema = module, objective, optimizer, ema
        self.average = copy.deepcopy(module).requires_grad_(False) if ema else None
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

    def to_dict(self) -> dict[str, Any]:
        return {
            "student": self.module.state_dict(),
            "objective": self.objective.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average.state_dict() if self.average is not None else None,
            "random": torch.get_rng_state(),
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
        self.step, self.best = saved["step"], saved["best"]
        self.trained = Trained(**saved["trained"])


class Meter:
    """Means of the parts since the last reading; touches the device only when read."""

    def __init__(self) -> None:
        self.parts: list[Parts] = []
        self.examples = 0
        self.since = perf_counter()

    def add(self, parts: Parts, examples: int) -> None:
        self.parts.append(Parts({name: value.detach() for name, value in parts.values.items()}, parts.weights))
        self.examples += examples

    def read(self, step: int) -> dict[str, Any]:
        """Loss and parts as numbers. UserError names the step and the part where one is not finite."""
        names = [*self.parts[-1].values]
        table = torch.stack([torch.stack([parts.values[name] for name in names]) for parts in self.parts]).cpu()
        for column, name in enumerate(names):
            bad = torch.nonzero(~torch.isfinite(table[:, column]))
            if len(bad):
                at = step + 1 - len(self.parts) + int(bad[0])
                raise UserError(
                    f"the loss part {name!r} is not finite at step {at}: lower train.lr, or look at the data"
                )
        means = dict(zip(names, table.mean(0).tolist(), strict=True))
        weights = self.parts[-1].weights
        now = perf_counter()
        reading = {
            "loss": sum(weights[name] * mean for name, mean in means.items()),
            "parts": {name: {"value": mean, "weight": weights[name]} for name, mean in means.items()},
            "examples_per_second": round(self.examples / (now - self.since), 1),
        }
        self.parts, self.examples, self.since = [], 0, now
        return reading


def _readable(settings: Settings) -> dict[str, Any]:
    return {
        "lr": settings.lr,
        "alpha": settings.alpha,
        "temperature": settings.temperature,
        "admitted": settings.admitted,
    }


def _optimizer(parameters: list[nn.Parameter], options: Options) -> torch.optim.Optimizer:
    if options.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr=0.0, weight_decay=options.weight_decay)
    return torch.optim.SGD(parameters, lr=0.0, momentum=0.9, nesterov=True, weight_decay=options.weight_decay)


def _average(average: nn.Module, module: nn.Module, decay: float) -> None:
    with torch.no_grad():
        own: list[Tensor] = [*average.parameters()]
        torch._foreach_lerp_(own, [*module.parameters()], 1 - decay)
        for mine, theirs in zip(average.buffers(), module.buffers(), strict=True):
            mine.copy_(theirs)
