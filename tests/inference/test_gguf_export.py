"""GGUF exports: what transformers reads back is the policy; what it could not read back is refused; Ollama's Modelfile."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from doors import Results, door_of
from runs import write_pairs
from tiny import CHATML, SPECIAL, load_tiny, plain_model, tiny_config, write_tiny_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from dpo_lab.data.templates import Template
from dpo_lab.inference.export import export
from dpo_lab.inference.exports import disk, gguf_file, gguf_vocabulary, ollama
from dpo_lab.models.locate import locate
from dpo_lab.runtime.errors import ConfigError, OutputError
from dpo_lab.runtime.files import read_json

MERGES = [("t", "h"), ("th", "e"), ("h", "y"), ("Ġ", "w"), ("Ġw", "hy"), ("B", "e")]
ROWS = 272  # of the embedding, more than there are tokens


def merging_tokenizer(template: str | None = CHATML) -> PreTrainedTokenizerFast:
    """A byte-level BPE with a few merges, cut into words as GPT-2's is."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate([*SPECIAL, *alphabet, *("".join(m) for m in MERGES)])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=MERGES))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)  # type: ignore[assignment]
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>"],
    )
    fast.add_tokens(["<think>"])
    fast.chat_template = template
    return fast


@pytest.fixture(scope="module")
def gguf_lab(lab, tmp_path_factory) -> Results:
    """A run on a Llama whose tokenizer has merges; `lab` keeps the run from drawing curves."""
    root = tmp_path_factory.mktemp("gguf")
    model = write_tiny_model(root / "merging", vocab_size=ROWS, tie_word_embeddings=False)
    merging_tokenizer().save_pretrained(model)
    results = Results(root, model, write_pairs(root / "pairs.jsonl"))
    results.runs.append(results.train("optim.lr=1e-2").path)
    return results


def exported(lab: Results, *words: str) -> tuple[Path, dict[str, float]]:
    config, tree, given = door_of("export", lab, f"run={lab.runs[0]}", "format=gguf", *words)
    numbers = export(config, tree, Path(), given=given)
    return Path(str(config.output)), numbers


BARE = """
import json, sys
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
answers = []
talk = [{"role": "user", "content": "Question: the why? \\u4f60\\u597d"}]
for folder, file in json.loads(sys.argv[1]):
    if file:
        model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file)
    else:
        from peft import AutoPeftModelForCausalLM
        model = AutoPeftModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(folder)
    text = tokenizer.apply_chat_template(talk, tokenize=False, add_generation_prompt=True) + "Because of the <think>."
    ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
    with torch.no_grad():
        logps = model.eval()(input_ids=ids).logits.log_softmax(-1)
    answers.append({"ids": ids.tolist(), "logps": logps[0, :-1].gather(-1, ids[0, 1:, None])[:, 0].tolist()})
assert not any(name.startswith("dpo_lab") for name in sys.modules)
print("\\n" + json.dumps(answers))
"""


def bare(tmp_path: Path, *asked: tuple[Path, str]) -> list[dict[str, Any]]:
    words = json.dumps([(str(folder), file) for folder, file in asked])
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", BARE, words], capture_output=True, text=True, cwd=tmp_path, env=env, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


LARGEST = {"f32": 1e-5, "f16": 1e-2, "bf16": 6e-2, "q8_0": 1e-1}


@pytest.fixture(scope="module")
def made(gguf_lab, tmp_path_factory) -> dict[str, tuple[Path, dict[str, float]]]:
    root = tmp_path_factory.mktemp("files")
    return {
        kind: exported(gguf_lab, f"output={root / kind}", f"export.gguf_type={kind}", "export.check_pairs=2")
        for kind in LARGEST
    }


