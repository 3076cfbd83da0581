"""The page's numbers: the headline, the budget's verdicts, and the one table of all models."""

from collections.abc import Callable
from typing import Any, NamedTuple

from edgestill.report import words
from edgestill.report.words import Metric

LIMITS = {"size": "Size", "latency": "Latency, p50", "memory": "Peak memory", "quality": "Quality"}


class Column(NamedTuple):
    """What a model costs in one respect. `always`: there even where no model has the number."""

    group: str
    title: str
    read: Callable[[dict[str, Any]], Any]
    write: Callable[[Any], str]
    always: bool = True


def _latency(key: str) -> Callable[[dict[str, Any]], Any]:
    return lambda model: (model.get("latency_ms") or {}).get(key)


def _value(key: str) -> Callable[[dict[str, Any]], Any]:
    return lambda model: model.get(key)


LATENCY, RELATIVE = "latency of one sample, ms", "÷ teacher"
COSTS = (
    Column("model", "parameters", _value("parameters"), words.whole),
    Column("model", "FLOPs", _value("flops"), words.operations),
    Column("model", "size", _value("bytes"), words.size),
    Column(LATENCY, "p50", _latency("p50"), words.milliseconds),
    Column(LATENCY, "p90", _latency("p90"), words.milliseconds),
    Column(LATENCY, "p99", _latency("p99"), words.milliseconds),
    Column(LATENCY, RELATIVE, _value("latency_ratio"), words.ratio, always=False),
    Column("throughput", "samples/s", _value("throughput"), words.whole, always=False),
    Column("memory", "peak", _value("peak_memory_bytes"), words.size),
    Column("energy", "mJ/sample", _value("energy_mj"), words.milliseconds, always=False),
)


def shipped(result: dict[str, Any]) -> dict[str, Any]:
    """The artifact that the budget was judged on; without a word on it, the one of the judged size, else the last."""
    artifacts = result.get("artifacts") or []
    budget = result.get("budget") or {}
    judged = (budget.get("size") or {}).get("value")
    for artifact in artifacts:
        if words.artifact_name(artifact) == budget.get("artifact"):
            return dict(artifact)
    for artifact in artifacts:
        if judged is not None and artifact.get("bytes") == judged:
            return dict(artifact)
    return dict(artifacts[-1]) if artifacts else {}


def retained(value: Any, teacher: Any, of: Metric) -> str:
    """(value − chance) / (teacher − chance); where lower is better, the gap value − teacher."""
    if not words.known(value) or not words.known(teacher):
        return words.NONE
    if not of.higher_is_better:
        return words.difference(value - teacher, of)
    return words.percent((value - of.chance) / (teacher - of.chance)) if teacher != of.chance else words.NONE


def headline(result: dict[str, Any], of: Metric) -> list[dict[str, str]]:
    """Up to four numbers, each with what it is and the words that qualify it."""
    return [fact for fact in (_kept(result, of), _gained(result, of), _smaller(result), _faster(result)) if fact]


def _kept(result: dict[str, Any], of: Metric) -> dict[str, str] | None:
    student = (result.get("arms") or {}).get("student") or {}
    teacher = (result.get("teacher") or {}).get("quality")
    if not words.known(student.get("mean")) or not words.known(teacher):
        return None
    note = f"{words.quality(student['mean'], of)} {of.name}, the teacher {words.quality(teacher, of)}"
    if of.higher_is_better and of.chance:
        note += f", chance {words.quality(of.chance, of)}"
    artifact = shipped(result)
    if words.known(artifact.get("quality")):
        kept = retained(artifact["quality"], teacher, of)
        note += f"; as {words.artifact_name(artifact)} {words.quality(artifact['quality'], of)}"
        note += f", so {kept} kept" if of.higher_is_better else ""
    value = retained(student["mean"], teacher, of)
    if of.higher_is_better:
        return {"label": "kept of the teacher", "value": value, "unit": "", "note": note}
    return {"label": "gap to the teacher", "value": value, "unit": of.name, "note": f"{note}; lower is better"}


