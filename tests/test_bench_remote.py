"""What is promised of measuring elsewhere, with a real sshd on this host: figures, no traces, and one clear refusal."""

import contextlib
import getpass
import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from edgestill.bench.host import Artifact, bench
from edgestill.bench.remote import address, bench_remote
from edgestill.cli import main
from edgestill.errors import UserError
from edgestill.export.onnx import write_empty
from edgestill.runtimes import onnx_runtime

SSHD = shutil.which("sshd", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")
pytestmark = pytest.mark.skipif(
    not (SSHD and shutil.which("ssh") and shutil.which("ssh-keygen")),
    reason="needs sshd and ssh: apt-get install openssh-server openssh-client",
)
SECONDS = 60.0  # How long a test waits for something that comes at once.


@dataclass
class Server:
    """A running sshd: `ssh(key)` is the client with one of its keys, `place` where the other side keeps its folders."""

    host: str
    folder: Path
    place: Path
    process: subprocess.Popen[str]

    def ssh(self, key: str = "user") -> list[str]:
        options = ["IdentitiesOnly=yes", f"UserKnownHostsFile={self.folder}/known_hosts", "StrictHostKeyChecking=yes"]
        return ["ssh", "-F", "none", "-i", f"{self.folder}/{key}", *(w for o in options for w in ("-o", o))]

    def sessions(self) -> list[int]:
        """Processes that serve a connection, the other side's programs included."""
        return descendants(self.process.pid)

    def drop(self) -> None:
        """Cuts every connection, as a lost network does: the other side's programs live on."""
        for pid in self.sessions():
            with contextlib.suppress(OSError):
                if Path(f"/proc/{pid}/comm").read_text().startswith("sshd"):
                    os.kill(pid, signal.SIGKILL)


def descendants(pid: int) -> list[int]:
    try:
        children = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []
    return [one for child in children for one in (child, *descendants(child))]


def wait_for_the_end_of(pids: Iterable[int]) -> None:
    for pid in pids:
        try:
            handle = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        try:
            assert select.select([handle], [], [], SECONDS)[0], f"process {pid} goes on"
        finally:
            os.close(handle)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("sshd")
    place, port = folder / "place", free_port()
    place.mkdir()
    for key in ("host", "user", "banner", "silent", "stranger"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / key], check=True)
    public = {key: (folder / f"{key}.pub").read_text() for key in ("host", "user", "banner", "silent")}
    banner = r'command="printf \"Welcome to the pi\\n*** 3 updates: {} \"; eval \"$SSH_ORIGINAL_COMMAND\""'
    authorized = [public["user"], f"{banner} {public['banner']}", f'command="echo nothing to see" {public["silent"]}']
    (folder / "authorized_keys").write_text("".join(authorized))
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {public['host']}")
    (folder / "config").write_text(
        f"ListenAddress 127.0.0.1\nPort {port}\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/authorized_keys\n"
        "StrictModes no\nUsePAM no\nPidFile none\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n"
        f"SetEnv TMPDIR={place}\n"
    )
    if os.geteuid() == 0:  # sshd refuses to start as root without it; a distribution's start script makes it
        Path("/run/sshd").mkdir(exist_ok=True)
    process = subprocess.Popen(
        [str(SSHD), "-D", "-e", "-f", str(folder / "config")],
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
    )
    assert process.stderr is not None
    told = []
    for line in process.stderr:
        told.append(line)
        if line.startswith("Server listening"):
            break
    else:
        pytest.skip(f"sshd does not start here: {''.join(told)}")
    drain = threading.Thread(target=lambda: [None for _ in process.stderr or ()], daemon=True)
    drain.start()
    yield Server(f"{getpass.getuser()}@127.0.0.1:{port}", folder, place, process)
    process.terminate()
    process.wait()
    drain.join(SECONDS)
    process.stderr.close()


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with nothing in it, as on a new device."""
    folder = tmp_path_factory.mktemp("bare") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    return folder


def packages(venv: Path) -> Path:
    (found,) = venv.glob("lib/python*/site-packages")
    return found


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """An ONNX file that multiplies [batch, 3] by a matrix."""
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 3]) for name in ("input", "logits")]
    weight = numpy_helper.from_array(np.ones((3, 3), np.float32), "weight")
    node = helper.make_node("MatMul", ["input", "weight"], ["logits"])
    graph = helper.make_graph([node], "matmul", ends[:1], ends[1:], [weight])
    path = tmp_path / "student.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


ROWS = np.ones((5, 3), np.float32)


def measurable(path: Path) -> Artifact:
    """An ONNX file with the empty model that its memory is measured over."""
    empty = path.with_name("empty.onnx")
    write_empty(empty, torch.zeros(1, 3))
    return Artifact(path, Path(onnx_runtime.__file__), empty)


def measured_on(
    server: Server, model: Path, key: str = "user", python: str = sys.executable, **options: Any
) -> tuple[Any, Any]:
    return bench_remote(
        server.host, {"student": measurable(model)}, {"student": ROWS}, python=python, ssh=server.ssh(key), **options
    )


def at(moment: str, happens: Callable[[], None]) -> Callable[[Iterable[Any], str, int], Iterator[Any]]:
    """A `track` in which something happens at the first step of what is named `moment`."""

    def track(items: Iterable[Any], doing: str, total: int) -> Iterator[Any]:
        for index, item in enumerate(items):
            if index == 0 and moment in doing:
                happens()
            yield item

    return track


def test_the_figures_are_those_of_this_host_in_kind(server: Server, model: Path) -> None:
    steps: list[tuple[str, int]] = []

    def track(items: Iterable[Any], doing: str, total: int) -> Iterator[Any]:
        for item in items:
            steps.append((doing, total))
            yield item

    artifacts = {"student": measurable(model), "other": replace(measurable(model), batched=False)}
    inputs = {"student": ROWS, "other": ROWS}
    there, hardware = bench_remote(
        server.host, artifacts, inputs, threads=2, python=sys.executable, ssh=server.ssh(), track=track
    )
    here = bench(artifacts, inputs, threads=2)
    assert list(there) == list(here)
    for name in here:
        figures, own = asdict(there[name]), asdict(here[name])
        assert {key: type(value) for key, value in figures.items()} == {key: type(v) for key, v in own.items()}
        same = ("bytes", "runtime", "threads", "throughput_batch")
        assert [figures[key] for key in same] == [own[key] for key in same]
        assert 0 < figures["p50"] <= figures["p90"] <= figures["p99"]
    assert hardware["machine"] == os.uname().machine
    assert hardware["runtimes"] == [here["student"].runtime]
    assert steps[0] == (f"copying to {server.host}", 1)
    assert (
        steps[1:]
        == [("measuring memory", 2)] * 2 + [("measuring latency", 20)] * 20 + [("measuring throughput", 5)] * 5
    )
    assert list(server.place.iterdir()) == []


def test_a_login_that_greets_is_no_obstacle(server: Server, model: Path) -> None:
    measured, _ = measured_on(server, model, key="banner")
    assert measured["student"].p50 > 0


def test_weights_beside_a_graph_go_along(server: Server, model: Path, tmp_path: Path) -> None:
    (tmp_path / "student.xml").write_bytes(model.read_bytes())
    (tmp_path / "student.bin").write_bytes(b"0" * 1000)
    measured, _ = measured_on(server, tmp_path / "student.xml")
    assert measured["student"].bytes == model.stat().st_size + 1000


def one_line(error: pytest.ExceptionInfo[UserError]) -> str:
    text = str(error.value)
    assert text == text.strip()
    assert "\n" not in text
    return text


def test_a_refused_login_is_one_clear_line(server: Server, model: Path) -> None:
    with pytest.raises(
        UserError, match=r"127\.0\.0\.1:\d+ refused the login: .*Permission denied \(publickey\)"
    ) as raised:
        measured_on(server, model, key="stranger")
    assert "must work without a question" in one_line(raised)


def test_an_unknown_host_key_is_one_clear_line(server: Server, model: Path, tmp_path: Path) -> None:
    ssh = [word.replace("known_hosts", "empty_hosts") for word in server.ssh()]
    with pytest.raises(
        UserError, match=r"has a key that ssh does not know; check it with: ssh .*127\.0\.0\.1"
    ) as raised:
        bench_remote(server.host, {"student": measurable(model)}, {"student": ROWS}, ssh=ssh)
    one_line(raised)


def test_a_host_that_refuses_or_does_not_exist_is_one_clear_line(server: Server, model: Path) -> None:
    for host, reason in ((f"127.0.0.1:{free_port()}", "Connection refused"), ("no-such.invalid", "resolve")):
        with pytest.raises(UserError, match=rf"^{host} cannot be reached over ssh: .*{reason}") as raised:
            bench_remote(host, {"student": measurable(model)}, {"student": ROWS}, ssh=server.ssh())
        one_line(raised)


@pytest.mark.parametrize(
    ("moment", "words"),
    [("copying", "dropped while the files were copied"), ("latency", "dropped while it measured")],
)
def test_a_connection_that_drops_is_told_and_leaves_nothing_there(
    server: Server, model: Path, moment: str, words: str
) -> None:
    others: list[int] = []

    def drop() -> None:
        assert list(server.place.glob("edgestill-*"))
        others.extend(server.sessions())
        server.drop()

    with pytest.raises(UserError, match=rf"the connection to .*127\.0\.0\.1:\d+ {words}.*; run again") as raised:
        measured_on(server, model, track=at(moment, drop))
    one_line(raised)
    wait_for_the_end_of(others)
    assert list(server.place.iterdir()) == []


def test_a_model_that_hangs_there_ends_with_the_connection(server: Server, model: Path, tmp_path: Path) -> None:
    started = tmp_path / "started"
    os.mkfifo(started)
    runtime = tmp_path / "hanging.py"
    runtime.write_text(
        "import os, pathlib, signal\nRUNTIME = 'hanging'\ndef load(path, threads=1):\n    def predict(rows):\n"
        f"        pathlib.Path({str(started)!r}).write_text(str(os.getpid()))\n        signal.pause()\n"
        "    return predict\n"
    )
    others: list[int] = []

    def drop() -> None:
        others.append(int(started.read_text()))  # comes once the model is running
        others.extend(server.sessions())
        server.drop()

    hanging = Artifact(model, runtime, empty=model)
    with pytest.raises(UserError, match="dropped while it measured"):
        bench_remote(
            server.host,
            {"student": hanging},
            {"student": ROWS},
            python=sys.executable,
            ssh=server.ssh(),
            track=at("memory", drop),
        )
    wait_for_the_end_of(others)
    assert list(server.place.iterdir()) == []


@pytest.mark.parametrize("moment", ["copying", "latency"])
def test_an_interruption_here_ends_what_runs_there(server: Server, model: Path, moment: str) -> None:
    others: list[int] = []

    def interrupt() -> None:
        others.extend(server.sessions())
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measured_on(server, model, track=at(moment, interrupt))
    assert others
    wait_for_the_end_of(others)
    assert list(server.place.iterdir()) == []


def test_a_host_without_the_runtime_gets_the_line_that_installs_it(server: Server, model: Path, bare: Path) -> None:
    python = str(bare / "bin" / "python")
    user, _, port = server.host.rpartition(":")
    install = re.escape(f"-p {port} {user} {python} -m pip install ")
    with pytest.raises(UserError, match=rf"lacks numpy and onnxruntime for its .*: ssh .*{install}numpy onnxruntime$"):
        measured_on(server, model, python=python)
    for name in ("numpy", "numpy.libs"):
        if (Path(np.__file__).parent.parent / name).is_dir():
            (packages(bare) / name).symlink_to(Path(np.__file__).parent.parent / name)
    with pytest.raises(UserError, match=rf"lacks onnxruntime for its .*{install}onnxruntime$") as raised:
        measured_on(server, model, python=python)
    one_line(raised)
    broken = packages(bare) / "onnxruntime"
    broken.mkdir()
    (broken / "__init__.py").write_text("raise ImportError('libgomp.so.1: cannot open shared object file')\n")
    with pytest.raises(UserError, match=r"onnx_runtime\.py cannot be imported with .*libgomp\.so\.1") as raised:
        measured_on(server, model, python=python)
    one_line(raised)
    assert list(server.place.iterdir()) == []


def test_a_host_without_python_or_with_an_old_one_is_one_clear_line(
    server: Server, model: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"there is no python9\.9 on .*127\.0\.0\.1") as raised:
        measured_on(server, model, python="python9.9")
    one_line(raised)
    old = tmp_path / "old python"
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.version_info = (3, 8, 10, 'final', 0)\n")
    old.write_text(f'#!/bin/sh\nPYTHONPATH="{tmp_path}" exec "{sys.executable}" "$@"\n')
    old.chmod(0o755)
    with pytest.raises(UserError, match=r"Python 3\.10 or newer is needed on .*old python there is 3\.8\.10") as raised:
        measured_on(server, model, python=str(old))
    one_line(raised)


def test_a_start_up_hook_that_prints_is_no_obstacle(server: Server, model: Path, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("print('site of the institute')\n")
    chatty = tmp_path / "python"
    chatty.write_text(f'#!/bin/sh\nPYTHONPATH="{tmp_path}" exec "{sys.executable}" "$@"\n')
    chatty.chmod(0o755)
    measured, _ = measured_on(server, model, python=str(chatty))
    assert measured["student"].p50 > 0


def test_an_answer_of_something_else_is_one_clear_line(server: Server, model: Path) -> None:
    with pytest.raises(UserError, match=r"Python 3\.10 or newer is needed on .* answered: nothing to see") as raised:
        measured_on(server, model, key="silent")
    one_line(raised)


def test_a_broken_artifact_is_named_as_it_is_named_here(server: Server, model: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.onnx"
    cut.write_bytes(model.read_bytes()[:40])
    with pytest.raises(
        UserError, match=rf"^on .*127\.0\.0\.1:\d+: {re.escape(str(cut))} is not a complete ONNX file"
    ) as raised:
        measured_on(server, cut)
    one_line(raised)
    with pytest.raises(UserError, match=rf"{re.escape(str(model))} could not be run; it takes .* came \[1, 7\]"):
        bench_remote(
            server.host,
            {"student": replace(measurable(model), empty=model)},
            {"student": np.ones((2, 7))},
            python=sys.executable,
            ssh=server.ssh(),
        )
    assert list(server.place.iterdir()) == []


def test_a_measurement_that_dies_there_is_told(server: Server, model: Path) -> None:
    def kill() -> None:
        for pid in server.sessions():
            with contextlib.suppress(OSError):
                if b"runner.py" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    os.kill(pid, signal.SIGKILL)

    with pytest.raises(UserError, match=r"student\.onnx ended with exit code -9") as raised:
        measured_on(server, model, track=at("latency", kill))
    one_line(raised)


def test_without_an_ssh_client_here_one_clear_line(model: Path) -> None:
    with pytest.raises(UserError, match=r"needs an ssh client on this host; no-such-ssh: .*install openssh-client"):
        bench_remote("pi", {"student": measurable(model)}, {"student": ROWS}, ssh=["no-such-ssh"])


@pytest.mark.parametrize(
    "host", ["", "-oProxyCommand=x", "[-oProxyCommand=x]", "a b", "user@-x", "pi:port", "user@", "fe80::1"]
)
def test_what_is_no_host_never_reaches_ssh(host: str) -> None:
    with pytest.raises(UserError, match="written user@pi"):
        address(host)


def test_a_run_is_measured_on_another_host_by_its_command(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], bare_runs
) -> None:
    (tmp_path / "bin").mkdir()
    client = tmp_path / "bin" / "ssh"  # the user's ssh, with a key as its configuration would name it
    real = shutil.which("ssh")
    client.write_text(f'#!/bin/sh\nexec {real} {" ".join(server.ssh()[1:])} "$@"\n')
    client.chmod(0o755)
    monkeypatch.setenv("PATH", f"{client.parent}:{os.environ['PATH']}")
    run = tmp_path / "run"
    quick = ["train.epochs=1", "compare.seeds=1", "teacher.fit.epochs=4", "export=[onnx]"]
    quick += ["budget={size: 1 MB}", "compare.baseline=false"]
    with bare_runs():
        assert main(["run", "digits", "--quiet", "--out", str(run), *(w for s in quick for w in ("--set", s))]) == 0
    assert main(["bench", str(run), "--host", server.host, "--python", sys.executable, "--quiet"]) == 0
    result = json.loads((run / "result.json").read_text())
    assert result["bench"]["host"] == server.host
    assert all(artifact["latency_ratio"] > 0 for artifact in result["artifacts"])
    assert list(server.place.iterdir()) == [], "nothing stays there"
    nowhere = ["run", "digits", "--quiet", "--out", str(tmp_path / "no"), "--set", "bench.host=nobody@127.0.0.1:1"]
    assert main(nowhere) == 2, "before any training"
    assert not (tmp_path / "no").exists()
    before = (run / "result.json").read_bytes()
    capsys.readouterr()
    assert main(["bench", str(run), "--host", "nobody@127.0.0.1:1", "--quiet"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert main(["bench", str(run), "--host", "[-oProxyCommand=x]", "--quiet"]) == 2
    assert "a host to measure on is written" in capsys.readouterr().err, "what is given is a host, not YAML"
    kept = json.loads((run / "result.json").read_text())
    assert kept["artifacts"] == json.loads(before)["artifacts"], "the figures of before are not lost"
