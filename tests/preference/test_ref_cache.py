import json
import logging
import multiprocessing
import os
import random
import resource
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dpo_lab.preference import ref_cache
from dpo_lab.preference.ref_cache import RefCache, answer_key
from dpo_lab.runtime.errors import Guarded, LabError, OutputError

ROOT = Path(__file__).parents[2]
fork = multiprocessing.get_context("fork")


def entries_of(n: int, tokens: int = 100, seed: int = 0) -> dict[bytes, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {answer_key([seed], [i]): -torch.rand(tokens, generator=generator) for i in range(n)}


def holds(cache: RefCache, entries: dict[bytes, Tensor]) -> bool:
    return all(map(torch.equal, cache.read(list(entries)), entries.values()))


def moved_aside(cache: RefCache) -> list[Path]:
    return sorted(cache.path.parent.glob("*.damaged-*"))


def is_intact(cache: RefCache) -> bool:
    with closing(sqlite3.connect(cache.path)) as db:
        return db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def in_processes(*works: Callable[[], None]) -> list[int | None]:
    """Run each function in a process of its own, all at once; their exit codes, -9 for one that hangs."""
    processes = [fork.Process(target=work) for work in works]
    for process in processes:
        process.start()
    deadline = time.monotonic() + 30
    for process in processes:
        process.join(max(0, deadline - time.monotonic()))
        if process.is_alive():
            process.kill()
            process.join()
    return [process.exitcode for process in processes]


@pytest.fixture
def cache(tmp_path: Path) -> RefCache:
    return RefCache(tmp_path, "abc", facts={"path": "some/model", "dtype": "bfloat16"})


def test_what_was_written_is_read_bit_for_bit_in_the_order_asked(cache: RefCache) -> None:
    entries = {
        answer_key([1], [1]): torch.tensor([-0.1, -1e-38, -1e-45, -0.0, -88.7]),
        answer_key([1], [2]): torch.tensor([]),
        answer_key([1], [3]): -torch.rand(3000, dtype=torch.float64).float(),
    }
    cache.write(entries)
    keys = [*reversed(entries), next(iter(entries))]
    found = cache.read(keys)
    assert [t.numpy().tobytes() for t in found] == [entries[key].numpy().tobytes() for key in keys]
    assert all(t.dtype == torch.float32 and t.dim() == 1 for t in found)
    found[0].add_(1)  # belongs to the caller
    assert holds(cache, entries)


def test_half_precision_is_kept_as_float32_and_a_second_write_replaces_the_first(cache: RefCache) -> None:
    key = answer_key([1], [2])
    cache.write({key: torch.tensor([-1.5], dtype=torch.bfloat16)})
    assert cache.read([key])[0].dtype == torch.float32
    cache.write({key: torch.tensor([-2.5])})
    assert cache.read([key])[0].tolist() == [-2.5]


def test_more_keys_than_one_query_takes_are_found(cache: RefCache) -> None:
    entries = entries_of(2 * ref_cache.CHUNK + 7, tokens=2)
    cache.write(entries)
    extra = answer_key([9], [9])
    assert cache.missing([extra, *entries, extra]) == [extra]
    assert holds(cache, entries)


def test_keys_tell_where_the_prompt_ends_and_take_16_bytes() -> None:
    keys = {answer_key([1, 2], [3]), answer_key([1], [2, 3]), answer_key([1, 2, 3], []), answer_key([], [1, 2, 3])}
    assert len(keys) == 4
    assert answer_key((1, 2), [3]) in keys
    assert {len(key) for key in keys} == {16}


def test_a_missing_answer_is_an_error_that_says_what_to_do(cache: RefCache) -> None:
    entries = entries_of(2)
    cache.write(entries)
    with pytest.raises(LabError, match=r"lacks the log-probs of 1 of 3 answers \(0 .*Run the same command again"):
        cache.read([*entries, answer_key([7], [7])])


def test_log_probs_that_are_not_finite_are_refused(cache: RefCache) -> None:
    entries = entries_of(2)
    next(iter(entries.values()))[5] = float("nan")
    with pytest.raises(Guarded, match="1 of 2 answers"):
        cache.write(entries)
    assert len(cache.missing(entries)) == 2


def test_texts_are_kept_beside_the_log_probs_of_the_same_key(cache: RefCache) -> None:
    key = answer_key([1], [])
    assert cache.read_text(key) is None
    cache.write_text(key, "你好 \N{GRINNING FACE}\n")
    cache.write({key: torch.tensor([-1.0])})
    assert cache.read_text(key) == "你好 \N{GRINNING FACE}\n"
    assert cache.read([key])[0].tolist() == [-1.0]
    assert answer_key([1], [1]) not in cache.missing([key])


def test_the_file_says_what_the_reference_is_and_keeps_references_apart(cache: RefCache, tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "reference" / "abc.sqlite")) as db:
        assert json.loads(db.execute("SELECT json FROM facts").fetchone()[0])["dtype"] == "bfloat16"
        assert db.execute("PRAGMA journal_mode").fetchone() == ("delete",)
    entries = entries_of(1)
    cache.write(entries)
    assert RefCache(tmp_path, "other", facts={}).missing(entries) == list(entries)
    assert holds(RefCache(tmp_path, "abc", facts={}), entries)


