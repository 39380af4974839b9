"""dpo_lab against TRL on the same model, pairs, adapter and steps, on one machine in one call.

    python benchmarks/against_trl.py [--rounds 3] [--pairs 16] [--large 64] [--cases NAME,...] [--sides NAME,...] [--fresh]

A cell is one side of one case in one round, in a fresh process. Each is stored as soon as it is there, and a second
call goes on with what is missing; cells of other code, other versions or another machine are measured again. In a round
the sides take turns; the order is turned round in the next one.

    trl_defaults    DPOConfig's own: batch 8, gradient checkpointing, the reference computed in each step
    trl_best        no checkpointing, the reference computed in advance, pairs sorted by length; of the batches that are
                    tried in round 1 the two best run on, and the one with the smallest median counts
    dpo_lab_cold    `python -m dpo_lab`, with an empty reference cache
    dpo_lab_cached  another trial of a sweep: the reference's log-probs are on disk, from a trial of another rank and rate

TRL keys its precomputed reference by the adapter too, so one more trial takes it as long as the first. Timed is from
pairs tokenised and model loaded to the end of the last optimizer step; imports, loading and tokenising are in neither
side's numbers. Both sides must come to the same first and last loss, or the call fails.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from against_trl_cases import CASES, ROOT, TINY_CASE, Case, Sources, lay_out
from against_trl_report import best_batches, check, met, sound, summarise, table

from dpo_lab.runtime.facts import device_facts, git_commit, versions
from dpo_lab.runtime.files import digest, fingerprint, read_json, write_json

HERE = Path(__file__).resolve().parent
SHARED = ROOT.parent / "shared"
RESULT = HERE / "results" / "against_trl.json"
SIDES = ("trl_defaults", "trl_best", "dpo_lab_cold", "dpo_lab_cached")
CONTENDERS = 2  # batches of TRL that run in the rounds after the first


@dataclass(frozen=True)
class Wanted:
    """One cell to be measured."""

    side: str
    pairs: int
    round: int
    batch: int

    @property
    def words(self) -> str:
        batch = f" (batch {self.batch})" if self.side.startswith("trl") else ""
        return f"{self.side}{batch}, {self.pairs} pairs, round {self.round}"


class Results:
    """The result file: per case its settings, cells and summaries; of a case that was not asked for, as they were."""

    def __init__(self, path: Path, *, fresh: bool) -> None:
        self.path = path
        self.content: dict[str, Any] = (None if fresh else read_json(path)) or {"cases": {}}
        self.code = source_digests()
        self.facts = {"machine": device_facts(), "versions": versions() | {"trl": _trl_version()}}
        self.facts |= {"commit": git_commit()}

    def key(self, case: Case, sources: Sources, side: str) -> str:
        """What a cell of a side depends on beside its pairs, batch and round; dpo_lab's code only where it runs."""
        code = self.code["dpo_lab" if side.startswith("dpo_lab") else "trl"]
        facts = json.dumps([self.facts["machine"], self.facts["versions"]])
        return digest(sources.fingerprint(case), code, facts)

    def begin(self, case: Case, sources: Sources) -> list[dict[str, Any]]:
        """The case's cells that still hold; says how many are kept."""
        former = self.content["cases"].get(case.name, {"cells": [], "summaries": {}})
        held = [cell for cell in former["cells"] if cell["key"] == self.key(case, sources, cell["side"])]
        if former["cells"]:
            stale = len(former["cells"]) - len(held)
            print(f"{case.name}: {len(held)} cells are reused, {stale} are of other code, versions or settings")
        self.content["cases"][case.name] = former | self.facts | {"settings": asdict(case), "cells": held}
        return held

    def write(self) -> None:
        write_json(self.path, self.content)


def _source_digest(*, own: bool) -> str:
    """Of what a cell runs: the benchmark's own files, and for dpo_lab's sides the package and its configuration."""
    files = [HERE / "against_trl_cell.py", HERE / "against_trl_cases.py"]
    if own:
        files += sorted([*(ROOT / "dpo_lab").rglob("*.py"), *(ROOT / "conf").rglob("*.yaml")])
    return digest(*(part for file in files for part in (file.relative_to(ROOT).as_posix(), fingerprint(file))))


def source_digests() -> dict[str, str]:
    """Of what TRL's cells run, and dpo_lab's."""
    return {"trl": _source_digest(own=False), "dpo_lab": _source_digest(own=True)}


def _trl_version() -> str:
    from importlib.metadata import version

    return version("trl")


# Which cells


