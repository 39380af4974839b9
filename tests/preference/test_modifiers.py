"""Modifiers of a loss: by hand, alone and together, and that each changes what it is said to change and nothing else."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from objectives import gradient, objective, random_step
from tiny import FP64, difference, tiny_examples, tiny_policy
from torch import Tensor

from dpo_lab.data.collate import collate
from dpo_lab.preference.forward import Forward
from dpo_lab.preference.layout import Layout
from dpo_lab.preference.losses import aot_loss, dpo_loss, ipo_loss
from dpo_lab.preference.modifiers import OFF, FDivergence, Modifiers, f_score, tail_logps, wpo_weights
from dpo_lab.preference.objective import POLICY_FIELDS, Objective, PairLogps
from dpo_lab.runtime.errors import ConfigError

# prompts of 3 and 1, answers of 2 and 1, of 1 and 2 tokens
LAYOUT = Layout(torch.arange(10), ((3, 2, 1), (1, 1, 2)))
POLICY = torch.tensor([-1.0, -2.0, -4.0, -8.0, -16.0, -32.0], dtype=torch.float64)
REF = torch.tensor([-1.5, -1.0, -3.0, -9.0, -15.0, -30.0], dtype=torch.float64)

SETTINGS: dict[str, dict[str, Any]] = {
    "sft": {"sft_weight": 0.2},
    "ld": {"ld_alpha": 0.3},
    "wpo": {"wpo": True},
    "forward_kl": {"f_divergence": "forward_kl"},
    "js": {"f_divergence": "js"},
    "alpha": {"f_divergence": "alpha", "f_alpha": 0.5},
    "alpha 0.9": {"f_divergence": "alpha", "f_alpha": 0.9},
}


def test_the_command_line_sets_them() -> None:
    words = ["loss.sft_weight=0.2", "loss.ld_alpha=0.3", "loss.wpo=true", "loss.f_divergence=alpha", "loss.f_alpha=0.9"]
    assert objective(*words).modifiers == Modifiers(0.2, 0.3, True, "alpha", 0.9)
    assert objective("loss=dpo").modifiers == replace(OFF, f_alpha=0.5)
    inside = objective("loss=mpo", "loss.wpo=true", "loss.ld_alpha=0.3")
    assert [term.modifiers for term in inside.terms] == 3 * [replace(OFF, ld_alpha=0.3, f_alpha=0.5)]


@pytest.mark.parametrize("loss", ["dpo", "cdpo", "robust", "hinge", "ipo", "exo", "discopop"])
def test_each_modifier_changes_value_and_gradient_and_no_two_alike(loss: str) -> None:
    found = {}
    for name, changes in {"plain": {}, **SETTINGS}.items():
        made = objective(f"loss={loss}", **changes)
        _, pairs = random_step(made, moved=1.5)
        grad = gradient(made, pairs)
        found[name] = made(pairs).mean(), F.pad(grad, (0, 32 - len(grad)))
    assert len(found) == 8
    for name, (value, grad) in found.items():
        for other, (other_value, other_grad) in found.items():
            if other != name:
                assert abs(value - other_value) > 1e-6, (name, other)
                assert (grad - other_grad).abs().max() > 1e-4 * grad.abs().max(), (name, other)


@pytest.mark.parametrize("loss", ["bco", "aot", "kto_pair", "sppo"])
def test_imitation_and_the_weight_of_the_tail_work_with_losses_of_other_kinds(loss: str) -> None:
    plain, sft, ld = (objective(f"loss={loss}", **c) for c in ({}, {"sft_weight": 0.2}, {"ld_alpha": 0.0}))
    _, pairs = random_step(ld)
    assert (sft(pairs).mean() - plain(pairs).mean()).abs() > 1e-3
    assert (ld(pairs).mean() - plain(pairs).mean()).abs() > 1e-3


# -- sft_weight -----------------------------------------------------------------------------------------------------


def test_imitation_adds_the_chosen_answers_negative_log_prob_per_token() -> None:
    made = Objective(dpo_loss, average="sum", beta=0.1, modifiers=replace(OFF, sft_weight=0.5))
    pairs = made.pairs(LAYOUT, POLICY, REF)
    plain = Objective(dpo_loss, average="sum", beta=0.1)(pairs)
    torch.testing.assert_close(made(pairs) - plain, torch.tensor([0.5 * 3.0 / 2, 0.5 * 8.0 / 1], dtype=torch.float64))


# -- ld_alpha -------------------------------------------------------------------------------------------------------


def test_the_tail_is_what_the_longer_answer_has_beyond_the_shorter() -> None:
    chosen, rejected = tail_logps(LAYOUT, POLICY)
    assert chosen.tolist() == [-2.0, 0.0]  # the second of -1, -2; the chosen answer of the other pair is the shorter
    assert rejected.tolist() == [0.0, -32.0]


def test_tokens_of_the_tail_weigh_alpha_in_policy_and_reference() -> None:
    seen: dict[str, Tensor] = {}

    def spy(chosen_logratios: Tensor, rejected_logratios: Tensor, ref_rejected_logps: Tensor) -> Tensor:
        seen.update(chosen=chosen_logratios, rejected=rejected_logratios, ref=ref_rejected_logps)
        return chosen_logratios

    made = Objective(spy, average="sum", beta=None, modifiers=replace(OFF, ld_alpha=0.25))
    pairs = made.pairs(LAYOUT, POLICY, REF)
    made(pairs)
    assert seen["chosen"].tolist() == [(-1 - 2 / 4) - (-1.5 - 1 / 4), -8 + 9]
    assert seen["rejected"].tolist() == [-4 + 3, (-16 - 32 / 4) - (-15 - 30 / 4)]
    assert seen["ref"].tolist() == [-3, -15 - 30 / 4]
    assert pairs.chosen_logps.tolist() == [-3.0, -8.0]  # what metrics and records see stays whole


def test_averaging_divides_by_all_tokens_after_the_tail_was_weighted() -> None:
    made = Objective(ipo_loss, average="mean", beta=0.5, modifiers=replace(OFF, ld_alpha=0.0))
    pairs = made.pairs(LAYOUT, POLICY, REF)
    chosen, rejected = torch.tensor([0.5 / 2, 1.0]), torch.tensor([-1.0, -1.0 / 2])
    torch.testing.assert_close(made(pairs), ((chosen - rejected - 1) ** 2).double())


def test_a_weight_of_1_is_no_weight_and_losses_without_a_reference_see_no_tail() -> None:
    plain, one = objective("loss=dpo"), objective("loss=dpo", ld_alpha=1.0)
    _, pairs = random_step(one)
    torch.testing.assert_close(plain(pairs), one(pairs))
    mpo, none = objective("loss=mpo"), objective("loss=mpo", ld_alpha=0.0)
    _, pairs = random_step(none)
    torch.testing.assert_close(mpo.terms[2](pairs), none.terms[2](pairs))
    assert (mpo.terms[0](pairs) - none.terms[0](pairs)).abs().max() > 1e-3


def test_the_gradient_reaches_every_token_with_its_weight() -> None:
    made = Objective(dpo_loss, average="sum", beta=0.1, modifiers=replace(OFF, ld_alpha=0.25))
    per_token = POLICY.clone().requires_grad_()
    made(made.pairs(LAYOUT, per_token, REF)).sum().backward()
    assert per_token.grad is not None
    g = per_token.grad
    torch.testing.assert_close(g[1], 0.25 * g[0])
    torch.testing.assert_close(g[5], 0.25 * g[4])
    assert (g[[0, 3]] < 0).all()
    assert (g[[2, 4]] > 0).all()


# -- wpo ------------------------------------------------------------------------------------------------------------


def test_the_weight_of_a_pair_is_its_likelihood_relative_to_the_policys_own_answers() -> None:
    log_sum_sq = torch.tensor([-1.0, -1.0, -2.0, -4.0, -20.0, -20.0], dtype=torch.float64)
    weights = wpo_weights(LAYOUT, POLICY, log_sum_sq)
    # per token, chosen and rejected: (0 - 1) / 2 and -2; -4 and (4 - 12) / 2
    torch.testing.assert_close(weights, torch.tensor([math.exp(-2.5), math.exp(-8.0)], dtype=torch.float64))


def test_weights_scale_value_and_gradient_and_carry_none_themselves() -> None:
    made = Objective(dpo_loss, average="sum", beta=0.1, modifiers=replace(OFF, wpo=True))
    assert made.needs_self
    per_token = POLICY.clone().requires_grad_()
    pairs = made.pairs(LAYOUT, per_token, REF, torch.full_like(POLICY, -3.0, requires_grad=True))
    assert pairs.weights is not None
    assert not pairs.weights.requires_grad
    plain = Objective(dpo_loss, average="sum", beta=0.1)
    torch.testing.assert_close(made(pairs), pairs.weights * plain(pairs))
    weighted = torch.autograd.grad(made(pairs).sum(), per_token, retain_graph=True)[0]
    unweighted = torch.autograd.grad(plain(pairs).sum(), per_token)[0]
    torch.testing.assert_close(weighted, unweighted * pairs.weights[[0, 0, 0, 1, 1, 1]])


def test_a_loss_of_all_pairs_together_has_none_to_weigh() -> None:
    with pytest.raises(ConfigError, match=r"loss\.wpo=true weighs pairs"):
        Objective(aot_loss, average="sum", beta=0.1, modifiers=replace(OFF, wpo=True))


@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
def test_statistics_are_those_of_all_logits_and_log_probs_keep_their_gradient(lora: bool, tiny_model: Path) -> None:
    policy = tiny_policy(tiny_model, FP64, moved=0.3)
    policy.requires_grad_(not lora)
    for name, p in policy.named_parameters():
        p.requires_grad_(not lora or "lora" in name)
    example = tiny_examples()[1]
    layout = collate([example], [0])
    per_token, log_sum_sq = Forward().statistics(policy, layout)
    expected = []
    for answer in (example.chosen_ids, example.rejected_ids):
        with torch.no_grad():
            logits = policy(input_ids=torch.tensor([example.prompt_ids + answer])).logits[0]
        p = logits[len(example.prompt_ids) - 1 : -1].softmax(-1)
        expected.append(p.square().sum(-1).log())
    assert difference(log_sum_sq, torch.cat(expected)) < 1e-9
    assert not log_sum_sq.requires_grad
    plain = Forward().logps(policy, layout)
    assert torch.equal(per_token, plain)
    asked = [p for p in policy.parameters() if p.requires_grad]
    ours, theirs = (torch.autograd.grad(t.square().sum(), asked) for t in (per_token, plain))
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    with torch.no_grad():
        assert difference(Forward().statistics(policy, layout)[1], torch.cat(expected)) < 1e-9


# -- f_divergence ---------------------------------------------------------------------------------------------------

GENERATORS = {  # f(u) of arXiv:2309.16240, table 1, up to a multiple of u - 1 (f' up to a constant)
    "reverse_kl": (lambda u: u * u.log(), None),
    "forward_kl": (lambda u: -u.log(), None),
    "js": (lambda u: u * u.log() - (u + 1) * ((u + 1) / 2).log(), None),
    "alpha": (lambda u: (u**0.3 - 0.3 * u - 0.7) / (0.3 * (0.3 - 1)), 0.3),
}


@pytest.mark.parametrize("divergence", GENERATORS)
def test_the_score_is_the_derivative_of_the_divergences_generator(divergence: FDivergence) -> None:
    f, alpha = GENERATORS[divergence]
    logratios = torch.linspace(-4, 4, 9, dtype=torch.float64)
    u = logratios.exp().requires_grad_()
    (derivative,) = torch.autograd.grad(f(u).sum(), u)
    score = f_score(logratios, divergence, alpha)
    torch.testing.assert_close(score - score[4], derivative - derivative[4])
    assert score[4].abs() < 1e-12  # 0 where policy and reference agree


def test_alpha_leads_from_forward_kl_at_0_to_reverse_kl_at_1() -> None:
    r = torch.linspace(-2, 2, 5, dtype=torch.float64)
    torch.testing.assert_close(f_score(r, "alpha", 0.0), f_score(r, "forward_kl", None))
    torch.testing.assert_close(f_score(r, "alpha", 1.0), r)
    torch.testing.assert_close(f_score(r, "alpha", 1 - 1e-5), r, rtol=1e-4, atol=1e-4)


def test_scores_are_of_whole_answers_and_averaged_afterwards() -> None:
    made = Objective(ipo_loss, average="mean", beta=0.5, modifiers=replace(OFF, f_divergence="js"))
    pairs = made.pairs(LAYOUT, POLICY, REF)
    c, r = pairs.chosen_logratios, pairs.rejected_logratios
    score = math.log(2) + F.logsigmoid(c), math.log(2) + F.logsigmoid(r)
    expected = (score[0] / pairs.chosen_tokens - score[1] / pairs.rejected_tokens - 1) ** 2
    torch.testing.assert_close(made(pairs), expected)


# -- the record -----------------------------------------------------------------------------------------------------


def everything() -> tuple[Objective, PairLogps]:
    made = objective("loss=dpo", **SETTINGS["sft"], **SETTINGS["ld"], **SETTINGS["wpo"], **SETTINGS["js"])
    return made, random_step(made)[1]


def test_leaves_have_the_same_values_and_the_policys_ask_for_gradients() -> None:
    made, pairs = everything()
    leaves = pairs.leaf()
    torch.testing.assert_close(made(leaves), made(pairs))
    for name, value in vars(leaves).items():
        assert value.requires_grad == (name in POLICY_FIELDS), name
        assert torch.equal(value, getattr(pairs, name))
    assert leaves.chosen_logps.is_leaf
    assert objective("loss=dpo").pairs(LAYOUT, POLICY, REF).leaf().chosen_tail_logps is None


def test_micro_batches_join_with_all_that_the_objective_asked_for() -> None:
    made, pairs = everything()
    parts = [pairs.each(lambda _, v, i=i: v[i : i + 2]) for i in range(0, 8, 2)]
    joined = PairLogps.join([part.leaf() for part in parts])
    torch.testing.assert_close(made(joined), made(pairs))
    assert joined.weights is not None
    assert not any(v.requires_grad for v in vars(joined).values())


def test_the_gradient_through_leaves_is_the_gradient_through_the_tokens() -> None:
    """Two passes: the loss's gradient with respect to the sums, handed on to each micro-batch's graph."""
    made = objective("loss=kto_pair", ld_alpha=0.5, sft_weight=0.1)
    layout, _ = random_step(made)
    generator = torch.Generator().manual_seed(5)
    size = sum(c + r for _, c, r in layout.lengths)
    policy = -torch.rand(size, dtype=torch.float64, generator=generator)
    ref = -torch.rand(size, dtype=torch.float64, generator=generator)
    direct = policy.clone().requires_grad_()
    made(made.pairs(layout, direct, ref)).mean().backward()
    again = policy.clone().requires_grad_()
    live = made.pairs(layout, again, ref)
    leaves = live.leaf()
    made(leaves).mean().backward()
    fields = [name for name in POLICY_FIELDS if getattr(leaves, name) is not None]
    assert len(fields) == 4
    torch.autograd.backward([getattr(live, n) for n in fields], [getattr(leaves, n).grad for n in fields])
    torch.testing.assert_close(again.grad, direct.grad)