def test_files_of_every_type_give_the_runs_log_probs_in_a_script_without_the_lab(gguf_lab, made, tmp_path):
    asked = [(gguf_lab.runs[0] / "final", ""), *((made[kind][0], f"model-{kind}.gguf") for kind in LARGEST)]
    trained, *files = bare(tmp_path, *asked)
    for kind, found in zip(LARGEST, files, strict=True):
        assert found["ids"] == trained["ids"], kind
        pairs = list(zip(found["logps"], trained["logps"], strict=True))
        gap = sum(abs(a - b) for a, b in pairs) / len(pairs)
        assert gap < LARGEST[kind], kind
        assert kind == "f32" or gap > 1e-5, f"{kind} is rounded"
        assert made[kind][1]["export/gap"] <= made[kind][1]["export/tolerance"]
    sizes = [made[kind][1]["export/bytes"] for kind in ("f32", "f16", "q8_0")]
    assert sizes == sorted(sizes, reverse=True)


def test_the_lab_itself_reads_the_file_as_a_model(made, tmp_path):
    file = made["f32"][0] / "model-f32.gguf"
    located = locate(plain_model(file), tmp_path, lambda text: None)
    ids = torch.arange(3, 60)[None]
    with torch.no_grad():
        ours = load_tiny(located.path)(ids).logits
        theirs = gguf_file.read_gguf(file)[0](ids).logits
    assert (ours - theirs).abs().max() < 1e-4


def test_the_file_says_all_about_the_tokenizer(gguf_lab, made):
    from gguf import GGUFReader, TokenType

    fields = GGUFReader(made["f16"][0] / "model-f16.gguf").fields
    said = {name.removeprefix("tokenizer."): field.contents() for name, field in fields.items()}
    tokenizer = merging_tokenizer()
    tokens, types = said["ggml.tokens"], said["ggml.token_type"]
    n = len(tokenizer)
    assert tokens[:n] == tokenizer.convert_ids_to_tokens(list(range(n)))
    assert len(tokens) == len(types) == ROWS
    assert tokens[n:] == [f"[PAD{i}]" for i in range(n, ROWS)]
    assert {types[tokenizer.convert_tokens_to_ids(t)] for t in SPECIAL} == {TokenType.CONTROL}
    assert types[tokenizer.convert_tokens_to_ids("<think>")] == TokenType.USER_DEFINED
    assert types[tokenizer.convert_tokens_to_ids("the")] == TokenType.NORMAL
    assert set(types[n:]) == {TokenType.UNUSED}
    assert said["ggml.merges"] == [" ".join(m) for m in MERGES]
    assert (said["ggml.model"], said["ggml.pre"]) == ("gpt2", "gpt-2")
    assert (said["ggml.eos_token_id"], said["ggml.eot_token_id"], said["ggml.padding_token_id"]) == (2, 2, 0)
    assert said["ggml.add_bos_token"] is False
    assert said["chat_template"] == (gguf_lab.runs[0] / "final" / "chat_template.jinja").read_text()


FAMILIES = [
    ("llama", {}),
    ("llama", {"head_dim": 16}),
    ("smollm2", {}),
    ("qwen2", {}),
    ("qwen2", {"tie_word_embeddings": False}),
    ("qwen3", {"head_dim": 128}),
]


@pytest.mark.parametrize(("family", "changes"), FAMILIES)
def test_every_architecture_is_read_back_as_it_was(tmp_path, family, changes):
    torch.manual_seed(0)
    config = tiny_config(family, vocab_size=ROWS, rope_theta=5000.0, **changes)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval().requires_grad_(False)
    with torch.no_grad():
        for p in model.parameters():  # nothing is one or zero
            if p.dim() == 1:
                p.add_(0.3 * torch.randn_like(p))
    template = Template(merging_tokenizer(), "auto")
    gguf_file.check_architecture(config, template.tokenizer)
    ids = torch.arange(3, 90)[None]
    before = model(ids).logits
    counted: list[int] = []
    file = tmp_path / "model.gguf"
    gguf_file.write_gguf(model, template, file, "f32", name="tiny", advance=lambda: counted.append(1))
    again, _ = gguf_file.read_gguf(file)
    assert (again(ids).logits - before).abs().max() < 1e-4 * before.abs().max()
    assert len(counted) == len(list(model.parameters()))


