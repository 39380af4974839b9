"""launcher=slurm and launcher=submitit_local: a job a trial, through submitit.

A job that SLURM ends, because its time is up or because a more important one needs its place, gets a signal some time
before (launcher.options.signal_delay_s): the trial then saves a checkpoint and ends as an interrupted one. It is not
queued again by itself: the next call of the same command goes on with it, as with everything that was interrupted.
Jobs of SLURM outlive the sweep that started them; those of submitit_local end with it.

submitit's own files and the logs of the jobs are in SWEEP/.submitit/TRIAL/N, N counting the starts of the trial.
"""

import io
import logging
import os
import pickle
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, redirect_stderr, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from dpo_lab.config.names import did_you_mean
from dpo_lab.runtime.errors import DiskFull, LabError
from dpo_lab.runtime.files import remove, short, write_error
from dpo_lab.sweep.pool import Ended, Order, Refused
from dpo_lab.sweep.remote import Mail, keep

LOCAL = ("timeout_min", "gpus_per_node", "setup")  # what submitit's executor of this machine heeds
ONE_TASK = ("nodes", "tasks_per_node", "ntasks_per_node", "array_parallelism", "num_gpus", "job_name", "time", "mem")
# Exit codes of jobs that left no result: as if killed (137), or as if asked to end (143).
CODES = {"OUT_OF_MEMORY": 137, "CANCELLED": 143, "TIMEOUT": 143, "PREEMPTED": 143, "DEADLINE": 143, "NODE_FAIL": 143}
PATIENCE = 15.0  # seconds that a shared file system may take to show a result
SILENCE = 60.0  # seconds without accounting (sacct) after which the queue is asked
FAREWELL = 10.0  # seconds that jobs of this machine may take to be gone


