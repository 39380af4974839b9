"""Four processes on one reference cache, some of them killed at random moments: is anything lost, torn or wrong?

    python benchmarks/ref_cache.py --operations 1000 --kills 12 --seed 0

Each process notes `begin BATCH` before a write and `wrote BATCH` (synced to disk) after it returned. In the end every
batch that was noted as written must be there, bit for bit, and every other one wholly or not at all.
"""

import argparse
import json
import multiprocessing
import os
import random
import sqlite3
import sys
import tempfile
import time
from contextlib import closing
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch
from torch import Tensor

from dpo_lab.preference.ref_cache import RefCache, answer_key
from dpo_lab.runtime.files import digest, write_json

PROCESSES = 4
BATCH = 8  # answers a write
REFERENCE_ID = "stress"
RESULT = Path(__file__).parent / "results" / "ref_cache.json"


def batch_of(name: str) -> dict[bytes, Tensor]:
    """The entries that a batch of this name holds, whoever writes it: 8 answers of 20 to 2000 tokens."""
    rng = random.Random(name)
    generator = torch.Generator().manual_seed(rng.getrandbits(60))
    return {
        answer_key(name.encode(), [i]): -torch.rand(rng.randint(20, 2000), generator=generator) for i in range(BATCH)
    }


class Notes:
    """What one process did, a line an operation, synced to disk."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, line: str) -> None:
        with open(self.path, "a", encoding="ascii") as handle:
            handle.write(line + "\n")
            handle.flush()
            os.fsync(handle.fileno())

    def lines(self) -> list[str]:
        return self.path.read_text(encoding="ascii").splitlines() if self.path.exists() else []

    def operations(self) -> int:
        return sum(not line.startswith("begin") for line in self.lines())


def names(notes: list[Notes], verb: str) -> list[str]:
    return sorted({line.split()[1] for note in notes for line in note.lines() if line.startswith(verb)})


def work(folder: Path, notes: list[Notes], slot: int, generation: int, seed: int, operations: int) -> None:
    """Random operations, each checked as far as it can be."""
    rng = random.Random(f"{seed} {slot} {generation}")
    cache = RefCache(folder, REFERENCE_ID, facts={})
    for n in range(operations):
        written = names(notes, "wrote")
        action = rng.choices(["new", "again", "read", "missing", "text"], [45, 10, 30, 10, 5])[0] if written else "new"
        name = f"{slot}.{generation}.{n}" if action == "new" else rng.choice(written)
        entries = batch_of(name)
        if action in ("new", "again"):
            notes[slot].add(f"begin {name}")
            cache.write(entries)
            notes[slot].add(f"wrote {name}")
        elif action == "read":
            assert all(map(torch.equal, cache.read(list(entries)), entries.values())), f"wrong numbers in {name}"
            notes[slot].add(f"read {name}")
        elif action == "missing":
            assert not cache.missing(entries), f"lost {name}"
            notes[slot].add(f"missing {name}")
        else:
            key = next(iter(entries))
            cache.write_text(key, name)
            assert cache.read_text(key) == name
            notes[slot].add(f"text {name}")
        assert not cache.damaged, f"{cache.damaged} damaged rows"


def run(folder: Path, *, operations: int, kills: int, seed: int) -> dict[str, int]:
    """Let the processes work, kill some; the counts of what happened."""
    context = multiprocessing.get_context("fork")
    rng = random.Random(seed)
    notes = [Notes(folder / f"notes-{slot}.txt") for slot in range(PROCESSES)]
    share = operations // PROCESSES
    generations = [0] * PROCESSES

    def start(slot: int) -> BaseProcess:
        left = share - notes[slot].operations()
        process = context.Process(target=work, args=(folder, notes, slot, generations[slot], seed, left))
        process.start()
        generations[slot] += 1
        return process

    processes = [start(slot) for slot in range(PROCESSES)]
    kill_at = sorted(rng.sample(range(1, int(operations * 0.9)), kills))
    killed = inside = 0
    while killed < kills:
        alive = [slot for slot, process in enumerate(processes) if process.is_alive()]
        assert alive, f"every process ended after {killed} of {kills} kills"
        if sum(note.operations() for note in notes) >= kill_at[killed]:
            slot = rng.choice(alive)
            if rng.random() < 0.5:  # half of the kills aim at a process that is writing
                deadline = time.monotonic() + 0.5
                while not (notes[slot].lines() or [""])[-1].startswith("begin") and time.monotonic() < deadline:
                    time.sleep(0.0005)
            time.sleep(rng.uniform(0, 0.004))
            if processes[slot].is_alive():
                processes[slot].kill()
                processes[slot].join()
                killed += 1
                inside += (notes[slot].lines() or [""])[-1].startswith("begin")
                processes[slot] = start(slot)
        time.sleep(0.005)
    for process in processes:
        process.join()
    codes = [process.exitcode for process in processes]
    assert codes == [0] * PROCESSES, f"a process failed: exit codes {codes}"
    done = sum(note.operations() for note in notes)
    return {"operations": done, "kills": killed, "killed_inside_write": inside} | verify(folder, notes)


def verify(folder: Path, notes: list[Notes]) -> dict[str, int]:
    """Count what is lost, torn or wrong, without the cache's own reading where that is possible."""
    path = folder / "reference" / f"{REFERENCE_ID}.sqlite"
    moved = len(list(path.parent.glob("*damaged*")))
    with closing(sqlite3.connect(path)) as db:  # rolls back what the last kill left
        intact = db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        rows = [
            (table, *row)
            for table in ("logps", "texts")
            for row in db.execute(f"SELECT key, checksum, payload FROM {table}")
        ]
    unsound = sum(checksum != digest(table, key, payload).encode() for table, key, checksum, payload in rows)
    there = {key: payload for table, key, _, payload in rows if table == "logps"}
    lost = torn = wrong = 0
    acknowledged = set(names(notes, "wrote"))
    for name in names(notes, "begin"):
        entries = batch_of(name)
        present = [key for key in entries if key in there]
        lost += name in acknowledged and len(present) < BATCH
        torn += 0 < len(present) < BATCH
        wrong += any(there[key] != entries[key].numpy().tobytes() for key in present)
    return {
        "rows": len(rows),
        "acknowledged_writes": len(acknowledged),
        "lost": lost,
        "torn": torn,
        "wrong": wrong,
        "unsound_rows": unsound,
        "moved_aside": moved,
        "intact": int(intact),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--operations", type=int, default=1000)
    parser.add_argument("--kills", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--result", type=Path, default=RESULT, help="where the summary is written")
    options = parser.parse_args()
    torch.set_num_threads(1)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        summary = run(Path(folder), operations=options.operations, kills=options.kills, seed=options.seed)
    seconds = round(time.perf_counter() - started, 2)
    summary |= {"processes": PROCESSES, "seed": options.seed, "seconds": seconds, "cpus": os.cpu_count()}
    summary |= {"sqlite": sqlite3.sqlite_version, "torch": torch.__version__}
    print(json.dumps(summary, indent=2))
    write_json(options.result, summary)
    failures = [name for name in ("lost", "torn", "wrong", "unsound_rows", "moved_aside") if summary[name]]
    if failures or not summary["intact"]:
        sys.exit(f"FAILED: {', '.join(failures) or 'integrity check'}")


if __name__ == "__main__":
    main()
