"""A run of Weights & Biases, online where that is possible within seconds, else offline.

A W&B run has the id of ours, and is opened with resume="allow": a run that goes on after an interruption goes on in W&B
too. Online, W&B leaves out the steps that it had already, which are the same ones again. Offline, each call leaves a
folder wandb/offline-run-TIME-ID of its own with the steps of that call, all of one id and each marked as resuming, which
`wandb sync` joins on the server when they are given in the order of their times.
"""

import http.client
import logging
import shlex
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from dpo_lab.runtime.errors import LabError

log = logging.getLogger(__name__)

PROBE_SECONDS = 4  # for a server that may not be there
INIT_SECONDS = 15  # for one that answered the probe
TAG_LENGTH = 64  # characters, W&B's limit
UPLOAD_SECONDS = 60  # for the rest of the data at the end of a run; it stays on disk for `wandb sync`


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

    def media(self, name: str, path: Path, step: int) -> None:
        """W&B's copy of a page, as it is, or of a picture."""
        import wandb

        shown = wandb.Html(str(path), inject=False) if path.suffix == ".html" else wandb.Image(str(path))
        self._run.log({name: shown}, step=step)

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
                _release()


def open_wandb(asked: str, what: dict[str, Any], run_dir: Path) -> WandbTracker | str:
    """A run, online if asked for and possible within seconds, else offline with the reason in its note.

    Args:
        asked: logger.mode.
        what: of `wandb.init`.
        run_dir: where the files of the run go.

    Returns:
        the run, or why there is none.

    Raises:
        LabError: the wandb package is missing.
    """
    try:
        mode, reason = _choose_mode(asked)
        if mode == "disabled":
            return reason
        if mode == "online":
            try:
                return _start(mode, reason, what, run_dir)
            except Exception as e:  # CommError, UsageError, and errors of its service that are not wandb.Error
                mode, reason = "offline", first_line(e)
                _release()  # its service still holds the run's id
        return _start(mode, reason, what, run_dir)
    except ImportError as e:
        raise LabError(
            f"logger=wandb needs the wandb package, which cannot be imported: {first_line(e)}. "
            "Install it with pip install wandb, or choose logger=none."
        ) from e
    except Exception as e:  # no service, no home folder, ...: errors without a common class
        return first_line(e)


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
        return "offline", first_line(e)
    silence = _unreachable(settings.base_url)
    return ("offline", silence) if silence else ("online", "")


def _start(mode: str, reason: str, what: dict[str, Any], run_dir: Path) -> WandbTracker:
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
    return WandbTracker(run, mode, reason, shown(folder))


def _release() -> None:
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
        return f"{base_url} cannot be reached: {getattr(cause, 'strerror', None) or first_line(cause)}"


def short_tag(tag: str) -> str:
    """At most as long as W&B allows: one tag that is longer would cost the whole run its tracker."""
    half = (TAG_LENGTH - 1) // 2
    return tag if len(tag) <= TAG_LENGTH else f"{tag[: TAG_LENGTH - 1 - half]}…{tag[-half:]}"


def first_line(e: BaseException | str) -> str:
    """The first line of an error's message."""
    lines = str(e).strip().splitlines()
    return (lines[0][:200] if lines else type(e).__name__).rstrip(".")


def shown(path: Path) -> str:
    """A path as the user would type it: relative if it lies below the working directory."""
    absolute = path.absolute()
    return str(absolute.relative_to(Path.cwd()) if absolute.is_relative_to(Path.cwd()) else absolute)
