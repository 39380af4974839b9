"""Preference losses: pure functions of a step's log-probs.

Each names its inputs from one vocabulary, all (B,): chosen_logratios, rejected_logratios (log policy - log reference),
chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, chosen_tokens, rejected_tokens. It returns the loss
of each pair, (B,). Whether log-probs are summed or averaged over an answer's tokens is the caller's choice.
"""

import torch.nn.functional as F
from torch import Tensor


def dpo_loss(chosen_logratios: Tensor, rejected_logratios: Tensor, *, beta: float) -> Tensor:
    """-log sigmoid(beta (chosen - rejected)), arXiv:2305.18290 eq. 7. Log-ratios (B,) -> (B,)."""
    return -F.logsigmoid(beta * (chosen_logratios - rejected_logratios))


def ipo_loss(chosen_logratios: Tensor, rejected_logratios: Tensor, *, beta: float) -> Tensor:
    """(chosen - rejected - 1 / (2 beta))^2, arXiv:2310.12036 eq. 17 with tau = beta. Log-ratios (B,) -> (B,).

    The paper and its authors' code sum log-probs; TRL averages them over an answer's tokens. A beta does not carry
    over from one to the other.
    """
    return (chosen_logratios - rejected_logratios - 1 / (2 * beta)) ** 2
