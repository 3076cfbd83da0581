"""The page: what was read, written as text and drawings, laid into the template."""

from itertools import groupby
from typing import Any

from markupsafe import Markup

from edgestill.report import classes, curves, eight_bits, examples, layers, skills, table, tradeoff, words
from edgestill.report.draw import Plot
from edgestill.report.folder import Folder
from edgestill.report.html import html
from edgestill.report.words import Metric

STATUS = {
    "interrupted": "This run was interrupted: what follows is what it had reached. Run it with --resume to go on.",
    "unfinished": "This run has no result yet: what follows is what it has written so far.",
    "failed": "This run failed: what follows is what it had reached.",
}


def render(folder: Folder) -> str:
    """The whole page as HTML text, everything that came from the run escaped."""
    return html("template.html", **_context(folder))


def _context(folder: Folder) -> dict[str, Any]:
    result = folder.result
    of = words.metric(result)
    artifacts = [words.artifact_name(artifact) for artifact in result.get("artifacts") or []]
    roles = words.roles(result.get("artifacts") or [])
    costs = table.columns(result)
    shipped = words.artifact_name(shown) if (shown := table.shipped(result)) else None
    compared = ["teacher", "baseline", "student", *([shipped] if shipped else [])]
    seed = _seed(folder)
    found = classes.accuracies(folder.labels, folder.answers, result.get("classes") or [], compared)
    return {
        **_top(folder, of),
        "metric": of,
        "roles": roles,
        "facts": table.headline(result, of),
        "rows": table.rows(result, of),
        "costs": costs,
        "cost_groups": [(group, len(list(columns))) for group, columns in groupby(costs, lambda column: column.group)],
        "explained": table.explained(result),
        "remarks": table.remarks(result, of),
        "no_artifact": not artifacts,
        "several_seeds": any(len(arm.get("seeds") or []) > 1 for arm in (result.get("arms") or {}).values()),
        "tradeoff": _shown(tradeoff.plots(result, of, roles)),
        "key": artifacts if len(artifacts) > tradeoff.NAMED else [],
        "skill_columns": skills.columns(result),
        "skills": skills.rows(result),
        "skills_retained": _shown([plot] if (plot := skills.retained(result, roles)) else []),
        "eight_bits": eight_bits.formats(result, of),
        "simulated": any(artifact.get("simulated") for artifact in result.get("artifacts") or []),
        "layer_losses": _shown([plot] if (plot := eight_bits.layer_losses(result)) else []),
        "training": _shown(curves.plots(result, folder.metrics, of, roles, seed)),
        "layer_maps": _layer_maps(result),
        "seed": seed,
        "classes": _shown(classes.plots(found, roles)) if found else [],
        "class_table": _class_table(found) if found else None,
        "has_classes": result.get("classes") != [],
        "many_classes": len(result.get("classes") or []) > classes.SHOWN,
        "examples": examples.cards(folder, [name for name in compared if name != "baseline"]),
        "completions": _completions(folder),
        "measured": _measured(result),
        **_how(folder),
    }


def _completions(folder: Folder) -> list[dict[str, Any]]:
    """A prompt each, with what every model wrote on."""
    models = folder.completions.get("models") or {}
    return [
        {"prompt": prompt, "written": [(name, texts[place]) for name, texts in models.items()]}
        for place, prompt in enumerate(folder.completions.get("prompts") or [])
    ]


def _layer_maps(result: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {**found._asdict(), "plot": _shown([found.plot])[0] if found.plot else None} for found in layers.maps(result)
    ]


def _measured(result: dict[str, Any]) -> list[str]:
    """How each artifact's quality was measured, those alike together: "graph optimisation off (onnx-int8)"."""
    ways: dict[str, list[str]] = {}
    for artifact in result.get("artifacts") or []:
        if artifact.get("quality_measured"):
            ways.setdefault(str(artifact["quality_measured"]), []).append(words.artifact_name(artifact))
    return [f"{way} ({', '.join(names)})" for way, names in ways.items()]


