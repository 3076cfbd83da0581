"""The run folder: what is written where, each file whole or not at all."""

import hashlib
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from edgestill.errors import UserError
from edgestill.functions import FUNCTION
from edgestill.paths import exists

RESULT, METRICS, RECIPE, ENVIRONMENT = "result.json", "metrics.jsonl", "recipe.yaml", "environment.json"
PARTIAL = ".partial"
LOCK = ".lock"
_PACKAGES = (
    "edgestill",
    "torch",
    "numpy",
    "scipy",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "datasets",
    "pillow",
    "timm",
    "transformers",
)


def fresh() -> Path:
    """A run folder named by the time."""
    return Path("runs") / datetime.now().strftime("%Y%m%d-%H%M%S")


def refuse_taken(out: Path, resume: bool) -> None:
    """UserError where there is a file, a finished run, or something else."""
    if exists(out) and not out.is_dir():
        raise UserError(f"--out needs a folder; {out} is a file")
    result = read_json(out / RESULT) if exists(out / RESULT) else None
    if result is None and exists(out) and _foreign(out, resume):
        raise UserError(f"--out needs a new or empty folder; {out} holds other files")
    if result is not None and not resume:
        raise UserError(f"{out} holds a run that is {result.get('status')}; give another --out, or --resume to go on")


def create(out: Path, resume: bool) -> Path:
    """Makes the run folder, unless it is taken."""
    refuse_taken(out, resume)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out: {out} cannot be made: {error.strerror}") from error
    return out


def _foreign(out: Path, resume: bool) -> bool:
    """Whether a folder without a result holds anything but what a run that was killed at its very beginning leaves."""
    begun = {name + ending for name in (RECIPE, ENVIRONMENT, RESULT) for ending in ("", PARTIAL)}
    begun = begun | {LOCK} if resume else set()
    return any(path.name not in begun for path in out.iterdir())


def _sweep(out: Path) -> None:
    """Removes what a killed process left half written."""
    for path in out.rglob("*"):
        if path.is_file() and path.name != LOCK and (PARTIAL in path.name or path.name.startswith(".")):
            path.unlink()


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; UserError when there is none."""
    try:
        value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise UserError(f"{path.parent} is not a run folder: it has no {path.name}") from None
    except ValueError as error:
        raise UserError(f"{path} is not readable JSON: {error}") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} is not a run's: it needs to be a JSON object")
    return value


def write_text(path: Path, text: str) -> None:
    """Writes a text file whole, or leaves the previous one."""
    partial = path.with_name(path.name + PARTIAL)
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Writes a JSON object whole, or leaves the previous one."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


@contextmanager
def held(out: Path) -> Iterator[None]:
    """The folder is this process's inside the block; the system takes the lock back however the process ends."""
    try:
        import fcntl
    except ImportError:  # Windows: there nothing guards the folder
        yield
        return
    with open(out / LOCK, "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another process is at work in {out}: wait for it, or give another --out") from None
        except OSError:  # a file system without locks
            yield
            return
        try:
            yield
        finally:
            (out / LOCK).unlink(missing_ok=True)


@contextmanager
def status(out: Path, result: dict[str, Any]) -> Iterator[None]:
    """result.json says running inside the block, and done, interrupted or failed after it. UserError, with nothing
    touched, where another process is at work in the folder; what a killed one left half written goes."""
    with held(out):
        _sweep(out)
        result["status"] = "running"
        result.pop("error", None)  # of an earlier step on this folder
        write_json(out / RESULT, result)
        with _told(out, result):
            yield


@contextmanager
def _told(out: Path, result: dict[str, Any]) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        result["status"] = "interrupted"
        raise
    except BaseException as error:
        result["status"], result["error"] = "failed", f"{type(error).__name__}: {error}"
        raise
    else:
        result["status"] = "done"
    finally:
        try:
            write_json(out / RESULT, result)
        except ValueError:  # a number that JSON does not know: the status is told all the same
            write_json(out / RESULT, {key: result[key] for key in ("version", "status", "error") if key in result})
            raise


@contextmanager
def put_back(path: Path) -> Iterator[None]:
    """What a folder holds stays as it was where the block is refused or interrupted."""
    with tempfile.TemporaryDirectory() as kept:
        if path.is_dir():
            shutil.copytree(path, kept, dirs_exist_ok=True)
        try:
            yield
        except BaseException:
            shutil.rmtree(path, ignore_errors=True)
            if any(Path(kept).iterdir()):
                shutil.copytree(kept, path)
            raise


