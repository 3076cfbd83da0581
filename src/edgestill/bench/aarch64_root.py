"""Make and find the folder in which an ARM Python with ONNX Runtime runs under QEMU's user-mode emulation.

    python -m edgestill.bench.aarch64_root [ROOT] [--mirror URL]

makes it in about a minute, 190 MB, without an administrator's rights: debootstrap downloads Debian's packages and
checks their signatures, dpkg unpacks those that Python needs, pip adds the aarch64 wheels of numpy and ONNX Runtime.
Nothing is installed on this system. ROOT/python then runs that Python on an emulated Cortex-A72, wherever it lies.

ROOT is the folder that the environment variable EDGESTILL_AARCH64_ROOT names, or ~/.cache/edgestill/aarch64.
"""

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from edgestill.errors import UserError

VARIABLE = "EDGESTILL_AARCH64_ROOT"
DEBIAN = "bookworm"  # Its Python is PYTHON.
PYTHON = "3.11"
WHEELS = ("numpy>=2,<3", "onnxruntime==1.24.4")  # onnxruntime 1.30 and 1.32 crash at import under this emulation.
EMULATORS = ("qemu-aarch64-static", "qemu-aarch64")
PACKAGES = {"qemu-aarch64-static": "qemu-user-static", "debootstrap": "debootstrap", "dpkg": "dpkg"}
PROCESSOR = "cortex-a72"
# Libraries and Python; what else debootstrap downloads (a shell, login, mount) is for systems that boot.
UNPACKED = ("lib", "python", "zlib")

LAUNCHER = f"""#!/bin/sh
# This folder's Python on an emulated {PROCESSOR}, with nothing of the caller's environment.
root=$(dirname "$(readlink -f "$0")")
emulator=$(command -v {" || command -v ".join(EMULATORS)}) || {{ echo "there is no {EMULATORS[0]}" >&2; exit 127; }}
exec env -i PYTHONPATH="$root/wheels" "$emulator" -cpu {PROCESSOR} -L "$root" "$root/usr/bin/python{PYTHON}" -s "$@"
"""


def default_root() -> Path:
    """Where the root is looked for and made when nothing else is said; it may not be there."""
    return Path(os.environ.get(VARIABLE) or "~/.cache/edgestill/aarch64").expanduser()


def make_command(root: str | Path) -> str:
    """The command line that makes `root`."""
    return f"python -m edgestill.bench.aarch64_root {shlex.quote(str(root))}"


def find_root(root: str | Path | None = None) -> Path:
    """The folder of the ARM Python, `root` or the default one; ready to run.

    Raises UserError, with the command that mends it, where QEMU, the root or its ONNX Runtime is missing.

    >>> find_root()  # doctest: +SKIP
    PosixPath('/home/me/.cache/edgestill/aarch64')
    """
    if not any(shutil.which(emulator) for emulator in EMULATORS):
        raise _not_installed([EMULATORS[0]])
    folder = Path(root).expanduser() if root is not None else default_root()
    make = make_command(folder)
    if not os.access(folder / "python", os.X_OK) or not (folder / "usr" / "bin" / f"python{PYTHON}").is_file():
        there = "that folder is something else" if folder.exists() else "there is no such folder"
        raise UserError(
            f"emulating ARM needs a Python for it in {folder}, but {there}: make it with `{make}`, or name another "
            f"folder in {VARIABLE}"
        )
    if not (folder / "wheels" / "onnxruntime").is_dir():
        raise UserError(
            f"emulating ARM needs onnxruntime for aarch64, which is not in {folder}: remove that folder and make it "
            f"again with `{make}`"
        )
    return folder


