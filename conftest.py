"""What all tests and the examples in the docstrings of src/edgestill share: at the root, to be seen by both."""

import ctypes
import importlib.util
import os
import sys
from contextlib import contextmanager
from functools import cache

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


LONGEST = (
    "test_formats.py",
    "test_run.py",
    "test_processes.py",
    "test_texts.py",
    "test_transfer.py",
    "test_export_executorch.py",
    "test_python_code.py",
    "test_quantize_phase.py",
    "test_bench_remote.py",
    "test_formats_refused.py",
    "test_export_litert.py",
    "test_texts_chat.py",
    "test_texts_tokens.py",
    "test_simkd.py",
    "test_emulated.py",
)
"""The files that take longest go first, so that of two workers none has one left at the end."""


def pytest_configure(config):
    if hasattr(config.option, "loadscopereorder"):  # by the number of tests, which has little to do with their time
        config.option.loadscopereorder = False
    worker = os.environ.get("PYTEST_XDIST_WORKER", "").removeprefix("gw")
    if worker and hasattr(os, "sched_setaffinity"):
        # A core each: trainings take as many threads as they may, and those of two workers would wait for each other.
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[int(worker) % len(cores)]})


def pytest_collection_modifyitems(items):
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(LONGEST)))


@pytest.fixture(autouse=True, scope="session")
def _names_in_examples(doctest_namespace):
    doctest_namespace.update(torch=torch, nn=nn, np=np)


@pytest.fixture(autouse=True, scope="session")
def _operators_of_onnx_are_listed_once():
    """torch.onnx lists the operators that it has anew for each export, which is half of a small one; here, once for
    all exports between which torch got no more operators."""
    from torch.onnx._internal.exporter import _registration

    make = _registration.ONNXRegistry.from_torchlib

    @cache
    def made(opset_version, _operators):
        return make(opset_version=opset_version)

    def listed(opset_version):
        return made(opset_version, len(torch._C._dispatch_get_all_op_names()))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_registration.ONNXRegistry, "from_torchlib", staticmethod(listed))
        yield


@pytest.fixture(scope="session")
def bare_runs():
    """A context whose runs go without what has tests of its own, and takes longer than a small training: the files that
    are tried before it, the file of the teacher that latency is compared with, in whose place stands one that does
    nothing, and the report behind it, unless these are asked for."""
    from edgestill import deliver, report

    def empty(model, _role, kind, path):
        deliver.write_empty(kind, model.input, path)

    @contextmanager
    def bare(with_report=False, with_teacher=False):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(deliver, "check", lambda job: None)
            if not with_teacher:
                patch.setattr(deliver, "_reference", empty)
            if not with_report:
                patch.setattr(report, "write", lambda place: place / "report.html")
            yield

    return bare


@pytest.fixture
def bare(bare_runs):
    """The same, for the whole of a test."""
    with bare_runs():
        yield


class _Stack(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


_ROOM = ctypes.create_string_buffer(1 << 17)


@pytest.fixture(autouse=True)
def _stack_for_signals():
    """OpenVINO gives the thread that it runs in a stack for signals that is too small for what the kernel saves once a
    processor's AMX tiles were used: Ctrl-C in a later test would end the process. A larger one, before every test."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).sigaltstack(ctypes.byref(_Stack(ctypes.addressof(_ROOM), 0, len(_ROOM))), None)
