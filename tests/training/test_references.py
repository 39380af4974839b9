"""What the policy is measured against: the adapter it goes on from, another model, another dtype, nothing at all."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import Lab, rows
from tiny import FP32, byte_tokenizer, load_tiny, write_tiny_model

from dpo_lab.data.collate import collate
from dpo_lab.data.prepare import prepare, read_pairs
from dpo_lab.data.templates import Template
from dpo_lab.models.lora import attached_adapter
from dpo_lab.preference.forward import Forward
from dpo_lab.runtime.files import read_json, read_jsonl
from dpo_lab.training.folder import RunFolder

SHORT = ("optim.max_steps=3", "prompts=none")


@pytest.fixture
def other_model(tmp_path: Path) -> Path:
    """The tiny model's shape and tokenizer with other weights."""
    return write_tiny_model(tmp_path / "other", initializer_range=0.3)


def sums(lab: Lab, model: Any, folder: RunFolder) -> list[tuple[float, float]]:
    """Chosen and rejected log-prob sums of the run's held-out pairs under a model, computed anew."""
    config, *_ = lab.job()
    data = prepare(read_pairs(config.data, lab.cache), config.data, Template(byte_tokenizer(), "auto"), lab.cache)
    found = []
    for row in read_jsonl(folder.eval_pairs):
        layout = collate([data.heldout[row["index"]]], [row["index"]])
        with torch.no_grad():
            chosen, rejected = layout.answer_sums(Forward().logps(model, layout)).tolist()
        found.append((chosen, rejected))
    assert len(found) > 3
    return found


def recorded(folder: RunFolder, who: str = "ref_") -> list[tuple[float, float]]:
    return [(row[f"{who}chosen_logps"], row[f"{who}rejected_logps"]) for row in read_jsonl(folder.eval_pairs)]


def close(one: list[tuple[float, float]], two: list[tuple[float, float]], limit: float = 1e-3) -> bool:
    return torch.allclose(torch.tensor(one), torch.tensor(two), atol=limit, rtol=0)


def test_sft_then_dpo_is_measured_against_the_sft_policy(lab: Lab) -> None:
    """Never against the base, however its log-probs are had."""
    sft = lab.train("loss=sft", "optim.max_steps=6")
    facts = read_json(sft.facts)
    assert facts["reference"]["mode"] == "none"
    first, last = rows(sft, "val/")[0], rows(sft, "val/")[-1]
    assert last["val/loss"] < first["val/loss"] - 0.5, "it learnt the chosen answers"
    model = attached_adapter(load_tiny(lab.model, FP32), sft.final)
    policy, base = sums(lab, model, sft), sums(lab, load_tiny(lab.model, FP32), sft)
    assert close(recorded(sft, ""), policy)
    assert not close(policy, base, 1.0)
    for mode in ("auto", "adapter_copy", "frozen"):
        dpo = lab.train("loss=dpo", f"lora.adapter={sft.path}", f"reference.mode={mode}", *SHORT)
        assert close(recorded(dpo), policy), mode
        assert sft.path.name in read_json(dpo.facts)["reference"]["what"]
        start, step = rows(dpo, "val/")[0], rows(dpo, "train/")[0]
        assert start["val/logratios/margins"] == 0.0
        assert step["train/loss"] == pytest.approx(0.693147, abs=1e-5)
    plain = lab.train(f"lora.adapter={sft.final}", *SHORT)
    assert close(recorded(plain), policy), "a folder with an adapter is as good as a run"


@pytest.mark.parametrize("loss", ["simpo", "orpo", "sft"])
def test_a_loss_without_a_reference_runs_without_one(lab: Lab, loss: str, capsys: pytest.CaptureFixture[str]) -> None:
    alone = lab.train(f"loss={loss}", *SHORT)
    assert "reference  none: the loss needs none" in capsys.readouterr().out
    assert not list(lab.cache.rglob("*.sqlite")) or not _logps_in(lab)
    metrics = [*rows(alone, "train/"), *rows(alone, "val/")]
    assert not [key for row in metrics for key in row if "logratios" in key or key.endswith("/kl")]
    assert not [key for row in read_jsonl(alone.eval_pairs) for key in row if key.startswith("ref_")]
    assert len(rows(alone, "val/")) == 2, "before and after"
    measured = lab.train(f"loss={loss}", "reference.mode=cached", *SHORT)
    for ours, theirs in zip(rows(measured, "train/"), rows(alone, "train/"), strict=True):
        assert ours["train/loss"] == pytest.approx(theirs["train/loss"], abs=1e-5), "the reference is only measured"
        assert "train/logratios/margins" in ours
    assert rows(measured, "val/")[0]["val/logratios/margins"] == 0.0


def _logps_in(lab: Lab) -> int:
    import sqlite3

    total = 0
    for file in lab.cache.rglob("*.sqlite"):
        with sqlite3.connect(file) as db:
            total += db.execute("SELECT count(*) FROM logps").fetchone()[0]
    return total


