"""A GPU's memory: what fits is found, what does not fit is cut smaller. Run with `pytest -m gpu`."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from test_gpu import DEVICE, Setting, module_of, policy_of
from tiny import FP32, tiny_examples, trained, write_tiny_model

from dpo_lab.data.module import PreferenceData, Steps
from dpo_lab.data.types import Example, Message, Pair
from dpo_lab.preference.forward import Forward
from dpo_lab.preference.sharing import share
from dpo_lab.training.module import PreferenceModule
from dpo_lab.training.probe import CudaMeter, largest_that_fits

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

PAIRS, WHOLE = 32, 10**6
SETTING = Setting(FP32, 1.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 0.3 MB of activations a token, so that memory is a question of tokens."""
    sizes = {"hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 4, "initializer_range": 0.05}
    return write_tiny_model(tmp_path_factory.mktemp("models") / "memory", **sizes)


def examples() -> list[Example]:
    """Pairs of about 400 tokens."""
    rows = [
        Pair(
            (Message(role="user", content=f"Say {i}. " + "Well? " * (20 + i)),), f"{i}! " * 30, f"No {i}. " * 20, i + 1
        )
        for i in range(PAIRS)
    ]
    found = tiny_examples(rows)
    assert len(found) == PAIRS
    return found


@contextmanager
def at_most(budget: int) -> Iterator[None]:
    """PyTorch may hold so many bytes."""
    torch.cuda.empty_cache()
    total = torch.cuda.mem_get_info()[1]
    torch.cuda.set_per_process_memory_fraction(min(1.0, budget / total))
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()


def steps_of(tokens: int, *, shared: bool) -> Steps:
    return Steps(examples(), start=0, end=3, batch_size=PAIRS, seed=0, tokens=tokens, shared=shared)


def trained_with(folder: Path, tokens: int, *, shared: bool, budget: int | None) -> tuple[PreferenceModule, int]:
    """Three steps through Lightning, and the most bytes that were held."""
    policy: Any = policy_of(folder, SETTING)
    if shared:
        assert share(policy, max_length=512) is None
    steps = steps_of(tokens, shared=shared)
    module = module_of(policy, SETTING, folder, lr=1e-3, steps=3)
    cutting = module.accumulation
    cutting.tokens, cutting._loaded_tokens, cutting.cut = tokens, tokens, steps.cut
    trainer = lightning.Trainer(
        accelerator="gpu", devices=1, max_epochs=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    with at_most(budget or torch.cuda.mem_get_info()[1]):
        trainer.fit(module, datamodule=PreferenceData(steps, workers=2, pinned=True))
    return module, torch.cuda.max_memory_reserved()


@pytest.mark.parametrize("shared", [False, True])
def test_a_step_that_does_not_fit_is_cut_until_it_does(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, shared: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    whole, most = trained_with(folder, WHOLE, shared=shared, budget=None)
    single, least = trained_with(folder, 1, shared=shared, budget=None)
    assert most > 3 * least, "the test needs a step that is much larger than its largest pair"
    del whole, single
    with caplog.at_level(logging.WARNING):
        cut, _ = trained_with(folder, WHOLE, shared=shared, budget=(most + least) // 2)
    assert cut.tokens is not None
    assert 1 <= cut.tokens < WHOLE
    assert "The GPU is out of memory in step 1" in caplog.text
    assert cut.step == 3
    small, _ = trained_with(folder, cut.tokens, shared=shared, budget=None)
    assert [row.metrics["loss"] for row in cut.rows] == pytest.approx(
        [row.metrics["loss"] for row in small.rows], rel=1e-4
    )
    for name, parameter in trained(small.policy).items():
        torch.testing.assert_close(trained(cut.policy)[name], parameter, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("shared", [False, True])
def test_what_the_probe_finds_fits_and_uses_the_memory(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    budget = 2 * 2**30
    policy: Any = policy_of(folder, SETTING)
    if shared:
        assert share(policy, max_length=512) is None
    longest = sorted(examples(), key=lambda e: -sum(e.lengths))
    device = torch.device(DEVICE)
    before = torch.cuda.get_rng_state()
    with at_most(budget):
        tokens = largest_that_fits(policy, Forward(), longest, CudaMeter(device), device)
    assert torch.equal(torch.cuda.get_rng_state(), before)
    assert all(p.grad is None for p in policy.parameters())
    assert not policy.training
    del policy
    module, most = trained_with(folder, tokens, shared=shared, budget=budget)
    assert module.accumulation.tokens == tokens, "nothing had to be cut smaller"
    assert most > budget // 2


def test_a_block_of_steps_is_read_without_waiting_between(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyTorch itself says where the host waits for the device."""
    monkeypatch.chdir(tmp_path)
    policy: Any = policy_of(folder, SETTING)
    assert share(policy, max_length=512) is None
    module = module_of(policy, SETTING, folder, steps=4)
    module.log_every = 4
    inside, steps = module.training_step, steps_of(4000, shared=True)

    def watched(batch: Any, batch_idx: int) -> None:
        watch = batch_idx in (1, 2)  # between the first, which builds the optimizer's state, and the one that is read
        torch.cuda.set_sync_debug_mode("error" if watch else "default")
        try:
            inside(batch, batch_idx)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(module, "training_step", watched)
    trainer = lightning.Trainer(
        accelerator="gpu", devices=1, max_epochs=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    steps.end = 4
    trainer.fit(module, datamodule=PreferenceData(steps, workers=2, pinned=True))
    assert [row.step for row in module.rows] == [1, 2, 3, 4]
