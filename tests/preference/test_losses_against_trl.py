"""Every loss that TRL has, and every modifier, through TRL's own trainer: value and gradient of each adapter weight."""

from typing import Any

import pytest
import torch
from beside_trl import NO_BREAK, same_adapter, trl_step, trl_trainer
from objectives import LOSSES, objective
from tiny import tiny_examples, tiny_policy, trained, worst_gradient, write_tiny_model
from torch import Tensor

from dpo_lab.data.collate import collate
from dpo_lab.data.types import Message, Pair
from dpo_lab.preference.forward import Forward
from dpo_lab.preference.reference import LiveReference, adapter_off

pytest.importorskip("trl")
pytestmark = pytest.mark.reference

# our name -> TRL's settings; what is not said is `NEUTRAL`
TRL: dict[str, dict[str, Any]] = {
    "dpo": {"loss_types": ["sigmoid"]},
    "ipo": {"loss_types": ["ipo"]},
    "robust": {"loss_types": ["robust"], "label_smoothing": 0.1},
    "hinge": {"loss_types": ["hinge"]},
    "sppo": {"loss_types": ["sppo_hard"]},
    "nca": {"loss_types": ["nca_pair"]},
    "exo": {"loss_types": ["exo_pair"], "label_smoothing": 1e-3},
    "bco": {"loss_types": ["bco_pair"]},
    "apo_zero": {"loss_types": ["apo_zero"]},
    "apo_down": {"loss_types": ["apo_down"]},
    "aot": {"loss_types": ["aot"]},
    "aot_unpaired": {"loss_types": ["aot_unpaired"]},
    "discopop": {"loss_types": ["discopop"]},
    "sft": {"loss_types": ["sft"]},
    "mpo": {"loss_types": ["sigmoid", "bco_pair", "sft"], "loss_weights": [0.8, 0.2, 1.0]},
}
NOT_IN_TRL = {"cdpo", "kto_pair", "orpo", "simpo"}  # see test_losses.py
NEUTRAL = {
    "loss_weights": None, "beta": 0.1, "label_smoothing": 0.0, "ld_alpha": None, "use_weighting": False,
    "f_divergence_type": "reverse_kl", "f_alpha_divergence_coef": 0.5,
}  # fmt: skip
F_DIVERGENCES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "forward_kl": ({"f_divergence": "forward_kl"}, {"f_divergence_type": "forward_kl"}),
    "js": ({"f_divergence": "js"}, {"f_divergence_type": "js_divergence"}),
    "alpha": ({"f_divergence": "alpha"}, {"f_divergence_type": "alpha_divergence"}),
    "alpha 0.8": (
        {"f_divergence": "alpha", "f_alpha": 0.8},
        {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.8},
    ),
}
LD = ({"ld_alpha": 0.4}, {"ld_alpha": 0.4})
WPO = ({"wpo": True}, {"use_weighting": True})
MODIFIED = [
    *[(loss, name, ours, theirs) for loss in ("dpo", "ipo", "hinge", "robust", "exo") for name, (ours, theirs) in F_DIVERGENCES.items()],
    *[(loss, "ld", *LD) for loss in ("dpo", "ipo", "bco", "aot", "sppo", "apo_down")],
    *[(loss, "wpo", *WPO) for loss in ("dpo", "ipo", "nca", "discopop")],
    ("dpo", "averaged", {"average": "mean"}, {"loss_types": ["sigmoid_norm"]}),
    ("dpo", "ld wpo js", {**LD[0], **WPO[0], **F_DIVERGENCES["js"][0]}, {**LD[1], **WPO[1], **F_DIVERGENCES["js"][1]}),
]  # fmt: skip
ALL, ONE = list(range(8)), [4]
# Short answers: TRL sums log-probs in fp32, and that of 50 tokens (270 nats) is only good to 3e-5.
ANSWERS = [
    ("4.", "5"), ("Blue.", "No, not"), ("Hello!", "Hi"), ("4", "Seven"), ("Now.", "We rest"), ("好", "?"), ("C, A, T", "KAT"),
    ("Blue", "Green!"),
]  # fmt: skip
PAIRS = [
    Pair((Message(role="user", content=f"Say {i}"),), chosen, rejected, i + 1)
    for i, (chosen, rejected) in enumerate(ANSWERS)
]
EXAMPLES = tiny_examples(PAIRS, template=NO_BREAK)


