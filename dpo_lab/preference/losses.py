"""Preference losses: pure functions of a step's log-probs.

Each names its inputs from one vocabulary, all (B,): chosen_logratios, rejected_logratios (log policy - log reference),
chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, chosen_tokens, rejected_tokens. It returns the loss
of each pair, (B,). Whether log-probs are summed or averaged over an answer's tokens is the caller's choice.

In the docstrings c and r are the log-ratios of the chosen and the rejected answer, and margin is beta (c - r).
"""

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

LossFunction = TypeVar("LossFunction", bound=Callable[..., Tensor])


def couples_pairs(loss: LossFunction) -> LossFunction:
    """Mark a loss in which a pair's value depends on the other pairs: it needs the whole step at once."""
    loss.coupled = True  # type: ignore[attr-defined]
    return loss


# -- of the difference of two log-ratios ----------------------------------------------------------------------------


def dpo_loss(chosen_logratios: Tensor, rejected_logratios: Tensor, *, beta: float) -> Tensor:
    """-log sigmoid(beta (chosen - rejected)), arXiv:2305.18290 eq. 7. Log-ratios (B,) -> (B,)."""
    return -F.logsigmoid(beta * (chosen_logratios - rejected_logratios))


def cdpo_loss(chosen_logratios: Tensor, rejected_logratios: Tensor, *, beta: float, label_smoothing: float) -> Tensor:
    """-(1 - e) log sigmoid(margin) - e log sigmoid(-margin), e = label_smoothing. Log-ratios (B,) -> (B,).

    Conservative DPO, https://ericmitchell.ai/cdpo.pdf: labels are flipped with probability e, so the margin's
    optimum is log((1 - e) / e) instead of infinity.
    """
    margin = beta * (chosen_logratios - rejected_logratios)
    return -(1 - label_smoothing) * F.logsigmoid(margin) - label_smoothing * F.logsigmoid(-margin)


def robust_loss(chosen_logratios: Tensor, rejected_logratios: Tensor, *, beta: float, label_smoothing: float) -> Tensor:
    """(-(1 - e) log sigmoid(margin) + e log sigmoid(-margin)) / (1 - 2 e), arXiv:2403.00409. (B,) -> (B,).

    With labels flipped with probability e = label_smoothing < 1/2, its expectation is the DPO loss of clean labels.
    """
    margin = beta * (chosen_logratios - rejected_logratios)
    flipped = label_smoothing * F.logsigmoid(-margin)
    return (flipped - (1 - label_smoothing) * F.logsigmoid(margin)) / (1 - 2 * label_smoothing)


def hinge_loss(chosen_logratios: Tensor, rejected_logratios: Tensor, *, beta: float) -> Tensor:
    """max(0, 1 - margin): SLiC's loss (arXiv:2305.10425) on log-ratios, as in arXiv:2309.06657. (B,) -> (B,)."""
    return torch.relu(1 - beta * (chosen_logratios - rejected_logratios))


def ipo_loss(chosen_logratios: Tensor, rejected_logratios: Tensor, *, beta: float) -> Tensor:
    """(chosen - rejected - 1 / (2 beta))^2, arXiv:2310.12036 eq. 17 with tau = beta. Log-ratios (B,) -> (B,).

    The paper and its authors' code sum log-probs; TRL averages them over an answer's tokens. A beta does not carry
    over from one to the other.
    """
    return (chosen_logratios - rejected_logratios - 1 / (2 * beta)) ** 2


def exo_loss(chosen_logratios: Tensor, rejected_logratios: Tensor, *, beta: float, label_smoothing: float) -> Tensor:
    """KL(p || q), p = (sigmoid(margin), sigmoid(-margin)), q = (1 - e, e), arXiv:2402.00856 eq. 16. (B,) -> (B,).

    The reverse of DPO's divergence: it seeks the mode of the labels q, which e = label_smoothing > 0 keeps finite.
    """
    margin = beta * (chosen_logratios - rejected_logratios)
    chosen = torch.sigmoid(margin) * (F.logsigmoid(margin) - math.log1p(-label_smoothing))
    rejected = torch.sigmoid(-margin) * (F.logsigmoid(-margin) - math.log(label_smoothing))
    return chosen + rejected