def _gained(result: dict[str, Any], of: Metric) -> dict[str, str] | None:
    student = (result.get("arms") or {}).get("student") or {}
    found = student.get("difference") or {}
    if not words.known(found.get("mean")):
        return None
    interval = found.get("interval")
    seeds = len(student.get("seeds") or [])
    over = f"{seeds} seeds" if found.get("over") == "seeds" else f"the {found['over']}" if "over" in found else ""
    if not interval:
        note = "one seed, so no interval" if seeds < 2 else "no interval"
    else:
        low, high = interval
        note = f"interval {words.difference(low, of)} to {words.difference(high, of)}" + (
            f", over {over}" if over else ""
        )
        note += "; it includes zero, so no difference is shown" if low <= 0 <= high else ""
    note += "; lower is better" if not of.higher_is_better else ""
    unit = "points" if of.percent else of.name
    better = (found["mean"] >= 0) == of.higher_is_better
    label = f"{'gained over' if better else 'lost against'} the {found.get('to', 'baseline')}"
    return {"label": label, "value": words.difference(found["mean"], of), "unit": unit, "note": note}


def _smaller(result: dict[str, Any]) -> dict[str, str] | None:
    artifact, teacher = shipped(result), result.get("teacher") or {}
    if not words.known(artifact.get("bytes")) or not words.known(teacher.get("bytes")):
        return None
    ours, theirs = artifact["bytes"], teacher["bytes"]
    note = f"{words.size(ours)} as {words.artifact_name(artifact)}, the teacher {words.size(theirs)}"
    return {"label": "size of the file", **_ratio(theirs / ours, "smaller", "larger"), "note": note}


def _faster(result: dict[str, Any]) -> dict[str, str] | None:
    artifact, teacher = shipped(result), result.get("teacher") or {}
    ours: Any = (artifact.get("latency_ms") or {}).get("p50")
    theirs: Any = (teacher.get("latency_ms") or {}).get("p50")
    if words.known(ours) and words.known(artifact.get("latency_ratio")):
        theirs = ours / artifact["latency_ratio"]  # in the artifact's own runtime
    if not words.known(ours) or not words.known(theirs):
        return None
    note = f"{words.milliseconds(ours)}{words.GAP}ms a sample, the teacher {words.milliseconds(theirs)}{words.GAP}ms"
    if "threads" in artifact:
        note += f"; {artifact['threads']}{words.GAP}thread{'s' if artifact['threads'] != 1 else ''}"
    if host(result):
        note += f" on {host(result)}"
    return {"label": "speed, p50", **_ratio(theirs / ours, "faster", "slower"), "note": note}


def host(result: dict[str, Any]) -> str:
    """The host on which latency was measured, "" for the one that trained."""
    return str((result.get("bench") or {}).get("host") or "")


def _ratio(ratio: float, better: str, worse: str) -> dict[str, str]:
    return {"value": f"{words.times(max(ratio, 1 / ratio))}×", "unit": better if ratio >= 1 else worse}


def verdicts(result: dict[str, Any], of: Metric) -> list[dict[str, Any]]:
    """One a limit: its name, the measured value, the limit in words, met or not (None: not measured yet)."""
    writers = {"size": words.size, "latency": words.duration, "memory": words.size}
    judged = []
    for name, verdict in (result.get("budget") or {}).items():
        if not isinstance(verdict, dict) or verdict.get("limit") is None:
            continue
        kept = name.startswith("keep ")
        write = writers.get(name) or (words.percent if kept else lambda value: words.quality(value, of))
        at_least = kept or (name == "quality" and of.higher_is_better)
        judged.append(
            {
                "name": f"Skill {name[5:]}" if kept else LIMITS.get(name, name),
                "value": write(verdict.get("value")),
                "limit": f"{'at least' if at_least else 'at most'} {write(verdict['limit'])}",
                "met": verdict.get("met"),
            }
        )
    return judged


def columns(result: dict[str, Any]) -> list[Column]:
    """What the table of all models says of their cost."""
    models = [result.get("teacher") or {}, result.get("student") or {}, *(result.get("artifacts") or [])]
    return [
        column for column in COSTS if column.always or any(words.known(column.read(model)) for model in models if model)
    ]


def explained(result: dict[str, Any]) -> str:
    """What the costs in the table are."""
    said = ["Peak memory is over that of an empty model in the same runtime."]
    if any(column.title == RELATIVE for column in columns(result)):
        said.append(f"{RELATIVE}: p50 over that of the float teacher in the same runtime.")
    return " ".join(said)