def planned(case: Case, cells: list[dict[str, Any]], sides: list[str], rounds: int) -> Iterator[Wanted]:
    """The cells of a case in order; `cells` grows meanwhile, and says which of TRL's batches go on."""
    for number in range(1, rounds + 1):
        batches = list(case.batches) if number == 1 else best_batches(cells, case.pairs)[:CONTENDERS]
        yield from _round(case, sides, case.pairs, number, batches)
    if case.large:
        yield from _round(case, sides, case.large, 1, best_batches(cells, case.pairs)[:1])


def _round(case: Case, sides: list[str], pairs: int, number: int, batches: list[int]) -> list[Wanted]:
    default = min(8, case.batch_size)  # DPOConfig's own
    turns = [Wanted("dpo_lab_cold", pairs, number, 0), Wanted("trl_defaults", pairs, number, default)]
    turns += [Wanted("trl_best", pairs, number, batch) for batch in batches]
    turns += [Wanted("dpo_lab_cached", pairs, number, 0)]
    turns = [cell for cell in turns if cell.side in sides]
    return [Wanted("machine", pairs, number, 0), *(turns if number % 2 else reversed(turns))]


def is_there(cells: list[dict[str, Any]], wanted: Wanted) -> bool:
    return any(all(cell[name] == value for name, value in asdict(wanted).items()) for cell in cells)


# Running them


def measure(wanted: Wanted, case: Case, sources: Sources, scratch: Path) -> dict[str, Any]:
    """Run one cell in a process of its own; out of memory is a result, anything else ends the call."""
    folder = lay_out(case, wanted.pairs, sources, scratch)
    caches = folder / "caches"
    caches.mkdir(exist_ok=True)
    cache = caches / f"cold-{wanted.round}"
    if wanted.side == "dpo_lab_cached":
        cache = caches / "sweep"
        if not cache.exists():
            done = start(folder, "fill", 0, folder / "none.json", cache, case)
            assert done.returncode == 0, _tail(done)
    result = folder / "result.json"
    result.unlink(missing_ok=True)
    begun = time.perf_counter()
    done = start(folder, wanted.side, wanted.batch, result, cache, case)
    measured = read_json(result)
    if done.returncode == 0 and measured is not None:
        return measured | {"process_seconds": time.perf_counter() - begun}
    if done.returncode in (-9, 137) or "OutOfMemoryError" in done.stderr or "out of memory" in done.stderr:
        return {"failed": "out of memory"}
    sys.exit(f"{case.name}, {wanted.words}: exit code {done.returncode}\n{_tail(done)}")


