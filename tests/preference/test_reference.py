"""However the reference is had, its log-probs are those of the start policy, and the policy is left as it was."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import CASES, FP32, FP64, difference, load_tiny, move, tiny_examples, tiny_lora, tiny_policy, trained
from torch import Tensor

from dpo_lab.data.collate import collate, microbatches
from dpo_lab.models.lora import continued_adapter
from dpo_lab.preference.forward import Forward
from dpo_lab.preference.ref_cache import RefCache
from dpo_lab.preference.reference import (
    COPY,
    CachedReference,
    LiveReference,
    ModelContext,
    adapter_copy,
    adapter_off,
    fill_cache,
    frozen_model,
)

EXAMPLES = tiny_examples()
ALL = collate(EXAMPLES, list(range(8)))


def live(model: ModelContext) -> Tensor:
    return LiveReference("live", model, Forward()).logps(ALL)


def filled(folder: Path, model: ModelContext) -> CachedReference:
    """A cache made in micro-batches that are not those of the steps."""
    cache = RefCache(folder, "a" * 16, facts={})
    layouts = microbatches(EXAMPLES, list(range(8)), tokens=256)
    counted: list[int] = []
    fill_cache(cache, layouts, model, Forward(), device=torch.device("cpu"), on_batch=counted.append)
    assert len(counted) == len(layouts) > 2
    assert sum(counted) == 8
    return CachedReference(cache, None)


@pytest.mark.parametrize("name", CASES)
def test_cached_adapter_off_and_a_frozen_model_are_one_reference(
    name: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    case = CASES[name]
    folder = request.getfixturevalue(case.fixture)
    policy: Any = tiny_policy(folder, case.precision, **case.quant)
    cached = filled(tmp_path, adapter_off(policy))
    start = Forward().logps(policy, ALL).detach()
    move(policy, 0.3)  # training takes the policy away; the reference stays
    off, frozen = live(adapter_off(policy)), live(frozen_model(load_tiny(folder, case.precision, **case.quant)))
    assert difference(Forward().logps(policy, ALL).detach(), start) > 1e-2
    assert difference(off, frozen) <= 1e-12  # the same weights, batch and operations
    assert difference(off, start) <= 1e-12
    assert case.close(cached.logps(ALL), off.float())  # the cache holds fp32
    assert not any(t.requires_grad for t in (off, frozen, cached.logps(ALL)))


def test_the_cache_gives_each_answer_in_whatever_order_and_company_it_is_asked(
    tmp_path: Path, tiny_model: Path
) -> None:
    policy = tiny_policy(tiny_model)
    cached = filled(tmp_path, adapter_off(policy))
    for rows in ([3], [7, 0], [5, 2, 6, 1]):
        layout = collate([EXAMPLES[i] for i in rows], rows)
        assert difference(cached.logps(layout), Forward().logps(policy, layout).detach()) < 1e-5


# -- a continued adapter ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def adapter(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained adapter on disk."""
    folder = tmp_path_factory.mktemp("adapter")
    tiny_policy(tiny_model, moved=0.3).save_pretrained(folder)
    return folder


def continued(tiny_model: Path, adapter: Path, precision: Any = FP32) -> Any:
    return continued_adapter(load_tiny(tiny_model, precision), adapter, tiny_lora(), copy=True).eval()


@pytest.mark.parametrize(("precision", "tolerance"), [(FP32, 1e-5), (FP64, 1e-9)], ids=["fp32", "fp64"])
def test_the_reference_of_a_continued_adapter_is_that_adapter_and_not_the_base(
    precision: Any, tolerance: float, tiny_model: Path, adapter: Path, tmp_path: Path
) -> None:
    policy = continued(tiny_model, adapter, precision)
    alone = continued_adapter(load_tiny(tiny_model, precision), adapter, tiny_lora(), copy=False)
    own = Forward().logps(alone.eval(), ALL).detach()
    base = Forward().logps(load_tiny(tiny_model, precision), ALL)
    cached = filled(tmp_path, adapter_copy(policy))
    assert difference(Forward().logps(policy, ALL).detach(), own) < tolerance
    move(policy, 0.5, seed=2)
    assert difference(Forward().logps(policy, ALL).detach(), own) > 1e-2
    assert difference(own, base) > 1e-2
    assert difference(live(adapter_copy(policy)), own) < tolerance
    assert difference(live(frozen_model(alone)), own) <= 1e-12
    assert difference(cached.logps(ALL), own) < max(tolerance, 1e-7)


