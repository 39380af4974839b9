"""A model folder is found, fetched and looked over before anything heavy is read, and what is wrong is said."""

import json
import shutil
from pathlib import Path

import pytest
from tiny import byte_tokenizer

from dpo_lab.config.schema import Model
from dpo_lab.data.templates import Template
from dpo_lab.models.locate import locate
from dpo_lab.models.tokenizer import load_tokenizer
from dpo_lab.runtime.errors import ModelError

ROOT = Path(__file__).resolve().parents[2]
OWN_CODE = {"AutoConfig": "configuration_mine.MineConfig", "AutoModelForCausalLM": "modeling_mine.Mine"}


def model(**changes) -> Model:
    settings = {
        "name": None,
        "hub": "hf",
        "names": {},
        "path": None,
        "revision": None,
        "wheel": None,
        "rope": {"type": "none", "factor": None},
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
        ["no config.json", "holds an adapter", "lora.adapter=RUN"],
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
        ["no weights", "give the file itself: model.path="],
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
    with pytest.raises(ModelError, match=r"model=hf model\.path=FOLDER or model=gguf model\.path=FILE\.gguf"):
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
