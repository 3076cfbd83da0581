"""The budget's verdict on the files of a run."""

from typing import Any

from edgestill.assemble import Job
from edgestill.recipe import RUNTIMES
from edgestill.units import parse_bytes, parse_seconds

KEEP = "keep "
"""In front of a skill's name: the limit of what is retained of it."""


def verdict(job: Job, artifacts: list[dict[str, Any]]) -> dict[str, Any]:
    """The budget's verdict a limit, of the artifact that misses the limits by least; the smallest among equals,
    so that nothing is chosen by its quality on the test set."""
    budget = job.recipe.budget
    artifacts = [artifact for artifact in artifacts if artifact["name"] in job.recipe.export]
    if budget.runtime is not None:
        artifacts = [artifact for artifact in artifacts if artifact["format"] == RUNTIMES[budget.runtime]]
    limits: dict[str, tuple[float, Any]] = {}
    if budget.size is not None:
        limits["size"] = (parse_bytes(budget.size), lambda a: a["bytes"])
    if budget.latency is not None:
        limits["latency"] = (parse_seconds(budget.latency), lambda a: a["latency_ms"]["p50"] / 1e3)
    if budget.memory is not None:
        limits["memory"] = (parse_bytes(budget.memory), lambda a: a["peak_memory_bytes"])
    if budget.quality is not None:
        limits["quality"] = (budget.quality, lambda a: a["quality"])
    for skill, share in budget.keep.items():
        limits[f"{KEEP}{skill}"] = (share, lambda a, skill=skill: (a.get("retained") or {}).get(skill) or 0.0)

    def judge(artifact: dict[str, Any]) -> dict[str, dict[str, Any]]:
        judged = {}
        for name, (limit, read) in limits.items():
            value = read(artifact)
            at_least = name.startswith(KEEP) or (name == "quality" and job.metric.higher_is_better)
            met = value >= limit if at_least else value <= limit
            judged[name] = {"limit": limit, "value": value, "met": bool(met)}
        return judged

    def missed_by(judged: dict[str, dict[str, Any]]) -> float:
        """How far the limits are missed, each relative to itself."""
        return sum(
            float(abs(v["value"] - v["limit"]) / max(v["limit"], 1e-12)) for v in judged.values() if not v["met"]
        )

    chosen, judged = min(
        ((artifact, judge(artifact)) for artifact in artifacts),
        key=lambda pair: (missed_by(pair[1]), pair[0]["bytes"]),
    )
    return {"met": all(v["met"] for v in judged.values()), "artifact": chosen["name"], **judged}
