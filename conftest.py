"""What all tests and the examples in the docstrings of src/edgestill share: at the root, to be seen by both."""

import ctypes
import importlib.util
import sys

import numpy as np
import pytest
import torch
from torch import nn

collect_ignore_glob = ["src/edgestill/recipes/*.py"]  # a user's files: run by path, in no package

torch.set_num_threads(1)


def _complete_torchvision() -> torch.library.Library | None:
    """torchvision built for CUDA beside torch for the CPU lacks two operators, and its import fails without them;
    timm and transformers import it. Nothing is done to a whole install, or to none."""
    if importlib.util.find_spec("torchvision") is None:
        return None
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "DEF")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return library
    return None


_operators = _complete_torchvision()  # they last as long as this name


@pytest.fixture(autouse=True, scope="session")
def _names_in_examples(doctest_namespace):
    doctest_namespace.update(torch=torch, nn=nn, np=np)


class _Stack(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


_ROOM = ctypes.create_string_buffer(1 << 17)


@pytest.fixture(autouse=True)
def _stack_for_signals():
    """OpenVINO gives the thread that it runs in a stack for signals that is too small for what the kernel saves once a
    processor's AMX tiles were used: Ctrl-C in a later test would end the process. A larger one, before every test."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).sigaltstack(ctypes.byref(_Stack(ctypes.addressof(_ROOM), 0, len(_ROOM))), None)
