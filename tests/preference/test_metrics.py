"""Metrics of two pairs computed by hand, and what a loss is given."""

import pytest
import torch
from torch import Tensor

from dpo_lab.preference.layout import Layout
from dpo_lab.preference.losses import dpo_loss, ipo_loss
from dpo_lab.preference.metrics import pair_records, preference_metrics
from dpo_lab.preference.objective import Objective, PairLogps

TRL = {
    *("rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins"),
    *("logps/chosen", "logps/rejected"),
}
OURS = {"loss", "logratios/chosen", "logratios/rejected", "logratios/margins", "tokens/chosen", "tokens/rejected"}


@pytest.fixture
def pairs() -> PairLogps:
    """Log-ratios: chosen 2 and -1, rejected 1 and 0.5."""
    return PairLogps(
        chosen_logps=torch.tensor([-10.0, -21.0]),
        rejected_logps=torch.tensor([-29.0, -39.5]),
        ref_chosen_logps=torch.tensor([-12.0, -20.0]),
        ref_rejected_logps=torch.tensor([-30.0, -40.0]),
        chosen_tokens=torch.tensor([4, 5]),
        rejected_tokens=torch.tensor([10, 20]),
    )


def test_each_metric_is_the_mean_that_its_name_says(pairs: PairLogps) -> None:
    metrics = {k: v.item() for k, v in preference_metrics(pairs, torch.tensor([0.25, 0.75]), beta=0.5).items()}
    assert metrics == {
        "loss": 0.5,
        "rewards/chosen": 0.25,
        "rewards/rejected": 0.375,
        "rewards/accuracies": 0.5,
        "rewards/margins": -0.125,
        "logps/chosen": -15.5,
        "logps/rejected": -34.25,
        "logratios/chosen": 0.5,
        "logratios/rejected": 0.75,
        "logratios/margins": -0.25,
        "tokens/chosen": 4.5,
        "tokens/rejected": 15.0,
    }
    assert set(metrics) == TRL | OURS


def test_log_ratios_and_accuracy_do_not_depend_on_beta_and_rewards_do(pairs: PairLogps) -> None:
    small, large = (preference_metrics(pairs, torch.zeros(2), beta=beta) for beta in (0.1, 1.0))
    for name in small:
        scale = 10.0 if name.startswith("rewards/") and name != "rewards/accuracies" else 1.0
        torch.testing.assert_close(small[name] * scale, large[name])


def test_a_tie_is_no_success_so_an_untouched_policy_has_accuracy_0(pairs: PairLogps) -> None:
    same = PairLogps(
        pairs.chosen_logps,
        pairs.rejected_logps,
        pairs.chosen_logps,
        pairs.rejected_logps,
        pairs.chosen_tokens,
        pairs.rejected_tokens,
    )
    metrics = preference_metrics(same, torch.zeros(2), beta=0.1)
    assert metrics["rewards/accuracies"] == metrics["rewards/margins"] == metrics["logratios/margins"] == 0.0


def test_without_a_reference_rewards_are_of_the_policys_log_probs_and_there_are_no_log_ratios(pairs: PairLogps) -> None:
    metrics = preference_metrics(pairs, torch.tensor([0.25, 0.75]), beta=2.0, reference=False, average="mean")
    # per token: chosen -10/4 and -21/5, rejected -29/10 and -39.5/20; logps/* stay sums
    assert {name: round(value.item(), 6) for name, value in metrics.items()} == {
        "loss": 0.5,
        "rewards/chosen": -6.7,
        "rewards/rejected": -4.875,
        "rewards/accuracies": 0.5,
        "rewards/margins": -1.825,
        "logps/chosen": -15.5,
        "logps/rejected": -34.25,
        "tokens/chosen": 4.5,
        "tokens/rejected": 15.0,
    }
    summed = preference_metrics(pairs, torch.zeros(2), beta=2.0, reference=False)
    assert summed["rewards/chosen"] == -31.0
    record = pair_records(pairs, torch.zeros(2), reference=False)[0]
    assert record.keys() == {"chosen_logps", "rejected_logps", "chosen_tokens", "rejected_tokens", "loss"}


