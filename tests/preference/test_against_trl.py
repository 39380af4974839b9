"""The same model, adapter and pairs through TRL's own trainer: tokens, loss, metrics, gradients and whole steps."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from beside_trl import NO_BREAK, same_adapter, trl_step, trl_trainer
from tiny import (
    CHATML,
    byte_tokenizer,
    difference,
    move,
    tiny_examples,
    tiny_policy,
    trained,
    worst_gradient,
    write_tiny_model,
)
from torch import Tensor

from dpo_lab.config.schema import Optim
from dpo_lab.data.collate import microbatches
from dpo_lab.preference.forward import Forward
from dpo_lab.preference.layout import Layout
from dpo_lab.preference.losses import dpo_loss, ipo_loss
from dpo_lab.preference.metrics import preference_metrics
from dpo_lab.preference.objective import Objective
from dpo_lab.preference.reference import LiveReference, adapter_off
from dpo_lab.training.module import PreferenceModule

pytest.importorskip("trl")
pytestmark = pytest.mark.reference

BETA = 0.1
LOSSES = {"sigmoid": (dpo_loss, "sum"), "ipo": (ipo_loss, "mean")}


@dataclass
class Sides:
    """TRL's trainer and our policy with the same adapter."""

    trainer: Any
    policy: Any
    objective: Objective

    def module(self, **changes: Any) -> PreferenceModule:
        optim = {
            "_target_": "torch.optim.SGD", "lr": 0.05, "weight_decay": 0.0, "batch_size": 8, "epochs": 1, "max_steps": None,
            "grad_clip": 1.0, "schedule": "linear", "warmup_ratio": 0.25,
        } | changes  # fmt: skip
        reference = LiveReference("adapter_off", adapter_off(self.policy), Forward())
        return PreferenceModule(
            self.policy, reference, Forward(), self.objective, Optim.model_validate(optim), total_steps=4, seed=0
        )


Meet = Callable[..., Sides]


@pytest.fixture
def meet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Meet:
    """Builds both sides; the adapter has moved, so that the policy is not the reference."""
    monkeypatch.chdir(tmp_path)

    def build(
        loss: str = "sigmoid",
        *,
        family: str = "llama",
        template: str = NO_BREAK,
        **args: Any,
    ) -> Sides:
        folder = write_tiny_model(tmp_path / "model", family, template=template)
        trainer = trl_trainer(folder, tmp_path / "trl", template=template, **{"loss_type": loss, "beta": BETA} | args)
        policy = tiny_policy(folder, moved=0.3)
        same_adapter(trainer.model, policy)
        function, average = LOSSES[loss]
        return Sides(trainer, policy, Objective(function, average=average, beta=BETA))  # type: ignore[arg-type]

    return build


def ours(sides: Sides, batch: list[Layout]) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Metrics and gradients of one of our steps."""
    module = sides.module()
    module.manual_backward = lambda loss: loss.backward()  # type: ignore[method-assign]
    pairs, losses = module.accumulation.of(0, batch)
    metrics = {k: v.item() for k, v in preference_metrics(pairs, losses, beta=BETA).items()}
    return metrics, {name: p.grad for name, p in trained(sides.policy).items() if p.grad is not None}


def theirs(sides: Sides) -> tuple[dict[str, float], dict[str, Tensor]]:
    """The same of TRL's."""
    return trl_step(sides.trainer, list(range(8)))


SAME = (
    *("loss", "rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins"),
    *("logps/chosen", "logps/rejected"),
)


@pytest.mark.parametrize("family", ["llama", "qwen2"])
@pytest.mark.parametrize("loss", LOSSES)
def test_loss_metrics_and_the_gradient_of_every_adapter_weight_are_trls(loss: str, family: str, meet: Meet) -> None:
    sides = meet(loss, family=family)
    examples = tiny_examples(template=NO_BREAK)
    our_metrics, our_gradients = ours(sides, microbatches(examples, list(range(8)), tokens=256))
    their_metrics, their_gradients = theirs(sides)
    assert abs(our_metrics["logratios/chosen"]) > 0.1  # the policy has moved
    for name in SAME:
        assert our_metrics[name] == pytest.approx(their_metrics[name], rel=1e-5, abs=1e-6), name
    assert len(our_gradients) == len(their_gradients) == 28
    assert worst_gradient(our_gradients, their_gradients) < 1e-5


@pytest.mark.parametrize("loss", LOSSES)
def test_four_clipped_steps_on_a_schedule_end_at_trls_weights(loss: str, meet: Meet) -> None:
    """Batch 8 on our side; on TRL's, batch 2 with accumulation 4. Each step has all pairs, in whatever order."""
    sides = meet(
        loss, max_steps=4, optim="sgd", learning_rate=0.05, lr_scheduler_type="linear", warmup_steps=1, max_grad_norm=1.0,
        per_device_train_batch_size=2, gradient_accumulation_steps=4,
    )  # fmt: skip
    start = {name: p.detach().clone() for name, p in trained(sides.policy).items()}
    examples = tiny_examples(template=NO_BREAK)
    step = microbatches(examples, list(range(8)), tokens=256)
    module = sides.module()
    trainer = lightning.Trainer(
        accelerator="cpu", devices=1, max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, torch.utils.data.DataLoader([step] * 4, batch_size=None, collate_fn=lambda s: s))  # type: ignore[arg-type]
    sides.trainer.train()
    end = trained(sides.trainer.model)
    assert module.last["grad_norm"] > 1  # so that clipping has had a say
    for name, p in trained(sides.policy).items():
        moved = (end[name] - start[name]).abs().max().item()
        assert moved > 1e-4
        assert (p - end[name]).abs().max().item() < 1e-4 * moved, name


# -- tokens ---------------------------------------------------------------------------------------------------------


def test_token_ids_are_trls(meet: Meet) -> None:
    dataset = meet().trainer.train_dataset
    for example, row in zip(tiny_examples(template=NO_BREAK), dataset, strict=True):
        assert example.prompt_ids == row["prompt_ids"]
        assert example.chosen_ids == row["chosen_ids"]
        assert example.rejected_ids == row["rejected_ids"]


def test_trl_trains_on_chatmls_line_break_after_the_end_of_turn_and_we_do_not(meet: Meet) -> None:
    """Inference stops at the end of turn, so that nobody ever asks the model for what follows."""
    dataset = meet(template=CHATML).trainer.train_dataset
    line_break = byte_tokenizer()("\n")["input_ids"]
    for example, row in zip(tiny_examples(), dataset, strict=True):
        assert example.prompt_ids == row["prompt_ids"]
        assert example.chosen_ids + line_break == row["chosen_ids"]
        assert example.rejected_ids + line_break == row["rejected_ids"]


def test_a_difference_in_one_adapter_weight_would_show(meet: Meet) -> None:
    sides = meet()
    examples = tiny_examples(template=NO_BREAK)
    move(sides.policy, 0.301)
    our_metrics, our_gradients = ours(sides, microbatches(examples, list(range(8)), tokens=256))
    their_metrics, their_gradients = theirs(sides)
    assert our_metrics["loss"] != pytest.approx(their_metrics["loss"], rel=1e-5)
    assert worst_gradient(our_gradients, their_gradients) > 1e-4
    assert difference(torch.tensor(our_metrics["logps/chosen"]), torch.tensor(their_metrics["logps/chosen"])) > 1e-5
