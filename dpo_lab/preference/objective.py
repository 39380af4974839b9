"""What a step minimises: the log-probs of its pairs, and the loss with its hyper-parameters and modifiers."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import torch
from torch import Tensor

from dpo_lab.preference.layout import Layout, split_answers
from dpo_lab.preference.losses import sft_loss
from dpo_lab.preference.modifiers import OFF, Modifiers, f_score, tail_logps, wpo_weights
from dpo_lab.runtime.errors import ConfigError

POLICY_FIELDS = ("chosen_logps", "rejected_logps", "chosen_tail_logps", "rejected_tail_logps")  # that carry gradient


@dataclass(frozen=True)
class PairLogps:
    """Log-probs of B pairs, summed over each answer's tokens, and the answers' token counts; each (B,).

    Attributes:
        chosen_tail_logps: the part of chosen_logps beyond the shorter answer's length; likewise the other three.
        weights: of the pairs in the loss.
    """

    chosen_logps: Tensor
    rejected_logps: Tensor
    ref_chosen_logps: Tensor
    ref_rejected_logps: Tensor
    chosen_tokens: Tensor
    rejected_tokens: Tensor
    # None unless the objective asks for them.
    chosen_tail_logps: Tensor | None = None
    rejected_tail_logps: Tensor | None = None
    ref_chosen_tail_logps: Tensor | None = None
    ref_rejected_tail_logps: Tensor | None = None
    weights: Tensor | None = None

    @staticmethod
    def of(layout: Layout, per_token: Tensor, ref_per_token: Tensor) -> "PairLogps":
        """From per-token log-probs (N,) of policy and reference."""
        chosen, rejected = split_answers(layout.answer_sums(per_token))
        ref_chosen, ref_rejected = split_answers(layout.answer_sums(ref_per_token))
        return PairLogps(chosen, rejected, ref_chosen, ref_rejected, *split_answers(layout.answer_tokens))

    @staticmethod
    def join(parts: "list[PairLogps]") -> "PairLogps":
        """Micro-batches as one step, detached."""

        def joined(name: str, _: Tensor) -> Tensor:
            return torch.cat([getattr(part, name).detach() for part in parts])

        return parts[0].each(joined)

    def leaf(self) -> "PairLogps":
        """The same values; those of the policy are fresh leaves that ask for a gradient, the others have none."""
        return self.each(lambda name, value: value.detach().requires_grad_(name in POLICY_FIELDS))

    def each(self, change: Callable[[str, Tensor], Tensor]) -> "PairLogps":
        """A record of `change(name, value)` for every field that is there."""
        there: dict[str, Any] = {f.name: value for f in fields(self) if (value := getattr(self, f.name)) is not None}
        return PairLogps(**{name: change(name, value) for name, value in there.items()})

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

        def divided(name: str, value: Tensor) -> Tensor:
            if not name.endswith("logps"):
                return value
            return value / (self.chosen_tokens if "chosen" in name else self.rejected_tokens)

        return self.each(divided)

    def with_tails_weighted(self, alpha: float) -> "PairLogps":
        """Log-probs in which the tokens beyond the shorter answer's length weigh `alpha`, arXiv:2409.06411."""

        def weighted(side: str) -> Tensor:
            tail = getattr(self, f"{side}_tail_logps")
            assert tail is not None, "ld_alpha needs the tails: make the pairs with Objective.pairs"
            return getattr(self, f"{side}_logps") - (1 - alpha) * tail

        return replace(
            self, **{f"{side}_logps": weighted(side) for side in ("chosen", "rejected", "ref_chosen", "ref_rejected")}
        )


