"""Small tokenizers with the templates of well-known families, and the data section of a configuration."""

import atexit
import shutil
import tempfile
from collections.abc import Callable
from copy import copy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from dpo_lab.config.schema import Data
from dpo_lab.data import prepare as prepare_module
from dpo_lab.data.prepare import Prepared, Split
from dpo_lab.data.templates import Template
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
# As Qwen2.5's and Llama 3.1's with tools: same order of parts, same tokens, shorter instructions.
QWEN25 = (
    "{% set first = messages[0].role == 'system' %}"
    "{{ '<|im_start|>system\n' + (messages[0].content if first else 'You are Qwen.') }}"
    "{% if tools %}{{ '\n\n# Tools\n\n<tools>' }}{% for tool in tools %}{{ '\n' + tool | tojson }}{% endfor %}"
    "{{ '\n</tools>\n\nCall one within <tool_call></tool_call>.' }}{% endif %}{{ '<|im_end|>\n' }}"
    "{% for m in (messages[1:] if first else messages) %}"
    "{% if m.role == 'tool' %}"
    "{% if loop.first or loop.previtem.role != 'tool' %}{{ '<|im_start|>user' }}{% endif %}"
    "{{ '\n<tool_response>\n' + m.content + '\n</tool_response>' }}"
    "{% if loop.last or loop.nextitem.role != 'tool' %}{{ '<|im_end|>\n' }}{% endif %}"
    "{% elif m.tool_calls %}"
    "{{ '<|im_start|>assistant' + ('\n' + m.content if m.content else '') }}"
    '{% for call in m.tool_calls %}{{ \'\n<tool_call>\n{"name": "\' + call.function.name + \'", "arguments": \' '
    "+ call.function.arguments | tojson + '}\n</tool_call>' }}{% endfor %}{{ '<|im_end|>\n' }}"
    "{% else %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA31 = (
    "{% macro header(role) %}{{ '<|start_header_id|>' + role + '<|end_header_id|>\n\n' }}{% endmacro %}"
    "{% set system = messages[0].content | trim if messages[0].role == 'system' else '' %}"
    "{% set talk = messages[1:] if messages[0].role == 'system' else messages %}"
    "{{ bos_token + header('system') }}{% if tools %}{{ 'Environment: ipython\n' }}{% endif %}"
    "{{ 'Cutting Knowledge Date: December 2023\n\n' + system + '<|eot_id|>' }}"
    "{% for m in talk %}"
    "{% if m.role == 'tool' %}{{ header('ipython') + (m.content | tojson) + '<|eot_id|>' }}"
    "{% elif m.tool_calls %}"
    "{% if m.tool_calls | length != 1 %}{{ raise_exception('This model only supports single tool-calls at once!') }}{% endif %}"
    "{% set call = m.tool_calls[0].function %}"
    "{{ header('assistant') + '{\"name\": \"' + call.name + '\", \"parameters\": ' + call.arguments | tojson + '}<|eot_id|>' }}"
    "{% else %}{{ header(m.role) }}"
    "{% if loop.first and tools %}{{ 'Answer with a call of one of these functions.\n\n' }}"
    "{% for tool in tools %}{{ tool | tojson(indent=4) + '\n\n' }}{% endfor %}{% endif %}"
    "{{ m.content | trim + '<|eot_id|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ header('assistant') }}{% endif %}"
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
    "qwen2.5": (QWEN25, ["<|im_end|>", "<|im_start|>"], None),
    "llama3.1": (
        LLAMA31,
        ["<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>", "<|begin_of_text|>"],
        "<|begin_of_text|>",
    ),
}
NO_SYSTEM = ("gemma", "mistral")
WITH_TOOLS = ("qwen2.5", "llama3.1")
NOT_SPECIAL = {"qwen2.5": ["<tool_call>", "</tool_call>"]}  # one token each, and yet text that an answer may hold


