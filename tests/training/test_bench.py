"""`python -m dpo_lab.bench`: its numbers agree with each other and with a second count, and it leaves nothing behind."""

import contextlib
import gzip
import json
import math
import os
import sqlite3
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import Lab

from dpo_lab.config import cli, resolvers
from dpo_lab.config.paths import CONF_DIR
from dpo_lab.config.schema import Config
from dpo_lab.runtime.errors import Guarded
from dpo_lab.training import bench_profile, bench_rate
from dpo_lab.training.bench_memory import Peak
from dpo_lab.training.bench_profile import LABELS, Profile, divide, outermost

ROOT = Path(__file__).resolve().parents[2]
# steps that are timed, and those before and after
COUNTS = ("bench.steps=3", "bench.warmup=1", "bench.profiled=2")


def job(lab: Lab, *more: str) -> tuple[Config, dict[str, Any], Path]:
    """What the door hands over."""
    from hydra import compose, initialize_config_dir

    resolvers.register()
    words = [word for word in lab.overrides(*more) if not word.startswith("optim.max_steps")]
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        tree = resolvers.plain(compose("bench", overrides=words))
    return Config.model_validate(tree), tree, lab.root


@dataclass(frozen=True)
class Measured:
    """One bench, run in this process."""

    lab: Lab
    config: Config
    report: dict[str, Any]
    numbers: dict[str, float]
    printed: str


def measured(lab: Lab, capsys: pytest.CaptureFixture[str] | None = None, *more: str) -> Measured:
    from dpo_lab.training.bench import bench

    output = lab.root / "bench.json"
    config, tree, folder = job(lab, *COUNTS, f"output={output}", *more)
    numbers = bench(config, tree, folder)
    printed = capsys.readouterr().out if capsys else ""
    return Measured(lab, config, json.loads(output.read_text(encoding="utf-8")), numbers, printed)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, pairs: Path) -> Measured:
    return measured(Lab(tmp_path_factory.mktemp("bench"), tiny_model, pairs), None, "profile=true")


@pytest.fixture(scope="module")
def layouts(plain: Measured) -> list[list[Any]]:
    """The timed steps as training would cut them, made apart from the bench."""
    from dpo_lab.data.module import Steps
    from dpo_lab.data.prepare import prepare, read_pairs
    from dpo_lab.data.templates import load_template
    from dpo_lab.models.locate import Located
    from dpo_lab.models.tokenizer import load_tokenizer

    config, cache = plain.config, plain.lab.cache
    template = load_template(load_tokenizer(Located(plain.lab.model, "x"), config.model), config.template)
    examples = prepare(read_pairs(config.data, cache), config.data, template, cache).train
    size, limit = config.optim.batch_size, plain.report["tokens"]["microbatch_limit"]
    steps = Steps(examples, start=1, end=4, batch_size=size, seed=config.data.seed, tokens=limit)
    return [steps[i] for i in range(3)]


def test_step_time_and_rates_agree(plain: Measured) -> None:
    step = plain.report["step"]
    seconds = step["seconds"]
    assert len(seconds["all"]) == 3
    assert seconds["min"] <= seconds["median"] <= seconds["max"] == max(seconds["all"])
    assert seconds["median"] == sorted(seconds["all"])[1]
    assert step["pairs"] == plain.config.optim.batch_size == 2
    assert step["pairs_per_second"] * seconds["median"] == pytest.approx(2)
    assert step["waited_for_data"] > 0
    rates = sorted(n / s for n, s in zip(plain.report["tokens"]["all"], seconds["all"], strict=True))
    assert step["tokens_per_second"] == pytest.approx(rates[1])
    assert plain.numbers["step_seconds"] == seconds["median"]


def test_tokens_are_those_of_the_steps_that_training_takes(plain: Measured, layouts: list[list[Any]]) -> None:
    tokens = plain.report["tokens"]
    assert tokens["all"] == [sum(len(layout.ids) for layout in step) for step in layouts]
    padded = sorted(sum(layout.padded()[0].numel() for layout in step) for step in layouts)
    answers = sorted(sum(len(layout.targets) for layout in step) for step in layouts)
    assert (tokens["step_padded"], tokens["answers"]) == (padded[1], answers[1])
    assert tokens["microbatches"] == sorted(len(step) for step in layouts)[1]
    assert tokens["microbatch_most"] == max(len(layout.ids) for step in layouts for layout in step)


