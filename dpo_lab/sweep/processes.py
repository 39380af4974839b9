"""launcher=serial and launcher=processes: trials on this machine, forked from a server that has done the imports."""

import multiprocessing
import os
import signal
from contextlib import suppress
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess

from dpo_lab.sweep import child
from dpo_lab.sweep.pool import Ended, Order, Refused

PRELOAD = ["dpo_lab.sweep.preload"]


class ProcessPool:
    """Up to `n` trials at a time, each a process that is gone with all its memory when the trial ends."""

    def __init__(self, n: int) -> None:
        self.n = n
        self._context = multiprocessing.get_context("forkserver")
        self._processes: dict[str, BaseProcess] = {}

    def warm_up(self) -> None:
        """Start the server, whose imports take some seconds, while there is something else to do."""
        self._context.set_forkserver_preload(PRELOAD)
        forkserver.ensure_running()

    def start(self, order: Order) -> None:
        """Fork a trial."""
        process = self._context.Process(target=child.run, args=(order,), name=order.trial)
        try:
            self.warm_up()
            process.start()
        except (OSError, EOFError) as e:  # no memory or no processes left; EOF: the server could not fork
            raise Refused(
                f"The process of trial {order.trial} could not be started: {e}. Take a lower launcher.n, or end what else "
                "takes memory here."
            ) from e
        self._processes[order.trial] = process

    def ended(self) -> list[Ended]:
        """Those that ended since the last call."""
        gone = {trial: p.exitcode for trial, p in self._processes.items() if p.exitcode is not None}
        for trial in gone:
            self._processes.pop(trial).join()
        return [Ended(trial, code if code >= 0 else 128 - code) for trial, code in gone.items()]

    def signal(self, trial: str, number: int) -> None:
        """To the trial itself, which tells its own children; SIGKILL goes to all of them."""
        process = self._processes.get(trial)
        if process is None or process.pid is None or process.exitcode is not None:
            return
        with suppress(ProcessLookupError):
            if number == signal.SIGKILL:
                with suppress(ProcessLookupError, PermissionError):  # it may not lead its group yet
                    os.killpg(process.pid, number)
            os.kill(process.pid, number)

    def close(self) -> None:
        """Kill what is left, and the server."""
        for trial, process in self._processes.items():
            self.signal(trial, signal.SIGKILL)
            process.join()
        self._processes.clear()
        forkserver._forkserver._stop()  # pyright: ignore[reportAttributeAccessIssue] # it would hold on to its memory
