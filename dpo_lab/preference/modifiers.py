"""What can be changed about a loss without being another one.

Each is a published change to DPO that other losses can share: a term of imitation, less weight on the tokens by which an
answer is longer, another divergence to the reference, weights of the pairs. N completion tokens, B pairs.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from dpo_lab.preference.layout import Layout, split_answers

FDivergence = Literal["reverse_kl", "forward_kl", "js", "alpha"]


@dataclass(frozen=True)
class Modifiers:
    """Changes to what a loss sees or to its value.

    Attributes:
        sft_weight: of the chosen answer's negative log-prob per token, added to the loss (RPO, arXiv:2404.19733).
        ld_alpha: weight of the tokens beyond the shorter answer's length, in policy and reference (LD-DPO,
            arXiv:2409.06411); None weighs all alike, which is 1.
        wpo: whether pairs are weighted by how likely the policy itself is to produce them (WPO, arXiv:2406.11827).
        f_divergence: the divergence that holds the policy near the reference (f-DPO, arXiv:2309.16240).
        f_alpha: of the alpha-divergence, between forward KL (0) and reverse KL (1).
    """

    sft_weight: float
    ld_alpha: float | None
    wpo: bool
    f_divergence: FDivergence
    f_alpha: float | None

    @property
    def inner(self) -> "Modifiers":
        """What holds inside each term of a sum of losses; the rest is applied to the sum."""
        return replace(self, sft_weight=0.0, wpo=False)


OFF = Modifiers(sft_weight=0.0, ld_alpha=None, wpo=False, f_divergence="reverse_kl", f_alpha=None)


def f_score(logratios: Tensor, divergence: FDivergence, alpha: float | None) -> Tensor:
    """f'(policy / reference) up to a constant, from log-ratios; elementwise. arXiv:2309.16240 tab. 1.

    It takes the log-ratio's place in losses of the difference of two: f' = log u for reverse KL is DPO itself. Nothing
    is clamped: where an exponential overflows the loss is not finite, and the run stops.

        forward_kl   1 - 1 / u
        js           log(2 u / (u + 1))
        alpha        (u^(alpha - 1) - 1) / (alpha - 1), TRL's alpha, which is 1 - the paper's
    """
    if divergence == "forward_kl":
        return -torch.expm1(-logratios)
    if divergence == "js":
        return math.log(2) + F.logsigmoid(logratios)
    if divergence == "alpha":
        assert alpha is not None
        power = alpha - 1
        return logratios if abs(power) < 1e-6 else torch.expm1(power * logratios) / power
    return logratios


def tail_logps(layout: Layout, per_token: Tensor) -> tuple[Tensor, Tensor]:
    """Sums of (N,) log-probs beyond the length of the pair's shorter answer: (B,) of chosen, (B,) of rejected.

    With a chosen answer of 3 tokens and a rejected one of 1: the last two of the chosen one's, and 0.
    """
    lengths = layout.answer_tokens  # (2B,)
    shared = torch.minimum(*split_answers(lengths)).repeat_interleave(2)
    size = len(per_token)
    starts = (lengths.cumsum(0) - lengths).repeat_interleave(lengths, output_size=size)
    position = torch.arange(size, device=per_token.device) - starts
    beyond = position >= shared.repeat_interleave(lengths, output_size=size)
    return split_answers(layout.answer_sums(torch.where(beyond, per_token, 0.0)))


def wpo_weights(layout: Layout, per_token: Tensor, log_sum_sq: Tensor) -> Tensor:
    """w_c w_r, w = exp(mean over tokens of log p - log sum_v p_v^2), arXiv:2406.11827 eq. 2. (N,), (N,) -> (B,).

    Without gradient. sum_v p_v^2 is the probability of a token drawn from the policy under the policy, so a weight of 1
    is an answer as likely as the policy's own.
    """
    mean = layout.answer_sums(per_token.detach() - log_sum_sq.detach()) / layout.answer_tokens
    chosen, rejected = split_answers(mean)
    return (chosen + rejected).exp()
