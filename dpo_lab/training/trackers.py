"""Where metrics go: metrics.jsonl in the run folder, always, and one tracker beside it (W&B, TensorBoard, none).

metrics.jsonl is the truth that resuming, reports and curves read; a tracker is a convenience, so nothing that
goes wrong in one may cost the run. One row of the file:

    {"step": 20, "time": 1795408154.72, "train/loss": 0.6712, "train/lr": 5e-05}
"""

import http.client
import json
import logging
import math
import shlex
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Protocol

from dpo_lab.config import schema
from dpo_lab.runtime.errors import LabError
from dpo_lab.runtime.files import read_jsonl, write_error, write_jsonl

log = logging.getLogger(__name__)

PROBE_SECONDS = 4  # for a server that may not be there
INIT_SECONDS = 15  # for one that answered the probe
UPLOAD_SECONDS = 60  # for the rest of the data at the end of a run; it stays on disk for `wandb sync`


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
) -> Tracker:
    """The tracker that conf/logger asks for. `group` is the sweep's name; `tree` is the config as plain values."""
    if logger.name == "none":
        return NoTracker()
    run_dir.mkdir(parents=True, exist_ok=True)  # wandb writes elsewhere, without a word, where it is missing
    if logger.name == "tensorboard":
        return SafeTracker(TensorBoardTracker(run_dir, tree), "TensorBoard")
    what = {"id": run_id, "name": name, "group": logger.group or group, "config": tree}
    what |= {"project": logger.project, "entity": logger.entity, "tags": list(logger.tags)}
    return _open_wandb(logger.mode, what, run_dir)


class NoTracker:
    """Takes everything and does nothing."""

    def __init__(self, note: str | None = None) -> None:
        self.note = note

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Do nothing."""

    def table(self, name: str, columns: list[str], rows: list[list[Any]], step: int) -> None:
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
                log.warning("%s failed: %s. The run goes on; metrics.jsonl has every metric.", self.name, _line(e))


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
        self.note = f"TensorBoard: tensorboard --logdir {_shown(folder)}"

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """One scalar a metric."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def table(self, name: str, columns: list[str], rows: list[list[Any]], step: int) -> None:
        """A markdown table."""
        self._writer.add_text(name, _markdown(columns, rows), step)

    def finish(self, exit_code: int, summary: Mapping[str, Any]) -> None:
        """Write the summary and everything that is buffered."""
        rows = [["exit code", exit_code], *([key, value] for key, value in summary.items())]
        self._writer.add_text("summary", _markdown(["", ""], rows))
        self._writer.close()


