"""The loss group: its ranges, what goes with what, sums of losses, and functions of one's own."""

import pytest
from composing import composed, tree_of

from dpo_lab.config import cli
from dpo_lab.config.check import check
from dpo_lab.config.identity import run_id
from dpo_lab.config.paths import CONF_DIR
from dpo_lab.config.rules.loss import OF_A_DIFFERENCE, OURS, RANGES, needs_reference
from dpo_lab.config.target import signature

LOSSES = sorted(file.stem for file in (CONF_DIR / "loss").glob("*.yaml"))
Case = tuple[list[str], list[str]]

RANGE: list[Case] = [
    (["loss=cdpo", "loss.label_smoothing=0.5"], ["loss.label_smoothing=0.5: must be at least 0 and below 0.5"]),
    (["loss=cdpo", "loss.label_smoothing=-0.1"], ["must be at least 0"]),
    (["loss=robust", "loss.label_smoothing=0.5"], ["loss.label_smoothing=0.5: must be at least 0 and below 0.5"]),
    (["loss=exo", "loss.label_smoothing=0"], ["loss.label_smoothing=0: must be above 0"]),
    (["loss=discopop", "loss.tau=0"], ["loss.tau=0: must be greater than 0"]),
    (["loss=simpo", "loss.gamma=-1"], ["loss.gamma=-1: must be at least 0"]),
    (["loss=simpo", "loss.gamma=big"], ["loss.gamma=big: must be a number"]),
    (["loss=simpo", "loss.gamma=true"], ["loss.gamma=True: must be a number"]),
    (["loss.ld_alpha=1.5"], ["loss.ld_alpha=1.5: must be at most 1"]),
    (["loss.sft_weight=-1"], ["loss.sft_weight=-1: must be at least 0"]),
    (["loss.f_divergence=jeffreys"], ["must be one of reverse_kl, forward_kl, js, alpha"]),
    (["loss.f_divergence=alpha", "loss.f_alpha=2"], ["loss.f_alpha=2: must be at most 1"]),
    (["loss=mpo", "loss.terms.bco.weight=-1"], ["loss.terms.bco.weight=-1: must be at least 0"]),
]
NO_SENSE: list[Case] = [
    (["loss=dpo", "+loss.label_smoothing=0.1"], ["dpo_loss takes no label_smoothing"]),
    (["loss.label_smoothing=0.1"], ["not a key of loss=dpo", "loss=cdpo", "loss=robust"]),
    (["loss=sft", "loss.beta=0.1"], ["sft_loss takes no beta", "loss.beta=null"]),
    (["loss=sft", "loss.sft_weight=0.1"], ["sft_loss imitates the chosen answers already"]),
    (["loss=orpo", "loss.sft_weight=0.1"], ["orpo_loss imitates the chosen answers already"]),
    (["loss=mpo", "loss.sft_weight=0.1"], ["imitation is a term there", "loss.terms.sft.weight"]),
    (["loss=simpo", "loss.ld_alpha=0.5"], ["simpo_loss has no log-ratios", "Drop it"]),
    (["loss=sft", "loss.f_divergence=js"], ["sft_loss has no reference to diverge from"]),
    (["loss=bco", "loss.f_divergence=js"], ["bco_loss looks at more than the difference", "dpo_loss, cdpo_loss"]),
    (["loss=aot", "loss.f_divergence=js"], ["aot_loss looks at more than the difference"]),
    (["loss=mpo", "loss.f_divergence=js"], ["bco_loss looks at more than the difference"]),
    (["loss=aot", "loss.wpo=true"], ["loss.wpo=true weighs pairs", "aot_loss"]),
    (["loss=kto_pair", "loss.wpo=true"], ["loss.wpo=true weighs pairs", "kto_pair_loss"]),
    (
        ["loss=mpo", "+loss.terms.x={_target_: dpo_lab.preference.losses.aot_unpaired_loss, weight: 1}", "loss.wpo=true"],
        ["loss.wpo=true weighs pairs", "aot_unpaired_loss"],
    ),
    (["loss.f_alpha=0.3"], ["loss.f_alpha=0.3 has no effect with loss.f_divergence=reverse_kl"]),
    (["loss.f_divergence=js", "loss.f_alpha=0.3"], ["has no effect with loss.f_divergence=js"]),
    (["loss._target_=dpo_lab.preference.losses.mpo_loss"], ["loss.terms is empty", "loss=mpo"]),
    (["loss=mpo", "loss._target_=dpo_lab.preference.losses.dpo_loss"], ["loss.terms has no effect", "dpo_loss combines no losses"]),
    (["loss=mpo", "+loss.terms.nca._target_=dpo_lab.preference.losses.nca_loss"], ["loss.terms.nca.weight is missing"]),
    (["loss=mpo", "+loss.terms.x={_target_: dpo_lab.preference.losses.ncaa_loss, weight: 1}"], ["loss.terms.x._target_", "nca_loss"]),
    (["loss=mpo", "+loss.terms.x={_target_: dpo_lab.preference.losses.cdpo_loss, weight: 1}"], ["loss.terms.x.label_smoothing is missing"]),
    (["loss=mpo", "+loss.terms.dpo.gamma=1"], ["loss.terms.dpo.gamma: ", "dpo_loss takes no gamma"]),
    (["loss=mpo", "+loss.terms.sft.beta=1"], ["loss.terms.sft.beta: ", "sft_loss takes no beta"]),
    (["loss=mpo", "loss.beta=null", "loss.terms.bco.beta=1"], ["loss.terms.dpo.beta is missing"]),
    (["loss=mpo", "loss.terms.dpo.beta=1", "loss.terms.bco.beta=1"], ["loss.beta=0.1 has no effect", "loss.beta=null"]),
    (
        ["loss=mpo", "+loss.terms.x={_target_: dpo_lab.preference.losses.exo_loss, weight: 1, label_smoothing: 0}"],
        ["loss.terms.x.label_smoothing=0: must be above 0"],
    ),
]  # fmt: skip
ACCEPTED = [
    [
        "loss=dpo",
        "loss.sft_weight=0.2",
        "loss.ld_alpha=0.5",
        "loss.wpo=true",
        "loss.f_divergence=alpha",
        "loss.f_alpha=0.3",
    ],
    ["loss=ipo", "loss.ld_alpha=0.5", "loss.f_divergence=js"],
    ["loss=aot", "loss.ld_alpha=0", "loss.sft_weight=0.1"],
    ["loss=simpo", "loss.wpo=true", "loss.sft_weight=0.1"],
    ["loss=mpo", "loss.wpo=true", "loss.ld_alpha=0.5", "loss.terms.sft.weight=0.5"],
    ["loss=mpo", "~loss.terms.bco", "loss.f_divergence=forward_kl"],
    ["loss=mpo", "loss.terms.dpo.beta=1", "loss.terms.bco.beta=1", "loss.beta=null"],
    ["--multirun", "loss=dpo,sft,orpo", "seed=0,1"],
    ["--multirun", "loss=mpo", "loss.terms.sft.weight=0,0.5,1"],
]


