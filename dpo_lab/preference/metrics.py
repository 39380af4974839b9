"""The numbers of a step or an evaluation, computed once, under TRL's names.

Rewards are beta times the log-ratio of policy and reference, so they depend on beta; log-ratios, in nats, do not.
"""

from typing import Any, Literal

from torch import Tensor

from dpo_lab.preference.objective import PairLogps


def preference_metrics(
    pairs: PairLogps,
    losses: Tensor,
    *,
    beta: float,
    reference: bool = True,
    average: Literal["sum", "mean"] = "sum",
) -> dict[str, Tensor]:
    """Means over B pairs as scalars on the pairs' device.

    Args:
        pairs: log-probs of B pairs.
        losses: (B,) loss of each pair.
        beta: scale of the rewards.
        reference: whether there is one. Without it the policy's log-probs take the log-ratios' place in the rewards,
            as in SimPO and ORPO, and there are no log-ratios.
        average: of the log-probs in rewards without a reference; those with one are always sums.
    """
    if reference:
        chosen, rejected = pairs.chosen_logratios, pairs.rejected_logratios
    else:
        seen = pairs.averaged() if average == "mean" else pairs
        chosen, rejected = seen.chosen_logps, seen.rejected_logps
    metrics = {
        "loss": losses.mean(),
        "rewards/chosen": beta * chosen.mean(),
        "rewards/rejected": beta * rejected.mean(),
        "rewards/accuracies": (chosen > rejected).to(losses.dtype).mean(),
        "rewards/margins": beta * (chosen - rejected).mean(),
        "logps/chosen": pairs.chosen_logps.mean(),
        "logps/rejected": pairs.rejected_logps.mean(),
    }
    if reference:
        metrics |= {
            "logratios/chosen": chosen.mean(),
            "logratios/rejected": rejected.mean(),
            "logratios/margins": (chosen - rejected).mean(),
        }
    return metrics | {
        "tokens/chosen": pairs.chosen_tokens.to(losses.dtype).mean(),
        "tokens/rejected": pairs.rejected_tokens.to(losses.dtype).mean(),
    }


def pair_records(pairs: PairLogps, losses: Tensor, *, reference: bool = True) -> list[dict[str, Any]]:
    """One row a pair: log-prob sums of the policy, and of the reference if there is one, and token counts, of both answers."""
    columns: dict[str, Tensor] = {"chosen_logps": pairs.chosen_logps, "rejected_logps": pairs.rejected_logps}
    if reference:
        columns |= {"ref_chosen_logps": pairs.ref_chosen_logps, "ref_rejected_logps": pairs.ref_rejected_logps}
    columns |= {"chosen_tokens": pairs.chosen_tokens, "rejected_tokens": pairs.rejected_tokens, "loss": losses}
    values = {name: column.tolist() for name, column in columns.items()}
    return [{name: column[i] for name, column in values.items()} for i in range(len(losses))]
