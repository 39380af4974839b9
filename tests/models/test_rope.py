"""Rotary scaling: what it changes, what it leaves alone, and that it is a function of the sequence."""

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import FP32, byte_tokenizer, difference, plain_model, tiny_examples, write_tiny_model
from transformers import AutoConfig, AutoModelForCausalLM, Gemma3TextConfig, GPT2Config

from dpo_lab.config.schema import Quant, Rope
from dpo_lab.data.collate import collate
from dpo_lab.models.load import load_model, rope_facts
from dpo_lab.models.locate import Located
from dpo_lab.models.rope import reach
from dpo_lab.preference.forward import Forward, depends_on_length
from dpo_lab.runtime.errors import ConfigError, ModelError

NATIVE, LONG = 32, 100
SCALED = ["linear", "dynamic", "yarn", "llama3"]
NONE = Rope(type="none", factor=None)


def scaling(kind: str, factor: float | None = None) -> Rope:
    return Rope.model_validate({"type": kind, "factor": factor})


def loaded(folder: Path, rope: Rope = NONE, max_length: int | None = LONG) -> Any:
    model = plain_model(folder).model_copy(update={"rope": rope})
    return load_model(
        Located(folder, "tiny"), model, Quant(bits=None), FP32, torch.device("cpu"), max_length=max_length
    )


def facts(folder: Path, rope: Rope, max_length: int | None = LONG) -> dict[str, Any] | None:
    return rope_facts(Located(folder, "tiny"), plain_model(folder).model_copy(update={"rope": rope}), max_length)


