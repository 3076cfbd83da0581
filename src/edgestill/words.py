"""A result in words: what the command line's last lines and the model card say."""

from typing import Any

from edgestill.units import format_bytes, format_seconds

Result = dict[str, Any]


def percent(share: float) -> str:
    """0.9337 -> "93.37 %"."""
    return f"{share * 100:.2f} %"


def points(difference: float) -> str:
    """0.0123 -> "+1.23"."""
    return f"{difference * 100:+.2f}"


def judged_artifact(result: Result) -> dict[str, Any] | None:
    """The artifact that the budget's verdict is about."""
    artifacts: list[dict[str, Any]] = result.get("artifacts", [])
    name = result.get("budget", {}).get("artifact")
    return next((artifact for artifact in artifacts if artifact["name"] == name), None)


def summary(result: Result) -> list[str]:
    """What was kept against the teacher, gained against the baseline, how small, how fast, what the budget says."""
    lines: list[str] = []
    student, teacher = result["arms"]["student"], result["teacher"]
    seeds = len(student["seeds"])
    over = f", mean of {seeds} seeds" if seeds > 1 else ""
    kept = f"{percent(student['mean'])} of {percent(teacher['quality'])} accuracy{over}"
    lines.append(f"kept     {student['retained'] * 100:.1f} % of the teacher above chance: {kept}")
    if difference := student.get("difference"):
        interval = "no interval"
        if difference["interval"]:
            low, high = difference["interval"]
            interval = f"95 % interval {points(low)} … {points(high)}"
        baseline = result["arms"]["baseline"]["mean"]
        lines.append(
            f"gained   {points(difference['mean'])} points over the baseline's {percent(baseline)}, "
            f"{interval} over {difference['over']}"
        )
    for split, count in result.get("data", {}).get("skipped", {}).items():
        lines.append(f"left out {count} broken image{'s' * (count > 1)} of the {split} split")
    if artifact := judged_artifact(result):
        lines += _artifact(artifact, teacher)
        lines += _budget(result["budget"])
    return lines


def comparison(results: dict[str, Result]) -> str:
    """Runs side by side, a line each."""
    rows: list[tuple[str, ...]] = [
        ("run", "teacher", "baseline", "student", "gained", "artifact", "quality", "bytes", "p50 ms")
    ]
    for name, result in results.items():
        arms, artifact = result.get("arms", {}), judged_artifact(result)
        student = arms.get("student")
        mean = [percent(arms[arm]["mean"]) if arm in arms else "–" for arm in ("baseline", "student")]
        gained = points(student["difference"]["mean"]) if student and "difference" in student else "–"
        teacher = percent(result["teacher"]["quality"]) if "teacher" in result else "–"
        last: tuple[str, ...] = ("–",) * 4
        if artifact:
            p50 = f"{artifact['latency_ms']['p50']:.3f}"
            last = (artifact["name"], percent(artifact["quality"]), f"{artifact['bytes']:,}", p50)
        rows.append((name, teacher, *mean, gained, *last))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _artifact(artifact: dict[str, Any], teacher: dict[str, Any]) -> list[str]:
    p50 = artifact["latency_ms"]["p50"]
    threads = f"{artifact['threads']} thread{'s' * (artifact['threads'] > 1)}"
    size = _times(teacher["bytes"] / artifact["bytes"], "smaller", "larger")
    ratio = artifact.get("latency_ratio")  # within the artifact's own runtime
    speed = _times(1 / ratio if ratio else teacher["latency_ms"]["p50"] / p50, "faster", "slower")
    how = f" ({artifact['quality_measured']})" if "quality_measured" in artifact else ""
    return [
        f"file     {artifact['path']}: {percent(artifact['quality'])} accuracy{how}, "
        f"agrees with the student on {percent(artifact['agreement'])}",
        f"small    {format_bytes(artifact['bytes'])}, {size} than the teacher's file",
        f"fast     {format_seconds(p50 / 1e3)} a sample (p50, {threads} of {artifact['runtime']}), "
        f"{speed} than the teacher",
    ]


def _times(ratio: float, better: str, worse: str) -> str:
    return f"{ratio:.1f} times {better}" if ratio >= 1 else f"{1 / ratio:.1f} times {worse}"


def _budget(budget: dict[str, Any]) -> list[str]:
    said = []
    for name, verdict in budget.items():
        if isinstance(verdict, dict):
            values = f"{_quantity(name, verdict['value'])} of {_quantity(name, verdict['limit'])}"
            said.append(f"{name} {values}{'' if verdict['met'] else ' MISSED'}")
    return [f"budget   {'met' if budget['met'] else 'missed'}: {', '.join(said)}"] if said else []


def _quantity(name: str, value: float) -> str:
    if name == "latency":
        return format_seconds(value)
    return percent(value) if name == "quality" else format_bytes(value)
