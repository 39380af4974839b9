import http.server
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from dpo_lab.config.schema import Logger
from dpo_lab.runtime.errors import LabError, OutputError
from dpo_lab.runtime.files import read_jsonl
from dpo_lab.training.trackers import MetricsFile, SafeTracker, Tracker, open_tracker
from dpo_lab.training.wandb_run import WandbTracker

KEY = "a" * 40


@pytest.fixture(autouse=True)
def no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No W&B key, setting or folder of whoever runs the tests."""
    for name in [name for name in os.environ if name.startswith(("WANDB_", "XDG_", "NETRC"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    (tmp_path / "home").mkdir()
    yield
    for tracker in [*WandbTracker.opened]:  # of a failed test
        tracker.finish(1, {})


def open_in(run_dir: Path, run_id: str = "ab12", **settings: Any) -> Tracker:
    logger = Logger(**({"name": "wandb", "tags": ["demo"]} | settings))
    tree = {"loss": {"name": "dpo", "beta": 0.1}, "optim": {"lr": 5e-5}}
    return open_tracker(logger, run_id=run_id, name=f"run {run_id}", group="beta-study", tree=tree, run_dir=run_dir)


def wandb_file(run_dir: Path) -> Path:
    """The newest W&B file of a run folder."""
    return max((run_dir / "wandb").glob("offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime_ns)


@dataclass
class Read:
    """A W&B file as W&B's own reader shows it."""

    run: dict[str, Any]
    config: dict[str, Any]
    history: dict[int, dict[str, Any]]
    summary: dict[str, Any]
    exit_code: int


def read(run_dir: Path) -> Read:
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(wandb_file(run_dir))]
    output = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
    rows = [json.loads(line) for line in output.splitlines()]
    records = {
        kind: [row[kind] for row in rows if row["type"] == kind] for kind in ("run", "history", "summary", "exit")
    }
    config = {key: value for key, value in records["run"][0]["config"]["update"].items() if key != "_wandb"}
    history = {row["step"].get("num", 0): row["item"] for row in records["history"]}
    summary = {key: value for update in records["summary"] for key, value in update.get("update", {}).items()}
    return Read(records["run"][0], config, history, summary, records["exit"][-1].get("exit_code", 0))


def holds_metrics(run_dir: Path) -> bool:
    """Whether a W&B file holds a training loss, without the second that its reader takes to start."""
    return b"train/loss" in wandb_file(run_dir).read_bytes()