def start(
    folder: Path, side: str, batch: int, result: Path, cache: Path, case: Case
) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, HERE / "against_trl_cell.py", folder, side, batch, result, cache]
    quiet = {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1", "HF_DATASETS_CACHE": str(folder / "datasets")}
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    devices = {} if case.device == "cuda" else {"CUDA_VISIBLE_DEVICES": ""}
    environment = {**os.environ, **quiet, **devices, "PYTHONPATH": path}
    return subprocess.run([str(word) for word in words], env=environment, capture_output=True, text=True, cwd=folder)


def _tail(done: subprocess.CompletedProcess[str]) -> str:
    return f"{done.stdout[-1000:]}\n{done.stderr[-4000:]}"


def run_case(case: Case, results: Results, sources: Sources, options: argparse.Namespace, scratch: Path) -> None:
    """The cells that are missing, then the case's summaries."""
    cells = results.begin(case, sources)
    for wanted in planned(case, cells, options.sides, options.rounds):
        if is_there(cells, wanted):
            continue
        load = os.getloadavg()[0]
        cell = asdict(wanted) | measure(wanted, case, sources, scratch)
        if source_digests() != results.code:
            sys.exit(f"The code changed while {case.name}, {wanted.words} was measured. Call again when it is at rest.")
        cell |= {"key": results.key(case, sources, wanted.side), "load_before": round(load, 2)}
        cell |= {"at": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "commit": results.facts["commit"]}
        cells.append(cell)
        check([other for other in cells if other["pairs"] == wanted.pairs], case)
        lay = results.content["cases"][case.name].setdefault("lengths", {})
        lay[str(wanted.pairs)] = read_json(lay_out(case, wanted.pairs, sources, scratch) / "spec.json")["lengths"]
        results.write()
        print(f"{case.name} {wanted.words}: {_said(cell)}", flush=True)


def _said(cell: dict[str, Any]) -> str:
    if "failed" in cell:
        return cell["failed"]
    if cell["side"] == "machine":
        return f"{cell['matmul_flops'] / 1e9:.1f} GFLOP/s at the model's matrix products"
    parts = f"reference {cell['reference_seconds']:.2f}, training {cell['training_seconds']:.2f}"
    losses = f"loss {cell['losses'][0]:.4f} to {cell['losses'][-1]:.4f}"
    wrong = "; NOT ALIKE: " + ", ".join(cell["problems"]) if cell["problems"] else ""
    return f"{cell['seconds']:.2f} s ({parts}), {cell['peak_rss_gib']:.2f} GiB, {losses}{wrong}"


def conclude(case: Case, results: Results) -> list[str]:
    """Summaries of a case, and what is wrong with its cells."""
    entry = results.content["cases"][case.name]
    cells = entry["cells"]
    entry["summaries"] = {}
    for pairs, lengths in entry.get("lengths", {}).items():
        check([cell for cell in cells if cell["pairs"] == int(pairs)], case)
        if any(cell["pairs"] == int(pairs) and cell["side"] != "machine" for cell in cells):
            summary = summarise(cells, case, int(pairs), lengths)
            entry["summaries"][pairs] = summary | {"targets": met(case, summary)}
    wrong = []
    for cell in cells:
        wanted = Wanted(cell["side"], cell["pairs"], cell["round"], cell["batch"])
        wrong += [f"{case.name}, {wanted.words}: {problem}" for problem in cell.get("problems", [])]
    for side in {cell["side"] for cell in cells if cell.get("failed")}:
        if not any(sound(cells, side, int(pairs)) for pairs in entry["lengths"]):
            wrong.append(f"{case.name}, {side}: every cell ran out of memory")
    results.write()
    return wrong


def show(results: Results, cases: list[Case]) -> None:
    for case in cases:
        for pairs, summary in results.content["cases"][case.name]["summaries"].items():
            for name, target in summary["targets"].items():
                if target["found"] is not None:
                    word = "reached" if target["reached"] else "NOT REACHED"
                    bound = "at most" if name == "memory" else "at least"
                    print(
                        f"{case.name}, {pairs} pairs, {name}: {target['found']:.2f} ({bound} {target['target']}) {word}"
                    )
    print()
    print(table({case.name: results.content["cases"][case.name] for case in cases}))


def choose(options: argparse.Namespace, sources: Sources) -> list[Case]:
    """The cases that were asked for, or else those that this machine has the device and the files for."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    known = CASES | {TINY_CASE.name: TINY_CASE}
    names = options.cases or [case.name for case in CASES.values() if case.device == device]
    if unknown := [name for name in names if name not in known]:
        sys.exit(f"--cases: no case {', '.join(unknown)}. There are {', '.join(CASES)}.")
    chosen = []
    for name in names:
        case = known[name].counts(options.pairs, options.large)
        lacks = sources.missing(case) or (None if case.device in (device, "cpu") else "it needs a CUDA device")
        if lacks and options.cases:
            sys.exit(f"{name}: {lacks}.")
        if lacks:
            print(f"{name} is left out: {lacks}.")
            continue
        chosen.append(case)
    return chosen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)

    def names(text: str) -> list[str]:
        return text.split(",")

    parser.add_argument("--rounds", type=int, default=3, help="with each case's small number of pairs")
    parser.add_argument("--pairs", type=int, help="of these rounds; default: 16 on a CPU, 128 on a GPU")
    parser.add_argument(
        "--large", type=int, help="pairs of one more round, 0: none; default: 64 on a CPU, 512 on a GPU"
    )
    parser.add_argument("--cases", type=names, help=f"some of {', '.join(CASES)}; default: this machine's")
    parser.add_argument("--sides", type=names, default=list(SIDES), help=f"some of {', '.join(SIDES)}")
    parser.add_argument("--fresh", action="store_true", help="measure every cell again")
    parser.add_argument("--data", type=Path, default=SHARED / "data", help="folder of LLaMA-Factory's demo sets")
    parser.add_argument("--qwen", type=Path, default=SHARED / "models" / "qwen2.5-0.5b-instruct", help="tokenizer")
    parser.add_argument("--result", type=Path, default=RESULT, help="where the cells and the summary are written")
    options = parser.parse_args()
    if unknown := [side for side in options.sides if side not in SIDES]:
        sys.exit(f"--sides: no side {', '.join(unknown)}. There are {', '.join(SIDES)}.")
    sources = Sources(options.data.resolve(), options.qwen.resolve())
    cases, results = choose(options, sources), Results(options.result, fresh=options.fresh)
    wrong: list[str] = []
    with tempfile.TemporaryDirectory() as scratch:
        for case in cases:
            run_case(case, results, sources, options, Path(scratch))
            wrong += conclude(case, results)
    show(results, cases)
    if wrong:
        sys.exit("FAILED:\n" + "\n".join(wrong))


if __name__ == "__main__":
    main()
