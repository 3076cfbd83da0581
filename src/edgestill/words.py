"""A result in words: what the command line's last lines and the model card say."""

from collections.abc import Callable
from functools import partial
from typing import Any

from edgestill.units import format_bytes, format_seconds

Result = dict[str, Any]


def planned(plan: Result) -> str:
    """What a capture is going to cost, codec by codec, and why not of the others; the recipe's is marked."""
    views = f"{plan['views']} view{'s' * (plan['views'] > 1)}"
    lines = [
        f"teacher   {plan['passes']:,} passes of {plan['batch']} samples: {plan['samples']:,} samples in {views}",
        f"{'codec':10}{'bytes a position':>18}{'store':>12}{'time here':>12}",
    ]
    for codec in plan["codecs"]:
        mark = "   capture.codec" if codec["name"] == plan["chosen"] else ""
        size, time = format_bytes(codec["bytes"]), format_seconds(codec["seconds"])
        lines.append(f"{codec['name']:10}{codec['bytes_a_position']:18.1f}{size:>12}{time:>12}{mark}")
    lines += [f"{name:10}left out: {why}" for name, why in plan["left_out"].items()]
    return "\n".join(lines)


def percent(share: float) -> str:
    """0.9337 -> "93.37 %"."""
    return f"{share * 100:.2f} %"


def points(difference: float) -> str:
    """0.0123 -> "+1.23"."""
    return f"{difference * 100:+.2f}"


def _number(value: float) -> str:
    return f"{value:.4f}"


def _signed(difference: float) -> str:
    return f"{difference:+.4f}"


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
    metric = result["metric"]
    shown, apart = (percent, points) if metric["higher_is_better"] else (_number, _signed)
    lines.append(_kept(result, student, student["mean"], f", mean of {seeds} seeds" if seeds > 1 else ""))
    if difference := student.get("difference"):
        interval = "no interval"
        if difference["interval"]:
            low, high = difference["interval"]
            interval = f"95 % interval {apart(low)} … {apart(high)}"
        other = difference["to"]
        lines.append(
            f"gained   {apart(difference['mean'])}{' points' if shown is percent else ''} over the {other}'s "
            f"{shown(result['arms'][other]['mean'])}, "
            f"{interval} over {difference['over']}"
        )
    lines += skill_lines(result)
    quantized = result.get("quantized", {})
    if quantized.get("worse"):
        lines.append(f"8 bits   {quantized['worse']}")
    for split, count in result.get("data", {}).get("cut", {}).items():
        lines.append(f"cut      {count} text{'s' * (count > 1)} of the {split} split to the student's length")
    chat = result.get("task") == "instruction"
    for split, count in result.get("data", {}).get("skipped", {}).items():
        left_out, why = ("conversation", ", without an answer to learn") if chat else ("broken image", "")
        lines.append(f"left out {count} {left_out}{'s' * (count > 1)} of the {split} split{why}")
    if artifact := judged_artifact(result):
        lines += _artifact(artifact, teacher, metric, f"{shown(artifact['quality'])} {metric['name']}")
        lines += _budget(result["budget"], shown)
    return lines


def _kept(result: Result, kept: Result, quality: float, over: str) -> str:
    """What a student of that quality keeps of the result's teacher."""
    metric = result["metric"]
    shown, apart = (percent, points) if metric["higher_is_better"] else (_number, _signed)
    of = f"{shown(quality)} of {shown(result['teacher']['quality'])} {metric['name']}{over}"
    if "retained" not in kept:
        return f"gap      {apart(kept['gap'])} {metric['name']} to the teacher: {of}; lower is better"
    share = kept["retained"]
    above = "nothing of a teacher at chance" if share is None else f"{share * 100:.1f} % of the teacher above chance"
    return f"kept     {above}: {of}"


