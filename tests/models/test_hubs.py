"""Models from hubs: fetched once through the hub's own library, then found without it; what a hub refuses is told."""

import hashlib
import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import parse_qs, urlparse

import pytest
from tiny import plain_model

from dpo_lab.config.schema import Model

ROOT = Path(__file__).resolve().parents[2]


def model(**changes) -> Model:
    return plain_model("").model_copy(update={"path": None, **changes})


@pytest.fixture
def folder(tiny_model, tmp_path):
    return Path(shutil.copytree(tiny_model, tmp_path / "my-model"))


SHA = "0123456789abcdef0123456789abcdef01234567"


class Hub(BaseHTTPRequestHandler):
    """A hub with one model, toys/tiny, a gated one, toys/gated, and a mirror's bare 404 for what is in mirror/."""

    folder: Path
    asked: list[str]

    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        self.answer()

    def answer(self):
        path = self.path.split("?")[0]
        self.asked.append(f"{self.command} {path}")
        files = sorted(p for p in self.folder.iterdir() if p.is_file())
        if "toys/gated" in path:
            return self.send(403, b"{}", {"X-Error-Code": "GatedRepo"})
        if "mirror/" in path:
            return self.send(404, b"{}", {})
        if "toys/tiny" not in path:
            return self.send(401, b"{}", {"X-Error-Code": "RepoNotFound"})
        if path.startswith("/api/") and "/tree/" not in path:
            if path.endswith("/v9"):
                return self.send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
            return self.send(200, json.dumps({"id": "toys/tiny", "sha": SHA, "siblings": []}).encode(), {})
        if "/tree/" in path:
            tree = [{"type": "file", "path": p.name, "size": p.stat().st_size, "oid": p.name} for p in files]
            return self.send(200, json.dumps(tree).encode(), {})
        file = self.folder / path.rsplit("/", 1)[-1]
        return self.send(200, file.read_bytes(), {"ETag": f'"{file.name}"', "X-Repo-Commit": SHA})

    def send(self, code, body, headers):
        self.send_response(code)
        for name, value in ({"Content-Type": "application/json", "Content-Length": str(len(body))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *args):
        pass


def served(kind, folder, context=None):
    handler = type("ThisHub", (kind,), {"folder": folder, "asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}", handler
    server.shutdown()
    server.server_close()


@pytest.fixture
def hub(folder):
    yield from served(Hub, folder)


SCRIPT = """
import json, sys, time
from pathlib import Path
if sys.argv[4]:
    sys.modules[sys.argv[4]] = None  # as if it were not installed
from dpo_lab.config.schema import Model
from dpo_lab.models import hubs, locate
from dpo_lab.runtime.errors import ModelError
hubs.HUB_SECONDS = float(sys.argv[3])
locate._check_architecture = lambda *args: None  # it imports torch, and is tested above
for settings in json.loads(sys.argv[1]):
    began = time.monotonic()
    try:
        located = locate.locate(Model(**settings), Path(sys.argv[2]), lambda text: None)
        said = {"path": str(located.path), "files": sorted(p.name for p in located.path.iterdir())}
    except ModelError as e:
        said = {"error": str(e)}
    print(json.dumps(said | {"seconds": time.monotonic() - began}))
"""


def ask(models, cache: Path, hub_seconds: float = 30, *, without: str = "", **env):
    """What a fresh process says to each model, with the hub that the environment names and a package hidden."""
    settings = json.dumps([m.model_dump() for m in models])
    clean = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    clean |= {"HF_HOME": str(cache), "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    clean |= {"MODELSCOPE_CACHE": str(cache), "MODELSCOPE_HOME": str(cache), "XDG_CACHE_HOME": str(cache)}
    command = [sys.executable, "-c", SCRIPT, settings, str(cache), str(hub_seconds), without]
    done = subprocess.run(command, capture_output=True, text=True, env=clean | env, timeout=100, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_model_is_fetched_from_the_hub_once_and_then_found_without_it(hub, folder, tmp_path):
    url, handler = hub
    for name in ("model.gguf", "consolidated.safetensors", "README.md", "pytorch_model.bin", "modeling_mine.py"):
        (folder / name).write_bytes(b"x")
    asked = [model(name="toys/tiny"), model(name="toys/tiny")]
    first, second = ask(asked, tmp_path / "hub", HF_ENDPOINT=url)
    assert {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"} <= set(first["files"])
    assert not {"model.gguf", "consolidated.safetensors", "README.md", "pytorch_model.bin", "modeling_mine.py"} & set(
        first["files"]
    )
    assert first["path"] == second["path"]
    downloads = [line for line in handler.asked if line.startswith("GET") and "/resolve/" in line]
    assert len(downloads) == len(set(downloads)) == len(first["files"])
    [offline] = ask([model(name="toys/tiny")], tmp_path / "hub", HF_ENDPOINT="http://127.0.0.1:9")
    assert offline["files"] == first["files"]
    [trusted] = ask([model(name="toys/tiny", trust_remote_code=True)], tmp_path / "hub", HF_ENDPOINT=url)
    assert "modeling_mine.py" in trusted["files"]


def test_a_copy_that_is_not_whole_is_completed(hub, folder, tmp_path):
    url, handler = hub
    [first] = ask([model(name="toys/tiny")], tmp_path / "hub", HF_ENDPOINT=url)
    for listing in (True, False):  # of the repository's files, which older versions of the library do not keep
        (Path(first["path"]) / "model.safetensors").unlink()
        if not listing:
            [trees] = (tmp_path / "hub").rglob("trees")
            shutil.rmtree(trees)
        [again] = ask([model(name="toys/tiny")], tmp_path / "hub", HF_ENDPOINT=url)
        assert again["files"] == first["files"]


def test_what_the_hub_refuses_is_told(hub, tmp_path):
    names = ["toys/none", "mirror/none", "toys/gated", "not a name", "a/b/c"]
    models = [*(model(name=name) for name in names), model(name="toys/tiny", revision="v9")]
    answers = ask(models, tmp_path / "hub", HF_ENDPOINT=hub[0])
    fragments = [
        *(["no model 'toys/none' on the hub", "model.name"], ["no model 'mirror/none' on the hub", "model.name"]),
        *(["toys/gated is gated", "hf auth login"], ["'not a name' is no name of a model", "model.path"]),
        *(["'a/b/c' is no name", "OWNER/NAME"], ["no revision 'v9'", "model.revision"]),
    ]
    for answer, wanted in zip(answers, fragments, strict=True):
        assert all(fragment in answer["error"] for fragment in wanted), answer
        assert answer["seconds"] < 20


def test_without_a_network_the_message_comes_within_seconds_and_says_what_to_do(tmp_path):
    for env in ({"HF_ENDPOINT": "http://127.0.0.1:9"}, {"HF_HUB_OFFLINE": "1"}):
        [answer] = ask([model(name="toys/tiny")], tmp_path / "hub", **env)
        assert "toys/tiny is not on this machine" in answer["error"]
        assert "model.path=FOLDER" in answer["error"]
        assert "model=smollm2_135m" in answer["error"]
        assert answer["seconds"] < 15


def test_a_hub_that_never_answers_is_given_up(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        [answer] = ask([model(name="toys/tiny")], tmp_path / "hub", HF_ENDPOINT=url, hub_seconds=2)
    assert "toys/tiny is not on this machine" in answer["error"]
    assert "timed out" in answer["error"]
    assert answer["seconds"] < 15


# ModelScope

needs_modelscope = pytest.mark.skipif(not find_spec("modelscope_hub"), reason="needs dpo_lab[hubs]: modelscope_hub")
needs_openmind = pytest.mark.skipif(not find_spec("openmind_hub"), reason="needs dpo_lab[hubs]: openmind_hub")


class ModelScope(Hub):
    """A ModelScope with one model, toys/tiny, and a gated one, toys/gated."""

    def answer(self):
        url = urlparse(self.path)
        asked = parse_qs(url.query)
        self.asked.append(f"{self.command} {url.path} {asked.get('FilePath', [''])[0]}".strip())
        if "toys/gated" in url.path:
            return self.reply(403, Message="no access")
        if "toys/tiny" not in url.path or asked.get("Revision") not in (["master"], ["v1"]):
            return self.reply(404, Message="record not found")
        files = {p.name: p.read_bytes() for p in sorted(self.folder.iterdir()) if p.is_file()}
        if "FilePath" in asked:
            return self.send(200, files[asked["FilePath"][0]], {"Content-Type": "application/octet-stream"})
        listed = [
            {"Path": name, "Name": name, "Type": "blob", "Size": len(data), "Sha256": hashlib.sha256(data).hexdigest()}
            for name, data in files.items()
        ]
        return self.reply(200, Data={"Files": listed, "TotalCount": len(listed)})

    def reply(self, code, **body):
        return self.send(code, json.dumps({"Code": code, "Success": code == 200} | body).encode(), {})


@pytest.fixture
def modelscope(folder):
    yield from served(ModelScope, folder)


@needs_modelscope
def test_a_model_is_fetched_from_modelscope_once_and_then_found_without_it(modelscope, folder, tmp_path):
    url, handler = modelscope
    for name in ("model.gguf", "README.md", "pytorch_model.bin", "modeling_mine.py"):
        (folder / name).write_bytes(b"x")
    asked = model(hub="modelscope", names={"hf": "other/name", "modelscope": "toys/tiny"})
    first, second = ask([asked, asked], tmp_path / "hub", MODELSCOPE_ENDPOINT=url)
    wanted = {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"}
    assert wanted <= set(first["files"])
    assert not {"model.gguf", "README.md", "pytorch_model.bin", "modeling_mine.py"} & set(first["files"])
    assert first["path"] == second["path"]
    requests = len(handler.asked)
    [offline] = ask([asked], tmp_path / "hub", MODELSCOPE_ENDPOINT="http://127.0.0.1:9")
    assert offline["files"] == first["files"]
    assert len(handler.asked) == requests
    (Path(first["path"]) / "model.safetensors").unlink()
    [again] = ask([asked], tmp_path / "hub", MODELSCOPE_ENDPOINT=url)
    assert "model.safetensors" in again["files"]


@needs_modelscope
def test_what_modelscope_refuses_is_told(modelscope, tmp_path):
    names = ["toys/none", "toys/gated", "not a name"]
    models = [*(model(name=name, hub="modelscope") for name in names)]
    models.append(model(name="toys/tiny", hub="modelscope", revision="v9"))
    answers = ask(models, tmp_path / "hub", MODELSCOPE_ENDPOINT=modelscope[0])
    fragments = [
        *(["no model 'toys/none' on ModelScope", "model.name"], ["does not give toys/gated", "modelscope login"]),
        *(["'not a name' is no name of a model on ModelScope"], ["no revision 'v9'"]),
    ]
    for answer, wanted in zip(answers, fragments, strict=True):
        assert all(fragment in answer["error"] for fragment in wanted), answer
        assert answer["seconds"] < 20


@needs_modelscope
def test_a_modelscope_that_never_answers_is_given_up(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        asked = model(name="toys/tiny", hub="modelscope")
        [answer] = ask([asked], tmp_path / "hub", MODELSCOPE_ENDPOINT=url, hub_seconds=2)
    assert "toys/tiny is not on this machine and could not be fetched from ModelScope" in answer["error"]
    assert answer["seconds"] < 15


# openMind: its client speaks https, and to its own hosts alone, so that one of their names is given to this machine


class OpenMind(Hub):
    """An openMind with one model, toys/tiny, and a gated one, toys/gated."""

    def answer(self):
        url = urlparse(self.path)
        asked = parse_qs(url.query)
        self.asked.append(f"{self.command} {url.path}")
        if "toys/gated" in url.path:
            return self.reply(401, code="gated")
        if "toys/tiny" not in url.path:
            return self.reply(404, code="resource_not_found")
        if asked.get("ref") == ["v9"]:
            return self.reply(404, code="ref_not_exist")
        if url.path.startswith("/api/v1/model/"):
            return self.reply(200, data={"id": "1", "name": "tiny", "owner": "toys"})
        if "/media/" in url.path:
            file = self.folder / url.path.rsplit("/", 1)[-1]
            return self.send(200, file.read_bytes(), {"Content-Type": "application/octet-stream"})
        if url.path.endswith("/info"):
            return self.reply(200, data=self.described(self.folder / asked["path"][0]) | {"branch_last_commit": SHA})
        files = [self.described(p) for p in sorted(self.folder.iterdir()) if p.is_file()]
        commit = {"commit_sha": SHA, "message": "one", "created": "2024-01-01T00:00:00Z"}
        return self.reply(200, data={"tree": files, "last_commit": {"commit": commit}})

    def described(self, file):
        data = file.read_bytes()
        blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()  # as git names it
        return {"type": "file", "path": file.name, "size": len(data), "etag": blob, "is_lfs": False}

    def reply(self, status, **body):
        return self.send(status, json.dumps(body).encode(), {})


@pytest.fixture
def openmind(folder, tmp_path):
    """The hub's address and all that a child process needs to take it for openMind's."""
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl for a certificate")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    words = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=test.openmind.cn"]
    words += ["-addext", "subjectAltName=DNS:test.openmind.cn", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(["openssl", *words], check=True, capture_output=True)
    names = tmp_path / "names"
    names.mkdir()
    (names / "sitecustomize.py").write_text(
        "import socket\nreal = socket.getaddrinfo\n"
        "def here(host, *a, **k):\n    return real('127.0.0.1' if host == 'test.openmind.cn' else host, *a, **k)\n"
        "socket.getaddrinfo = here\n"
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    for url, handler in served(OpenMind, folder, context):
        environment = {
            "OPENMIND_HUB_ENDPOINT": f"https://test.openmind.cn:{urlparse(url).port}",
            "REQUESTS_CA_BUNDLE": str(certificate),
            "OM_HUB_DISABLE_PROGRESS_BARS": "1",
            "PYTHONPATH": os.pathsep.join(p for p in (str(names), os.environ.get("PYTHONPATH", "")) if p),
        }
        yield environment, handler


@needs_openmind
def test_a_model_is_fetched_from_openmind_once_and_then_found_without_it(openmind, folder, tmp_path):
    environment, handler = openmind
    for name in ("model.gguf", "README.md", "pytorch_model.bin", "modeling_mine.py"):
        (folder / name).write_bytes(b"x")
    asked = model(hub="openmind", name="toys/tiny")
    first, second = ask([asked, asked], tmp_path / "cache", **environment)
    assert {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"} <= set(first["files"])
    assert not {"model.gguf", "README.md", "pytorch_model.bin", "modeling_mine.py"} & set(first["files"])
    assert first["path"] == second["path"]
    requests = len(handler.asked)
    [again] = ask([asked], tmp_path / "cache", **environment)
    assert again["files"] == first["files"]
    assert len(handler.asked) == requests, "the copy is used without asking"


@needs_openmind
def test_what_openmind_refuses_is_told(openmind, tmp_path):
    models = [model(name=name, hub="openmind") for name in ("toys/none", "toys/gated")]
    models.append(model(name="toys/tiny", hub="openmind", revision="v9"))
    answers = ask(models, tmp_path / "cache", **openmind[0])
    fragments = [["no model 'toys/none' on openMind"], ["toys/gated is gated on openMind"], ["no revision 'v9'"]]
    for answer, wanted in zip(answers, fragments, strict=True):
        assert all(fragment in answer["error"] for fragment in wanted), answer
        assert answer["seconds"] < 20


@needs_openmind
def test_a_copy_that_openmind_hub_kept_is_used(folder, tmp_path):
    kept = tmp_path / "cache" / "openmind" / "hub" / "models--toys--tiny"
    (kept / "refs").mkdir(parents=True)
    (kept / "refs" / "main").write_text("0123abc")
    shutil.copytree(folder, kept / "snapshots" / "0123abc")
    asked = [model(name="toys/tiny", hub="openmind"), model(name="toys/tiny", hub="openmind", revision="0123abc")]
    for answer in ask(asked, tmp_path / "cache"):
        assert answer["path"] == str(kept / "snapshots" / "0123abc")


@needs_openmind
def test_what_openmind_cannot_give_is_told(tmp_path):
    asked = [model(name="toys/tiny", hub="openmind"), model(name="not a name", hub="openmind")]
    gone, unnamed = ask(asked, tmp_path, OPENMIND_HUB_ENDPOINT="https://127.0.0.1:9")
    assert "toys/tiny is not on this machine and could not be fetched from openMind" in gone["error"]
    assert "model.hub=hf" in gone["error"]
    assert gone["seconds"] < 15
    assert "'not a name' is no name of a model on openMind" in unnamed["error"]
    [insecure] = ask(asked[:1], tmp_path, OPENMIND_HUB_ENDPOINT="http://127.0.0.1:9")
    assert "OPENMIND_HUB_ENDPOINT must begin with https://" in insecure["error"]


# Without the packages


@pytest.mark.parametrize(("hub", "package"), [("modelscope", "modelscope_hub"), ("openmind", "openmind_hub")])
def test_a_hub_whose_library_is_missing_names_the_extra(hub, package, tmp_path):
    [answer] = ask([model(name="toys/tiny", hub=hub)], tmp_path, without=package)
    assert f"model.hub={hub} needs the package {package}" in answer["error"]
    assert 'pip install "dpo_lab[hubs]"' in answer["error"]
