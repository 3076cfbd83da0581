"""A run folder as a run writes it, with plausible numbers and no training. N test images, C classes, K examples."""

import json
from pathlib import Path
from typing import Any

import numpy as np

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
STEPS = 7_040
PHASES = (("warmup", 0, 1_408), ("distill", 1_408, 5_632), ("finetune", 5_632, STEPS))


def write_run(
    folder: Path,
    *,
    classes: tuple[str, ...] = CLASSES,
    seeds: int = 3,
    artifacts: bool = True,
    every_format: bool = False,
) -> Path:
    """Everything that a finished run leaves for its report. `every_format`: one that trained its student for 8 bits,
    exported it to every format and measured on another host."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.yaml").write_text("task: image-classification\ndistill: {alpha: 0.9, temperature: 4}\n")
    (folder / "environment.json").write_text(json.dumps(ENVIRONMENT))
    lines, result = _metrics(seeds), _result(classes, seeds, artifacts)
    if every_format:
        lines += _quantized_metrics()
        _add_every_format(result)
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    save_result(folder, result)
    _write_answers(folder, len(classes), [artifact["name"] for artifact in result["artifacts"]])
    return folder


def load_result(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "result.json").read_text()))


def save_result(folder: Path, result: dict[str, Any]) -> None:
    (folder / "result.json").write_text(json.dumps(result))


ENVIRONMENT = {
    "edgestill": "0.1.0",
    "command": "edgestill run cifar10-resnet8",
    "started": "2026-11-22T18:02:11+00:00",
    "versions": {"python": "3.11.9", "torch": "2.11.0", "onnxruntime": "1.32.0", "numpy": "2.3.1"},
    "hardware": {"cpu": "AMD EPYC 9R14", "cores": 2, "memory": "8 GB", "accelerator": None},
    "threads": 2,
    "git_commit": "3f2a9c1d7b",
    "seeds": [0, 1, 2],
    "data_fingerprints": {"train": "9be1c07f44a2", "test": "0c5d7718e9fa"},
}

ARTIFACTS = [
    {
        "name": "onnx", "format": "onnx", "precision": "float32", "path": "exports/model.onnx", "bytes": 318_144,
        "quality": 0.8801, "agreement": 1.0, "max_abs_error": 3.1e-6,
        "latency_ms": {"p50": 0.412, "p90": 0.431, "p99": 0.502}, "peak_memory_bytes": 1_650_000,
        "runtime": "onnxruntime 1.32.0", "threads": 1, "quality_measured": "graph optimisation on",
    },
    {
        "name": "onnx-int8", "format": "onnx", "precision": "int8", "path": "exports/model.int8.onnx", "bytes": 98_496,
        "quality": 0.8764, "agreement": 0.9731, "max_abs_error": 0.734,
        "latency_ms": {"p50": 0.271, "p90": 0.284, "p99": 0.347}, "peak_memory_bytes": 720_000,
        "runtime": "onnxruntime 1.32.0", "threads": 1, "quality_measured": "graph optimisation off",
    },
]  # fmt: skip


QUANTIZED_STEPS = 780
RUNTIMES = {"onnx": "onnxruntime 1.32.0", "executorch": "executorch 1.4.1", "openvino": "openvino 2026.4.1",
            "litert": "ai-edge-litert 2.3.0"}  # fmt: skip
POST, AWARE = "post-training", "quantization-aware"
EVERY_FORMAT = (  # name, precision, how its 8 bits were made, bytes, quality, agreement, max error, p50, ÷ teacher
    ("onnx", "float32", None, 318_144, 0.8801, 1.0, 3.1e-6, 0.412, 0.128),
    ("onnx-int8", "int8", AWARE, 98_496, 0.8797, 0.9768, 0.81, 0.271, 0.0844),
    ("onnx-int8-post", "int8", POST, 98_496, 0.8742, 0.9731, 0.734, 0.272, 0.0847),
    ("onnx-int8-dynamic", "int8", "dynamic", 101_210, 0.8761, 0.9802, 0.56, 1.105, 0.344),
    ("executorch", "float32", None, 321_984, 0.8801, 1.0, 4.4e-6, 0.468, 0.133),
    ("executorch-int8", "int8", AWARE, 102_320, 0.8795, 0.9764, 0.82, 0.352, 0.1),
    ("executorch-int8-post", "int8", POST, 102_320, 0.8744, 0.9735, 0.741, 0.351, 0.0997),
    ("openvino", "float32", None, 361_402, 0.8801, 1.0, 3.6e-6, 0.297, 0.151),
    ("openvino-float16", "float16", None, 204_730, 0.8802, 0.9993, 0.012, 0.301, 0.153),
    ("openvino-int8", "int8", POST, 139_600, 0.8759, 0.9749, 0.66, 0.214, 0.109),
    ("litert", "float32", None, 320_440, 0.8801, 1.0, 3.3e-6, 0.623, 0.139),
    ("litert-int8", "int8", POST, 97_200, 0.8731, 0.969, 0.912, 0.388, 0.0866),
)
EMULATED = {"runtime": "onnxruntime 1.32.0", "samples": 200, "agreement": 1.0, "max_abs_error": 0.0021,
            "divergence": 1.1e-7}  # fmt: skip
LAYERS = {
    f"layer{stage}.{block}.{part}": 0.0004 * (1 + 5 * ((7 * stage + 3 * block + place) % 8) ** 2) / 100
    for stage in (1, 2, 3) for block in (0, 1) for place, part in enumerate(("conv1", "conv2", "shortcut.0"))
}  # fmt: skip
LAYERS = {"conv1": 0.0213, **LAYERS, "block.1.squeeze": 2.2e-7, "block.1.excite": 9.1e-8, "pooled": 0.0, "fc": 0.0061}


STUDENT_TAPS, TEACHER_TAPS = (
    ["layer1", "layer2", "layer3"], [f"layer{stage}.{block}" for stage in (1, 2, 3) for block in (0, 4, 8)],
)  # fmt: skip
LAYER_MAPS = [
    {
        "loss": "hint", "map": "auto", "samples": 512, "student": STUDENT_TAPS, "teacher": TEACHER_TAPS,
        "similarity": [
            [0.65, 0.77, 0.66, 0.64, 0.69, 0.62, 0.58, 0.5, 0.26],
            [0.59, 0.76, 0.74, 0.74, 0.78, 0.7, 0.69, 0.59, 0.31],
            [0.19, 0.26, 0.32, 0.34, 0.41, 0.46, 0.51, 0.59, 0.83],
        ],
        "pairs": [["layer1", "layer1.4"], ["layer2", "layer2.4"], ["layer3", "layer3.8"]],
    },
    {
        "loss": "attention_transfer", "map": "depth", "samples": None, "similarity": None,
        "student": STUDENT_TAPS, "teacher": STUDENT_TAPS, "pairs": [[tap, tap] for tap in STUDENT_TAPS],
    },
]  # fmt: skip


def _result(classes: tuple[str, ...], seeds: int, artifacts: bool) -> dict[str, Any]:
    baseline, student = [0.8588, 0.8631, 0.8604][:seeds], [0.8803, 0.8822, 0.8790][:seeds]
    gain = float(np.mean(student) - np.mean(baseline))
    return {
        "version": 1, "status": "done", "task": "image-classification", "recipe": "cifar10-resnet8",
        "metric": {"name": "accuracy", "higher_is_better": True, "chance": 0.1},
        "classes": list(classes),
        "data": {"train": 45_000, "labelled": 45_000, "validation": 5_000, "test": 10_000},
        "teacher": {
            "name": "resnet56.safetensors", "model": "resnet_cifar.py:resnet56", "quality": 0.9339,
            "validation_quality": 0.9391, "parameters": 855_770, "flops": 126_545_000, "bytes": 3_474_218,
            "latency_ms": {"p50": 3.21, "p90": 3.34, "p99": 4.02}, "peak_memory_bytes": 9_800_000,
        },
        "student": {
            "model": "resnet_cifar.py:resnet8", "seed": 0, "parameters": 77_946, "flops": 12_501_632, "bytes": 317_408,
            "latency_ms": {"p50": 0.412, "p90": 0.431, "p99": 0.502}, "peak_memory_bytes": 1_650_000,
        },
        "arms": {
            "baseline": _arm(baseline),
            "student": {
                **_arm(student),
                "retained": float(np.mean(student) - 0.1) / 0.8339,
                "difference": {
                    "to": "baseline", "mean": gain, "over": "seeds" if seeds > 1 else "test images",
                    "interval": [gain - 0.0061, gain + 0.0061] if seeds > 1 else None,
                },
            },
        },
        "artifacts": ARTIFACTS if artifacts else [],
        "budget": {
            "met": False, "artifact": "onnx-int8",
            "size": {"limit": 120_000, "value": 98_496, "met": True},
            "latency": {"limit": 0.002, "value": 0.000271, "met": True},
            "quality": {"limit": 0.88, "value": 0.8764, "met": False},
        } if artifacts else {},
        "layer_maps": LAYER_MAPS,
        "phases": [{"name": name, "steps": to - at, "examples": (to - at) * 128} for name, at, to in PHASES],
        "schedule": _schedule(),
        "seconds": {"teacher": 22.4, "baseline": 912.0, "student": 1_498.2, "export": 31.0, "bench": 12.5},
    }  # fmt: skip


def _add_every_format(result: dict[str, Any]) -> None:
    result["artifacts"] = [_artifact(*described) for described in EVERY_FORMAT]
    result["teacher"] |= {"latency_ratio": 1.0, "throughput": 512.0, "throughput_batch": 32}
    result["student"] |= {"latency_ratio": 0.128, "throughput": 3_210.0, "throughput_batch": 32}
    result["budget"]["quality"] = {"limit": 0.88, "value": 0.8797, "met": False}
    result["quantization"] = {
        "samples": 300, "automatic": True, "kept_float": ["conv1"],
        "layers": [{"layer": layer, "divergence": loss} for layer, loss in LAYERS.items()],
    }  # fmt: skip
    result["quantized"] = {"seed": 0, "quality": 0.8799, "validation": 0.886, "after": STEPS}
    result["bench"] = {
        "host": "user@pi", "hardware": {"machine": "aarch64", "cpu": "Raspberry Pi 4 Model B Rev 1.4", "cores": 4}
    }  # fmt: skip
    result["phases"].append({"name": "quantize", "steps": QUANTIZED_STEPS, "examples": QUANTIZED_STEPS * 128})
    result["schedule"] += [
        {"step": STEPS + step, "phase": "quantize", "alpha": 0.9, "temperature": 4, "lr": 0.001, "admitted": 1.0}
        for step in range(0, QUANTIZED_STEPS, 20)
    ]


def _artifact(
    name: str, precision: str, quantized: str | None, size: int, quality: float, agreement: float, error: float,
    p50: float, ratio: float,
) -> dict[str, Any]:  # fmt: skip
    kind = name.partition("-")[0]
    made: dict[str, Any] = {
        "name": name, "format": kind, "precision": precision, "quantized": quantized,
        "path": f"exports/{name}/student.{kind}", "bytes": size, "quality": quality, "samples": 1_000,
        "agreement": agreement, "max_abs_error": error, "divergence": error / 100,
        "latency_ms": {"p50": p50, "p90": p50 * 1.04, "p99": p50 * 1.21}, "latency_ratio": ratio,
        "throughput": 1.4e3 / p50, "throughput_batch": 1 if kind == "litert" else 32, "load_seconds": 0.02,
        "peak_memory_bytes": 4 * size, "runtime": RUNTIMES[kind], "threads": 1, "repeats": 3_000,
    }  # fmt: skip
    if kind == "onnx":
        made["quality_measured"] = f"graph optimisation {'off' if quantized in (POST, AWARE) else 'on'}"
        made["emulated"] = EMULATED
    if quantized in (POST, AWARE) and kind in ("onnx", "executorch"):
        made["simulated"] = {"agreement": 0.9991, "max_abs_error": 0.011}
    return made


def _arm(qualities: list[float]) -> dict[str, Any]:
    return {
        "seeds": [{"seed": seed, "quality": quality} for seed, quality in enumerate(qualities)],
        "mean": float(np.mean(qualities)),
        "std": float(np.std(qualities, ddof=1)) if len(qualities) > 1 else 0.0,
    }


def _at(step: int) -> dict[str, Any]:
    phase = next(name for name, start, end in PHASES if start <= step < end)
    lr = 0.1 * min(1.0, (step + 1) / 300) * 0.5 * (1 + float(np.cos(np.pi * step / STEPS)))
    admitted = min(1.0, 0.3 + 0.7 * step / 1_408)
    return {"step": step, "phase": phase, "alpha": 0.0 if phase == "finetune" else 0.9, "temperature": 4, "lr": lr,
            "admitted": admitted}  # fmt: skip


def _schedule() -> list[dict[str, Any]]:
    return [_at(step) for step in range(0, STEPS, 20)]


def _metrics(seeds: int) -> list[dict[str, Any]]:
    noise = np.random.default_rng(0)
    lines: list[dict[str, Any]] = []
    for arm, height in (("baseline", 0.862), ("student", 0.883)):
        for seed in range(seeds):
            for step in range(0, STEPS, 20):
                now, decay = _at(step), float(np.exp(-step / 1_500)) + 0.25
                wobble = 1 + 0.1 * float(noise.standard_normal())
                parts = {"hard": {"value": 1.9 * decay * wobble, "weight": 1 - now["alpha"]}}
                if arm == "student" and now["alpha"]:
                    parts["soft"] = {"value": 6.1 * decay * wobble, "weight": 0.9}
                    for layer, scale in (("layer1", 0.003), ("layer2", 0.0017), ("layer3", 0.006)):
                        parts[f"attention_transfer/{layer}"] = {"value": scale * decay * wobble, "weight": 100.0}
                loss = sum(part["value"] * part["weight"] for part in parts.values())
                lines.append({"arm": arm, "seed": seed, "epoch": step // 352, "loss": loss, "parts": parts,
                              "examples_per_second": 4_100.0, **now})  # fmt: skip
                if step % 340 == 320:
                    validation = height - 0.45 * float(np.exp(-step / 1_300)) + 0.012 * float(noise.standard_normal())
                    lines.append({"arm": arm, "seed": seed, "step": step, "epoch": step // 352, "phase": now["phase"],
                                  "validation": validation})  # fmt: skip
    return lines


def _quantized_metrics() -> list[dict[str, Any]]:
    """Its steps are counted from 0 again."""
    lines: list[dict[str, Any]] = []
    for step in range(0, QUANTIZED_STEPS, 20):
        here = {"arm": "quantized", "seed": 0, "step": step, "phase": "quantize"}
        parts = {"hard": {"value": 0.5, "weight": 0.1}, "soft": {"value": 1.6 - step / 2_000, "weight": 0.9}}
        lines.append({**here, "loss": 1.49 - step / 2_200, "parts": parts, "lr": 0.001})
        if step % 260 == 240 or step == 760:
            lines.append({**here, "validation": 0.87 + step / 50_000})
    return lines


def _write_answers(folder: Path, classes: int, artifacts: list[str]) -> None:
    random = np.random.default_rng(1)
    count = max(2_000, classes * 20)
    labels = np.arange(count) % classes
    hardness = random.random(count) + 0.25 * np.sin(labels)
    columns = {"labels": labels}
    for name, share in {"teacher": 0.93, "baseline": 0.86, "student": 0.88, **dict.fromkeys(artifacts, 0.875)}.items():
        wrong = hardness + 0.08 * random.standard_normal(count) > share
        told = np.where(wrong, (labels + random.integers(1, classes, count)) % classes, labels)
        probabilities = np.full((count, classes), 0.03 / classes, np.float32)
        probabilities[np.arange(count), told] = random.uniform(0.5, 0.99, count)
        columns[name] = probabilities / probabilities.sum(axis=1, keepdims=True)
    np.savez(folder / "predictions.npz", **columns)
    student, teacher = columns["student"].argmax(1), columns["teacher"].argmax(1)
    indices = np.flatnonzero(student != teacher)[:24]
    ramp = np.linspace(0, 255, 32)
    pixels = np.stack([np.stack([np.outer(ramp, ramp) / 255, np.full((32, 32), 7 * place), np.tile(ramp, (32, 1))], -1)
                       for place in range(len(indices))]).astype(np.uint8)  # fmt: skip
    np.savez(folder / "examples.npz", pixels=pixels, indices=indices)
