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
from dpo_lab.preference.losses import (
    aot_loss,
    aot_unpaired_loss,
    cdpo_loss,
    dpo_loss,
    ipo_loss,
    kto_pair_loss,
    log1mexp,
    orpo_loss,
    robust_loss,
    simpo_loss,
)
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


# -- losses that TRL's DPO trainer does not have, from the papers' and LLaMA-Factory's formulas -----------------------


LOGPS = torch.tensor([-0.7, -2.5, -0.01]).double(), torch.tensor([-1.1, -0.3, -4.0]).double()  # per token
LOGRATIOS = torch.tensor([2.0, -1.0, 3.0]).double(), torch.tensor([1.0, 0.5, -4.0]).double()


def test_cdpo_is_the_mean_of_dpo_on_the_label_and_on_the_flipped_one() -> None:
    chosen, rejected = LOGRATIOS
    expected = 0.9 * dpo_loss(chosen, rejected, beta=0.3) + 0.1 * dpo_loss(rejected, chosen, beta=0.3)
    torch.testing.assert_close(cdpo_loss(chosen, rejected, beta=0.3, label_smoothing=0.1), expected)


def test_cdpo_is_least_at_the_margin_of_its_labels_odds() -> None:
    best = torch.tensor([math.log(9) / 0.3], dtype=torch.float64, requires_grad=True)
    cdpo_loss(best, torch.zeros_like(best), beta=0.3, label_smoothing=0.1).sum().backward()
    assert best.grad is not None
    assert best.grad.abs() < 1e-12


def test_robust_dpo_of_flipped_labels_is_on_average_dpo_of_the_true_ones() -> None:
    chosen, rejected = LOGRATIOS
    kept = robust_loss(chosen, rejected, beta=0.3, label_smoothing=0.2)
    flipped = robust_loss(rejected, chosen, beta=0.3, label_smoothing=0.2)
    torch.testing.assert_close(0.8 * kept + 0.2 * flipped, dpo_loss(chosen, rejected, beta=0.3))


def test_simpo_is_llama_factorys_with_its_gamma() -> None:
    chosen, rejected = LOGPS
    gamma_logratios = 0.5 / 2.5  # simpo_gamma / beta: the margin in log-probs per token
    expected = -F.logsigmoid(2.5 * (chosen - rejected - gamma_logratios))
    torch.testing.assert_close(simpo_loss(chosen, rejected, beta=2.5, gamma=0.5), expected)


def test_orpo_is_the_papers_formula_on_likelihoods() -> None:
    p, q = (t.exp() for t in LOGPS)
    odds_ratio = (p / (1 - p)) / (q / (1 - q))
    expected = -p.log() - 0.2 * torch.log(1 / (1 + torch.exp(-odds_ratio.log())))
    torch.testing.assert_close(orpo_loss(*LOGPS, beta=0.2), expected)


def test_the_log_odds_keep_their_precision_where_a_likelihood_is_nearly_1_or_0() -> None:
    expected = {  # 1 - e^x = -x - x^2 / 2 - ... near 0; -e^x is its logarithm far below
        0.0: math.log(torch.finfo(torch.float64).eps),  # counts as the next number below 1
        -1e-12: math.log(1e-12),
        -1e-3: math.log(1e-3 - 1e-6 / 2 + 1e-9 / 6),
        -math.log(2): -math.log(2),
        -1.0: math.log1p(-math.exp(-1)),
        -50.0: -math.exp(-50),
        -1000.0: 0.0,
    }
    x, values = (torch.tensor(list(t), dtype=torch.float64) for t in (expected.keys(), expected.values()))
    torch.testing.assert_close(log1mexp(x), values, rtol=1e-9, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_likelihood_of_1_or_0_gives_orpo_a_finite_loss_and_gradient(dtype: torch.dtype) -> None:
    chosen = torch.tensor([0.0, -200.0, 0.0], dtype=dtype, requires_grad=True)
    rejected = torch.tensor([-200.0, 0.0, 0.0], dtype=dtype, requires_grad=True)
    loss = orpo_loss(chosen, rejected, beta=0.1)
    found = torch.autograd.grad(loss.sum(), (chosen, rejected))
    assert all(t.isfinite().all() for t in (loss, *found))


def llama_factorys_kto_pair(chosen_logratios: Tensor, rejected_logratios: Tensor, beta: float) -> Tensor:
    """Mean over 2B examples, as the `kto_pair` that LLaMA-Factory names was in TRL; there z carries gradient."""
    chosen_kl = chosen_logratios.mean().clamp(min=0)
    rejected_kl = rejected_logratios.mean().clamp(min=0)
    desirable = 1 - torch.sigmoid(beta * (chosen_logratios - rejected_kl))
    undesirable = 1 - torch.sigmoid(beta * (chosen_kl - rejected_logratios))
    return torch.cat((desirable, undesirable)).mean()


@pytest.mark.parametrize("shift", [0.0, 5.0], ids=["one mean below 0", "both means above 0"])
def test_kto_pair_has_llama_factorys_value_and_the_papers_gradient(shift: float) -> None:
    chosen, rejected = (t + shift for t in LOGRATIOS)
    assert (chosen.mean() > 0, rejected.mean() > 0) == (True, shift > 0)
    loss = kto_pair_loss(chosen, rejected, beta=0.3)
    torch.testing.assert_close(loss.mean(), llama_factorys_kto_pair(chosen, rejected, 0.3))
    # The paper's: v = sigmoid(beta (r - z)) for desirable, sigmoid(beta (z - r)) for undesirable; z is a constant.
    z = chosen.mean().clamp(min=0), rejected.mean().clamp(min=0)
    v_chosen, v_rejected = torch.sigmoid(0.3 * (chosen - z[1])), torch.sigmoid(0.3 * (z[0] - rejected))
    leaves = chosen.clone().requires_grad_(), rejected.clone().requires_grad_()
    found = torch.autograd.grad(kto_pair_loss(*leaves, beta=0.3).mean(), leaves)
    torch.testing.assert_close(found[0], -0.3 * v_chosen * (1 - v_chosen) / 6)
    torch.testing.assert_close(found[1], 0.3 * v_rejected * (1 - v_rejected) / 6)


def test_losses_that_couple_pairs_say_so() -> None:
    assert all(loss.coupled for loss in (aot_loss, aot_unpaired_loss, kto_pair_loss))  # type: ignore[attr-defined]
    assert not hasattr(dpo_loss, "coupled")


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
