"""The formats: what runs their files, what they need installed, and how their 8 bits are made."""

import importlib.util
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edgestill import runtimes
from edgestill.errors import UserError

_RUNTIMES = Path(runtimes.__file__).parent


@dataclass(frozen=True)
class Format:
    """A kind of artifact.

    Attributes:
        backend: `onnx` of `onnx-int8`.
        how: how its 8 bits are made. `graph`: from edgestill's own quantized graph, which a quantize phase can train;
            `own`: by the backend's tool, after the training; `dynamic`: scales of activations anew in each call.
        modules: what must be importable, with the name to install it by.
        torch: whether its runtime cannot do without torch.
        batched: whether its files answer any number of samples in one call.
    """

    name: str
    suffix: str
    runtime: str
    modules: tuple[str, ...] = ()
    precision: Literal["float32", "float16", "int8"] = "float32"
    how: Literal["graph", "own", "dynamic"] | None = None
    torch: bool = False
    batched: bool = True

    @property
    def backend(self) -> str:
        return self.name.partition("-")[0]

    @property
    def runtime_file(self) -> Path:
        return _RUNTIMES / f"{self.runtime}.py"


INT8: Literal["int8"] = "int8"
FORMATS: dict[str, Format] = {
    made.name: made
    for made in (
        # onnx, onnxscript and onnxruntime are dependencies of edgestill itself
        Format("onnx", ".onnx", "onnx_runtime"),
        Format("onnx-int8", ".onnx", "onnx_runtime", precision=INT8, how="graph"),
        Format("onnx-int8-dynamic", ".onnx", "onnx_runtime", precision=INT8, how="dynamic"),
        Format("executorch", ".pte", "executorch_runtime", ("executorch",), torch=True),
        Format(
            "executorch-int8", ".pte", "executorch_runtime", ("executorch",), precision=INT8, how="graph", torch=True
        ),
        Format("openvino", ".xml", "openvino_runtime", ("openvino",)),
        Format("openvino-float16", ".xml", "openvino_runtime", ("openvino",), precision="float16"),
        Format("openvino-int8", ".xml", "openvino_runtime", ("openvino", "nncf"), precision=INT8, how="own"),
        Format("litert", ".tflite", "litert_runtime", ("ai_edge_litert",), batched=False),
        Format(
            "litert-int8", ".tflite", "litert_runtime", ("ai_edge_litert",), precision=INT8, how="graph", batched=False
        ),
    )
}


def check(names: Iterable[str]) -> None:
    """UserError, with the command that mends it, for a format whose package is not installed here."""
    for name in names:
        made = FORMATS[name]
        missing = [module for module in made.modules if importlib.util.find_spec(module) is None]
        if missing:
            raise UserError(
                f"export: {name} needs {' and '.join(missing)}, which is not installed: "
                f"pip install 'edgestill[{made.backend}]'"
            )
        if made.backend == "litert":
            from edgestill.export import litert

            litert.python()
