"""How often the numbers of the steps are looked at changes neither them nor what stops a run."""

import json
import math
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import Lab, at, rows, same_result, send, status
from test_step import EXAMPLES, cut, fit, module_of
from tiny import tiny_policy, trained

from dpo_lab.preference.objective import Objective
from dpo_lab.preference.sharing import share
from dpo_lab.runtime.errors import Guarded
from dpo_lab.runtime.files import read_json
from dpo_lab.training.checkpoint import last_checkpoint
from dpo_lab.training.module import PreferenceModule

FUSED = {"_target_": "torch.optim.AdamW", "lr": 1e-2, "fused": True}
LOG = "dpo_lab.training.trackers:MetricsFile.log"


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("fused", [(), ("+optim.fused=true",)], ids=["read at each step", "read in blocks"])
@pytest.mark.parametrize("every", [4, 5, 100])
def test_metrics_are_the_same_whenever_they_are_looked_at(lab: Lab, fused: tuple[str, ...], every: int) -> None:
    """Beside evaluations at steps 3 and 6, and checkpoints at 2, 4 and 6, of 7."""
    options = ("optim.max_steps=7", *fused)
    plain = lab.train(*options)
    other = Lab(lab.root, lab.model, lab.data, output=lab.root / "other").train(*options, f"trainer.log_every={every}")
    assert [row["step"] for row in rows(plain, "train/")] == [1, 2, 3, 4, 5, 6, 7]
    same_result(other, plain)


def test_blocks_of_steps_are_written_as_the_key_says(lab: Lab) -> None:
    options = ("optim.max_steps=7", "trainer.log_every=3", "trainer.eval_every=0", "trainer.checkpoint_every=0")
    folder = lab.folder(*options)

    def look(*_: Any) -> None:
        (lab.root / "seen").write_text((folder.metrics).read_text(encoding="utf-8"), encoding="utf-8")

    # The first row is the evaluation at step 0; the second is written once step 3 is done.
    child = lab.call(*options, first=at("dpo_lab.training.accumulate:Accumulation.of", look, call=4))
    assert child.code == 0, child.text
    seen = [json.loads(line) for line in (lab.root / "seen").read_text(encoding="utf-8").splitlines()]
    assert [row["step"] for row in seen] == [0, 1, 2, 3]
    assert [row["step"] for row in rows(folder, "train/")] == [1, 2, 3, 4, 5, 6, 7]


def test_an_interrupted_run_has_written_all_its_steps(lab: Lab) -> None:
    options = ("optim.max_steps=7", "trainer.log_every=5", "trainer.eval_every=0", "trainer.checkpoint_every=0")
    step = at("dpo_lab.training.accumulate:Accumulation.of", send(signal.SIGTERM), call=3)
    child = lab.call(*options, first=step)
    assert child.code == 143, child.text
    folder = lab.folder(*options)
    assert [row["step"] for row in rows(folder, "train/")] == [1, 2, 3]
    found = last_checkpoint(folder.checkpoints)
    assert found is not None
    assert found[0] == 3
    straight = Lab(lab.root, lab.model, lab.data, output=lab.root / "straight")
    same_result(lab.train(*options), straight.train(*options))


# -- guards ---------------------------------------------------------------------------------------------------------


def poisoned(kind: str, calls: list[int], first: int) -> Objective:
    """DPO without its logarithm, which from a certain step on has a loss, or only a gradient, that is not finite."""

    def loss(chosen_logratios: torch.Tensor, rejected_logratios: torch.Tensor) -> torch.Tensor:
        calls.append(len(calls) + 1)
        margin = rejected_logratios - chosen_logratios
        if len(calls) < first:
            return margin
        return margin * math.nan if kind == "loss" else (margin - margin.detach()).abs().sqrt()

    return Objective(loss, average="sum", beta=None)


def steps(n: int) -> list[Any]:
    return [cut([i % len(EXAMPLES), (i + 3) % len(EXAMPLES)]) for i in range(n)]


def ended(tiny_model: Path, kind: str, *, every: int, first: int = 4, **changes: Any) -> tuple[PreferenceModule, str]:
    """A run of 10 steps that comes to a bad one; and what it said."""
    calls: list[int] = []
    policy = tiny_policy(tiny_model, moved=0.3)
    module = module_of(policy, objective=poisoned(kind, calls, first), steps=10, **(FUSED | changes))
    module.log_every = every
    with pytest.raises(Guarded) as caught:
        fit(module, steps(10))
    assert len(calls) == (first if every == 1 or not changes.get("fused", True) else 5 * math.ceil(first / 5))
    return module, str(caught.value)


@pytest.mark.parametrize("kind", ["loss", "gradient"])
@pytest.mark.parametrize("fused", [True, False])
def test_a_bad_step_that_is_read_later_changes_nothing_and_is_told_as_one_that_is_read_at_once(
    kind: str, fused: bool, tiny_model: Path
) -> None:
    """The weights and the optimizer's moments are those of the step before."""
    at_once, said = ended(tiny_model, kind, every=1, fused=fused)
    later, told = ended(tiny_model, kind, every=5, fused=fused)
    assert said == told
    assert f"of step 4 is {'nan' if kind == 'loss' else 'not finite'}" in said
    assert [row.step for row in later.rows] == [1, 2, 3]
    assert [row.metrics for row in later.rows] == [row.metrics for row in at_once.rows]
    ours, theirs = trained(later.policy), trained(at_once.policy)
    assert all(torch.equal(ours[name], p) for name, p in theirs.items())
    assert all(p.isfinite().all() for p in ours.values())
    moments = [m.optimizers().optimizer.state_dict()["state"] for m in (later, at_once)]  # type: ignore[union-attr]
    for one, two in zip(moments[0].values(), moments[1].values(), strict=True):
        assert one.keys() == two.keys()
        assert all(torch.equal(one[key], two[key]) for key in two)
        assert one["step"] == 3


def test_a_first_gradient_of_zero_is_found_in_a_block_too(tiny_model: Path) -> None:
    nothing = Objective(lambda chosen_logps: 0.0 * chosen_logps, average="sum", beta=None)
    module = module_of(tiny_policy(tiny_model), objective=nothing, steps=10, **FUSED)
    module.log_every = 5
    with pytest.raises(Guarded, match="gradient of the first step is zero"):
        fit(module, steps(10))


def sinking(chosen_logratios: torch.Tensor) -> torch.Tensor:
    return chosen_logratios


def test_collapsed_log_probs_stop_a_run_at_the_step_of_their_collapse(lab: Lab) -> None:
    options = ("optim.max_steps=12", "trainer.eval_every=0", "trainer.checkpoint_every=0")
    options = (*options, "trainer.collapse_nats=0.5", f"loss._target_={__name__}.sinking", "loss.beta=null")
    said = []
    for every in (1, 5):
        other = Lab(lab.root, lab.model, lab.data, output=lab.root / f"every{every}")
        with pytest.raises(Guarded, match="log-probs have collapsed"):
            other.train(*options, f"trainer.log_every={every}")
        folder = other.folder(*options, f"trainer.log_every={every}")
        said.append((status(folder)["reason"], rows(folder, "train/")))
        assert read_json(folder.path / "status.json")["status"] == "failed"  # type: ignore[index]
    assert said[0] == said[1]


# -- transfers ------------------------------------------------------------------------------------------------------


def reads(module: PreferenceModule, monkeypatch: pytest.MonkeyPatch, n: int) -> int:
    """How often values were taken from tensors in n steps."""
    taken = []
    for name in ("item", "tolist", "__bool__", "__float__", "__int__"):
        original = getattr(torch.Tensor, name)

        def counted(self: torch.Tensor, original: Any = original) -> Any:
            taken.append(original.__name__)
            return original(self)

        monkeypatch.setattr(torch.Tensor, name, counted)
    inside = module.accumulation.in_memory
    begun: list[int] = []

    def marked(*args: Any) -> Any:
        found = inside(*args)
        begun.append(len(taken))
        return found

    monkeypatch.setattr(module.accumulation, "in_memory", marked)
    fit(module, steps(n))
    return begun[-1] - begun[0]


@pytest.mark.parametrize(("every", "times"), [(1, 8), (4, 2)])
def test_no_micro_batch_and_no_step_waits_but_for_the_numbers_of_a_block(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, every: int, times: int
) -> None:
    """On a CPU nothing waits, but what would wait on a GPU is counted."""
    policy = tiny_policy(tiny_model, moved=0.3)
    assert share(policy, max_length=512) is None  # in padded rows transformers itself waits, where it looks for a mask
    module = module_of(policy, steps=9, **FUSED)
    module.log_every = every
    assert reads(module, monkeypatch, 9) == times  # between the first step's micro-batches and the ninth's


def test_the_parts_of_a_step_have_labels_in_a_profile(tiny_model: Path) -> None:
    """Two micro-batches, one update."""
    module = module_of(tiny_policy(tiny_model, moved=0.3))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        fit(module, [cut([0, 1], [2, 3])])
    times = {event.key: event.count for event in profile.key_averages() if event.key.startswith("dpo_lab/")}
    expected = {"dpo_lab/reference": 2, "dpo_lab/backward": 2, "dpo_lab/optimizer": 1}
    assert {name: times.get(name) for name in expected} == expected
