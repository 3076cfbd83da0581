"""Checkpoints: whole or not at all, also on a disk that is really full."""

import os
import subprocess
from pathlib import Path

import pytest
import torch

from edgestill import checkpoint
from edgestill.errors import UserError


def test_a_state_comes_back_as_it_was_saved(tmp_path):
    state = {"step": 3, "student": {"weight": torch.arange(6.0).reshape(2, 3)}}
    checkpoint.save(state, tmp_path / "a" / "last.pt")
    loaded = checkpoint.load(tmp_path / "a" / "last.pt")
    assert loaded["step"] == 3
    assert torch.equal(loaded["student"]["weight"], state["student"]["weight"])
    assert checkpoint.load(tmp_path / "none.pt") is None


@pytest.fixture
def small_disk(tmp_path):
    """A real file system of one megabyte."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() != 0:
        pytest.skip("mounting a small tmpfs needs root")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_keeps_the_previous_checkpoint_and_leaves_nothing(small_disk: Path):
    path = small_disk / "last.pt"
    checkpoint.save({"weight": torch.zeros(50_000)}, path)
    before = path.read_bytes()
    with pytest.raises(UserError, match=r"cannot be saved: .*what was saved before is whole"):
        checkpoint.save({"weight": torch.zeros(500_000)}, path)
    assert path.read_bytes() == before
    assert [file.name for file in small_disk.iterdir()] == ["last.pt"]
