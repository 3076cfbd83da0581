"""The model card of the student's folder: what it is, its measured numbers, how to load it, its licences."""

from typing import Any

from edgestill.words import percent, summary

_UNSTATED = "not stated in the recipe; ask its authors before you publish this model"


def write(result: dict[str, Any]) -> str:
    """The card's Markdown from what result.json holds."""
    student = result["student"]
    lines = ["# Student", ""]
    lines += [f"A distilled {result['task']} model of {student['parameters']:,} parameters, made {result['date']}.", ""]
    lines += ["## Measured", "", *(f"- {line}" for line in summary(result)), ""]
    lines += ["| artifact | accuracy | agreement | bytes | p50 ms |", "|---|---|---|---|---|"]
    for artifact in result.get("artifacts", []):
        shares = f"{percent(artifact['quality'])} | {percent(artifact['agreement'])}"
        lines.append(f"| {artifact['path']} | {shares} | {artifact['bytes']:,} | {artifact['latency_ms']['p50']:.3f} |")
    lines += ["", "## Loading", "", "```python", *_loading(student["model"], student["options"]), "```", ""]
    lines += ["Input normalisation and class names are in `edgestill.json`.", "", "## Licences", ""]
    lines += [f"- {what}: {licence or _UNSTATED}" for what, licence in result["licences"].items()]
    return "\n".join(lines) + "\n"


def _loading(spec: str, options: dict[str, Any]) -> list[str]:
    arguments = ", ".join(f"{name}={value!r}" for name, value in options.items())
    fill = [
        "from safetensors.torch import load_file",
        'module.load_state_dict(load_file("model.safetensors"))',
    ]
    if spec.startswith("hf:"):
        name = "AutoModelForImageClassification"
        return [f"from transformers import {name}", f'module = {name}.from_pretrained(".")']
    if spec.startswith("timm:"):
        create = f'module = timm.create_model("{spec[5:]}", {arguments})'
        return ["import timm", create, *fill]
    function = spec.rpartition(":")[2]
    return [f"from model import {function}", f"module = {function}({arguments})", *fill]
