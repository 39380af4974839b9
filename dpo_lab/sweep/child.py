"""A trial, seen from inside its process."""

import importlib
import multiprocessing
import os
import sys
import threading
from multiprocessing.process import BaseProcess

from dpo_lab.runtime.forks import die_with
from dpo_lab.sweep.pool import Order


def run(order: Order) -> None:
    """Do what `python -m dpo_lab` does; what it shows goes to console.log in the run folder.

    The process leads a group of its own: a Ctrl-C at the terminal reaches the sweep, which tells its trials.

    Raises:
        SystemExit: with the run's exit code.
    """
    os.setpgid(0, 0)
    if (master := multiprocessing.parent_process()) is not None:
        _end_with(master)
    _redirect(order)
    os.environ.update(order.env)
    os.chdir(order.cwd)
    if order.threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(order.threads)  # of the trial's own children
        import torch

        torch.set_num_threads(order.threads)
    sys.argv = ["dpo_lab", *order.words]
    importlib.import_module("dpo_lab.__main__").trial(list(order.words))


def _end_with(master: BaseProcess) -> None:
    """Nothing of a sweep survives it, however it ends: two sweeps would otherwise meet in one run folder."""
    die_with(os.getppid())  # the fork server, which ends with the sweep
    threading.Thread(target=lambda: (master.join(), os._exit(1)), daemon=True).start()


def _redirect(order: Order) -> None:
    order.folder.mkdir(parents=True, exist_ok=True)
    log = os.open(order.folder / "console.log", os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o644)
    nothing = os.open(os.devnull, os.O_RDONLY)
    sys.stdout.flush()
    sys.stderr.flush()
    for target, source in ((0, nothing), (1, log), (2, log)):
        os.dup2(source, target)
    os.close(log)
    os.close(nothing)
    sys.stdout = open(1, "w", encoding="utf-8", errors="replace", buffering=1, closefd=False)  # noqa: SIM115 - as long as the process
    sys.stderr = open(2, "w", encoding="utf-8", errors="replace", buffering=1, closefd=False)  # noqa: SIM115
