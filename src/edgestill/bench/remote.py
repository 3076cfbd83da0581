"""Measure artifacts on another host over SSH: they go there with their runtime's file, the figures come back.

The other host needs an SSH server, Python and the runtime; edgestill and torch stay here. `there.py` is the other end.

Shapes: N samples.
"""

import ast
import io
import itertools
import json
import re
import secrets
import shlex
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from edgestill.bench.host import Artifact, Measurement, describe, measurement, refuse_missing
from edgestill.errors import UserError
from edgestill.runtimes import measure
from edgestill.runtimes.measure import Track, artifact_files

LEAST_PYTHON = "3.10"
THERE = Path(__file__).with_name("there.py")
SCRIPTS = (Path(measure.__file__), measure.RUNNER)
OPTIONS = ("BatchMode=yes", "ConnectTimeout=15", "ServerAliveInterval=15", "ServerAliveCountMax=4", "LogLevel=INFO")
SSH_FAILED, NOT_EXECUTABLE, NOT_FOUND = 255, 126, 127  # Exit codes: ssh's own, and those of a POSIX shell.
CHUNK = 2**18
LAST_SECONDS = 10  # For the other host to remove what was sent.


def bench_remote(
    host: str,
    artifacts: Mapping[str, Artifact],
    inputs: Mapping[str, np.ndarray],
    *,
    threads: int = 1,
    python: str = "python3",
    ssh: Sequence[str] = ("ssh",),
    track: Track = lambda items, *_: items,
) -> tuple[dict[str, Measurement], dict[str, Any]]:
    """What `edgestill.bench.host.bench` measures, measured on `host`, and the hardware of `host`.

    `host` is what ssh takes, `user@pi` or a name of its configuration, `:port` behind it where the port is another.
    `python` is the Python to run there, and `ssh` the client here with whatever options it needs. One connection; the
    folder that it makes there is removed again, also when the connection drops.

    Raises UserError for a host that cannot be reached, refuses, drops the connection or lacks Python or the runtime,
    and for all that `bench` refuses.

    >>> measured, hardware = bench_remote("user@pi", {"student": student}, {"student": images})  # doctest: +SKIP
    >>> measured["student"].p50, hardware["cpu"]  # doctest: +SKIP
    (0.0031, 'Raspberry Pi 4 Model B Rev 1.4')
    """
    way = [*ssh, *address(host)]
    refuse_missing(artifacts, inputs)
    with tempfile.TemporaryDirectory() as folder:
        parcel = Path(folder) / "parcel.tar"
        names = _pack(parcel, describe(artifacts, inputs, Path(folder)), threads)
        modules = _imports([*SCRIPTS, *(artifact.runtime for artifact in artifacts.values())])
        with _Connection(host, way, python, modules) as connection:
            connection.send(parcel, track)
            try:
                answer = connection.measured(track)
            except _RefusedError as error:
                raise UserError(f"on {host}: {_in_names_of_here(str(error), names)}") from None
    return {name: measurement(values) for name, values in answer["measured"].items()}, answer["hardware"]


def reach(host: str, python: str, runtimes: Iterable[Path], *, ssh: Sequence[str] = ("ssh",)) -> None:
    """Opens a connection to `host` and ends it: UserError, as `bench_remote` would have it, for a host that cannot be
    reached, refuses, or lacks Python or what the files of `runtimes` import."""
    with _Connection(host, [*ssh, *address(host)], python, _imports([*SCRIPTS, *runtimes])):
        pass


def address(host: str) -> list[str]:
    """What ssh is given for a host with or without a port; UserError for what is no host.

    >>> address("user@pi"), address("user@pi:2222"), address("[fe80::1]:22")
    (['user@pi'], ['-p', '2222', 'user@pi'], ['-p', '22', 'fe80::1'])
    """
    found = re.fullmatch(
        r"([^\s@-][^\s@]*@)?(?:\[([^\s\[\]-][^\s\[\]]*)\]|([^\s\[\]:@-][^\s\[\]:@]*))(?::(\d{1,5}))?", host
    )
    if found is None:
        raise UserError(f"a host to measure on is written user@pi or user@pi:port, came {host!r}")
    user, bracketed, name, port = found.groups()
    return (["-p", port] if port else []) + [(user or "") + (bracketed or name)]


def _pack(parcel: Path, described: Mapping[str, Mapping[str, Any]], threads: int) -> dict[str, str]:
    """Writes the scripts, the specification and the files that it names into one archive: path here -> name there."""
    names: dict[str, str] = {}

    def name_there(path: str) -> str:
        return names.setdefault(path, f"file{len(names)}/{Path(path).name}")

    files = ("path", "runtime", "inputs", "empty")
    artifacts = {
        name: {key: name_there(value) if key in files else value for key, value in one.items()}
        for name, one in described.items()
    }
    spec = json.dumps({"artifacts": artifacts, "threads": threads}).encode()
    with tarfile.open(parcel, "w", dereference=True) as archive:
        for script in SCRIPTS:
            archive.add(script, script.name)
        entry = tarfile.TarInfo("spec.json")
        entry.size = len(spec)
        archive.addfile(entry, io.BytesIO(spec))
        for path, name in names.items():
            for file in artifact_files(path):
                archive.add(file, str(Path(name).with_name(file.name)))
    return names


def _in_names_of_here(text: str, names: Mapping[str, str]) -> str:
    for path, name in names.items():
        text = text.replace(name, path)
    return text


