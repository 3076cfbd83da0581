"""The page's numbers: the headline, the budget's verdicts, and the one table of all models."""

from typing import Any

from edgestill.report import words
from edgestill.report.words import Metric

LIMITS = {"size": "Size", "latency": "Latency, p50", "memory": "Peak memory", "quality": "Quality"}


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
    if not words.known(ours) or not words.known(theirs):
        return None
    note = f"{words.milliseconds(ours)}{words.GAP}ms a sample, the teacher {words.milliseconds(theirs)}{words.GAP}ms"
    if "threads" in artifact:
        note += f"; {artifact['threads']}{words.GAP}thread{'s' if artifact['threads'] != 1 else ''}"
    return {"label": "speed, p50", **_ratio(theirs / ours, "faster", "slower"), "note": note}


def _ratio(ratio: float, better: str, worse: str) -> dict[str, str]:
    return {"value": f"{words.times(max(ratio, 1 / ratio))}×", "unit": better if ratio >= 1 else worse}


def verdicts(result: dict[str, Any], of: Metric) -> list[dict[str, Any]]:
    """One a limit: its name, the measured value, the limit in words, met or not (None: not measured yet)."""
    writers = {"size": words.size, "latency": words.duration, "memory": words.size}
    judged = []
    for name, verdict in (result.get("budget") or {}).items():
        if not isinstance(verdict, dict) or verdict.get("limit") is None:
            continue
        write = writers.get(name) or (lambda value: words.quality(value, of))
        at_least = name == "quality" and of.higher_is_better
        judged.append(
            {
                "name": LIMITS.get(name, name),
                "value": write(verdict.get("value")),
                "limit": f"{'at least' if at_least else 'at most'} {write(verdict['limit'])}",
                "met": verdict.get("met"),
            }
        )
    return judged


def rows(result: dict[str, Any], of: Metric) -> list[dict[str, Any]]:
    """A row a model, in the reader's order: teacher, arms, artifacts. Every cell is written text."""
    teacher, student = result.get("teacher") or {}, result.get("student") or {}
    reference = teacher.get("quality")
    found = []
    if teacher:
        about = " · ".join(text for text in (teacher.get("name"), words.short(teacher.get("model"))) if text)
        found.append(_row("teacher", "teacher", about, teacher, reference, reference, of))
    for name, arm in (result.get("arms") or {}).items():
        count = len(arm.get("seeds") or [])
        seeds = f"{count} seed{'s' if count != 1 else ''}"
        about = f"{words.short(student.get('model'))} · {seeds}".removeprefix(" · ")
        if name == "baseline":
            about += " · without the teacher"
        cost = student if name == "student" else {}
        row = _row(name, name, about, {**cost, "quality": arm.get("mean")}, reference, arm.get("mean"), of)
        row["quality"] = words.quality(arm.get("mean"), of, arm.get("std") if count > 1 else None)
        row["same"] = name != "student"
        found.append(row)
    for artifact in result.get("artifacts") or []:
        name = words.artifact_name(artifact)
        threads = artifact.get("threads")
        runtime = [artifact.get("runtime"), f"{threads} thread{'s' if threads != 1 else ''}" if threads else None]
        text = " · ".join(str(part) for part in runtime if part)
        found.append(_row(name, name, text, artifact, reference, artifact.get("quality"), of))
    return found


def _row(
    role: str, name: str, about: str, model: dict[str, Any], reference: Any, value: Any, of: Metric
) -> dict[str, Any]:
    latency = model.get("latency_ms") or {}
    return {
        "role": role,
        "name": name,
        "about": about,
        "quality": words.quality(value, of),
        "retained": words.NONE if role == "teacher" else retained(value, reference, of),
        "agreement": words.agreement(model.get("agreement")),
        "max_error": words.error(model.get("max_abs_error")),
        "same": False,
        "cost": [
            words.whole(model.get("parameters")),
            words.operations(model.get("flops")),
            words.size(model.get("bytes")),
            *(words.milliseconds(latency.get(key)) for key in ("p50", "p90", "p99")),
            words.size(model.get("peak_memory_bytes")),
        ],
    }
