"""What a run writes, and that no question of memory or rhythm changes what it computes."""

import json
import math
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from runs import Lab, rows, status, weights

from dpo_lab.runtime.files import read_json, read_jsonl
from dpo_lab.training.folder import RunFolder

TRAIN = {"loss", "rewards/accuracies", "rewards/margins", "logratios/margins", "logps/chosen", "grad_norm", "lr"}
VAL = {"loss", "rewards/accuracies", "rewards/margins", "logratios/margins", "logps/chosen", "kl"}
FACTS = {
    *("run_id", "versions", "commit", "device", "accelerator", "threads", "precision", "quant", "model", "template"),
    *("reference", "data", "trainable_parameters", "parameters", "microbatch_tokens", "loss", "optim", "steps"),
}


def trajectory(folder: RunFolder, without: str) -> list[float]:
    return [value for row in rows(folder) for name, value in row.items() if not without or not name.endswith(without)]


def distance(one: RunFolder, two: RunFolder, *, without: str = "") -> float:
    """Largest difference of two trajectories, relative where numbers are larger than 1."""
    ours, theirs = trajectory(one, without), trajectory(two, without)
    assert len(ours) == len(theirs) > 50
    return max(abs(a - b) / max(1.0, abs(b)) for a, b in zip(ours, theirs, strict=True))


