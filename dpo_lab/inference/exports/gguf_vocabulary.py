"""A tokenizer in a GGUF file: byte-level BPE, with its merges, the kinds of its tokens and the chat template."""

import json
import logging
from typing import Any

from dpo_lab.data.templates import Template
from dpo_lab.inference.exports.ollama import begins_with_bos
from dpo_lab.runtime.errors import ConfigError

log = logging.getLogger(__name__)

# How llama.cpp calls the ways to cut a text into words before merging, by the pattern that tokenizers call them.
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
PATTERNS = {_WORDS + r"\p{N}" + _REST: "qwen2", _WORDS + r"\p{N}{1,3}" + _REST: "llama-bpe"}
UNKNOWN = "default"


def check_tokenizer(tokenizer: Any) -> None:
    """Whether it is a byte-level BPE.

    Raises:
        ConfigError: it is none.
    """
    described = _described(tokenizer)
    if described is None or described["model"]["type"] != "BPE" or described["model"].get("byte_fallback"):
        kind = described["model"]["type"] if described else type(tokenizer).__name__
        raise ConfigError(
            f"format=gguf writes byte-level BPE tokenizers, as Llama 3, SmolLM and Qwen have; this one is of another kind "
            f"({kind}). Use format=merged, and llama.cpp's convert_hf_to_gguf.py."
        )
    if not described["model"]["merges"]:
        raise ConfigError(
            "format=gguf: this tokenizer has no merges, and llama.cpp reads none without. Use format=merged."
        )


def write_tokenizer(writer: Any, template: Template, rows: int) -> None:
    """Tokens, their kinds, merges, special ids and the chat template.

    Args:
        writer: of the file.
        template: with the tokenizer.
        rows: of the model's embedding, which may be more than there are tokens.
    """
    from gguf import TokenType

    tokenizer, described = template.tokenizer, _described(template.tokenizer)
    assert described is not None
    texts = {i: text for text, i in tokenizer.get_vocab().items()}
    added = tokenizer.added_tokens_decoder
    kinds = {i: TokenType.CONTROL if token.special else TokenType.USER_DEFINED for i, token in added.items()}
    tokens = [texts.get(i, f"[PAD{i}]") for i in range(rows)]
    types = [kinds.get(i, TokenType.NORMAL) if i in texts else TokenType.UNUSED for i in range(rows)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre_tokenizer(described))
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    merges = described["model"]["merges"]
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    ids = {
        "bos": tokenizer.bos_token_id,
        "eos": tokenizer.eos_token_id,
        "unk": tokenizer.unk_token_id,
        "pad": tokenizer.pad_token_id,
        "eot": template.end_of_turn[-1],
    }
    for name, number in ids.items():
        if number is not None:
            getattr(writer, f"add_{name}_token_id")(number)
    writer.add_add_bos_token(begins_with_bos(template))
    writer.add_chat_template(tokenizer.get_chat_template())


def pre_tokenizer(described: dict[str, Any]) -> str:
    """llama.cpp's name of the way in which a tokenizer cuts texts into words."""
    pre = described.get("pre_tokenizer") or {}
    parts = pre.get("pretokenizers", [pre])
    kinds = [part.get("type") for part in parts]
    whole = parts[-1].get("type") == "ByteLevel" and parts[-1].get("use_regex", True)
    if kinds == ["ByteLevel"] and whole:
        return "gpt-2"
    if kinds == ["Digits", "ByteLevel"] and whole and parts[0].get("individual_digits"):
        return "smollm"
    if kinds == ["Split", "ByteLevel"] and not whole:
        pattern = parts[0]["pattern"].get("Regex", "")
        if pattern in PATTERNS:
            return PATTERNS[pattern]
    log.warning(
        "llama.cpp has no name that is known here for the way in which this tokenizer cuts texts into words, so the file "
        "says %s. Programs that use llama.cpp may cut some texts otherwise than the training did.",
        UNKNOWN,
    )
    return UNKNOWN


def _described(tokenizer: Any) -> dict[str, Any] | None:
    """The contents of its tokenizer.json."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return None if backend is None else json.loads(backend.to_str())
