"""Small tokenizers with the templates of well-known families, and the data section of a configuration."""

from copy import copy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from dpo_lab.config.schema import Data
from dpo_lab.data.types import Message, Pair

SHARED = Path(__file__).resolve().parents[3] / "shared"

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
SMOLLM2 = (
    "{% for m in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\\n' }}"
    "{% endif %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' "
    "+ m.content | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
    "{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\\n' + m.content | trim "
    "+ '<end_of_turn>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
    "{% elif m.role == 'assistant' %}{{ ' ' + m.content + eos_token }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)
ZEPHYR = (
    "{% for m in messages %}{{ '<|' + m.role + '|>\\n' + m.content + eos_token + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)
THINKING = (  # as Qwen3: the last answer is written with an empty thought that the generation prompt lacks
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + "
    "('<think>\\n\\n</think>\\n\\n' if loop.last and m.role == 'assistant' else '') + m.content + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

# template, special tokens (the eos token first), bos token
FAMILIES: dict[str, tuple[str, list[str], str | None]] = {
    "chatml": (CHATML, ["<|im_end|>", "<|im_start|>"], None),
    "smollm2": (SMOLLM2, ["<|im_end|>", "<|im_start|>"], "<|im_start|>"),
    "llama3": (
        LLAMA3,
        ["<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>", "<|begin_of_text|>"],
        "<|begin_of_text|>",
    ),
    "llama3 with another eos": (
        LLAMA3,
        ["<|end_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>", "<|begin_of_text|>"],
        "<|begin_of_text|>",
    ),
    "gemma": (GEMMA, ["<eos>", "<start_of_turn>", "<end_of_turn>", "<bos>"], "<bos>"),
    "mistral": (MISTRAL, ["</s>", "<s>"], "<s>"),
    "zephyr": (ZEPHYR, ["</s>", "<s>"], "<s>"),
    "thinking": (THINKING, ["<|im_end|>", "<|im_start|>"], None),
}
NO_SYSTEM = ("gemma", "mistral")


def family(name: str, kind: str = "bytes") -> PreTrainedTokenizerFast:
    """A tokenizer of `kind` with a family's template; its pad token is its eos token."""
    template, special, bos = FAMILIES[name]
    tokenizer = {"bytes": byte_level, "merging": merging, "metaspace": metaspace}[kind]()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    if bos:  # as real ones do unless told not to
        tokenizer.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
            single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=special[0], pad_token=special[0], bos_token=bos
    )
    fast.chat_template = template
    return fast


def byte_level(merges: tuple[tuple[str, str], ...] = ()) -> Tokenizer:
    """One token a byte, and one for each pair in `merges`."""
    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *(a + b for a, b in merges)]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=list(merges)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)  # type: ignore[assignment]
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    return tokenizer


def merging() -> Tokenizer:
    """Bytes, but a line break and what may follow it melt into one token."""
    return byte_level((("Ċ", "Ċ"), ("Ċ", "a"), ("Ġ", "a"), ("o", "n")))


def metaspace() -> Tokenizer:
    """Like SentencePiece: a text begins with a space that it does not have."""
    letters = [chr(i) for i in (10, *range(33, 127))] + ["▁", "é", "国"]
    vocab = {token: i for i, token in enumerate(["<unk>", *letters])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)  # type: ignore[assignment]
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first", split=False)  # type: ignore[assignment]
    return tokenizer


@cache
def _qwen(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def real_qwen() -> Any:
    """Qwen2.5's own tokenizer, with a chat template that may be changed, or a skip."""
    folder = SHARED / "models" / "qwen2.5-0.5b-instruct"
    if not (folder / "tokenizer.json").is_file():
        pytest.skip("Qwen2.5's tokenizer is not on this machine (../shared/models)")
    return copy(_qwen(folder))


def data_config(**changes: Any) -> Data:
    """conf/data with nothing held out and room for every pair."""
    settings: dict[str, Any] = {
        "path": None,
        "eval_path": None,
        "hub": None,
        "format": "auto",
        "columns": {},
        "max_length": 4096,
        "truncation": "drop",
        "max_pairs": None,
        "max_eval_pairs": None,
        "eval_fraction": 0.0,
        "seed": 0,
    }
    return Data(**(settings | changes))


def chat(*turns: str, system: str | None = None) -> tuple[Message, ...]:
    """Turns of user and assistant in turn."""
    roles = ("user", "assistant")
    messages = [Message(role=roles[i % 2], content=text) for i, text in enumerate(turns)]
    return tuple(([Message(role="system", content=system)] if system is not None else []) + messages)


def pair(prompt: str | tuple[Message, ...] = "Why?", chosen: str = "good", rejected: str = "bad", row: int = 1) -> Pair:
    return Pair(chat(prompt) if isinstance(prompt, str) else prompt, chosen, rejected, row)