def test_a_flipped_bit_is_reported_once_and_computed_again(cache: RefCache, caplog: pytest.LogCaptureFixture) -> None:
    entries = entries_of(5)
    cache.write(entries)
    key, logps = list(entries.items())[2]
    content = bytearray(cache.path.read_bytes())
    content[content.index(logps.numpy().tobytes()) + 40] ^= 1
    cache.path.write_bytes(content)

    assert cache.missing(entries) == [key]
    assert cache.missing(entries) == [key]
    assert cache.damaged == 1
    assert [r.levelname for r in caplog.records] == ["WARNING"]
    assert "1 of 5 entries" in caplog.text
    with pytest.raises(LabError, match="1 of 5 answers .1 of them damaged"):
        cache.read(list(entries))

    cache.write({key: logps})
    assert cache.missing(entries) == []
    assert holds(cache, entries)


def test_a_flipped_bit_in_a_text_makes_it_missing(cache: RefCache) -> None:
    key = answer_key([1], [])
    cache.write_text(key, "a text that is easily found")
    cache.path.write_bytes(cache.path.read_bytes().replace(b"easily", b"eAsily"))
    assert cache.read_text(key) is None
    assert cache.damaged == 1


def test_a_row_under_another_rows_key_is_damaged(cache: RefCache) -> None:
    entries = entries_of(2)
    cache.write(entries)
    first, second = entries
    with closing(sqlite3.connect(cache.path)) as db, db:
        payload = db.execute("SELECT checksum, payload FROM logps WHERE key = ?", [first]).fetchone()
        db.execute("UPDATE logps SET checksum = ?, payload = ? WHERE key = ?", [*payload, second])
    assert cache.missing(entries) == [second]