def remarks(result: dict[str, Any], of: Metric) -> list[str]:
    """Sentences below the table: how and where costs were measured, and the check on emulated ARM."""
    artifacts = result.get("artifacts") or []
    said = []
    batches: dict[Any, list[str]] = {}
    for artifact in artifacts:
        if words.known(artifact.get("throughput")):
            formats = batches.setdefault(artifact.get("throughput_batch"), [])
            kind = str(artifact.get("format"))
            formats += [kind] * (kind not in formats)
    if batches:
        in_batches = ", ".join(
            f"{'one by one' if size == 1 else f'in batches of {words.whole(size)}'} ({', '.join(formats)})"
            for size, formats in batches.items()
        )
        said.append(f"Throughput: {in_batches}.")
    if host(result):
        hardware = (result.get("bench") or {}).get("hardware") or {}
        what = ", ".join(str(hardware[key]) for key in ("cpu", "machine") if hardware.get(key))
        said.append(f"Latency, throughput and memory were measured on {host(result)}{f' ({what})' if what else ''}.")
    return said + _emulated(artifacts, of)


def _emulated(artifacts: list[dict[str, Any]], of: Metric) -> list[str]:
    checked = [
        (words.artifact_name(artifact), artifact["emulated"]) for artifact in artifacts if artifact.get("emulated")
    ]
    if not checked:
        return []
    each = ", ".join(
        f"{name} {words.agreement(there.get('agreement'), of)} (max error {words.error(there.get('max_abs_error'))})"
        for name, there in checked
    )
    _, first = checked[0]
    return [
        f"On an emulated ARM processor ({first.get('runtime')}), {of.agreement} with this host’s answers on "
        f"{words.whole(first.get('samples'))} images: {each}."
    ]


def rows(result: dict[str, Any], of: Metric) -> list[dict[str, Any]]:
    """A row a model, in the reader's order: teacher, arms, artifacts. Every cell is written text."""
    costs = columns(result)
    teacher, student = result.get("teacher") or {}, result.get("student") or {}
    reference = teacher.get("quality")
    found = []
    if teacher:
        lowered = teacher.get("precision", "float32") != "float32"  # its file is in float32 all the same
        said = f"taught in {teacher['precision']}, measured as a file in float32" if lowered else None
        about = " · ".join(text for text in (teacher.get("name"), words.short(teacher.get("model")), said) if text)
        found.append(_row("teacher", about, teacher, reference, of, costs))
    for name, arm in (result.get("arms") or {}).items():
        count = len(arm.get("seeds") or [])
        seeds = f"{count} seed{'s' if count != 1 else ''}"
        about = f"{words.short(student.get('model'))} · {seeds}".removeprefix(" · ")
        trained, parameters = student.get("trained_parameters"), student.get("parameters")
        if name in ("baseline", "student") and trained and parameters and trained < parameters:
            about += f" · {trained:,} parameters trained of {parameters:,}"
        if name == "baseline":
            about += " · without the teacher"
        cost = student if name == "student" else {}
        row = _row(name, about, {**cost, "quality": arm.get("mean")}, reference, of, costs)
        row["quality"] = words.quality(arm.get("mean"), of, arm.get("std") if count > 1 else None)
        row["same"] = name != "student"
        found.append(row)
    for artifact in result.get("artifacts") or []:
        name = words.artifact_name(artifact)
        threads = artifact.get("threads")
        runtime = [artifact.get("runtime"), f"{threads} thread{'s' if threads != 1 else ''}" if threads else None]
        text = " · ".join(str(part) for part in runtime if part)
        found.append(_row(name, text, artifact, reference, of, costs))
    return found


def _row(
    name: str, about: str, model: dict[str, Any], reference: Any, of: Metric, costs: list[Column]
) -> dict[str, Any]:
    quality = model.get("quality")
    return {
        "name": name,
        "about": about,
        "quality": words.quality(quality, of),
        "retained": words.NONE if name == "teacher" else retained(quality, reference, of),
        "agreement": words.agreement(model.get("agreement"), of),
        "max_error": words.error(model.get("max_abs_error")),
        "same": False,
        "cost": [column.write(column.read(model)) for column in costs],
    }