def test_of_a_continued_adapter_only_the_trained_half_is_trainable(tiny_model: Path, adapter: Path) -> None:
    policy = continued(tiny_model, adapter)
    assert trained(policy)
    assert all("lora" in name and COPY not in name for name in trained(policy))
    assert any(COPY in name for name, _ in policy.named_parameters())


# -- what a reference leaves behind -------------------------------------------------------------------------------


@dataclass
class State:
    """Everything of a policy that switching adapters could change."""

    modes: dict[str, bool]
    requires_grad: dict[str, bool]
    active: list[list[str]]
    disabled: list[bool]
    name: str
    logps: Tensor

    @staticmethod
    def of(policy: Any) -> "State":
        from peft.tuners.tuners_utils import BaseTunerLayer

        layers = [m for m in policy.modules() if isinstance(m, BaseTunerLayer)]
        assert layers
        with torch.no_grad():
            logps = Forward().logps(policy, ALL)
        return State(
            {name: m.training for name, m in policy.named_modules()},
            {name: p.requires_grad for name, p in policy.named_parameters()},
            [list(layer.active_adapters) for layer in layers],
            [bool(layer.disable_adapters) for layer in layers],
            policy.active_adapter,
            logps,
        )

    def check(self, policy: Any) -> None:
        now = State.of(policy)
        assert torch.equal(now.logps, self.logps)
        now.logps = self.logps
        assert now == self


Switch = tuple[Any, Callable[[Any], ModelContext]]


@pytest.fixture(params=["adapter_off", "adapter_copy"])
def switch(request: pytest.FixtureRequest, tiny_model: Path, adapter: Path) -> Switch:
    if request.param == "adapter_off":
        return tiny_policy(tiny_model, moved=0.2), adapter_off
    policy = continued(tiny_model, adapter)
    move(policy, 0.2, seed=2)
    return policy, adapter_copy


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_after_the_reference_mode_flags_and_active_adapter_are_as_before(switch: Switch, training: bool) -> None:
    policy, context = switch
    policy.train(training)
    before = State.of(policy)
    for _ in range(2):
        with context(policy)() as model:
            assert not model.training
            assert not torch.equal(Forward().logps(model, ALL), before.logps)
        before.check(policy)
    with pytest.raises(KeyboardInterrupt), context(policy)():
        raise KeyboardInterrupt
    before.check(policy)


def test_a_reference_pass_between_forward_and_backward_does_not_change_the_gradient(switch: Switch) -> None:
    policy, context = switch
    policy.train()

    def gradients(reference: bool) -> dict[str, Tensor]:
        policy.zero_grad()
        logps = Forward().logps(policy, ALL)
        with context(policy)() if reference else nullcontext() as model:
            if model is not None:
                with torch.no_grad():
                    Forward().logps(model, ALL)
        logps.sum().backward()
        return {name: p.grad.clone() for name, p in trained(policy).items() if p.grad is not None}

    plain, switched = gradients(False), gradients(True)
    assert plain.keys() == switched.keys() == trained(policy).keys()
    assert all(torch.equal(plain[name], switched[name]) for name in plain)


def test_a_frozen_reference_is_in_eval_mode_and_has_nothing_to_train(tiny_model: Path) -> None:
    model = load_tiny(tiny_model).train().requires_grad_(True)
    with frozen_model(model)() as inside:
        assert inside is model
        assert not model.training
        assert not any(p.requires_grad for p in model.parameters())


def test_a_reference_is_opened_once_to_fill_the_cache(tiny_model: Path, tmp_path: Path) -> None:
    """Opening one that is a model of its own means loading it."""
    opened = []

    def context() -> Any:
        opened.append(1)
        return nullcontext(load_tiny(tiny_model))

    filled(tmp_path, context)
    assert len(opened) == 1
