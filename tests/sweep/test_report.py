"""The report of a sweep as files, in the terminal and through its door."""

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from folders import write_book, write_trial
from report_folders import HOSTILE, write_sweep
from rich.console import Console

from dpo_lab.config.sources import Sources
from dpo_lab.runtime.errors import ConfigError, LabError
from dpo_lab.runtime.files import file_lock
from dpo_lab.sweep.report import find_sweep, show, write_report

ROOT = Path(__file__).resolve().parents[2]
PAIRS = 40


def scored(folder, right, **axes):
    return write_trial(folder, axes=axes, margins=[1.0 if i < right else -1.0 for i in range(PAIRS)])


@pytest.fixture
def small(tmp_path):
    """Two settings with two seeds each, one of which is far ahead, and two trials that did not end well."""
    folder = write_book(tmp_path / "small", {"optim.lr": [5e-5, 1e-4, 2e-4], "seed": [0, 1]})
    for lr, right in ((5e-5, 10), (1e-4, 34)):
        for seed in (0, 1):
            scored(folder, right + seed, **{"optim.lr": lr, "seed": seed})
    write_trial(folder, axes={"optim.lr": 2e-4, "seed": 0}, state="failed", reason="The loss is nan.", kind="guard")
    write_trial(folder, axes={"optim.lr": 2e-4, "seed": 1}, state="pruned", reason="held-out accuracy 0.50 at step 10")
    return folder


def shown(report, width=120):
    out = io.StringIO()
    show(report, Console(file=out, width=width, highlight=False))
    return out.getvalue()


def test_the_files_of_a_report_say_the_same(small):
    report = write_report(small)
    assert report.answer.verdict == "clear winner"
    sentence = report.answer.sentence
    page, text = (small / "report.html").read_text(encoding="utf-8"), (small / "report.md").read_text(encoding="utf-8")
    first, _, more = sentence.partition(". ")
    assert first in page
    assert more in page
    assert sentence in text
    assert " ".join(sentence.split()) in " ".join(shown(report).split())
    for where in (page, text):
        assert "The loss is nan." in where
        assert "held-out accuracy 0.50 at step 10" in where
        assert "python -m dpo_lab data=demo optim.lr=0.0001 seed=1" in where
        assert "0123456789abcdef" in where  # the commit
        assert "fedcba9876543210" in where  # the data
        assert "the base model" in where


def test_the_csv_has_a_line_a_trial_and_opens_in_pandas(small):
    pandas = pytest.importorskip("pandas")
    write_report(small)
    table = pandas.read_csv(small / "leaderboard.csv")
    assert len(table) == 6
    assert list(table.place[:4]) == [1, 1, 2, 2]
    assert table.place[4:].isna().all()
    assert list(table["optim.lr"]) == [1e-4, 1e-4, 5e-5, 5e-5, 2e-4, 2e-4]
    assert list(table.accuracy[:4]) == [34 / PAIRS, 35 / PAIRS, 10 / PAIRS, 11 / PAIRS]
    assert table.setting_accuracy[0] == pytest.approx(34.5 / PAIRS)
    assert table.setting_behind[2] == pytest.approx(24 / PAIRS)
    assert table.setting_accuracy_low[0] < table.setting_accuracy[0] < table.setting_accuracy_high[0]
    assert table.margin[0] == pytest.approx((34 - 6) / PAIRS)
    assert sorted(table.state) == ["done"] * 4 + ["failed", "pruned"]
    assert "The loss is nan." in set(table.reason)


def test_the_csv_has_its_columns_where_nothing_was_compared(tmp_path):
    write_book(tmp_path, {"seed": [0, 1]})
    write_trial(tmp_path, axes={"seed": 0}, state="new")
    write_report(tmp_path)
    head, row = (tmp_path / "leaderboard.csv").read_text().splitlines()
    assert head.startswith("place,setting,trial,seed,state,accuracy,margin,kl")
    assert ",new," in row


def test_winner_leads_to_the_best_trial_of_the_best_setting(small):
    report = write_report(small)
    assert report.winner is not None
    assert report.winner.axes == {"optim.lr": 1e-4, "seed": 1}
    assert os.readlink(small / "winner") == f"{report.winner.id}/final"
    assert (small / "winner" / "adapter_config.json").is_file()


