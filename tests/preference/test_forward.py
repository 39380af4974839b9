"""The log-probs of a pair do not depend on what it is computed with."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from tiny import FP32, FP64, Largest, difference, tiny_examples, tiny_policy, trained, write_tiny_model
from torch import Tensor

from dpo_lab.data.collate import collate, microbatches
from dpo_lab.data.types import Example
from dpo_lab.models.precision import Precision
from dpo_lab.preference import logps
from dpo_lab.preference.forward import Forward

EXAMPLES = tiny_examples()


@dataclass(frozen=True)
class Case:
    """A model in a precision, and how far two ways to compute it may lie apart per token."""

    folder: str
    precision: Precision
    tolerance: float
    bits: Literal[4, 8] | None = None


CASES = {
    "llama fp32": Case("tiny_model", FP32, 1e-5),
    "llama fp64": Case("tiny_model", FP64, 1e-9),
    "qwen2 fp32": Case("tiny_qwen", FP32, 1e-5),
    "qwen2 fp64": Case("tiny_qwen", FP64, 1e-9),
    "4-bit": Case("tiny_wide", FP32, 1e-5, bits=4),
    "8-bit": Case("tiny_wide", FP32, 1e-2, bits=8),  # activations are quantised too
}


@pytest.fixture(params=CASES, scope="module")
def case(request: pytest.FixtureRequest) -> tuple[Any, float]:
    """A policy that has moved away from its base, and the tolerance."""
    case = CASES[request.param]
    folder = request.getfixturevalue(case.folder)
    return tiny_policy(folder, case.precision, bits=case.bits, moved=0.3), case.tolerance


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


def test_log_probs_are_those_of_the_models_own_logits(case: tuple[Any, float]) -> None:
    policy, tolerance = case
    ours = by_pair(policy, [[0, 3, 1]])
    for i, values in ours.items():
        assert difference(values, from_all_logits(policy, EXAMPLES[i])) < tolerance


def test_a_pair_has_the_same_log_probs_alone_and_beside_longer_ones(case: tuple[Any, float]) -> None:
    policy, tolerance = case
    shortest = min(range(8), key=lambda i: sum(EXAMPLES[i].lengths))
    alone, beside = by_pair(policy, [[shortest]])[shortest], by_pair(policy, [[shortest, 1, 4, 7]])[shortest]
    assert max(sum(EXAMPLES[i].lengths) for i in (1, 4, 7)) > 1.5 * sum(EXAMPLES[shortest].lengths)
    assert difference(beside, alone) < tolerance


def test_any_grouping_and_order_of_eight_pairs_gives_the_same_log_probs(case: tuple[Any, float]) -> None:
    policy, tolerance = case
    together = by_pair(policy, [list(range(8))])
    cut = [list(layout.index) for layout in microbatches(EXAMPLES, list(range(8)), tokens=256)]
    assert 2 < len(cut) < 8
    for groups in ([[i] for i in range(8)], [[7, 6], [5, 0, 3], [1, 2, 4]], cut):
        found = by_pair(policy, groups)
        assert found.keys() == together.keys()
        assert max(difference(found[i], together[i]) for i in range(8)) < tolerance


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
