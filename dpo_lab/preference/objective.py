"""What a step minimises: the log-probs of its pairs, and the loss with its hyper-parameters."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
from torch import Tensor

from dpo_lab.preference.layout import Layout, split_answers


@dataclass(frozen=True)
class PairLogps:
    """Log-probs of B pairs, summed over each answer's tokens, and the answers' token counts; each (B,)."""

    chosen_logps: Tensor
    rejected_logps: Tensor
    ref_chosen_logps: Tensor
    ref_rejected_logps: Tensor
    chosen_tokens: Tensor
    rejected_tokens: Tensor

    @staticmethod
    def of(layout: Layout, per_token: Tensor, ref_per_token: Tensor) -> "PairLogps":
        """From per-token log-probs (N,) of policy and reference."""
        chosen, rejected = split_answers(layout.answer_sums(per_token))
        ref_chosen, ref_rejected = split_answers(layout.answer_sums(ref_per_token))
        return PairLogps(chosen, rejected, ref_chosen, ref_rejected, *split_answers(layout.answer_tokens))

    @staticmethod
    def join(parts: "list[PairLogps]") -> "PairLogps":
        """Micro-batches as one step, detached."""
        return PairLogps(*(torch.cat([getattr(p, f.name).detach() for p in parts]) for f in fields(PairLogps)))

    @property
    def chosen_logratios(self) -> Tensor:
        """Log policy - log reference of the chosen answers, (B,)."""
        return self.chosen_logps - self.ref_chosen_logps

    @property
    def rejected_logratios(self) -> Tensor:
        """Log policy - log reference of the rejected answers, (B,)."""
        return self.rejected_logps - self.ref_rejected_logps

    def averaged(self) -> "PairLogps":
        """Log-probs per token instead of per answer."""
        c, r = self.chosen_tokens, self.rejected_tokens
        return PairLogps(
            self.chosen_logps / c, self.rejected_logps / r, self.ref_chosen_logps / c, self.ref_rejected_logps / r, c, r
        )


class Objective:
    """A loss function with its hyper-parameters: the log-probs of pairs -> the loss of each, (B,)."""

    def __init__(
        self, function: Callable[..., Tensor], *, average: Literal["sum", "mean"], beta: float | None, **hyper: Any
    ) -> None:
        parameters = inspect.signature(function).parameters.values()
        takes_beta = any(p.name == "beta" for p in parameters)
        self.function = function
        self.inputs = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
        self.hyper = hyper | ({"beta": beta} if takes_beta else {})
        self.average = average
        self.beta = beta if beta is not None else 1.0  # of the rewards in the metrics

    def __call__(self, pairs: PairLogps) -> Tensor:
        """The loss of each pair, (B,)."""
        pairs = pairs.averaged() if self.average == "mean" else pairs
        return self.function(*(getattr(pairs, name) for name in self.inputs), **self.hyper)