class WandbTracker:
    """One W&B run, online or offline. Runs open at the same time, as stacked trials are, share the mode."""

    opened: ClassVar[list["WandbTracker"]] = []  # and not yet finished, in this process

    def __init__(self, run: Any, mode: str, reason: str, folder: str) -> None:
        self._run, self.mode, self.reason, self._sync = run, mode, reason, f"wandb sync {shlex.quote(folder)}"
        because = f" ({reason})" if reason else ""
        self.note: str | None = f"W&B: {run.url}" if mode == "online" else f"W&B offline{because}: {self._sync}"
        WandbTracker.opened.append(self)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Merge into the row of `step`."""
        self._run.log(dict(metrics), step=step)

    def table(self, name: str, columns: list[str], rows: list[list[Any]], step: int) -> None:
        """A W&B table."""
        import wandb

        table = wandb.Table(columns=[*columns], data=[*rows], allow_mixed_types=True)
        self._run.log({name: table}, step=step)

    def finish(self, exit_code: int, summary: Mapping[str, Any]) -> None:
        """Write the summary and end the run, which would otherwise stay open as long as the process."""
        WandbTracker.opened.remove(self)
        try:
            self._run.summary.update(dict(summary))
        finally:
            try:
                self._run.finish(exit_code=exit_code)
            except TimeoutError as e:
                raise LabError(f"the upload takes over {UPLOAD_SECONDS} s; {self._sync} uploads the rest") from e
            finally:
                _release_wandb()


def _open_wandb(asked: str, what: dict[str, Any], run_dir: Path) -> Tracker:
    """Online if asked for and possible within seconds, else offline with the reason in the note; never an error."""
    try:
        mode, reason = _choose_mode(asked)
        if mode == "disabled":
            return NoTracker(f"W&B off ({reason}).")
        if mode == "online":
            try:
                return _wandb_run(mode, reason, what, run_dir)
            except Exception as e:  # CommError, UsageError, and errors of its service that are not wandb.Error
                mode, reason = "offline", _line(e)
                _release_wandb()  # its service still holds the run's id
        return _wandb_run(mode, reason, what, run_dir)
    except ImportError as e:
        raise LabError(
            f"logger=wandb needs the wandb package, which cannot be imported: {_line(e)}. "
            "Install it with pip install wandb, or choose logger=none."
        ) from e
    except Exception as e:  # no service, no home folder, ...: errors without a common class
        return NoTracker(f"W&B off ({_line(e)}).")


def _choose_mode(asked: str) -> tuple[str, str]:
    """The mode to run in (online, offline, disabled), and why it is not the one asked for."""
    import wandb

    if WandbTracker.opened:
        return WandbTracker.opened[-1].mode, WandbTracker.opened[-1].reason
    settings = wandb.setup(wandb.Settings(silent=True)).settings  # this process, until its last run is finished
    if asked == "offline":
        return "offline", ""
    if asked == "auto" and settings.mode in ("offline", "dryrun", "disabled"):
        return ("disabled" if settings.mode == "disabled" else "offline"), f"wandb's own mode is {settings.mode}"
    if asked == "online":
        wandb.setup(wandb.Settings(mode="online"))
    try:
        if not wandb.login(prompt=False, verify=False):
            return "offline", "no API key" if asked == "auto" else "no API key; log in with: wandb login"
    except wandb.Error as e:  # a malformed key
        return "offline", _line(e)
    silence = _unreachable(settings.base_url)
    return ("offline", silence) if silence else ("online", "")


def _wandb_run(mode: str, reason: str, what: dict[str, Any], run_dir: Path) -> Tracker:
    import wandb

    # mode here too: wandb's own telemetry follows this one, and would wait for a silent server at exit
    wandb.setup(wandb.Settings(silent=True, mode="online" if mode == "online" else "offline"))
    settings = wandb.Settings(
        silent=True,
        console="off",
        save_code=False,
        reinit="create_new",
        init_timeout=INIT_SECONDS,
        finish_timeout=UPLOAD_SECONDS,
        finish_timeout_raises=True,
    )
    run = wandb.init(**what, resume="allow", dir=str(run_dir.absolute()), settings=settings)
    folder = run_dir / "wandb" / Path(run.settings.sync_dir).name
    return SafeTracker(WandbTracker(run, mode, reason, _shown(folder)), "W&B")


def _release_wandb() -> None:
    """Stop wandb's service, so that the next run starts afresh, unless other runs of this process use it."""
    import wandb

    if not WandbTracker.opened:
        try:
            wandb.teardown()
        except (Exception, SystemExit) as e:  # it exits the process if its service did not end well
            log.debug("wandb.teardown: %r", e)


def _unreachable(base_url: str) -> str | None:
    """Why the W&B server does not answer, or None if it does. wandb itself needs 100 s to notice."""
    answer = [f"{base_url} does not answer within {PROBE_SECONDS} s"]

    def probe() -> None:
        answer[0] = _probe(base_url)

    thread = threading.Thread(target=probe, daemon=True)  # no timeout of urllib bounds a name lookup
    thread.start()
    thread.join(PROBE_SECONDS)
    return answer[0] or None


def _probe(base_url: str) -> str:
    """Empty if the server answers, else why it does not."""
    query = urllib.request.Request(
        base_url.rstrip("/") + "/graphql",
        data=b'{"query": "{__typename}"}',
        headers={"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(query, timeout=PROBE_SECONDS):
            return ""
    except urllib.error.HTTPError as e:
        return f"{base_url} answers HTTP {e.code}" if e.code >= 500 else ""
    except (OSError, http.client.HTTPException) as e:
        cause = getattr(e, "reason", e)
        if isinstance(cause, ssl.SSLError):
            return ""  # someone answers; wandb has its own certificate settings
        return f"{base_url} cannot be reached: {getattr(cause, 'strerror', None) or _line(cause)}"


def _json_number(value: float) -> float | str:
    number = value if isinstance(value, int) else float(value)
    if math.isfinite(number):
        return number
    return "NaN" if math.isnan(number) else "Infinity" if number > 0 else "-Infinity"


def _markdown(columns: list[str], rows: list[list[Any]]) -> str:
    def line(cells: list[Any]) -> str:
        return "| " + " | ".join(str(x).replace("|", "\\|").replace("\n", "<br>") for x in cells) + " |"

    return "\n".join([line(columns), line(["---"] * len(columns)), *(line(row) for row in rows)])


def _line(e: BaseException | str) -> str:
    """The first line of an error's message."""
    lines = str(e).strip().splitlines()
    return (lines[0][:200] if lines else type(e).__name__).rstrip(".")


def _shown(path: Path) -> str:
    """A path as the user would type it: relative if it lies below the working directory."""
    absolute = path.absolute()
    return str(absolute.relative_to(Path.cwd()) if absolute.is_relative_to(Path.cwd()) else absolute)