class SubmititPool:
    """Jobs of a cluster, or of this machine as if it were one."""

    def __init__(self, n: int, *, folder: Path, local: bool, options: Mapping[str, Any]) -> None:
        """Check all that can be checked before the first job.

        Args:
            n: trials at a time; whoever starts them keeps to it.
            folder: of the sweep.
            local: run the jobs on this machine, without SLURM.
            options: of a job, submitit's; those that are None count as not given.

        Raises:
            LabError: submitit or SLURM is missing, or an option is wrong.
        """
        self.n = n
        self._place = folder / ".submitit"
        self._slurm = not local
        self._options = {name: value for name, value in options.items() if value is not None}
        self._jobs: dict[str, tuple[Any, Mail]] = {}
        self._asked: dict[str, int] = {}
        self._ends: dict[str, float] = {}  # when a job was first seen to be over without a result
        self._asked_queue: dict[str, float] = {}
        self._check()
        self._executor(self._place, "check", None)

    def start(self, order: Order) -> None:
        """Submit a job.

        Raises:
            Refused: sbatch did not take it.
            OutputError: the job's files cannot be written.
        """
        mail = Mail.create(self._place, order.trial)
        executor = self._executor(mail.folder, order.trial, order.threads)
        how: dict[str, Any] = {"without": ["SLURM_", "SUBMITIT_"], "end_on": [signal.SIGTERM, _notice()]}
        if not self._slurm:
            how["master"] = os.getpid()
            if "gpus_per_node" not in self._options:  # submitit would hide them all
                how["without"].append("CUDA_VISIBLE_DEVICES")
                own = {name: os.environ[name] for name in ("CUDA_VISIBLE_DEVICES",) if name in os.environ}
                order = replace(order, env=own | order.env)
        try:
            # submitit repeats there what sbatch says
            with nullcontext() if self._slurm else _deaf(), redirect_stderr(io.StringIO()):
                job = executor.submit(keep, order, mail.folder, **how)
        except (RuntimeError, OSError, subprocess.SubprocessError) as e:  # CommandFunction's and sbatch's own words
            remove(mail.folder)  # also of a job that was taken without an answer: it must not run beside the next one
            if isinstance(e, OSError) and isinstance(full := write_error(mail.folder, e), DiskFull):
                raise full from e
            raise Refused(
                f"The job of trial {order.trial} could not be submitted: {_last(str(e)).rstrip('.')}. Look at "
                "launcher.options, and at how many jobs you may have in the queue (launcher.n)."
            ) from e
        self._jobs[order.trial] = (job, mail)

    def ended(self) -> list[Ended]:
        """Those that ended since the last call."""
        found = [self._outcome(trial, job) for trial, (job, _) in self._jobs.items()]
        gone = [end for end in found if end is not None]
        for end in gone:
            del self._jobs[end.trial]
            for notes in (self._asked, self._ends, self._asked_queue):
                notes.pop(end.trial, None)
        return gone

    def signal(self, trial: str, number: int) -> None:
        """Hand a signal on; a job that still waits in SLURM's queue is cancelled, and so is one that is to be killed."""
        if trial not in self._jobs:
            return
        job, mail = self._jobs[trial]
        self._asked[trial] = number
        sent = mail.send(number)
        if self._slurm and (number == signal.SIGKILL or not mail.begun or not sent):
            with suppress(OSError):
                job.cancel(check=False)

    def close(self) -> None:
        """Kill what is left."""
        for trial in self._jobs:
            self.signal(trial, signal.SIGKILL)
        deadline = time.monotonic() + FAREWELL
        while not self._slurm and self._jobs and time.monotonic() < deadline:
            self.ended()
            time.sleep(0.05)
        self._jobs.clear()

    def _check(self) -> None:
        try:
            import submitit
        except ImportError as e:
            raise LabError(
                f"launcher={self._name} needs the submitit package, which is not installed. Install it with "
                'pip install "dpo_lab[cluster]", or choose launcher=serial or launcher=processes.'
            ) from e
        logging.getLogger("submitit").handlers.clear()  # it writes to the terminal; what it says goes to our log
        known = set(LOCAL)
        if self._slurm:
            known = set(submitit.AutoExecutor._typed_parameters()) | set(submitit.SlurmExecutor._valid_parameters())
            known -= set(ONE_TASK)  # a trial is one process, and one name for each thing is enough
        for name in self._options:
            if name not in known:
                meant = did_you_mean(name, sorted(known)) or "."
                raise LabError(
                    f"launcher.options.{name}: launcher={self._name} has no such option{meant} "
                    f"It takes {', '.join(sorted(known))}."
                )
        if "timeout_min" not in self._options:
            raise LabError(
                f"launcher={self._name} needs launcher.options.timeout_min: the minutes that a trial may take."
            )

    def _executor(self, folder: Path, trial: str, threads: int | None) -> Any:
        import submitit

        options: dict[str, Any] = dict(self._options)
        if self._slurm:
            options = {"name": f"dpo_lab-{trial}"} | ({"cpus_per_task": threads} if threads else {}) | options
            # SLURM would start it again beside the trial that the sweep's next call starts
            options["additional_parameters"] = {"no-requeue": True} | options.get("additional_parameters", {})
        common = submitit.AutoExecutor._typed_parameters()
        prefix = "slurm_" if self._slurm else "local_"
        try:
            executor = submitit.AutoExecutor(folder, cluster="slurm" if self._slurm else "local")
            executor.update_parameters(
                **{name if name in common else prefix + name: value for name, value in options.items()}
            )
        except RuntimeError as e:
            raise LabError(
                "launcher=slurm needs SLURM's commands (srun, sbatch, ...), and there is no srun here. Start the sweep "
                "where they are, or try launcher=submitit_local, launcher=processes."
            ) from e
        except (ValueError, TypeError, AssertionError, NameError) as e:
            raise LabError(f"launcher.options: {_last(str(e))}") from e
        return executor

    def _outcome(self, trial: str, job: Any) -> Ended | None:
        """How the job ended, or None while it runs."""
        state = "" if job.paths.result_pickle.exists() else self._final_state(trial, job)
        if state is None:
            return None
        if (result := _result(job.paths.result_pickle)) is not None:
            return Ended(trial, *result)
        if trial in self._asked:
            return Ended(trial, 128 + self._asked[trial])
        if self._slurm and time.monotonic() - self._ends.setdefault(trial, time.monotonic()) < PATIENCE:
            return None
        if not self._slurm:
            return Ended(trial, 137, f"its job was killed; see {short(job.paths.stderr)}")
        return Ended(trial, CODES.get(state, 1), f"ended by SLURM: {state}; see {short(job.paths.stderr)}")

    def _final_state(self, trial: str, job: Any) -> str | None:
        """The state of a job that is over, or None."""
        if not self._slurm:
            return None if not job.done() else "FINISHED"
        over = job.done()
        state = str(job.state).split(" ")[0].upper()  # "CANCELLED by 1000"
        if over or state == "PREEMPTED":  # submitit would wait for it to be queued again
            return state
        if state != "UNKNOWN":
            self._asked_queue.pop(trial, None)
        elif time.monotonic() - self._asked_queue.setdefault(trial, time.monotonic()) > SILENCE:
            self._asked_queue[trial] = time.monotonic()
            return "GONE" if _left_queue(job.job_id) else None
        return None

    @property
    def _name(self) -> str:
        return "slurm" if self._slurm else "submitit_local"


def _result(path: Path) -> tuple[int, str] | None:
    """What `keep` returned, or the error that it ended with."""
    try:
        outcome, value = pickle.loads(path.read_bytes())
    except (OSError, EOFError, pickle.UnpicklingError):
        return None
    return value if outcome == "success" else (1, _last(value))


def _left_queue(job: str) -> bool:
    """Whether SLURM's queue does not know the job: the only sign of its end on clusters without accounting."""
    try:
        done = subprocess.run(["squeue", "-h", "-j", job, "-o", "%T"], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return False
    return "Invalid job id" in done.stderr if done.returncode else not done.stdout.strip()


def _notice() -> int:
    """The signal by which submitit lets SLURM announce the end."""
    return signal.Signals["SIG" + os.environ.get("SUBMITIT_PREEMPT_SIGNAL", "USR2")]


@contextmanager
def _deaf() -> Iterator[None]:
    """What is started meanwhile does not hear a Ctrl-C at the terminal: the sweep hears it and tells its trials."""
    try:
        former = signal.signal(signal.SIGINT, signal.SIG_IGN)
    except ValueError:  # not in the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, former)


def _last(text: str) -> str:
    """The last line of an error's message."""
    lines = text.strip().splitlines()
    return lines[-1].strip() if lines else "no reason given"
