"""Sweep folders are read whatever state they are in."""

import json
import math
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from folders import write_book, write_trial

from dpo_lab.runtime.errors import LabError
from dpo_lab.runtime.files import file_lock
from dpo_lab.sweep.results import load

MARGINS = [1.5, -0.5, 0.25, 0.0]
PROMPTS = ["aaaa0000", "aaaa0000", "bbbb1111", "cccc2222"]


@pytest.fixture
def sweep(tmp_path):
    return write_book(tmp_path / "lr", {"optim.lr": [1e-4, 5e-5], "loss": ["dpo", "ipo"]})


def only(folder):
    [trial] = load(folder).trials
    return trial


def test_a_trial_is_read_with_all_that_it_left(sweep):
    axes = {"optim.lr": 1e-4, "loss": "dpo", "seed": 1}
    path = write_trial(
        sweep, axes=axes, margins=MARGINS, prompts=PROMPTS, kl=0.5, tokens=[(9, 8), (7, 6), (5, 4), (3, 2)]
    )
    trial = only(sweep)
    assert (trial.id, trial.path, trial.number, trial.state) == (path.name, path, 0, "done")
    assert trial.axes == axes
    assert trial.seedless() == {"optim.lr": 1e-4, "loss": "dpo"}
    assert trial.overrides == ("data=demo", "optim.lr=0.0001", "loss=dpo", "seed=1")
    assert (trial.step, trial.steps, trial.seconds) == (20, 20, 61.5)
    assert trial.metrics["val/kl"] == 0.5
    assert trial.metrics["val/rewards/accuracies"] == 0.5
    assert all(name.startswith("val/") for name in trial.metrics)
    assert sum("train/loss" in row for row in trial.rows) == 20
    assert trial.facts["device"] == "cpu"
    assert trial.pairs is not None
    np.testing.assert_allclose(trial.pairs.margins, MARGINS, atol=1e-12)
    assert trial.pairs.correct.tolist() == [1, 0, 1, 0]  # a margin of 0 is not right
    assert trial.pairs.prompts == tuple(PROMPTS)
    assert trial.pairs.index.tolist() == [0, 1, 2, 3]
    assert trial.pairs.chosen_tokens.tolist() == [9, 7, 5, 3]
    assert trial.pairs.rejected_tokens.tolist() == [8, 6, 4, 2]
    assert (trial.pairs.step, trial.pairs.has_reference) == (20, True)


