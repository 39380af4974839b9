"""A model folder is found, fetched and looked over before anything heavy is read, and what is wrong is said."""

import json
import os
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from tiny import byte_tokenizer

from dpo_lab.config.schema import Model
from dpo_lab.data.templates import Template
from dpo_lab.models.load import load_tokenizer
from dpo_lab.models.locate import locate
from dpo_lab.runtime.errors import ModelError

ROOT = Path(__file__).resolve().parents[2]
OWN_CODE = {"AutoConfig": "configuration_mine.MineConfig", "AutoModelForCausalLM": "modeling_mine.Mine"}


def model(**changes) -> Model:
    settings = {
        "name": None,
        "path": None,
        "revision": None,
        "wheel": None,
        "dtype": "auto",
        "attn": "auto",
        "gradient_checkpointing": False,
        "trust_remote_code": False,
    }
    return Model(**(settings | {k: str(v) if isinstance(v, Path) else v for k, v in changes.items()}))


def found(folder: Path, **changes):
    return locate(model(path=folder, **changes), folder / "cache", lambda text: None)


@pytest.fixture
def folder(tiny_model, tmp_path):
    return Path(shutil.copytree(tiny_model, tmp_path / "my-model"))


def edit_config(folder: Path, **changes) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_a_folder_is_found_and_named_after_itself(folder):
    located = found(folder)
    assert (located.path, located.name, located.note) == (folder, "my-model", "local folder")
    assert found(folder, name="mine").name == "mine"


def test_the_identity_of_a_model_is_its_weights_and_configuration_not_its_place(folder, tmp_path):
    before = found(folder).identity(tmp_path)
    copy = Path(shutil.copytree(folder, tmp_path / "elsewhere"))
    (copy / "README.md").write_text("hello")
    assert found(copy).identity(tmp_path) == before
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    assert found(copy).identity(tmp_path) != before
    edit_config(folder, rope_theta=5.0)
    assert found(folder).identity(tmp_path) != before


# What is no model folder


def cut(file: Path, size: int) -> None:
    file.write_bytes(file.read_bytes()[:size])


def with_header(file: Path, header: bytes) -> None:
    file.write_bytes(len(header).to_bytes(8, "little") + header)


def index(folder: Path, *shards: str) -> None:
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": dict(zip("abc", shards, strict=False))})
    )


FAULTS = {
    "no folder": (lambda f: shutil.rmtree(f), ["no such model folder", "model.path"]),
    "a file": (lambda f: (shutil.rmtree(f), f.write_text("")), ["no such model folder"]),
    "no config": (lambda f: (f / "config.json").unlink(), ["no config.json", "Hugging Face format"]),
    "an adapter": (
        lambda f: (f / "config.json").rename(f / "adapter_config.json"),
        ["no config.json", "holds an adapter", "init_from=RUN"],
    ),
    "a torn config": (lambda f: cut(f / "config.json", 30), ["config.json is damaged"]),
    "a config that is a list": (lambda f: (f / "config.json").write_text("[]"), ["config.json is damaged"]),
    "a config in another encoding": (
        lambda f: (f / "config.json").write_bytes(b"\xff\xfe{"),
        ["config.json is damaged"],
    ),
    "a config without a type": (
        lambda f: (f / "config.json").write_text('{"model_type": null}'),
        ["names no model_type"],
    ),
    "an unknown type": (
        lambda f: edit_config(f, model_type="llama9"),
        ["type llama9", "transformers 5", "does not know", "newer"],
    ),
    "a model that does not write": (lambda f: edit_config(f, model_type="t5"), ["(t5) is no causal language model"]),
    "code of its own": (
        lambda f: edit_config(f, model_type="mine", auto_map=OWN_CODE),
        ["Python code of its own (modeling_mine.Mine)", "model.trust_remote_code=true"],
    ),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), ["holds no tokenizer"]),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), ["no weights (*.safetensors or *.bin)"]),
    "weights of an adapter alone": (
        lambda f: (f / "model.safetensors").rename(f / "adapter_model.safetensors"),
        ["no weights"],
    ),
    "llama.cpp's weights": (
        lambda f: (f / "model.safetensors").rename(f / "m.gguf"),
        ["no weights", "*.gguf) are not read"],
    ),
    "a missing shard": (
        lambda f: index(f, "model.safetensors", "m-2.safetensors"),
        ["1 weight files are missing", "m-2"],
    ),
    "a torn index": (lambda f: (f / "model.safetensors.index.json").write_text("{"), ["index.json is damaged"]),
    "torn weights": (
        lambda f: cut(f / "model.safetensors", 90_000),
        ["is damaged", "90000 bytes where 109552 are due"],
    ),
    "weights that go on": (
        lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes() + b"\x00"),
        ["is damaged", "109553 bytes where 109552"],
    ),
    "weights torn in the header": (lambda f: cut(f / "model.safetensors", 100), ["do not begin with a header"]),
    "empty weights": (lambda f: cut(f / "model.safetensors", 0), ["its 0 bytes"]),
    "weights of a web page": (
        lambda f: (f / "model.safetensors").write_bytes(b"<!doctype html><html>" + b" " * 500),
        ["is damaged", "do not begin with a header"],
    ),
    "a header that is no json": (
        lambda f: with_header(f / "model.safetensors", b"{not json}"),
        ["header cannot be read"],
    ),
    "a header of another kind": (
        lambda f: with_header(f / "model.safetensors", b'{"a": 1}'),
        ["header cannot be read"],
    ),
    "a pointer": (
        lambda f: (f / "model.safetensors").write_text(
            "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
        ),
        ["pointer of Git LFS", "git lfs pull"],
    ),
}