@pytest.fixture
def hung_server() -> Iterator[socket.socket]:
    """A server that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=50) as server:
        yield server


@pytest.fixture
def refusing_server() -> Iterator[str]:
    """A server that answers every request with HTTP 401."""

    class Refuse(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send_error(401)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refuse)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_an_offline_wandb_run_holds_config_history_table_summary_group_and_exit_code(tmp_path: Path) -> None:
    tracker = open_in(tmp_path / "runs" / "ab12", mode="offline", project="lab", entity="team")
    tracker.log({"train/loss": 0.7, "train/lr": 1e-5}, 1)
    tracker.log({"train/loss": 0.6, "train/grad_norm": float("nan")}, 2)
    tracker.log({"val/loss": 0.65}, 2)
    tracker.table("samples", ["prompt", "answer"], [["hi", "hello"], ["bye", None]], 2)
    tracker.finish(3, {"val/accuracy": 0.75, "status": "failed"})
    tracker.finish(0, {"val/accuracy": 0.0})  # does nothing

    found = read(tmp_path / "runs" / "ab12")
    assert found.config == {"loss": {"name": "dpo", "beta": 0.1}, "optim": {"lr": 5e-5}}
    assert (found.run["run_id"], found.run["display_name"]) == ("ab12", "run ab12")
    assert found.run["run_group"] == "beta-study"
    assert (found.run["project"], found.run["entity"], found.run["tags"]) == ("lab", "team", ["demo"])
    assert found.history[1]["train/loss"] == 0.7
    assert found.history[1]["train/lr"] == 1e-5
    assert found.history[2]["train/loss"] == 0.6
    assert found.history[2]["val/loss"] == 0.65
    assert found.history[2]["train/grad_norm"] == "NaN"
    assert found.exit_code == 3
    assert found.summary["val/accuracy"] == 0.75
    assert found.summary["status"] == "failed"
    (table,) = wandb_file(tmp_path / "runs" / "ab12").parent.glob("files/media/table/samples_2_*.table.json")
    assert json.loads(table.read_text())["data"] == [["hi", "hello"], ["bye", None]]


def test_without_a_key_auto_goes_offline_and_names_the_sync_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tracker = open_in(tmp_path / "runs" / "a b", mode="auto")
    tracker.finish(0, {})
    folder = wandb_file(tmp_path / "runs" / "a b").parent.relative_to(tmp_path)
    assert tracker.note == f"W&B offline (no API key): wandb sync '{folder}'"


def test_online_without_a_key_goes_offline_and_says_how_to_log_in(tmp_path: Path) -> None:
    tracker = open_in(tmp_path, mode="online")
    tracker.finish(0, {})
    assert tracker.note is not None
    assert tracker.note.startswith("W&B offline (no API key; log in with: wandb login): wandb sync ")
    assert wandb_file(tmp_path).exists()


def test_a_key_in_netrc_is_found_and_a_server_that_refuses_connections_costs_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / "home" / ".netrc"
    netrc.write_text(f"machine 127.0.0.1:9\n  login user\n  password {KEY}\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    start = time.monotonic()
    tracker = open_in(tmp_path, mode="auto")
    tracker.log({"train/loss": 0.5}, 1)
    tracker.finish(0, {})
    assert time.monotonic() - start < 15  # wandb alone: 100 s
    assert tracker.note is not None
    assert tracker.note.startswith("W&B offline (http://127.0.0.1:9 cannot be reached: Connection refused): wandb sync")
    assert holds_metrics(tmp_path)


def test_a_server_that_never_answers_is_asked_once_and_the_console_stays_clean(
    tmp_path: Path, hung_server: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = f"http://127.0.0.1:{hung_server.getsockname()[1]}"
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_BASE_URL", address)
    script = f"""
