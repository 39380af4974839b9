"""The pool that conf/launcher asks for, and what of the machine each of its trials gets."""

import os
from pathlib import Path

from dpo_lab.config.sweep_schema import Launcher
from dpo_lab.sweep.pool import Pool
from dpo_lab.sweep.processes import ProcessPool

CORES_A_TRIAL = 4  # of launcher.n=auto on a CPU: matrix products use as many well
JOBS = 1000  # of launcher.n=auto in a queue that does its own counting


def open_pool(launcher: Launcher, folder: Path) -> Pool:
    """The pool; its libraries are loaded, and nothing has been started but a server that imports what trials need.

    Args:
        launcher: what was asked for.
        folder: the sweep's.

    Raises:
        LabError: its packages are not installed, or it cannot be reached.
    """
    if launcher.name in ("serial", "processes"):
        pool = ProcessPool(count(launcher))
        pool.warm_up()
        return pool
    if launcher.name == "ray":
        from dpo_lab.sweep.ray_pool import RayPool

        n, share = count(launcher), threads(launcher) or cores()
        return RayPool(n, folder=folder, threads=share, address=launcher.address, options=launcher.options)
    from dpo_lab.sweep.cluster import SubmititPool

    return SubmititPool(
        count(launcher), folder=folder, local=launcher.name == "submitit_local", options=launcher.options
    )


def count(launcher: Launcher) -> int:
    """Trials at a time."""
    if launcher.n != "auto":
        return launcher.n
    if launcher.name == "serial":
        return 1
    if launcher.name == "slurm":
        return JOBS
    return len(gpus()) or max(1, cores() // CORES_A_TRIAL)


def threads(launcher: Launcher) -> int | None:
    """CPU threads of a trial; None: as many as it would take alone."""
    if launcher.threads != "auto":
        return launcher.threads
    n = count(launcher)
    return None if n == 1 or launcher.name == "slurm" else max(1, cores() // n)


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def gpus() -> list[str]:
    """CUDA devices by the names that CUDA_VISIBLE_DEVICES takes, found without touching them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name.strip()]
    return [str(i) for i, _ in enumerate(sorted(Path("/dev").glob("nvidia[0-9]*")))]


def environment(launcher: Launcher, slot: int) -> dict[str, str]:
    """Where several trials share this machine's GPUs: which one the trial in a slot gets."""
    devices = gpus() if launcher.name in ("processes", "submitit_local") and count(launcher) > 1 else []
    return {"CUDA_VISIBLE_DEVICES": devices[slot % len(devices)]} if devices else {}
