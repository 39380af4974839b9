"""The log-probs of a pair do not depend on what it is computed with."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import CASES, Case, Largest, load_tiny, tiny_examples, tiny_policy, trained, write_tiny_model
from torch import Tensor

from dpo_lab.data.collate import collate, microbatches
from dpo_lab.data.types import Example
from dpo_lab.preference import logps
from dpo_lab.preference.forward import Forward

EXAMPLES = tiny_examples()


@pytest.fixture(params=CASES, scope="module")
def setting(request: pytest.FixtureRequest) -> tuple[Any, Case]:
    """A policy that has moved away from its base, and what it is."""
    case = CASES[request.param]
    return tiny_policy(request.getfixturevalue(case.fixture), case.precision, moved=0.3, **case.quant), case


@torch.no_grad()
def by_pair(policy: Any, groups: list[list[int]]) -> dict[int, Tensor]:
    """Per-token log-probs of each pair (chosen, then rejected), computed in these groups."""
    found: dict[int, Tensor] = {}
    for group in groups:
        layout = collate([EXAMPLES[i] for i in group], group)
        tokens = [chosen + rejected for _, chosen, rejected in layout.lengths]
        found |= dict(zip(group, Forward().logps(policy, layout).split(tokens), strict=True))
    return found


@torch.no_grad()
def from_all_logits(policy: Any, example: Example) -> Tensor:
    """The model's own logits for prompt + answer, one answer at a time."""
    parts = []
    for answer in (example.chosen_ids, example.rejected_ids):
        ids = torch.tensor([example.prompt_ids + answer])
        logps = policy(input_ids=ids).logits[0].log_softmax(-1)
        parts.append(torch.stack([logps[len(example.prompt_ids) + i - 1, token] for i, token in enumerate(answer)]))
    return torch.cat(parts)


def test_log_probs_are_those_of_the_models_own_logits(setting: tuple[Any, Case]) -> None:
    policy, case = setting
    ours = by_pair(policy, [[0, 3, 1]])
    for i, values in ours.items():
        assert case.close(values, from_all_logits(policy, EXAMPLES[i]))


def test_a_pair_has_the_same_log_probs_alone_and_beside_longer_ones(setting: tuple[Any, Case]) -> None:
    policy, case = setting
    shortest = min(range(8), key=lambda i: sum(EXAMPLES[i].lengths))
    alone, beside = by_pair(policy, [[shortest]])[shortest], by_pair(policy, [[shortest, 1, 4, 7]])[shortest]
    assert max(sum(EXAMPLES[i].lengths) for i in (1, 4, 7)) > 1.5 * sum(EXAMPLES[shortest].lengths)
    assert case.close(beside, alone)


def test_any_grouping_and_order_of_eight_pairs_gives_the_same_log_probs(setting: tuple[Any, Case]) -> None:
    policy, case = setting
    together = by_pair(policy, [list(range(8))])
    cut = [list(layout.index) for layout in microbatches(EXAMPLES, list(range(8)), tokens=256)]
    assert 2 < len(cut) < 8
    for groups in ([[i] for i in range(8)], [[7, 6], [5, 0, 3], [1, 2, 4]], cut):
        found = by_pair(policy, groups)
        assert found.keys() == together.keys()
        assert case.close(*(torch.cat([logps[i] for i in range(8)]) for logps in (found, together)))


def test_training_mode_without_dropout_gives_the_log_probs_of_eval_mode(tiny_model: Path) -> None:
    policy, layout = tiny_policy(tiny_model, moved=0.3), collate(EXAMPLES, list(range(8)))
    evaluated = Forward().logps(policy.eval(), layout)
    assert torch.equal(Forward().logps(policy.train(), layout), evaluated)
    assert torch.equal(Forward().logps_and_hidden(policy, layout)[0], evaluated)


@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
def test_all_logits_never_exist_in_a_models_forward_and_backward(
    lora: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logps, "CHUNK_BYTES", 1)  # 16 tokens a chunk
    vocabulary = 4000
    policy = tiny_policy(write_tiny_model(tmp_path, vocab_size=vocabulary))
    if not lora:
        policy.requires_grad_(True)
    layout = collate(EXAMPLES, list(range(8)))
    with Largest() as seen:
        Forward().logps(policy, layout).sum().backward()
    assert all(p.grad is not None for p in trained(policy).values())
    assert len(layout.targets) > 150
    assert seen.numel <= 32 * vocabulary  # a chunk of logits is 16 x 4000, the embedding 4000 x 32


@pytest.mark.parametrize("name", CASES)
def test_training_mode_and_gradients_do_not_change_the_log_probs(name: str, request: pytest.FixtureRequest) -> None:
    case = CASES[name]
    policy = tiny_policy(request.getfixturevalue(case.fixture), case.precision, moved=0.3, **case.quant)
    layout = collate(EXAMPLES[:4], list(range(4)))
    with torch.no_grad():
        evaluated = Forward().logps(policy.eval(), layout)
    trained_mode = Forward().logps(policy.train(), layout).detach()
    assert (trained_mode - evaluated).abs().max() < min(case.tolerance, 1e-5)


def test_a_forward_pass_without_autocast_is_not_under_anybody_elses(tiny_model: Path) -> None:
    """Lightning's covers the whole step of a 16-bit policy, its reference in fp32 included."""
    model, layout = load_tiny(tiny_model), collate(tiny_examples(), list(range(8)))
    alone = Forward().logps(model, layout)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        around = Forward().logps(model, layout)
    assert torch.equal(alone, around)
    assert not torch.equal(alone, Forward(torch.bfloat16).logps(model, layout))