def make_root(root: str | Path, mirror: str | None = None) -> str:
    """Make the ARM Python in the folder `root`, whole or not at all; what it runs, in words.

    `mirror` is the address of a Debian archive; without it the one that this system's apt uses, where it is Debian, or
    debootstrap's own default. Progress is printed, a line a step.

    Raises UserError where a program is missing, `root` is taken, or a step fails.
    """
    root = Path(root).expanduser().absolute()
    if root.exists() and not (root.is_dir() and not any(root.iterdir())):
        raise UserError(f"{root} is there already: remove it to make it again, or name another folder")
    programs = _programs()
    partial = root.with_name(f".{root.name}.{os.getpid()}")
    try:
        partial.mkdir(parents=True)
        with tempfile.TemporaryDirectory() as downloads:
            print(f"1 of 4: downloading packages of Debian {DEBIAN} for aarch64", flush=True)
            _download(programs["debootstrap"], Path(downloads), mirror or apt_mirror())
            packages = sorted((Path(downloads) / "var/cache/apt/archives").glob("*.deb"))
            print("2 of 4: unpacking Python and its libraries", flush=True)
            for package in packages:
                if package.name.startswith(UNPACKED):
                    _run([programs["dpkg"], "-x", str(package), str(partial)])
        print(f"3 of 4: downloading wheels: {', '.join(WHEELS)}", flush=True)
        _add_wheels(partial / "wheels")
        launcher = partial / "python"
        launcher.write_text(LAUNCHER, encoding="utf-8")
        launcher.chmod(0o755)
        print(f"4 of 4: starting Python on an emulated {PROCESSOR}", flush=True)
        says = "import platform as p, numpy as n, onnxruntime as o; print('Python', p.python_version() + ', numpy', "
        says += "n.__version__ + ', onnxruntime', o.__version__, 'for', p.machine())"
        versions = _run([str(launcher), "-c", says]).splitlines()[-1]
        os.rename(partial, root)
    except OSError as error:
        raise UserError(f"{root} could not be made: {error}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return versions


def apt_mirror() -> str | None:
    """The address from which this system's apt takes Debian's main packages; None where it is not Debian."""
    if not shutil.which("apt-get"):
        return None
    fields = "$(ORIGIN)\t$(LABEL)\t$(REPO_URI)"
    told = subprocess.run(
        ["apt-get", "indextargets", "--format", fields, "Created-By: Packages"], capture_output=True, text=True
    )
    for line in told.stdout.splitlines():
        origin, label, address = line.split("\t")
        if origin == label == "Debian" and address.startswith(("http://", "https://", "file:")):
            return address
    return None


def _programs() -> dict[str, str]:
    """Where the needed programs are."""
    # An ordinary user's PATH has no sbin, where Debian keeps debootstrap.
    places = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
    found = {name: shutil.which(name, path=places) for name in PACKAGES}
    found[EMULATORS[0]] = found[EMULATORS[0]] or shutil.which(EMULATORS[1])
    missing = [name for name, place in found.items() if place is None]
    if missing:
        raise _not_installed(missing)
    return {name: place for name, place in found.items() if place is not None}


def _not_installed(names: Sequence[str]) -> UserError:
    are = "is" if len(names) == 1 else "are"
    packages = " ".join(PACKAGES[name] for name in names)
    return UserError(
        f"emulating ARM needs {' and '.join(names)}, which {are} not installed: apt-get install {packages} "
        "(Debian and Ubuntu; QEMU emulates single programs on Linux only)"
    )


def _download(debootstrap: str, folder: Path, mirror: str | None) -> None:
    included = f"--include=python{PYTHON},libstdc++6,libgomp1"
    options = ["--download-only", "--arch=arm64", "--variant=minbase", included]
    try:
        _run([debootstrap, *options, DEBIAN, str(folder), *([mirror] if mirror else [])])
    except UserError as error:
        raise UserError(f"{error}; another archive may have it: --mirror URL") from None


def _add_wheels(folder: Path) -> None:
    environment = dict(os.environ)
    environment.pop("PIP_CONSTRAINT", None)  # It pins the versions of this machine's own environment.
    platform = ["--platform", "manylinux_2_28_aarch64", "--implementation", "cp", "--python-version", PYTHON]
    options = ["--quiet", "--no-deps", "--no-compile", "--only-binary=:all:", "--target", str(folder)]
    _run([sys.executable, "-m", "pip", "install", *options, *platform, *WHEELS], environment)


def _run(command: Sequence[str], environment: Mapping[str, str] | None = None) -> str:
    """What a command prints; UserError with its last line when it fails, the one that says error if there is one."""
    done = subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace"
    )
    if done.returncode:
        lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith(("E: ", "ERROR: "))]
        last = (errors or lines or ["it said nothing"])[-1]
        raise UserError(f"{' '.join(command[:3])} … failed with exit code {done.returncode}: {last}")
    return done.stdout


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Make the folder in which an ARM Python with ONNX Runtime runs under emulation."
    )
    parser.add_argument("root", nargs="?", help=f"the folder; without it {VARIABLE}, or ~/.cache/edgestill/aarch64")
    parser.add_argument("--mirror", help="address of a Debian archive; without it the one of this system's apt")
    options = parser.parse_args()
    root = options.root or default_root()
    try:
        versions = make_root(root, options.mirror)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{root}: {versions}")
    made = Path(root).expanduser().absolute()
    if made != default_root().absolute():
        print(f"export {VARIABLE}={shlex.quote(str(made))}  # so that it is found")
    return 0


if __name__ == "__main__":
    sys.exit(main())
