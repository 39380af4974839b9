"""Eight adapters of one base, scored on 60 held-out pairs: one call beside eight.

    python benchmarks/evaluate_adapters.py [--adapters 8] [--pairs 60] [--rounds 3] [--kl-pairs 0] [--tiny]

Each call is `python -m dpo_lab.evaluate` in a fresh process. The reference's log-probs, the converted model and the token
ids are on disk before anything is timed. The two sides take turns and the first to begin changes with every round; both must
come to the same scores. The adapters (r 8, all linear layers) hold random numbers, which take as long to score as trained
ones. Without the exact KL (--kl-pairs 0) the reference makes no forward pass. Writes
benchmarks/results/evaluate_adapters.json; --tiny takes a model of 60,000 parameters, to try the script, and writes nothing.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from dpo_lab.runtime.facts import device_facts, git_commit, versions
from dpo_lab.runtime.files import read_json, write_json

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "evaluate_adapters.json"
TARGET = 0.75
SAME = 1e-3  # relative, of two scores of one adapter


@dataclass(frozen=True)
class Setup:
    """What is scored, and the words that every call has."""

    adapters: list[Path]
    words: list[str]
    scratch: Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapters", type=int, default=8)
    parser.add_argument("--pairs", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kl-pairs", type=int, default=0)
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        result = measure(options, prepare(options, Path(scratch)))
    if not options.tiny:
        write_json(RESULT, result)
    print(
        f"{options.adapters} adapters, {result['pairs']} pairs: one call {result['one_call']:.1f} s, "
        f"{options.adapters} calls {result['separate_calls']:.1f} s, ratio {result['ratio']:.2f} (at most {TARGET} asked for)"
    )


def prepare(options: argparse.Namespace, scratch: Path) -> Setup:
    """The adapters, and a call that fills the caches."""
    words = [
        f"data.max_eval_pairs={options.pairs}",
        f"trainer.kl_pairs={options.kl_pairs}",
        f"output_dir={scratch}/outputs",
    ]
    if options.tiny:
        sys.path.insert(0, str(ROOT / "tests"))
        from runs import write_pairs
        from tiny import write_tiny_model

        model = write_tiny_model(scratch / "model")
        data = write_pairs(scratch / "pairs.jsonl", 2 * options.pairs)
        words += ["model=hf", f"model.path={model}", "data=file", f"data.path={data}", "data.eval_fraction=0.9"]
        words += [f"cache_dir={scratch}/cache", "trainer.accelerator=cpu"]
    adapters = [make_adapter(words, scratch / f"adapter{i}", seed=i) for i in range(options.adapters)]
    setup = Setup(adapters, words, scratch)
    call(setup, adapters[:1], "warm")
    return setup


def make_adapter(words: list[str], folder: Path, *, seed: int) -> Path:
    """An adapter with random numbers, as PEFT writes one; made in a process of its own, so that this one stays small."""
    code = f"""
import sys, torch
sys.path.insert(0, {str(ROOT / "tests")!r})
from composing import composed
from pathlib import Path
from dpo_lab.config.paths import expand
from dpo_lab.models.locate import locate
from dpo_lab.models.load import load_model
from dpo_lab.models.lora import new_adapter
from dpo_lab.models.precision import resolve_precision
config = composed(*{[*words, "logger=none"]!r})
located = locate(config.model, expand(config.cache_dir), lambda text: None)
base = load_model(located, config.model, config.quant, resolve_precision(config, "cpu"), torch.device("cpu"))
policy = new_adapter(base, config.lora, seed={seed})
generator = torch.Generator().manual_seed({seed})
for name, parameter in policy.named_parameters():
    if "lora_B" in name:
        parameter.data.copy_(0.01 * torch.randn(parameter.shape, generator=generator))
policy.save_pretrained({str(folder)!r})
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return folder


def measure(options: argparse.Namespace, setup: Setup) -> dict[str, Any]:
    """Both sides in turn; seconds, and whether their scores are the same."""
    seconds: dict[str, list[float]] = {"one_call": [], "separate_calls": []}
    apart, computed = 0.0, 0
    for number in range(options.rounds):
        found: dict[str, list[dict[str, Any]]] = {}
        for side in sorted(seconds, reverse=number % 2 == 1):
            groups = [setup.adapters] if side == "one_call" else [[adapter] for adapter in setup.adapters]
            begun = time.perf_counter()
            contents = [call(setup, group, f"{side}-{number}-{i}") for i, group in enumerate(groups)]
            seconds[side].append(time.perf_counter() - begun)
            found[side] = [result for content in contents for result in content["results"]]
            computed += sum(content["reference"]["computed"] for content in contents)
        apart = max(apart, difference(found["one_call"], found["separate_calls"]))
        print({side: round(times[-1], 1) for side, times in seconds.items()}, flush=True)
    if apart > SAME:
        sys.exit(f"The two sides differ by {apart:.1e}: they do not do the same.")
    one, separate = (median(times) for times in seconds.values())
    return {
        "what": f"scoring {options.adapters} adapters of one base: one call beside {options.adapters} calls, wall seconds",
        "adapters": options.adapters,
        "pairs": contents[0]["pairs"],
        "kl_pairs": options.kl_pairs,
        "one_call": one,
        "separate_calls": separate,
        "ratio": one / separate,
        "at_most": TARGET,
        "rounds": seconds,
        "reference_pairs_computed": computed,
        "largest_relative_difference_of_scores": apart,
        "threads": os.environ.get("OMP_NUM_THREADS", "all"),
        "device": device_facts(),
        "versions": versions(),
        "commit": git_commit(),
        "at": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def call(setup: Setup, adapters: list[Path], name: str) -> dict[str, Any]:
    """`python -m dpo_lab.evaluate` on some adapters; what its scores.json says."""
    output = setup.scratch / name
    words = [f"adapter=[{','.join(map(str, adapters))}]", f"output={output}", *setup.words]
    done = subprocess.run([sys.executable, "-m", "dpo_lab.evaluate", *words], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    return read_json(output / "scores.json")


def difference(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> float:
    """The largest relative difference of two lists of scores."""
    gaps = [
        abs(one["metrics"][key] - other["metrics"][key]) / max(1.0, abs(other["metrics"][key]))
        for one, other in zip(ours, theirs, strict=True)
        for key in other["metrics"]
    ]
    return max(gaps)


if __name__ == "__main__":
    main()