import pathlib, dpo_lab.config.schema as schema, dpo_lab.training.trackers as trackers
run_dir = pathlib.Path({str(tmp_path)!r})
logger = schema.Logger(name="wandb", mode="online")
tracker = trackers.open_tracker(logger, run_id="ab12", name="run", group=None, tree={{}}, run_dir=run_dir)
(run_dir / "note").write_text(tracker.note)
tracker.log({{"train/loss": 0.5}}, 1)
tracker.table("samples", ["answer"], [["hi"]], 1)
tracker.finish(0, {{}})
"""
    start = time.monotonic()
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=100, check=True)
    assert time.monotonic() - start < 30  # the end of the process included; 7 s on an idle machine
    assert run.stdout + run.stderr == ""
    assert (tmp_path / "note").read_text().startswith(f"W&B offline ({address} does not answer within 4 s): wandb sync")
    assert holds_metrics(tmp_path)
    hung_server.accept()[0].close()
    hung_server.setblocking(False)
    with pytest.raises(BlockingIOError):  # no second connection: neither wandb nor its telemetry waits for an answer
        hung_server.accept()


def test_a_server_that_refuses_the_key_leaves_an_offline_run_that_says_so(
    tmp_path: Path, refusing_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_BASE_URL", refusing_server)
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    tracker = open_in(tmp_path, mode="auto")
    tracker.log({"train/loss": 0.5}, 1)
    tracker.finish(0, {})
    assert tracker.note is not None
    assert tracker.note.startswith("W&B offline (")
    assert "401" in tracker.note
    assert holds_metrics(tmp_path)


def test_a_malformed_key_is_named_and_not_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "too short")
    tracker = open_in(tmp_path, mode="auto")
    tracker.finish(0, {})
    assert tracker.note is not None
    assert tracker.note.startswith("W&B offline (WANDB_API_KEY invalid")


@pytest.mark.parametrize(
    ("own", "note"),
    [
        ("offline", "W&B offline (wandb's own mode is offline): "),
        ("disabled", "W&B off (wandb's own mode is disabled)"),
    ],
)
def test_auto_respects_wandbs_own_mode(own: str, note: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_MODE", own)
    tracker = open_in(tmp_path, mode="auto")
    tracker.log({"train/loss": 0.5}, 1)
    tracker.finish(0, {})
    assert tracker.note is not None
    assert tracker.note.startswith(note)


def test_two_runs_after_one_another_in_a_process_are_separate(tmp_path: Path) -> None:
    for name, loss, code in (("one", 0.1, 1), ("two", 0.2, 0)):
        tracker = open_in(tmp_path / name, name, mode="offline", group=f"group {name}")
        tracker.log({"train/loss": loss}, 1)
        tracker.finish(code, {})
    one, two = read(tmp_path / "one"), read(tmp_path / "two")
    assert (one.run["run_id"], one.history[1]["train/loss"], one.exit_code) == ("one", 0.1, 1)
    assert (two.run["run_id"], two.history[1]["train/loss"], two.exit_code) == ("two", 0.2, 0)
    assert one.run["run_group"] == "group one"  # the config's, rather than the sweep's


def test_two_runs_open_at_the_same_time_are_separate(tmp_path: Path) -> None:
    one, two = (open_in(tmp_path / name, name, mode="auto") for name in ("one", "two"))
    for step in (1, 2):
        one.log({"train/loss": 0.1 * step}, step)
        two.log({"train/loss": 0.2 * step}, step)
    one.finish(0, {})
    two.log({"train/loss": 0.6}, 3)
    two.finish(0, {})
    assert "no API key" in (two.note or "")
    losses = [[row["train/loss"] for row in read(tmp_path / name).history.values()] for name in ("one", "two")]
    assert losses == [[0.1, 0.2], [0.2, 0.4, 0.6]]


def test_a_resumed_run_goes_on_under_the_same_id(tmp_path: Path) -> None:
    runs = []
    for loss, step in ((0.5, 1), (0.4, 2)):
        tracker = open_in(tmp_path, mode="offline")
        tracker.log({"train/loss": loss}, step)
        tracker.finish(0, {})
        runs.append(read(tmp_path))
    assert [(run.run["run_id"], run.run["resume"]) for run in runs] == [("ab12", True)] * 2
    assert [run.history.keys() for run in runs] == [{1}, {2}]


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds the service through /proc")
def test_a_wandb_service_that_dies_costs_one_warning_and_not_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    tracker = open_in(tmp_path, mode="offline")
    tracker.log({"train/loss": 0.5}, 1)
    (service,) = [pid for pid in children(os.getpid()) if "wandb" in Path(f"/proc/{pid}/cmdline").read_text()]
    os.kill(service, signal.SIGKILL)
    time.sleep(0.5)
    start = time.monotonic()
    with caplog.at_level(logging.WARNING, "dpo_lab"):
        for step in (2, 3):
            tracker.log({"train/loss": 0.5}, step)
        tracker.finish(0, {"done": 1})
    assert time.monotonic() - start < 10
    ours = [record.getMessage() for record in caplog.records if record.name.startswith("dpo_lab")]
    assert len(ours) == 1
    assert ours[0].startswith("W&B failed: ")

    after = open_in(tmp_path / "next", "next", mode="offline")  # a new service
    after.log({"train/loss": 0.25}, 1)
    after.finish(0, {})
    assert holds_metrics(tmp_path / "next")


def children(parent: int) -> list[int]:
    stats = [path.read_text() for path in Path("/proc").glob("[0-9]*/stat") if path.exists()]
    return [int(stat.split()[0]) for stat in stats if int(stat.rpartition(")")[2].split()[1]) == parent]


def test_a_failing_tracker_warns_once_and_finishes_once(caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        note = None
        calls = 0

        def log(self, metrics: Any, step: int) -> None:
            self.fail()

        def table(self, name: str, columns: list[str], rows: list[list[Any]], step: int) -> None:
            self.fail()

        def finish(self, exit_code: int, summary: Any) -> None:
            self.fail()

        def fail(self) -> None:
            self.calls += 1
            raise OSError("no space left")

    broken = Broken()
    tracker = SafeTracker(broken, "W&B")
    with caplog.at_level(logging.WARNING):
        tracker.log({"train/loss": 1.0}, 1)
        tracker.table("samples", ["a"], [["b"]], 1)
        tracker.finish(0, {})
        tracker.finish(0, {})
    expected = "W&B failed: no space left. The run goes on; metrics.jsonl has every metric."
    assert [record.getMessage() for record in caplog.records] == [expected]
    assert broken.calls == 3


def test_tensorboard_gets_scalars_and_tables(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    tracker = open_in(tmp_path, name="tensorboard")
    tracker.log({"train/loss": 0.5, "train/grad_norm": float("nan")}, 1)
    tracker.log({"train/loss": 0.25}, 2)
    tracker.table("samples", ["prompt", "answer"], [["a|b", "two\nlines"]], 2)
    tracker.finish(0, {"val/accuracy": 0.75})
    tracker.finish(0, {})
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(1, 0.5), (2, 0.25)]
    (table,) = events.Tensors("samples/text_summary")
    assert b"| a\\|b | two<br>lines |" in table.tensor_proto.string_val[0]
    assert "summary/text_summary" in events.Tags()["tensors"]


def test_a_missing_tensorboard_names_the_extra_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(LabError, match=r'pip install "dpo_lab\[tensorboard\]"'):
        open_in(tmp_path, name="tensorboard")


def test_no_logger_takes_everything_and_writes_nothing(tmp_path: Path) -> None:
    tracker = open_in(tmp_path, name="none")
    tracker.log({"train/loss": 0.5}, 1)
    tracker.table("samples", ["a"], [["b"]], 1)
    tracker.finish(0, {})
    assert tracker.note is None
    assert list(tmp_path.iterdir()) == [tmp_path / "home"]


def test_wandb_is_imported_only_when_chosen(tmp_path: Path) -> None:
    script = f"""
