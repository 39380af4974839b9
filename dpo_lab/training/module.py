"""The LightningModule: policy and reference, one optimizer step a batch."""

import math
from typing import Any

import lightning
import torch
from torch import Tensor, nn
from torch.profiler import record_function

from dpo_lab.config.schema import Optim
from dpo_lab.preference.forward import Forward
from dpo_lab.preference.layout import Layout
from dpo_lab.preference.metrics import preference_metrics
from dpo_lab.preference.objective import Objective, PairLogps
from dpo_lab.preference.reference import Reference
from dpo_lab.training.accumulate import Accumulation, Cut
from dpo_lab.training.ledger import Ledger, StepRow
from dpo_lab.training.optimizer import build_optimizer
from dpo_lab.training.ranks import Ranks


class PreferenceModule(lightning.LightningModule):
    """Trains the policy on whole steps, cut into micro-batches that change nothing but memory.

    A step waits for the device once, to read its numbers before they are used: an update by numbers that are not
    finite is not made. Where the numbers are read every `log_every` steps only, a fused optimizer of torch is told on
    the device that the update is void (its `found_inf`, made for gradient scalers), and so are those of all steps
    after it until the numbers are read and the run stops: weights and moments stay what they were before the bad step.
    Other optimizers cannot be told, so with them every step is read as it comes. On a CPU nothing waits anyway.

    Attributes:
        step: optimizer steps done, resumed ones included.
        rows: numbers of steps that were read and not taken yet; on the first rank.
        last: metrics of the last step that was read, without prefix.
        accumulation: how a step's gradient comes about.
    """

    def __init__(
        self,
        policy: nn.Module,
        reference: Reference,
        forward: Forward,
        objective: Objective,
        optim: Optim,
        *,
        total_steps: int,
        seed: int,
        ranks: Ranks | None = None,
        log_every: int = 1,
        tokens: int | None = None,
        cut: Cut | None = None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.policy, self.objective, self.optim = policy, objective, optim
        self.total_steps, self.seed, self.log_every = total_steps, seed, log_every
        self.reference_present, self.ranks = reference.present, ranks or Ranks()
        self.accumulation = Accumulation(
            policy,
            reference,
            forward,
            objective,
            seed=seed,
            ranks=self.ranks,
            tokens=tokens,
            cut=cut,
            backward=lambda loss: self.manual_backward(loss),
        )
        self.step = 0
        self.rows: list[StepRow] = []
        self.last: dict[str, float] = {}
        self._ledger = Ledger()
        self._measured: tuple[PairLogps, dict[str, Tensor]] | None = None  # of the step before its update
        self._void: Tensor | None = None  # whether a step that was not read yet must not be used

    def configure_optimizers(self) -> Any:
        """The optimizer over what is trainable, and its schedule by steps."""
        from transformers import get_scheduler

        scaled = getattr(self.trainer.precision_plugin, "scaler", None) is not None
        optimizer = build_optimizer(self.policy, self.optim, scaled=scaled)
        name = "constant_with_warmup" if self.optim.schedule == "constant" else self.optim.schedule
        # The schedule's first rate is 0 while it warms up: a run of one step has none to spare.
        warmup = min(math.ceil(self.optim.warmup_ratio * self.total_steps), self.total_steps - 1)
        scheduler = get_scheduler(name, optimizer, num_warmup_steps=warmup, num_training_steps=self.total_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def training_step(self, batch: list[Layout], batch_idx: int) -> None:
        """One optimizer step over the pairs of `batch`, given as micro-batches."""
        self.policy.train()
        optimizer: Any = self.optimizers()
        scheduler: Any = self.lr_schedulers()
        pairs, losses = self.accumulation.in_memory(self.step, batch, optimizer.zero_grad)
        metrics = preference_metrics(
            pairs,
            losses,
            beta=self.objective.beta,
            reference=self.reference_present,
            average=self.objective.average,
        )
        self._measured = pairs, metrics
        self.ranks.add_gradients(p for group in optimizer.param_groups for p in group["params"])
        with record_function("dpo_lab/optimizer"):
            optimizer.step()
            scheduler.step()
        self.step += 1
        if self.step % self.log_every == 0:
            self.read()

    def read(self) -> None:
        """Fetch the numbers of the steps that were not read yet.

        Raises:
            Guarded: loss or gradient of one of them are not finite; those before it are in `rows`.
        """
        for row in self._ledger.read():
            row.check()
            self.last = row.metrics
            if self.ranks.rank == 0:  # the others' would never be taken
                self.rows.append(row)

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """Measure and clip the gradient, after fp16 unscaling; an update by numbers that are not finite is not made."""
        limit = self.optim.grad_clip if self.optim.grad_clip is not None else math.inf
        norm = nn.utils.clip_grad_norm_(
            [p for group in optimizer.param_groups for p in group["params"]], limit
        ).detach()
        assert self._measured is not None
        pairs, metrics = self._measured
        scaled = getattr(self.trainer.precision_plugin, "scaler", None) is not None  # fp16 skips such a step by itself
        self._ledger.add(
            self.step + 1,
            pairs,
            metrics | {"grad_norm": norm},
            lr=float(optimizer.param_groups[0]["lr"]),
            scaled=scaled,
        )
        if self.log_every > 1 and _can_be_told(optimizer) and not scaled:
            void = ~(torch.isfinite(metrics["loss"]) & torch.isfinite(norm))
            self._void = void if self._void is None else void | self._void
            optimizer.found_inf = self._void.float()
        else:
            self.read()

    def cpu(self) -> "PreferenceModule":
        """Stay on the device: Lightning calls this at the end of fit, and evaluation and samples come after it."""
        return self

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds of the module. The random state is a function of the seed and `step`."""
        optimizer: Any = self.optimizers()
        scheduler: Any = self.lr_schedulers()
        return {
            "step": self.step,
            "seed": self.seed,
            **({} if self.accumulation.tokens is None else {"microbatch_tokens": self.accumulation.tokens}),
            "trained": {n: p.detach().cpu() for n, p in self.policy.named_parameters() if p.requires_grad},
            "optimizer": optimizer.optimizer.state_dict(),
            "scheduler": scheduler.state_dict(),
            "scaler": self.trainer.precision_plugin.state_dict(),
        }

    def restore_trained(self, state: dict[str, Any]) -> None:
        """Put back what was trained, and the position."""
        parameters = dict(self.policy.named_parameters())
        with torch.no_grad():
            for name, value in state["trained"].items():
                parameters[name].copy_(value)
        self.step = state["step"]

    def restore_optimizer(self, state: dict[str, Any]) -> None:
        """Put back optimizer, schedule and fp16 scale, once the trainer has made them."""
        optimizer: Any = self.optimizers()
        scheduler: Any = self.lr_schedulers()
        optimizer.optimizer.load_state_dict(state["optimizer"])
        scheduler.load_state_dict(state["scheduler"])
        if state["scaler"]:
            self.trainer.precision_plugin.load_state_dict(state["scaler"])


def _can_be_told(optimizer: Any) -> bool:
    """Whether a number on the device can make the optimizer's update void."""
    supports = getattr(optimizer, "_step_supports_amp_scaling", False)  # set by torch's own, where they are fused
    return supports and all(group.get("fused") for group in optimizer.param_groups)