DAMAGES = {
    "garbage": lambda content: random.Random(0).randbytes(len(content)),
    "truncated": lambda content: content[: len(content) // 2],
    "zero header": lambda content: bytes(4096) + content[4096:],
    "zeros": lambda content: bytes(len(content)),
    "zeros but for the header": lambda content: content[:16384] + bytes(len(content) - 16384),
    "short text": lambda _: b"not a database",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_file_damaged_as_a_whole_is_moved_aside_and_filled_anew(
    cache: RefCache, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    entries = entries_of(100)
    cache.write(entries)
    content = DAMAGES[damage](cache.path.read_bytes())
    cache.path.write_bytes(content)
    journal = Path(f"{cache.path}-journal")
    journal.write_bytes(random.Random(1).randbytes(50_000))

    assert cache.missing(entries) == list(entries)
    assert [p.read_bytes() for p in moved_aside(cache)] == [content]
    assert str(cache.path) in caplog.text
    assert "computed again" in caplog.text
    assert not journal.exists()
    cache.write(entries)
    assert holds(cache, entries)
    assert is_intact(cache)


def test_a_file_deleted_or_emptied_under_a_run_is_started_anew(cache: RefCache) -> None:
    entries = entries_of(3)
    cache.write(entries)
    cache.path.unlink()
    assert cache.missing(entries) == list(entries)
    cache.path.write_bytes(b"")
    cache.write(entries)
    assert holds(cache, entries)
    assert moved_aside(cache) == []


FOREIGN = {
    "PRAGMA user_version = 7": "its format is 7, not 1",
    "PRAGMA user_version = 0": "its format is 0, not 1",
    "DROP TABLE logps": "no such table",
}


@pytest.mark.parametrize("statement", FOREIGN)
def test_a_file_of_another_format_is_moved_aside(
    cache: RefCache, tmp_path: Path, caplog: pytest.LogCaptureFixture, statement: str
) -> None:
    entries = entries_of(3)
    cache.write(entries)
    with closing(sqlite3.connect(cache.path)) as db:
        db.execute(statement)
    again = RefCache(tmp_path, "abc", facts={})
    assert again.missing(entries) == list(entries)
    assert len(moved_aside(again)) == 1
    assert FOREIGN[statement] in caplog.text


def test_no_damage_anywhere_in_the_file_gives_a_wrong_number_or_a_failure(
    cache: RefCache, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    entries = entries_of(60, tokens=600)
    cache.write(entries)
    content = cache.path.read_bytes()
    rng = random.Random(0)
    rows_found_damaged = 0
    for _ in range(80):
        damaged = bytearray(content)
        for _ in range(rng.randint(1, 10)):
            damaged[rng.randrange(rng.choice([100, 16384, len(content)]))] = rng.randrange(256)
        cache.path.write_bytes(damaged)
        again = RefCache(tmp_path, "abc", facts={})
        for _ in range(3):  # a write may be the first to meet the damage, and then it starts a new file
            missing = again.missing(entries)
            assert holds(again, {key: entries[key] for key in entries if key not in missing})
            again.write({key: entries[key] for key in missing})
        assert holds(again, entries)
        rows_found_damaged += again.damaged
    assert rows_found_damaged
    assert moved_aside(cache)


def test_processes_that_meet_damage_together_move_it_aside_once_and_lose_nothing(
    cache: RefCache, tmp_path: Path
) -> None:
    together = fork.Barrier(6)

    def work(seed: int) -> None:
        together.wait(20)
        entries = entries_of(3, seed=seed)
        again = RefCache(tmp_path, "abc", facts={})
        again.write(entries)
        assert holds(again, entries)

    for round_ in range(1, 9):
        cache.path.write_bytes(b"garbage" * 5000)
        assert in_processes(*(partial(work, seed) for seed in range(6))) == [0] * 6
        assert len(moved_aside(cache)) == round_
        assert all(holds(cache, entries_of(3, seed=seed)) for seed in range(6))


def test_the_second_process_waits_for_the_one_that_fills_and_computes_nothing(cache: RefCache, tmp_path: Path) -> None:
    entries = entries_of(4)
    computed, waited = tmp_path / "computed", tmp_path / "waited"

    def note(path: Path, line: str) -> None:
        with open(path, "a") as handle:
            handle.write(line + "\n")

    def work() -> None:
        with cache.filling(lambda: note(waited, "waited")):
            for key in cache.missing(entries):
                note(computed, key.hex())
                time.sleep(0.1)
                cache.write({key: entries[key]})

    assert in_processes(work, work) == [0, 0]
    assert sorted(computed.read_text().split()) == sorted(key.hex() for key in entries)
    assert waited.read_text() == "waited\n"
    assert holds(cache, entries)


def test_a_killed_writer_leaves_all_committed_rows_and_no_part_of_a_batch(cache: RefCache, tmp_path: Path) -> None:
    committed, unfinished = entries_of(20, seed=1), entries_of(1200, tokens=20_000, seed=2)
    cache.write(committed)
    writer = fork.Process(target=cache.write, args=(unfinished,))
    size = cache.path.stat().st_size
    writer.start()
    deadline = time.monotonic() + 20
    while cache.path.stat().st_size < size + 5_000_000 and time.monotonic() < deadline:  # pages reach the file
        time.sleep(0.001)
    assert writer.pid
    os.kill(writer.pid, signal.SIGKILL)
    writer.join()
    assert Path(f"{cache.path}-journal").stat().st_size > 0
    assert cache.path.stat().st_size > size + 5_000_000

    again = RefCache(tmp_path, "abc", facts={})
    assert holds(again, committed)
    assert len(again.missing(unfinished)) == len(unfinished)
    assert again.damaged == 0
    assert is_intact(again)


def test_four_processes_and_random_kills_lose_nothing(tmp_path: Path) -> None:
    result = tmp_path / "result.json"
    script = [sys.executable, str(ROOT / "benchmarks" / "ref_cache.py"), "--operations", "1000", "--kills", "8"]
    done = subprocess.run(
        [*script, "--seed", "1", "--result", str(result)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads(result.read_text())
    assert summary["operations"] >= 1000
    assert summary["kills"] == 8
    assert summary["acknowledged_writes"] > 200
    assert summary["intact"]
    assert [summary[name] for name in ("lost", "torn", "wrong", "unsound_rows", "moved_aside")] == [0] * 5


def test_forked_processes_use_the_cache_while_a_thread_of_the_parent_writes(cache: RefCache) -> None:
    shared = entries_of(10)
    cache.write(shared)
    stop = threading.Event()
    failures: list[BaseException] = []
    rounds = 0

    def keep_writing() -> None:
        nonlocal rounds
        try:
            while not stop.is_set():
                cache.write(entries_of(5, tokens=5000, seed=999))
                rounds += 1
        except BaseException as e:
            failures.append(e)

    def child(seed: int) -> None:
        own = entries_of(3, seed=seed)
        cache.write(own)
        assert holds(cache, own | shared)

    thread = threading.Thread(target=keep_writing)
    thread.start()
    try:
        codes = in_processes(*(partial(child, seed) for seed in range(1, 31)))
    finally:
        stop.set()
        thread.join()
    assert codes == [0] * 30
    assert not failures
    assert rounds
    assert all(holds(cache, entries_of(3, seed=seed)) for seed in range(1, 31))
    assert is_intact(cache)


def test_threads_share_one_cache(cache: RefCache) -> None:
    failures: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            for n in range(10):
                entries = entries_of(3, seed=100 * seed + n)
                cache.write(entries)
                assert holds(cache, entries)
        except BaseException as e:
            failures.append(e)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_a_file_that_may_not_grow_gives_a_clean_error_and_stays_intact(cache: RefCache) -> None:
    before, after = entries_of(20, seed=1), entries_of(50, tokens=20_000, seed=2)
    cache.write(before)

    def work() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        limit = cache.path.stat().st_size + 1_000_000
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        with pytest.raises(OutputError, match=r"Cannot use the reference cache .*cache_dir=FOLDER"):
            cache.write(after)
        assert holds(cache, before)

    assert in_processes(work) == [0]
    assert holds(cache, before)
    assert len(cache.missing(after)) == 50
    assert is_intact(cache)
    cache.write(after)
    assert holds(cache, before | after)


def test_a_full_disk_says_so_and_leaves_the_file_intact(cache: RefCache, monkeypatch: pytest.MonkeyPatch) -> None:
    before = entries_of(20, seed=1)
    cache.write(before)
    connect = sqlite3.connect

    def connect_to_full_disk(*args: Any, **kwargs: Any) -> sqlite3.Connection:
        db = connect(*args, **kwargs)
        db.execute("PRAGMA max_page_count = 20")  # SQLite's own way to say that there is no space
        return db

    monkeypatch.setattr(ref_cache.sqlite3, "connect", connect_to_full_disk)
    with pytest.raises(OutputError, match=r"The disk is full: .*abc.sqlite"):
        cache.write(entries_of(50, tokens=20_000, seed=2))
    monkeypatch.undo()
    assert holds(cache, before)
    assert is_intact(cache)


def test_a_cache_folder_that_cannot_be_made_is_a_clean_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cache_dir=FOLDER"):
        RefCache(tmp_path / "file", "abc", facts={})
    (tmp_path / "reference" / "abc.sqlite").mkdir(parents=True)
    with pytest.raises(OutputError, match="unable to open database file.*cache_dir=FOLDER"):
        RefCache(tmp_path, "abc", facts={})


def test_a_lock_held_by_another_program_is_a_clean_error(cache: RefCache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ref_cache, "BUSY_SECONDS", 0.05)
    with closing(sqlite3.connect(cache.path, isolation_level=None)) as db:
        db.execute("BEGIN EXCLUSIVE")
        with pytest.raises(OutputError, match="locked by another program"):
            cache.write(entries_of(1))
    cache.write(entries_of(1))


@pytest.mark.parametrize("gate", [True, False])
def test_a_read_only_folder_is_read_and_refuses_writes(gate: bool) -> None:
    entries = entries_of(3)
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        cache = RefCache(Path(folder), "abc", facts={})
        cache.write(entries)
        if not gate:
            cache.path.with_suffix(".gate").unlink()
        cache.path.chmod(0o444)
        cache.path.parent.chmod(0o555)

        def work() -> None:
            if os.geteuid() == 0:
                os.setuid(65534)  # root may write anywhere
            again = RefCache(Path(folder), "abc", facts={})
            assert holds(again, entries)
            with pytest.raises(OutputError, match="cache_dir=FOLDER"):
                again.write(entries)

        assert in_processes(work) == [0]
        cache.path.parent.chmod(0o755)
