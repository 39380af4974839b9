"""The report of a sweep in W&B, and the tags and ids of its trials."""

import csv
import json
import logging
import signal
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import pytest
from runs import Lab, at, rows, send, status
from test_trackers import no_account, read, wandb_file  # noqa: F401 - no_account is a fixture

from dpo_lab.runtime.files import write_json
from dpo_lab.training import publish
from dpo_lab.training.publish import main
from dpo_lab.training.trackers import open_tracker

LOGGER = {"name": "wandb", "mode": "offline", "project": "lab", "entity": "team", "group": None, "tags": ["mine"]}
SENTENCE = "lr 1e-4 beats lr 5e-5 by 4.1 points (95 %: 1.2 to 7.0)."


def sweep(tmp_path: Path, **logger: Any) -> Path:
    """A sweep's folder with a report on two trials."""
    folder = tmp_path / "sweeps" / "lr-study"
    for number, lr in enumerate((1e-4, 5e-5)):
        trial = folder / f"trial{number}"
        write_json(trial / "trial.json", {"id": trial.name, "number": number, "axes": {"optim.lr": lr}})
        write_json(trial / "facts.json", {"config": {"logger": LOGGER | logger, "seed": 0}})
    (folder / "sweep.yaml").write_text("name: lr-study\naxes: {optim.lr: [0.0001, 5.0e-05]}\nfixed: {seed: 0}\n")
    with open(folder / "leaderboard.csv", "w", newline="") as handle:
        table = csv.writer(handle)
        table.writerow(["place", "setting", "trial", "accuracy", "kl"])
        table.writerow([1, "lr 1e-4", "trial0", 0.75, 0.5])
        table.writerow([2, "lr 5e-5, long", "trial1", 0.71, ""])
    (folder / "report.md").write_text(f"# lr-study\n\n**{SENTENCE}**\n\n2 trials\n")
    (folder / "report.html").write_text("<!doctype html><title>the page</title>")
    (folder / "winner").symlink_to(Path("trial0", "final"))
    return folder


def media(folder: Path, kind: str) -> list[Path]:
    return [*wandb_file(folder).parent.glob(f"files/media/{kind}/*")]


def test_the_report_becomes_a_run_of_its_own_in_the_sweeps_group(tmp_path: Path) -> None:
    folder = sweep(tmp_path)
    note = publish.publish(folder)
    found = read(folder)
    assert note is not None
    assert note.startswith("W&B offline: wandb sync ")
    assert (found.run["job_type"], found.run["run_group"]) == ("report", "lr-study")
    assert (found.run["display_name"], found.run["project"], found.run["entity"]) == ("lr-study report", "lab", "team")
    assert found.run["tags"] == ["mine", "report"]
    assert found.config["axes"] == {"optim.lr": [1e-4, 5e-5]}
    assert found.exit_code == 0
    (table,) = media(folder, "table")
    assert json.loads(table.read_text()) == {
        "columns": ["place", "setting", "trial", "accuracy", "kl"],
        "data": [[1.0, "lr 1e-4", "trial0", 0.75, 0.5], [2.0, "lr 5e-5, long", "trial1", 0.71, None]],
    }
    (page,) = media(folder, "html")
    assert page.read_text() == (folder / "report.html").read_text()
    assert found.summary["verdict"] == SENTENCE
    assert (found.summary["winner"], found.summary["trials"]) == ("trial0", 2)
    assert (found.summary["winner/accuracy"], found.summary["winner/setting"]) == (0.75, "lr 1e-4")


def test_a_second_report_goes_on_in_the_same_run_at_a_later_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = sweep(tmp_path)
    publish.publish(folder)
    first = read(folder)
    later = publish.time.time() + 60
    monkeypatch.setattr(publish.time, "time", lambda: later)
    publish.publish(folder)
    second = read(folder)
    assert len([*folder.glob("wandb/offline-run-*")]) == 2
    assert first.run["run_id"] == second.run["run_id"]
    assert max(first.history) < min(second.history)
    moved = tmp_path / "sweeps" / "other"
    folder.rename(moved)
    publish.publish(moved)
    assert read(moved).run["run_id"] != first.run["run_id"]


def test_pictures_come_along(tmp_path: Path) -> None:
    pytest.importorskip("PIL")

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0)
    picture = (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0\1\2\3")) + chunk(b"IEND", b"")
    )
    folder = sweep(tmp_path)
    (folder / "pareto.png").write_bytes(picture)
    publish.publish(folder)
    (copy,) = media(folder, "images")
    assert copy.name.startswith("pareto")


def test_a_page_that_is_too_large_stays_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publish, "PAGE_BYTES", 10)
    folder = sweep(tmp_path)
    publish.publish(folder)
    assert media(folder, "html") == []
    assert media(folder, "table")


