"""The model card of the student's folder: what it is, its measured numbers, how to load it, its licences."""

from collections.abc import Sequence
from typing import Any

from edgestill.words import percent, summary

_UNSTATED = "not stated in the recipe; ask its authors before you publish this model"


def write(result: dict[str, Any]) -> str:
    """The card's Markdown from what result.json holds."""
    student = result["student"]
    lines = ["# Student", ""]
    trained = student.get("trained_parameters") or student["parameters"]
    of_which = f", of which {trained:,} were trained" if trained < student["parameters"] else ""
    parameters = f"{student['parameters']:,} parameters{of_which}"
    lines += [f"A distilled {result['task']} model of {parameters}, made {result['date']}.", ""]
    lines += ["## Measured", "", *(f"- {line}" for line in summary(result)), ""]
    lines += _table(result)
    loading = _loading(result["task"], student["model"], student["options"])
    lines += [
        "",
        "## Loading",
        "",
        "```python",
        *(_embedding(student["pooling"]) if "pooling" in student else loading),
        "```",
        "",
    ]
    lines += [
        "Input normalisation, or the length of texts, and class names are in `edgestill.json`."
        if result["classes"]
        else "The length of texts is in `edgestill.json`.",
        "",
        "## Licences",
        "",
    ]
    lines += [f"- {what}: {licence or _UNSTATED}" for what, licence in result["licences"].items()]
    return "\n".join(lines) + "\n"


def _table(result: dict[str, Any]) -> list[str]:
    """The artifacts, and what their columns mean where a reader could not know it."""
    artifacts, host = result.get("artifacts", []), result.get("bench", {}).get("host")
    if not artifacts:
        return []
    metric = result["metric"]
    shown = percent if metric["higher_is_better"] else "{:.4f}".format
    cosine = metric.get("agreement") == "cosine"
    near = "cosine" if cosine else "agreement"
    columns = ["artifact", "numbers", "runtime", metric["name"], near, "bytes", "p50 ms", "p50 ÷ teacher"]
    lines = [_row(columns), _row(["---"] * len(columns))]
    for artifact in artifacts:
        how, ratio = artifact.get("quantized"), artifact.get("latency_ratio")
        cells = [artifact["path"], f"{artifact['precision']}{f', {how}' if how else ''}", artifact["runtime"]]
        cells += [
            shown(artifact["quality"]),
            f"{artifact['agreement']:.4f}" if cosine else percent(artifact["agreement"]),
        ]
        cells += [f"{artifact['bytes']:,}"]
        cells += [f"{artifact['latency_ms']['p50']:.3f}", "–" if ratio is None else f"{ratio:.3f}"]
        lines.append(_row(cells))
    what = (
        "Cosine: the mean of the file's embeddings and the float student's"
        if cosine
        else "Agreement: with the float student"
    )
    lines += ["", f"{what}. p50 ÷ teacher: over the float teacher's in the same runtime."]
    return lines + ([f"Latency was measured on {host}."] if host else [])


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


POOLINGS = {
    "mean": "hidden = (hidden * mask).sum(1) / mask.sum(1)",
    "cls": "hidden = hidden[:, 0]",
    "last": "hidden = hidden[torch.arange(len(hidden)), mask.sum(1).squeeze(-1) - 1]  # padded on the right",
}


def _embedding(pooling: str) -> list[str]:
    return [
        "import torch",
        "from transformers import AutoModel, AutoTokenizer",
        'tokenizer = AutoTokenizer.from_pretrained(".", padding_side="right")',
        'module = AutoModel.from_pretrained(".")',
        'inputs = tokenizer(["one text", "another text"], padding=True, return_tensors="pt")',
        'ids, mask = inputs["input_ids"], inputs["attention_mask"].unsqueeze(-1)',
        'hidden = module(input_ids=ids, attention_mask=inputs["attention_mask"]).last_hidden_state',
        POOLINGS[pooling],
        "embeddings = torch.nn.functional.normalize(hidden, dim=-1)",
        '# or, with sentence-transformers installed: SentenceTransformer(".").encode([…])',
    ]


def _loading(task: str, spec: str, options: dict[str, Any]) -> list[str]:
    arguments = ", ".join(f"{name}={value!r}" for name, value in options.items())
    fill = [
        "from safetensors.torch import load_file",
        'module.load_state_dict(load_file("model.safetensors"))',
    ]
    texts = {"text-classification": "AutoModelForSequenceClassification"}
    texts |= dict.fromkeys(("language-modeling", "instruction"), "AutoModelForCausalLM")
    if task in texts:
        name = f"AutoTokenizer, {texts[task]}"
        loads = [
            f'{one} = {kind}.from_pretrained(".")'
            for one, kind in (("tokenizer", "AutoTokenizer"), ("module", texts[task]))
        ]
        return [f"from transformers import {name}", *loads]
    if spec.startswith("hf:"):
        name = "AutoModelForImageClassification"
        return [f"from transformers import {name}", f'module = {name}.from_pretrained(".")']
    if spec.startswith("timm:"):
        create = f'module = timm.create_model("{spec[5:]}", {arguments})'
        return ["import timm", create, *fill]
    function = spec.rpartition(":")[2]
    if task == "sentence-embedding":
        fill.append("# an embedding is its output, averaged over a text's tokens where it has any, divided by its norm")
    return [f"from model import {function}", f"module = {function}({arguments})", *fill]
