"""Does an ONNX file answer on ARM as it does here? Run by ONNX Runtime for aarch64 on an emulated Cortex-A72.

QEMU emulates the instructions of the processor, so that the device's own kernels compute the answers: Cortex-A72 is
the Raspberry Pi 4's, without 8-bit dot products. How long that takes says nothing of a device and is not measured:
ResNet-20 needs half a second an image, in int8 a tenth. The folder that this needs is made by `aarch64_root`.

Shapes: N samples.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgestill.bench.aarch64_root import PROCESSOR, find_root, make_command
from edgestill.errors import UserError
from edgestill.runtimes.measure import RuntimeProcess, Track

RUNTIME = Path(__file__).parents[1] / "runtimes" / "onnx_runtime.py"
BATCH = 8  # Samples a step of the progress: a few seconds.


@dataclass(frozen=True)
class Emulated:
    """What an artifact answers on the emulated processor: its first output [N, ...], and the runtime in words."""

    outputs: np.ndarray
    runtime: str


def emulate(
    artifact: str | Path,
    inputs: np.ndarray,
    *,
    optimize: bool = True,
    threads: int = 1,
    root: str | Path | None = None,
    track: Track = lambda items, *_: items,
) -> Emulated:
    """Answers of the ONNX file `artifact` for `inputs`, float32 [N, ...], from ONNX Runtime on an emulated Cortex-A72.

    `optimize` and `threads` are those of the runtime's `load`. `root` is the folder of the ARM Python, by default the
    one that `find_root` finds. Eight samples a call.

    Raises UserError for a file that is not ONNX, for what `find_root` misses, for an artifact that the runtime refuses
    or that refuses its inputs, and for an emulator that crashes.

    >>> emulate("student-int8.onnx", images[:200]).runtime  # doctest: +SKIP
    'onnxruntime 1.24.4 aarch64, emulated cortex-a72'
    """
    if Path(artifact).suffix != ".onnx":
        raise UserError(f"qemu-aarch64 checks ONNX files only; {Path(artifact).name} is none")
    folder = find_root(root)
    if not len(inputs):
        raise UserError(f"emulating {artifact} needs at least one sample, got none: give real inputs")
    kind = np.int64 if np.issubdtype(np.asarray(inputs).dtype, np.integer) else np.float32
    starts = range(0, len(inputs), BATCH)
    outputs = []
    try:
        with (
            tempfile.TemporaryDirectory() as exchange,
            RuntimeProcess(
                artifact, RUNTIME, threads=threads, optimize=optimize, python=str(folder / "python")
            ) as process,
        ):
            for start in track(starts, "emulating ARM", len(starts)):
                np.save(f"{exchange}/inputs.npy", np.asarray(inputs[start : start + BATCH], dtype=kind))
                process.ask(predict=f"{exchange}/inputs.npy", output=f"{exchange}/outputs.npy", batch=BATCH)
                outputs.append(np.load(f"{exchange}/outputs.npy"))
    except ValueError as error:
        raise UserError(str(error)) from None
    except ImportError as error:
        raise UserError(f"{error}: remove {folder} and make it again with `{make_command(folder)}`") from None
    except RuntimeError as error:
        raise UserError(f"on an emulated {PROCESSOR}, {error}; a run without bench.host is not held up by it") from None
    return Emulated(np.concatenate(outputs), f"{process.runtime} aarch64, emulated {PROCESSOR}")
