"""What `edgestill.bench.remote` starts on the other host, sent there as text: takes an archive, runs what is in it.

    python3 there.py MARK 3.10 numpy,onnxruntime < archive.tar

It reads a tar from standard input into a fresh folder, runs `measure.py spec.json` in it and hands on its answers, each
in a line after MARK, which tells it from a login's banner. The input stays open meanwhile: its end means that whoever
asked is gone, and ends the measurement too. The folder goes in any case.

A Python older than 3.10, or without one of the modules, is said before anything is read. Therefore this file keeps to
what any Python 3 understands, and to the standard library.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
from importlib import util
from typing import Any


def say(mark: str, message: Any) -> None:
    # A banner may have left its line unfinished.
    sys.stdout.write("\n" + mark + json.dumps(message) + "\n")
    sys.stdout.flush()


def take(mark: str, folder: str) -> None:
    say(mark, {"ready": sys.executable})
    with tarfile.open(fileobj=sys.stdin.buffer, mode="r|") as archive:
        if hasattr(tarfile, "data_filter"):
            archive.extraction_filter = tarfile.data_filter
        archive.extractall(folder)
    say(mark, {"copied": True})


def run(mark: str, folder: str) -> None:
    child = subprocess.Popen(
        [sys.executable, "measure.py", "spec.json"],
        cwd=folder,
        env={**os.environ, "TMPDIR": folder},  # What runtimes leave among temporary files goes too.
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )

    def end() -> None:
        # All of its group: a model that hangs does not notice that its measurement is gone.
        with contextlib.suppress(OSError):
            if child.returncode is None:
                os.killpg(child.pid, signal.SIGKILL)

    def watch() -> None:
        while os.read(0, 4096):
            pass
        end()

    threading.Thread(target=watch, daemon=True).start()
    try:
        for line in child.stdout or ():
            if line.startswith(b"{"):  # Python's own start-up hooks may print.
                say(mark, json.loads(line.decode()))
    finally:
        end()
        child.wait()


def main() -> None:
    mark, least, needed = sys.argv[1:]
    if sys.version_info[:2] < tuple(int(part) for part in least.split(".")):
        return say(mark, {"old": ".".join(str(part) for part in sys.version_info[:3])})
    missing = [name for name in needed.split(",") if util.find_spec(name) is None]
    if missing:
        return say(mark, {"missing": missing})
    for name in ("SIGHUP", "SIGTERM"):
        signal.signal(getattr(signal, name), lambda *_: sys.exit(1))
    folder = tempfile.mkdtemp(prefix="edgestill-")
    try:
        take(mark, folder)
        run(mark, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return None


if __name__ == "__main__":
    main()
