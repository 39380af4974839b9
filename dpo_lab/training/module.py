"""The LightningModule: policy and reference, one optimizer step a batch."""

import logging
import math
from collections.abc import Callable
from typing import Any, TypeVar

import lightning
import torch
from torch import Tensor, nn
from torch.profiler import record_function

from dpo_lab.config.schema import Optim
from dpo_lab.models.memory import NO_ROOM
from dpo_lab.preference.forward import Forward
from dpo_lab.preference.layout import Layout
from dpo_lab.preference.metrics import preference_metrics
from dpo_lab.preference.objective import POLICY_FIELDS, Objective, PairLogps
from dpo_lab.preference.reference import Reference
from dpo_lab.runtime.errors import Guarded, LabError
from dpo_lab.runtime.files import digest
from dpo_lab.training.ledger import NO_GRADIENT, Ledger, StepRow
from dpo_lab.training.optimizer import build_optimizer
from dpo_lab.training.ranks import Ranks

log = logging.getLogger(__name__)
T = TypeVar("T")
Cut = Callable[[int, int], list[Layout]]  # (step from 0, tokens of a micro-batch) -> the step's micro-batches


class _TooLarge(Exception):
    """A micro-batch did not fit into the GPU's memory: `here`, or on another rank."""

    def __init__(self, here: bool) -> None:
        self.here = here


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
        tokens: of a micro-batch; None where steps cannot be cut again. Halved where the GPU's memory is too small.
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
        self.policy = policy
        self.reference, self.forward_pass, self.objective, self.optim = reference, forward, objective, optim
        self.total_steps, self.seed, self.ranks = total_steps, seed, ranks or Ranks()
        self.log_every, self.tokens, self.cut = log_every, tokens, cut
        self.step = 0
        self.rows: list[StepRow] = []
        self.last: dict[str, float] = {}
        self._loaded_tokens = tokens  # what the loader cuts by
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
        pairs, losses = self._accumulate_in_memory(batch, optimizer)
        metrics = preference_metrics(
            pairs,
            losses,
            beta=self.objective.beta,
            reference=self.reference.present,
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

    def _accumulate_in_memory(self, batch: list[Layout], optimizer: Any) -> tuple[PairLogps, Tensor]:
        """`_accumulate`; where the GPU's memory is too small the step begins anew in smaller micro-batches.

        Dropout is a function of seed, step and place, so the step that counts is the one that a run takes which was cut
        that way from the start.
        """
        if self.cut is not None and self.tokens != self._loaded_tokens:
            batch = self._cut_again(batch[0].ids.device)
        while True:
            optimizer.zero_grad()
            try:
                return self._accumulate(batch)
            except _TooLarge as e:
                here = e.here
            # Past the handler, which held on to all that the failed attempt had in memory.
            batch = self._smaller(batch, here)

    def _smaller(self, batch: list[Layout], here: bool) -> list[Layout]:
        """The step's pairs in micro-batches of half the tokens, on all ranks alike.

        Raises:
            LabError: a single pair is too large.
        """
        device = batch[0].ids.device
        hopeless = here and (self.cut is None or all(len(layout) == 1 for layout in batch))
        if self.ranks.total(int(hopeless), device) or self.tokens is None:
            raise LabError(NO_ROOM)
        before, self.tokens = self.tokens, max(1, self.tokens // 2)
        if device.type == "cuda":
            torch.cuda.empty_cache()
        log.warning(
            "The GPU is out of memory in step %d: it is repeated with micro-batches of %d tokens in place of %d, and so "
            "on from here. The result stays the same; trainer.microbatch_tokens=%d spares the attempt.",
            *(self.step + 1, self.tokens, before, self.tokens),
        )
        return self._cut_again(device)

    def _cut_again(self, device: torch.device) -> list[Layout]:
        assert self.cut is not None
        assert self.tokens is not None
        return [layout.to(device) for layout in self.cut(self.step, self.tokens)]

    def _together(self, work: Callable[[], T], device: torch.device) -> T:
        """What `work` returns, on all ranks; or, if one of them ran out of memory, _TooLarge on all of them."""
        done: list[T] = []
        try:
            done.append(work())
        except torch.OutOfMemoryError as e:
            log.info("out of memory: %s", str(e).partition("\n")[0])
        if self.ranks.total(1 - len(done), device):
            raise _TooLarge(here=not done)
        return done[0]

    def _accumulate(self, batch: list[Layout]) -> tuple[PairLogps, Tensor]:
        """Back-propagate the mean loss of the step's pairs; return the pairs of all ranks and their losses, (B,)."""
        if self.objective.coupled and (len(batch) > 1 or self.ranks.size > 1):
            return self._accumulate_coupled(batch)
        device = batch[0].ids.device
        total = self.ranks.total(sum(len(layout) for layout in batch), device)

        def work() -> tuple[list[PairLogps], list[Tensor]]:
            parts, losses = [], []
            for place, layout in enumerate(batch):
                pairs = self._pairs(layout, place)
                loss = self.objective(pairs)
                if not loss.requires_grad:
                    raise Guarded(NO_GRADIENT)
                self._backward(loss.sum() / total)
                parts.append(pairs.each(lambda _, value: value.detach()))
                losses.append(loss.detach())
            return parts, losses

        parts, losses = self._together(work, device)
        step, _ = self.ranks.join(PairLogps.join(parts))
        return step, torch.cat(losses) if self.ranks.size == 1 else self.objective(step)

    def _accumulate_coupled(self, batch: list[Layout]) -> tuple[PairLogps, Tensor]:
        """The same for a loss that sees the whole step.

        First the log-probs of all its pairs, without gradient; then the loss's gradient with respect to them; then
        each micro-batch again, which back-propagates its slice.
        """
        device = batch[0].ids.device

        @torch.no_grad()
        def without_gradient() -> PairLogps:
            return PairLogps.join([self._pairs(layout, place) for place, layout in enumerate(batch)])

        step, mine = self.ranks.join(self._together(without_gradient, device))
        leaf = step.leaf()
        losses = self.objective(leaf)
        leaves = {name: getattr(leaf, name) for name in POLICY_FIELDS if getattr(leaf, name) is not None}
        if not losses.requires_grad:
            raise Guarded(NO_GRADIENT)
        found = torch.autograd.grad(losses.mean(), list(leaves.values()), allow_unused=True)
        slopes = {name: g[mine] for name, g in zip(leaves, found, strict=True) if g is not None}

        def backward() -> None:
            done = 0
            for place, layout in enumerate(batch):
                pairs = self._pairs(layout, place)
                part = slice(done, done + len(layout))
                self._backward(sum((slope[part] * getattr(pairs, name)).sum() for name, slope in slopes.items()))  # type: ignore[arg-type]
                done = part.stop

        self._together(backward, device)
        return step, losses.detach()

    def _backward(self, loss: Tensor) -> None:
        # Autograd's own kernels keep the dtypes of forward; under Lightning's autocast the lab's would be rounded.
        with record_function("dpo_lab/backward"), torch.autocast(loss.device.type, enabled=False):
            self.manual_backward(loss)

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
        with record_function("dpo_lab/reference"):
            ref_per_token = self.reference.logps(layout).to(per_token.dtype)
        return self.objective.pairs(layout, per_token, ref_per_token, own)

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
            **({} if self.tokens is None else {"microbatch_tokens": self.tokens}),
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