def skill_lines(result: Result) -> list[str]:
    """A line a skill: what the student scores, and what the file that was judged retains of the teacher's."""
    lines, artifact = [], judged_artifact(result)
    for name, entry in result.get("skills", {}).items():
        models = entry["models"]
        if "student" not in models:
            continue
        shown = percent if entry["higher_is_better"] else _number
        line = f"{name:<8} {shown(models['student']['score'])} of {shown(models['teacher']['score'])} {entry['scorer']}"
        if "baseline" in models:
            line += f", baseline {shown(models['baseline']['score'])}"
        last = models.get(artifact["name"]) if artifact else None
        kept = (last or models["student"]).get("retained")
        if kept is not None:
            low, high = (last or models["student"])["retained_interval"] or (kept, kept)
            line += f"; {'the file' if last else 'it'} retains {percent(kept)} [{low * 100:.1f}, {high * 100:.1f}]"
        if entry.get("cut"):
            line += f"; {entry['cut']} prompts lose their beginning"
        lines.append(line)
    return lines


def students(result: Result) -> str:
    """Several students of one teacher, or the steps from it to one, a line each."""
    what = "student" if "students" in result else "step"
    metric, teacher, listed = result["metric"], result["teacher"], result[f"{what}s"]
    first = listed[0]
    shown = percent if metric["higher_is_better"] else _number
    rows: list[tuple[str, ...]] = [
        (what, "parameters", metric["name"], "baseline", "file", "bytes", "p50 ms", *first["skills"]),
        (
            *("(teacher)", f"{teacher['parameters']:,}", shown(teacher["quality"]), "", "", "", ""),
            *(_skill(entry, "teacher") for entry in first["skills"].values()),
        ),
    ]
    for one in listed:
        artifact = judged_artifact(one) or next(iter(one["artifacts"]), None)
        baseline, file = one["arms"].get("baseline"), ("–",) * 3
        if artifact:
            file = (artifact["name"], f"{artifact['bytes']:,}", f"{artifact['latency_ms']['p50']:.3f}")
        asked = artifact["name"] if artifact else "student"
        rows.append(
            (
                *(one["name"], f"{one['parameters']:,}", shown(one["quality"])),
                *(shown(baseline["mean"]) if baseline else "–", *file),
                *(_skill(entry, asked) for entry in one["skills"].values()),
            )
        )
    return _columns(rows)


def steps(result: Result) -> list[str]:
    """The steps from teacher to student, what the last one keeps of the first teacher, and what the budget says."""
    last, metric = result["steps"][-1], result["metric"]
    shown = percent if metric["higher_is_better"] else _number
    return [students(result), _kept(result, last, last["quality"], ""), *_budget(result.get("budget", {}), shown)]


MOST_ROWS = 12


def searched(result: Result) -> list[str]:
    """A search's candidates, those that came furthest first, and the choice; where none fits, what to relax."""
    search, metric = result["search"], result["metric"]
    shown = percent if metric["higher_is_better"] else _number
    if "nearest" in search:
        nearest = next(one for one in search["candidates"] if one["name"] == search["nearest"])
        return [
            f"search   none of {len(search['candidates'])} candidates is within the budget; the nearest is "
            f"{nearest['name']}, {nearest['why'].removeprefix('outside the budget: ')}",
            f"relax    {search['relax']}",
        ]
    chosen = search["chosen"]
    rows: list[tuple[str, ...]] = [("candidate", "parameters", "file", "bytes", "p50 ms", metric["name"], "")]
    for one in sorted(search["candidates"], key=partial(_standing, chosen, metric["higher_is_better"]))[:MOST_ROWS]:
        file = next((file for file in one.get("files", ()) if file["name"] == one.get("file")), None)
        measured = (file["name"], f"{file['bytes']:,}", f"{file['latency_ms']['p50']:.3f}") if file else ("–",) * 3
        quality = f"{shown(one['quality'])} at {one['rungs'][-1]['share']:.0%}" if "quality" in one else "–"
        why = "chosen" if one["name"] == chosen else one["why"]
        rows.append((one["name"], f"{one['parameters']:,}" if "parameters" in one else "–", *measured, quality, why))
    more = len(search["candidates"]) - MOST_ROWS
    beside = search.get("neighbours", {})
    return (
        [_columns(rows)]
        + ([f"and {more} more, in the report"] if more > 0 else [])
        + [f"chosen   {chosen}"]
        + ([f"inside   the next is {beside['inside']}"] if "inside" in beside else [])
        + ([f"outside  the nearest is {beside['outside']}: relax {beside['relax']}"] if "outside" in beside else [])
    )


