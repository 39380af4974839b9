"""Trials that ended without being able to write down why."""

import signal
import time
from pathlib import Path

from dpo_lab.runtime.files import file_lock, write_json
from dpo_lab.sweep.pool import Ended


def mark_dead(folder: Path, ended: Ended) -> bool:
    """Write the status.json of a run whose process is gone.

    Args:
        folder: of the run.
        ended: how its process ended.

    Returns:
        whether it was written: what ended may have been a second process, which the run's own had turned away.

    Raises:
        OutputError: it cannot be written.
    """
    kind, number = "error", ended.code - 128
    if ended.reason:
        reason = ended.reason
    elif number == signal.SIGKILL:
        reason = "killed by the system (signal 9), most likely because the memory was full"
    elif number > 0:
        reason = f"ended by signal {number} ({_name(number)})"
    else:
        reason = f"it ended with exit code {ended.code}: {_last_words(folder)}"
    if number == signal.SIGKILL:
        kind = "killed"
    now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    with file_lock(folder / "run.lock", wait=False) as alone:
        if alone:
            write_json(folder / "status.json", {"status": "failed", "reason": reason, "time": now, "kind": kind})
    return alone


def _last_words(folder: Path) -> str:
    """The last line that a trial wrote."""
    try:
        lines = (folder / "console.log").read_text(encoding="utf-8", errors="replace").strip().splitlines()
    except OSError:
        lines = []
    return lines[-1] if lines else "it said nothing"


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "unknown"
