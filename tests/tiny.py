"""A tiny real model folder: a Llama, or a model of another family, with a byte tokenizer and ChatML, made in a second.

And what tests of the numbers build on it: policies, pairs, ways to compare.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
)

from dpo_lab.config.schema import Lora, Model, Quant, Rope
from dpo_lab.data.templates import Template
from dpo_lab.data.tokenize import tokenize
from dpo_lab.data.types import Example, Message, Pair
from dpo_lab.models.load import load_model
from dpo_lab.models.locate import Located
from dpo_lab.models.lora import new_adapter
from dpo_lab.models.precision import Precision

FP32 = Precision("32", torch.float32, torch.float32)
FP64 = Precision("64", torch.float64, torch.float64)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def byte_tokenizer(template: str | None = CHATML) -> PreTrainedTokenizerFast:
    """One token a byte, and ChatML's special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate([*SPECIAL, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)  # type: ignore[assignment]
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>"],
    )
    fast.chat_template = template
    return fast


SHAPE: dict[str, Any] = {
    "vocab_size": 259,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
    "pad_token_id": 0,
}


FAMILIES: dict[str, tuple[type[PreTrainedConfig], dict[str, Any]]] = {
    "llama": (LlamaConfig, {}),
    "qwen2": (Qwen2Config, {}),
    "qwen3": (Qwen3Config, {"head_dim": 16}),
    "mistral": (MistralConfig, {"sliding_window": None}),
    "smollm2": (  # a Llama; three query heads to one of keys and values
        LlamaConfig,
        {"hidden_size": 72, "intermediate_size": 192, "num_attention_heads": 9, "num_key_value_heads": 3},
    ),
    "smollm3": (SmolLM3Config, {"no_rope_layers": [1, 0]}),  # the second layer does not rotate
}


def tiny_config(family: str = "llama", **changes: object) -> PreTrainedConfig:
    """hidden 32, 2 layers, 4 heads of which 2 are shared, 259 tokens."""
    kind, own = FAMILIES[family]
    settings = {"bos_token_id": 0, "eos_token_id": 2, "tie_word_embeddings": True}
    return kind(**(SHAPE | settings | own | changes))  # type: ignore[arg-type]


def write_tiny_model(folder: Path, family: str = "llama", *, template: str | None = CHATML, **changes: object) -> Path:
    """A model folder in Hugging Face format with random weights of a fixed seed."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(tiny_config(family, **changes)).save_pretrained(folder)
    byte_tokenizer(template).save_pretrained(folder)
    return folder


def plain_model(folder: Path | str) -> Model:
    """conf/model for a local folder."""
    return Model(
        name=None, hub="hf", names={}, path=str(folder), revision=None, wheel=None,
        rope=Rope(type="none", factor=None), dtype="auto", attn="auto",
        gradient_checkpointing=False, trust_remote_code=False,
    )  # fmt: skip


def load_tiny(
    folder: Path,
    precision: Precision = FP32,
    *,
    bits: Literal[4, 8] | None = None,
    threshold: float = 0.0,
    device: str = "cpu",
    attn: str = "auto",
) -> Any:
    """The base of a model folder, frozen, through the lab's own loader."""
    model = plain_model(folder).model_copy(update={"attn": attn})
    return load_model(
        Located(folder, folder.name), model, Quant(bits=bits, threshold=threshold), precision, torch.device(device)
    )


def tiny_lora(r: int = 4, **changes: Any) -> Lora:
    """Rank 4 on all linear layers."""
    return Lora(**({"r": r, "alpha": 2 * r, "dropout": 0.0, "target_modules": "all-linear"} | changes))


def tiny_policy(
    folder: Path,
    precision: Precision = FP32,
    *,
    bits: Literal[4, 8] | None = None,
    seed: int = 0,
    moved: float = 0.0,
    **kwargs: Any,
) -> Any:
    """The base with a fresh adapter; `moved` is the size of the random B that takes it away from the base."""
    policy = new_adapter(load_tiny(folder, precision, bits=bits, **kwargs), tiny_lora(), seed=seed)
    if moved:
        move(policy, moved)
    return policy.eval()