def _standing(chosen: str, higher: bool, one: Result) -> tuple[float, ...]:
    """The chosen one first, then by how far one came, then by quality, those outside last by what they miss."""
    quality = one.get("quality", 0.0)
    return (
        one["name"] != chosen,
        -len(one.get("rungs", ())),
        -quality if higher else quality,
        one.get("missed_by", float("inf")),
    )


def _skill(entry: Result, model: str) -> str:
    found = entry["models"].get(model, entry["models"].get("student", {}))
    if "score" not in found:
        return "–"
    return percent(found["score"]) if entry["higher_is_better"] else f"{found['score']:.3f}"


def _columns(rows: list[tuple[str, ...]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def comparison(results: dict[str, Result]) -> str:
    """Runs side by side, a line each."""
    rows: list[tuple[str, ...]] = [
        ("run", "teacher", "baseline", "student", "gained", "artifact", "quality", "bytes", "p50 ms")
    ]
    for name, result in results.items():
        arms, artifact = result.get("arms", {}), judged_artifact(result)
        student = arms.get("student")
        higher = result.get("metric", {}).get("higher_is_better", True)
        shown, apart = (percent, points) if higher else (_number, _signed)
        mean = [shown(arms[arm]["mean"]) if arm in arms else "–" for arm in ("baseline", "student")]
        gained = apart(student["difference"]["mean"]) if student and "difference" in student else "–"
        teacher = shown(result["teacher"]["quality"]) if "teacher" in result else "–"
        last: tuple[str, ...] = ("–",) * 4
        if artifact:
            p50 = f"{artifact['latency_ms']['p50']:.3f}"
            last = (artifact["name"], shown(artifact["quality"]), f"{artifact['bytes']:,}", p50)
        rows.append((name, teacher, *mean, gained, *last))
    return _columns(rows)


def _artifact(artifact: dict[str, Any], teacher: dict[str, Any], metric: dict[str, Any], quality: str) -> list[str]:
    p50 = artifact["latency_ms"]["p50"]
    threads = f"{artifact['threads']} thread{'s' * (artifact['threads'] > 1)}"
    size = _times(teacher["bytes"] / artifact["bytes"], "smaller", "larger")
    ratio = artifact.get("latency_ratio")  # within the artifact's own runtime
    speed = _times(1 / ratio if ratio else teacher["latency_ms"]["p50"] / p50, "faster", "slower")
    how = f" ({artifact['quality_measured']})" if "quality_measured" in artifact else ""
    near = f"agrees with the student on {percent(artifact['agreement'])}"
    if metric.get("agreement") == "cosine":
        near = f"mean cosine {artifact['agreement']:.4f} to the student's embeddings"
    return [
        f"file     {artifact['path']}: {quality}{how}, {near}",
        f"small    {format_bytes(artifact['bytes'])}, {size} than the teacher's file",
        f"fast     {format_seconds(p50 / 1e3)} a sample (p50, {threads} of {artifact['runtime']}), "
        f"{speed} than the teacher",
    ]


def _times(ratio: float, better: str, worse: str) -> str:
    return f"{ratio:.1f} times {better}" if ratio >= 1 else f"{1 / ratio:.1f} times {worse}"


def _budget(budget: dict[str, Any], shown: Callable[[float], str]) -> list[str]:
    said = []
    for name, verdict in budget.items():
        if isinstance(verdict, dict):
            values = " of ".join(_quantity(name, verdict[key], shown) for key in ("value", "limit"))
            said.append(f"{name} {values}{'' if verdict['met'] else ' MISSED'}")
    return [f"budget   {'met' if budget['met'] else 'missed'}: {', '.join(said)}"] if said else []


def _quantity(name: str, value: float, shown: Callable[[float], str]) -> str:
    if name == "latency":
        return format_seconds(value)
    if name.startswith("keep "):
        return percent(value)
    return shown(value) if name == "quality" else format_bytes(value)
