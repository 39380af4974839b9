"""Losses that couple the pairs of a step: the gradient is that of the whole step, however it is cut."""

from pathlib import Path
from typing import Any

import pytest
import torch
from test_step import ALL, accumulated, cut, module_of
from tiny import FP64, difference, load_tiny, move, tiny_examples, tiny_lora, tiny_policy, trained, worst_gradient

from dpo_lab.data.collate import microbatches
from dpo_lab.models.lora import new_adapter
from dpo_lab.preference.layout import Layout
from dpo_lab.preference.losses import aot_loss, aot_unpaired_loss, dpo_loss, kto_pair_loss
from dpo_lab.preference.objective import Objective

AOT = Objective(aot_loss, average="sum", beta=0.1)
UNPAIRED = Objective(aot_unpaired_loss, average="sum", beta=0.1)
KTO = Objective(kto_pair_loss, average="sum", beta=0.1)
COUPLED = {"aot": AOT, "aot_unpaired": UNPAIRED, "kto_pair": KTO}


@pytest.mark.parametrize("name", COUPLED)
def test_eight_pairs_have_one_gradient_however_they_are_cut(name: str, tiny_model: Path) -> None:
    objective = COUPLED[name]
    assert objective.coupled
    policy = tiny_policy(tiny_model, FP64, moved=0.3)
    whole, losses = accumulated(policy, cut(ALL), objective)
    for batch in (
        cut(*([i] for i in ALL)),
        cut([7, 6], [5, 0, 3], [1, 2, 4]),
        microbatches(tiny_examples(), ALL, tokens=256),
    ):
        gradient, again = accumulated(policy, batch, objective)
        assert len(batch) > 2
        assert worst_gradient(gradient, whole) < 1e-9
        assert difference(again.mean(), losses.mean()) < 1e-12


class Scattered:
    """A reference whose order of margins is not the policy's: where the two agree AOT is a loss of single pairs."""

    mode, present, model = "scattered", True, None

    def logps(self, layout: Layout) -> torch.Tensor:
        generator = torch.Generator().manual_seed(sum(layout.index))
        return -14 * torch.rand(len(layout.targets), generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("name", COUPLED)
def test_the_loss_of_the_parts_alone_would_be_another(name: str, tiny_model: Path) -> None:
    """Else the two passes would be for nothing."""
    policy = tiny_policy(tiny_model, FP64, moved=0.3)

    def gradient(*groups: list[int]) -> dict[str, torch.Tensor]:
        module = module_of(policy, objective=COUPLED[name], reference=Scattered())
        module.manual_backward = lambda loss: loss.backward()  # type: ignore[method-assign]
        policy.zero_grad()
        module.accumulation.of(0, cut(*groups))
        return {n: p.grad.clone() for n, p in trained(policy).items() if p.grad is not None}

    whole, parts = gradient(*([pair] for pair in ALL)), [gradient([pair]) for pair in ALL]
    mean = {n: sum(part[n] for part in parts) / len(ALL) for n in whole}
    assert worst_gradient(mean, whole) > 1e-3  # type: ignore[arg-type]


def test_both_passes_drop_the_same(tiny_model: Path) -> None:
    """With dropout the second pass must see the log-probs that the first one gave to the loss."""
    policy = new_adapter(load_tiny(tiny_model, FP64), tiny_lora(dropout=0.5), seed=0)
    move(policy, 0.3)
    policy.train()
    module = module_of(policy, objective=KTO)
    module.manual_backward = lambda loss: loss.backward()  # type: ignore[method-assign]
    seen: list[list[float]] = []
    original = KTO.pairs

    def spy(*args: Any) -> Any:
        pairs = original(*args)
        seen.append(pairs.chosen_logps.tolist())
        return pairs

    KTO.pairs = spy  # type: ignore[method-assign]
    try:
        module.accumulation.of(0, cut([0, 1], [2, 3, 4]))
    finally:
        del KTO.pairs
    assert len(seen) == 4
    assert seen[0] == pytest.approx(seen[2], rel=1e-12)
    assert seen[1] == pytest.approx(seen[3], rel=1e-12)
    assert all(p.grad is not None for p in trained(policy).values())


def test_a_loss_of_each_pair_needs_one_pass(tiny_model: Path) -> None:
    policy = tiny_policy(tiny_model, FP64, moved=0.3)
    module = module_of(policy, objective=Objective(dpo_loss, average="sum", beta=0.1))
    module.manual_backward = lambda loss: loss.backward()  # type: ignore[method-assign]
    calls: list[bool] = []
    original = module.accumulation._pairs

    def spy(*args: Any) -> Any:
        calls.append(torch.is_grad_enabled())
        return original(*args)

    module.accumulation._pairs = spy  # type: ignore[method-assign]
    module.accumulation.of(0, cut([0, 1], [2, 3]))
    assert calls == [True, True]
    module.accumulation.objective = KTO
    module.accumulation.of(0, cut([0, 1, 2, 3]))
    assert calls == [True, True, True], "a step that fits one micro-batch needs no second pass"
