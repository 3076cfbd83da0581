"""Checkpoints: one dict in, one dict out, written whole or not at all."""

import os
from pathlib import Path
from typing import Any

import torch

from edgestill.errors import UserError, first_line


def save(state: dict[str, Any], path: Path) -> None:
    """Writes `state` so that a process killed at any moment, or a full disk, leaves the previous file or the whole of
    this one. Raises UserError where it cannot be written."""
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except (OSError, RuntimeError) as error:  # torch's writer raises the latter on a full disk
        partial.unlink(missing_ok=True)
        reason = getattr(error, "strerror", None) or first_line(error)
        raise UserError(f"{path} cannot be saved: {reason}; what was saved before is whole") from error


def load(path: Path) -> dict[str, Any] | None:
    """What `save` wrote, None when nothing was."""
    if not path.exists():
        return None
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state
