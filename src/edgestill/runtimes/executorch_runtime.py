"""Run an ExecuTorch file with ExecuTorch's Python runtime. Needs numpy, executorch and torch: the runtime's inputs and
outputs are torch tensors, so it cannot do without. On a device in C++ there is no torch.

    predict = load("student.pte", threads=1)
    logits = predict(images)                 # float32 [B, ...] -> the file's first output [B, ...]

Shapes: B batch.
"""

import importlib.metadata
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

# The module that `executorch.runtime` wraps: the wrapper imports the exporter too, which takes seconds.
from executorch.extension.pybindings import _portable_lib
from executorch.kernels import quantized  # noqa: F401  registers kernels that int8 files may need outside of XNNPACK

Predict = Callable[[np.ndarray], np.ndarray]

RUNTIME = f"executorch {importlib.metadata.version('executorch')}"

_pool = 0
"""How often the threads were replaced. A file that was opened before holds threads that are gone: running it would end
the process."""


def load(path: str | os.PathLike[str], threads: int = 1) -> Predict:
    """A function from float32 [B, ...] to the file's first output, on the CPU with `threads` threads.

    The threads belong to the whole process: a file that was opened with another number of them refuses to run from then
    on. Batches above the file's largest are answered in parts.

    Raises ValueError, one line that names the path, for a file that is missing, cut short or not ExecuTorch's; the
    function raises it for inputs of another shape.
    """
    global _pool
    if not Path(path).is_file():
        raise ValueError(f"an ExecuTorch file is needed, but there is no file {os.fspath(path)}")
    if _portable_lib._threadpool_get_thread_count() != threads:
        _portable_lib._unsafe_reset_threadpool(threads)
        _pool += 1
    pool = _pool
    try:
        opened, seen = _method(path), 0
        largest, *shape = opened.method_meta().input_tensor_meta(0).sizes()
    except RuntimeError as error:
        raise ValueError(f"{os.fspath(path)} is not a complete ExecuTorch file for {RUNTIME}: {error}") from None

    def predict(inputs: np.ndarray) -> np.ndarray:
        nonlocal opened, seen
        if pool != _pool:
            raise ValueError(
                f"{os.fspath(path)} was opened with {threads} threads, which another file has replaced since"
            )
        rows = torch.from_numpy(np.array(inputs, dtype=np.float32, order="C"))
        if list(rows.shape[1:]) != shape:
            wanted = ", ".join(["B", *map(str, shape)])
            raise ValueError(f"{os.fspath(path)} takes inputs of shape [{wanted}], came {list(rows.shape)}")
        try:
            # ExecuTorch 1.4 writes beyond its memory where an int8 file gets more rows than in its first call.
            if (most := min(len(rows), largest)) > seen:
                opened, seen = _method(path) if seen else opened, most
            return np.concatenate([opened([part])[0].numpy() for part in torch.split(rows, largest)])
        except RuntimeError as error:
            raise ValueError(f"{os.fspath(path)} could not be run on {list(rows.shape)}: {error}") from None

    return predict


def _method(path: str | os.PathLike[str]) -> Any:
    return _portable_lib._load_program(os.fspath(path)).load_method("forward")