@pytest.mark.parametrize("mode", ["frozen", "cached"])
def test_another_model_is_the_reference(lab: Lab, other_model: Path, mode: str) -> None:
    run = lab.train(f"reference.path={other_model}", f"reference.mode={mode}", *SHORT)
    theirs = load_tiny(other_model, FP32)
    assert close(recorded(run), sums(lab, theirs, run))
    start = rows(run, "val/")[0]
    assert abs(start["val/logratios/margins"]) > 0.1, "the policy does not start from it"
    assert ("val/kl" in start) == (mode == "frozen")
    assert start.get("val/kl", 1.0) > 0.01
    facts = read_json(run.facts)["reference"]
    assert facts["what"] == "the model other"
    assert lab.train(f"reference.path={other_model}", f"reference.mode={mode}", *SHORT).path == run.path


def test_a_run_is_the_reference_of_another(lab: Lab) -> None:
    trained = lab.train()
    run = lab.train(f"reference.path={trained.path}", "data.seed=5", *SHORT)
    assert close(recorded(run), recorded(trained, ""))
    full = lab.train("lora=none", "optim.lr=1e-3")
    against = lab.train(f"reference.path={full.path}", *SHORT)
    assert close(recorded(against), recorded(full, ""))
    adapter = lab.train(f"reference.path={trained.final}", *SHORT)
    assert close(recorded(adapter), recorded(trained, ""))


def test_the_name_of_a_reference_is_no_part_of_the_run_but_its_weights_are(lab: Lab, other_model: Path) -> None:
    named = lab.job(f"reference.path={other_model}")[2]
    moved = shutil.copytree(other_model, other_model.parent / "moved")
    assert lab.job(f"reference.path={moved}")[2] == named
    assert lab.job()[2] != named
    assert lab.job(f"reference.path={other_model}", "reference.quant=8bit")[2] != named
    assert lab.job(f"reference.path={other_model}", "reference.device=cpu")[2] == named


def test_the_reference_has_a_dtype_and_a_quantisation_of_its_own(lab: Lab, tmp_path: Path) -> None:
    wide = Lab(lab.root, write_tiny_model(tmp_path / "wide", hidden_size=64, intermediate_size=128), lab.data)
    same = wide.train("reference.mode=frozen", *SHORT)
    half = wide.train("reference.mode=frozen", "reference.dtype=float16", *SHORT)
    four = wide.train("reference.mode=frozen", "reference.quant=4bit", *SHORT)
    cached = wide.train("reference.quant=4bit", *SHORT)
    exact = torch.tensor(recorded(same))
    gaps = {
        name: (torch.tensor(recorded(run)) - exact).abs().max().item()
        for name, run in {"half": half, "four": four}.items()
    }
    assert 1e-4 < gaps["half"] < 0.5
    assert gaps["four"] > 1e-2
    assert close(recorded(cached), recorded(four))
    margin = rows(half, "val/")[0]["val/logratios/margins"]
    assert 0.0 < abs(margin) < 0.05, "the same model, but for rounding, which is measured and not assumed away"
    assert rows(four, "val/")[0]["val/logratios/margins"] != 0.0
    assert read_json(four.facts)["reference"]["what"] == "the base model, 4-bit"


def test_a_reference_with_another_tokenizer_is_refused(lab: Lab, tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "foreign", initializer_range=0.3)
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["zebra"])
    tokenizer.save_pretrained(folder)
    child = lab.call(f"reference.path={folder}", *SHORT)
    assert child.code == 1, child.text
    assert "has another tokenizer than the policy" in " ".join(child.text.split())


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_an_initialisation_that_changes_the_base_is_measured_against_the_base_before_it(lab: Lab, init: str) -> None:
    base = sums(lab, load_tiny(lab.model, FP32), lab.train(*SHORT))
    runs = {
        mode: lab.train("lora=" + init, f"reference.mode={mode}", *SHORT)
        for mode in ("adapter_off", "cached", "frozen")
    }
    for run in runs.values():
        assert close(recorded(run), base, 1e-4)
        loaded = attached_adapter(load_tiny(lab.model, FP32), run.final)
        assert close(sums(lab, loaded, run), recorded(run, "")), "final/ is for the untouched base"
    for ours, theirs in zip(rows(runs["cached"], "train/"), rows(runs["frozen"], "train/"), strict=True):
        assert ours["train/loss"] == pytest.approx(theirs["train/loss"], abs=1e-4)


def test_full_fine_tuning_with_a_frozen_reference_and_with_none_in_memory(lab: Lab) -> None:
    options = ("lora=none", "optim.lr=1e-3", *SHORT)
    frozen, cached = (lab.train(*options, f"reference.mode={mode}") for mode in ("frozen", "cached"))
    base = sums(lab, load_tiny(lab.model, FP32), frozen)
    assert close(recorded(frozen), base, 1e-4)
    assert close(recorded(cached), base, 1e-4)
    assert "val/kl" in rows(frozen, "val/")[-1]
    assert "val/kl" not in rows(cached, "val/")[-1]
    for ours, theirs in zip(rows(cached, "train/"), rows(frozen, "train/"), strict=True):
        assert ours["train/loss"] == pytest.approx(theirs["train/loss"], abs=1e-5)