def refuse_other(out: Path, recipe: str, environment: dict[str, Any]) -> None:
    """UserError naming the first difference, where a run is to be resumed with another recipe, data, number of threads
    or processes, or version of what it is trained with."""
    saved = yaml.safe_load((out / RECIPE).read_text(encoding="utf-8"))
    before = read_json(out / ENVIRONMENT)
    pairs = [("the recipe's", _flat(saved), _flat(yaml.safe_load(recipe)))]
    pairs.append(("the data's fingerprint of the split", before.get("data", {}), environment["data"]))
    old_counts, new_counts = (
        {"threads": e.get("threads"), "processes": e.get("processes", 1)} for e in (before, environment)
    )
    pairs.append(("the number of", old_counts, new_counts))
    if "files" in before:  # a run of an earlier edgestill has none
        pairs.append(("the content of", before["files"], environment["files"]))
    versions = {name: version for name, version in before.get("versions", {}).items() if _trains_with(name)}
    pairs.append(("the version of", versions, {name: environment["versions"].get(name) for name in versions}))
    for what, old, new in pairs:
        for key in [*old, *new]:
            if old.get(key) != new.get(key):
                raise UserError(
                    f"--resume needs the run as it was begun; {what} {key} was {old.get(key)!r}, "
                    f"{new.get(key)!r} came: set it back, or begin a run in another --out"
                )


def _trains_with(package: str) -> bool:
    """Whether a package's version may change the bits of this training; called when the models are made."""
    always = ("python", "edgestill", "torch", "numpy", "scipy", "pillow", "datasets")
    return package in always or (package in ("timm", "transformers") and package in sys.modules)


def contents(recipe: str) -> dict[str, str]:
    """Fingerprints of the files that a recipe (YAML) names beside its data, by key: weights, code, models."""
    prints = {}
    for key, value in _flat(yaml.safe_load(recipe)).items():
        if key.partition(".")[0] in ("teacher", "student", "distill", "phases") and isinstance(value, str):
            function = FUNCTION.fullmatch(value)
            path = Path(function["file"] if function else value.removeprefix("hf:"))
            if path.is_absolute() and exists(path):
                digest = hashlib.blake2b(digest_size=16)
                for file in sorted(path.iterdir()) if path.is_dir() else [path]:
                    if file.is_file():
                        digest.update(file.name.encode())
                        with open(file, "rb") as stream:
                            while block := stream.read(1 << 20):
                                digest.update(block)
                prints[key] = digest.hexdigest()
    return prints


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested values by dotted key."""
    if isinstance(value, dict | list) and value:
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return {key: leaf for name, child in items for key, leaf in _flat(child, f"{prefix}{name}.").items()}
    return {prefix.removesuffix("."): value}


def cut_metrics(out: Path, steps: Callable[[str, int], float]) -> None:
    """Drops the logged steps behind those that were saved: `steps(arm, seed)`; and a last line cut short by a kill."""
    path = out / METRICS
    if not path.is_file():
        return
    steps = cache(steps)  # reading a checkpoint a line would be slow
    kept = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if line["step"] <= steps(line["arm"], line["seed"]):
            kept.append(text + "\n")
    write_text(path, "".join(kept))


@contextmanager
def metrics(out: Path, tracker: str | None) -> Iterator[Callable[[dict[str, Any]], None]]:
    """A function that appends an object to metrics.jsonl, and sends its numbers to the tracker."""
    with open(out / METRICS, "a", encoding="utf-8") as file, _tracker(out, tracker) as send:

        def log(line: dict[str, Any]) -> None:
            file.write(json.dumps(line) + "\n")
            file.flush()
            arm = f"{line['arm']}/{line['seed']}"
            values = {name: value for name, value in line.items() if isinstance(value, int | float) and name != "step"}
            values |= {f"parts/{name}": part["value"] for name, part in line.get("parts", {}).items()}
            send(arm, values, line["step"])

        yield log


@contextmanager
def _tracker(out: Path, name: str | None) -> Iterator[Callable[[str, dict[str, float], int], None]]:
    if name == "tensorboard":
        from torch.utils.tensorboard import SummaryWriter

        with SummaryWriter(str(out / "tensorboard")) as writer:

            def send(arm: str, values: dict[str, float], step: int) -> None:
                for key, value in values.items():
                    writer.add_scalar(f"{arm}/{key}", value, step)

            yield send
    elif name == "wandb":
        import wandb

        with wandb.init(project="edgestill", dir=str(out), name=out.name) as run:
            # one x axis an arm: the library's own step must never go back
            yield lambda arm, values, step: run.log(
                {f"{arm}/{k}": v for k, v in values.items()} | {f"{arm}/step": step}
            )
    else:
        yield lambda *_: None


def environment(
    threads: int,
    fingerprints: dict[str, str],
    seeds: list[int],
    device: str,
    processes: int = 1,
    files: dict[str, str] | None = None,
) -> dict[str, Any]:
    """Versions, hardware, threads of each process, processes, git commit, seeds, fingerprints of data and `files`."""
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "versions": versions,
        "hardware": {"cpu": _cpu(), "cores": os.cpu_count(), "memory_bytes": _memory(), "device": device},
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "threads": threads,
        "processes": processes,
        "git_commit": _git_commit(),
        "command": shlex.join(["edgestill", *sys.argv[1:]]),
        "seeds": seeds,
        "data": fingerprints,
        "files": files or {},
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "Model"))]
    return names[0] if names else platform.machine()


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None


def _git_commit() -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
