"""What a run folder says of its trial, however much of it is there."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpo_lab.runtime.files import is_locked, read_json

ENDED = ("done", "failed", "pruned")


@dataclass(frozen=True)
class State:
    """Of a trial: new, running, interrupted, done, failed or pruned, and why.

    Attributes:
        kind: of a failure: oom, guard, disk, killed or error.
    """

    name: str
    reason: str = ""
    kind: str = ""
    metrics: dict[str, Any] | None = None


def state_of(folder: Path) -> State:
    """What became of the run in a folder. A run that nobody holds and that has no end was interrupted."""
    if is_locked(folder / "run.lock"):
        return State("running")
    status = read_json(folder / "status.json")
    if not isinstance(status, dict):
        begun = (folder / "metrics.jsonl").exists() or (folder / "checkpoints").is_dir()
        return State("interrupted" if begun else "new")
    name, reason = str(status.get("status")), str(status.get("reason") or "")
    if name == "done" and (folder / "final").is_dir():
        metrics = status.get("metrics")
        return State("done", metrics=metrics if isinstance(metrics, dict) else {})
    if name in ("failed", "pruned"):
        return State(name, reason, str(status.get("kind") or "error") if name == "failed" else "")
    return State("interrupted", reason)


def was_told(folder: Path) -> bool:
    """Whether the run says that it ended because it was asked to, by a signal or by control.json."""
    status = read_json(folder / "status.json")
    return isinstance(status, dict) and status.get("status") == "stopped"


def is_to_run(state: State, retry: str) -> bool:
    """Whether a sweep starts a trial that it finds in this state.

    Args:
        state: of the trial.
        retry: failed: again what failed, but for what a guard stopped, whose numbers would collapse again; oom: what ran
            out of memory; none: nothing.
    """
    if state.name == "failed":
        return (retry == "failed" and state.kind != "guard") or (retry == "oom" and state.kind in ("oom", "killed"))
    return state.name in ("new", "interrupted")


def number(value: Any) -> float:
    """A metric as metrics.jsonl has it: NaN and infinities are strings there."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan
