"""Whole runs are the same whichever way their passes are computed, and say which way it was."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from composing import composed
from runs import Lab, rows, status
from safetensors.torch import load_file
from tiny import FP32, load_tiny, tiny_policy, write_tiny_model
from torch import Tensor

from dpo_lab.inference.passes import choose_passes
from dpo_lab.preference.forward import Forward
from dpo_lab.runtime.errors import ConfigError
from dpo_lab.runtime.files import read_json, read_jsonl
from dpo_lab.training.folder import RunFolder

PLAIN = ("trainer.forward=padded", "trainer.lean=false")
# Adam divides a gradient by its own size, so that rounding shows in what is updated; the learning rate is 1e-2.
LOSSES, ADAPTER = 1e-3, 2e-2


def beside(lab: Lab, name: str, **changes: Any) -> Lab:
    """Another place for runs, with a cache of its own: the two choices are no part of a run's identity."""
    return replace(lab, root=lab.root / name, output=Path(), children=[], jobs={}, **changes)


def both(lab: Lab, *words: str) -> tuple[RunFolder, RunFolder]:
    """The run by default and by the plain passes, which are one run as far as its identity goes."""
    default, plain = lab.train(*words), beside(lab, "plain").train(*words, *PLAIN)
    assert default.path.name == plain.path.name
    assert facts_of(default)["forward"] == "shared"
    assert facts_of(plain)["forward"] == "padded: trainer.forward=padded"
    assert facts_of(plain)["lean_layers"] == {}
    return default, plain


def facts_of(folder: RunFolder) -> dict[str, Any]:
    return read_json(folder.facts) or {}


def final(folder: RunFolder) -> Tensor:
    """All that was trained, end to end."""
    (file,) = folder.final.glob("*.safetensors")
    return torch.cat([value.flatten().double() for _, value in sorted(load_file(file).items())])


def same_trajectory(one: RunFolder, other: RunFolder) -> None:
    """Losses of each step and of the held-out pairs, sums of log-probs, and what was trained."""
    assert status(one)["status"] == status(other)["status"] == "done"
    ours, theirs = rows(one), rows(other)
    assert [row["step"] for row in ours] == [row["step"] for row in theirs]
    compared = 0
    for row, expected in zip(ours, theirs, strict=True):
        assert row.keys() == expected.keys()
        for name in ("train/loss", "val/loss", "train/grad_norm"):
            if name in expected:
                assert row[name] == pytest.approx(expected[name], rel=LOSSES), (row["step"], name)
                compared += 1
    assert compared >= 6 + 6 + 3
    losses = [row["train/loss"] for row in theirs if "train/loss" in row]
    assert max(losses) > min(losses) + 0.01, "the run learns something"
    for row, expected in zip(read_jsonl(one.eval_pairs), read_jsonl(other.eval_pairs), strict=True):
        for name, value in expected.items():
            if name.endswith("logps"):
                assert row[name] == pytest.approx(value, rel=LOSSES)
    gap = (final(one) - final(other)).norm() / final(other).norm()
    assert gap < ADAPTER


SAME: dict[str, tuple[str, ...]] = {
    "dpo": (),
    "ipo": ("loss=ipo",),
    "a coupled loss in micro-batches": ("loss=aot", "optim.batch_size=6", "trainer.microbatch_tokens=150"),
    "gradient checkpointing": ("model.gradient_checkpointing=true",),
    "the reference in every step": ("reference=adapter_off",),
    "weights of the pairs from the model's own statistics": ("loss.wpo=true",),
    "full fine-tuning": ("lora=none", "reference=frozen", "optim.lr=1e-3"),
}


@pytest.mark.parametrize("name", SAME)
def test_a_run_is_the_same_by_default_and_by_the_plain_passes(name: str, lab: Lab) -> None:
    default, plain = both(lab, *SAME[name])
    if name != "full fine-tuning":
        assert facts_of(default)["lean_layers"] == {"linear": 14, "mlp": 2, "norm": 5}
    same_trajectory(default, plain)


@pytest.mark.parametrize("word", PLAIN)
def test_each_of_the_two_choices_alone_changes_nothing(word: str, lab: Lab) -> None:
    same_trajectory(lab.train(word), beside(lab, "plain").train(*PLAIN))


