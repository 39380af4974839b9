"""The LightningModule: policy and reference, one optimizer step a batch."""

import math
from typing import Any

import lightning
import torch
from torch import Tensor, nn

from dpo_lab.config.schema import Optim
from dpo_lab.preference.forward import Forward
from dpo_lab.preference.layout import Layout
from dpo_lab.preference.metrics import preference_metrics
from dpo_lab.preference.objective import POLICY_FIELDS, Objective, PairLogps
from dpo_lab.preference.reference import Reference
from dpo_lab.runtime.errors import Guarded
from dpo_lab.runtime.files import digest
from dpo_lab.training.optimizer import build_optimizer
from dpo_lab.training.ranks import Ranks

NO_GRADIENT = (
    "The gradient of the first step is zero, so nothing would be learned: the loss does not depend on what is trained. "
    "Check lora.target_modules and the loss's hyper-parameters."
)


class PreferenceModule(lightning.LightningModule):
    """Trains the policy on whole steps, cut into micro-batches that change nothing but memory.

    Attributes:
        step: optimizer steps done, resumed ones included.
        last: metrics of the last step, without prefix.
        pairs: of the last step, on all ranks.
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
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.policy = policy
        self.reference, self.forward_pass, self.objective, self.optim = reference, forward, objective, optim
        self.total_steps, self.seed, self.ranks = total_steps, seed, ranks or Ranks()
        self.step = self.pairs = 0
        self.last: dict[str, float] = {}
        self._grad_norm = torch.tensor(math.nan)

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
        optimizer.zero_grad()
        pairs, losses = self._accumulate(batch)
        mean = losses.mean()
        if not torch.isfinite(mean):
            raise Guarded(_not_finite(self.step + 1, mean.item(), pairs))
        self.ranks.add_gradients(p for group in optimizer.param_groups for p in group["params"])
        lr = optimizer.param_groups[0]["lr"]
        optimizer.step()
        if self.step == 0 and self._grad_norm.item() == 0.0:
            raise Guarded(NO_GRADIENT)
        scheduler: Any = self.lr_schedulers()
        scheduler.step()
        self.step += 1
        self.pairs = len(pairs.chosen_logps)
        metrics = preference_metrics(
            pairs,
            losses,
            beta=self.objective.beta,
            reference=self.reference.present,
            average=self.objective.average,
        )
        metrics["grad_norm"] = self._grad_norm
        self.last = {name: value.item() for name, value in metrics.items()} | {"lr": float(lr)}

    def _accumulate(self, batch: list[Layout]) -> tuple[PairLogps, Tensor]:
        """Back-propagate the mean loss of the step's pairs; return the pairs of all ranks and their losses, (B,)."""
        if self.objective.coupled and (len(batch) > 1 or self.ranks.size > 1):
            return self._accumulate_coupled(batch)
        total = self.ranks.total(sum(len(layout) for layout in batch), batch[0].ids.device)
        parts, losses = [], []
        for place, layout in enumerate(batch):
            pairs = self._pairs(layout, place)
            loss = self.objective(pairs)
            if not loss.requires_grad:
                raise Guarded(NO_GRADIENT)
            self.manual_backward(loss.sum() / total)
            parts.append(pairs)
            losses.append(loss.detach())
        step, _ = self.ranks.join(PairLogps.join(parts))
        return step, torch.cat(losses) if self.ranks.size == 1 else self.objective(step)

    def _accumulate_coupled(self, batch: list[Layout]) -> tuple[PairLogps, Tensor]:
        """The same for a loss that sees the whole step.

        First the log-probs of all its pairs, without gradient; then the loss's gradient with respect to them; then
        each micro-batch again, which back-propagates its slice.
        """
        with torch.no_grad():
            own = PairLogps.join([self._pairs(layout, place) for place, layout in enumerate(batch)])
        step, mine = self.ranks.join(own)
        leaf = step.leaf()
        losses = self.objective(leaf)
        leaves = {name: getattr(leaf, name) for name in POLICY_FIELDS if getattr(leaf, name) is not None}
        if not losses.requires_grad:
            raise Guarded(NO_GRADIENT)
        found = torch.autograd.grad(losses.mean(), list(leaves.values()), allow_unused=True)
        slopes = {name: g[mine] for name, g in zip(leaves, found, strict=True) if g is not None}
        done = 0
        for place, layout in enumerate(batch):
            pairs = self._pairs(layout, place)
            part = slice(done, done + len(layout))
            self.manual_backward(sum((slope[part] * getattr(pairs, name)).sum() for name, slope in slopes.items()))  # type: ignore[arg-type]
            done = part.stop
        return step, losses.detach()

    def _pairs(self, layout: Layout, place: int) -> PairLogps:
        """The log-probs of a micro-batch, the `place`-th of this rank's step."""
        # Dropout is a function of seed, step and place, so that neither evaluations nor a restart shift it, and the two
        # passes over a coupled loss's micro-batches drop the same.
        torch.manual_seed(int(digest(f"dropout {self.seed} {self.step} {self.ranks.rank} {place}"), 16) % 2**63)
        own = None
        if self.objective.needs_self:
            per_token, own = self.forward_pass.statistics(self.policy, layout)
        else:
            per_token = self.forward_pass.logps(self.policy, layout)
        return self.objective.pairs(layout, per_token, self.reference.logps(layout).to(per_token.dtype), own)

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """Measure and clip the gradient, after fp16 unscaling."""
        limit = self.optim.grad_clip if self.optim.grad_clip is not None else math.inf
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self._grad_norm = nn.utils.clip_grad_norm_(parameters, limit).detach()
        scaled = getattr(self.trainer.precision_plugin, "scaler", None) is not None  # fp16 skips such a step by itself
        if not scaled and not torch.isfinite(self._grad_norm):
            raise Guarded(
                f"The gradient of step {self.step + 1} is not finite (norm {self._grad_norm.item()}), though its loss is. "
                "Lower optim.lr, or check the loss where log-ratios are zero."
            )

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


def _not_finite(step: int, value: float, pairs: PairLogps) -> str:
    worst = {
        name: tensor.tolist()
        for name, tensor in (("policy log-probs", pairs.chosen_logps), ("reference log-probs", pairs.ref_chosen_logps))
        if not torch.isfinite(tensor).all()
    }
    where = f" ({', '.join(worst)} are not finite)" if worst else ""
    return f"The loss of step {step} is {value}{where}. Lower optim.lr, raise loss.beta, or check the data."