def test_the_run_folder_holds_what_reports_read(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # with curves
    child = lab.call("optim.max_steps=7")
    assert child.code == 0, child.text
    folder = lab.folder("optim.max_steps=7")
    names = {path.name for path in folder.path.iterdir()}
    assert names >= {".hydra", "facts.json", "metrics.jsonl", "curves.html", "eval_pairs.jsonl", "samples.jsonl"}
    assert names >= {"status.json", "run.lock", "checkpoints", "final", "run.log"}
    assert not [path for path in folder.path.rglob("*") if "=" in path.name or path.suffix == ".tmp"]

    facts: Any = read_json(folder.facts)
    assert facts.keys() >= FACTS
    assert facts["run_id"] == folder.path.name
    assert facts["reference"]["mode"] == "cached"
    assert 0 <= facts["reference"]["start_gap"] < 1e-5
    assert facts["data"]["train"]["kept"] == 17
    assert facts["data"]["heldout"]["kept"] == 7
    assert facts["trainable_parameters"] == 8192

    train, val = rows(folder, "train/"), rows(folder, "val/")
    assert [row["step"] for row in train] == [1, 2, 3, 4, 5, 6, 7]
    assert [row["step"] for row in val] == [0, 3, 6, 7]
    assert all(row.keys() >= {f"train/{name}" for name in TRAIN} for row in train)
    assert all(row.keys() >= {f"val/{name}" for name in VAL} for row in val)
    assert val[0]["val/loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert val[0]["val/kl"] == val[0]["val/rewards/margins"] == 0.0
    assert val[-1]["val/kl"] > 1e-3

    pairs = read_jsonl(folder.eval_pairs)
    assert [row["index"] for row in pairs] == list(range(7))
    assert {row["step"] for row in pairs} == {7}
    margins = [
        row["chosen_logps"] - row["ref_chosen_logps"] - row["rejected_logps"] + row["ref_rejected_logps"]
        for row in pairs
    ]
    assert sum(margins) / 7 == pytest.approx(val[-1]["val/logratios/margins"], rel=1e-5)
    assert sum(m > 0 for m in margins) / 7 == pytest.approx(val[-1]["val/rewards/accuracies"])
    (sample,) = read_jsonl(folder.samples)
    assert sample.keys() == {"step", "prompt", "reference", "policy"}
    assert status(folder)["status"] == "done"
    assert status(folder)["metrics"]["val/loss"] == val[-1]["val/loss"]
    assert "plotly" in folder.path.joinpath("curves.html").read_text(encoding="utf-8")


def test_micro_batches_and_recomputed_activations_change_nothing(lab: Lab) -> None:
    options = ("optim.batch_size=6", "optim.max_steps=5")
    whole = lab.train(*options, "trainer.microbatch_tokens=100000")
    small = Lab(lab.root / "small", lab.model, lab.data)
    pieces = small.train(*options, "trainer.microbatch_tokens=1")
    assert small.folder(*options).path.name == whole.path.name, "a question of memory is no part of a run's id"
    assert distance(pieces, whole) < 1e-5
    recomputed = lab.train(*options, "trainer.microbatch_tokens=100000", "model.gradient_checkpointing=true")
    assert recomputed.path.name != whole.path.name
    assert distance(recomputed, whole) < 1e-5


@pytest.mark.parametrize(("precision", "limit"), [("32", 1e-5), ("64", 1e-9)])
def test_every_way_to_have_the_reference_gives_the_same_run(lab: Lab, precision: str, limit: float) -> None:
    options = (f"trainer.precision={precision}",)
    modes = {mode: lab.train(*options, f"reference.mode={mode}") for mode in ("adapter_off", "frozen", "cached")}
    assert {mode: read_json(folder.facts)["reference"]["mode"] for mode, folder in modes.items()} == {
        m: m for m in modes
    }
    assert distance(modes["frozen"], modes["adapter_off"]) < limit
    # The cache keeps fp32: beside an fp64 policy log-ratios of 1e-7 at the start make accuracies that mean nothing.
    rounding = "accuracies" if precision == "64" else ""
    assert distance(modes["cached"], modes["adapter_off"], without=rounding) < max(limit, 1e-6)


def test_the_cache_is_shared_by_runs_that_differ_in_what_the_reference_does_not_depend_on(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, tiny_qwen: Path
) -> None:
    from dpo_lab.inference import reference_pass

    computed = [0]  # pairs, a number a run
    original = reference_pass.fill_cache

    def counted(cache: Any, layouts: Any, *args: Any, **kwargs: Any) -> None:
        computed[-1] += sum(len(layout) for layout in layouts)
        original(cache, layouts, *args, **kwargs)

    monkeypatch.setattr(reference_pass, "fill_cache", counted)
    short = ("optim.max_steps=9", "trainer.kl_pairs=0", "prompts=none")
    for more in ([], ["loss.beta=0.5"], ["optim.lr=1e-3", "seed=4"], ["lora=r16", "loss=ipo"]):
        lab.train(*short, *more)
        computed.append(0)
    for more in (["quant=8bit"], ["trainer.precision=64"], ["template=qwen"]):
        lab.train(*short, *more)
        computed.append(0)
    other = Lab(lab.root, tiny_qwen, lab.data)
    other.train(*short)
    assert computed == [24, 0, 0, 0, 24, 24, 24, 24]
    with_rows = 0
    for file in lab.cache.rglob("*.sqlite"):
        with sqlite3.connect(file) as db:
            with_rows += db.execute("SELECT count(*) FROM logps").fetchone()[0] > 0
    assert with_rows == 4


@pytest.mark.parametrize("bits", ["4bit", "8bit"])
def test_a_quantised_base_is_trained_on_the_cpu(lab: Lab, tmp_path: Path, bits: str) -> None:
    from tiny import write_tiny_model

    model = write_tiny_model(tmp_path / "wide", hidden_size=64, intermediate_size=128)
    folder = Lab(lab.root, model, lab.data).train(f"quant={bits}")
    assert folder.done
    facts = read_json(folder.facts)
    assert facts["quant"] == f"{bits[0]}-bit"
    first, last = rows(folder, "val/")[0], rows(folder, "val/")[-1]
    assert first["val/logratios/margins"] == 0.0
    assert last["val/logratios/margins"] > 1.0
    assert last["val/rewards/accuracies"] == 1.0


def test_the_number_of_steps_is_what_was_asked_for(lab: Lab) -> None:
    """17 pairs, 2 a step."""
    common = ("trainer.eval_every=0", "trainer.kl_pairs=0", "prompts=none", "trainer.checkpoint_every=0")
    for more, steps in ((("optim.epochs=0.5",), 4), (("optim.epochs=1.5",), 12), (("optim.max_steps=3",), 3)):
        own = ("optim.max_steps=null",) if "max_steps" not in more[0] else ()
        folder = lab.train(*common, *own, *more)
        assert len(rows(folder, "train/")) == steps, more
        assert [row["step"] for row in rows(folder, "val/")] == [0, steps]


def test_schedule_and_clip_are_what_was_asked_for(lab: Lab) -> None:
    common = (
        "optim.max_steps=5",
        "optim.warmup_ratio=0.4",
        "trainer.kl_pairs=0",
        "prompts=none",
        "trainer.eval_every=0",
    )
    shapes = {
        "constant": [0, 0.5, 1, 1, 1],
        "linear": [0, 0.5, 1, 2 / 3, 1 / 3],
        "cosine": [0, 0.5, 1, 0.75, 0.25],
    }
    for schedule, shape in shapes.items():
        folder = lab.train(*common, f"optim.schedule={schedule}")
        assert [row["train/lr"] for row in rows(folder, "train/")] == pytest.approx([0.01 * x for x in shape]), schedule
    clipped = lab.train(*common, "optim.grad_clip=1e-3", "optim._target_=torch.optim.SGD", "~optim.betas", "~optim.eps")
    free = lab.train(*common, "optim.grad_clip=null", "optim._target_=torch.optim.SGD", "~optim.betas", "~optim.eps")
    assert weights(clipped) != weights(free)
    first = [rows(folder, "train/")[0]["train/grad_norm"] for folder in (clipped, free)]
    assert first[0] == first[1] > 1e-3, "the norm is logged as it was before clipping"


def test_no_held_out_pairs_is_no_evaluation(lab: Lab) -> None:
    folder = lab.train("data.eval_fraction=0")
    assert folder.done
    assert not rows(folder, "val/")
    assert not folder.samples.exists()


def test_metrics_are_valid_json_even_where_numbers_are_not_finite(lab: Lab) -> None:
    from dpo_lab.training.trackers import MetricsFile

    file = MetricsFile(lab.root / "m.jsonl", None)
    file.log({"train/loss": math.nan, "train/kl": math.inf}, 1)

    def refuse(name: str) -> None:
        raise AssertionError(name)

    row = json.loads(file.path.read_text(encoding="utf-8"), parse_constant=refuse)
    assert float(row["train/kl"]) == math.inf
