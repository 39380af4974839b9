"""TRL's preparation of preference pairs against dpo_lab's: seconds from rows, and from their file, to token ids.

    python benchmarks/preparation.py --rounds 3        needs Qwen2.5's tokenizer (--tokenizer FOLDER)

Every measurement is a fresh process with an empty cache, the sides in turn, and then a second process on the cache of
the first (warm). TRL runs with dataset_num_proc=2 and without; the better one counts. Importing and loading the
tokenizer are not timed on either side. Both read the same file, in TRL's conversational format. `rows` is from an Arrow
table of rows (TRL) or of pairs (dpo_lab) to token ids on disk; `file` from the JSON lines. The token ids are compared:
TRL's up to the end of turn must be dpo_lab's. Writes benchmarks/results/preparation.json with the ratios
TRL seconds / dpo_lab seconds.
"""

import argparse
import hashlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from array import array
from collections.abc import Iterable
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

from dpo_lab.runtime.facts import device_facts, git_commit, versions
from dpo_lab.runtime.files import write_json

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
DEMO = ROOT / "dpo_lab" / "data" / "demo" / "demo_train.jsonl"
RESULT = Path(__file__).parent / "results" / "preparation.json"
SIDES = ("trl", "trl_2_processes", "dpo_lab")
Row = dict[str, Any]
Ids = Iterable[tuple[list[int], list[int], list[int]]]


def row_of(prompt: list[dict[str, str]], chosen: str, rejected: str) -> Row:
    answers = {"chosen": chosen, "rejected": rejected}
    return {"prompt": prompt} | {side: [{"role": "assistant", "content": text}] for side, text in answers.items()}


def tutorial() -> list[Row]:
    """LLaMA-Factory's English and Chinese demo pairs, 599 long ones; none where they are not on this machine."""
    from dpo_lab.data.files import read_file
    from dpo_lab.data.formats import to_pairs
    from dpo_lab.data.types import Reading

    rows: list[Row] = []
    for file in (SHARED / "data" / f"dpo_{language}_demo.json" for language in ("en", "zh")):
        if file.is_file():
            pairs, _ = to_pairs(read_file(file), Reading(), where=str(file))
            rows += [
                row_of([{"role": m["role"], "content": m["content"]} for m in p.prompt], p.chosen, p.rejected)
                for p in pairs
            ]
    return rows


def short(count: int) -> list[Row]:
    """The pairs of data=demo over and over, each time with other numbers, so that no two are the same."""
    demo = [json.loads(line) for line in DEMO.read_text(encoding="utf-8").splitlines()]
    rows = []
    for i in range(count):
        row = demo[i % len(demo)]
        prompt = row["prompt"] if isinstance(row["prompt"], str) else row["prompt"][-1]["content"]
        chosen, rejected = (
            row[side] if isinstance(row[side], str) else row[side][-1]["content"] for side in ("chosen", "rejected")
        )
        question = [{"role": "user", "content": f"{prompt} ({i})"}]
        rows.append(row_of(question, f"{chosen} ({i * 7})", f"{rejected} ({i * 3})"))
    return rows


# What a process measures


def measure_trl(file: Path, source: str, scratch: Path, tokenizer: Any, processes: int | None) -> tuple[float, Ids]:
    """Seconds of TRL's own preparation, and its token ids up to the end of turn."""
    from accelerate import PartialState
    from datasets import disable_progress_bars, load_dataset
    from trl import DPOConfig, DPOTrainer  # pyright: ignore[reportPrivateImportUsage]

    PartialState(cpu=True)
    disable_progress_bars()
    args = DPOConfig(
        output_dir=str(scratch), use_cpu=True, bf16=False, max_length=None, report_to="none", dataset_num_proc=processes
    )

    def rows() -> Any:
        return load_dataset("json", data_files=str(file), split="train", cache_dir=str(scratch / "datasets"))

    trainer: Any = SimpleNamespace(_tokenizer=tokenizer)  # all that the preparation needs of the trainer
    dataset = rows() if source == "rows" else None
    begun = time.perf_counter()
    dataset = rows() if dataset is None else dataset
    prepared: Any = DPOTrainer._prepare_dataset(trainer, dataset, tokenizer, args, "train")
    seconds = time.perf_counter() - begun
    end = tokenizer.eos_token_id

    def cut(ids: list[int]) -> list[int]:
        return ids[: len(ids) - ids[::-1].index(end)]

    return seconds, ((row["prompt_ids"], cut(row["chosen_ids"]), cut(row["rejected_ids"])) for row in prepared)


def measure_dpo_lab(file: Path, source: str, scratch: Path, tokenizer: Any) -> tuple[float, Ids]:
    """Seconds of the product's own preparation, and its token ids."""
    from dpo_lab.data.prepare import prepare, read_pairs
    from dpo_lab.data.templates import Template

    data = data_of(file)
    split = read_pairs(data, scratch) if source == "rows" else None
    begun = time.perf_counter()
    split = split or read_pairs(data, scratch)
    examples = prepare(split, data, Template(tokenizer, "auto"), scratch).train
    seconds = time.perf_counter() - begun
    return seconds, ((e.prompt_ids, e.chosen_ids, e.rejected_ids) for e in examples)


