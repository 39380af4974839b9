"""Datasets of hubs: read through the hub's own library, from its copy where it does not answer; refusals are told."""

import hashlib
import io
import json
import os
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import parse_qs, urlparse

import pyarrow
import pyarrow.parquet
import pytest
from test_files import put

from dpo_lab.config.schema import HubData
from dpo_lab.data import sources
from dpo_lab.data.sources import hub_fingerprint, hub_rows
from dpo_lab.runtime.errors import DataError

ROOT = Path(__file__).resolve().parents[2]


def hub(name: str, split: str = "train", config: str | None = None, where: str = "hf") -> HubData:
    return HubData(name=name, config=config, split=split, where=where)  # type: ignore[arg-type]


# The Hugging Face hub


@pytest.fixture
def hub_elsewhere(tmp_path, monkeypatch):
    """A hub that refuses connections, and an empty cache."""
    import datasets
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_MODULES_CACHE", tmp_path / "modules")
    datasets.disable_progress_bars()
    yield datasets
    datasets.enable_progress_bars()


def test_an_unreachable_hub_is_told_within_seconds(hub_elsewhere):
    setting, began = hub_elsewhere.config.HF_HUB_OFFLINE, time.monotonic()
    with pytest.raises(
        DataError,
        match=r"nobody/nothing \(config None, split train\).*the hub does not answer.*data=file data\.path=FILE",
    ):
        hub_rows(hub("nobody/nothing"))
    assert time.monotonic() - began < 10
    assert hub_elsewhere.config.HF_HUB_OFFLINE is setting


def test_a_hub_that_says_no_is_a_hub_that_answers(monkeypatch):
    import huggingface_hub
    from huggingface_hub.errors import HFValidationError

    class Hub:
        def dataset_info(self, name, timeout):
            raise {"bad name": HFValidationError("no"), "down": ConnectionError("no")}[name]

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    assert sources._hub_answers("bad name")
    assert not sources._hub_answers("down")


def test_rows_come_from_a_dataset(hub_elsewhere, tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    rows = [{"prompt": "q", "chosen": [{"role": "assistant", "content": "a"}], "rejected": None}] * 3
    put(folder, "train.jsonl", "\n".join(map(json.dumps, rows)))
    assert list(hub_rows(hub(str(folder), "train[:2]"))) == [(1, rows[0]), (2, rows[1])]
    with pytest.raises(DataError, match="split trian.*Unknown split"):
        hub_rows(hub(str(folder), "trian"))


def test_the_rows_of_a_dataset_are_numbered_and_its_fingerprint_changes_with_them(hub_elsewhere, tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    rows = [{"prompt": f"q{i}", "chosen": "a", "rejected": "b"} for i in range(600)]
    put(folder, "train.jsonl", "\n".join(map(json.dumps, rows)))
    assert list(hub_rows(hub(str(folder)))) == list(enumerate(rows, 1))
    first = hub_fingerprint(hub(str(folder)))
    assert hub_fingerprint(hub(str(folder))) == first
    assert hub_fingerprint(hub(str(folder), "train[:10]")) != first
    put(folder, "train.jsonl", "\n".join(map(json.dumps, rows[:-1])))
    assert hub_fingerprint(hub(str(folder))) != first


# ModelScope


needs_modelscope = pytest.mark.skipif(not find_spec("modelscope_hub"), reason="needs dpo_lab[hubs]: modelscope_hub")


def pairs(name: str, count: int = 2) -> list[dict]:
    return [{"prompt": f"{name} {i}", "chosen": "a", "rejected": "b"} for i in range(count)]


def as_parquet(rows: list[dict]) -> bytes:
    sink = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), sink)
    return sink.getvalue()


