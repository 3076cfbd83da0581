"""What is promised of a measurement: of the file itself, in a process of its own, that ends whatever happens."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from edgestill.bench.host import Artifact, bench
from edgestill.errors import UserError
from edgestill.export.onnx import write_empty
from edgestill.runtimes import onnx_runtime
from edgestill.runtimes.measure import RuntimeProcess, repeats_for

ONNX = Path(onnx_runtime.__file__)


def write_matmul(path: Path, rows: int, columns: int) -> Path:
    """A file with one matrix of rows × columns float32 weights."""
    weight = numpy_helper.from_array(np.ones((rows, columns), np.float32), "weight")
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", size])
        for name, size in (("input", rows), ("logits", columns))
    ]
    node = helper.make_node("MatMul", ["input", "weight"], ["logits"])
    graph = helper.make_graph([node], "matmul", ends[:1], ends[1:], [weight])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


def measurable(path: Path, width: int = 8) -> Artifact:
    """An ONNX file with the empty model that its memory is measured over."""
    empty = path.with_name(f"empty-{width}.onnx")
    write_empty(empty, torch.zeros(1, width))
    return Artifact(path, ONNX, empty)


def test_measurements_are_ordered_and_of_the_file_itself(tmp_path: Path) -> None:
    artifacts = {
        "small": write_matmul(tmp_path / "small.onnx", 32, 10),
        "large": write_matmul(tmp_path / "large.onnx", 4096, 2048),
    }
    inputs = {"small": np.ones((3, 32), np.float32), "large": np.ones((5, 4096), np.float32)}
    measured = bench(
        {name: measurable(path, inputs[name].shape[1]) for name, path in artifacts.items()}, inputs, threads=1
    )
    assert list(measured) == ["small", "large"]
    for name, result in measured.items():
        assert 0 < result.p50 <= result.p90 <= result.p99
        assert result.load_seconds > 0
        assert result.bytes == artifacts[name].stat().st_size
        assert result.runtime.startswith("onnxruntime ")
        assert result.threads == 1
        assert result.repeats >= 20
        assert result.throughput > 0
        assert result.throughput_batch == 32
        assert result.energy_joules is None or result.energy_joules > 0
    # 32 MiB of weights lie in the memory of the large one, and not in the other's, nor does this process's own size.
    assert 32 * 2**20 < measured["large"].peak_memory_bytes < 160 * 2**20
    assert 0 <= measured["small"].peak_memory_bytes < 16 * 2**20
    assert measured["small"].p50 < measured["large"].p50


def test_progress_covers_every_artifact_and_every_round(tmp_path: Path) -> None:
    steps: list[tuple[str, int, int]] = []

    def track(items, description, total):
        items = list(items)
        steps.append((description, len(items), total))
        return items

    file = measurable(write_matmul(tmp_path / "model.onnx", 8, 8))
    bench({"a": file, "b": file}, {"a": np.ones((1, 8)), "b": np.ones((1, 8))}, track=track)
    assert [total for _, _, total in steps] == [2, 20, 5]
    assert all(count == total for _, count, total in steps)


def test_slow_models_are_called_less_often() -> None:
    assert [repeats_for(call) for call in (0.0001, 0.002, 0.02, 0.1, 2.0)] == [2000, 750, 200, 60, 20]


def test_a_broken_artifact_ends_every_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[RuntimeProcess] = []
    start = RuntimeProcess.__init__

    def remember(self, *args, **options) -> None:
        started.append(self)
        start(self, *args, **options)

    monkeypatch.setattr(RuntimeProcess, "__init__", remember)
    good = write_matmul(tmp_path / "good.onnx", 8, 8)
    bad = tmp_path / "bad.onnx"
    bad.write_bytes(good.read_bytes()[:40])
    with pytest.raises(UserError, match=r"bad\.onnx"):
        bench({"good": measurable(good), "bad": measurable(bad)}, {"good": np.ones((1, 8)), "bad": np.ones((1, 8))})

    def interrupted(items, description, total):
        yield from items if "memory" in description else []
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bench({"good": measurable(good)}, {"good": np.ones((1, 8))}, track=interrupted)
    assert len(started) >= 4
    assert all(process.process.poll() is not None for process in started)


def test_an_artifact_without_samples_is_refused(tmp_path: Path) -> None:
    file = measurable(write_matmul(tmp_path / "model.onnx", 8, 8))
    with pytest.raises(UserError, match="none came for: b"):
        bench({"a": file, "b": file}, {"a": np.ones((1, 8)), "b": np.ones((0, 8))})
    assert bench({}, {}) == {}


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    rows = np.ones((1, 8))
    (tmp_path / "absent.xml").write_text("")
    with pytest.raises(UserError, match=r"measure a, but there is no file .*absent\.bin"):
        bench({"a": Artifact(tmp_path / "absent.xml", ONNX, write_matmul(tmp_path / "empty.onnx", 8, 8))}, {"a": rows})
    file = write_matmul(tmp_path / "model.onnx", 8, 8)
    with pytest.raises(UserError, match=r"measure a, but there is no file .*nothing\.onnx"):
        bench({"a": Artifact(file, ONNX, tmp_path / "nothing.onnx")}, {"a": rows})