def discopop_loss(chosen_logratios: Tensor, rejected_logratios: Tensor, *, beta: float, tau: float) -> Tensor:
    """(1 - s) (-log sigmoid(margin)) + s exp(-margin), s = sigmoid(margin / tau), arXiv:2406.08414 eq. 5. (B,) -> (B,).

    Found by a language model's search over losses (LRML): logistic on wrongly ordered pairs, exponential on the others.
    Not monotonic: at margin 0 its slope is (1 - ln 2) / (4 tau) - 3/4, the wrong way for tau < 0.1023.
    """
    margin = beta * (chosen_logratios - rejected_logratios)
    right = torch.sigmoid(margin / tau)
    # s exp(-margin) as one exponential: apart, the second overflows where s is 0, and 0 * inf is not a number.
    exponential = torch.exp(F.logsigmoid(margin / tau) - margin)
    return (1 - right) * -F.logsigmoid(margin) + exponential


# -- of each log-ratio on its own -----------------------------------------------------------------------------------


def sppo_loss(chosen_logratios: Tensor, rejected_logratios: Tensor, *, beta: float) -> Tensor:
    """(c - 1 / (2 beta))^2 + (r + 1 / (2 beta))^2, arXiv:2405.00675 eq. 4.7 with eta = 1 / beta. (B,) -> (B,).

    The paper's win probabilities come from a preference model; here the chosen answer's is 1 and the rejected one's 0.
    """
    target = 1 / (2 * beta)
    return (chosen_logratios - target) ** 2 + (rejected_logratios + target) ** 2


def nca_loss(chosen_logratios: Tensor, rejected_logratios: Tensor, *, beta: float) -> Tensor:
    """-log sigmoid(beta c) - (log sigmoid(-beta c) + log sigmoid(-beta r)) / 2, arXiv:2402.05369. (B,) -> (B,)."""
    chosen, rejected = beta * chosen_logratios, beta * rejected_logratios
    return -F.logsigmoid(chosen) - (F.logsigmoid(-chosen) + F.logsigmoid(-rejected)) / 2


def bco_loss(chosen_logratios: Tensor, rejected_logratios: Tensor, *, beta: float) -> Tensor:
    """-log sigmoid(beta c) - log sigmoid(-beta r), arXiv:2404.04656. Log-ratios (B,) -> (B,).

    Without the paper's reward shift delta, a running mean of the rewards: as in TRL, a pair's loss is its own affair.
    """
    return -F.logsigmoid(beta * chosen_logratios) - F.logsigmoid(-beta * rejected_logratios)


def apo_zero_loss(chosen_logratios: Tensor, rejected_logratios: Tensor, *, beta: float) -> Tensor:
    """1 - sigmoid(beta c) + sigmoid(beta r), arXiv:2408.06266 eq. 7. Log-ratios (B,) -> (B,)."""
    return torch.sigmoid(-beta * chosen_logratios) + torch.sigmoid(beta * rejected_logratios)


def apo_down_loss(chosen_logratios: Tensor, rejected_logratios: Tensor, *, beta: float) -> Tensor:
    """sigmoid(beta c) + 1 - sigmoid(beta (c - r)), arXiv:2408.06266 eq. 8. Log-ratios (B,) -> (B,)."""
    margin = beta * (chosen_logratios - rejected_logratios)
    return torch.sigmoid(beta * chosen_logratios) + torch.sigmoid(-margin)


# -- of all pairs of the step ---------------------------------------------------------------------------------------


@couples_pairs
def aot_loss(
    chosen_logps: Tensor, rejected_logps: Tensor, ref_chosen_logps: Tensor, ref_rejected_logps: Tensor, *, beta: float
) -> Tensor:
    """-log sigmoid(beta (d_(i) - d_ref_(i))), arXiv:2406.05882 (paired). Log-probs (B,) -> (B,).

    d = chosen - rejected of the policy and d_ref of the reference, each sorted over the step: the policy's distribution
    of margins is to dominate the reference's. The values belong to ranks, not to pairs: only their mean means anything.
    """
    policy = (chosen_logps - rejected_logps).sort().values
    ref = (ref_chosen_logps - ref_rejected_logps).sort().values
    return -F.logsigmoid(beta * (policy - ref))


