"""`plan=true` answers whether a run will fit, without weights and without training."""

import math

import pytest
from runs import Lab

from dpo_lab.training import plan


def test_a_plan_counts_pairs_steps_and_parameters_and_trains_nothing(
    lab: Lab, capsys: pytest.CaptureFixture[str]
) -> None:
    from dpo_lab.training.run import train

    config, tree, run_dir = lab.job("plan=true", "optim.max_steps=null", "optim.epochs=2")
    numbers = train(config, tree, run_dir)
    real_config, real_tree, real_dir = lab.job("optim.max_steps=1")
    train(real_config, real_tree, real_dir)
    facts = lab.folder("optim.max_steps=1").facts.read_text()
    assert f'"trainable_parameters": {numbers["trainable"]},' in facts
    printed = capsys.readouterr().out
    assert "nothing is trained" in printed
    assert "fits" in printed
    assert not (run_dir / "final").exists()
    assert not (run_dir / "status.json").exists()
    kept = int(printed.split(" kept")[0].split()[-1])
    assert numbers["steps"] == math.floor(kept * 2 / config.optim.batch_size)


def test_a_plan_grows_with_what_is_asked(lab: Lab) -> None:
    from dpo_lab.training.run import train

    small = train(*lab.job("plan=true", "lora.r=2"))
    large = train(*lab.job("plan=true", "lora.r=16"))
    assert large["trainable"] == 8 * small["trainable"]
    assert large["memory_bytes"] > small["memory_bytes"]


def test_a_plan_that_does_not_fit_says_so(
    lab: Lab, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from dpo_lab.training.run import train

    monkeypatch.setattr(plan, "available_bytes", lambda device: 2**20)
    train(*lab.job("plan=true"))
    assert "does NOT fit" in capsys.readouterr().out