class Objective:
    """A loss with its hyper-parameters and modifiers: the log-probs of pairs -> the loss of each, (B,).

    Attributes:
        coupled: whether a pair's loss depends on the other pairs of the step.
        needs_reference: whether policy and reference are compared.
        needs_self: whether `pairs` needs the policy's log sum_v p_v^2 at each token.
        beta: scale of the rewards in the metrics.
        average: whether log-probs are summed or averaged over an answer's tokens.
    """

    def __init__(
        self,
        function: Callable[..., Tensor],
        *,
        average: Literal["sum", "mean"],
        beta: float | None,
        modifiers: Modifiers = OFF,
        terms: Sequence["Objective"] = (),
        **hyper: Any,
    ) -> None:
        """Hold what the loss is made of.

        Args:
            function: of the inputs that its positional parameters name, or of the losses of `terms`.
            average: over an answer's tokens.
            beta: passed on where the function takes it.
            modifiers: changes of what the loss sees and of its value.
            terms: losses that the function combines.
            hyper: keyword arguments of the function.

        Raises:
            ConfigError: weights of pairs for a loss that is not one of pairs.
        """
        parameters = inspect.signature(function).parameters.values()
        takes_beta = any(p.name == "beta" for p in parameters)
        self.function, self.terms, self.modifiers = function, tuple(terms), modifiers
        self.inputs = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
        self.hyper = hyper | ({"beta": beta} if takes_beta else {})
        self.average: Literal["sum", "mean"] = average
        self.beta = beta if beta is not None else 1.0
        self.coupled = getattr(function, "coupled", False) or any(term.coupled for term in terms)
        self.needs_reference = any("logratios" in name or name.startswith("ref_") for name in self.inputs) or any(
            term.needs_reference for term in terms
        )
        self.needs_self = modifiers.wpo
        if modifiers.wpo and self.coupled:
            raise ConfigError(
                f"loss.wpo=true weighs pairs, but {function.__name__} gives no loss to a single pair. Drop one of them."
            )

    def pairs(
        self, layout: Layout, per_token: Tensor, ref_per_token: Tensor, log_sum_sq: Tensor | None = None
    ) -> PairLogps:
        """What `__call__` takes, from per-token values (N,).

        Args:
            layout: B pairs.
            per_token: log-probs of the policy.
            ref_per_token: log-probs of the reference.
            log_sum_sq: log sum_v p_v^2 of the policy; only if `needs_self`.
        """
        pairs = PairLogps.of(layout, per_token, ref_per_token)
        if self.modifiers.ld_alpha is not None:
            chosen, rejected = tail_logps(layout, per_token)
            ref_chosen, ref_rejected = tail_logps(layout, ref_per_token)
            pairs = replace(
                pairs, chosen_tail_logps=chosen, rejected_tail_logps=rejected,
                ref_chosen_tail_logps=ref_chosen, ref_rejected_tail_logps=ref_rejected,
            )  # fmt: skip
        if self.needs_self:
            assert log_sum_sq is not None, "wpo needs Forward.statistics"
            pairs = replace(pairs, weights=wpo_weights(layout, per_token, log_sum_sq))
        return pairs

    def __call__(self, pairs: PairLogps) -> Tensor:
        """The loss of each pair, (B,)."""
        if self.terms:
            losses = self.function(*(term(pairs) for term in self.terms), **self.hyper)
        else:
            losses = self.function(*self._seen(pairs), **self.hyper)
        if self.modifiers.sft_weight:
            losses = losses + self.modifiers.sft_weight * sft_loss(pairs.averaged().chosen_logps)
        if self.modifiers.wpo:
            assert pairs.weights is not None, "wpo needs weights: make the pairs with Objective.pairs"
            losses = losses * pairs.weights
        return losses

    def _seen(self, pairs: PairLogps) -> list[Tensor]:
        """The inputs of the function, as the modifiers change them."""
        m = self.modifiers
        if m.ld_alpha is not None and self.needs_reference:
            pairs = pairs.with_tails_weighted(m.ld_alpha)
        averaged = pairs.averaged() if self.average == "mean" else pairs
        if m.f_divergence == "reverse_kl":
            return [getattr(averaged, name) for name in self.inputs]
        # f' is taken of the ratio of whole answers' probabilities, so averaging comes after it.
        scores = {
            name: f_score(getattr(pairs, name), m.f_divergence, m.f_alpha)
            for name in ("chosen_logratios", "rejected_logratios")
        }
        if self.average == "mean":
            scores["chosen_logratios"] = scores["chosen_logratios"] / pairs.chosen_tokens
            scores["rejected_logratios"] = scores["rejected_logratios"] / pairs.rejected_tokens
        return [scores[name] if name in scores else getattr(averaged, name) for name in self.inputs]
