"""A SLURM of one machine for the tests: sbatch, srun, scancel, sacct and squeue, as far as submitit uses them.

`install` puts the commands in a folder for PATH. Jobs are in the folder named by TEST_SLURM: JOB/state, JOB/pid (of the
group of its processes) and JOB/script. Where it holds a file `full`, jobs wait in the queue; a file `limit` has the number of
jobs that may be there at a time, beyond which sbatch refuses.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

COMMANDS = ("sbatch", "srun", "scancel", "sacct", "squeue")
OVER = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "OUT_OF_MEMORY", "PREEMPTED")


def install(place: Path) -> Path:
    """The folder of the commands."""
    folder = place / "bin"
    folder.mkdir(parents=True)
    for name in COMMANDS:
        script = folder / name
        script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "{__file__}" {name} "$@"\n')
        script.chmod(0o755)
    return folder


def jobs() -> Path:
    return Path(os.environ["TEST_SLURM"])


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")


def sbatch(script: str) -> None:
    if (jobs() / "limit").exists():
        there = [job for job in jobs().glob("[0-9]*") if (job / "state").read_text().split()[0] not in OVER]
        if len(there) >= int((jobs() / "limit").read_text()):
            sys.exit(
                "sbatch: error: QOSMaxSubmitJobPerUserLimit\nsbatch: error: Batch job submission failed: job limit."
            )
    number = time.time_ns() // 1_000_000  # submitit remembers the states of ids as long as the process lives
    job = jobs() / str(number)
    job.mkdir()
    (job / "script").write_text(Path(script).read_text())
    if (jobs() / "full").exists():
        (job / "state").write_text("PENDING")
    else:
        (job / "state").write_text("RUNNING")
        subprocess.Popen(
            [sys.executable, "-S", __file__, "node", str(job)],
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
    say(f"Submitted batch job {number}")


def node(place: str) -> None:
    """The machine on which a job runs."""
    job = Path(place)
    (job / "pid").write_text(str(os.getpid()))
    own = {"SLURM_JOB_ID": job.name, "SLURM_JOB_NAME": "x", "SLURM_NTASKS": "1", "SLURM_JOB_NUM_NODES": "1"}
    own |= {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}
    done = subprocess.run(["bash", job / "script"], env=os.environ | own)
    if (job / "state").read_text() == "RUNNING":
        (job / "state").write_text("FAILED" if done.returncode else "COMPLETED")


def srun(*words: str) -> None:
    files = {}
    rest = list(words)
    while rest[0].startswith("--"):
        word = rest.pop(0)
        if word in ("--output", "--error"):
            files[word] = rest.pop(0).replace("%j", os.environ["SLURM_JOB_ID"]).replace("%t", "0")
    with open(files["--output"], "ab") as output, open(files["--error"], "ab") as error:
        task = subprocess.Popen(rest, stdout=output, stderr=error)
    (jobs() / os.environ["SLURM_JOB_ID"] / "task").write_text(str(task.pid))
    sys.exit(task.wait() != 0)


def scancel(number: str) -> None:
    job = jobs() / number
    state = (job / "state").read_text()
    if state not in OVER:
        end(job, f"CANCELLED by {os.getuid()}")


def end(job: Path, state: str) -> None:
    """SIGTERM to all of a job's processes, and SIGKILL after a while."""
    (job / "state").write_text(state)
    if not (job / "pid").exists():
        return
    group = int((job / "pid").read_text())
    for name in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(group, name)
        except ProcessLookupError:
            return
        time.sleep(0.3)


def sacct(*_: str) -> None:
    say("JobID|State|NodeList")
    for job in sorted(jobs().glob("[0-9]*")):
        say(f"{job.name}|{(job / 'state').read_text()}|here")


def squeue(*words: str) -> None:
    state = (jobs() / words[words.index("-j") + 1] / "state").read_text()
    if state.split()[0] not in OVER:
        say(state)


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
