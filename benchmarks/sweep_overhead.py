"""How long a trial of a sweep takes from its start to its first step, beside a run alone.

    python benchmarks/sweep_overhead.py [--trials 5] [OVERRIDE ...]

launcher=serial, everything cached. A sweep over seeds; the first trial, which waits for the imports of the server, is told
apart. The same settings alone, `python -m dpo_lab` in a fresh process, as often. The time between the last step of a trial and
the start of the next one (evaluation, samples, saving, curves) is told too. Writes benchmarks/results/sweep_overhead.json.
"""

import argparse
import re
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path
from statistics import median

from dpo_lab.runtime.facts import device_facts, git_commit, versions
from dpo_lab.runtime.files import read_jsonl, write_json

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "sweep_overhead.json"
READY = re.compile(r"^(\S+ \S+),(\d{3}) \w+ \S+: reference ready", re.MULTILINE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=5)
    parser.add_argument("overrides", nargs="*", default=["experiment=smoke"])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        words = [*options.overrides, "logger=none", f"output_dir={scratch}"]
        start("--multirun", *words, "seed=100,101", "sweep.name=warm")  # the reference, the converted model, the disk
        alone = []
        for seed in range(options.trials):
            began = time.time()
            start(*words, f"seed={seed}")
            (folder,) = [p for p in (Path(scratch) / "runs").iterdir() if p.stat().st_ctime >= began - 1]
            alone.append(first_step(folder) - began)
        begun = begins(
            start("--multirun", *words, f"seed={','.join(map(str, range(options.trials)))}", "sweep.name=timed")
        )
        folders = sorted((p.parent for p in (Path(scratch) / "sweeps" / "timed").glob("*/trial.json")), key=first_step)
        to_first = [first_step(folder) - began for folder, began in zip(folders, begun, strict=True)]
        after_last = [
            began - read_jsonl(folder / "metrics.jsonl")[-2]["time"]
            for folder, began in zip(folders[:-1], begun[1:], strict=True)
        ]
    result = {
        "what": "seconds from the start of a trial, or of a command, to its first optimizer step",
        "words": options.overrides,
        "trial_first_of_a_sweep": to_first[0],
        "trial": median(to_first[1:]),
        "trials": to_first[1:],
        "alone": median(alone),
        "alone_all": alone,
        "from_the_last_step_to_the_next_trial": median(after_last),
        "versions": versions(),
        "device": device_facts(),
        "commit": git_commit(),
        "at": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    write_json(RESULT, result)
    print(
        f"to the first step: a trial {result['trial']:.1f} s (at most 4 asked for), a run alone {result['alone']:.1f} s"
    )


def start(*words: str) -> list[tuple[float, str]]:
    """Run `python -m dpo_lab`; its lines and when they came."""
    lines = []
    command = [sys.executable, "-u", "-m", "dpo_lab", *words]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append((time.time(), line.rstrip()))
    if process.returncode:
        sys.exit("\n".join(line for _, line in lines))
    return lines


def begins(lines: list[tuple[float, str]]) -> list[float]:
    """When each trial was started. The line comes once the trial is forked."""
    return [when for when, line in lines if line.endswith(" begins")]


def first_step(folder: Path) -> float:
    """When all was ready for the first step, by the run's own log."""
    match = READY.search((folder / "run.log").read_text(encoding="utf-8"))
    assert match is not None
    moment = datetime.strptime(match[1], "%Y-%m-%d %H:%M:%S")
    return moment.timestamp() + int(match[2]) / 1000


if __name__ == "__main__":
    main()