def test_operations_are_those_of_the_formula(plain: Measured, layouts: list[list[Any]]) -> None:
    from dpo_lab.preference.flops import Shape, training_flops

    flops = plain.report["flops"]
    shape = Shape(**flops["shape"])
    assert shape == Shape(body=18432, head=259 * 32, layers=2, heads=4, head_dim=8)
    lengths = [[pair for layout in step for pair in layout.lengths] for step in layouts]
    needed = [training_flops(shape, pairs) for pairs in lengths]
    seconds = plain.report["step"]["seconds"]["all"]
    assert flops["step"] == sorted(needed)[1]
    assert flops["per_second"] == pytest.approx(sorted(n / s for n, s in zip(needed, seconds, strict=True))[1])
    assert len(flops["matmul_rates"]) == 2
    assert flops["matmul_rate"] == max(flops["matmul_rates"])
    assert flops["share_of_matmul_rate"] == pytest.approx(flops["per_second"] / flops["matmul_rate"])
    assert (flops["matmul_dtype"], flops["peak"], flops["share_of_peak"]) == ("float32", None, None)


def test_the_split_of_the_time_sums_to_the_whole_and_knows_every_part(plain: Measured) -> None:
    split = plain.report["split"]
    assert [*split["seconds"]] == [*LABELS, "other"]
    assert split["missing"] == []
    assert sum(split["seconds"].values()) == pytest.approx(split["total"])
    assert sum(split["shares"].values()) == pytest.approx(1.0)
    assert all(share > 0 for share in split["shares"].values())


def test_something_was_learned_at_every_step(plain: Measured) -> None:
    learning = plain.report["learning"]
    assert len(learning["loss"]) == len(learning["grad_norm"]) == 6
    assert learning["loss"][0] == pytest.approx(math.log(2))
    assert learning["loss"][-1] != learning["loss"][0]
    assert all(norm > 0 for norm in learning["grad_norm"])
    assert learning["trainable_parameters"] == 8192


def test_the_reference_is_computed_anew_for_the_pairs_of_the_steps_alone(plain: Measured) -> None:
    reference = plain.report["reference"]
    assert reference["mode"] == "cached"
    assert reference["seconds"] > reference["read_seconds_per_step"] > 0
    for file in (plain.lab.cache / "reference").glob("*.sqlite"):  # what runs share is neither read nor written
        with contextlib.closing(sqlite3.connect(file)) as db:
            assert db.execute("SELECT count(*) FROM logps").fetchone() == (0,)


def test_memory_is_the_peak_of_training(plain: Measured) -> None:
    memory = plain.report["memory"]
    assert memory["peak"] >= memory["loaded"] > 2**20
    assert memory["increase"] == memory["peak"] - memory["loaded"]


def test_the_file_says_all_that_is_needed_to_repeat_it(plain: Measured) -> None:
    assert plain.report["bench"] == {"steps": 3, "warmup": 1, "profiled": 2, "peak_tflops": None}
    facts = plain.report["facts"]
    assert facts["versions"]["torch"] == torch.__version__
    assert facts["device"]["cpu"]["cores"] >= 1
    assert facts["config"]["lora"]["r"] == 8
    assert facts["model"]["identity"]
    assert facts["data"]["fingerprint"]


def test_the_trace_opens_and_holds_the_parts_of_a_step(plain: Measured) -> None:
    trace = Path(plain.report["trace"])
    assert trace.parent == plain.lab.root
    events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    assert set(LABELS.values()) <= {event.get("name") for event in events}


def test_nothing_but_the_files_that_were_asked_for_is_left(plain: Measured) -> None:
    assert not plain.lab.output.exists()
    assert {p.name for p in plain.lab.root.iterdir()} == {"bench.json", "bench.trace.json", "cache"}