def test_margins_are_recomputed_from_the_log_probs(sweep):
    path = write_trial(sweep, axes={}, margins=[1.0, 1.0])
    rows = [
        {
            "step": 4,
            "index": 7,
            "chosen_logps": -10.0,
            "rejected_logps": -20.0,
            "chosen_tokens": 3,
            "rejected_tokens": 4,
        },
        {
            "step": 4,
            "index": 2,
            "chosen_logps": -30.0,
            "rejected_logps": -21.0,
            "chosen_tokens": 5,
            "rejected_tokens": 6,
        },
    ]
    (path / "eval_pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pairs = only(sweep).pairs
    assert pairs is not None
    assert pairs.index.tolist() == [2, 7]  # in order
    assert pairs.margins.tolist() == [-9.0, 10.0]  # without a reference: of the policy
    assert pairs.prompts == ("2", "7")  # an older folder: each pair is its own prompt
    assert not pairs.has_reference
    for row, chosen, rejected in zip(rows, (-13.0, -31.0), (-19.5, -19.0), strict=True):
        row |= {"ref_chosen_logps": chosen, "ref_rejected_logps": rejected}
    (path / "eval_pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pairs = only(sweep).pairs
    assert pairs is not None
    assert pairs.margins.tolist() == [(-30 + 31) - (-21 + 19), (-10 + 13) - (-20 + 19.5)]
    assert pairs.has_reference


@pytest.mark.parametrize("state", ["done", "failed", "pruned", "interrupted", "new"])
def test_a_trial_shows_its_state(sweep, state):
    write_trial(
        sweep, axes={"seed": 0}, margins=MARGINS, state=state, reason="because" if state != "done" else "", kind="oom"
    )
    trial = only(sweep)
    assert trial.state == state
    assert trial.reason == ("because" if state in ("failed", "pruned", "interrupted") else "")
    assert trial.kind == ("oom" if state == "failed" else "")
    assert trial.step == {"done": 20, "new": 0}.get(state, 10)
    assert (trial.seconds is not None) == (state == "done")


def test_a_trial_whose_lock_is_held_is_running(sweep):
    path = write_trial(sweep, axes={"seed": 0}, margins=MARGINS, state="interrupted")
    with file_lock(path / "run.lock", wait=False):
        assert only(sweep).state == "running"
    assert only(sweep).state == "interrupted"


def test_done_without_a_result_is_not_done(sweep):
    path = write_trial(sweep, axes={"seed": 0}, margins=MARGINS)
    shutil.rmtree(path / "final")
    assert only(sweep).state == "interrupted"


DAMAGES = {
    "empty": b"",
    "binary": b"\x00\xff\xfe\x80{",
    "null": b"null",
    "a list": b"[1, 2]",
    "text": b'"text"\n"text"\n',
    "an empty object": b"{}\n",
    "wrong types": b'{"step": "x", "index": {}, "axes": 3, "overrides": 4, "number": "5", "status": [], "seconds": "y"}\n',
    "yaml": b"a: [b\n  c: - d",
}
FILES = ("trial.json", "status.json", "facts.json", "metrics.jsonl", "eval_pairs.jsonl", "../sweep.yaml")


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", FILES)
def test_no_damaged_file_stops_the_reading(sweep, name, damage):
    write_trial(sweep, axes={"seed": 0}, margins=MARGINS, name="whole")
    path = write_trial(sweep, axes={"seed": 1}, margins=MARGINS, name="hurt")
    (path / name).write_bytes(DAMAGES[damage])
    found = {trial.id: trial for trial in load(sweep).trials}
    assert set(found) == {"whole", "hurt"}
    assert found["whole"].pairs is not None
    assert found["whole"].state == "done"
    assert (found["hurt"].pairs is None) == (name == "eval_pairs.jsonl")
    assert (found["hurt"].state == "done") == (name != "status.json")


@pytest.mark.parametrize("name", FILES[:-1])
def test_files_torn_at_any_byte_and_missing_ones_are_read(sweep, name):
    path = write_trial(sweep, axes={"seed": 0}, margins=MARGINS[:2], steps=2, prompts=PROMPTS[:2])
    whole = (path / name).read_bytes()
    for length in range(0, len(whole), max(1, len(whole) // 60)):
        (path / name).write_bytes(whole[:length])
        assert only(sweep).id == path.name
    (path / name).unlink()
    assert only(sweep).id == path.name
    (path / name).mkdir()
    assert only(sweep).id == path.name


def test_rows_before_and_after_a_torn_one_are_kept(sweep):
    path = write_trial(sweep, axes={"seed": 0}, margins=MARGINS)
    text = (path / "metrics.jsonl").read_text()
    (path / "metrics.jsonl").write_text(
        text + '{"step": 21, "train/lo\n{"step": 22, "val/loss": "nan"}\n{"step": 23, "tr'
    )
    trial = only(sweep)
    assert trial.step == 22
    assert len(trial.rows) == len(text.splitlines()) + 1
    assert math.isnan(trial.metrics["val/loss"])  # NaN is written as text


def test_log_probs_that_are_no_numbers_become_nan(sweep):
    path = write_trial(sweep, axes={"seed": 0}, margins=MARGINS)
    rows = [json.loads(line) for line in (path / "eval_pairs.jsonl").read_text().splitlines()]
    rows[0]["chosen_logps"] = "nan"
    rows[1] |= {"chosen_logps": "-inf", "rejected_logps": "-inf"}
    (path / "eval_pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pairs = only(sweep).pairs
    assert pairs is not None
    assert np.isnan(pairs.margins).tolist() == [True, True, False, False]
    assert pairs.correct.tolist() == [0, 0, 1, 0]


def test_a_lost_trial_file_is_made_up_for_from_the_overrides(sweep):
    path = write_trial(sweep, axes={"optim.lr": 1e-4, "loss": "ipo"}, margins=MARGINS)
    (path / "trial.json").unlink()
    (path / ".hydra").mkdir()
    words = ["data=demo", "loss=ipo", "optim.lr=1e-4", "sweep.name=lr", "hydra.run.dir=x"]
    (path / ".hydra" / "overrides.yaml").write_text("".join(f"- {word}\n" for word in words))
    trial = only(sweep)
    assert trial.axes == {"optim.lr": 1e-4, "loss": "ipo"}
    assert [*trial.axes] == ["optim.lr", "loss"]  # in the sweep's order
    assert trial.overrides == ("data=demo", "loss=ipo", "optim.lr=1e-4")


def test_trials_come_in_the_order_of_their_start(sweep):
    for number, name in ((2, "a"), (0, "b"), (1, "c")):
        write_trial(sweep, axes={"seed": number}, margins=MARGINS, number=number, name=name)
    write_trial(sweep, axes={"seed": 9}, margins=MARGINS, number=7, name="d")
    (sweep / "d" / "trial.json").write_text("{")
    assert [trial.id for trial in load(sweep).trials] == ["b", "c", "a", "d"]  # one without a number at the end


def test_values_of_an_axis_are_sorted_by_size_and_words_stay_as_met(sweep):
    for rank, loss, seed in ((16, "ipo", 10), (8, "dpo", 9), (128, "ipo", 9), (8, "hinge", 1)):
        write_trial(sweep, axes={"lora.r": rank, "loss": loss, "optim.lr": rank * 1e-5, "seed": seed})
    assert load(sweep).axes == {
        "lora.r": [8, 16, 128],
        "loss": ["ipo", "dpo", "hinge"],
        "optim.lr": [8e-5, 16e-5, 128e-5],
        "seed": [1, 9, 10],
    }


def test_the_link_to_the_winner_and_what_is_no_run_are_not_trials(sweep):
    path = write_trial(sweep, axes={"seed": 0}, margins=MARGINS)
    (sweep / "winner").symlink_to(path.name)
    (sweep / "pictures").mkdir()
    (sweep / "report.md").write_text("# report")
    found = load(sweep)
    assert [trial.id for trial in found.trials] == [path.name]
    assert found.name == "lr"
    assert found.book["overrides"] == ["data=demo"]


def test_a_sweep_without_trials_and_trials_without_a_book_are_sweeps(sweep):
    assert load(sweep).trials == ()
    write_trial(sweep, axes={"seed": 0}, margins=MARGINS)
    (sweep / "sweep.yaml").unlink()
    found = load(sweep)
    assert (found.name, found.book, len(found.trials)) == ("lr", {}, 1)


def test_what_is_no_sweep_is_refused_with_advice(sweep):
    trial = write_trial(sweep, axes={"seed": 0}, margins=MARGINS)
    cases: dict[Path, list[str]] = {
        sweep.parent / "lrr": ["There is no sweep", "There are lr."],
        sweep.parent / "far" / "lr": ["There is no sweep", "--multirun"],
        trial: ["single run", "It belongs to the sweep", "lr."],
        sweep.parent: ["holds lr", "sweep.dir="],
        sweep / "sweep.yaml": ["is a file"],
        trial / "final": ["no sweep.yaml and no trials"],
    }
    for path, words in cases.items():
        with pytest.raises(LabError) as e:
            load(path)
        assert all(word in str(e.value) for word in words), str(e.value)


@pytest.mark.slow
def test_a_thousand_trials_are_read_in_seconds(sweep):
    margins = np.random.default_rng(0).normal(size=100)
    path = write_trial(
        sweep, axes={"seed": 0}, margins=[*margins], prompts=[f"{i // 2:08x}" for i in range(100)], name="0"
    )
    for i in range(1, 1000):
        shutil.copytree(path, sweep / str(i))
    start = time.perf_counter()
    assert len(load(sweep).trials) == 1000
    assert time.perf_counter() - start < 10  # about 1.5 s on two idle cores