@couples_pairs
def aot_unpaired_loss(chosen_logratios: Tensor, rejected_logratios: Tensor, *, beta: float) -> Tensor:
    """-log sigmoid(beta (c_(i) - r_(i))), c and r each sorted, arXiv:2406.05882 (unpaired). (B,) -> (B,).

    The values belong to ranks, not to pairs: only their mean means anything.
    """
    return -F.logsigmoid(beta * (chosen_logratios.sort().values - rejected_logratios.sort().values))


@couples_pairs
def kto_pair_loss(chosen_logratios: Tensor, rejected_logratios: Tensor, *, beta: float) -> Tensor:
    """(1 - sigmoid(beta (c - z_r)) + 1 - sigmoid(beta (z_c - r))) / 2, arXiv:2402.01306. (B,) -> (B,).

    z_c = max(0, mean c) and z_r = max(0, mean r) over the step estimate the KL to the reference; a chosen answer takes
    the rejected ones' and the other way round, so that it is no part of its own reference point. As in the paper no
    gradient flows through them (it does in LLaMA-Factory). A pair is two of KTO's examples, hence the half.
    """
    chosen_kl = chosen_logratios.detach().mean().clamp_min(0)
    rejected_kl = rejected_logratios.detach().mean().clamp_min(0)
    desirable = torch.sigmoid(-beta * (chosen_logratios - rejected_kl))
    undesirable = torch.sigmoid(-beta * (chosen_kl - rejected_logratios))
    return (desirable + undesirable) / 2


# -- without a reference --------------------------------------------------------------------------------------------


def simpo_loss(chosen_logps: Tensor, rejected_logps: Tensor, *, beta: float, gamma: float) -> Tensor:
    """-log sigmoid(beta (chosen - rejected) - gamma), arXiv:2405.14734 eq. 6. Log-probs per token (B,) -> (B,)."""
    return -F.logsigmoid(beta * (chosen_logps - rejected_logps) - gamma)


def orpo_loss(chosen_logps: Tensor, rejected_logps: Tensor, *, beta: float) -> Tensor:
    """-log p_c - beta log sigmoid(log odds_c - log odds_r), arXiv:2403.07691 eq. 6, beta = lambda. (B,) -> (B,).

    odds = p / (1 - p), where p is an answer's likelihood per token: log-probs are to be averaged over its tokens.
    """
    log_odds = (chosen_logps - log1mexp(chosen_logps)) - (rejected_logps - log1mexp(rejected_logps))
    return -chosen_logps - beta * F.logsigmoid(log_odds)


def sft_loss(chosen_logps: Tensor) -> Tensor:
    """-log p_c: no preference, only imitation of the chosen answer. Log-probs (B,) -> (B,).

    Averaged over an answer's tokens, every pair weighs the same; TRL's `sft` averages over all tokens of a batch, where
    long answers weigh more. For a single pair they are equal.
    """
    return -chosen_logps


# -- of other losses ------------------------------------------------------------------------------------------------


def mpo_loss(*terms: Tensor, weights: Sequence[float]) -> Tensor:
    """sum_k weights_k terms_k, arXiv:2411.10442. The losses of each pair under K others, K x (B,) -> (B,)."""
    return torch.stack([weight * term for weight, term in zip(weights, terms, strict=True)]).sum(0)


def log1mexp(x: Tensor) -> Tensor:
    """log(1 - e^x) for x <= 0, to full precision near 0 and far below; elementwise.

    x = 0 counts as the next number below: a probability of 1 has finite odds and no gradient through them.
    """
    x = x.clamp_max(-torch.finfo(x.dtype).eps)
    near = x > -math.log(2)
    # Each branch sees only what it can take, or the other one's infinite derivative would spoil the gradient.
    from_expm1 = torch.log(-torch.expm1(torch.where(near, x, -1.0)))
    from_log1p = torch.log1p(-torch.exp(torch.where(near, -1.0, x)))
    return torch.where(near, from_expm1, from_log1p)
