"""What a device gets beside an artifact: its card, its runtime's file, and a script that classifies a picture."""

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from importlib import metadata
from pathlib import Path

from edgestill.data import pictures
from edgestill.export import executorch, litert, onnx, openvino
from edgestill.export.formats import Format
from edgestill.models import ImageInput
from edgestill.runtimes import classify
from edgestill.runtimes.measure import artifact_files

BACKENDS = {"onnx": onnx, "executorch": executorch, "openvino": openvino, "litert": litert}


def write(
    kind: Format, path: Path, expected: ImageInput, labels: tuple[str, ...], data: Mapping[str, int | None]
) -> None:
    """Puts card.json, run.py and the files of the runtime and of pictures into the folder of the artifact at `path`.

    card.json: format, precision, the file with its bytes and SHA-256, the runtime with its version here and how to
    install it, operators, inputs and outputs with names and shapes, the normalisation of the input (pixels in 0…1,
    channels first), the pictures of the `data` (height, width, channels, and the size that the recipe brings them to),
    and the labels in the order of the outputs.
    """
    package = {"onnx": "onnxruntime", "litert": "ai-edge-litert"}.get(kind.backend, kind.backend)
    card = {
        "format": kind.backend,
        "precision": kind.precision,
        "file": path.name,
        "bytes": sum(file.stat().st_size for file in artifact_files(path)),
        "sha256": {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in artifact_files(path)},
        "runtime": package,
        "version": metadata.version(package),
        "runtime_file": kind.runtime_file.name,
        "pictures_file": Path(pictures.__file__).name,
        "install": f"pip install {package} numpy pillow",
        **BACKENDS[kind.backend].describe(path),
        "normalisation": asdict(expected) | {"layout": "channels first", "pixels": "0…1, then (pixel − mean) ÷ std"},
        "pictures": dict(data),
        "labels": list(labels),
    }
    (path.parent / "card.json").write_text(json.dumps(card, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    shutil.copyfile(classify.__file__, path.parent / "run.py")
    for file in (kind.runtime_file, Path(pictures.__file__)):
        shutil.copyfile(file, path.parent / file.name)