import sys, pathlib, dpo_lab.config.schema as schema, dpo_lab.training.trackers as trackers
logger = schema.Logger(name="none")
trackers.open_tracker(logger, run_id="a", name="a", group=None, tree={{}}, run_dir=pathlib.Path({str(tmp_path)!r}))
assert "wandb" not in sys.modules and "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_the_metrics_file_is_valid_json_at_once_and_keeps_what_is_not_finite(tmp_path: Path) -> None:
    path = tmp_path / "run" / "metrics.jsonl"
    metrics = MetricsFile(path, None)
    before = time.time()
    metrics.log({"train/loss": 0.5, "a": float("nan"), "b": float("inf"), "c": float("-inf"), "n": 3}, 1)

    def refuse(name: str) -> None:
        raise ValueError(f"{name} is not JSON")

    row = json.loads(path.read_text(), parse_constant=refuse)
    assert before - 1 < row.pop("time") < time.time() + 1
    assert row == {"step": 1, "train/loss": 0.5, "a": "NaN", "b": "Infinity", "c": "-Infinity", "n": 3}
    assert [str(float(row[key])) for key in "abc"] == ["nan", "inf", "-inf"]


def test_a_resumed_metrics_file_drops_later_rows_and_a_torn_last_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    metrics = MetricsFile(path, None)
    for step in (1, 2, 3, 4):
        metrics.log({"train/loss": 1 / step}, step)
    with open(path, "ab") as handle:
        handle.write(b'{"step": 2, "train/lo')
    before = read_jsonl(path)
    resumed = MetricsFile(path, 2)
    assert read_jsonl(path) == before[:2]
    resumed.log({"train/loss": 0.1}, 3)
    assert [(row["step"], row["train/loss"]) for row in read_jsonl(path)] == [(1, 1.0), (2, 0.5), (3, 0.1)]


def test_a_new_metrics_file_starts_empty(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    MetricsFile(path, None).log({"train/loss": 0.5}, 1)
    MetricsFile(path, None)
    assert path.read_text() == ""
    MetricsFile(tmp_path / "missing.jsonl", 5)
    assert (tmp_path / "missing.jsonl").read_text() == ""


def test_a_metrics_file_that_cannot_be_written_stops_the_run_with_a_message(tmp_path: Path) -> None:
    metrics = MetricsFile(tmp_path / "run" / "metrics.jsonl", None)
    (tmp_path / "run" / "metrics.jsonl").unlink()
    (tmp_path / "run").rmdir()
    with pytest.raises(OutputError, match="Cannot write"):
        metrics.log({"train/loss": 0.5}, 1)
