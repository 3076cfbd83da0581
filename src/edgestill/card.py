"""The model card of the student's folder: what it is, how to load it, and its measured numbers."""

from typing import Any

from edgestill.words import percent, summary


def write(result: dict[str, Any], licences: dict[str, str | None]) -> str:
    """The card's Markdown from what result.json holds; `licences` of teacher and data, None where nobody stated one."""
    spec = result["student"]["model"]
    lines = ["# Student", "", f"A distilled {result['task']} model of {result['student']['parameters']:,} parameters, made {result['date']}.", ""]
    lines += ["## Measured", "", *(f"- {line}" for line in summary(result)), ""]
    lines += ["| artifact | accuracy | agreement | bytes | p50 ms |", "|---|---|---|---|---|"]
    for a in result.get("artifacts", []):
        lines.append(
            f"| {a['path']} | {percent(a['quality'])} | {percent(a['agreement'])} | {a['bytes']:,} | {a['latency_ms']['p50']:.3f} |"
        )
    lines += ["", "## Loading", "", "```python", *_loading(spec), "```", ""]
    lines += ["Input normalisation and class names are in `edgestill.json`.", "", "## Licences", ""]
    lines += [f"- {what}: {licence or 'not stated; ask its authors before you publish this model'}" for what, licence in licences.items()]
    return "\n".join(lines) + "\n"


def _loading(spec: str) -> list[str]:
    fill = 'module.load_state_dict(load_file("model.safetensors"))'
    if spec.startswith("hf:"):
        return ["from transformers import AutoModelForImageClassification", 'module = AutoModelForImageClassification.from_pretrained(".")']
    if spec.startswith("timm:"):
        return ["import timm", "from safetensors.torch import load_file", f'module = timm.create_model("{spec[5:]}", num_classes=…)', fill]
    function = spec.rpartition(":")[2]
    return ["from model import " + function, "from safetensors.torch import load_file", f"module = {function}(…)  # the options in edgestill.json", fill]
