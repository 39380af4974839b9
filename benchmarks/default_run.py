"""Time and peak memory of a run, cold (reference computed) and again (reference cached).

    python benchmarks/default_run.py [--once] [OVERRIDE ...]        no override is the default run; --once: cold only

Each run is a fresh process with an output folder of its own; the first also starts with an empty reference cache. The
converted model is there before, as it is from the second run on. Writes benchmarks/results/default_run.json (or
demo_run.json for experiment=demo) with the machine's facts and, for comparison, what plan=true had estimated.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from dpo_lab.runtime.facts import device_facts, git_commit, versions
from dpo_lab.runtime.files import read_json, read_jsonl

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    overrides = [word for word in sys.argv[1:] if word != "--once"]
    labels = ("cold",) if "--once" in sys.argv else ("cold", "reference_cached")
    name = "demo_run" if "experiment=demo" in overrides else "default_run"
    cache = Path("~/.cache/dpo_lab").expanduser()
    with tempfile.TemporaryDirectory() as scratch:
        own_cache = Path(scratch) / "cache"
        own_cache.mkdir()
        if (cache / "models").is_dir():
            (own_cache / "models").symlink_to(cache / "models")
        common = [*overrides, f"cache_dir={own_cache}", "logger.mode=offline"]
        plan = run([*common, f"output_dir={scratch}/plan", "plan=true"], Path(scratch) / "plan")
        runs = {label: run([*common, f"output_dir={scratch}/{label}"], Path(scratch) / label) for label in labels}
        shutil.rmtree(own_cache / "reference", ignore_errors=True)
    result = {
        "overrides": overrides,
        "runs": runs,
        "plan": plan["printed"],
        "machine": device_facts(),
        "versions": versions(),
        "commit": git_commit(),
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(runs, indent=2))


def run(arguments: list[str], output: Path) -> dict[str, Any]:
    """One process: wall time, its peak resident memory, and what its run folder says."""
    begun = time.time()
    child = subprocess.Popen([sys.executable, "-m", "dpo_lab", *arguments], stdout=subprocess.PIPE, text=True)
    printed = child.stdout.read() if child.stdout else ""
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    assert child.returncode == 0, printed
    measured: dict[str, Any] = {
        "seconds": round(time.time() - begun, 1),
        "peak_rss_gib": round(usage.ru_maxrss / 2**20, 2),
        "printed": [line.rstrip() for line in printed.splitlines() if line.strip()][:8]
        if "plan=true" in arguments
        else None,
    }
    for folder in output.glob("runs/*"):
        rows = read_jsonl(folder / "metrics.jsonl")
        steps = [row for row in rows if "train/loss" in row]
        last = [row for row in rows if "val/loss" in row]
        if not steps:
            continue
        measured |= {
            "seconds_to_first_step": round(steps[0]["time"] - begun, 1),
            "seconds_per_step_median": _median([b["time"] - a["time"] for a, b in zip(steps, steps[1:], strict=False)]),
            "steps": len(steps),
            "heldout_accuracy": last[-1]["val/rewards/accuracies"] if last else None,
            "threads": (read_json(folder / "facts.json") or {}).get("threads"),
        }
    return measured


def _median(values: list[float]) -> float | None:
    return round(sorted(values)[len(values) // 2], 2) if values else None


if __name__ == "__main__":
    main()
