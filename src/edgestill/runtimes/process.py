"""An artifact in a fresh process of its runtime, which can import neither torch nor edgestill."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from edgestill.errors import UserError

ONNX = Path(__file__).with_name("onnx_runtime.py")

# None in sys.modules makes every import of that name fail, installed or not.
LAUNCHER = """
import runpy, sys
sys.modules.update(dict.fromkeys(["torch", "edgestill"]))
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


class RuntimeProcess:
    """A runtime's file run as a script, with one artifact open; `ask` sends a command and returns the answer.

    Commands and answers are those at the top of `onnx_runtime.py`. A context manager: its process ends with it.
    `threads` and `optimize` are those of the runtime's `load`; `program` is the runtime's file.

    Raises UserError for an artifact that the runtime refuses, or that refuses its inputs; RuntimeError for a process
    that ends unasked.

    >>> with RuntimeProcess("student.onnx") as process:  # doctest: +SKIP
    ...     process.ask(memory=True)
    {'peak_bytes': 41943040}
    """

    def __init__(self, artifact: str | Path, *, threads: int = 1, optimize: bool = True, program: Path = ONNX) -> None:
        command = [sys.executable, "-P", "-c", LAUNCHER, str(program), str(artifact), "--threads", str(threads)]
        self.artifact = artifact
        self.log = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 - closed by close()
        self.process = subprocess.Popen(
            command + ["--no-optimize"] * (not optimize),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
        )
        try:
            opened = self._answer()
            if "error" in opened:
                raise UserError(opened["error"])
        except BaseException:
            self.close()
            raise
        self.runtime: str = opened["runtime"]
        self.load_seconds: float = opened["load_seconds"]

    def ask(self, **command: Any) -> dict[str, Any]:
        assert self.process.stdin is not None
        try:
            print(json.dumps(command), file=self.process.stdin, flush=True)
        except BrokenPipeError:
            raise self._died() from None
        answer = self._answer()
        if "error" in answer:
            raise UserError(f"{self.artifact} could not be run: {answer['error']}")
        return answer

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise self._died()
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _died(self) -> RuntimeError:
        code = self.process.wait()
        self.log.seek(0)
        last = (self.log.read().strip().splitlines() or ["it wrote nothing"])[-1]
        return RuntimeError(f"the process that ran {self.artifact} ended with exit code {code}: {last}")

    def close(self) -> None:
        """End the process; kill it if it does not end by itself within two seconds."""
        try:
            self.process.communicate(timeout=2)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()
        self.log.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