def family(name: str, kind: str = "bytes") -> PreTrainedTokenizerFast:
    """A tokenizer of `kind` with a family's template; its pad token is its eos token."""
    template, special, bos = FAMILIES[name]
    tokenizer = KINDS[kind]()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in NOT_SPECIAL.get(name, ())])
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


def sentencepiece() -> Tokenizer:
    """As Llama 2's and Mistral's: a space before the text, bytes for what is not in the vocabulary, a few merges."""
    letters = [chr(i) for i in (10, *range(33, 127))] + ["▁", "é", "国"]
    merges = [("o", "n"), ("▁", "a"), ("\n", "\n"), ("▁", "▁")]
    tokens = ["<unk>", *(f"<0x{i:02X}>" for i in range(256)), *letters, *(a + b for a, b in merges)]
    vocab = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)  # type: ignore[assignment]
    tokenizer.decoder = decoders.Sequence(  # type: ignore[assignment]
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "bytes": byte_level,
    "merging": merging,
    "metaspace": metaspace,
    "sentencepiece": sentencepiece,
}


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
        **{"dir": None, "name": None, "eval_name": None, "tags": {}, "ranking": "all", "min_margin": 0.0},
        **{"mix": "concat", "probabilities": None, "on_error": "raise", "workers": "auto"},
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


def tool(name: str, about: str, **parameters: str) -> dict[str, Any]:
    """A function that a model may call, as a JSON schema; `parameters` say what each is."""
    properties = {key: {"type": "string", "description": text} for key, text in parameters.items()}
    schema = {"type": "object", "properties": properties, "required": [*parameters]}
    return {"type": "function", "function": {"name": name, "description": about, "parameters": schema}}


def call(name: str, **arguments: Any) -> Message:
    """A turn of the assistant that calls a function."""
    function = {"type": "function", "function": {"name": name, "arguments": arguments}}
    return Message(role="assistant", content="", tool_calls=[function])


def result(name: str, content: str) -> Message:
    """What a function gave back."""
    return Message(role="tool", name=name, content=content)


WEATHER = (tool("get_weather", "The weather of a city.", city="Its name, e.g. 北京."), tool("get_time", "The time."))
ASKED = (*chat("How warm is it in 北京?"), call("get_weather", city="北京"), result("get_weather", '{"celsius": 21}'))


def pair(prompt: str | tuple[Message, ...] = "Why?", chosen: str = "good", rejected: str = "bad", row: int = 1) -> Pair:
    return Pair(chat(prompt) if isinstance(prompt, str) else prompt, chosen, rejected, row)


@cache
def cache_dir() -> Path:
    """Where these tests keep tables; gone when they end."""
    folder = tempfile.mkdtemp(prefix="dpo-lab-tables-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def read_pairs(data: Data) -> Split:
    return prepare_module.read_pairs(data, cache_dir())


def prepare(split: Split, data: Data, template: Template) -> Prepared:
    return prepare_module.prepare(split, data, template, cache_dir())


def thinking_family(template: str, *, special: bool = False, kind: str = "bytes") -> PreTrainedTokenizerFast:
    """ChatML's tokens, DeepSeek's and those of a thought, which are special tokens or not, with any template."""
    tokenizer = family("chatml", kind)
    for tag in ("<think>", "</think>"):
        tokenizer.add_tokens(AddedToken(tag, special=special, normalized=False))
    deepseek = ("<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>")
    tokenizer.add_special_tokens({"additional_special_tokens": [*deepseek]})
    tokenizer.chat_template = template
    return tokenizer


def trl_template(name: str) -> str:
    """A chat template as TRL ships it, of a model that is in use, or a skip."""
    trl = pytest.importorskip("trl", reason="the templates are TRL's")
    file = Path(trl.__file__).parent / "chat_templates" / f"{name}.jinja"
    if not file.is_file():
        pytest.skip(f"this TRL has no template {name}")
    return file.read_text(encoding="utf-8")
