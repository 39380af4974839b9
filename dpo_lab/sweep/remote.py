"""A trial in the hands of another library (submitit, Ray), on this machine or another one.

The library calls `keep` in a process of its own, which starts the trial in a second process, as fresh as that of any
run, and waits for it. So the library's signal handlers, modules and logs do not reach the trial, and the exit code is the
trial's own. Signals travel as lines of a file: the machines share the storage of the run folders anyway, and no machine
needs a way to reach the processes of another.
"""

import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from types import FrameType

from dpo_lab.runtime.files import write_error, write_json
from dpo_lab.runtime.forks import die_with
from dpo_lab.sweep import child
from dpo_lab.sweep.pool import Order

log = logging.getLogger(__name__)
PULSE = 0.2  # seconds between looks at the file of signals


class Mail:
    """The folder of one start of a trial: the sweep puts signals in, the keeper says that the trial has begun."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._signals, self._begun = folder / "signals", folder / "begun"
        self._seen = 0

    @classmethod
    def create(cls, place: Path, trial: str) -> "Mail":
        """A new folder PLACE/TRIAL/1, 2, ...: one for each time that the trial is started."""
        starts = [int(path.name) for path in (place / trial).glob("*") if path.name.isdigit()]
        folder = place / trial / str(max(starts, default=0) + 1)
        try:
            folder.mkdir(parents=True)
            (folder / "signals").touch()  # network file systems remember for a while that a file was missing
        except OSError as e:
            raise write_error(folder, e) from e
        return cls(folder)

    def send(self, number: int) -> bool:
        """Put a signal in; whether that could be done. On a full disk it cannot, which must not end the sweep."""
        try:
            with open(self._signals, "ab", buffering=0) as handle:
                handle.write(f"{number}\n".encode())
        except OSError as e:
            log.warning(
                "%s could not be sent to a trial. %s", signal.Signals(number).name, write_error(self._signals, e)
            )
            return False
        return True

    def received(self) -> list[int]:
        """The signals since the last call."""
        try:
            whole, _, _ = self._signals.read_text(encoding="ascii").rpartition("\n")
            numbers = [int(line) for line in whole.splitlines()]
        except (OSError, ValueError):
            return []
        new, self._seen = numbers[self._seen :], len(numbers)
        return new

    def begin(self) -> None:
        """Say that the keeper is there."""
        self._begun.write_text(f"{os.getpid()}\n", encoding="ascii")

    @property
    def begun(self) -> bool:
        """Whether the keeper is there, or was."""
        return self._begun.exists()


def keep(
    order: Order, folder: Path, *, without: Sequence[str] = (), end_on: Sequence[int] = (), master: int | None = None
) -> tuple[int, str]:
    """Run a trial and wait for it.

    Args:
        order: the trial.
        folder: that of its `Mail`.
        without: beginnings of the names of environment variables that the trial does not get.
        end_on: signals to this process on which the trial ends with a checkpoint.
        master: a process of this machine; the trial is killed when it is gone.

    Returns:
        the exit code as a shell shows it, and why the trial was ended, where that was not by its sweep.
    """
    mail = Mail(folder)
    with _noting(end_on) as noted:
        mail.begin()
        if early := [*mail.received(), *noted]:
            return 128 + early[0], _reason(noted)
        trial = _start(order, folder, without)
        told = False
        try:
            while True:
                with suppress(subprocess.TimeoutExpired):
                    code = trial.wait(PULSE)
                    return (code if code >= 0 else 128 - code), _reason(noted)
                for number in mail.received():
                    told = True
                    _send(trial, number)
                if noted and not told:  # once: a second one would end the trial without a checkpoint
                    told = True
                    _send(trial, signal.SIGTERM)
                if master is not None and not _alive(master):
                    _send(trial, signal.SIGKILL)
        finally:
            _send(trial, signal.SIGKILL)  # what it left behind, or itself, where this process is told to end
            trial.wait()


def _start(order: Order, folder: Path, without: Sequence[str]) -> "subprocess.Popen[bytes]":
    env = {name: value for name, value in os.environ.items() if not name.startswith(tuple(without))}
    paper = folder / "order.json"
    write_json(paper, asdict(order) | {"parent": os.getpid()})
    order.folder.mkdir(parents=True, exist_ok=True)
    with open(order.folder / "console.log", "ab") as console:  # for what goes wrong before the trial takes it over
        command = [sys.executable, "-m", "dpo_lab.sweep.remote", str(paper.absolute())]
        return subprocess.Popen(
            command, cwd=order.cwd, env=env, stdin=subprocess.DEVNULL, stdout=console, stderr=console
        )


def _send(trial: "subprocess.Popen[bytes]", number: int) -> None:
    """To the trial, which tells its own processes; SIGKILL goes to all of them, also after its end."""
    if number == signal.SIGKILL:
        with suppress(ProcessLookupError, PermissionError):  # it may not lead its group yet
            os.killpg(trial.pid, number)
    trial.send_signal(number)


@contextmanager
def _noting(numbers: Sequence[int]) -> Iterator[list[int]]:
    """Note these signals instead of dying of them, while the block runs."""
    noted: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        noted.append(number)

    if threading.current_thread() is not threading.main_thread():
        yield noted
        return
    former = {number: signal.signal(number, note) for number in numbers}
    try:
        yield noted
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def _reason(noted: Sequence[int]) -> str:
    return f"the machine's scheduler ended it ({signal.Signals(noted[0]).name})" if noted else ""


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def main() -> None:
    """`python -m dpo_lab.sweep.remote ORDER`: the trial itself, as `keep` starts it."""
    facts = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    die_with(facts.pop("parent"))
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the sweep may have started the library deaf to Ctrl-C
    words, folder, cwd = tuple(facts.pop("words")), Path(facts.pop("folder")), Path(facts.pop("cwd"))
    child.run(Order(words=words, folder=folder, cwd=cwd, **facts))


if __name__ == "__main__":
    main()
