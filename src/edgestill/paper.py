"""A whole job on paper: from its file to its figures, and these in words."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from edgestill.errors import UserError
from edgestill.plan.hardware import HERE, Hardware, hardware
from edgestill.plan.memory import Held, weight_bytes
from edgestill.plan.paper import Work, fit, flops, seconds
from edgestill.plan.transformer import Transformer, read_config
from edgestill.recipe.paper import Paper, PaperModel
from edgestill.units import format_bytes, format_count, parse_bytes

CAPTURED = 8
"""Texts a forward pass of a capture, by which record batches are cut: a language model's default."""


def on_paper(job: Paper) -> dict[str, Any]:
    """What a job is going to cost: `teacher` and `student` (parameters, bytes, operations a token), `work`, `memory` of
    a device (`online` and `stored`), `stores` by codec, `seconds`, the `hardware` with how its figures are known, and
    `notes`. UserError for a config that cannot be read, and hardware that is not known."""
    teacher, student = transformer(job.teacher), transformer(job.student)
    if (teacher.classes is None) != (student.classes is None):
        raise UserError("job: teacher and student must answer alike, both by tokens or both by the text")
    on, devices = device(job), job.hardware.devices
    train = job.train
    how = Held(
        precision=train.precision,
        weights=train.weights,
        optimizer=train.optimizer,
        teacher=job.teacher.precision,
        recompute=train.recompute,
        devices=devices if job.hardware.shard else 1,
    )
    work = Work(job.tokens // job.length, job.length, job.batch // job.length, job.epochs)
    stores = _stores(job, work, teacher, student)
    chosen = next(store for store in stores if store["name"] == job.store.codec)
    told = {"online": 4.0 * min(teacher.answers, student.answers), "stored": chosen["learned_from"]}
    spent = flops(teacher, student, work, train.recompute)
    return {
        "teacher": _model(teacher, weight_bytes(teacher, job.teacher.precision), job.length)
        | {"precision": job.teacher.precision},
        "student": _model(student, weight_bytes(student, train.weights), job.length),
        "work": {
            "tokens": work.texts * job.length,
            "texts": work.texts,
            "length": job.length,
            "epochs": job.epochs,
            "steps": work.steps,
            "flops_an_epoch": spent,
        },
        "hardware": _hardware(job, on),
        "memory": fit(teacher, student, work, on, devices, how, told=told, texts=train.texts),
        "stores": stores,
        "chosen": chosen["name"],
        "seconds": seconds(
            teacher, student, work, on, devices, how, store=chosen["bytes"], disk=parse_bytes(job.hardware.disk)
        ),
        "notes": _notes(teacher, student, job),
    }


def transformer(model: PaperModel) -> Transformer:
    """The sizes that a job names or writes."""
    if model.config is not None:
        return read_config(Path(model.config))
    sizes = (model.layers, model.width, model.heads, model.feed_forward, model.vocabulary)
    layers, width, heads, feed_forward, vocabulary = (size or 0 for size in sizes)  # the job has them all
    return Transformer(
        layers=layers,
        width=width,
        heads=heads,
        key_value_heads=model.key_value_heads or heads,
        head_width=model.head_width or width // heads,
        feed_forward=feed_forward,
        vocabulary=vocabulary,
        gated=model.gated,
        tied=model.tied,
    )


def device(job: Paper) -> Hardware:
    """The hardware of a job, with the shares that it gives."""
    said = job.hardware
    if said.name == HERE:
        from edgestill.plan.here import measured

        on = measured(job.train.precision)
    else:
        on = hardware(said.name)
    if said.teacher_share is None and said.student_share is None:
        return on
    return replace(
        on,
        teacher=said.teacher_share or on.teacher,
        student=said.student_share or on.student,
        of=(on.of[0], "given" if said.teacher_share and said.student_share else f"{on.of[1]} or given", on.of[2]),
    )


def _stores(job: Paper, work: Work, teacher: Transformer, student: Transformer) -> list[dict[str, Any]]:
    """Of each codec, bytes a position and of the store, and of what a position is learned from."""
    from edgestill.store import Codec, Dense, Description, Sampled, TopK, Views
    from edgestill.store.size import bytes_a_position, bytes_of, cut

    said, classes = job.store, min(teacher.answers, student.answers)
    drawn = said.different or min(said.draws, classes)
    codecs: dict[str, tuple[Codec, float]] = {
        "dense": (Dense(), 4.0 * classes),
        "top-k": (TopK(said.k, tuple(said.temperatures)), 12.0 * said.k + 4 * len(said.temperatures)),
        "sampled": (Sampled(said.draws, said.temperatures[0]), 12.0 * drawn + 4),
    }
    if said.k >= classes:
        if said.codec == "top-k":
            raise UserError(f"store.k: top-k keeps fewer than all {classes} classes; {said.k} came: take dense")
        del codecs["top-k"]
    found = []
    answered = teacher.answered(job.length)
    for name, (codec, learned_from) in codecs.items():
        each = bytes_a_position(codec, classes, drawn)
        rows, batches = cut(answered * each, CAPTURED, work.texts)
        of = Description(
            "", "", "", work.texts, work.texts * answered, classes, Views(), codec, (), CAPTURED, rows, batches
        )
        store = {"name": name, "bytes_a_position": each, "bytes": bytes_of(of, each), "learned_from": learned_from}
        found.append(store | ({"at_most": said.different is None} if name == "sampled" else {}))
    return found


def _model(of: Transformer, held: int, length: int) -> dict[str, Any]:
    return {
        "parameters": of.parameters,
        "bytes": held,
        "forward_flops_a_token": of.forward_flops(length) / length,
        "train_flops_a_token": of.train_flops(length) / length,
    }


def _hardware(job: Paper, on: Hardware) -> dict[str, Any]:
    return {
        "name": on.name,
        "devices": job.hardware.devices,
        "precision": job.train.precision,
        "peak": on.rate(job.train.precision),
        "memory": on.memory,
        "bandwidth": on.bandwidth,
        "teacher_share": on.teacher,
        "student_share": on.student,
        "reserve": on.reserve,
        "disk": parse_bytes(job.hardware.disk),
        "of": dict(zip(("peak", "share", "reserve"), on.of, strict=True)),
    }


def _notes(teacher: Transformer, student: Transformer, job: Paper) -> list[str]:
    notes = []
    if student.parameters >= teacher.parameters:
        notes.append("the student is no smaller than its teacher")
    if teacher.answers != student.answers:
        notes.append(f"ids differ, {teacher.answers:,} and {student.answers:,}: the shared ones are learned")
    return notes


def lines(result: dict[str, Any]) -> list[str]:
    """The figures for people."""
    work, on = result["work"], result["hardware"]
    spent = work["flops_an_epoch"]
    total = sum(spent.values()) * work["epochs"]
    found = []
    for name, what in (("teacher", "forward_flops_a_token"), ("student", "train_flops_a_token")):
        model = result[name]
        passes = "a forward pass" if name == "teacher" else "forward and backward"
        found.append(
            f"{name:10}{format_count(model['parameters'])} parameters, {format_bytes(model['bytes'])}; "
            f"{format_flops(model[what])} a token {passes}"
        )
    share, epochs = spent["teacher"] / sum(spent.values()), f"{work['epochs']:g} epoch{'s' * (work['epochs'] != 1)}"
    found.append(
        f"{'work':10}{format_count(work['tokens'])} tokens in texts of {work['length']:,}, {epochs}, "
        f"{work['steps']:,} steps: {format_flops(total)}, of them the teacher's {share:.0%}"
    )
    found.append(
        f"{'on':10}{on['devices']} × {on['name']}: {format_flops(on['peak'])}/s in {on['precision']} "
        f"({on['of']['peak']}), of which forward passes reach {on['teacher_share']:.0%} and training "
        f"{on['student_share']:.0%} ({on['of']['share']})"
    )
    for name in ("online", "stored"):
        found += _memory_lines(name, result["memory"][name], on)
    found += _store_lines(result)
    return [*found, *_time_lines(result), *(f"{'note':10}{note}" for note in result["notes"])]


def _memory_lines(name: str, fitted: dict[str, Any], on: dict[str, Any]) -> list[str]:
    parts = ", ".join(f"{part} {format_bytes(size)}" for part, size in fitted["bytes"].items() if part != "total")
    lines = [
        f"{name:10}{format_bytes(fitted['need'])} of {format_bytes(on['memory'])} a device, {fitted['texts']} text(s) "
        f"at once: {parts}; {on['reserve'] - 1:.0%} for the allocator ({on['of']['reserve']})"
    ]
    if not fitted["fits"]:
        helps = "; or ".join(fitted["helps"])
        said = f"what helps: {helps}" if helps else "nothing that is tried here helps: shorten length"
        lines.append(f"{'':10}does not fit; {said}")
    return lines


def _store_lines(result: dict[str, Any]) -> list[str]:
    lines = [f"{'codec':10}{'bytes a position':>18}{'store':>12}"]
    for store in result["stores"]:
        mark = "   store.codec" if store["name"] == result["chosen"] else ""
        mark += " (at most: store.different says less)" if store.get("at_most") else ""
        size = format_bytes(store["bytes"])
        lines.append(f"{store['name']:10}{store['bytes_a_position']:18,.1f}{size:>12}{mark}")
    return lines


def _time_lines(result: dict[str, Any]) -> list[str]:
    spent, devices = result["seconds"], result["hardware"]["devices"]
    bound = "; the disk is slower than the passes" if spent["disk_bound"] else ""
    even, saved = spent["break_even"], spent["online_epoch"] - spent["epoch"]
    found = [
        f"{'hours':10}online {hours(spent['online'])}: an epoch {hours(spent['teacher'])} of the teacher and "
        f"{hours(spent['student'])} of the student",
        f"{'':10}stored {hours(spent['stored'])}: captured in {hours(spent['capture'])}, then "
        f"{hours(spent['epoch'])} an epoch{bound}",
        f"{'':10}of one device {hours(spent['online'] * devices)} and {hours(spent['stored'] * devices)}",
    ]
    if even is None:
        return [*found, f"{'':10}the store is never faster"]
    return [
        *found,
        f"{'':10}the store pays after {even:.3g} epochs: each further one, or other student, saves {hours(saved)}",
    ]


def hours(seconds: float) -> str:
    """3,600 -> "1.0 h", less than a tenth of an hour in minutes or seconds."""
    if seconds >= 360:
        return f"{seconds / 3600:,.1f} h" if seconds < 360_000 else f"{seconds / 3600:,.0f} h"
    return f"{seconds / 60:.1f} min" if seconds >= 60 else f"{seconds:.2g} s"


def format_flops(count: float) -> str:
    """Operations for people: 1.5e10 -> "15 GFLOP"."""
    for unit, size in (("ZFLOP", 1e21), ("EFLOP", 1e18), ("PFLOP", 1e15), ("TFLOP", 1e12), ("GFLOP", 1e9)):
        if count >= size:
            return f"{count / size:.3g} {unit}" if count < 999.5 * size else f"{count / size:,.0f} {unit}"
    return f"{count / 1e6:.3g} MFLOP"