class ModelScope(BaseHTTPRequestHandler):
    """A ModelScope with two datasets, toys/pairs and toys/plain, and a gated one, toys/gated."""

    files: dict[str, dict[str, bytes]]
    asked: list[str]

    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        self.answer()

    def answer(self):
        url = urlparse(self.path)
        file = parse_qs(url.query).get("FilePath", [""])[0]
        self.asked.append(f"{self.command} {url.path} {file}".strip())
        if "toys/gated" in url.path:
            return self.reply(403, Message="no access")
        files = next((files for name, files in self.files.items() if f"datasets/{name}/" in url.path), None)
        if files is None:
            return self.reply(404, Message="record not found")
        if file:
            return self.send(200, files[file])
        listed = [
            {"Path": name, "Name": name, "Type": "blob", "Size": len(data), "Sha256": hashlib.sha256(data).hexdigest()}
            for name, data in files.items()
        ]
        return self.reply(200, Data={"Files": listed, "TotalCount": len(listed)})

    def reply(self, code, **body):
        return self.send(code, json.dumps({"Code": code, "Success": code == 200} | body).encode())

    def send(self, code, body):
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture
def modelscope():
    files = {
        "toys/pairs": {
            "README.md": b"# Pairs",
            "dataset_infos.json": b"{}",
            "en/train-00000-of-00002.parquet": as_parquet(pairs("one")),
            "en/train-00001-of-00002.parquet": as_parquet(pairs("two")),
            "en/test-00000-of-00001.parquet": as_parquet(pairs("test")),
            "zh/train_prefs.jsonl": "\n".join(map(json.dumps, pairs("天"))).encode(),
        },
        "toys/plain": {"pairs.jsonl": b'{"prompt": "q"}\nbroken\n{"prompt": "r"}', "weights.pt": b"never fetched"},
        "toys/nothing": {"README.md": b"# Soon"},
    }
    handler = type("ThisModelScope", (ModelScope,), {"files": files, "asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}", handler
    server.shutdown()
    server.server_close()


SCRIPT = """
import json, sys, time
if sys.argv[3]:
    sys.modules[sys.argv[3]] = None  # as if it were not installed
from dpo_lab.config.schema import HubData
from dpo_lab.data import sources
from dpo_lab.data.sources import hub_fingerprint, hub_rows
from dpo_lab.runtime.errors import DataError
sources.HUB_SECONDS = float(sys.argv[2])
for name, config, split in json.loads(sys.argv[1]):
    hub, began, faults = HubData(name=name, config=config, split=split, where="modelscope"), time.monotonic(), []
    try:
        rows = [[number, row["prompt"]] for number, row in sources.hub_rows(hub, on_bad=faults.append)]
        said = {"rows": rows, "faults": len(faults), "fingerprint": sources.hub_fingerprint(hub)}
    except DataError as e:
        said = {"error": str(e)}
    print(json.dumps(said | {"seconds": time.monotonic() - began}))
"""


def ask(asked: list[tuple[str, str | None, str]], cache: Path, url: str, *, seconds: float = 30, without: str = ""):
    """What a fresh process reads of each (name, config, split), and what it says."""
    env = os.environ | {"MODELSCOPE_ENDPOINT": url, "MODELSCOPE_CACHE": str(cache), "MODELSCOPE_HOME": str(cache)}
    command = [sys.executable, "-c", SCRIPT, json.dumps(asked), str(seconds), without]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=100, cwd=ROOT, env=env | {"XDG_CACHE_HOME": str(cache)}
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@needs_modelscope
def test_a_dataset_of_modelscope_is_fetched_and_then_read_without_it(modelscope, tmp_path):
    url, handler = modelscope
    asked = [("toys/pairs", "en", "train"), ("toys/pairs", "en", "test"), ("toys/pairs", "zh", "train_prefs")]
    asked += [("toys/plain", None, "train"), ("toys/pairs", None, "test")]
    found = ask(asked, tmp_path, url)
    assert found[0]["rows"] == [[1, "one 0"], [2, "one 1"], [3, "two 0"], [4, "two 1"]]
    assert found[1]["rows"] == found[4]["rows"] == [[1, "test 0"], [2, "test 1"]]
    assert found[2]["rows"] == [[1, "天 0"], [2, "天 1"]]
    assert found[3]["rows"] == [[1, "q"], [3, "r"]]
    assert found[3]["faults"] == 1
    assert len({answer["fingerprint"] for answer in found[:4]}) == 4
    downloads = [line for line in handler.asked if line.startswith("GET") and "." in line.split("/")[-1]]
    assert len(downloads) == len(set(downloads)), "a file that is here is not fetched again"
    assert not any(name in line for line in handler.asked for name in ("weights.pt", "README"))
    offline = ask(asked, tmp_path, "http://127.0.0.1:9")
    for before, after in zip(found, offline, strict=True):
        assert (before["rows"], before["fingerprint"]) == (after["rows"], after["fingerprint"])


@needs_modelscope
def test_a_dataset_that_changes_on_modelscope_changes_here(modelscope, tmp_path):
    url, handler = modelscope
    [before] = ask([("toys/plain", None, "train")], tmp_path, url)
    handler.files["toys/plain"]["pairs.jsonl"] = b'{"prompt": "new"}'
    [after] = ask([("toys/plain", None, "train")], tmp_path, url)
    assert after["rows"] == [[1, "new"]]
    assert after["fingerprint"] != before["fingerprint"]


@needs_modelscope
def test_what_modelscope_refuses_is_told(modelscope, tmp_path):
    asked = [("toys/none", None, "train"), ("toys/gated", None, "train"), ("not a name", None, "train")]
    asked += [("toys/pairs", "fr", "train"), ("toys/pairs", "en", "dev"), ("toys/nothing", None, "train")]
    answers = ask(asked, tmp_path, modelscope[0])
    fragments = [
        *(["no dataset 'toys/none' on ModelScope", "data.hub.name"], ["does not give toys/gated", "modelscope login"]),
        *(["'not a name' is no name of a dataset on ModelScope"], ["for the config fr", "en, zh"]),
        *(["has no file of that split", "test", "train"], ["has no files that can be read"]),
    ]
    for answer, wanted in zip(answers, fragments, strict=True):
        assert all(fragment in answer["error"] for fragment in wanted), answer
        assert answer["seconds"] < 20


@needs_modelscope
def test_a_modelscope_that_never_answers_is_given_up(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        [answer] = ask([("toys/pairs", None, "train")], tmp_path, url, seconds=2)
    assert "is not on this machine and could not be fetched from ModelScope" in answer["error"]
    assert "data=file data.path=FILE" in answer["error"]
    assert answer["seconds"] < 15


def test_modelscope_without_its_library_names_the_extra(tmp_path):
    [answer] = ask([("toys/pairs", None, "train")], tmp_path, "http://127.0.0.1:9", without="modelscope_hub")
    assert 'pip install "dpo_lab[hubs]"' in answer["error"]
