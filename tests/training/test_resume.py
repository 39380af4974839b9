"""The same command again goes on where it was killed, and comes to the same result, bit by bit."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from runs import Child, Lab, at, rows, same_result, send, status, steps_done, until, weights

from dpo_lab.runtime.files import is_locked, read_jsonl

DIE = send(signal.SIGKILL)
# Small micro-batches make many of them; dropout needs the right random state.
OPTIONS = ("trainer.microbatch_tokens=150", "lora.dropout=0.1")


def half_a_checkpoint(path: Path, state: dict[str, Any]) -> None:
    path.write_bytes(b"half")
    DIE()


def half_a_row(log: Any, *_: Any) -> None:
    with open(log.path, "a", encoding="utf-8") as handle:
        handle.write('{"step": 99, "train/lo')
    DIE()


# In the order of a run: every kill hits what the one before had to leave undone.
KILLS = {
    "before anything": at("dpo_lab.training.align:Run.__init__", DIE),
    "in the reference pass": at("dpo_lab.preference.ref_cache:RefCache.write", DIE, call=4),
    "before the first step": at("dpo_lab.training.align:Run.fit", DIE),
    "in the first checkpoint": at("dpo_lab.training.checkpoint:_write", half_a_checkpoint),
    "before its checksum": at("dpo_lab.training.checkpoint:write_json", DIE),
    "before the second checkpoint is whole": at("dpo_lab.training.checkpoint:write_json", DIE, call=2),
    "in an evaluation": at("dpo_lab.inference.scoring:Scorer.score", DIE),
    "in a row of metrics": at("dpo_lab.training.trackers:MetricsFile.log", half_a_row, call=3),
    "while an old checkpoint is deleted": at("dpo_lab.training.checkpoint:remove", DIE, call=2),
    "in the last evaluation": at("dpo_lab.inference.scoring:Scorer.score", DIE),
    "after the last evaluation": at("dpo_lab.training.align:Run.write_samples", DIE),
    "while the result is written": at("dpo_lab.models.save:atomic_write", DIE),
    "before the status is written": at("dpo_lab.training.folder:RunFolder.write_status", DIE, call=2),
}


@pytest.fixture
def straight(tmp_path: Path, lab: Lab) -> Lab:
    """A lab of its own, cache included, for the run that nothing disturbs."""
    return Lab(tmp_path / "straight", lab.model, lab.data)


def test_a_run_killed_at_every_stage_ends_bit_identical(lab: Lab, straight: Lab) -> None:
    folder = lab.folder(*OPTIONS)
    for stage, first in KILLS.items():
        child = lab.train_in_child(*OPTIONS, first=first)
        assert child.code == 137, f"{stage}: it was never reached: {child.text}"
        assert not folder.done, stage
        assert status(folder)["status"] == "running", stage
        assert not is_locked(folder.path / "run.lock"), f"{stage}: running without a holder is interrupted"
    last = lab.train_in_child(*OPTIONS)
    assert last.code == 0, last.text
    assert "going on from step 6 of 6" in last.text
    same_result(folder, straight.train(*OPTIONS))
    assert not list(folder.path.rglob("*.tmp")), "the kills left half-written files behind"


def test_a_kill_of_one_run_in_the_reference_pass_does_not_change_the_last_bits(lab: Lab, straight: Lab) -> None:
    """The pairs that are left must be computed in the micro-batches that they would have been in."""
    options = ("trainer.microbatch_tokens=400", "trainer.eval_every=0", "optim.max_steps=8")
    killed = lab.train_in_child(*options, first=at("dpo_lab.preference.ref_cache:RefCache.write", DIE, call=3))
    assert killed.code == 137, killed.text
    assert lab.train_in_child(*options).code == 0
    same_result(lab.folder(*options), straight.train(*options))


def test_steps_that_a_checkpoint_holds_are_not_trained_again(lab: Lab) -> None:
    folder = lab.folder()
    lab.train_in_child(
        first=at("dpo_lab.training.trackers:MetricsFile.log", DIE, call=7)
    )  # val at 0 and 3, so at step 5
    assert steps_done(folder) == 4
    written = folder.metrics.read_text(encoding="utf-8").splitlines()
    assert lab.train_in_child().code == 0
    now = folder.metrics.read_text(encoding="utf-8").splitlines()
    assert now[: len(written)] == written, "rows up to the checkpoint stay as they were, times included"
    assert [row["step"] for row in rows(folder, "train/")] == [1, 2, 3, 4, 5, 6]
    assert [row["step"] for row in rows(folder, "val/")] == [0, 3, 6]


def test_metrics_after_the_checkpoint_are_cut(lab: Lab) -> None:
    folder = lab.folder()
    lab.train_in_child(
        first=at("dpo_lab.training.trackers:MetricsFile.log", DIE, call=8)
    )  # step 5 is logged, 4 is saved
    assert steps_done(folder) == 5
    lab.train_in_child(first=at("dpo_lab.training.align:Run.align", DIE))
    assert [row["step"] for row in rows(folder)] == [0, 1, 2, 3, 3, 4]


def test_a_second_process_is_refused_and_the_first_goes_on(lab: Lab) -> None:
    held = lab.root / "hold"
    held.touch()

    def wait(*_: Any) -> None:
        until(lambda: not held.exists())

    first = lab.start(first=at("dpo_lab.training.align:Run.write_samples", wait))
    folder = lab.folder()
    until(lambda: steps_done(folder) == 6, first)
    before = folder.metrics.read_bytes()
    second: list[Child] = [lab.call(), lab.call("overwrite=true")]
    held.unlink()
    for child in second:
        assert child.code == 1
        assert "Another process is running this very configuration" in child.text
        assert "Traceback" not in child.text
    assert first.wait() == 0, first.text
    assert folder.metrics.read_bytes()[: len(before)] == before
    assert folder.done


def test_a_finished_run_says_so_and_trains_nothing(lab: Lab) -> None:
    folder = lab.train()
    before = {path: path.stat().st_mtime_ns for path in folder.path.rglob("*") if path.is_file()}
    child = lab.call()
    assert child.code == 0
    assert "Already done" in child.text
    assert "overwrite=true" in child.text
    assert {path: path.stat().st_mtime_ns for path in before} == before
    metrics, samples = rows(folder), read_jsonl(folder.samples)
    adapter, written = weights(folder), os.stat(folder.final).st_mtime_ns
    again = lab.train("overwrite=true")
    assert again.path == folder.path
    assert os.stat(folder.final).st_mtime_ns != written, "it was written anew"
    assert (rows(again), read_jsonl(again.samples), weights(again)) == (metrics, samples, adapter)


def test_a_kill_while_overwriting_never_leaves_half_a_result_that_counts_as_done(lab: Lab) -> None:
    folder = lab.train()
    child = lab.train_in_child("overwrite=true", first=at("shutil:rmtree", DIE))
    assert child.code == 137, child.text
    assert not folder.done