def test_a_matrix_whose_rows_are_no_multiple_of_a_block_is_kept_in_16_bits(tmp_path):
    from gguf import GGUFReader

    config = tiny_config("smollm2", vocab_size=ROWS)  # rows of 72
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval().requires_grad_(False)
    file = tmp_path / "model.gguf"
    gguf_file.write_gguf(model, Template(merging_tokenizer(), "auto"), file, "q8_0", name="t", advance=lambda: None)
    types = {t.name: t.tensor_type.name for t in GGUFReader(file).tensors}
    assert types["blk.0.ffn_down.weight"] == "Q8_0"  # rows of 192
    assert types["blk.0.attn_q.weight"] == "F16"
    assert types["blk.0.attn_norm.weight"] == "F32"


REFUSED = [
    ("mistral", {}, r"architecture mistral.*llama, qwen2, qwen3"),
    ("smollm3", {}, r"architecture smollm3.*llama, qwen2, qwen3"),
    ("llama", {"attention_bias": True}, "biases in its attention"),
    ("llama", {"mlp_bias": True}, "biases in its MLPs"),
    ("llama", {"hidden_act": "gelu"}, "the activation gelu"),
    ("qwen2", {"use_sliding_window": True}, "sliding windows"),
    ("qwen3", {}, "heads of 16 dimensions"),
    (
        "llama",
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
        r"rotary scaling \(linear\)",
    ),
]


@pytest.mark.parametrize(("family", "changes", "says"), REFUSED)
def test_what_could_not_be_read_back_is_refused(family, changes, says):
    with pytest.raises(ConfigError, match=says):
        gguf_file.check_architecture(tiny_config(family, **changes), merging_tokenizer())


def test_another_architecture_is_refused_before_anything_is_written(lab, tmp_path):
    model = write_tiny_model(tmp_path / "mistral", "mistral")
    words = [
        f"adapter={lab.runs[0] / 'final'}",
        "model=hf",
        f"model.path={model}",
        "data=file",
        f"data.path={lab.data}",
    ]
    words[0] = f"adapter={shutil.copytree(lab.runs[0] / 'final', tmp_path / 'adapter')}"
    config, tree, given = door_of("export", lab, *words, "format=gguf", f"output={tmp_path / 'out'}")
    with pytest.raises(ConfigError, match="architecture mistral"):
        export(config, tree, Path(), given=given)
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_without_merges_is_refused(lab, tmp_path):
    with pytest.raises(ConfigError, match="no merges"):
        exported(lab, f"output={tmp_path / 'out'}")


def test_rows_in_the_wrong_order_are_found_and_the_file_is_removed(gguf_lab, tmp_path, monkeypatch):
    monkeypatch.setattr(gguf_file, "_turned", lambda data, name, config: data)  # as if a Llama were no Llama
    with pytest.raises(OutputError, match="does not hold what was written"):
        exported(gguf_lab, f"output={tmp_path / 'out'}")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_was_cut_is_found_and_removed(gguf_lab, tmp_path, monkeypatch):
    real = gguf_file.write_gguf

    def cut(model, template, file, *args, **kwargs):
        real(model, template, file, *args, **kwargs)
        file.write_bytes(file.read_bytes()[:-5000])

    monkeypatch.setattr(gguf_file, "write_gguf", cut)
    with pytest.raises(OutputError, match="could not be loaded back, and was removed"):
        exported(gguf_lab, f"output={tmp_path / 'out'}")
    assert list(tmp_path.iterdir()) == []


# Names of pre-tokenizers, and the Modelfile


def described(pre: Any) -> dict[str, Any]:
    tokenizer = Tokenizer(models.BPE(vocab={"a": 0}, merges=[]))
    tokenizer.pre_tokenizer = pre
    return json.loads(tokenizer.to_str())


def test_pre_tokenizers_have_the_names_that_llama_cpp_knows(caplog):
    from tokenizers import Regex
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS as known

    def split(pattern: str) -> Any:
        level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), behavior="isolated"), level])

    for name in ("qwen2", "llama-bpe"):
        assert gguf_vocabulary.pre_tokenizer(described(split(known[name]))) == name
    digits = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel()])
    assert gguf_vocabulary.pre_tokenizer(described(digits)) == "smollm"
    assert gguf_vocabulary.pre_tokenizer(described(pre_tokenizers.ByteLevel())) == "gpt-2"
    assert not caplog.records
    assert gguf_vocabulary.pre_tokenizer(described(split(r"\w+"))) == "default"
    assert "cut some texts otherwise" in caplog.text