@pytest.mark.parametrize(("words", "fragments"), RANGE + NO_SENSE, ids=lambda value: " ".join(value)[:80])
def test_what_makes_no_sense_is_refused_with_what_to_do(refused, words, fragments):
    said = refused(*words)
    for fragment in fragments:
        assert fragment in said
    assert "problems" not in said, "one cause, one message"


@pytest.mark.parametrize("words", ACCEPTED, ids=" ".join)
def test_what_makes_sense_is_accepted(words):
    cli.prepare(words)


@pytest.mark.parametrize("name", LOSSES)
def test_every_option_passes_and_says_what_it_is_and_when_to_use_it(name):
    assert len(LOSSES) == 19
    assert not check(composed(f"loss={name}"))
    text = (CONF_DIR / "loss" / f"{name}.yaml").read_text(encoding="utf-8")
    head = [line for line in text.splitlines() if line.startswith("#")]
    assert "arXiv:" in head[0] or "https://" in head[0] or name == "sft"
    assert ": " in head[0]
    keys = [line for line in text.splitlines() if line.startswith(("beta", "gamma", "tau", "label_smoothing"))]
    assert all("#" in line for line in keys)


def test_needing_a_reference_is_read_from_the_source():
    without = [name for name in LOSSES if not needs_reference(composed(f"loss={name}").loss)]
    assert without == ["orpo", "sft", "simpo"]


def test_ranges_and_the_losses_of_a_difference_name_what_there_is():
    for key in RANGES:
        function, _, name = key.partition(".")
        assert name in signature(OURS + function).keyword_only
    for name in OF_A_DIFFERENCE:
        assert signature(OURS + name).positional == ("chosen_logratios", "rejected_logratios")
    assert signature(OURS + "kto_pair_loss").decorators == ("couples_pairs",)


class TestOwnLoss:
    """--config-dir: modifiers and terms with a function of the user's."""

    def test_modifiers_of_log_ratios_work_with_it(self, own):
        words = ["loss.ld_alpha=0.5", "loss.f_divergence=js", "loss.wpo=true", "loss.sft_weight=0.1"]
        cli.prepare(["--config-dir", str(own), "loss=margin", *words])

    def test_but_not_those_that_would_do_nothing(self, own, refused):
        (own / "my_own_losses.py").write_text("def margin_loss(chosen_logps, *, gamma): return -gamma * chosen_logps\n")
        assert "has no log-ratios" in refused("--config-dir", str(own), "loss=margin", "loss.ld_alpha=0.5")
        assert "no reference to diverge" in refused("--config-dir", str(own), "loss=margin", "loss.f_divergence=js")

    def test_marked_as_coupled_it_takes_no_weights_of_pairs(self, own, refused):
        (own / "my_own_losses.py").write_text(
            "from dpo_lab.preference import losses\n\n"
            "@losses.couples_pairs\n"
            "def margin_loss(chosen_logratios, rejected_logratios, *, gamma): return gamma * chosen_logratios.sort().values\n"
        )
        assert "loss.wpo=true weighs pairs" in refused("--config-dir", str(own), "loss=margin", "loss.wpo=true")

    def test_it_can_be_a_term_and_its_source_is_then_part_of_the_runs_identity(self, own, monkeypatch, tmp_path):
        term = "+loss.terms.own={_target_: my_own_losses.margin_loss, weight: 0.5, gamma: 1.0}"
        cli.prepare(["--config-dir", str(own), "loss=mpo", term])
        monkeypatch.syspath_prepend(str(own))
        tree = tree_of("loss=mpo", term, f"cache_dir={tmp_path / 'cache'}")
        before = run_id(tree)
        (own / "my_own_losses.py").write_text("def margin_loss(chosen_logratios, *, gamma): return -chosen_logratios\n")
        assert run_id(tree) != before
