"""The gradient of one optimizer step, micro-batch by micro-batch, in the memory there is."""

import logging
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.profiler import record_function

from dpo_lab.models.memory import NO_ROOM
from dpo_lab.preference.forward import Forward
from dpo_lab.preference.layout import Layout
from dpo_lab.preference.objective import POLICY_FIELDS, Objective, PairLogps
from dpo_lab.preference.reference import Reference
from dpo_lab.runtime.errors import Guarded, NoRoom
from dpo_lab.runtime.files import digest
from dpo_lab.training.ledger import NO_GRADIENT
from dpo_lab.training.ranks import Ranks

log = logging.getLogger(__name__)
T = TypeVar("T")
Cut = Callable[[int, int], list[Layout]]  # (step from 0, tokens of a micro-batch) -> the step's micro-batches


class _TooLarge(Exception):
    """A micro-batch did not fit into the GPU's memory: `here`, or on another rank."""

    def __init__(self, here: bool) -> None:
        self.here = here


class Accumulation:
    """Adds up a step's gradient over its micro-batches, whose size changes nothing but memory.

    Args:
        policy: whose parameters get the gradient.
        reference: the frozen policy's log-probs.
        forward: the way to the per-token log-probs.
        objective: the loss.
        seed: of dropout, which is a function of seed, step and place: neither evaluations nor a restart shift it.
        ranks: this process among those that train.
        tokens: of a micro-batch as the loader cuts them; None where steps cannot be cut again.
        cut: cuts a step again.
        backward: what back-propagates a loss.

    Attributes:
        tokens: of a micro-batch. Halved where the GPU's memory is too small.
    """

    def __init__(
        self,
        policy: nn.Module,
        reference: Reference,
        forward: Forward,
        objective: Objective,
        *,
        seed: int,
        ranks: Ranks,
        tokens: int | None = None,
        cut: Cut | None = None,
        backward: Callable[[Tensor], None] = torch.Tensor.backward,
    ) -> None:
        self.policy, self.reference, self.forward, self.objective = policy, reference, forward, objective
        self.seed, self.ranks, self.tokens, self.cut, self._to_weights = seed, ranks, tokens, cut, backward
        self._loaded_tokens = tokens  # what the loader cuts by

    def in_memory(self, step: int, batch: list[Layout], clear: Callable[[], None]) -> tuple[PairLogps, Tensor]:
        """`of`; where the GPU's memory is too small the step begins anew in smaller micro-batches.

        The step that counts is the one that a run takes which was cut that way from the start.

        Args:
            step: from 0.
            batch: the step's pairs of this rank in micro-batches.
            clear: takes away the gradients of an attempt.

        Raises:
            NoRoom: a single pair is too large.
        """
        if self.cut is not None and self.tokens != self._loaded_tokens:
            batch = self._cut_again(step, batch[0].ids.device)
        while True:
            clear()
            try:
                return self.of(step, batch)
            except _TooLarge as e:
                here = e.here
            # Past the handler, which held on to all that the failed attempt had in memory.
            batch = self._smaller(step, batch, here)

    def of(self, step: int, batch: list[Layout]) -> tuple[PairLogps, Tensor]:
        """Back-propagate the mean loss of the step's pairs; return the pairs of all ranks and their losses, (B,)."""
        if self.objective.coupled and (len(batch) > 1 or self.ranks.size > 1):
            return self._coupled(step, batch)
        device = batch[0].ids.device
        total = self.ranks.total(sum(len(layout) for layout in batch), device)

        def work() -> tuple[list[PairLogps], list[Tensor]]:
            parts, losses = [], []
            for place, layout in enumerate(batch):
                pairs = self._pairs(step, place, layout)
                loss = self.objective(pairs)
                if not loss.requires_grad:
                    raise Guarded(NO_GRADIENT)
                self._backward(loss.sum() / total)
                parts.append(pairs.each(lambda _, value: value.detach()))
                losses.append(loss.detach())
            return parts, losses

        parts, losses = self._together(work, device)
        whole, _ = self.ranks.join(PairLogps.join(parts))
        return whole, torch.cat(losses) if self.ranks.size == 1 else self.objective(whole)

    def _coupled(self, step: int, batch: list[Layout]) -> tuple[PairLogps, Tensor]:
        """The same for a loss that sees the whole step.

        First the log-probs of all its pairs, without gradient; then the loss's gradient with respect to them; then
        each micro-batch again, which back-propagates its slice. Both passes drop the same.
        """
        device = batch[0].ids.device

        @torch.no_grad()
        def without_gradient() -> PairLogps:
            return PairLogps.join([self._pairs(step, place, layout) for place, layout in enumerate(batch)])

        whole, mine = self.ranks.join(self._together(without_gradient, device))
        leaf = whole.leaf()
        losses = self.objective(leaf)
        leaves = {name: getattr(leaf, name) for name in POLICY_FIELDS if getattr(leaf, name) is not None}
        if not losses.requires_grad:
            raise Guarded(NO_GRADIENT)
        found = torch.autograd.grad(losses.mean(), list(leaves.values()), allow_unused=True)
        slopes = {name: g[mine] for name, g in zip(leaves, found, strict=True) if g is not None}

        def backward() -> None:
            done = 0
            for place, layout in enumerate(batch):
                pairs = self._pairs(step, place, layout)
                part = slice(done, done + len(layout))
                self._backward(sum((slope[part] * getattr(pairs, name)).sum() for name, slope in slopes.items()))  # type: ignore[arg-type]
                done = part.stop

        self._together(backward, device)
        return whole, losses.detach()

    def _backward(self, loss: Tensor) -> None:
        # Autograd's own kernels keep the dtypes of forward; under Lightning's autocast the lab's would be rounded.
        with record_function("dpo_lab/backward"), torch.autocast(loss.device.type, enabled=False):
            self._to_weights(loss)

    def _pairs(self, step: int, place: int, layout: Layout) -> PairLogps:
        """The log-probs of a micro-batch, the `place`-th of this rank's step."""
        torch.manual_seed(int(digest(f"dropout {self.seed} {step} {self.ranks.rank} {place}"), 16) % 2**63)
        own = None
        if self.objective.needs_self:
            per_token, own = self.forward.statistics(self.policy, layout)
        else:
            per_token = self.forward.logps(self.policy, layout)
        with record_function("dpo_lab/reference"):
            ref_per_token = self.reference.logps(layout).to(per_token.dtype)
        return self.objective.pairs(layout, per_token, ref_per_token, own)

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

    def _smaller(self, step: int, batch: list[Layout], here: bool) -> list[Layout]:
        """The step's pairs in micro-batches of half the tokens, on all ranks alike."""
        device = batch[0].ids.device
        hopeless = here and (self.cut is None or all(len(layout) == 1 for layout in batch))
        if self.ranks.total(int(hopeless), device) or self.tokens is None:
            raise NoRoom(NO_ROOM)
        before, self.tokens = self.tokens, max(1, self.tokens // 2)
        if device.type == "cuda":
            torch.cuda.empty_cache()
        log.warning(
            "The GPU is out of memory in step %d: it is repeated with micro-batches of %d tokens in place of %d, and so "
            "on from here. The result stays the same; trainer.microbatch_tokens=%d spares the attempt.",
            *(step + 1, self.tokens, before, self.tokens),
        )
        return self._cut_again(step, device)

    def _cut_again(self, step: int, device: torch.device) -> list[Layout]:
        assert self.cut is not None
        assert self.tokens is not None
        return [layout.to(device) for layout in self.cut(step, self.tokens)]
