"""Peak memory and time of preparing a million short pairs, cold and again from the tables.

    python benchmarks/million.py                 --pairs N for fewer; --tokenizer FOLDER

Every call is a fresh process that reads a file of pairs, splits and tokenises it as training does, goes once through
examples spread over it, and runs the doctor within its two seconds. Memory is the proportional set size of the process
and all its children (pages of mapped files included), read twice a second. Writes benchmarks/results/million.json.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from dpo_lab.runtime.facts import device_facts, git_commit, versions
from dpo_lab.runtime.files import write_json

SHARED = Path(__file__).resolve().parents[2] / "shared"
RESULT = Path(__file__).parent / "results" / "million.json"
WORDS = [
    "the",
    "of",
    "and",
    "to",
    "in",
    "is",
    "you",
    "that",
    "it",
    "he",
    "was",
    "for",
    "on",
    "are",
    "as",
    "with",
    "his",
    "they",
    "at",
    "be",
    "this",
    "have",
    "from",
    "or",
    "one",
    "had",
    "by",
    "word",
    "but",
    "not",
    "what",
    "all",
    "were",
    "we",
    "when",
    "your",
    "can",
    "said",
    "there",
    "use",
    "an",
    "each",
    "which",
    "she",
    "do",
    "how",
    "their",
    "if",
    "will",
    "up",
    "other",
    "about",
    "out",
    "many",
    "then",
    "them",
    "these",
    "so",
    "some",
    "her",
    "would",
    "make",
    "like",
    "him",
    "into",
    "time",
    "has",
    "look",
    "two",
    "more",
    "write",
    "go",
    "see",
    "number",
    "no",
    "way",
    "could",
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=1_000_000)
    parser.add_argument("--tokenizer", default=str(SHARED / "models" / "qwen2.5-0.5b-instruct"))
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        sys.stdout.write(json.dumps(prepare(*given.child)) + "\n")
        return
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "pairs.jsonl"
        write(file, given.pairs)
        child = [str(file), given.tokenizer, str(Path(scratch) / "cache")]
        cold, warm = (measured([sys.executable, __file__, "--child", *child]) for _ in range(2))
        size = file.stat().st_size
    assert cold["fingerprint"] == warm["fingerprint"]
    result = {
        "pairs": given.pairs,
        "file_mib": round(size / 2**20, 1),
        "tokenizer": Path(given.tokenizer).name,
        "cold": cold,
        "warm": warm,
        "machine": device_facts(),
        "versions": versions(),
        "commit": git_commit(),
    }
    print(json.dumps(result, indent=2))
    write_json(RESULT, result)


def write(file: Path, n: int) -> None:
    """Prompts of about 15 words, answers of 20 and 15."""
    rng = random.Random(0)
    with open(file, "w", encoding="utf-8") as handle:
        for i in range(n):
            prompt, chosen, rejected = (" ".join(rng.choices(WORDS, k=k)) for k in (12, 20, 15))
            row = {"prompt": f"Question {i}: {prompt}?", "chosen": f"{chosen}.", "rejected": f"{rejected}."}
            handle.write(json.dumps(row) + "\n")


def prepare(file: str, tokenizer: str, cache: str) -> dict[str, Any]:
    """What training does with the pairs before the model loads; seconds of each part."""
    from transformers import AutoTokenizer

    from dpo_lab.config import resolvers
    from dpo_lab.config.paths import CONF_DIR
    from dpo_lab.config.schema import Config
    from dpo_lab.config.sources import Sources
    from dpo_lab.data import prepare as data_module
    from dpo_lab.data.doctor.gate import examine_data
    from dpo_lab.data.templates import Template

    resolvers.register()
    cfg = Sources((CONF_DIR,)).compose(["data=file", f"data.path={file}"])
    config = Config.model_validate(resolvers.plain(cfg))
    template = Template(AutoTokenizer.from_pretrained(tokenizer), "auto")
    seconds, began = {}, time.perf_counter()

    def lap(name: str) -> None:
        nonlocal began
        seconds[name] = round(time.perf_counter() - began, 2)
        began = time.perf_counter()

    split = data_module.read_pairs(config.data, Path(cache))
    lap("read")
    data = data_module.prepare(split, config.data, template, Path(cache))
    lap("tokenise")
    tokens = sum(sum(data.train[i].lengths) for i in range(0, len(data.train), 100))
    lap("10,000 examples")
    report = examine_data(data, config, template)
    lap("doctor")
    fingerprint = data.facts()["fingerprint"]
    lap("fingerprint")
    return {
        "seconds": seconds,
        "train": len(data.train),
        "heldout": len(data.heldout),
        "tokens_a_pair": round(tokens * 100 / len(data.train), 1),
        "doctor_cpu_seconds": report.seconds,
        "doctor_looked_at": report.sizes["train/looked_at"],
        "fingerprint": fingerprint,
    }


def measured(command: list[str]) -> dict[str, Any]:
    """What the command reports, with its peak memory."""
    peak, began = {"Pss": 0, "Pss_Anon": 0}, time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        while process.poll() is None:
            now = [memory(pid) for pid in family(process.pid)]
            peak = {name: max(most, sum(m.get(name, 0) for m in now)) for name, most in peak.items()}
            time.sleep(0.5)
        assert process.stdout is not None
        found = json.loads(process.stdout.read())
    return found | {
        "wall_seconds": round(time.perf_counter() - began, 1),
        "peak_gib": round(peak["Pss"] / 2**20, 2),
        "peak_without_mapped_files_gib": round(peak["Pss_Anon"] / 2**20, 2),
    }


def family(pid: int) -> list[int]:
    """A process and all below it."""
    found = [pid]
    for one in found:
        with suppress(OSError):
            for children in Path(f"/proc/{one}/task").glob("*/children"):
                found += [int(child) for child in children.read_text().split()]
    return found


def memory(pid: int) -> dict[str, int]:
    """KiB by name of /proc/PID/smaps_rollup."""
    with suppress(OSError):
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
        return {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)}
    return {}


if __name__ == "__main__":
    main()
