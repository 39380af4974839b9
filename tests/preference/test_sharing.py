"""Which models compute a pack as it lies, which are refused and why, and that all else about them stays as it was."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tiny import FP32, SHAPE, byte_tokenizer, difference, load_tiny, tiny_examples, tiny_policy, trained, worst_gradient
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaForCausalLM, PreTrainedConfig

from dpo_lab.data.collate import collate
from dpo_lab.preference.attention import NAME
from dpo_lab.preference.forward import Forward
from dpo_lab.preference.sharing import obstacle, share

SHARED, PADDED = Forward(), Forward(shared=False)
LAYOUT = collate(tiny_examples(), range(8))
LONGEST = max(p + max(c, r) for p, c, r in LAYOUT.lengths)
TOKENS = {"pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 2}
GEMMA = {"head_dim": 8, "query_pre_attn_scalar": 8, "initializer_range": 0.2}
WINDOW = {"sliding_window": 16}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
LINEAR = {"linear_num_value_heads": 2, "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
GPT = {"vocab_size": 259, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512, **TOKENS}
NO_DROPOUT = {"attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0}
BY_HEADS = {"vocab_size": 259, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, **TOKENS}
DYNAMIC = {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}}


def config(kind: str, **settings: Any) -> PreTrainedConfig:
    return getattr(transformers, f"{kind}Config")(**settings)


def shaped(kind: str, **settings: Any) -> PreTrainedConfig:
    return config(kind, **(SHAPE | TOKENS | settings))


def model_of(made: PreTrainedConfig, **kwargs: Any) -> Any:
    """A model whose weights are large enough that one token's change is seen in the others."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(made, **kwargs).eval()
        for parameter in model.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.2)
    return model


def compared(model: Any) -> tuple[float, float]:
    """Differences between the two ways, of log-probs and of gradients."""
    found = []
    for forward in (SHARED, PADDED):
        model.zero_grad()
        logps = forward.logps(model, LAYOUT)
        (logps * torch.linspace(-1.0, 2.0, len(logps))).sum().backward()
        grads = {
            n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 1e-3
        }
        found.append((logps.detach(), grads))
    (ours, gradient), (theirs, expected) = found
    return difference(ours, theirs), worst_gradient(gradient, expected)


# -- those that share -----------------------------------------------------------------------------------------------

SHARING: dict[str, PreTrainedConfig] = {
    "llama": shaped("Llama"),
    "llama, scaled positions": shaped(
        "Llama",
        rope_parameters={
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32, "rope_theta": 10000.0,
        },
    ),
    "qwen2, a window that is switched off": shaped("Qwen2", use_sliding_window=False, **WINDOW),
    "qwen3": shaped("Qwen3", head_dim=16),
    "mistral, a window as long as the longest sequence": shaped("Mistral", sliding_window=LONGEST),
    "smollm3": shaped("SmolLM3", no_rope_layers=[1, 0]),
    "gemma": shaped("Gemma", head_dim=8),
    "gemma 3, a window as long as the longest sequence": shaped("Gemma3Text", **GEMMA, sliding_window=LONGEST),
    "phi 3": shaped("Phi3", sliding_window=None),
    "phi": shaped("Phi"),
    "granite": shaped("Granite", logits_scaling=2.0, attention_multiplier=0.3, residual_multiplier=0.5),
    "gpt-neox": config("GPTNeoX", intermediate_size=64, **BY_HEADS),
    "gpt 2 without dropout": config("GPT2", **GPT, **NO_DROPOUT),
    "qwen2-moe": shaped("Qwen2Moe", shared_expert_intermediate_size=32, **EXPERTS),
    "olmo 2": shaped("Olmo2"),
    "cohere": shaped("Cohere"),
}  # fmt: skip


@pytest.mark.parametrize("name", SHARING)
def test_a_model_that_shares_gives_the_numbers_of_the_padded_way(name: str) -> None:
    model = model_of(SHARING[name])
    assert share(model, max_length=LONGEST) is None
    assert SHARED.shares(model)
    assert not PADDED.shares(model)
    logps, gradients = compared(model)
    assert logps < 1e-5
    assert gradients < 1e-4


# -- those that don't -----------------------------------------------------------------------------------------------

