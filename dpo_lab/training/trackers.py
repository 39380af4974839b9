"""Where metrics go: metrics.jsonl in the run folder, always, and one tracker beside it (W&B, TensorBoard, none).

metrics.jsonl is the truth that resuming, reports and curves read; a tracker is a convenience, so nothing that
goes wrong in one may cost the run. One row of the file:

    {"step": 20, "time": 1795408154.72, "train/loss": 0.6712, "train/lr": 5e-05}
"""

import json
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from dpo_lab.config import schema
from dpo_lab.runtime.errors import LabError
from dpo_lab.runtime.files import read_jsonl, write_error, write_jsonl
from dpo_lab.training.wandb_run import first_line, open_wandb, short_tag, shown

log = logging.getLogger(__name__)


class MetricsFile:
    """metrics.jsonl of a run folder: one JSON object a logged step, in one write, so a kill tears the last at most."""

    def __init__(self, path: Path, resume_step: int | None) -> None:
        """Keep the rows up to `resume_step` and drop the rest, which the resumed run logs again; None: start empty."""
        self.path = path
        kept = [] if resume_step is None else [row for row in read_jsonl(path) if row["step"] <= resume_step]
        write_jsonl(path, kept)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Append one row. NaN and infinities, which JSON has no numbers for, become strings that float() reads."""
        row = {"step": step, "time": round(time.time(), 3)} | {name: _json_number(x) for name, x in metrics.items()}
        data = (json.dumps(row, ensure_ascii=False) + "\n").encode()
        try:
            with open(self.path, "ab", buffering=0) as handle:
                while data:
                    data = data[handle.write(data) :]
        except OSError as e:
            raise write_error(self.path, e) from e


class Tracker(Protocol):
    """Takes what a run logs."""

    @property
    def note(self) -> str | None:
        """One line for the run's header: where to look, or why W&B is offline."""
        ...

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Metrics of one step; train and validation metrics of the same step may come in two calls."""
        ...

    def table(self, name: str, columns: list[str], rows: list[list[Any]], step: int) -> None:
        """A table, such as sample answers."""
        ...

    def media(self, name: str, path: Path, step: int) -> None:
        """A page (.html) or a picture, where the tracker shows such."""
        ...

    def finish(self, exit_code: int, summary: Mapping[str, Any]) -> None:
        """End the run, from a `finally`; a second call does nothing."""
        ...


def open_tracker(
    logger: schema.Logger,
    *,
    run_id: str,
    name: str,
    group: str | None,
    tree: dict[str, Any],
    run_dir: Path,
    tags: Sequence[str] = (),
    job_type: str | None = None,
) -> Tracker:
    """The tracker that conf/logger asks for.

    Args:
        logger: conf/logger.
        run_id: of the run, and of what the tracker keeps of it.
        name: what to show.
        group: the sweep's name.
        tree: the config as plain values.
        run_dir: where what is offline is written.
        tags: besides the user's own, e.g. "optim.lr=0.0001".
        job_type: what kind of run it is; None: a training run.
    """
    if logger.name == "none":
        return NoTracker()
    run_dir.mkdir(parents=True, exist_ok=True)  # wandb writes elsewhere, without a word, where it is missing
    if logger.name == "tensorboard":
        return SafeTracker(TensorBoardTracker(run_dir, tree), "TensorBoard")
    what = {"id": run_id, "name": name, "group": logger.group or group, "config": tree}
    what |= {"project": logger.project, "entity": logger.entity, "job_type": job_type}
    what |= {"tags": list(dict.fromkeys(short_tag(tag) for tag in [*logger.tags, *tags] if tag))}
    run = open_wandb(logger.mode, what, run_dir)
    return NoTracker(f"W&B off ({run}).") if isinstance(run, str) else SafeTracker(run, "W&B")


class NoTracker:
    """Takes everything and does nothing."""

    def __init__(self, note: str | None = None) -> None:
        self.note = note

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Do nothing."""

    def table(self, name: str, columns: list[str], rows: list[list[Any]], step: int) -> None:
        """Do nothing."""

    def media(self, name: str, path: Path, step: int) -> None:
        """Do nothing."""

    def finish(self, exit_code: int, summary: Mapping[str, Any]) -> None:
        """Do nothing."""


class SafeTracker:
    """Another tracker whose failures cost a warning, once, and never the run."""

    def __init__(self, inner: Tracker, name: str) -> None:
        self.inner, self.name, self.note = inner, name, inner.note
        self._warned = self._finished = False

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Log, or warn."""
        self._try(lambda: self.inner.log(metrics, step))

    def table(self, name: str, columns: list[str], rows: list[list[Any]], step: int) -> None:
        """Log a table, or warn."""
        self._try(lambda: self.inner.table(name, columns, rows, step))

    def media(self, name: str, path: Path, step: int) -> None:
        """Log a page or a picture, or warn."""
        self._try(lambda: self.inner.media(name, path, step))

    def finish(self, exit_code: int, summary: Mapping[str, Any]) -> None:
        """Finish once, or warn."""
        if not self._finished:
            self._finished = True
            self._try(lambda: self.inner.finish(exit_code, summary))

    def _try(self, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as e:  # a third party's service, socket and disk: there is no narrower list
            if not self._warned:
                self._warned = True
                log.warning("%s failed: %s. The run goes on; metrics.jsonl has every metric.", self.name, first_line(e))


class TensorBoardTracker:
    """Event files in run_dir/tensorboard."""

    def __init__(self, run_dir: Path, tree: dict[str, Any]) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as e:
            raise LabError(
                "logger=tensorboard needs the tensorboard package, which is not installed. "
                'Install it with pip install "dpo_lab[tensorboard]", or choose logger=wandb or logger=none.'
            ) from e
        folder = run_dir / "tensorboard"
        self._writer = SummaryWriter(str(folder))
        self._writer.add_text("config", "```json\n" + json.dumps(tree, indent=2, default=str) + "\n```")
        self.note = f"TensorBoard: tensorboard --logdir {shown(folder)}"

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """One scalar a metric."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def table(self, name: str, columns: list[str], rows: list[list[Any]], step: int) -> None:
        """A markdown table."""
        self._writer.add_text(name, _markdown(columns, rows), step)

    def media(self, name: str, path: Path, step: int) -> None:
        """Nothing: TensorBoard shows no pages."""

    def finish(self, exit_code: int, summary: Mapping[str, Any]) -> None:
        """Write the summary and everything that is buffered."""
        rows = [["exit code", exit_code], *([key, value] for key, value in summary.items())]
        self._writer.add_text("summary", _markdown(["", ""], rows))
        self._writer.close()


def _json_number(value: float) -> float | str:
    number = value if isinstance(value, int) else float(value)
    if math.isfinite(number):
        return number
    return "NaN" if math.isnan(number) else "Infinity" if number > 0 else "-Infinity"


def _markdown(columns: list[str], rows: list[list[Any]]) -> str:
    def line(cells: list[Any]) -> str:
        return "| " + " | ".join(str(x).replace("|", "\\|").replace("\n", "<br>") for x in cells) + " |"

    return "\n".join([line(columns), line(["---"] * len(columns)), *(line(row) for row in rows)])