def move(policy: torch.nn.Module, size: float, *, seed: int = 1) -> None:
    """Random B matrices, so that the policy is no longer the reference."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in policy.named_parameters():
        if "lora_B.default" in name:
            parameter.data.copy_(size * torch.randn(parameter.shape, generator=generator))


def trained(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The trainable parameters by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def tiny_pairs() -> list[Pair]:
    """Eight pairs of uneven length: several turns, a system message, Chinese, an answer of one letter."""
    user, system = "user", "system"
    rows: list[tuple[list[tuple[str, str]], str, str]] = [
        ([(user, "What is 2 + 2?")], "2 + 2 = 4.", "5"),
        ([(user, "Name a colour.")], "Blue.", "I would rather not name any colour at all today."),
        ([(system, "Be brief."), (user, "Say hello to the whole class, please.")], "Hello, class!", "Hi"),
        ([(user, "1, 2, 3?")], "4", "Seven"),
        ([(user, "Hi"), ("assistant", "Hello."), (user, "And now?")], "Now we work.", "Now we rest, or so I think."),
        ([(user, "你好吗?")], "我很好。", "不知道"),
        ([(user, "Spell cat.")], "C, A, T.", "K, A, T, T."),
        ([(user, "Is the sky green, or is it some other colour that you can name?")], "It is blue.", "Green!"),
    ]
    return [
        Pair(tuple(Message(role=r, content=c) for r, c in turns), chosen, rejected, row)
        for row, (turns, chosen, rejected) in enumerate(rows, start=1)
    ]


def tiny_examples(pairs: list[Pair] | None = None, *, template: str | None = CHATML) -> list[Example]:
    """The pairs as token ids of the byte tokenizer."""
    made = Template(byte_tokenizer(template), "auto")
    return tokenize(pairs or tiny_pairs(), made, max_length=512, truncation="drop", limit=None)[0]


def difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Largest difference, relative to the largest value of the second where that is more than 1."""
    assert ours.shape == theirs.shape
    return ((ours.double() - theirs.double()).abs().max() / theirs.double().abs().max().clamp_min(1.0)).item()


@dataclass(frozen=True)
class Case:
    """A model in a precision, and how far two ways to compute the same log-probs may lie apart."""

    fixture: str
    precision: Precision
    tolerance: float
    quant: dict[str, Any] = field(default_factory=dict)
    mean: bool = False  # of the mean over the tokens, instead of the largest

    def close(self, ours: torch.Tensor, theirs: torch.Tensor) -> bool:
        """Whether two sets of log-probs are the same within the tolerance."""
        gap = (ours - theirs).abs().mean().item() if self.mean else difference(ours, theirs)
        return gap < self.tolerance


CASES = {
    "llama fp32": Case("tiny_model", FP32, 1e-5),
    "llama fp64": Case("tiny_model", FP64, 1e-9),
    "qwen2 fp32": Case("tiny_qwen", FP32, 1e-5),
    "qwen2 fp64": Case("tiny_qwen", FP64, 1e-9),
    "4-bit": Case("tiny_wide", FP32, 1e-5, {"bits": 4}),
    "8-bit": Case("tiny_wide", FP32, 1e-5, {"bits": 8}),
    "8-bit, outliers apart": Case("tiny_wide", FP32, 1e-5, {"bits": 8, "threshold": 6.0}),
}


def worst_gradient(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    """Largest difference of two sets of gradients, relative to the largest entry of each."""
    assert ours.keys() == theirs.keys() != set()
    assert all(g.abs().max() > 0 for g in theirs.values())
    return max(((ours[n] - g).abs().max() / g.abs().max()).item() for n, g in theirs.items())


class Largest(TorchDispatchMode):
    """Remembers the largest tensor that any operation returned, forward and backward."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.numel = max([self.numel, *(t.numel() for t in tree_leaves(out) if isinstance(t, torch.Tensor))])
        return out
