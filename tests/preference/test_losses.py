"""Losses against numbers computed by hand, and against the papers' formulas on log-probs from all logits."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tiny import FP64, difference, load_tiny, tiny_examples, tiny_policy
from torch import Tensor, nn

from dpo_lab.data.collate import collate
from dpo_lab.data.types import Example
from dpo_lab.preference.forward import Forward
from dpo_lab.preference.losses import dpo_loss, ipo_loss
from dpo_lab.preference.objective import Objective, PairLogps

CHOSEN, REJECTED = torch.tensor([2.0, -1.0]), torch.tensor([1.0, 0.5])  # margins 1 and -1.5


def test_dpo_of_two_pairs_is_what_a_pocket_calculator_says() -> None:
    # ln(1 + e^-0.5) and ln(1 + e^0.75)
    torch.testing.assert_close(dpo_loss(CHOSEN, REJECTED, beta=0.5), torch.tensor([0.4740770, 1.1368710]))


def test_ipo_of_two_pairs_is_what_a_pocket_calculator_says() -> None:
    # the target margin is 1 / (2 * 0.5) = 1: (1 - 1)^2 and (-1.5 - 1)^2
    torch.testing.assert_close(ipo_loss(CHOSEN, REJECTED, beta=0.5), torch.tensor([0.0, 6.25]))
    # the target margin is 1 / (2 * 0.1) = 5: (1 - 5)^2 and (-1.5 - 5)^2
    torch.testing.assert_close(ipo_loss(CHOSEN, REJECTED, beta=0.1), torch.tensor([16.0, 42.25]))


@pytest.mark.parametrize("beta", [0.01, 0.1, 0.5])
def test_before_the_first_step_dpo_is_ln_2_and_ipo_is_one_over_4_beta_squared(beta: float) -> None:
    zero = torch.zeros(3, dtype=torch.float64)
    torch.testing.assert_close(dpo_loss(zero, zero, beta=beta), torch.full_like(zero, math.log(2)))
    torch.testing.assert_close(ipo_loss(zero, zero, beta=beta), torch.full_like(zero, 1 / (4 * beta**2)))


def gradients(loss: Callable[..., Tensor], beta: float) -> tuple[Tensor, Tensor]:
    chosen, rejected = CHOSEN.double().requires_grad_(), REJECTED.double().requires_grad_()
    return torch.autograd.grad(loss(chosen, rejected, beta=beta).sum(), (chosen, rejected))  # type: ignore[return-value]


def test_the_gradient_of_dpo_is_beta_times_the_weight_of_the_wrong_order() -> None:
    # -beta sigmoid(-beta margin), eq. below (7) of arXiv:2305.18290: beta = 0.5, sigmoid(-0.5) and sigmoid(0.75)
    chosen, rejected = gradients(dpo_loss, 0.5)
    expected = torch.tensor([-0.5 * 0.3775406688, -0.5 * 0.6791786992], dtype=torch.float64)
    torch.testing.assert_close(chosen, expected)
    torch.testing.assert_close(rejected, -expected)


def test_the_gradient_of_ipo_is_twice_the_distance_to_the_target() -> None:
    chosen, rejected = gradients(ipo_loss, 0.1)
    expected = torch.tensor([2 * (1 - 5), 2 * (-1.5 - 5)], dtype=torch.float64)
    torch.testing.assert_close(chosen, expected)
    torch.testing.assert_close(rejected, -expected)


def test_no_two_losses_give_the_same_number_or_gradient() -> None:
    at = {loss: (loss(CHOSEN, REJECTED, beta=0.3), gradients(loss, 0.3)[0]) for loss in (dpo_loss, ipo_loss)}
    (value, gradient), (other_value, other_gradient) = at.values()
    assert (value - other_value).abs().min() > 0.1
    assert (gradient - other_gradient).abs().min() > 0.1


def test_huge_margins_give_finite_losses_and_gradients() -> None:
    margin = torch.tensor([-1e5, 1e5], requires_grad=True)
    loss = dpo_loss(margin, torch.zeros(2), beta=0.1)
    loss.sum().backward()
    torch.testing.assert_close(loss, torch.tensor([1e4, 0.0]))
    assert margin.grad is not None
    torch.testing.assert_close(margin.grad, torch.tensor([-0.1, 0.0]))


# -- the authors' code, on log-probs from all logits --------------------------------------------------------------


def answer_logps(model: nn.Module, prompt: list[int], answer: list[int]) -> Tensor:
    """As in `_get_batch_logps` of the authors' repository: all logits, shifted by one, prompt masked, summed."""
    ids = torch.tensor([prompt + answer])
    labels = ids[:, 1:].clone()
    logits = model(input_ids=ids).logits[:, :-1]
    mask = torch.arange(labels.shape[1])[None] >= len(prompt) - 1
    per_token = torch.gather(logits.log_softmax(-1), dim=2, index=labels[:, :, None])[:, :, 0]
    return (per_token * mask).sum(-1)[0]


def authors_losses(
    policy: nn.Module, reference: nn.Module, examples: list[Example], *, beta: float, ipo: bool
) -> Tensor:
    """As in `preference_loss` of the authors' repository."""
    logps = [
        torch.stack([answer_logps(model, e.prompt_ids, getattr(e, side)) for e in examples])
        for model in (policy, reference)
        for side in ("chosen_ids", "rejected_ids")
    ]
    policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps = logps
    pi_logratios = policy_chosen_logps - policy_rejected_logps
    ref_logratios = reference_chosen_logps - reference_rejected_logps
    logits = pi_logratios - ref_logratios
    return (logits - 1 / (2 * beta)) ** 2 if ipo else -F.logsigmoid(beta * logits)


@pytest.mark.reference
@pytest.mark.parametrize("name", ["dpo", "ipo"])
def test_with_summed_log_probs_the_losses_are_those_of_the_authors_code(name: str, tiny_model: Path) -> None:
    examples = tiny_examples()[:4]
    policy, reference = tiny_policy(tiny_model, FP64, moved=0.3), load_tiny(tiny_model, FP64)
    layout, forward = collate(examples, list(range(4))), Forward()
    with torch.no_grad():
        pairs = PairLogps.of(layout, forward.logps(policy, layout), forward.logps(reference, layout))
        ours = Objective({"dpo": dpo_loss, "ipo": ipo_loss}[name], average="sum", beta=0.1)(pairs)
        theirs = authors_losses(policy, reference, examples, beta=0.1, ipo=name == "ipo")
    assert pairs.chosen_logratios.abs().max() > 1  # the policy has moved
    assert difference(ours, theirs) < 1e-9