@torch.no_grad()
def hidden(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """Hidden states (B, T, H) as the padded forward computes them."""
    return model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state


def gap(one: torch.Tensor, other: torch.Tensor) -> float:
    return (one - other).abs().max().item()


@pytest.fixture(scope="module")
def short(tmp_path_factory) -> Path:
    """A Llama that was made for 32 tokens; heads of 16, so that frequencies reach from fast to slow."""
    folder = tmp_path_factory.mktemp("rope") / "short"
    return write_tiny_model(folder, max_position_embeddings=NATIVE, hidden_size=64)


@pytest.fixture(scope="module")
def ids() -> torch.Tensor:
    return torch.randint(3, 259, (1, LONG), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", SCALED)
def test_far_positions_change_and_the_first_token_never_does(short, ids, kind):
    plain, scaled = hidden(loaded(short), ids), hidden(loaded(short, scaling(kind)), ids)
    assert gap(plain[:, 0], scaled[:, 0]) < 1e-6, "alone with itself a token has no distance to anything"
    assert gap(plain[:, -1], scaled[:, -1]) > 1e-2


@pytest.mark.parametrize(("kind", "same"), [("linear", False), ("yarn", False), ("llama3", False), ("dynamic", True)])
def test_only_dynamic_leaves_sequences_of_the_native_length_as_they_are(short, ids, kind, same):
    ids = ids[:, :NATIVE]
    difference = gap(hidden(loaded(short), ids), hidden(loaded(short, scaling(kind)), ids))
    assert (difference < 1e-6) is same
    assert same or difference > 1e-3


def frequencies(kind: str, factor: float, *, length: int = LONG) -> torch.Tensor:
    """Each type's formula for heads of 16 and base 10000, written down a second time."""
    dim, base = 16, 10000.0
    plain = torch.tensor([base ** (-2 * i / dim) for i in range(dim // 2)])
    if kind == "linear":
        return plain / factor
    if kind == "dynamic":
        base *= (factor * length / NATIVE - (factor - 1)) ** (dim / (dim - 2))
        return torch.tensor([base ** (-2 * i / dim) for i in range(dim // 2)])
    if kind == "llama3":  # fewer than 1 rotation within the native length: interpolated; more than 4: as it was
        rotations = NATIVE * plain / (2 * math.pi)
        share = ((rotations - 1) / (4 - 1)).clamp(0, 1)
        return share * plain + (1 - share) * plain / factor
    low = max(math.floor(dim * math.log(NATIVE / (32 * 2 * math.pi)) / (2 * math.log(base))), 0)
    high = min(math.ceil(dim * math.log(NATIVE / (1 * 2 * math.pi)) / (2 * math.log(base))), dim - 1)
    ramp = ((torch.arange(dim // 2) - low) / (high - low)).clamp(0, 1)
    return plain / factor * ramp + plain * (1 - ramp)


@pytest.mark.parametrize("kind", SCALED)
def test_frequencies_are_those_of_the_papers_at_the_factor_that_reaches_the_cutoff(short, kind):
    model = loaded(short, scaling(kind))
    rotary = model.model.rotary_emb
    positions = torch.arange(LONG)[None]
    cos, _ = rotary(torch.zeros(1), positions)
    factor = math.ceil(LONG / NATIVE)
    sharper = 0.1 * math.log(factor) + 1 if kind == "yarn" else 1.0
    angles = positions[0, :, None] * frequencies(kind, factor)
    assert factor == 4
    assert gap(cos[0, :, :8], sharper * angles.cos()) < 1e-4
    assert facts(short, scaling(kind)) == {"type": kind, "factor": 4.0, "native_length": NATIVE, "length": 128}


def test_a_factor_of_ones_own_is_taken(short):
    config = loaded(short, scaling("linear", 1.5), 16).config
    assert config.rope_parameters["factor"] == 1.5
    assert config.max_position_embeddings == 48
    assert facts(short, NONE) is None


# Dynamic is a function of the sequence


def padded(model: Any, rows: list[torch.Tensor]) -> list[torch.Tensor]:
    """Hidden states of rows of different lengths, in one batch; padding stands at position 0."""
    longest = max(len(row) for row in rows)
    ids = torch.stack([torch.nn.functional.pad(row, (0, longest - len(row))) for row in rows])
    positions = [torch.nn.functional.pad(torch.arange(len(row)), (0, longest - len(row))) for row in rows]
    with torch.no_grad():
        out = model.get_decoder()(input_ids=ids, position_ids=torch.stack(positions), use_cache=False)
    return [out.last_hidden_state[i, : len(row)] for i, row in enumerate(rows)]


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_dynamic_depends_neither_on_batch_mates_nor_on_what_came_before(tmp_path, ids, family):
    folder = write(tmp_path, family)
    model = loaded(folder, scaling("dynamic"))
    assert depends_on_length(model.config)
    rows = [ids[0, :n] for n in (LONG, 20, 60, NATIVE)]
    alone = [hidden(loaded(folder, scaling("dynamic")), row[None])[0] for row in rows]
    for order in ([0, 1, 2, 3], [3, 2, 1, 0], [1]):
        for row, computed in zip(order, padded(model, [rows[i] for i in order]), strict=True):
            assert gap(computed, alone[row]) < 1e-5
    copied = copy.deepcopy(model)
    assert gap(hidden(copied, rows[2][None])[0], alone[2]) < 1e-5
    assert copied.get_decoder().rotary_emb.forward.__self__ is copied.get_decoder().rotary_emb


def test_log_probs_of_a_pair_under_dynamic_scaling_are_the_same_in_any_company(short):
    model = loaded(short, scaling("dynamic"))
    examples = tiny_examples()
    longest = [e.lengths[0] + max(e.lengths[1:]) for e in examples]
    assert min(longest) < 2 * NATIVE < max(longest)
    together = Forward().logps(model, collate(examples, [*range(len(examples))]))
    alone = torch.cat([Forward().logps(model, collate([e], [0])) for e in examples])
    assert difference(together, alone) < 1e-5
    plain = Forward().logps(loaded(short), collate(examples, [*range(len(examples))]))
    assert difference(together, plain) > 1e-2


# Models with something of their own


def write(folder: Path, family: str) -> Path:
    if family == "llama":
        return write_tiny_model(folder / "llama", max_position_embeddings=NATIVE, hidden_size=64)
    config = Gemma3TextConfig(
        vocab_size=259, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, max_position_embeddings=NATIVE, sliding_window=16, initializer_range=0.2,
        layer_types=["sliding_attention", "full_attention"], query_pre_attn_scalar=16,
    )  # fmt: skip
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder / "gemma3")
    byte_tokenizer().save_pretrained(folder / "gemma3")
    return folder / "gemma3"


def test_windows_keep_their_positions_and_full_attention_is_scaled(tmp_path, ids):
    folder = write(tmp_path, "gemma3")
    plain, scaled = loaded(folder), loaded(folder, scaling("linear"))
    rotary, before = scaled.get_decoder().rotary_emb, plain.get_decoder().rotary_emb
    assert torch.equal(rotary.sliding_attention_inv_freq, before.sliding_attention_inv_freq)
    assert gap(4 * rotary.full_attention_inv_freq, before.full_attention_inv_freq) < 1e-6
    assert gap(hidden(plain, ids)[:, -1], hidden(scaled, ids)[:, -1]) > 1e-3


LLAMA32 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8,
    "rope_theta": 500000.0,
}


def test_a_scaling_of_the_models_own_is_extended_by_its_own_type_and_by_no_other(tmp_path):
    folder = write_tiny_model(tmp_path / "own", max_position_embeddings=NATIVE, rope_parameters=LLAMA32)
    config = loaded(folder, scaling("llama3")).config
    assert config.rope_parameters == LLAMA32 | {"factor": 32.0}
    assert config.max_position_embeddings == 4 * NATIVE
    with pytest.raises(ModelError, match=r"scaling of its own \(llama3\).*reaches 32 tokens"):
        loaded(folder, scaling("yarn"))
    with pytest.raises(ConfigError, match="has no effect: the model reaches 32 tokens"):
        loaded(folder, scaling("llama3"), NATIVE)


def test_a_model_without_rotary_embeddings_is_refused(tmp_path):
    config = GPT2Config(vocab_size=259, n_embd=32, n_layer=1, n_head=2, n_positions=NATIVE)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"\(gpt2\) has no rotary position embeddings"):
        loaded(tmp_path, scaling("linear"))


def test_scaling_that_would_change_nothing_is_an_error(short):
    with pytest.raises(ConfigError, match="has no effect.*data.max_length=32"):
        facts(short, scaling("yarn"), NATIVE)
    with pytest.raises(ConfigError, match="dynamic has no effect"):
        facts(short, scaling("dynamic", 2.0), NATIVE)
    with pytest.raises(ConfigError, match="needs model.rope.factor"):
        facts(short, scaling("yarn"), None)


@pytest.mark.parametrize("kind", SCALED)
def test_a_saved_model_is_the_same_without_being_told(short, ids, kind, tmp_path):
    model = loaded(short, scaling(kind))
    model.save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["rope_parameters"]["rope_type"] == kind
    assert gap(hidden(loaded(tmp_path), ids), hidden(model, ids)) < 1e-6
    config = AutoConfig.from_pretrained(tmp_path)
    assert config.max_position_embeddings == (NATIVE if kind == "dynamic" else 4 * NATIVE)
    assert reach(config) == reach(model.config) == 4 * NATIVE == facts(short, scaling(kind))["length"]


def test_a_model_without_scaling_reaches_what_it_says(short):
    assert reach(loaded(short).config) == NATIVE
    assert reach(GPT2Config(n_positions=NATIVE)) == NATIVE
    assert reach(GPT2Config(n_positions=-1)) is None


def test_dynamic_scaling_of_the_models_own_is_extended_from_where_it_ends(short, tmp_path):
    loaded(short, scaling("dynamic")).save_pretrained(tmp_path)
    found = facts(tmp_path, scaling("dynamic"), 6 * NATIVE)
    assert found == {"type": "dynamic", "factor": 8.0, "native_length": 4 * NATIVE, "length": 8 * NATIVE}
    config = loaded(tmp_path, scaling("dynamic"), 6 * NATIVE).config
    assert (config.max_position_embeddings, reach(config)) == (NATIVE, 8 * NATIVE)
    with pytest.raises(ConfigError, match=f"the model reaches {4 * NATIVE} tokens"):
        facts(tmp_path, scaling("dynamic"), 3 * NATIVE)
