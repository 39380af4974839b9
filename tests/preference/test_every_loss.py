"""Each option of conf/loss at its shipped values: its start, its difference from all others, its use of a step."""

import math
from dataclasses import replace

import pytest
import torch
from objectives import LOSSES, gradient, objective, random_step
from torch import Tensor

from dpo_lab.preference.objective import Objective, PairLogps

COUPLED = {"aot", "aot_unpaired", "kto_pair"}
WITHOUT_REFERENCE = {"simpo", "orpo", "sft"}
SMOOTHING = 1e-3  # of exo
NLL = 1.25  # nats per token of every answer in `untouched`


def test_there_are_losses_and_all_names_used_here_are_among_them() -> None:
    assert len(LOSSES) == 19
    assert COUPLED | WITHOUT_REFERENCE | START.keys() == set(LOSSES)


# What a loss is while policy and reference agree (all log-ratios 0) and chosen and rejected answers are equally likely.
START = {
    "dpo": math.log(2),  # -log sigmoid(0)
    "cdpo": math.log(2),  # (0.9 + 0.1) ln 2
    "robust": math.log(2),  # (0.9 - 0.1) ln 2 / (1 - 0.2)
    "hinge": 1.0,  # the whole margin is missing
    "ipo": 25.0,  # (0 - 1 / 0.2)^2
    "exo": -math.log(2) - math.log(SMOOTHING * (1 - SMOOTHING)) / 2,  # KL of (1/2, 1/2) from (1 - e, e)
    "discopop": (math.log(2) + 1) / 2,  # half logistic, half exponential: exp(0) = 1
    "sppo": 50.0,  # each answer is 1 / 0.2 = 5 nats from its target: 2 * 25
    "nca": 2 * math.log(2),  # (1 + 1/2 + 1/2) ln 2
    "bco": 2 * math.log(2),  # ln 2 for each answer
    "apo_zero": 1.0,  # two halves
    "apo_down": 1.0,  # two halves
    "aot": math.log(2),
    "aot_unpaired": math.log(2),
    "kto_pair": 0.5,  # the mean of two halves
    "simpo": math.log(1 + math.e),  # -log sigmoid(0 - gamma), gamma = 1
    "orpo": NLL + 0.1 * math.log(2),  # imitation, and equal odds
    "sft": NLL,
    "mpo": 0.8 * math.log(2) + 0.2 * 2 * math.log(2) + NLL,
}


def untouched() -> PairLogps:
    """Three pairs of equally likely answers (per token), under a policy that is the reference."""
    tokens = torch.tensor([2, 4, 8])
    logps = -NLL * tokens.double()
    return PairLogps(logps, logps, logps, logps, tokens, tokens)


@pytest.mark.parametrize("name", LOSSES)
def test_before_the_first_step_the_loss_is_what_its_formula_says(name: str) -> None:
    losses = objective(f"loss={name}")(untouched())
    torch.testing.assert_close(losses, torch.full((3,), START[name], dtype=torch.float64))


@pytest.mark.parametrize("name", LOSSES)
def test_the_first_gradient_favours_the_chosen_answer(name: str) -> None:
    chosen, rejected = gradient(objective(f"loss={name}"), untouched()).chunk(2)
    if name == "apo_down":  # both go down, the rejected one further: s'(0) (1 - 1) = 0 for the chosen one
        torch.testing.assert_close(chosen, torch.zeros_like(chosen))
    elif name == "nca":  # -1/2 + 1/4 of beta for the chosen one
        torch.testing.assert_close(chosen, torch.full_like(chosen, -0.1 * 0.25 / 3))
    elif name == "discopop":
        # d/dm of (1 - s) ln(1 + e^-m) + s e^-m at 0, where s = 1/2 and s' = 1 / (4 tau) = 5: the wrong way, as published.
        slope = 5 * (1 - math.log(2)) - 1 / 4 - 1 / 2
        torch.testing.assert_close(chosen, torch.full_like(chosen, 0.1 * slope / 3))
        torch.testing.assert_close(rejected, -chosen)
        return
    else:
        assert (chosen < 0).all()
    assert (rejected == 0).all() if name == "sft" else (rejected > 0).all()


@pytest.fixture(scope="module", params=[None, "sum", "mean"], ids=["as shipped", "all summed", "all averaged"])
def steps(request: pytest.FixtureRequest) -> dict[str, tuple[Tensor, Tensor]]:
    """Mean loss and gradient of every option on one random step of 8 pairs; also where none differs by averaging alone."""
    found = {}
    for name in LOSSES:
        made = objective(f"loss={name}", **({} if request.param is None else {"average": request.param}))
        _, pairs = random_step(made)
        found[name] = made(pairs).mean(), gradient(made, pairs)
    return found


@pytest.mark.parametrize("name", LOSSES)
def test_it_differs_from_every_other_in_value_and_gradient(name: str, steps: dict[str, tuple[Tensor, Tensor]]) -> None:
    value, grad = steps[name]
    others = {k: v for k, v in steps.items() if k != name}
    assert len(others) == len(LOSSES) - 1
    for other, (other_value, other_grad) in others.items():
        assert (value - other_value).abs() > 1e-4, other
        assert (grad - other_grad).abs().max() > 1e-4 * grad.abs().max(), other
        # Nor is it another one that is only scaled.
        assert torch.cosine_similarity(grad, other_grad, dim=0) < 1 - 1e-6, other