def test_a_record_holds_the_four_sums_the_two_counts_and_the_loss_of_its_pair(pairs: PairLogps) -> None:
    assert pair_records(pairs, torch.tensor([0.25, 0.75]))[1] == {
        "chosen_logps": -21.0,
        "rejected_logps": -39.5,
        "ref_chosen_logps": -20.0,
        "ref_rejected_logps": -40.0,
        "chosen_tokens": 5,
        "rejected_tokens": 20,
        "loss": 0.75,
    }


def test_per_token_values_are_summed_over_the_right_answers() -> None:
    layout = Layout(torch.arange(10), ((3, 2, 1), (1, 1, 2)))
    per_token, ref = torch.tensor([1.0, 2, 4, 8, 16, 32]), torch.tensor([0.0, 0, 1, 1, 1, 1])
    made = PairLogps.of(layout, per_token, ref)
    assert (made.chosen_logps.tolist(), made.rejected_logps.tolist()) == ([3, 8], [4, 48])
    assert (made.ref_chosen_logps.tolist(), made.ref_rejected_logps.tolist()) == ([0, 1], [1, 2])
    assert (made.chosen_tokens.tolist(), made.rejected_tokens.tolist()) == ([2, 1], [1, 2])


def test_joined_micro_batches_keep_their_order_and_carry_no_gradient(pairs: PairLogps) -> None:
    live = pairs.each(lambda _, value: value.clone().float().requires_grad_())
    joined = PairLogps.join([live, pairs])
    assert joined.chosen_logps.tolist() == [-10, -21, -10, -21]
    assert joined.rejected_tokens.tolist() == [10, 20, 10, 20]
    assert not any(t.requires_grad for t in vars(joined).values() if t is not None)
    assert joined.weights is None


def test_sum_and_mean_are_two_losses(pairs: PairLogps) -> None:
    # per token: chosen 2/4 and -1/5, rejected 1/10 and 0.5/20; target margin 1 / (2 * 0.5) = 1
    summed = Objective(ipo_loss, average="sum", beta=0.5)(pairs)
    mean = Objective(ipo_loss, average="mean", beta=0.5)(pairs)
    torch.testing.assert_close(summed, torch.tensor([0.0, 6.25]))
    torch.testing.assert_close(mean, torch.tensor([(0.4 - 1) ** 2, (-0.225 - 1) ** 2]))


def test_averaging_divides_policy_and_reference_by_their_own_answers_tokens(pairs: PairLogps) -> None:
    averaged = pairs.averaged()
    expected = {
        "chosen_logps": [-2.5, -4.2],
        "rejected_logps": [-2.9, -1.975],
        "ref_chosen_logps": [-3.0, -4.0],
        "ref_rejected_logps": [-3.0, -2.0],
        "chosen_tokens": [4, 5],
        "rejected_tokens": [10, 20],
    }
    for name, values in expected.items():
        assert getattr(averaged, name).tolist() == pytest.approx(values)


def test_a_loss_gets_the_inputs_that_it_names_and_nothing_else(pairs: PairLogps) -> None:
    seen = {}

    def own_loss(rejected_tokens: Tensor, chosen_logps: Tensor, *, gamma: float) -> Tensor:
        seen.update(rejected_tokens=rejected_tokens, chosen_logps=chosen_logps, gamma=gamma)
        return gamma * chosen_logps

    loss = Objective(own_loss, average="sum", beta=None, gamma=2.0)(pairs)
    assert loss.tolist() == [-20.0, -42.0]
    assert seen["rejected_tokens"] is pairs.rejected_tokens
    assert seen["chosen_logps"] is pairs.chosen_logps


def test_beta_reaches_the_loss_and_the_rewards() -> None:
    assert Objective(dpo_loss, average="sum", beta=0.3).hyper == {"beta": 0.3}
    assert Objective(dpo_loss, average="sum", beta=0.3).beta == 0.3
    assert Objective(lambda chosen_logps: chosen_logps, average="sum", beta=None).beta == 1.0