def test_winner_is_replaced_when_another_setting_wins(small):
    before = os.readlink(write_report(small).file("winner"))
    better = scored(small, PAIRS, **{"optim.lr": 3e-4, "seed": 0})
    write_report(small)
    assert os.readlink(small / "winner") == f"{better.name}/final" != before
    assert not [*small.glob(".*.tmp")]


def test_the_leader_is_the_winner_link_where_nobody_clearly_wins(tmp_path):
    write_book(tmp_path, {"optim.lr": [5e-5, 1e-4], "seed": [0, 1]})
    for lr in (5e-5, 1e-4):
        for seed in (0, 1):
            scored(tmp_path, 20 + seed + int(lr == 1e-4), **{"optim.lr": lr, "seed": seed})
    report = write_report(tmp_path)
    assert report.answer.verdict == "no clear winner"
    assert (tmp_path / "winner").is_dir()
    assert "not a clear winner" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_a_winner_of_former_times_goes_when_no_trial_counts(tmp_path):
    write_book(tmp_path, {"optim.lr": [5e-5, 1e-4]})
    trial = scored(tmp_path, 20, **{"optim.lr": 1e-4})
    assert write_report(tmp_path).answer.verdict == "one setting"
    assert (tmp_path / "winner").is_dir()
    (trial / "eval_pairs.jsonl").unlink()
    assert write_report(tmp_path).answer.verdict == "nothing"
    assert not (tmp_path / "winner").is_symlink()
    assert (trial / "final").is_dir()


def test_where_links_are_impossible_winner_is_a_file_with_the_path(small, monkeypatch):
    def refused(*_: object, **__: object) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(os, "symlink", refused)
    report = write_report(small)
    assert report.winner is not None
    assert (small / "winner").read_text() == f"{report.winner.id}/final\n"


def test_half_written_folders_are_reported_not_stumbled_over(small):
    folders = sorted(p for p in small.iterdir() if p.is_dir())
    (folders[0] / "metrics.jsonl").write_text('{"step": 1, "train/loss": 0.')
    (folders[1] / "facts.json").write_text("{")
    (folders[2] / "eval_pairs.jsonl").write_text('{"index": 0}\n[]\n')
    (folders[3] / "samples.jsonl").write_text('{"prompt": 3, "policy": null}\n7\n{"policy": "x"}\n')
    (small / "sweep.yaml").write_text("axes: [")
    (small / "empty").mkdir()
    write_report(small)
    assert (small / "report.html").is_file()


def test_a_sweep_that_still_runs_is_reported_as_far_as_it_is(small):
    running = write_trial(small, axes={"optim.lr": 1e-3, "seed": 0}, state="interrupted")
    with file_lock(running / "run.lock", wait=False), file_lock(small / "sweep.lock", wait=False):
        report = write_report(small)
    assert [row.state for row in report.rows if row.axes == {"optim.lr": 1e-3}] == ["running"]
    assert not any("own command goes on" in advice.text for advice in report.advice)


def test_text_of_the_data_stays_text_in_markdown(tmp_path):
    write_sweep(
        tmp_path, values={"data.format": ["trl", HOSTILE]}, seeds=(0,), pairs=12, steps=6, hostile=True, losses=False
    )
    write_report(tmp_path)
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    outside, fenced = [], False
    for line in text.splitlines():
        if re.fullmatch(r"\s*`{3,}\w*", line):
            fenced = not fenced
        elif not fenced:
            outside.append(line)
    assert not fenced
    assert not [line for line in outside if "<script" in line]
    [header] = [line for line in outside if line.startswith("| | setting")]
    table = [line for line in outside if re.match(r"\| [12] ", line)]
    assert len(table) == 2
    assert all(len(re.findall(r"(?<!\\)\|", line)) == header.count("|") for line in table)


def test_half_a_surrogate_pair_in_an_answer_can_be_written(tmp_path):
    write_book(tmp_path, {"seed": [0]})
    sample = {"prompt": [{"role": "user", "content": "hi \ud83d"}], "reference": "\udc00", "policy": "ok \ud800"}
    path = write_trial(tmp_path, axes={"seed": 0}, margins=[1.0] * 8)
    (path / "samples.jsonl").write_text(json.dumps(sample) + "\n")
    write_report(tmp_path)
    assert "ok ?" in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "ok ?" in (tmp_path / "report.md").read_text(encoding="utf-8")


def test_the_terminal_stays_within_its_width_but_for_commands(small):
    lines = shown(write_report(small), width=90).splitlines()
    assert any(line.lstrip().startswith("1 ●") for line in lines)
    assert [line for line in lines if len(line) > 90 and "dpo_lab" not in line and str(small) not in line] == []