@pytest.mark.parametrize("name", ["none", "tensorboard"])
def test_where_the_trials_had_no_wandb_nothing_is_written(tmp_path: Path, name: str) -> None:
    folder = sweep(tmp_path, name=name)
    before = sorted(folder.iterdir())
    assert publish.publish(folder) is None
    assert sorted(folder.iterdir()) == before


def test_torn_and_missing_files_leave_out_what_they_held(tmp_path: Path) -> None:
    folder = sweep(tmp_path)
    (folder / "trial0" / "facts.json").write_text('{"config": {"log')
    for name in ("report.md", "report.html", "leaderboard.csv", "sweep.yaml"):
        (folder / name).unlink()
    (folder / "winner").unlink()
    (folder / "winner").write_text("trial1/final\n")  # where links are impossible
    assert publish.publish(folder) is not None
    found = read(folder)
    assert (found.run["run_group"], found.summary["winner"]) == ("lr-study", "trial1")
    assert found.summary["verdict"] == ""


def test_a_folder_without_trials_has_nothing_to_show(tmp_path: Path) -> None:
    assert publish.publish(tmp_path) is None
    assert publish.publish(tmp_path / "missing") is None


def test_the_sentence_is_read_as_it_was_meant(tmp_path: Path) -> None:
    (tmp_path / "report.md").write_text("# a \\| b\n\n**loss\\=a \\| b &lt; 5 &amp; \\*new\\***\n\nfacts\n")
    assert publish._sentence(tmp_path / "report.md") == "loss\\=a | b < 5 & *new*"


def test_the_command_says_where_the_report_is_and_a_failure_is_one_line(tmp_path: Path) -> None:
    folder = sweep(tmp_path)
    command = [sys.executable, "-m", "dpo_lab.training.publish", str(folder)]
    good = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert good.stderr.startswith("report: W&B offline: wandb sync ")
    assert len((good.stdout + good.stderr).splitlines()) == 1
    for trial in ("trial0", "trial1"):
        write_json(folder / trial / "facts.json", {"config": {"logger": LOGGER | {"mode": "sometimes"}}})
    bad = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert bad.stderr.startswith("The report could not be shown in W&B: ")
    assert len((bad.stdout + bad.stderr).splitlines()) == 1


def test_a_failure_within_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = sweep(tmp_path)
    (folder / "leaderboard.csv").write_bytes(b"place\n\xff\xfe\n")  # no text
    with caplog.at_level(logging.WARNING):
        main([str(folder)])
    (record,) = caplog.records
    assert record.levelname == "WARNING"


def test_tags_longer_than_wandbs_limit_are_shortened_and_repeated_ones_left_out(tmp_path: Path) -> None:
    from dpo_lab.config.schema import Logger

    path = "data.path=/" + "a long folder/" * 10 + "pairs.jsonl"
    tracker = open_tracker(
        Logger(**LOGGER | {"tags": ["mine", "loss=dpo", ""]}),
        run_id="ab12",
        name="ab12",
        group="s",
        tree={},
        run_dir=tmp_path,
        tags=["loss=dpo", "optim.lr=0.0001", path],
    )
    tracker.finish(0, {})
    tags = read(tmp_path).run["tags"]
    assert tags[:3] == ["mine", "loss=dpo", "optim.lr=0.0001"]
    (short,) = tags[3:]
    assert len(short) == 64
    assert short.startswith("data.path=/a long")
    assert short.endswith("pairs.jsonl")


def test_a_trial_has_its_axes_as_tags_and_goes_on_in_its_own_wandb_run(lab: Lab) -> None:
    words = ("logger=wandb", "logger.mode=offline", "logger.tags=[mine]", "sweep.name=study")
    folder = lab.folder(*words)
    write_json(folder.path / "trial.json", {"axes": {"optim.lr": 0.01, "loss.beta": 0.1}})
    stop = at("dpo_lab.training.align:Run.evaluate", send(signal.SIGTERM))
    child = lab.train_in_child(*words, first=stop)
    assert status(folder)["status"] == "stopped", child.text
    first = read(folder.path)
    lab.train(*words)
    second = read(folder.path)
    assert len([*folder.path.glob("wandb/offline-run-*")]) == 2
    for found in (first, second):
        assert found.run["tags"] == ["mine", "optim.lr=0.01", "loss.beta=0.1"]
        assert (found.run["run_id"], found.run["run_group"]) == (folder.path.name, "study")
        assert found.run["resume"] is True
    steps = {step for step, row in (first.history | second.history).items() if "train/loss" in row}
    assert steps == {row["step"] for row in rows(folder, "train/loss")}
    assert second.exit_code == 0


def test_a_torn_trial_json_costs_the_tags_only(lab: Lab) -> None:
    words = ("logger=wandb", "logger.mode=offline")
    folder = lab.folder(*words)
    folder.path.mkdir(parents=True)
    (folder.path / "trial.json").write_text('{"axes": {"opt')
    lab.train(*words)
    assert not read(folder.path).run.get("tags")
