"""The count of operations: by hand, and against torch's own counter on a real model."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import FP32, load_tiny, tiny_config, tiny_lora, tiny_policy
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, GPT2Config, MixtralConfig

from dpo_lab.models.lora import new_adapter
from dpo_lab.preference.flops import Shape, linear_shapes, reference_flops, shape_of, training_flops

SMALL = Shape(body=100, head=10, layers=2, heads=3, head_dim=4)
PROMPT, ANSWER = 40, 24


def test_a_pair_costs_what_the_formula_says() -> None:
    pair = [(3, 2, 1)]
    visible = 3 * 4 // 2 + (2 * 3 + 2 * 3 // 2) + (1 * 3 + 1)
    attention = 4 * 2 * 3 * 4 * visible
    assert (visible, attention) == (19, 1824)
    assert reference_flops(SMALL, pair) == 2 * (100 * 6 + 10 * 3) + 1824 == 3084
    assert training_flops(SMALL, pair) == 4 * (100 * 6 + 10 * 3) + 3 * 1824 == 7992
    assert training_flops(SMALL, pair, frozen=False) == 6 * (100 * 6 + 10 * 3) + 3 * 1824 == 9252


def test_pairs_add_up_and_one_more_answer_to_a_prompt_costs_itself() -> None:
    assert training_flops(SMALL, [(3, 2, 1), (5, 1, 4)]) == pytest.approx(
        training_flops(SMALL, [(3, 2, 1)]) + training_flops(SMALL, [(5, 1, 4)])
    )
    more = reference_flops(SMALL, [(3, 2, 1, 2)]) - reference_flops(SMALL, [(3, 2, 1)])
    assert more == 2 * (100 * 2 + 10 * 2) + 4 * 2 * 3 * 4 * (2 * 3 + 3)


def test_the_shape_is_that_of_the_base_whatever_is_around_it(tiny_model: Path) -> None:
    layer = 32 * 32 + 2 * 32 * 16 + 32 * 32 + 3 * 32 * 64  # q; k and v; o; gate, up and down
    expected = Shape(body=2 * layer, head=259 * 32, layers=2, heads=4, head_dim=8)
    assert shape_of(load_tiny(tiny_model)) == expected
    assert shape_of(tiny_policy(tiny_model)) == expected
    whole = new_adapter(load_tiny(tiny_model), tiny_lora(modules_to_save=["down_proj"]), seed=0)
    assert shape_of(whole) == expected
    assert linear_shapes(whole) == {(32, 32): 4, (32, 16): 4, (32, 64): 4, (64, 32): 2}


@pytest.mark.parametrize("bits", [4, 8])
def test_quantised_weights_count_by_their_true_size(tiny_wide: Path, bits: Any) -> None:
    pytest.importorskip("bitsandbytes")
    assert shape_of(tiny_policy(tiny_wide, bits=bits)) == shape_of(load_tiny(tiny_wide))


def test_of_experts_those_count_that_a_token_goes_through() -> None:
    config = MixtralConfig(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=4,
        num_experts_per_tok=2,
    )
    attention, expert = 2 * 32 * 32 + 2 * 32 * 16, 3 * 32 * 64
    assert shape_of(AutoModelForCausalLM.from_config(config)).body == 2 * (attention + 2 * expert)


def test_layers_that_hold_their_weights_the_other_way_round_count_too() -> None:
    model = AutoModelForCausalLM.from_config(GPT2Config(vocab_size=50, n_embd=32, n_layer=2, n_head=4))
    assert shape_of(model) == Shape(body=2 * 12 * 32 * 32, head=50 * 32, layers=2, heads=4, head_dim=8)


@pytest.fixture(scope="module")
def counted() -> dict[str, tuple[int, int]]:
    """(operations of the linear layers, of attention) by torch, of one answer: forward, LoRA's training, full training."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: Any = AutoModelForCausalLM.from_config(tiny_config(), attn_implementation="eager")
    return {
        "forward": _count(model, trained=None),
        "frozen": _count(model, trained=False),
        "full": _count(model, trained=True),
    }


def _count(model: Any, *, trained: bool | None) -> tuple[int, int]:
    model.requires_grad_(bool(trained))
    embedded = model.get_input_embeddings()(torch.arange(PROMPT + ANSWER)[None])
    if trained is False:
        embedded = embedded.detach().requires_grad_()
    with FlopCounterMode(display=False) as counter:
        hidden = model.get_decoder()(inputs_embeds=embedded, use_cache=False).last_hidden_state
        logits = model.get_output_embeddings()(hidden[0, PROMPT - 1 : -1])
        if trained is not None:
            logits.square().sum().backward()
    counts = counter.get_flop_counts()["Global"]
    linear = sum(n for op, n in counts.items() if "bmm" not in str(op))
    return linear, sum(counts.values()) - linear


def test_the_linear_layers_cost_exactly_what_torch_counts(
    counted: dict[str, tuple[int, int]], tiny_model: Path
) -> None:
    shape = shape_of(load_tiny(tiny_model, FP32))
    no_attention, answer = Shape(shape.body, shape.head, 0, 0, 0), [(PROMPT, ANSWER)]
    assert counted["forward"][0] == reference_flops(no_attention, answer)
    assert counted["frozen"][0] == training_flops(no_attention, answer)
    assert counted["full"][0] == training_flops(no_attention, answer, frozen=False)


def test_attention_costs_half_of_the_square_that_torch_counts(counted: dict[str, tuple[int, int]]) -> None:
    shape, answer, tokens = Shape(0, 0, 2, 4, 8), [(PROMPT, ANSWER)], PROMPT + ANSWER
    square = 2 * tokens / (tokens + 1)  # torch counts what is masked too
    assert counted["forward"][1] == pytest.approx(square * reference_flops(shape, answer), rel=0.01)
    for kind in ("frozen", "full"):
        assert counted[kind][1] == pytest.approx(square * training_flops(shape, answer), rel=0.01)