def test_a_live_reference_is_part_of_the_step(
    lab: Lab, plain: Measured, layouts: list[list[Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    from dpo_lab.preference.flops import Shape, reference_flops

    live = measured(lab, capsys, "reference=adapter_off", "bench.peak_tflops=0.5")
    shape = Shape(**live.report["flops"]["shape"])
    extra = [reference_flops(shape, [pair for layout in step for pair in layout.lengths]) for step in layouts]
    assert live.report["flops"]["step"] == plain.report["flops"]["step"] + sorted(extra)[1]
    assert live.report["reference"] == {"mode": "adapter_off", "seconds": None, "read_seconds_per_step": None}
    assert live.report["split"]["shares"]["reference"] > 0.05
    assert live.report["flops"]["share_of_peak"] == pytest.approx(live.report["flops"]["per_second"] / 0.5e12)
    assert "computed in every step" in live.printed
    assert "of 500 GFLOP/s at most" in " ".join(live.printed.split())


@pytest.mark.parametrize(("rates", "told"), [([1e9, 1.1e9], False), ([3e9, 1e9], True)])
def test_a_machine_that_does_something_else_is_told_of(
    plain: Measured, rates: list[float], told: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    from dpo_lab.runtime.terminal import Terminal
    from dpo_lab.training.bench_table import show

    show(plain.report | {"flops": plain.report["flops"] | {"matmul_rates": rates}}, plain.config, Terminal(), None)
    assert ("something else is running" in " ".join(capsys.readouterr().out.split())) == told


OTHERS = {
    "all weights": ("lora=none", "optim.lr=1e-4"),
    "a coupled loss over several micro-batches": ("loss=aot", "trainer.microbatch_tokens=64"),
    "without a reference": ("loss=simpo",),
    "checkpointing": ("model.gradient_checkpointing=true",),
    "no profiler": ("bench.profiled=0",),
}


@pytest.mark.parametrize("case", OTHERS)
def test_it_measures_whatever_trains(case: str, lab: Lab, plain: Measured, capsys: pytest.CaptureFixture[str]) -> None:
    found = measured(lab, capsys, *OTHERS[case])
    assert found.report["step"]["seconds"]["median"] > 0
    whole = found.report["split"]
    assert (whole is None) == (case == "no profiler")
    assert whole is None or (whole["missing"] == [] and sum(whole["shares"].values()) == pytest.approx(1.0))
    assert ("part of a step" in found.printed) == (whole is not None)
    if case == "all weights":
        assert found.report["flops"]["step"] > 1.3 * plain.report["flops"]["step"]
    if case.startswith("a coupled"):
        assert found.report["tokens"]["microbatches"] == 2
    if case == "without a reference":
        assert found.report["reference"]["mode"] == "none"


def test_steps_that_learn_nothing_are_an_error() -> None:
    from dpo_lab.training.bench_clock import Step
    from dpo_lab.training.bench_run import check_learning

    check_learning([Step(1.0, 0.1, [], 0.5, 0.0), Step(1.0, 0.1, [], 0.5, 0.1)])
    with pytest.raises(Guarded, match="the 1 timed steps are all zero"):
        check_learning([Step(1.0, 0.1, [], 0.5, 0.0)])


def test_a_part_within_another_counts_as_the_other() -> None:
    reference = (10.0, 50.0, LABELS["reference"])
    spans = [(12.0, 30.0, LABELS["forward"]), reference, (50.0, 60.0, LABELS["head"]), (31.0, 49.0, LABELS["head"])]
    assert outermost(spans) == [reference, (50.0, 60.0, LABELS["head"])]


def test_parts_that_were_not_seen_are_named_and_others_take_the_rest() -> None:
    spans = [(0.0, 2e5, LABELS["forward"]), (2e5, 7e5, LABELS["backward"])]
    split = divide(spans, None, 1.0)
    assert (split.seconds["forward"], split.seconds["backward"]) == (pytest.approx(0.2), pytest.approx(0.5))
    assert split.seconds["other"] == pytest.approx(0.3)
    assert split.missing == ("data", "reference", "head", "optimizer")


def test_on_a_gpu_a_part_takes_the_time_of_the_kernels_that_it_started() -> None:
    spans = [(0.0, 10.0, LABELS["forward"]), (10.0, 20.0, LABELS["backward"])]
    kernels = [(1.0, 2e5), (9.0, 1e5), (10.0, 4e5), (25.0, 5e4)]
    split = divide(spans, kernels, 1.0)
    assert (split.seconds["forward"], split.seconds["backward"]) == (pytest.approx(0.3), pytest.approx(0.4))
    assert split.seconds["other"] == pytest.approx(0.3)


def test_a_large_trace_is_packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_profile, "LARGE", 100)
    profile = Profile(torch.device("cpu"), shapes=False)
    profile.start()
    torch.ones(3).sum()
    profile.stop()
    written = profile.write(tmp_path / "a.trace.json")
    assert [*tmp_path.iterdir()] == [written] == [tmp_path / "a.trace.json.gz"]
    assert json.loads(gzip.decompress(written.read_bytes()))["traceEvents"]


def test_the_rate_is_all_operations_over_all_time(monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cpu")
    assert bench_rate.matmul_rate({(8, 4): 2}, 16, dtype=torch.float32, device=device) > 0
    shapes: list[tuple[int, ...]] = []

    def half_a_second(product: Any, _: torch.device) -> float:
        shapes.append(tuple(product().shape))
        return 0.5

    monkeypatch.setattr(bench_rate, "_median", half_a_second)
    rate = bench_rate.matmul_rate({(8, 4): 2, (4, 2): 1}, 16, dtype=torch.float32, device=device)
    assert shapes == [(16, 4), (16, 8), (16, 2), (16, 4)]
    assert rate == (2 * 4 * 16 * 8 * 4 + 4 * 16 * 4 * 2) / 3.0


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H200", 989),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A10", 125),
        ("NVIDIA RTX A1000", None),
        ("NVIDIA GeForce GTX 1080", None),
    ],
)
def test_the_published_peak_is_found_by_the_name_of_the_gpu(name: str, peak: float | None) -> None:
    assert bench_rate.published_peak(name, torch.bfloat16) == peak
    assert bench_rate.published_peak(name, torch.float32) is None


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="peaks cannot be restarted here")
def test_a_peak_begins_anew() -> None:
    peak = Peak(torch.device("cpu"))
    peak.restart()
    before = peak.peak()
    block = torch.ones(50 * 2**20)  # 200 MiB
    high = peak.peak()
    assert high - before > 190 * 2**20
    del block
    peak.restart()
    assert peak.exact
    assert peak.peak() < high - 100 * 2**20


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("bench.stepz=1",), "bench.stepz is not a key. Did you mean bench.steps?"),
        (("bench.steps=0",), "bench.steps=0"),
        (("trainer.devices=2",), "a bench measures one process. Use trainer.devices=1."),
        (("profile=true", "bench.profiled=0"), "profile=true has no step to write a trace of"),
        (("plan=true",), "plan=true has no effect on a bench. Use python -m dpo_lab plan=true."),
        (("output=/",), "output=/ is a folder. Give a file"),
        (("output=/proc/x/bench.json",), "output=/proc/x/bench.json cannot be written"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    words: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.prepare(words, "bench")
    assert caught.value.code == 2
    assert said in capsys.readouterr().err


def test_training_knows_nothing_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.prepare(["output=a.json", "bench.steps=2"])
    assert "output is not a key" in capsys.readouterr().err


def door(lab: Lab, *words: str) -> subprocess.CompletedProcess[str]:
    """`python -m dpo_lab.bench` in a folder of its own."""
    here = lab.root / "here"
    here.mkdir()
    command = [sys.executable, "-m", "dpo_lab.bench", *lab.overrides("output_dir=-", "optim.max_steps=-", *words)]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=here, env=env, capture_output=True, text=True, timeout=240)


def test_the_door_shows_a_table_and_writes_only_what_it_was_asked_for(lab: Lab) -> None:
    said = door(lab, "bench.steps=1", "profile=true")
    assert said.stderr == ""
    assert said.returncode == 0
    for word in ("step time", "pairs/s", "tokens/s", "model FLOPs", "peak memory", "reference", "backward", "other"):
        assert word in said.stdout
    assert "bench.trace.json: open it at https://ui.perfetto.dev" in said.stdout
    assert [p.name for p in (lab.root / "here").iterdir()] == ["bench.trace.json"]


def test_jobs_of_a_sweep_do_not_write_over_each_other(lab: Lab) -> None:
    said = door(lab, "-m", "lora.r=2,4", "output=x.json")
    assert said.returncode == 1
    assert "output=x.json would be written by every job of the sweep" in said.stderr
    assert not (lab.root / "here" / "x.json").exists()
