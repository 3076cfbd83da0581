"""Phases as data, and what holds at a step: `Schedule.at(step)` is a pure function."""

import math
from dataclasses import dataclass
from typing import Literal

from edgestill.errors import UserError

FIRST_ADMITTED = 0.25
"""Share of the samples that an easiest-first phase begins with; it grows linearly to all by the phase's end."""


@dataclass(frozen=True)
class Phase:
    """A stretch of training with its own data order, terms, alpha, temperature and learning rate."""

    name: str
    share: float
    alpha: float
    temperature: float
    lr: float
    order: Literal["uniform", "easiest-first"] = "uniform"
    terms: tuple[str, ...] = ()

    @property
    def needs_teacher(self) -> bool:
        return self.alpha > 0 or bool(self.terms)


@dataclass(frozen=True)
class Settings:
    """What holds at one step. `admitted` is the share of the samples, easiest first, that may be drawn."""

    phase: Phase
    alpha: float
    temperature: float
    lr: float
    admitted: float
    terms: tuple[str, ...]


@dataclass(frozen=True)
class Schedule:
    """Ordered phases over `steps` steps; the learning rate ramps over all steps, then follows `shape` to the end."""

    phases: tuple[Phase, ...]
    steps: int
    ramp: float = 0.0
    shape: Literal["cosine", "constant"] = "cosine"

    def __post_init__(self) -> None:
        if self.steps < len(self.phases):
            raise UserError(
                f"{len(self.phases)} phases need at least as many steps; the training has {self.steps}: "
                "set train.epochs higher"
            )

    def starts(self) -> list[int]:
        """First step of each phase, and the number of steps at the end."""
        total, starts = 0.0, [0]
        for phase in self.phases:
            total += phase.share
            starts.append(round(total * self.steps))
        starts[-1] = self.steps
        for i in range(1, len(starts)):  # a share smaller than a step still gets one
            starts[i] = min(max(starts[i], starts[i - 1] + 1), self.steps - (len(starts) - 1 - i))
        return starts

    def at(self, step: int) -> Settings:
        """Settings of `step`, counted from 0.

        >>> phase = Phase("distill", 1.0, alpha=0.9, temperature=4.0, lr=0.1)
        >>> Schedule((phase,), steps=100).at(50).lr
        0.05
        """
        starts = self.starts()
        number = next(i for i in range(len(self.phases)) if step < starts[i + 1] or i == len(self.phases) - 1)
        phase = self.phases[number]
        progress = (step - starts[number]) / (starts[number + 1] - starts[number])
        admitted = FIRST_ADMITTED + (1 - FIRST_ADMITTED) * progress if phase.order == "easiest-first" else 1.0
        return Settings(phase, phase.alpha, phase.temperature, phase.lr * self._shape_at(step), admitted, phase.terms)

    def _shape_at(self, step: int) -> float:
        ramp_steps = self.ramp * self.steps
        if step < ramp_steps:
            return (step + 1) / (ramp_steps + 1)
        if self.shape == "constant":
            return 1.0
        return 0.5 * (1 + math.cos(math.pi * (step - ramp_steps) / (self.steps - ramp_steps)))
