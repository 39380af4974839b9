"""The trials of a sweep, from the table of what is there to the report."""

import logging
import os
import shlex
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from dpo_lab.config.cli import Command
from dpo_lab.config.rules.sweep import never_prunes
from dpo_lab.config.schema import Config
from dpo_lab.runtime.errors import LabError, OutputError
from dpo_lab.runtime.facts import git_commit
from dpo_lab.runtime.files import read_json, write_json
from dpo_lab.sweep import launch
from dpo_lab.sweep.book import Book, in_common
from dpo_lab.sweep.death import mark_dead
from dpo_lab.sweep.past import Past
from dpo_lab.sweep.patience import Patience
from dpo_lab.sweep.plan import Plan
from dpo_lab.sweep.points import Asked, Points, trial_words
from dpo_lab.sweep.pool import Ended, Order, Refused
from dpo_lab.sweep.prune import History, Pruner
from dpo_lab.sweep.screen import Screen, first_line
from dpo_lab.sweep.state import ENDED, State, is_to_run, was_told
from dpo_lab.sweep.trial import FILE, Live

log = logging.getLogger(__name__)
TICK = 0.1  # seconds between looks at the processes
BETWEEN = 1.0  # seconds between looks at what the trials write
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Master:
    """Starts trials, watches them, tells some to end, and writes down what became of them."""

    def __init__(self, command: Command, config: Config, folder: Path, name: str) -> None:
        self.command, self.config, self.folder, self.name = command, config, folder, name
        self.points = Points(command)
        self.trials: dict[str, Live] = {}
        self.waiting: deque[Live] = deque()
        self.running: dict[str, int] = {}  # trial -> its slot
        self.elsewhere: set[str] = set()  # trials whose run another process holds
        self.received: int | None = None  # a signal
        self.halt = ""  # why no more trials are started
        self.patience = Patience()
        self.doubted = False  # whether it was said that pruning cannot act
        self.looked = 0.0

    def go(self) -> int:
        """Everything, in order; returns the exit code."""
        book = Book.open(self.folder, self.name)
        book.agree(in_common(self.points.corners()))
        self.points.known = tuple(book.axes)
        self.plan = Plan(self.config.sweeper, self.points, self.folder)
        p = self.config.prune
        self.pruner = None
        if p.name != "none":
            self.pruner = Pruner(p.name, metric=p.metric, first_step=p.first_step, startup=p.startup, factor=p.factor)
        self.pool = launch.open_pool(self.config.launcher, self.folder)
        try:
            self._open(book)
            with self._listening(), self.screen.live():
                self._loop()
        finally:
            self.pool.close()
        self._write(book)
        self.screen.outcome(self.halt)
        self._report()
        return self._exit_code()

    # -- before

    def _open(self, book: Book) -> None:
        """Find out what is there, write down what is asked for, and show both."""
        for point in self.plan.points:
            self._add(self.points.ask(point))
        book.calls_now(f"python -m dpo_lab {shlex.join(sys.argv[1:])}")
        self._write(book)
        records = [read_json(file) for file in self.folder.glob(f"*/{FILE}")]
        numbers = [r["number"] for r in records if isinstance(r, dict) and isinstance(r.get("number"), int)]
        self.next_number = max(numbers, default=-1) + 1
        self.screen = Screen(self.name, self.folder, self.trials, n=self.pool.n)
        self.screen.total = self.plan.total
        plans = {live.id: plan for live in self.trials.values() if (plan := self._becomes(live))}
        if self.pruner is not None:
            self.past = Past(self.folder, self.trials)
        self.screen.table(plans, len(records) - sum((live.folder / FILE).exists() for live in self.trials.values()))

    def _write(self, book: Book) -> None:
        lives = self.trials.values()
        keys = [*book.axes, *(axis.key for axis in self.points.axes)]
        book.meet({key: [live.axes[key] for live in lives if key in live.axes] for key in keys})
        book.overrides, book.commit = list(self.points.fixed), git_commit()
        parts = ("launcher", "sweeper", "study", "prune")
        book.settings = {key: getattr(self.config, key).model_dump() for key in parts}
        book.write()

    def _add(self, asked: Asked) -> Live:
        """Take a trial in; two points may be one run."""
        if asked.id in self.trials:
            return self.trials[asked.id]
        live = Live.at(asked, self.folder / asked.id)
        self.trials[live.id] = live
        if live.state.name == "running":
            self.elsewhere.add(live.id)
        elif self._runs(live):
            live.queued = True
            (self.waiting.appendleft if live.state.name == "interrupted" else self.waiting.append)(live)
        return live

    def _runs(self, live: Live) -> bool:
        """Whether a trial is to be started, from its state."""
        return self.config.overwrite or is_to_run(live.state, self.config.sweep.retry)

    def _becomes(self, live: Live) -> str:
        """What becomes of a trial that is not new, for the table."""
        name, reason = live.state.name, first_line(live.state.reason)
        because = f": {reason}" if reason else ""
        if name == "new":
            return ""
        if name == "running":
            return "running in another process: waited for"
        if name == "interrupted":
            where = f"from step {live.tail.step}" if live.tail.step else "from its beginning"
            return f"interrupted, goes on {where}"
        if live.queued:
            return f"{name}, runs again{because if name == 'failed' else ''}"
        return f"{name}, left as it is{because}" if name == "failed" else f"{name}, skipped{because}"

    # -- while it runs

    def _loop(self) -> None:
        while True:
            for ended in self.pool.ended():
                self._settle(ended)
            self._fill()
            if time.monotonic() - self.looked >= BETWEEN:
                self.looked = time.monotonic()
                self._watch()
            if not self.running and (self.halt or not (self.waiting or self.elsewhere)):
                return
            time.sleep(TICK)

    def _fill(self) -> None:
        """Start trials while there is room, as far as the launcher takes them. No error of it may end those that run."""
        try:
            while not self.halt and len(self.running) < self.pool.n and self.patience.asks():
                if not self.waiting:
                    point = self.plan.ask([*self.trials.values()])
                    self.screen.total = self.plan.total
                    if point is None:
                        return
                    before = len(self.trials)
                    self._add(self.points.ask(point))
                    if len(self.trials) == before:  # two texts of one setting
                        self.plan.total -= 1
                    continue
                live = self.waiting.popleft()
                try:
                    self._start(live)
                except Refused as e:
                    self.waiting.appendleft(live)
                    self._refused(e)
        except LabError as e:
            self.halt = self.halt or str(e)

    def _refused(self, e: Refused) -> None:
        """Go on with what runs; without more where nothing does and none is taken."""
        self.screen.n = max(1, len(self.running))
        if not self.halt and self.patience.refused(e, idle=not (self.running or self.elsewhere)):
            self.halt = str(e)

    def _start(self, live: Live) -> None:
        slot = next(i for i in range(len(self.running) + 1) if i not in self.running.values())
        if live.number is None:
            live.number, self.next_number = self.next_number, self.next_number + 1
        live.write()
        words = trial_words(live.asked, self.command.flags, sweep=self.name, folder=str(live.folder))
        launcher = self.config.launcher
        self.pool.start(
            Order(
                live.id,
                words,
                live.folder,
                Path.cwd(),
                threads=launch.threads(launcher),
                env=launch.environment(launcher, slot),
            )
        )
        self.running[live.id], live.state = slot, State("running")
        live.began, live.queued = time.monotonic(), False
        self.patience.taken()
        self.screen.n = max(self.screen.n, len(self.running))
        self.screen.began(live)
        if self.received is not None:  # while it was started, so that it was not told
            self.pool.signal(live.id, signal.SIGTERM)

    def _settle(self, ended: Ended) -> None:
        """Write down what became of a trial whose process is gone."""
        live = self.trials[ended.trial]
        self.running.pop(live.id)
        self.patience.freed()
        live.seconds = time.monotonic() - live.began
        live.look()
        if live.state.name == "running":  # refused: somebody else holds the run
            self.elsewhere.add(live.id)
            return
        asked_to_end = self.received is not None or ended.code in (128 + signal.SIGINT, 128 + signal.SIGTERM)
        obeyed = ended.code == 0 and was_told(live.folder)  # control.json; code 0 alone may be anybody's sys.exit()
        try:
            if live.state.name not in ENDED and not (asked_to_end or obeyed):
                if not mark_dead(live.folder, ended):  # somebody else has taken the run since
                    self.elsewhere.add(live.id)
                    return
                live.look()
            live.write(ended.code)
        except OutputError as e:
            self.halt = self.halt or str(e)
        self.screen.ended(live)
        if live.state.name == "failed":
            if live.state.kind == "disk":
                self.halt = self.halt or first_line(live.state.reason)
            elif self.config.sweep.on_failure == "stop" and not self.halt:
                self.halt = "A trial failed, and sweep.on_failure=stop"
                self._tell(signal.SIGTERM)

    def _watch(self) -> None:
        """Read what the trials have written, and act on it."""
        for id in self.running:
            self.trials[id].tail.look()
        for id in self.elsewhere:
            self.trials[id].look()
        for id in [id for id in self.elsewhere if self.trials[id].state.name != "running"]:
            self.elsewhere.remove(id)
            self.patience.freed()
            if self._runs(self.trials[id]):
                self.waiting.append(self.trials[id])
        if self.pruner is not None and not self.halt:
            self._doubt()
            histories = [
                History(t.id, t.number, t.state.name, t.tail.history.get(self.config.prune.metric, {}))
                for t in self.trials.values()
                if t.number is not None
            ]
            histories += self.past.histories(self.config.prune.metric)
            for id, why in self.pruner.look(histories).items():
                if id in self.running:
                    self._prune(self.trials[id].folder / "control.json", why)

    def _doubt(self) -> None:
        """Say, once, that pruning cannot act: where the steps come from epochs, the door did not know their number."""
        for live in (self.trials[id] for id in self.running):
            if self.doubted or (steps := live.steps()) is None:
                continue
            asked = live.facts.get("config", {}).get("trainer", {})  # it may be an axis
            every = asked.get("eval_every", self.config.trainer.eval_every)
            if why := never_prunes(self.config.prune, every=every, steps=steps):
                log.warning("%s", why)
                self.doubted = True

    def _prune(self, control: Path, why: str) -> None:
        try:
            if not control.exists():
                write_json(control, {"action": "prune", "reason": why})
        except OutputError as e:
            self.halt = self.halt or str(e)

    # -- the end

    @contextmanager
    def _listening(self) -> Iterator[None]:
        """Pass SIGINT and SIGTERM on to the trials while the block runs; a second one ends all at once."""
        former = {number: signal.signal(number, self._on_signal) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if self.received is not None:
            self._tell(signal.SIGKILL)
            return
        self.received, self.halt = number, f"{name} received"
        if self.running:
            log.warning("%s: the trials end at their next step, with a checkpoint (again: at once)", name)
        self._tell(signal.SIGTERM)

    def _tell(self, number: int) -> None:
        for id in self.running:
            self.pool.signal(id, number)

    def _report(self) -> None:
        """The answer, as far as there is one."""
        if not any(live.state.name == "done" for live in self.trials.values()):
            return
        from dpo_lab.sweep.report import show, write_report

        try:
            show(write_report(self.folder), self.screen.console)
        except OutputError as e:
            log.warning("The report could not be written: %s", e)
            return
        if self.config.logger.name == "wandb" and self.received is None:
            command = [sys.executable, "-m", "dpo_lab.training.publish", str(self.folder)]
            environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
            subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, check=False)

    def _exit_code(self) -> int:
        if self.received is not None:
            return 128 + self.received
        names = {live.state.name for live in self.trials.values()}
        return int(bool(self.halt) or not names.isdisjoint({"failed", "interrupted"}))
