"""Held-out pairs under policy and reference: log-probs, loss, exact KL."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dpo_lab.models.memory import NO_ROOM
from dpo_lab.preference.forward import Forward, causal_lm
from dpo_lab.preference.layout import Layout
from dpo_lab.preference.logps import Head, head_of
from dpo_lab.preference.metrics import pair_records, preference_metrics
from dpo_lab.preference.objective import Objective, PairLogps
from dpo_lab.preference.reference import Reference
from dpo_lab.runtime.errors import NoRoom

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Scores:
    """The numbers of one evaluation."""

    metrics: dict[str, float]  # without prefix
    records: list[dict[str, Any]]  # one a pair, in the order of the data


class Scorer:
    """Scores held-out pairs, always in the same micro-batches."""

    def __init__(
        self,
        layouts: list[Layout],
        *,
        kl_layouts: list[Layout],
        forward: Forward,
        reference_forward: Forward | None = None,
        reference: Reference,
        objective: Objective,
        device: torch.device,
        halves: Callable[[Layout], list[Layout]] | None = None,
    ) -> None:
        """Hold what is scored.

        Args:
            layouts: micro-batches without KL.
            kl_layouts: micro-batches with the exact KL to the reference, where that is in memory.
            forward: how log-probs are computed.
            reference_forward: the same for the reference, where it differs.
            reference: what the policy is measured against.
            objective: the loss.
            device: where the policy is.
            halves: the pairs of a layout in two, for a GPU whose memory is too small for it.
        """
        self.halves = halves
        self.layouts, self.kl_layouts, self.forward = layouts, kl_layouts, forward
        self.reference_forward = reference_forward or forward
        self.reference, self.objective, self.device = reference, objective, device

    def __len__(self) -> int:
        return sum(len(layout) for layout in [*self.kl_layouts, *self.layouts])

    @torch.no_grad()
    def start(self, on_batch: Callable[[int], None]) -> Scores:
        """The scores of the start policy, which is the reference: no forward pass of the policy."""
        parts = []
        for layout in [*self.kl_layouts, *self.layouts]:
            moved = layout.to(self.device)
            ref = self.reference.logps(moved)
            parts.append(self.objective.pairs(moved, ref, ref))
            on_batch(len(layout))
        return self._scores(parts, [torch.zeros(1)] if self.kl_layouts and self.reference.model else [])

    @torch.no_grad()
    def score(self, policy: nn.Module, on_batch: Callable[[int], None]) -> Scores:
        """The scores of the policy as it is, in eval mode; its mode is put back."""
        was_training = policy.training
        policy.eval()
        try:
            parts, kls = [], []
            for group in (self.kl_layouts, self.layouts):
                place = 0
                while place < len(group):
                    if (found := self._attempt(policy, group[place], kl=group is self.kl_layouts)) is None:
                        group[place : place + 1] = self._smaller(group[place])
                        continue
                    parts.append(found[0])
                    kls += found[1]
                    on_batch(len(group[place]))
                    place += 1
        finally:
            policy.train(was_training)
        return self._scores(parts, kls)

    def _attempt(self, policy: nn.Module, layout: Layout, *, kl: bool) -> tuple[PairLogps, list[Tensor]] | None:
        """The pairs of a layout and their exact KL, if asked for; None where the GPU's memory is too small."""
        try:
            moved = layout.to(self.device)
            own = None
            if self.objective.needs_self:
                per_token, own, hidden = self.forward.statistics_and_hidden(policy, moved)
            else:
                per_token, hidden = self.forward.logps_and_hidden(policy, moved)
            pairs = self.objective.pairs(moved, per_token, self.reference.logps(moved), own)
            if not kl or self.reference.model is None:
                return pairs, []
            head = head_of(causal_lm(policy))  # before the policy may turn into its own reference
            with self.reference.model() as ref_model:
                return pairs, [self._kl(hidden, head, ref_model, layout)]
        except torch.OutOfMemoryError:
            return None

    def _smaller(self, layout: Layout) -> list[Layout]:
        if self.halves is None or len(layout) == 1:
            raise NoRoom(NO_ROOM)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        log.warning("The GPU is out of memory in an evaluation: %d pairs are scored as two halves.", len(layout))
        return self.halves(layout)

    def _kl(self, hidden: Tensor, head: Head, ref_model: nn.Module, layout: Layout) -> Tensor:
        """Exact KL at each completion position, (N,); the reference may lie on another device."""
        there = layout.to(next(ref_model.parameters()).device)
        _, ref_hidden = self.reference_forward.logps_and_hidden(ref_model, there)
        return self.forward.kl(hidden, head, ref_hidden, head_of(causal_lm(ref_model)))

    def _scores(self, parts: list[PairLogps], kls: list[Tensor]) -> Scores:
        pairs = PairLogps.join(parts)
        losses = self.objective(pairs)
        present, objective = self.reference.present, self.objective
        found = preference_metrics(pairs, losses, beta=objective.beta, reference=present, average=objective.average)
        metrics = {k: v.item() for k, v in found.items()}
        if kls:
            metrics["kl"] = torch.cat(kls).mean().item()
        index = [i for layout in [*self.kl_layouts, *self.layouts] for i in layout.index]
        rows = pair_records(pairs, losses, reference=present)
        if objective.coupled:  # its terms are not those of single pairs
            rows = [{k: v for k, v in row.items() if k != "loss"} for row in rows]
        records = [{"index": i} | row for i, row in zip(index, rows, strict=True)]
        return Scores(metrics, sorted(records, key=lambda r: r["index"]))