@pytest.mark.parametrize("name", sorted(set(LOSSES) - {"kto_pair"}))  # whose reference points are held fixed
def test_its_gradient_is_that_of_finite_differences(name: str) -> None:
    made = objective(f"loss={name}")
    _, pairs = random_step(made, pairs=3, moved=0.5)

    def value(chosen: Tensor, rejected: Tensor) -> Tensor:
        return made(replace(pairs, chosen_logps=chosen, rejected_logps=rejected))

    leaves = pairs.leaf()
    assert torch.autograd.gradcheck(value, (leaves.chosen_logps, leaves.rejected_logps))


@pytest.mark.parametrize("name", LOSSES)
def test_pairs_are_independent_of_each_other_unless_the_loss_is_marked(name: str) -> None:
    made = objective(f"loss={name}")
    layout, pairs = random_step(made)
    assert len(layout) == 8
    alone = torch.cat([made(part(pairs, slice(i, i + 1))) for i in range(8)])
    together = made(pairs)
    assert together.shape == (8,)
    assert made.coupled == (name in COUPLED)
    assert torch.allclose(alone, together, rtol=1e-12) == (name not in COUPLED)


@pytest.mark.parametrize("name", LOSSES)
def test_it_needs_a_reference_exactly_if_the_reference_changes_it(name: str) -> None:
    made = objective(f"loss={name}")
    _, pairs = random_step(made)
    changed = replace(pairs, ref_chosen_logps=pairs.ref_chosen_logps + 1.0)
    assert made.needs_reference == (name not in WITHOUT_REFERENCE)
    assert made.needs_reference == ((made(pairs) - made(changed)).abs().max().item() > 1e-6)
    assert not made.needs_self


@pytest.mark.parametrize("name", sorted(set(LOSSES) - {"sft"}))
def test_beta_changes_it(name: str) -> None:
    made = objective(f"loss={name}")
    _, pairs = random_step(made)
    other = objective(f"loss={name}", beta=0.37)
    assert other.beta == 0.37
    assert (made(pairs).mean() - other(pairs).mean()).abs() > 1e-4
    assert (gradient(made, pairs) - gradient(other, pairs)).abs().max() > 1e-4


@pytest.mark.parametrize(
    ("word", "name"),
    [
        ("loss.label_smoothing=0.2", "cdpo"),
        ("loss.label_smoothing=0.2", "robust"),
        ("loss.label_smoothing=0.2", "exo"),
        ("loss.tau=1", "discopop"),
        ("loss.gamma=0", "simpo"),
        ("loss.average=mean", "dpo"),
        ("loss.average=sum", "ipo"),
        ("loss.average=sum", "sft"),
        ("loss.terms.sft.weight=0.5", "mpo"),
        ("loss.terms.bco.beta=0.5", "mpo"),
        ("+loss.terms.dpo.average=mean", "mpo"),
        ("~loss.terms.bco", "mpo"),
        ("+loss.terms.nca={_target_: dpo_lab.preference.losses.nca_loss, weight: 0.3}", "mpo"),
    ],
)
def test_a_hyper_parameter_changes_value_and_gradient(word: str, name: str) -> None:
    made, other = objective(f"loss={name}"), objective(f"loss={name}", word)
    _, pairs = random_step(made)
    assert (made(pairs).mean() - other(pairs).mean()).abs() > 1e-3
    assert (gradient(made, pairs) - gradient(other, pairs)).abs().max() > 1e-3 * gradient(made, pairs).abs().max()


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_far_from_the_reference_value_and_gradient_are_numbers(name: str, sign: float) -> None:
    """2000 nats apart in fp32, where exp(beta * 2000) is infinite."""
    made = objective(f"loss={name}")
    tokens = torch.tensor([100])
    far = PairLogps(
        chosen_logps=torch.tensor([-1200.0 + 1000 * sign]),
        rejected_logps=torch.tensor([-1200.0 - 1000 * sign]),
        ref_chosen_logps=torch.tensor([-1200.0]),
        ref_rejected_logps=torch.tensor([-1200.0]),
        chosen_tokens=tokens,
        rejected_tokens=tokens,
    )
    assert made(far).isfinite().all()
    assert gradient(made, far).isfinite().all()


# -- a sum of losses ----------------------------------------------------------------------------------------------


def test_a_sum_is_the_weighted_sum_of_the_losses_themselves() -> None:
    mpo = objective("loss=mpo")
    _, pairs = random_step(mpo)
    parts = {name: objective(f"loss={name}")(pairs) for name in ("dpo", "bco", "sft")}
    torch.testing.assert_close(mpo(pairs), 0.8 * parts["dpo"] + 0.2 * parts["bco"] + parts["sft"])


def test_a_term_takes_beta_and_average_of_the_whole_unless_it_has_its_own() -> None:
    words = ["loss=mpo", "loss.beta=0.3", "loss.average=mean", "loss.terms.bco.beta=0.7"]
    words += ["+loss.terms.bco.average=sum"]
    dpo, bco, sft = objective(*words).terms
    assert (dpo.hyper, dpo.average) == ({"beta": 0.3}, "mean")
    assert (bco.hyper, bco.average) == ({"beta": 0.7}, "sum")
    assert (sft.hyper, sft.average) == ({}, "mean")


def test_a_sum_is_coupled_and_needs_a_reference_if_a_term_does() -> None:
    aot = "+loss.terms.aot={_target_: dpo_lab.preference.losses.aot_loss, weight: 0.5}"
    assert objective("loss=mpo", aot).coupled
    imitation = objective("loss=mpo", "~loss.terms.dpo", "~loss.terms.bco", "loss.beta=null")
    assert not imitation.needs_reference
    assert isinstance(imitation, Objective)


def part(pairs: PairLogps, rows: slice) -> PairLogps:
    return pairs.each(lambda _, value: value[rows])
