"""GGUF files become the model they were made from, or are refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter, quantize
from tiny import CHATML, FP32, load_tiny, plain_model, write_tiny_model
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from dpo_lab.data.templates import Template
from dpo_lab.models.locate import Located, locate
from dpo_lab.models.tokenizer import load_tokenizer
from dpo_lab.runtime.errors import ModelError

NAMES = {  # ours -> llama.cpp's, https://github.com/ggml-org/llama.cpp/blob/master/gguf-py/gguf/tensor_mapping.py
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "post_attention_layernorm": "ffn_norm",
    "input_layernorm": "attn_norm",
    "model.layers": "blk",
}


def write_gguf(file: Path, folder: Path, kind: str = "F32", *, without: str = "", more: Any = None) -> Path:
    """What llama.cpp's converter makes of a tiny Llama folder, in pure Python."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    config, type_ = model.config, GGMLQuantizationType[kind]
    writer = GGUFWriter(file, "llama")
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    tokens = [
        *(tokenizer.convert_ids_to_tokens(i) for i in range(len(tokenizer))),
        "ab",
        "cd",
    ]  # a merge needs its token
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if t in tokenizer.all_special_tokens else 1 for t in tokens])
    writer.add_token_merges(["a b", "c d"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(2)
    writer.add_chat_template(CHATML)
    if more is not None:
        more(writer)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" or without in name.split("."):
            continue
        data = tensor.numpy()
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2])
        if heads:  # llama.cpp turns neighbouring dimensions, transformers halves of a head
            data = data.reshape(heads, 2, -1, data.shape[-1]).swapaxes(1, 2).reshape(data.shape)
        for ours, theirs in NAMES.items():
            name = name.replace(ours, theirs)
        stored = type_ if data.ndim == 2 else GGMLQuantizationType.F32
        writer.add_tensor(name, quantize(np.ascontiguousarray(data), stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A Llama with a merge in its vocabulary, as llama.cpp's tokenizer format asks for one."""
    return write_tiny_model(tmp_path_factory.mktemp("gguf") / "tiny", vocab_size=261)


def found(file: Path, cache: Path, said: list[str] | None = None) -> Located:
    return locate(plain_model(file), cache, ([] if said is None else said).append)


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model(torch.arange(3, 60)[None]).logits


@pytest.mark.parametrize(("kind", "tolerance"), [("F32", 1e-5), ("Q8_0", 0.05)])
def test_a_file_becomes_the_model_that_it_was_made_from(folder, tmp_path, kind, tolerance):
    file, said = write_gguf(tmp_path / "tiny.gguf", folder, kind), []
    located = found(file, tmp_path / "cache", said)
    assert located.name == "tiny.gguf"
    assert located.note == f"dequantised from GGUF {kind}"
    assert any("converting tiny.gguf once" in text for text in said)
    theirs, ours = logits(load_tiny(folder)), logits(load_tiny(located.path))
    gap = ((theirs - ours).norm() / theirs.norm()).item()
    assert gap < tolerance
    assert kind == "F32" or gap > 1e-3, "8 bits are not 32"
    assert {p.dtype for p in load_tiny(located.path).parameters()} == {FP32.weights}
    tokenizer = load_tokenizer(located, plain_model(file))
    template = Template(tokenizer, "auto")
    assert template.render([{"role": "user", "content": "Hi"}]).startswith("<|im_start|>user\nHi")
    assert template.end_of_turn == [2]
    again: list[str] = []
    assert found(file, tmp_path / "cache", again) == located
    assert not again, "converted once"


def test_the_identity_follows_the_content_not_the_name(folder, tmp_path):
    one = found(write_gguf(tmp_path / "one.gguf", folder), tmp_path)
    two = found(write_gguf(tmp_path / "two.gguf", folder), tmp_path)
    other = found(write_gguf(tmp_path / "other.gguf", folder, "Q8_0"), tmp_path)
    assert one.path == two.path != other.path
    assert one.identity(tmp_path) == two.identity(tmp_path) != other.identity(tmp_path)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


@pytest.mark.parametrize("spoil", [lambda f: f.write_bytes(b"not a model"), lambda f: f.write_bytes(b""), cut])
def test_a_broken_file_is_told_and_leaves_nothing_behind(folder, tmp_path, spoil):
    file = write_gguf(tmp_path / "tiny.gguf", folder)
    spoil(file)
    with pytest.raises(ModelError, match=r"tiny\.gguf is no whole GGUF file.*Get the file again"):
        found(file, tmp_path / "cache")
    assert not [p for p in (tmp_path / "cache" / "models").iterdir() if p.suffix != ".lock"]


def test_a_file_that_lacks_tensors_is_not_filled_with_random_ones(folder, tmp_path):
    file = write_gguf(tmp_path / "tiny.gguf", folder, without="down_proj")
    with pytest.raises(ModelError, match=r"lacks 2 of the model's tensors, first .*down_proj"):
        found(file, tmp_path / "cache")


def unknown_architecture(writer: GGUFWriter) -> None:
    writer.kv_data[0]["general.architecture"].value = "llama9"


@pytest.mark.parametrize(
    ("more", "fragment"),
    [
        (lambda w: w.add_tensor("rope_freqs.weight", np.ones(4, np.float32)), r"scales its rotary.*rope_freqs.weight"),
        (lambda w: w.add_string("llama.rope.scaling.type", "yarn"), r"scales its rotary.*rope.scaling.type"),
        (lambda w: w.add_uint16("split.count", 3), "one of 3 parts"),
        (unknown_architecture, r"cannot be read: .*llama9.*own weights"),
    ],
)
def test_what_transformers_would_misread_is_refused(folder, tmp_path, more, fragment):
    file = write_gguf(tmp_path / "tiny.gguf", folder, more=more)
    with pytest.raises(ModelError, match=fragment):
        found(file, tmp_path / "cache")