def test_a_folder_that_is_no_sweep_is_refused(tmp_path):
    with pytest.raises(LabError, match="no sweep"):
        write_report(tmp_path)
    assert [*tmp_path.iterdir()] == []


def test_a_sweep_is_found_by_name_or_folder(tmp_path):
    for name in ("lr_beta-1a2b", "ranks"):
        write_book(tmp_path / name, {"seed": [0]})
    assert find_sweep("ranks", None, tmp_path) == tmp_path / "ranks"
    assert find_sweep("ranks", str(tmp_path / "lr_beta-1a2b"), Path("nowhere")) == tmp_path / "lr_beta-1a2b"
    with pytest.raises(ConfigError, match=r"Did you mean ranks\?"):
        find_sweep("rank", None, tmp_path)
    with pytest.raises(ConfigError, match=r"sweep.name=NAME or sweep.dir=FOLDER.*lr_beta-1a2b and ranks"):
        find_sweep(None, None, tmp_path)
    with pytest.raises(ConfigError, match="holds no sweep"):
        find_sweep("rank", None, tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="no such folder"):
        find_sweep(None, str(tmp_path / "nowhere"), tmp_path)


# The door


def door(*words, cwd):
    command = [sys.executable, "-m", "dpo_lab.report", *words]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120)


def test_the_door_reports_on_a_named_sweep_and_leaves_nothing_else(small, tmp_path):
    small.rename(tmp_path / "mine")
    (tmp_path / "out" / "sweeps").mkdir(parents=True)
    (tmp_path / "mine").rename(tmp_path / "out" / "sweeps" / "mine")
    work = tmp_path / "work"
    work.mkdir()
    before = {*(tmp_path / "out" / "sweeps" / "mine").iterdir()}
    done = door("sweep.name=mine", f"output_dir={tmp_path / 'out'}", cwd=work)
    assert done.returncode == 0, done.stderr
    assert "clear winner" in done.stdout
    assert [*work.iterdir()] == []
    made = {p.name for p in {*(tmp_path / "out" / "sweeps" / "mine").iterdir()} - before}
    assert made == {"report.md", "report.html", "leaderboard.csv", "winner"}
    assert [*(tmp_path / "out").iterdir()] == [tmp_path / "out" / "sweeps"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("sweep.dir=empty",), "empty is no sweep"),
        (("sweep.dir=nowhere",), "there is no such folder"),
        (("sweep.name=nobody",), "there is no folder"),
        ((), "Say which sweep"),
        (("sweep.nme=x",), "sweep.nme"),
    ],
)
def test_the_door_refuses_what_is_no_sweep(tmp_path, words, said):
    (tmp_path / "empty").mkdir()
    done = door(*words, cwd=tmp_path)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert said in done.stderr
    assert [*tmp_path.iterdir()] == [tmp_path / "empty"]
    assert [*(tmp_path / "empty").iterdir()] == []


def test_the_door_loads_no_torch(small):
    code = (
        "import sys; from dpo_lab import report\n"
        f"sys.argv = ['report', 'sweep.dir={small}']\n"
        "try: report.main()\n"
        "except SystemExit as e: assert not e.code, e.code\n"
        "print([m for m in ('torch', 'transformers', 'lightning', 'pandas', 'optuna') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines()[-1:] == ["[]"], done.stdout + done.stderr


def test_the_doors_configuration_takes_what_training_takes():
    cfg = Sources(primary="report").compose(["sweep.name=x"])
    assert cfg.sweep.name == "x"
    assert cfg.sweep.dir is None


@pytest.mark.slow
def test_a_thousand_runs_make_a_page_below_ten_megabytes(tmp_path):
    values = {"optim.lr": [1e-5, 2e-5, 5e-5, 1e-4, 2e-4], "loss.beta": [0.01, 0.03, 0.05, 0.1, 0.3]}
    values |= {"lora.r": [4, 8, 16, 32], "optim.warmup_ratio": [0, 0.1]}
    write_sweep(tmp_path, values=values, seeds=range(5), steps=100, pairs=100)
    report = write_report(tmp_path)
    assert len(report.sweep.trials) == 1000
    assert (tmp_path / "report.html").stat().st_size < 10 * 2**20
    assert (tmp_path / "report.md").stat().st_size < 2**20
