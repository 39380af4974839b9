"""kill -9 at any moment, then the same command until it is done: is the result bit-identical, or only close?

    OMP_NUM_THREADS=1 python benchmarks/kill.py --kills 20 --seed 0 --steps 12

Every trial is a run of its own, with its own cache, killed once or more: at a random time, at a random moment of a
phase that is recognised in the run folder, or (`process`) as a true `python -m dpo_lab` in its first seconds or later.
The others are forked children of this process, which saves the imports; a fork dies of SIGKILL like any process.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "tests"), str(HERE.parent / "tests" / "training")]

from runs import Child, Lab, at, preload, rows, send, status, weights, write_pairs  # noqa: E402
from tiny import write_tiny_model  # noqa: E402

from dpo_lab.runtime.files import read_jsonl, write_json  # noqa: E402

RESULT = HERE / "results" / "kill.json"
DIE = send(signal.SIGKILL)
OPTIONS = ("trainer.microbatch_tokens=150", "lora.dropout=0.1")
CALLS = {  # phase: a function of it, and how often a run calls that
    "reference": ("dpo_lab.preference.ref_cache:RefCache.write", 12),
    "evaluation": ("dpo_lab.preference.forward:Forward.logps_and_hidden", 30),
    "checkpoint": ("dpo_lab.runtime.files:os.fsync", 24),
    "step": ("dpo_lab.training.module:PreferenceModule.training_step", 12),
    "result": ("dpo_lab.models.save:save_final", 1),
}
PHASES = ("random", "process", *CALLS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=12)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    preload()
    import torch

    torch.set_num_threads(1)
    root = Path(tempfile.mkdtemp(prefix="kill-"))
    model, data = write_tiny_model(root / "model"), write_pairs(root / "pairs.jsonl")
    options = (*OPTIONS, f"optim.max_steps={args.steps}")
    straight = Lab(root / "straight", model, data)
    begun = time.monotonic()
    child = straight.call(*options)
    assert child.code == 0, child.text
    seconds = time.monotonic() - begun
    expected = result_of(straight, options)
    kills: Counter[str] = Counter()
    trials, different = 0, []
    while kills.total() < args.kills:
        lab = Lab(root / f"trial{trials}", model, data)
        plan = [PHASES[(kills.total() + i) % len(PHASES)] for i in range(rng.choice([1, 1, 2, 3]))]
        for phase in plan[: args.kills - kills.total()]:
            kills[phase] += attempt(lab, phase, options, rng, seconds)
        last = lab.call(*options)
        assert last.code == 0, last.text
        found = result_of(lab, options)
        wrong = [name for name in expected if found[name] != expected[name]]
        if wrong:
            different.append({"trial": trials, "kills": plan, "different": wrong})
        shutil.rmtree(lab.root)
        trials += 1
    summary = {
        "command": f"python benchmarks/kill.py --kills {args.kills} --seed {args.seed} --steps {args.steps}",
        "kills": kills.total(),
        "kills_by_phase": dict(sorted(kills.items())),
        "runs": trials,
        "bit_identical": trials - len(different),
        "different": different,
        "seconds_of_a_run": round(seconds, 1),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    shutil.rmtree(root)
    print(json.dumps(summary, indent=2))
    write_json(RESULT, summary)
    sys.exit(int(bool(different)))


def result_of(lab: Lab, options: tuple[str, ...]) -> dict[str, Any]:
    """What must be the same to the last bit."""
    folder = lab.folder(*options)
    return {
        "status": status(folder)["status"],
        "adapter": weights(folder),
        "metrics": rows(folder),
        "eval_pairs": read_jsonl(folder.eval_pairs),
        "samples": read_jsonl(folder.samples),
    }


def attempt(lab: Lab, phase: str, options: tuple[str, ...], rng: random.Random, seconds: float) -> int:
    """Run until the kill; 0 if the run was over before it."""
    if phase == "process":
        return killed_process(lab, options, rng)
    if phase == "random":
        child = lab.start(*options)
        return killed_after(child, rng.uniform(0, seconds))
    where, calls = CALLS[phase]
    return int(lab.call(*options, first=at(where, later(rng), call=rng.randint(1, calls))).code == 137)


def later(rng: random.Random) -> Callable[..., None]:
    """Die now, or from an alarm within the next 20 ms: anywhere in the call."""
    delay = rng.choice([0.0, rng.uniform(1e-4, 0.02)])

    def act(*_: Any, **__: Any) -> None:
        if not delay:
            DIE()
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        killer = f"sleep {delay:.4f}; kill -9 {os.getpid()}"
        subprocess.Popen(["/bin/sh", "-c", killer], start_new_session=True)

    return act


def killed_after(child: Child, delay: float) -> int:
    deadline = time.monotonic() + delay
    while child.alive and time.monotonic() < deadline:
        time.sleep(0.002)
    if child.alive:
        child.kill(signal.SIGKILL)
    return int(child.wait() == 137)


def killed_process(lab: Lab, options: tuple[str, ...], rng: random.Random) -> int:
    """A true `python -m dpo_lab`: half of them die in their first second."""
    command = [sys.executable, "-m", "dpo_lab", *lab.overrides(*options)]
    environment = os.environ | {"PYTHONPATH": str(HERE.parent)}
    with open(lab.root / "process.log", "wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        try:
            process.wait(timeout=rng.choice([rng.uniform(0, 1), rng.uniform(1, 25)]))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    return int(process.returncode == -signal.SIGKILL)


if __name__ == "__main__":
    main()