@pytest.mark.parametrize(("spoil", "fragments"), FAULTS.values(), ids=FAULTS)
def test_a_folder_that_cannot_be_used_is_told(folder, spoil, fragments):
    spoil(folder)
    with pytest.raises(ModelError) as caught:
        found(folder)
    for fragment in (str(folder), *fragments):
        assert fragment in str(caught.value)


def test_a_folder_that_may_not_be_read_is_told(folder, monkeypatch):
    def refuse(path, **settings):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(ModelError, match=r"my-model cannot be read: Permission denied"):
        found(folder)


def test_a_model_that_runs_its_own_code_may_be_trusted(folder):
    edit_config(folder, model_type="mine", auto_map=OWN_CODE)
    assert found(folder, trust_remote_code=True).path == folder


def test_weights_in_pytorchs_format_are_weights(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert found(folder).path == folder


def test_without_a_name_and_a_path_there_is_no_model(tmp_path):
    with pytest.raises(ModelError, match=r"model\.name=OWNER/NAME, or model=hf model\.path=FOLDER"):
        locate(model(), tmp_path, lambda text: None)


# Tokenizers of a folder


def test_a_tokenizer_without_a_template_is_told_by_the_template(folder):
    byte_tokenizer(None).save_pretrained(folder)
    (folder / "chat_template.jinja").unlink()
    tokenizer = load_tokenizer(found(folder), model())
    with pytest.raises(ModelError, match="no chat template"):
        Template(tokenizer, "auto")
    assert Template(tokenizer, "chatml").end_of_turn == [2]


@pytest.mark.parametrize("content", ["{", "[]", '{"model": {"type": "BPE"}}', ""])
def test_a_damaged_tokenizer_is_told(folder, content):
    (folder / "tokenizer.json").write_text(content)
    with pytest.raises(ModelError, match="tokenizer in .* could not be read"):
        load_tokenizer(found(folder), model())


def test_a_tokenizer_with_its_own_code_does_not_ask_at_the_terminal(folder, monkeypatch):
    (folder / "tokenizer_config.json").write_text(
        '{"auto_map": {"AutoTokenizer": ["mine.Mine", null]}, "tokenizer_class": "Mine"}'
    )
    monkeypatch.setattr("builtins.input", lambda text="": pytest.fail("asked at the terminal"))
    with pytest.raises(ModelError, match="trust_remote_code|custom code"):
        load_tokenizer(found(folder), model())


# The hub

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


@pytest.fixture
def hub(folder):
    handler = type("ThisHub", (Hub,), {"folder": folder, "asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}", handler
    server.shutdown()
    server.server_close()


SCRIPT = """
import json, sys, time
from pathlib import Path
from dpo_lab.config.schema import Model
from dpo_lab.models import locate
from dpo_lab.runtime.errors import ModelError
locate.HUB_SECONDS = float(sys.argv[3])
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


def ask(models, cache: Path, hub_seconds: float = 30, **env):
    """What a fresh process says to each model, with the hub that the environment names."""
    settings = json.dumps([m.model_dump() for m in models])
    clean = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    clean |= {"HF_HOME": str(cache), "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    command = [sys.executable, "-c", SCRIPT, settings, str(cache), str(hub_seconds)]
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
    offline, trusted = ask(
        [model(name="toys/tiny"), model(name="toys/tiny", trust_remote_code=True)], tmp_path / "hub", HF_ENDPOINT=url
    )
    assert offline["files"] == first["files"]
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
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        [answer] = ask([model(name="toys/tiny")], tmp_path / "hub", HF_ENDPOINT=url, hub_seconds=2)
    assert "toys/tiny is not on this machine" in answer["error"]
    assert "timed out" in answer["error"]
    assert answer["seconds"] < 15
