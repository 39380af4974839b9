"""Several processes train what one process does, with every kind of loss, alone and in a multirun."""

import re
import signal
from pathlib import Path

import pytest
import torch
from runs import Lab, at, rows, send, status, until
from safetensors.torch import load_file

from dpo_lab.runtime.files import read_json
from dpo_lab.training.folder import RunFolder

SHORT = ("optim.batch_size=5", "optim.max_steps=4", "trainer.checkpoint_every=2", "trainer.kl_pairs=0", "prompts=none")


def adapter(folder: RunFolder) -> dict[str, torch.Tensor]:
    return load_file(folder.final / "adapter_model.safetensors")


def furthest(one: RunFolder, two: RunFolder) -> float:
    """Largest difference of two adapters, relative to the largest entry."""
    a, b = adapter(one), adapter(two)
    assert a.keys() == b.keys() != set()
    largest = max(t.abs().max().item() for t in b.values())
    return max((a[name].double() - b[name].double()).abs().max().item() for name in a) / largest


def apart(lab: Lab, name: str) -> Lab:
    """The same pairs and cache, another output folder: how many processes train is no part of a run's id."""
    return Lab(lab.root, lab.model, lab.data, output=lab.root / name)


def test_two_processes_train_the_weights_of_one(lab: Lab) -> None:
    """With a loss that couples pairs, in fp32."""
    options = (*SHORT, "loss=kto_pair")
    one = apart(lab, "one").train(*options)
    two = apart(lab, "two").train(*options, "trainer.devices=2")
    assert read_json(two.facts)["devices"] == 2
    assert two.path.name == one.path.name
    assert furthest(two, one) < 1e-4
    for ours, theirs in zip(rows(two), rows(one), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-5)


def test_a_multirun_of_several_processes_each(lab: Lab) -> None:
    """A loss of each pair and one that couples them, in fp64."""
    options = (*SHORT, "trainer.precision=64", "trainer.accelerator=cpu")
    many = apart(lab, "many")
    child = many.call(*options, "trainer=ddp", "loss=dpo,aot", "sweep.name=both", flags=("--multirun",))
    assert child.code == 0, child.text
    for loss in ("dpo", "aot"):
        one = apart(lab, "one").train(*options, f"loss={loss}")
        two = RunFolder(many.output / "sweeps" / "both" / one.path.name)
        assert (two.path / "rank1.log").is_file()
        assert furthest(two, one) < 1e-9
        for ours, theirs in zip(rows(two), rows(one), strict=True):
            assert ours == pytest.approx(theirs, rel=1e-9, abs=1e-9)


def test_the_first_ranks_own_failure_is_its_own(lab: Lab) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("boom")

    child = lab.call(
        *SHORT, "trainer.devices=2", first=at("dpo_lab.training.callbacks:RunCallback._check_collapse", fail)
    )
    assert "boom" in child.text
    assert "Rank 1 failed" not in child.text
    assert "boom" in status(lab.folder(*SHORT, "trainer.devices=2"))["reason"]


def test_killed_ranks_leave_nobody_behind_and_go_on_together(lab: Lab) -> None:
    options = (*SHORT, "trainer.precision=64")
    straight = apart(lab, "straight").train(*options)
    two = apart(lab, "two")
    die = at("dpo_lab.training.callbacks:RunCallback._check_collapse", send(signal.SIGKILL), call=4)
    child = two.call(*options, "trainer.devices=2", first=die)
    assert child.code == 128 + signal.SIGKILL, child.text
    folder = two.folder(*options, "trainer.devices=2")
    (pid,) = re.findall(r"rank 1 of 2, process (\d+)", (folder.path / "rank1.log").read_text(encoding="utf-8"))
    until(lambda: not Path(f"/proc/{pid}").exists())
    two.train(*options, "trainer.devices=2")
    assert [row["step"] for row in rows(folder, "train/")] == [1, 2, 3, 4]
    assert furthest(folder, straight) < 1e-9


@pytest.mark.parametrize("where", ["parts.load_parts", "ranks.Ranks.from_first"])
def test_a_rank_that_fails_ends_the_run_and_says_why(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, where: str
) -> None:
    """Before the ranks have met, and after."""
    module, _, name = where.partition(".")
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\n"
        "if 'dpo_lab.training.workers' in ' '.join(sys.orig_argv):\n"
        f"    import dpo_lab.training.{module} as module\n"
        "    def lost(*args, **kwargs): raise RuntimeError('lost its way')\n"
        f"    module.{name} = lost\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    child = lab.call(*SHORT, "trainer.devices=2")
    assert child.code == 1, child.text
    assert "Rank 1 failed: RuntimeError: lost its way" in " ".join(child.text.split())
    assert status(lab.folder(*SHORT, "trainer.devices=2"))["status"] == "failed"