def _imports(files: Iterable[Path]) -> list[str]:
    """The modules that Python files cannot be loaded without, the standard library's aside."""
    found: set[str] = set()
    for file in files:
        for statement in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(statement, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in statement.names}
            elif isinstance(statement, ast.ImportFrom) and statement.module:
                found.add(statement.module.partition(".")[0])
    return sorted(found - sys.stdlib_module_names)


class _RefusedError(Exception):
    """What the measurement itself found wrong, in one line."""


class _Connection:
    """One ssh to the other host with `there.py` at its end; a context manager that ends both.

    Whatever fails on the way is a UserError that names the host and how far it had come.
    """

    def __init__(self, host: str, way: list[str], python: str, modules: list[str]) -> None:
        self.host, self.way, self.python = host, way, python
        self.mark = f"edgestill-{secrets.token_hex(8)}:"
        self.came_to = ""
        self.said = ""
        program = THERE.read_bytes()
        start = f"import sys;exec(sys.stdin.buffer.read({len(program)}))"
        command = shlex.join([python, "-c", start, self.mark, LEAST_PYTHON, ",".join(modules)])
        options = [word for option in OPTIONS for word in ("-o", option)]
        self.errors = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 - closed by close()
        try:
            self.process = subprocess.Popen(
                [way[0], "-T", *options, *way[1:], command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self.errors,
            )
        except OSError as error:
            self.errors.close()
            needs = f"measuring on {host} needs an ssh client on this host"
            raise UserError(f"{needs}; {way[0]}: {error.strerror}; install openssh-client") from None
        try:
            self._write(program)
            self._expect("ready")
        except BaseException:
            self.close()
            raise

    def send(self, parcel: Path, track: Track) -> None:
        self.came_to = "while the files were copied there"
        with parcel.open("rb") as file:
            chunks = -(-parcel.stat().st_size // CHUNK)
            for _ in track(range(chunks), f"copying to {self.host}", chunks):
                self._write(file.read(CHUNK))
        self._expect("copied")

    def measured(self, track: Track) -> dict[str, Any]:
        """The answer of `measure.py`; _RefusedError where that is an error."""
        self.came_to = "while it measured"
        steps = itertools.groupby(self._messages(), lambda message: (message.get("doing"), message.get("total")))
        for (doing, total), messages in steps:
            if doing is None:
                return self._accepted(next(messages))
            for _ in track(messages, doing, total):
                pass
        raise self._failure()

    def _accepted(self, message: dict[str, Any]) -> dict[str, Any]:
        if message.get("missing"):
            raise self._missing([message["missing"]])
        if "error" in message:
            raise _RefusedError(message["error"])
        return message

    def _expect(self, key: str) -> None:
        message = next(self._messages(), None)
        if message is None:
            raise self._failure()
        if "old" in message:
            raise UserError(
                f"Python {LEAST_PYTHON} or newer is needed on {self.host}, but {self.python} there is {message['old']}:"
                " name another"
            )
        if "missing" in message:
            raise self._missing(message["missing"])
        assert key in message, message

    def _messages(self) -> Iterator[dict[str, Any]]:
        """What `there.py` says; all else that arrives, from a login's banner on, is passed over."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            text = line.decode(errors="replace").strip()
            if text.startswith(self.mark) and line.endswith(b"\n"):
                yield json.loads(text.removeprefix(self.mark))
            elif text:
                self.said = text

    def _write(self, data: bytes) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(data)
            self.process.stdin.flush()
        except BrokenPipeError:
            raise self._failure() from None

    def _missing(self, modules: list[str]) -> UserError:
        packages = [module.partition(".")[0].replace("_", "-") for module in modules]
        install = shlex.join([*self.way, self.python, "-m", "pip", "install", *packages])
        return UserError(f"{self.host} lacks {' and '.join(packages)} for its {self.python}; install there: {install}")

    def _failure(self) -> UserError:
        """Why no more comes, from ssh's exit code and its last words."""
        self._end()
        self.errors.seek(0)
        last = ([line.strip() for line in self.errors if line.strip()] or [""])[-1]
        code, host = self.process.returncode, self.host
        if self.came_to:
            if code == SSH_FAILED:
                return UserError(f"the connection to {host} dropped {self.came_to}; run again ({last})")
            return UserError(f"{host} failed {self.came_to}: {last or f'exit code {code}'}")
        if code == SSH_FAILED and "Permission denied" in last:
            by_hand = f"{shlex.join([*self.way, 'true'])} must work without a question, with a key of yours"
            return UserError(f"{host} refused the login: {last} {by_hand}")
        if code == SSH_FAILED and "Host key verification failed" in last:
            return UserError(f"{host} has a key that ssh does not know; check it with: {shlex.join(self.way)}")
        if code == SSH_FAILED:
            return UserError(f"{host} cannot be reached over ssh: {last}")
        if code in (NOT_EXECUTABLE, NOT_FOUND):
            return UserError(f"there is no {self.python} on {host} that can be run: {last}; Python is needed there")
        instead = last or self.said or f"exit code {code}"
        return UserError(f"Python {LEAST_PYTHON} or newer is needed on {host}; its {self.python} answered: {instead}")

    def _end(self) -> None:
        """The end of the input ends the other side, which needs a moment to clear up."""
        try:
            self.process.communicate(timeout=LAST_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()

    def close(self) -> None:
        if self.process.returncode is None:
            self._end()
        self.errors.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
