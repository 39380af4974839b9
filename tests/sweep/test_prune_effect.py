"""Pruning that could never act is refused, with what to change; what the door cannot know the sweep says later."""

from typing import get_args

import pytest
import torch

from dpo_lab.config import cli
from dpo_lab.config.rules.sweep import never_prunes
from dpo_lab.config.sweep_schema import Prune
from dpo_lab.preference.metrics import preference_metrics
from dpo_lab.preference.objective import PairLogps
from dpo_lab.sweep.prune import NAMES

METRICS = get_args(Prune.model_fields["metric"].annotation)
ONE = torch.ones(2)


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        cli.read_command(["--multirun", "seed=0,1", "prune=asha", *words])
    assert stopped.value.code == 2
    return " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["optim.max_steps=8"],
            "prune=asha ends no trial of 8 steps: it first judges one at step 50 (trainer.eval_every=50, "
            "prune.first_step=10). Lower trainer.eval_every and prune.first_step.",
        ),
        (["optim.max_steps=50"], "Lower trainer.eval_every."),
        (["optim.max_steps=200", "prune.first_step=200"], "first judges one at step 200"),
        (
            ["optim.max_steps=10", "trainer.eval_every=6", "prune.first_step=7"],
            "trainer.eval_every or prune.first_step.",
        ),
        (["optim.max_steps=8,100"], "of 8 steps: it first judges one at step 50"),
        (["trainer.eval_every=0"], "trainer.eval_every=0 makes none before the end. Raise it."),
        (["data=file", "data.path={pairs}", "data.eval_fraction=0"], "data.eval_fraction=0 holds out no pairs"),
        (["prune.metric=val/accuracy"], "val/rewards/accuracies"),
        (
            ["prune.metric=val/tokens/chosen"],
            "prune.metric=val/tokens/chosen: must be one of",
        ),  # the same in all trials
        (["prune.metric=val/kl", "trainer.kl_pairs=0"], "not measured with trainer.kl_pairs=0"),
        (["prune.metric=val/kl", "loss=orpo"], "not measured without a reference"),
        (["prune.metric=val/logratios/margins", "loss=simpo,dpo"], "not measured without a reference"),
        (["prune.metric=val/logratios/margins", "loss=sft", "reference=none"], "not measured without a reference"),
        (["prune.metric=val/kl", "lora=none"], "Add reference=frozen."),
    ],
)
def test_pruning_without_effect_is_refused(words, said, capsys, tmp_path):
    """Fails where the door lets it pass: no trial would ever be ended, and nobody told."""
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    assert said in refusal(capsys, *(word.format(pairs=tmp_path / "pairs.jsonl") for word in words))


@pytest.mark.parametrize(
    "words",
    [
        [],  # steps that come from epochs: nobody knows how many yet
        ["optim.max_steps=51"],
        ["optim.max_steps=11", "trainer.eval_every=10"],
        ["optim.max_steps=3", "trainer.eval_every=1", "prune.first_step=1"],
        ["prune.metric=val/kl"],
        ["prune.metric=val/kl", "lora=none", "reference=frozen"],
        ["prune.metric=val/kl", "loss=orpo", "reference=cached"],
        ["prune.metric=val/logratios/margins", "loss=simpo", "reference=cached"],
        ["prune.metric=val/rewards/margins", "loss=simpo"],
    ],
)
def test_pruning_that_can_act_passes(words):
    assert cli.read_command(["--multirun", "seed=0,1", "prune=asha", *words]).cfg is not None


def test_without_pruning_its_settings_say_nothing():
    assert cli.read_command(["--multirun", "seed=0,1", "optim.max_steps=8"]).cfg is not None


@pytest.mark.parametrize(
    ("first", "every", "steps", "acts"),
    [
        (10, 50, 50, False),
        (10, 50, 51, True),
        (50, 50, 51, True),
        (51, 50, 100, False),
        (51, 50, 101, True),
        (1, 1, 1, False),
    ],
)
def test_the_first_judgement_must_come_before_the_last_step(first, every, steps, acts):
    prune = Prune(name="median", metric="val/loss", first_step=first, startup=3, factor=3)
    assert (never_prunes(prune, every=every, steps=steps) is None) == acts


def test_every_metric_to_prune_by_is_one_that_an_evaluation_records():
    """Fails where a metric is renamed or misspelt on one side."""
    pairs = PairLogps(**dict.fromkeys(PairLogps.__dataclass_fields__, ONE))
    recorded = {f"val/{name}" for name in preference_metrics(pairs, ONE, beta=0.1)} | {"val/kl"}
    assert METRICS
    assert set(METRICS) <= recorded
    assert NAMES.keys() <= set(METRICS)
