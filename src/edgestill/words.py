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


def smallest_kept(result: Result) -> dict[str, Any] | None:
    """The artifact that the budget's verdict is about."""
    artifacts: list[dict[str, Any]] = result.get("artifacts", [])
    name = result.get("budget", {}).get("artifact")
    return next((artifact for artifact in artifacts if artifact["name"] == name), None)


def summary(result: Result) -> list[str]:
    """What was kept against the teacher, gained against the baseline, how small, how fast, what the budget says."""
    lines = []
    student, teacher = result["arms"]["student"], result["teacher"]
    seeds = len(student["seeds"])
    over = f", mean of {seeds} seeds" if seeds > 1 else ""
    lines.append(
        f"kept     {student['retained'] * 100:.1f} % of the teacher: {percent(student['mean'])} of {percent(teacher['quality'])} accuracy{over}"
    )
    if difference := student.get("difference"):
        low, high = difference["interval"]
        baseline = result["arms"]["baseline"]["mean"]
        lines.append(
            f"gained   {points(difference['mean'])} points over the baseline's {percent(baseline)}, "
            f"95 % interval {points(low)} … {points(high)} over {difference['over']}"
        )
    if artifact := smallest_kept(result):
        lines += _artifact(artifact, teacher)
        lines += _budget(result["budget"])
    return lines


def _artifact(artifact: dict[str, Any], teacher: dict[str, Any]) -> list[str]:
    p50 = artifact["latency_ms"]["p50"]
    return [
        f"file     {artifact['path']}: {percent(artifact['quality'])} accuracy ({artifact['quality_measured']}), "
        f"agrees with the student on {percent(artifact['agreement'])}",
        f"small    {format_bytes(artifact['bytes'])}, {teacher['bytes'] / artifact['bytes']:.1f} times smaller than the teacher's file",
        f"fast     {format_seconds(p50 / 1e3)} a sample (p50, {artifact['threads']} thread{'s' * (artifact['threads'] > 1)} of "
        f"{artifact['runtime']}), {teacher['latency_ms']['p50'] / p50:.1f} times faster than the teacher",
    ]


def _budget(budget: dict[str, Any]) -> list[str]:
    limits = {name: value for name, value in budget.items() if isinstance(value, dict)}
    if not limits:
        return []
    said = [f"{name} {_quantity(name, v['value'])} of {_quantity(name, v['limit'])}{'' if v['met'] else ' MISSED'}" for name, v in limits.items()]
    return [f"budget   {'met' if budget['met'] else 'missed'}: {', '.join(said)}"]


def _quantity(name: str, value: float) -> str:
    if name == "latency":
        return format_seconds(value / 1e3)
    return percent(value) if name == "quality" else format_bytes(value)