def go(template: str, messages: list[dict[str, str]]) -> str:
    """What Go's text/template makes of the few actions that a Modelfile of ours has."""
    found = re.fullmatch(r"\{\{ range \.Messages \}\}(.*)\{\{ end \}\}\{\{ end \}\}(.*)", template, re.DOTALL)
    assert found
    branches = re.split(r"\{\{ (?:else )?if eq \.Role \"(\w+)\" \}\}", found[1])
    assert branches[0] == ""
    texts = dict(zip(branches[1::2], branches[2::2], strict=True))
    return "".join(texts[m["role"]].replace("{{ .Content }}", m["content"]) for m in messages) + found[2]


def of_modelfile(text: str) -> tuple[str | None, str | None, list[str]]:
    template = re.search(r'TEMPLATE """(.*?)"""', text, re.DOTALL)
    system = re.search(r'SYSTEM """(.*?)"""', text, re.DOTALL)
    return template and template[1], system and system[1], re.findall(r'PARAMETER stop "(.*)"', text)


TALKS = [
    [{"role": "user", "content": "Hi {there}"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1\n2"}],
    [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "你好"},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": "Bye"},
    ],
]
LLAMA3 = (
    "{{- bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' + m.content + "
    "'<|eot_id|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}"
    "{% endif %}"
)
WITH_SYSTEM = (
    "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\\nYou are a lab.<|im_end|>\\n' }}{% endif %}" + CHATML
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\\n' + "
    "m.content + '<end_of_turn>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)


@pytest.mark.parametrize(
    ("jinja", "bos", "system"),
    [
        (CHATML, None, None),
        (LLAMA3, "<|endoftext|>", None),
        (WITH_SYSTEM, "<|im_start|>", "You are a lab."),
        (GEMMA, "<|endoftext|>", None),
    ],
)
def test_a_chat_template_becomes_ollamas(jinja, bos, system):
    tokenizer = merging_tokenizer(jinja)
    tokenizer.bos_token = bos
    template = Template(tokenizer, "auto")
    text, why = ollama.modelfile(template, "model.gguf")
    assert why is None
    assert text.startswith("FROM ./model.gguf\n")
    made, default, stops = of_modelfile(text)
    assert made
    assert default == system
    assert "<|im_end|>" in stops
    own = bos if jinja in (LLAMA3, GEMMA) else ""  # which Ollama writes
    for talk in TALKS:
        given = (
            talk if system is None or talk[0]["role"] == "system" else [{"role": "system", "content": system}, *talk]
        )
        assert own + go(made, given) == tokenizer.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)
    assert ollama.begins_with_bos(template) is bool(own)


@pytest.mark.parametrize(
    ("jinja", "says"),
    [
        (
            CHATML.replace("m.content", "(m.content | upper if m.role == 'system' else m.content)"),
            "leaves out messages",
        ),
        ("{{ 'Written by a lab.\\n' }}" + CHATML, "a text of its own|another way"),
        (CHATML.replace("'\\n' + m.content", "'{{x' + m.content"), "signs that a Modelfile"),
        (
            "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no') }}{% endif %}{{ m.content }}"
            "{{ '<|im_end|>' }}{% endfor %}",
            "does not take messages of system",
        ),
        (CHATML.replace("m.role", "(m.role ~ loop.index)"), "another way|more than a text"),
    ],
)
def test_a_template_that_ollama_has_no_means_for_is_left_out_and_told(jinja, says):
    text, why = ollama.modelfile(Template(merging_tokenizer(jinja), "auto"), "model.gguf")
    assert why
    assert re.search(says, why), why
    assert 'TEMPLATE """' not in text
    assert why in text
    assert 'PARAMETER stop "<|im_end|>"' in text


def test_the_modelfile_lies_beside_the_file(made):
    folder = made["q8_0"][0]
    text = (folder / "Modelfile").read_text()
    assert text.startswith("FROM ./model-q8_0.gguf\n")
    assert of_modelfile(text)[0]
    assert read_json(folder / disk.RECORD)["rows"]["Modelfile"].startswith("with the chat template")