REFUSED: dict[str, tuple[PreTrainedConfig, str | None, str]] = {
    "eager attention": (shaped("Llama"), "eager", "model.attn=eager computes attention by itself"),
    "dynamic positions": (shaped("Llama", **DYNAMIC), None, "dynamic rotary scaling depends on the length"),
    "mistral with a window": (shaped("Mistral", **WINDOW), None, rf"slides over 16 tokens, and .*max_length={LONGEST}"),
    "a window one token short": (shaped("Mistral", sliding_window=LONGEST - 1), None, f"slides over {LONGEST - 1} tokens"),
    "qwen2 with windows": (
        shaped("Qwen2", use_sliding_window=True, max_window_layers=0, **WINDOW), None, "slides over 16 tokens",
    ),
    "phi 3 with a window": (shaped("Phi3", **WINDOW), None, "slides over 16 tokens"),
    "gemma 3 with windows": (shaped("Gemma3Text", **GEMMA, **WINDOW), None, "slides over 16 tokens"),
    "gemma 2": (shaped("Gemma2", **GEMMA), None, "computes attention by itself|scores are capped"),
    "gpt-oss": (shaped("GptOss", head_dim=8, num_local_experts=4), None, "computes attention by itself|has sinks"),
    "attention with dropout": (shaped("Llama", attention_dropout=0.1), None, "its attention has dropout"),
    "gpt 2 with its dropout": (config("GPT2", **GPT), None, "its attention has dropout"),
    "layers of another kind": (
        shaped("Qwen3Next", shared_expert_intermediate_size=32, **EXPERTS, **LINEAR), None, "layers of another kind .linear_attention.",
    ),
    "alibi": (config("Falcon", alibi=True, **BY_HEADS), None, "its layers do not take a layout .ValueError."),
    "bloom": (config("Bloom", **{k: v for k, v in BY_HEADS.items() if "num" not in k}), None, "computes attention by itself"),
    "a state-space model": (config("Mamba", vocab_size=259, hidden_size=32, num_hidden_layers=2), None, "by itself"),
    "layers that drop what they do not know": (shaped("StableLm"), None, "its layers ignore the layout"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_model_that_cannot_says_why_and_is_left_as_it_was(name: str) -> None:
    made, attn, why = REFUSED[name]
    model = model_of(made, **({"attn_implementation": attn} if attn else {}))
    before = model.config._attn_implementation
    with torch.no_grad():
        logps = PADDED.logps(model, LAYOUT)
    reason = share(model, max_length=LONGEST)
    assert reason is not None
    assert re.search(why, reason), reason
    assert model.config._attn_implementation == before != NAME
    assert not SHARED.shares(model)
    with torch.no_grad():
        assert torch.equal(SHARED.logps(model, LAYOUT), logps)


def test_soft_caps_are_seen_where_attention_is_sdpa() -> None:
    """transformers refuses that today, and has let it pass with the cap left out."""
    model = model_of(shaped("Gemma2", **GEMMA))
    model.config._attn_implementation_internal = "sdpa"
    assert obstacle(model, LONGEST) == "its attention scores are capped"


class Sinks(nn.Module):
    """An attention layer with a sink for each head, as gpt-oss names it."""

    def __init__(self) -> None:
        super().__init__()
        self.sinks = nn.Parameter(torch.zeros(4))


def test_sinks_are_seen_in_a_model_whose_attention_is_sdpa() -> None:
    model = model_of(shaped("Llama"))
    assert obstacle(model, LONGEST) is None
    model.model.layers[1].extra = Sinks()
    assert obstacle(model, LONGEST) == "its attention has sinks"


# -- what only the trial can tell -----------------------------------------------------------------------------------


def spoiled(layer_forward: Any) -> LlamaForCausalLM:
    """A Llama one of whose layers does something of its own."""
    model = model_of(shaped("Llama"))
    layer = model.model.layers[1]
    original = layer.forward
    layer.forward = lambda *args, **kwargs: layer_forward(original, *args, **kwargs)
    return model


def ignores_the_layout(original: Any, *args: Any, layout: Any = None, attention_mask: Any = None, **kwargs: Any) -> Any:
    return original(*args, attention_mask=None, **kwargs)


def mixes_neighbours(original: Any, *args: Any, **kwargs: Any) -> Any:
    """A convolution over the pack: the last token of a pair reaches the first of the next."""
    out: Tensor = original(*args, **kwargs)
    return out + 0.1 * out.roll(1, dims=1)


def counts_from_the_left(original: Any, hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
    """Positions of its own, which do not begin again with each answer."""
    return original(hidden + 0.01 * torch.arange(hidden.shape[1])[:, None], *args, **kwargs)


def knows_no_layout(original: Any, *args: Any, **kwargs: Any) -> Any:
    if "layout" in kwargs:
        raise TypeError("forward() got an unexpected keyword argument 'layout'")
    return original(*args, **kwargs)


@pytest.mark.parametrize(
    ("does", "why"),
    [
        (ignores_the_layout, "its hidden states differ"),
        (mixes_neighbours, "its hidden states differ"),
        (counts_from_the_left, "its hidden states differ"),
        (knows_no_layout, r"its layers do not take a layout \(TypeError\)"),
    ],
)
def test_a_layer_that_does_something_of_its_own_is_found_out(does: Any, why: str) -> None:
    model = spoiled(does)
    assert obstacle(model, LONGEST) is None, "the configuration does not tell"
    reason = share(model, max_length=LONGEST)
    assert reason is not None
    assert re.match(why, reason), reason
    assert model.config._attn_implementation == "sdpa"


def test_the_same_layer_doing_nothing_of_its_own_shares() -> None:
    assert share(spoiled(lambda original, *args, **kwargs: original(*args, **kwargs)), max_length=LONGEST) is None


def test_sharing_twice_is_sharing_once() -> None:
    model = model_of(shaped("Llama"))
    assert share(model, max_length=LONGEST) is share(model, max_length=LONGEST) is None
    assert SHARED.shares(model)


def test_a_second_model_of_the_same_kind_is_not_touched() -> None:
    one, other = model_of(shaped("Llama")), model_of(shaped("Llama"))
    assert share(one, max_length=LONGEST) is None
    assert other.config._attn_implementation == "sdpa"
    assert not SHARED.shares(other)


# -- all else stays -------------------------------------------------------------------------------------------------


def test_generation_with_padding_on_the_left_is_unchanged(tiny_model: Path) -> None:
    policy = tiny_policy(tiny_model, moved=0.3)
    tokenizer = byte_tokenizer()
    tokenizer.padding_side = "left"
    texts = ["A prompt of some length.", "Hi", "Another one?"]
    batch = tokenizer(texts, return_tensors="pt", padding=True)
    assert (batch["attention_mask"] == 0).any()

    def answers(**inputs: Any) -> Tensor:
        return policy.generate(**inputs, max_new_tokens=12, do_sample=False, use_cache=True, pad_token_id=0)

    before = answers(**batch)
    assert share(policy, max_length=512) is None
    after = answers(**batch)
    assert torch.equal(after, before)
    for text, row in zip(texts, after, strict=True):
        one = answers(**tokenizer([text], return_tensors="pt"))[0]
        own = one[-12:][one[-12:] != 0]
        assert torch.equal(row[-len(own) :] if len(own) == 12 else row[row != 0][-len(own) :], own)


def test_logits_of_rows_with_a_mask_are_unchanged(tiny_model: Path) -> None:
    policy = tiny_policy(tiny_model, moved=0.3)
    rows = torch.arange(20, 60).view(2, 20)
    mask = torch.ones_like(rows)
    mask[0, :7] = 0
    with torch.no_grad():
        before = policy(input_ids=rows, attention_mask=mask).logits
        assert share(policy, max_length=512) is None
        assert torch.equal(policy(input_ids=rows, attention_mask=mask).logits, before)


def test_what_is_saved_does_not_speak_of_the_lab(tiny_model: Path, tmp_path: Path) -> None:
    model = load_tiny(tiny_model)
    model.save_pretrained(tmp_path / "before")
    assert share(model, max_length=512) is None
    model.save_pretrained(tmp_path / "after")
    before, after = ((tmp_path / name / "config.json").read_text() for name in ("before", "after"))
    assert json.loads(after) == json.loads(before)
    assert NAME not in after
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "after")
    assert again.config._attn_implementation == "sdpa"


def test_what_is_trained_and_the_names_of_it_stay(tiny_model: Path) -> None:
    policy = tiny_policy(tiny_model, moved=0.3)
    before = {name: p.clone() for name, p in policy.state_dict().items()}
    asked = set(trained(policy))
    assert share(policy, max_length=512) is None
    assert set(trained(policy)) == asked
    assert policy.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in policy.state_dict().items())
    assert FP32.weights == policy.dtype
