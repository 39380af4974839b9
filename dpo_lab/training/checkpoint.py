"""Checkpoints: what is trained, the optimizer's state and the position. Two are kept, each with its checksum."""

import hashlib
import logging
import os
import re
from pathlib import Path
from typing import Any, BinaryIO

import torch

from dpo_lab.runtime.files import atomic_produce, read_json, remove, write_json

log = logging.getLogger(__name__)
KEEP = 2


def save_checkpoint(folder: Path, state: dict[str, Any], *, step: int) -> None:
    """Write the state after `step` steps. It counts from when its checksum is in place.

    Raises:
        OutputError: it cannot be written; the checkpoints before it stay.
    """
    path = folder / f"step_{step:08d}.pt"
    atomic_produce(path, lambda temporary: _write(temporary, state))
    write_json(path.with_suffix(".json"), {"step": step, "sha256": _sha256(path)})
    for old in sorted(folder.glob("step_*.pt"))[:-KEEP]:
        remove(old.with_suffix(".json"))
        remove(old)


def last_checkpoint(folder: Path) -> tuple[int, dict[str, Any]] | None:
    """The newest whole checkpoint, as (step, state); damaged ones are said, passed over and deleted."""
    for path in sorted(folder.glob("step_*.pt"), reverse=True):
        note = read_json(path.with_suffix(".json"))
        if not isinstance(note, dict):
            log.warning("Checkpoint %s was not finished: going back to the one before.", path.name)
        elif note.get("sha256") != _sha256(path):
            log.warning("Checkpoint %s is damaged (its checksum differs): going back to the one before.", path.name)
        else:
            return int(note["step"]), torch.load(path, map_location="cpu", weights_only=True)
        remove(path.with_suffix(".json"))
        remove(path)
    return None


def last_step(folder: Path) -> int | None:
    """The step of the newest checkpoint that has a checksum, without reading it."""
    steps = [int(m[1]) for p in folder.glob("step_*.json") if (m := re.fullmatch(r"step_(\d+)\.json", p.name))]
    return max(steps, default=None)


def _write(path: Path, state: dict[str, Any]) -> None:
    with open(path, "wb") as handle:
        watched = _Watched(handle)
        try:
            torch.save(state, watched)  # pyright: ignore[reportArgumentType]
        except RuntimeError as e:  # torch hides the OSError of a full disk
            raise watched.error or e from e
        handle.flush()
        os.fsync(handle.fileno())


class _Watched:
    """A file that remembers why a write failed."""

    def __init__(self, handle: BinaryIO) -> None:
        self.handle, self.error = handle, None

    def write(self, data: bytes) -> int:
        try:
            return self.handle.write(data)
        except OSError as e:
            self.error: OSError | None = e
            raise

    def flush(self) -> None:
        self.handle.flush()


def _sha256(path: Path) -> str:
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
