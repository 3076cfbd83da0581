"""What is promised of a runtime's file and its process: alone, without torch, and a refusal in one line."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgestill.runtimes import measure, onnx_runtime, runner
from edgestill.runtimes.measure import RuntimeProcess

RUNTIME = Path(onnx_runtime.__file__)

COUNTING = """
from pathlib import Path

RUNTIME = "counting 1.0"

def load(path, threads=1):
    zone = Path(path).parent / "powercap" / "intel-rapl:0"
    largest = int((zone / "max_energy_range_uj").read_text())

    def predict(inputs):
        counter = zone / "energy_uj"
        counter.write_text(str((int(counter.read_text()) + 700 * len(inputs)) % largest))
        return inputs

    return predict
"""


@pytest.fixture
def scaling(tmp_path: Path) -> Path:
    """An ONNX file that doubles [batch, 3]."""
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 3]) for name in ("input", "logits")]
    two = numpy_helper.from_array(np.full(3, 2, np.float32), "two")
    graph = helper.make_graph([helper.make_node("Mul", ["input", "two"], ["logits"])], "g", ends[:1], ends[1:], [two])
    path = tmp_path / "double.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


def powercap(folder: Path, **zones: tuple[str, int]) -> Path:
    """A folder of energy counters, as Linux lays them out."""
    for zone, (name, value) in zones.items():
        place = folder / "powercap" / zone.replace("_", ":").replace("intel", "intel-rapl")
        place.mkdir(parents=True)
        for file, content in {"name": name, "energy_uj": value, "max_energy_range_uj": 1_000_000}.items():
            (place / file).write_text(f"{content}\n")
    return folder / "powercap"


def spec(path: Path, runtime: Path, inputs: Path, **more: object) -> dict[str, object]:
    files = {"path": path, "runtime": runtime, "inputs": inputs, "empty": path}
    return {**{key: str(file) for key, file in files.items()}, "torch": False, "batched": True, **more}


def test_runner_and_runtime_run_alone_in_an_empty_folder(scaling: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone"
    alone.mkdir()
    for file in (Path(runner.__file__), RUNTIME):
        (alone / file.name).write_bytes(file.read_bytes())
    rows = np.arange(30, dtype=np.float32).reshape(10, 3)
    np.save(alone / "in.npy", rows)
    commands = [
        {"predict": "in.npy", "output": "out.npy", "batch": 4},
        {"time": 5, "inputs": "in.npy", "start": 8},
        {"time": 2, "inputs": "in.npy", "start": 8, "batch": 32},
        {"memory": True},
        {"fly": True},
    ]
    ran = subprocess.run(
        [sys.executable, "-I", "runner.py", "onnx_runtime.py", str(scaling)],
        input="\n".join(json.dumps(command) for command in commands),
        cwd=alone,
        capture_output=True,
        text=True,
        check=True,
    )
    opened, predicted, timed, batched, memory, refused = [json.loads(line) for line in ran.stdout.splitlines()]
    assert opened["runtime"] == onnx_runtime.RUNTIME
    assert predicted == {"samples": 10}
    np.testing.assert_array_equal(np.load(alone / "out.npy"), rows * 2)
    assert (len(timed["seconds"]), len(batched["seconds"])) == (5, 2)
    assert all(second > 0 for second in timed["seconds"] + batched["seconds"])
    assert "joules" not in timed
    assert memory["peak_bytes"] > 1_000_000
    assert "fly" in refused["error"]


def test_onnx_runtime_leaves_no_trace_of_telemetry(scaling: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    program = (
        f"import sys; sys.path.insert(0, {str(RUNTIME.parent)!r}); import onnx_runtime as r; r.load({str(scaling)!r})"
    )
    places = {"TMPDIR": str(home), "HOME": str(home), "XDG_CACHE_HOME": str(home), "PYTHONDONTWRITEBYTECODE": "1"}
    kept = {name: value for name, value in os.environ.items() if name not in ("ORT_DISABLE_TELEMETRY", "CI")}
    subprocess.run([sys.executable, "-c", program], env=kept | places, check=True)
    assert list(home.iterdir()) == []


def test_timed_calls_go_through_the_rows_and_around_their_end(tmp_path: Path) -> None:
    np.save(tmp_path / "in.npy", np.arange(5, dtype=np.float32)[:, None])
    seen: list[list[float]] = []

    def predict(rows: np.ndarray) -> np.ndarray:
        seen.append(rows[:, 0].tolist())
        return rows

    runner.time_calls(predict, str(tmp_path / "in.npy"), 2, start=3, warmup=1, batch=3)
    assert seen == [[3, 4, 0], [3, 4, 0], [1, 2, 3]]


@pytest.mark.parametrize("name", ["torch", "edgestill"])
def test_the_process_of_a_runtime_cannot_import_torch(tmp_path: Path, name: str) -> None:
    runtime = tmp_path / "runtime.py"
    runtime.write_text(f"import {name}\n")
    with pytest.raises(ImportError, match=f"import of {name} halted") as raised:
        RuntimeProcess(tmp_path / "any.onnx", runtime)
    assert raised.value.name == name


def test_torch_can_be_allowed_and_edgestill_cannot(tmp_path: Path) -> None:
    runtime = tmp_path / "runtime.py"
    runtime.write_text("import torch\nimport edgestill\n")
    with pytest.raises(ImportError, match="import of edgestill halted"):
        RuntimeProcess(tmp_path / "any.onnx", runtime, torch=True)


def test_a_runtime_that_is_not_installed_is_named(tmp_path: Path) -> None:
    runtime = tmp_path / "some_runtime.py"
    runtime.write_text("def load(path, threads=1):\n    import no_such_runtime\n")
    with pytest.raises(ImportError, match=r"some_runtime\.py cannot be imported.*no_such_runtime") as raised:
        RuntimeProcess(tmp_path / "any.onnx", runtime)
    assert raised.value.name == "no_such_runtime"


def test_a_process_that_dies_is_told_with_its_last_words(scaling: Path, tmp_path: Path) -> None:
    runtime = tmp_path / "runtime.py"
    runtime.write_text(
        "import os, sys\nRUNTIME = 'dying'\ndef load(path, threads=1):\n    return lambda rows:"
        " (print('out of breath', file=sys.stderr, flush=True), os._exit(7))\n"
    )
    np.save(tmp_path / "in.npy", np.ones((1, 3), np.float32))
    with (
        RuntimeProcess(scaling, runtime) as process,
        pytest.raises(RuntimeError, match=r"double\.onnx ended with exit code 7: out of breath"),
    ):
        process.ask(time=1, inputs=str(tmp_path / "in.npy"))


def test_inputs_of_another_shape_are_refused_with_both_shapes(scaling: Path, tmp_path: Path) -> None:
    wanted = rf"^{re.escape(str(scaling))} could not be run; it takes .*\[batch, 3\], came \[2, 4\]"
    with pytest.raises(ValueError, match=wanted) as raised:
        onnx_runtime.load(scaling)(np.ones((2, 4)))
    assert "\n" not in str(raised.value)
    np.save(tmp_path / "in.npy", np.ones((2, 4), np.float32))
    with RuntimeProcess(scaling, RUNTIME) as process, pytest.raises(ValueError, match=wanted):
        process.ask(predict=str(tmp_path / "in.npy"), output=str(tmp_path / "out.npy"))


def test_measured_alone_in_a_folder(scaling: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone"
    alone.mkdir()
    for file in (Path(measure.__file__), Path(runner.__file__), RUNTIME, scaling):
        (alone / file.name).write_bytes(file.read_bytes())
    np.save(alone / "in.npy", np.ones((4, 3), np.float32))
    one = spec(Path("double.onnx"), Path("onnx_runtime.py"), Path("in.npy"))
    command = [sys.executable, "-I", "measure.py", "spec.json"]

    def run(artifact: dict[str, object]) -> subprocess.CompletedProcess[str]:
        (alone / "spec.json").write_text(json.dumps({"threads": 1, "artifacts": {"double": artifact}}))
        return subprocess.run(command, cwd=alone, capture_output=True, text=True)

    ran = run(one)
    *steps, answer = [json.loads(line) for line in ran.stdout.splitlines()]
    assert ran.returncode == 0, ran.stderr
    doing = [(step["doing"], step["total"]) for step in steps]
    assert doing == [("measuring memory", 1)] + [("measuring latency", 20)] * 20 + [("measuring throughput", 5)] * 5
    assert answer["measured"]["double"]["bytes"] == scaling.stat().st_size
    assert answer["hardware"]["runtimes"] == [onnx_runtime.RUNTIME]
    assert answer["hardware"]["cores"] >= 1
    ran = run({**one, "path": "absent.onnx"})
    assert ran.returncode == 2
    assert json.loads(ran.stdout.splitlines()[-1]) == {
        "error": "an ONNX file is needed, but there is no file absent.onnx"
    }


def test_openvino_counts_weights_that_lie_beside_the_graph(scaling: Path, tmp_path: Path) -> None:
    (tmp_path / "model.xml").write_bytes(scaling.read_bytes())
    (tmp_path / "model.bin").write_bytes(b"0" * 1000)
    np.save(tmp_path / "in.npy", np.ones((4, 3), np.float32))
    measured = measure.measure({"model": spec(tmp_path / "model.xml", RUNTIME, tmp_path / "in.npy")})
    assert measured["model"]["bytes"] == scaling.stat().st_size + 1000


def test_energy_is_what_the_counters_say_around_their_end(tmp_path: Path) -> None:
    runtime = tmp_path / "counting.py"
    runtime.write_text(COUNTING)
    (tmp_path / "model").write_text("")
    np.save(tmp_path / "in.npy", np.ones((4, 3), np.float32))
    counters = powercap(tmp_path, intel_0=("package-0", 999_500))
    measured = measure.measure({"m": spec(tmp_path / "model", runtime, tmp_path / "in.npy")}, powercap=str(counters))
    assert measured["m"]["energy_joules_per_call"] == pytest.approx(0.0007, rel=1e-9)


def test_energy_is_absent_where_nothing_counts(scaling: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "in.npy", np.ones((4, 3), np.float32))
    standing = powercap(tmp_path, intel_0=("package-0", 0))
    one = spec(scaling, RUNTIME, tmp_path / "in.npy")
    for counters in (tmp_path / "nowhere", standing):
        assert "energy_joules_per_call" not in measure.measure({"m": one}, powercap=str(counters))["m"]


def test_energy_counts_each_package_once(tmp_path: Path) -> None:
    zones = {"intel_0": ("package-0", 5), "intel_1": ("package-1", 7), "intel_2": ("psys", 9)}
    counters = powercap(tmp_path, **zones, intel_0_0=("core", 3))
    found = runner.energy_counters(str(counters))
    assert found == {"intel-rapl:0": (5, 1_000_000), "intel-rapl:1": (7, 1_000_000)}
    assert runner.joules_between(found, {"intel-rapl:0": (15, 1_000_000), "intel-rapl:1": (2, 1_000_000)}) == (
        pytest.approx((10 + 999_995) / 1e6)
    )
    (counters / "intel-rapl:1" / "energy_uj").unlink()
    assert runner.energy_counters(str(counters)) == {}


def test_a_file_that_answers_one_sample_a_call_is_timed_so(scaling: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "in.npy", np.ones((4, 3), np.float32))
    one = spec(scaling, RUNTIME, tmp_path / "in.npy")
    measured = measure.measure({"single": {**one, "batched": False}, "many": one})
    assert (measured["single"]["throughput_batch"], measured["many"]["throughput_batch"]) == (1, 32)
    assert measured["single"]["throughput"] == pytest.approx(1 / measured["single"]["p50"])
