"""A whole distillation on paper: its work, hours and memory from the sizes of teacher and student. Plain arithmetic on
plain values, standard library only."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import ceil
from typing import Any

from edgestill.plan.hardware import Hardware
from edgestill.plan.memory import OPTIMIZERS, Held, memory
from edgestill.plan.transformer import Transformer

MOST_TEXTS = 64
"""Texts that a device takes at once, at most, where it is not said."""


@dataclass(frozen=True)
class Work:
    """What is to be done: texts of `length` tokens, `epochs` times, `batch` texts a step."""

    texts: int
    length: int
    batch: int
    epochs: float = 1.0

    @property
    def steps(self) -> int:
        return ceil(self.texts * self.epochs / self.batch)


def flops(teacher: Transformer, student: Transformer, work: Work, recompute: bool) -> dict[str, float]:
    """Floating-point operations of an epoch: `teacher`, its forward passes, and `student`, forward and backward.

    >>> small = Transformer(2, 8, 2, 1, 4, 16, 10)
    >>> flops(small, small, Work(texts=10, length=4, batch=2), recompute=False)
    {'teacher': 108800.0, 'student': 326400.0}
    """
    return {
        "teacher": float(work.texts * teacher.forward_flops(work.length)),
        "student": float(work.texts * student.train_flops(work.length, recompute)),
    }


def seconds(
    teacher: Transformer,
    student: Transformer,
    work: Work,
    on: Hardware,
    devices: int,
    how: Held,
    *,
    store: float,
    disk: float,
) -> dict[str, Any]:
    """How long it takes with the teacher asked in every step (`online`), and from a store.

    An epoch's passes are their operations over `devices · peak · share`; the optimizer reads and writes its numbers at
    the memory's bandwidth, once a step. A store of `store` bytes is captured once and read once an epoch, at `disk`
    bytes a second, beside the passes: the slower of the two counts.

    Returns: seconds of `teacher` and `student`, an epoch each; `online` and `stored`, all of the job; `online_epoch`,
    and of the store `capture` and `epoch`; `break_even`, epochs after which the store is faster (None: never); and
    `disk_bound`.
    """
    spent = flops(teacher, student, work, how.recompute)
    rate, number = on.rate(how.precision) * devices, 4 if how.weights == "float32" else 2
    numbers = 3 + 2 * OPTIMIZERS[how.optimizer]  # weight and state are read and written, the gradient read
    optimizer = work.steps / work.epochs * numbers * number * student.parameters / how.devices / on.bandwidth
    asked = spent["teacher"] / (rate * on.teacher)
    learned = spent["student"] / (rate * on.student) + optimizer
    capture, epoch = max(asked, store / disk), max(learned, store / disk)
    saved = asked + learned - epoch
    return {
        "teacher": asked,
        "student": learned,
        "optimizer": optimizer,
        "online_epoch": asked + learned,
        "online": work.epochs * (asked + learned),
        "capture": capture,
        "epoch": epoch,
        "stored": capture + work.epochs * epoch,
        "break_even": capture / saved if saved > 0 else None,
        "disk_bound": store / disk > min(asked, learned),
    }


def fit(
    teacher: Transformer, student: Transformer, work: Work, on: Hardware, devices: int, how: Held, *,
    told: Mapping[str, float], texts: int | None,
) -> dict[str, dict[str, Any]]:  # fmt: skip
    """Memory of a device, `online` and `stored`: `texts` at once, the `bytes` by part, `need` with what
    the allocator takes, whether it `fits`, and, where it does not, what `helps`.

    `told`: bytes of what the teacher says of a position, `online` and `stored`. Without `texts`, as many at once as
    fit, a power of two.
    """
    share = max(1, work.batch // devices)
    found = {}
    for name, taught in (("online", how), ("stored", replace(how, teacher=None))):
        found[name] = _fit(teacher, student, work, on, taught, told[name], texts, share)
        if not found[name]["fits"]:
            found[name]["helps"] = helps = []
            for words, other in _variants(taught, devices, work.batch):
                if _fit(teacher, student, work, on, other, told[name], texts, share)["fits"]:
                    helps.append(words)
                    if other.devices > devices:
                        break
    return found


def _fit(
    teacher: Transformer, student: Transformer, work: Work, on: Hardware, how: Held, told: float,
    texts: int | None, share: int,
) -> dict[str, Any]:  # fmt: skip
    def at(count: int) -> dict[str, Any]:
        pieces = replace(how, pieces=count < share)
        parts = memory(teacher, student, pieces, length=work.length, texts=count, told=told)
        need = round(parts["total"] * on.reserve)
        return {"texts": count, "bytes": parts, "need": need, "fits": need <= on.memory}

    if texts is not None:
        return at(texts)
    count = 1
    while count * 2 <= min(share, MOST_TEXTS) and at(count * 2)["fits"]:
        count *= 2
    return at(count)


def _variants(how: Held, devices: int, most: int) -> Iterator[tuple[str, Held]]:
    """What may make a job fit that does not, in words, what costs least first; of `most` devices."""
    words = []
    if not how.recompute:
        how = replace(how, recompute=True)
        words = ["train.recompute: true"]
        yield words[0], how
    if how.devices == 1 and devices > 1:
        how = replace(how, devices=devices)
        words = [*words, "hardware.shard: true"]
        yield " with ".join(words), how
    if how.teacher not in (None, "int8"):
        yield " with ".join(["teacher.precision: int8", *words]), replace(how, teacher="int8")
    if how.kept == "autocast":
        yield " with ".join(["train.weights: bf16", *words]), replace(how, weights="bf16")
    for count in (devices * 2**doublings for doublings in range(1, 10) if devices * 2**doublings <= most):
        yield " with ".join([f"{count} devices, sharded", *words]), replace(how, devices=count)
