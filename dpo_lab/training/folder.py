"""The run folder: the only thing that a run shows to sweeps, reports and the next call of the same command."""

import os
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dpo_lab.runtime.errors import Interrupted, LabError, OutputError
from dpo_lab.runtime.files import file_lock, read_json, remove, write_json

KEPT = {".hydra", "run.log", "run.lock", "trial.json", "console.log"}  # by overwrite=true


class RunFolder:
    """Paths and status of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metrics = path / "metrics.jsonl"
        self.eval_pairs = path / "eval_pairs.jsonl"
        self.samples = path / "samples.jsonl"
        self.facts = path / "facts.json"
        self.doctor = path / "doctor.json"
        self.checkpoints = path / "checkpoints"
        self.final = path / "final"
        self.control = path / "control.json"

    @property
    def done(self) -> bool:
        """Whether the run has finished and its result is there."""
        status = read_json(self.path / "status.json") or {}
        return status.get("status") == "done" and self.final.is_dir()

    def write_status(self, status: str, reason: str = "", **more: Any) -> None:
        """Status: running, done, failed, pruned or stopped."""
        now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        write_json(
            self.path / "status.json", {"status": status, "reason": reason, "time": now, "pid": os.getpid()} | more
        )

    def clear(self) -> None:
        """Delete what a former run left; its status first, so that a half deleted result never counts as done."""
        remove(self.path / "status.json")
        for entry in self.path.iterdir():
            if entry.name not in KEPT:
                remove(entry)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold run.lock and keep status.json true however the block ends.

        Raises:
            OutputError: another process runs in this folder.
        """
        with file_lock(self.path / "run.lock", wait=False) as alone:
            if not alone:
                raise OutputError(
                    f"Another process is running this very configuration in {self.path} (its pid is in run.lock). "
                    "Wait for it, stop it, or change a setting: another seed has its own folder."
                )
            for litter in [*self.path.glob(".*.tmp"), *self.checkpoints.glob(".*.tmp")]:  # of a call that was killed
                remove(litter)
            try:
                yield
            except Interrupted as e:
                self.write_status(e.status, e.reason)
                raise
            except KeyboardInterrupt:
                self.write_status("stopped", "interrupted twice: ended at once")
                raise
            except LabError as e:
                self._write_failure(str(e), e, e.kind)
                raise
            except Exception as e:
                memory = isinstance(e, MemoryError) or type(e).__name__ == "OutOfMemoryError"  # torch's
                self._write_failure(f"{type(e).__name__}: {e}", e, "oom" if memory else "error")
                raise

    def _write_failure(self, reason: str, e: Exception, kind: str) -> None:
        try:
            self.write_status("failed", reason, kind=kind, traceback=traceback.format_exc())
        except OutputError as second:
            e.add_note(f"(status.json could not be written either: {second})")