def data_of(file: Path) -> Any:
    """conf/data for a file of which every pair is trained on."""
    from dpo_lab.config import resolvers
    from dpo_lab.config.overrides import read
    from dpo_lab.config.schema import Config
    from dpo_lab.config.sources import Sources

    words = ["data=file", f"data.path={file}", "data.eval_fraction=0", "data.max_length=1000000"]
    resolvers.register()
    sources = Sources()
    given, problems = read(words, sources, multirun=False)
    assert not problems, problems
    return Config.model_validate(resolvers.plain(sources.compose([g.text for g in given]))).data


def child(options: argparse.Namespace) -> None:
    """One measurement; its result is the last line."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(options.tokenizer)
    given = (options.file, options.source, options.scratch, tokenizer)
    if options.side == "dpo_lab":
        seconds, ids = measure_dpo_lab(*given)
    else:
        seconds, ids = measure_trl(*given, processes=2 if options.side == "trl_2_processes" else None)
    usage = [resource.getrusage(who).ru_maxrss / 2**20 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    digest, pairs, tokens = hashlib.blake2b(digest_size=8), 0, 0
    for example in ids:
        pairs, tokens = pairs + 1, tokens + sum(map(len, example))
        for part in example:
            digest.update(array("q", (len(part), *part)).tobytes())
    result = {
        "seconds": seconds,
        "peak_rss_gib": max(usage),
        "pairs": pairs,
        "tokens": tokens,
        "ids": digest.hexdigest(),
    }
    print(json.dumps(result))


# What the parent makes of it


def start(side: str, source: str, file: Path, scratch: Path, tokenizer: Path) -> dict[str, Any]:
    words = [
        f"--side={side}",
        f"--source={source}",
        f"--file={file}",
        f"--scratch={scratch}",
        f"--tokenizer={tokenizer}",
    ]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(scratch / "datasets")}
    run = subprocess.run([sys.executable, __file__, *words], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, f"{side} {source}:\n{run.stderr[-3000:]}"
    return json.loads(run.stdout.splitlines()[-1])


def compare(file: Path, source: str, rounds: int, tokenizer: Path) -> dict[str, Any]:
    """Medians of all sides, and how much longer TRL takes."""
    found: dict[str, list[dict[str, Any]]] = {}
    for _ in range(rounds):
        for side in SIDES:
            with tempfile.TemporaryDirectory() as scratch:
                for state in ("cold", "warm"):
                    found.setdefault(f"{side}_{state}", []).append(start(side, source, file, Path(scratch), tokenizer))
                    print(f"{file.stem} {source} {side} {state}: {found[f'{side}_{state}'][-1]['seconds']:.2f} s")
    everything = [one for runs in found.values() for one in runs]
    assert len({one["ids"] for one in everything}) == 1, "the sides have other token ids"
    seconds = {name: round(median(one["seconds"] for one in runs), 3) for name, runs in found.items()}
    ratios = {
        state: round(min(seconds[f"trl_{state}"], seconds[f"trl_2_processes_{state}"]) / seconds[f"dpo_lab_{state}"], 2)
        for state in ("cold", "warm")
    }
    return {
        "pairs": everything[0]["pairs"],
        "tokens": everything[0]["tokens"],
        "seconds": seconds,
        "all_seconds": {name: [round(one["seconds"], 3) for one in runs] for name, runs in found.items()},
        "peak_rss_gib": {name: round(max(one["peak_rss_gib"] for one in runs), 2) for name, runs in found.items()},
        "trl_over_dpo_lab": ratios,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pairs", type=int, default=20_000, help="how many short pairs")
    parser.add_argument("--tokenizer", type=Path, default=SHARED / "models" / "qwen2.5-0.5b-instruct")
    parser.add_argument("--result", type=Path, default=RESULT, help="where the summary is written")
    for name in ("side", "source"):
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS)
    for name in ("file", "scratch"):
        parser.add_argument(f"--{name}", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        return child(options)
    if not (options.tokenizer / "tokenizer.json").is_file():
        sys.exit(f"{options.tokenizer} holds no tokenizer.json. Give --tokenizer FOLDER.")
    cases, load = {"tutorial": tutorial(), "short": short(options.pairs)}, os.getloadavg()[0]
    summary: dict[str, Any] = {"rounds": options.rounds, "load_before": round(load, 2), "cases": {}}
    with tempfile.TemporaryDirectory() as folder:
        for name, rows in cases.items():
            if not rows:
                print(f"{name}: its files are not on this machine")
                continue
            file = Path(folder) / f"{name}.jsonl"
            file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
            summary["cases"][name] = {
                source: compare(file, source, options.rounds, options.tokenizer) for source in ("rows", "file")
            }
    summary |= {"tokenizer": options.tokenizer.name, "machine": device_facts(), "commit": git_commit()}
    summary["versions"] = versions() | {"trl": __import__("trl").__version__}
    print(json.dumps({name: {s: r["trl_over_dpo_lab"] for s, r in c.items()} for name, c in summary["cases"].items()}))
    options.result.parent.mkdir(exist_ok=True)
    write_json(options.result, summary)
    return None


if __name__ == "__main__":
    main()
