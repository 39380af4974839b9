"""launcher=ray: a task a trial, on a Ray of this machine or on a cluster by its address.

A worker of Ray runs one task and is gone, and the trial is a process of its own beneath it: what Ray does to its workers'
signals and output does not reach it. Files of a start, its signals among them, are in SWEEP/.ray/TRIAL/N. Trials end with
the sweep that started them.
"""

import logging
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dpo_lab.config.names import did_you_mean
from dpo_lab.runtime.errors import LabError
from dpo_lab.sweep.pool import Ended, Order
from dpo_lab.sweep.remote import Mail, keep

OPTIONS = ("num_gpus", "memory", "resources", "accelerator_type")  # of a task, Ray's; num_cpus is launcher.threads
STORE = 100 * 2**20  # bytes for objects that tasks hand to each other: there are next to none
PROBE_SECONDS = 10.0  # for a cluster to answer
FAREWELL = 10.0  # seconds that trials may take to be gone


class RayPool:
    """Tasks of Ray."""

    def __init__(self, n: int, *, folder: Path, threads: int, address: str | None, options: Mapping[str, Any]) -> None:
        """Connect to a cluster, or start Ray here.

        Args:
            n: trials at a time; whoever starts them keeps to it.
            folder: of the sweep.
            threads: of a trial, where its order does not say.
            address: HOST:PORT of a cluster, "auto" for the one that this machine is part of; None: start one here.
            options: of a task, Ray's; those that are None count as not given.

        Raises:
            LabError: Ray is missing or cannot be reached, or an option is wrong.
        """
        self.n = n
        self._threads = threads
        self._place = folder / ".ray"
        self._options = {name: value for name, value in options.items() if value is not None}
        for name in self._options:
            if name not in OPTIONS:
                meant = did_you_mean(name, OPTIONS) or "."
                raise LabError(
                    f"launcher.options.{name}: launcher=ray has no such option{meant} It takes {', '.join(OPTIONS)}."
                )
        self._tasks: dict[str, tuple[Any, Mail]] = {}
        self._asked: dict[str, int] = {}
        self._ray = _connect(address, n * threads)
        self._keep = self._ray.remote(max_calls=1, max_retries=0)(keep)

    def start(self, order: Order) -> None:
        """Hand a task to Ray, which starts it when there are as many CPUs free as the trial has threads."""
        mail = Mail.create(self._place, order.trial)
        task = self._keep.options(num_cpus=order.threads or self._threads, name=order.trial, **self._options)
        self._tasks[order.trial] = task.remote(order, mail.folder, without=["RAY_"]), mail

    def ended(self) -> list[Ended]:
        """Those that ended since the last call."""
        trials = {task: trial for trial, (task, _) in self._tasks.items()}
        ready = self._ray.wait([*trials], num_returns=len(trials), timeout=0)[0] if trials else []
        gone = [self._outcome(trials[task], task) for task in ready]
        for end in gone:
            del self._tasks[end.trial]
            self._asked.pop(end.trial, None)
        return gone

    def signal(self, trial: str, number: int) -> None:
        """Hand a signal on; a task that still waits for its turn is taken back."""
        if trial not in self._tasks:
            return
        task, mail = self._tasks[trial]
        self._asked[trial] = number
        mail.send(number)
        if not mail.begun:
            self._ray.cancel(task, force=False)

    def close(self) -> None:
        """Kill what is left, and leave Ray."""
        for trial in self._tasks:
            self.signal(trial, 9)
        if self._tasks:
            self._ray.wait([task for task, _ in self._tasks.values()], num_returns=len(self._tasks), timeout=FAREWELL)
        self._tasks.clear()
        self._ray.shutdown()

    def _outcome(self, trial: str, task: Any) -> Ended:
        exceptions = self._ray.exceptions
        try:
            return Ended(trial, *self._ray.get(task))
        except exceptions.TaskCancelledError:
            return Ended(trial, 128 + self._asked.get(trial, 15))
        except exceptions.RayTaskError as e:  # an error of ours, in the worker
            return Ended(trial, 1, _first(e.cause or e))
        except exceptions.RayError as e:  # the worker or its machine is gone, or Ray killed it for its memory
            return Ended(trial, 137, f"{type(e).__name__}: {_first(e)}")


def _connect(address: str | None, cpus: int) -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")  # 15 otherwise: a trial would wait for whatever else runs here
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # or trials without num_gpus would see no GPU
    try:
        import ray  # pyright: ignore[reportMissingImports]
    except ImportError as e:
        raise LabError(
            'launcher=ray needs the ray package, which is not installed. Install it with pip install "dpo_lab[ray]", '
            "or choose launcher=serial or launcher=processes."
        ) from e
    if address is not None and ":" in address:
        _knock(address)
    own: dict[str, Any] = {"num_cpus": cpus, "object_store_memory": STORE} if address is None else {}
    try:
        ray.init(
            address=address or "local",
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.WARNING,
            **own,
        )
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as e:
        where = f"the Ray cluster at {address} cannot be reached" if address else "Ray could not be started here"
        raise LabError(f"launcher=ray: {where}: {_first(e)}") from e
    return ray


def _knock(address: str) -> None:
    """Raise if nobody answers at HOST:PORT: Ray itself would try for many minutes."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=PROBE_SECONDS).close()
    except (OSError, ValueError) as e:
        raise LabError(f"launcher=ray: the Ray cluster at {address} cannot be reached: {_first(e)}") from e


def _first(error: BaseException) -> str:
    """The first line of an error's message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