@pytest.fixture(scope="module")
def sides(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """TRL's trainer and our policy with the same adapter, moved away from the reference."""
    folder = tmp_path_factory.mktemp("trl")
    model = write_tiny_model(folder / "model", template=NO_BREAK)
    trainer = trl_trainer(
        model, folder / "out", pairs=PAIRS, use_weighting=True
    )  # so that its head gives what the weights need
    policy = tiny_policy(model, moved=0.05)
    same_adapter(trainer.model, policy)
    return trainer, policy


def theirs(trainer: Any, settings: dict[str, Any], rows: list[int]) -> tuple[float, dict[str, Tensor]]:
    for name, value in {**NEUTRAL, **settings}.items():
        assert hasattr(trainer, name)
        setattr(trainer, name, value)
    trainer.loss_weights = trainer.loss_weights or [1.0] * len(trainer.loss_types)
    metrics, gradients = trl_step(trainer, rows)
    return metrics["loss"], gradients


def ours(policy: Any, loss: str, changes: dict[str, Any], rows: list[int]) -> tuple[float, dict[str, Tensor]]:
    made = objective(f"loss={loss}", **changes)
    layout, forward = collate([EXAMPLES[i] for i in rows], rows), Forward()
    policy.zero_grad()
    per_token, log_sum_sq = forward.statistics(policy.train(), layout)
    ref = LiveReference("adapter_off", adapter_off(policy), forward).logps(layout)
    loss_value = made(made.pairs(layout, per_token, ref, log_sum_sq)).mean()
    loss_value.backward()
    return loss_value.item(), {n: p.grad.clone() for n, p in trained(policy).items() if p.grad is not None}


def assert_same(sides: tuple[Any, Any], loss: str, changes: dict[str, Any], settings: dict[str, Any], rows: list[int]):
    trainer, policy = sides
    value, gradients = ours(policy, loss, changes, rows)
    their_value, their_gradients = theirs(trainer, settings, rows)
    assert value == pytest.approx(their_value, rel=1e-5)
    assert len(gradients) == 28
    assert worst_gradient(gradients, their_gradients) < 1e-4  # of each matrix, some of them small
    both = [torch.cat([g[name].flatten() for name in gradients]) for g in (gradients, their_gradients)]
    assert (both[0] - both[1]).norm() < 1e-5 * both[1].norm()
    return value, gradients


def test_every_loss_is_compared_here_or_said_not_to_be_in_trl() -> None:
    assert TRL.keys() | NOT_IN_TRL == set(LOSSES)
    assert not TRL.keys() & NOT_IN_TRL


@pytest.mark.parametrize("loss", TRL)
def test_value_and_gradient_are_trls_at_shipped_values(loss: str, sides: tuple[Any, Any]) -> None:
    # TRL's sft is a mean over the tokens of the batch, ours over the pairs: one number for a single pair.
    assert_same(sides, loss, {}, TRL[loss], ONE if "sft" in TRL[loss]["loss_types"] else ALL)


@pytest.mark.parametrize(
    ("loss", "name", "changes", "settings"), MODIFIED, ids=lambda v: v if isinstance(v, str) else ""
)
def test_modified_losses_are_trls(
    loss: str, name: str, changes: dict[str, Any], settings: dict[str, Any], sides: tuple[Any, Any]
) -> None:
    value, gradients = assert_same(sides, loss, changes, {**TRL[loss], **settings}, ALL)
    plain_value, plain_gradients = ours(sides[1], loss, {}, ALL)
    assert value != pytest.approx(plain_value, rel=1e-4)  # both sides do what was asked, not nothing
    assert worst_gradient(gradients, plain_gradients) > 1e-3


@pytest.mark.parametrize(("changes", "settings"), [({}, {}), WPO, LD], ids=["", "wpo", "ld"])
def test_added_imitation_is_trls_of_a_pair(changes: Any, settings: Any, sides: tuple[Any, Any]) -> None:
    """LLaMA-Factory's pref_ftx and TRL's combination of a loss with `sft`."""
    combined = {"loss_types": ["sigmoid", "sft"], "loss_weights": [1.0, 0.3], **settings}
    for rows in ([0], [4], [7]):
        assert_same(sides, "dpo", {"sft_weight": 0.3, **changes}, combined, rows)


def test_of_several_pairs_imitation_weighs_pairs_alike_and_in_trl_tokens(sides: tuple[Any, Any]) -> None:
    trainer, policy = sides
    value, _ = ours(policy, "sft", {}, ALL)
    each = [theirs(trainer, TRL["sft"], [row])[0] for row in ALL]
    assert value == pytest.approx(sum(each) / 8, rel=1e-5)
    assert theirs(trainer, TRL["sft"], ALL)[0] != pytest.approx(value, rel=1e-4)


def test_of_several_pairs_a_sum_without_imitation_is_trls(sides: tuple[Any, Any]) -> None:
    trainer, policy = sides
    terms = objective("loss=mpo", "~loss.terms.sft")
    layout, forward = collate(EXAMPLES, ALL), Forward()
    with torch.no_grad():
        ref = LiveReference("adapter_off", adapter_off(policy), forward).logps(layout)
        value = terms(terms.pairs(layout, forward.logps(policy, layout), ref)).mean().item()
    combined = {"loss_types": ["sigmoid", "bco_pair"], "loss_weights": [0.8, 0.2]}
    assert value == pytest.approx(theirs(trainer, combined, ALL)[0], rel=1e-5)
