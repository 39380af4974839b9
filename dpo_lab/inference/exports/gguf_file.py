"""format=gguf: a file that llama.cpp, Ollama and LM Studio read, through the gguf package's writer."""

import io
import logging
from collections.abc import Callable
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dpo_lab.data.templates import Template
from dpo_lab.inference.exports.gguf_vocabulary import check_tokenizer, write_tokenizer
from dpo_lab.models.gguf import UNREADABLE
from dpo_lab.models.quiet import quiet_loading
from dpo_lab.preference.forward import rope_type
from dpo_lab.runtime.errors import ConfigError, ModelError

log = logging.getLogger(__name__)

ARCHITECTURES = ("llama", "qwen2", "qwen3")  # whose files transformers reads back exactly
QWEN3_HEAD = 128  # transformers takes it for granted when it reads a file


def check_architecture(config: Any, tokenizer: Any) -> None:
    """Whether a model of this transformers configuration becomes a file that says all about it.

    Raises:
        ConfigError: it does not; the message names what works.
    """
    kind = config.model_type
    if kind not in ARCHITECTURES:
        raise ConfigError(
            f"format=gguf does not know the architecture {kind}. It works for {', '.join(ARCHITECTURES)}; others can be "
            "exported with format=merged and converted by llama.cpp's convert_hf_to_gguf.py."
        )
    special = {
        f"rotary scaling ({rope_type(config)})": rope_type(config) not in (None, "default"),
        "biases in its attention": kind != "qwen2" and getattr(config, "attention_bias", False),
        "biases in its MLPs": getattr(config, "mlp_bias", False),
        "sliding windows": getattr(config, "use_sliding_window", False),
        f"the activation {config.hidden_act}": config.hidden_act != "silu",
        f"heads of {head_size(config)} dimensions": _odd_heads(config),
    }
    if found := [what for what, there in special.items() if there]:
        raise ConfigError(
            f"format=gguf: this {kind} model has {' and '.join(found)}, which transformers does not read back from GGUF, so "
            "the file could not be checked. Use format=merged, and llama.cpp's convert_hf_to_gguf.py."
        )
    check_tokenizer(tokenizer)


def head_size(config: Any) -> int:
    """Dimensions of an attention head."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def _odd_heads(config: Any) -> bool:
    if config.model_type == "qwen3":
        return head_size(config) != QWEN3_HEAD
    return config.model_type == "qwen2" and head_size(config) != config.hidden_size // config.num_attention_heads


@torch.no_grad()
def write_gguf(
    model: Any, template: Template, file: Path, type_: str, *, name: str, advance: Callable[[], None]
) -> None:
    """Write a model in fp32; its weights become what the file holds of them.

    Args:
        model: a transformers model on the CPU.
        template: tokenizer and chat template go into the file.
        file: to be written.
        type_: of the matrices, f16, bf16, f32 or q8_0; vectors stay in fp32.
        name: of the model, for readers.
        advance: called after each tensor.
    """
    import gguf
    from gguf.quants import dequantize, quantize

    config = model.config
    wanted = gguf.GGMLQuantizationType[type_.upper()]
    writer = gguf.GGUFWriter(file, config.model_type)
    try:
        _write_facts(writer, config, type_, name)
        write_tokenizer(writer, template, config.vocab_size)
        names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[config.model_type.upper()], config.num_hidden_layers)
        for own, parameter in model.named_parameters():  # what is tied comes once
            theirs = names.get_name(own, try_suffixes=(".weight", ".bias"))
            if theirs is None:
                raise ModelError(f"format=gguf has no name for the weight {own}. Use format=merged.")
            stored = _stored(gguf, parameter, wanted)
            data = quantize(np.ascontiguousarray(parameter.numpy()), stored)
            parameter.data = torch.from_numpy(np.array(dequantize(data, stored), dtype=np.float32)).view_as(parameter)
            writer.add_tensor(theirs, _turned(data, own, config), raw_dtype=stored)
            advance()
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def _write_facts(writer: Any, config: Any, type_: str, name: str) -> None:
    """The model's shape."""
    import gguf

    kind = {"f32": "ALL_F32"}.get(type_, f"MOSTLY_{type_.upper()}")
    writer.add_name(name)
    writer.add_file_type(gguf.LlamaFileType[kind])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(head_size(config))
    writer.add_key_length(head_size(config))
    writer.add_value_length(head_size(config))
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)


def _stored(gguf: Any, parameter: torch.Tensor, wanted: Any) -> Any:
    """The type of a tensor in the file, as llama.cpp chooses it."""
    if parameter.dim() == 1:
        return gguf.GGMLQuantizationType.F32
    block, _ = gguf.GGML_QUANT_SIZES[wanted]
    return wanted if parameter.shape[-1] % block == 0 else gguf.GGMLQuantizationType.F16


def _turned(data: np.ndarray, name: str, config: Any) -> np.ndarray:
    """Rows in llama.cpp's order: in a Llama it rotates neighbouring dimensions, and transformers halves of a head."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2])
    if config.model_type != "llama" or heads is None:
        return data
    return np.ascontiguousarray(data.reshape(heads, 2, -1, data.shape[-1]).swapaxes(1, 2).reshape(data.shape))


def read_gguf(file: Path) -> tuple[Any, Any]:
    """Model in fp32 and tokenizer, as transformers reads them from a GGUF file.

    Raises:
        ModelError: it cannot, or tensors are missing.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    # The reader of GGUF files draws its own bars on stderr, whatever transformers is told.
    with quiet_loading(), redirect_stderr(io.StringIO()):
        try:
            both: Any = AutoModelForCausalLM.from_pretrained(
                file.parent, gguf_file=file.name, dtype=torch.float32, output_loading_info=True
            )
            tokenizer: Any = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        except (*UNREADABLE, AttributeError, RuntimeError, OSError, ImportError) as e:
            reason = (str(e).strip().splitlines() or [type(e).__name__])[0]
            raise ModelError(f"{file.name} cannot be read: {reason[:300].rstrip('.')}.") from e
    model, info = both
    if absent := sorted(info["missing_keys"]):
        raise ModelError(f"{file.name} lacks {len(absent)} tensors, first {absent[0]}.")
    return model.requires_grad_(False).eval(), tokenizer