@pytest.mark.parametrize("quant", ["4bit", "8bit"])
def test_a_quantised_run_is_the_same(quant: str, lab: Lab, tiny_wide: Path) -> None:
    same_trajectory(*both(beside(lab, "wide", model=tiny_wide), f"quant={quant}"))


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "smollm3"])
def test_a_run_of_another_family_is_the_same(family: str, lab: Lab, tmp_path: Path) -> None:
    same_trajectory(*both(beside(lab, "other", model=write_tiny_model(tmp_path / family, family))))


def test_a_ranked_list_is_the_same(lab: Lab, tmp_path: Path) -> None:
    """Its pairs have one prompt, which lies in the pack once."""
    answers = ["Because it is so.", "It is so, I think.", "No", "No!!!!"]
    lines = [
        json.dumps({"prompt": f"Question {i}: " + "why? " * (1 + i % 3), "chosen": answers[a], "rejected": answers[b]})
        for i in range(8)
        for a in range(4)
        for b in range(a + 1, 4)
    ]
    data = tmp_path / "ranked.jsonl"
    data.write_text("\n".join(lines), encoding="utf-8")
    same_trajectory(*both(beside(lab, "ranked", data=data), "optim.batch_size=12"))


def test_with_dropout_both_ways_learn(lab: Lab) -> None:
    """Other masks fall on other tokens, so the trajectories differ; the start does not."""
    starts = []
    for folder in both(lab, "lora.dropout=0.3"):
        found = rows(folder, "train/")
        assert status(folder)["status"] == "done"
        assert all(math.isfinite(row["train/loss"]) for row in found)
        assert rows(folder, "val/")[-1]["val/loss"] < math.log(2)
        starts.append(rows(folder, "val/")[0]["val/loss"])
    assert starts == pytest.approx([math.log(2)] * 2, abs=1e-5)


# -- models that can't ----------------------------------------------------------------------------------------------

WINDOW: dict[str, Any] = {"sliding_window": 16}


def test_a_model_that_cannot_share_is_padded_and_the_run_says_why(lab: Lab, tmp_path: Path) -> None:
    other = beside(lab, "other", model=write_tiny_model(tmp_path / "mistral", "mistral", **WINDOW))
    folder = other.train("optim.max_steps=1")
    said = facts_of(folder)["forward"]
    assert said.startswith("padded: its attention slides over 16 tokens")


def test_asking_for_what_a_model_cannot_do_is_an_error_that_says_what_to_do(lab: Lab, tmp_path: Path) -> None:
    other = beside(lab, "other", model=write_tiny_model(tmp_path / "mistral", "mistral", **WINDOW))
    with pytest.raises(ConfigError) as e:
        other.train("trainer.forward=shared")
    assert "trainer.forward=shared does not go with this model: its attention slides over 16 tokens" in str(e.value)
    assert "Use trainer.forward=auto." in str(e.value)


def test_eager_attention_is_kept_where_it_is_asked_for(lab: Lab) -> None:
    folder = lab.train("model.attn=eager", "optim.max_steps=1")
    assert facts_of(folder)["forward"] == "padded: model.attn=eager computes attention by itself"


# -- the choice -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("forward", "lean", "said"),
    [
        ("auto", True, "shared"),
        ("shared", False, "shared"),
        ("padded", True, "padded: trainer.forward=padded"),
        ("padded", False, "padded: trainer.forward=padded"),
    ],
)
def test_what_is_chosen_is_what_the_model_does(forward: str, lean: bool, said: str, tiny_model: Path) -> None:
    policy = tiny_policy(tiny_model)
    words = ("model=hf", "model.path=x", "data=file", "data.path=x")
    config = composed(*words, f"trainer.forward={forward}", f"trainer.lean={str(lean).lower()}")
    passes = choose_passes(config, policy, None)
    assert str(passes) == said
    assert passes.shared == Forward().shares(policy) == (said == "shared")
    assert (passes.why is None) == passes.shared
    assert passes.lean == ({"linear": 14, "mlp": 2, "norm": 5} if lean else {})


def test_a_reference_of_its_own_is_computed_as_the_policy_is(tiny_model: Path) -> None:
    reference = load_tiny(tiny_model, FP32)
    config = composed("model=hf", "model.path=x", "data=file", "data.path=x")
    passes = choose_passes(config, reference, None)
    assert passes.shared
    assert passes.lean == {"mlp": 2, "norm": 5}