def _top(folder: Folder, of: Metric) -> dict[str, Any]:
    result = folder.result
    student = words.short((result.get("student") or {}).get("model"))
    teacher = result.get("teacher") or {}
    budget = result.get("budget") or {}
    status = str(result.get("status", "done"))
    verdicts = table.verdicts(result, of)
    return {
        "title": str(result.get("recipe") or "A distillation run"),
        "task": str(result.get("task", "")),
        "student": student,
        "teacher": words.short(teacher.get("model")) or str(teacher.get("name") or ""),
        "status": "" if status == "done" else STATUS.get(status, f"The status of this run is “{status}”."),
        "verdicts": verdicts,
        "missed": [verdict["name"].lower() for verdict in verdicts if verdict["met"] is False],
        "budget_met": budget.get("met"),
        "judged": words.artifact_name(shown) if (shown := table.shipped(result)) else "",
    }


def _seed(folder: Folder) -> Any:
    """The seed whose student is shown: the one the result names, else the first that was logged."""
    student = folder.result.get("student") or {}
    logged = [line.get("seed") for line in folder.metrics if line.get("arm") == "student"]
    return student.get("seed", logged[0] if logged else 0)


def _shown(plots: list[Plot]) -> list[dict[str, Any]]:
    return [{**plot._asdict(), "svg": Markup(plot.svg)} for plot in plots]


def _class_table(found: classes.Accuracies) -> dict[str, Any]:
    columns = list(found.models)
    net = found.gained - found.lost
    return {
        "columns": columns,
        "rows": [
            {
                "name": name,
                "count": words.whole(int(found.counts[row])),
                "values": [words.percent(float(found.models[model][row])) for model in columns],
                "lost": words.percent(float(found.lost[row])),
                "gained": words.percent(float(found.gained[row])),
                "net": classes.points(float(net[row])) if found.counts[row] else words.NONE,
            }
            for row, name in enumerate(found.names)
        ],
    }


def _how(folder: Folder) -> dict[str, Any]:
    """Phases, time, data, environment and recipe, all as text."""
    result = folder.result
    seconds = {name: value for name, value in (result.get("seconds") or {}).items() if words.known(value)}
    longest = max(seconds.values(), default=0) or 1
    return {
        "phases": [
            {
                "name": phase.get("name", ""),
                "steps": words.whole(phase.get("steps")),
                "examples": words.whole(phase.get("examples")),
            }
            for phase in result.get("phases") or []
        ],
        "seconds": [
            {"name": name, "time": words.duration(value), "share": f"{100 * value / longest:.1f}"}
            for name, value in seconds.items()
        ],
        "total": words.duration(sum(seconds.values())) if seconds else "",
        "data": _counts(result.get("data") or {}),
        "environment": [(name.replace("_", " "), _flat(value)) for name, value in folder.environment.items()],
        "recipe": folder.recipe,
    }


def _counts(data: dict[str, Any]) -> list[tuple[str, str]]:
    """Samples by split, and how many of a split were left out because they are broken, or lost their end."""
    parts = {"skipped": "left out of", "cut": "cut in"}
    counted = [(name, count) for name, count in data.items() if name not in parts]
    for key, words_ in parts.items():
        counted += [(f"{words_} {name}", count) for name, count in (data.get(key) or {}).items()]
    return [(name, words.whole(count)) for name, count in counted]


def _flat(value: Any) -> list[str]:
    """Any JSON value as short lines of text."""
    if isinstance(value, dict):
        return [f"{key} {' '.join(_flat(inner))}" for key, inner in value.items()]
    if isinstance(value, list):
        return [", ".join(" ".join(_flat(inner)) for inner in value)]
    if value is None:
        return [words.NONE]
    return [str(value).lower() if isinstance(value, bool) else str(value)]
