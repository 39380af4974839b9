"""The folder name of a multirun, and its combinations."""

import re
from pathlib import Path

import pytest

from dpo_lab.config import cli, resolvers
from dpo_lab.config.overrides import read
from dpo_lab.config.sources import Sources
from dpo_lab.config.sweeps import combinations, default_name


def name(*words: str) -> str:
    resolvers.register()
    given, problems = read(words, Sources(), multirun=True)
    assert problems == []
    return default_name(given, Sources())


def test_the_name_holds_the_swept_keys_and_a_hash():
    assert re.fullmatch(r"beta_lr-[0-9a-f]{8}", name("optim.lr=1e-4,5e-5", "loss.beta=0.1,0.2"))
    assert re.fullmatch(r"r_loss-[0-9a-f]{8}", name("lora.r=8,16", "seed=3", "loss=dpo,ipo"))
    assert re.fullmatch(r"single-[0-9a-f]{8}", name("seed=3"))


def test_more_values_of_the_same_axes_keep_the_name():
    assert name("seed=0,1") == name("seed=0,1,2")


def test_the_order_of_the_words_is_no_part():
    assert name("optim.lr=1e-4,5e-5", "loss.beta=0.1,0.2") == name("loss.beta=0.1,0.2", "optim.lr=1e-4,5e-5")
    assert name("seed=0,1", "loss=ipo", "lora=r16") == name("lora=r16", "seed=0,1", "loss=ipo")


@pytest.mark.parametrize(
    "other",
    [["seed=0,1", "loss=ipo"], ["seed=0,1", "trainer.precision=64"], ["seed=0,1", "data.seed=1"], ["data.seed=0,1"]],
)
def test_what_changes_results_is_part(other):
    assert name(*other) != name("seed=0,1")


@pytest.mark.parametrize(
    "outside",
    [
        *("output_dir=/x", "logger=none", "logger.project=x", "overwrite=true", "hydra.verbose=true"),
        *("trainer.accelerator=cpu", "trainer=cpu", "trainer.microbatch_tokens=512", "trainer.devices=2"),
        *("trainer.compile=false", "trainer.checkpoint_every=7", "trainer.log_every=9", "data.workers=1"),
        *("doctor.enabled=false", "reference.device=cpu", "prune=asha", "sweeper=random", "launcher=processes"),
    ],
)
def test_what_changes_no_result_is_no_part(outside):
    """Whatever leaves the runs' ids must leave the folder, or all that is done is done again in another one."""
    assert name("seed=0,1", outside) == name("seed=0,1")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("optim.lr=1e-3", "optim.lr=0.001"),
        ("optim.epochs=2", "optim.epochs=2.0"),
        ("trainer.precision=32", "trainer.precision='32'"),
        ("data.max_length=256", "data=demo"),  # what it is anyway
    ],
)
def test_how_a_value_is_written_is_no_part(one, other):
    assert name("seed=0,1", one) == name("seed=0,1", other)


def test_data_count_by_their_content(tmp_path: Path):
    for file, text in {"a": "same", "b": "same", "c": "other"}.items():
        (tmp_path / f"{file}.jsonl").write_text(text)
    a, b, c = (name("seed=0,1", "data=file", f"data.path={tmp_path}/{file}.jsonl") for file in "abc")
    assert a == b != c


def test_a_setting_of_options_that_only_the_axes_choose_is_part():
    """Without the axes there is no such key: loss=dpo takes no label_smoothing."""
    words = ("loss=exo,robust", "trainer.microbatch_tokens=512")
    assert name(*words, "loss.label_smoothing=0.1") == name("loss.label_smoothing=1e-1", words[0])
    assert name(*words, "loss.label_smoothing=0.1") != name(*words, "loss.label_smoothing=0.2")


def test_an_axis_may_be_what_an_option_lacks():
    words = ("data=hub", "data.hub.name=one/pairs,other/pairs")
    assert re.fullmatch(r"name-[0-9a-f]{8}", name(*words))
    assert name(*words, "seed=1") != name(*words)


def test_the_door_names_a_sweep_that_has_no_name():
    assert re.fullmatch(r"sweep\.name=seed-[0-9a-f]{8}", cli.prepare(["-m", "seed=0,1"])[-1])
    assert cli.prepare(["-m", "seed=0,1", "sweep.name=mine"])[-1] == "sweep.name=mine"
    assert cli.prepare(["seed=0"]) == ["seed=0"]


def test_combinations_are_the_product_in_order():
    given, _ = read(["seed=0,1", "loss=ipo", "lora.r=4,8"], Sources(), multirun=True)
    assert [" ".join(c) for c in combinations(given)] == [
        "seed=0 loss=ipo lora.r=4",
        "seed=0 loss=ipo lora.r=8",
        "seed=1 loss=ipo lora.r=4",
        "seed=1 loss=ipo lora.r=8",
    ]


def test_ranges_choices_and_globs_are_sweeps_too():
    given, _ = read(["seed=range(0,3)", "lora.r=choice(4,8)", "loss=glob(*)"], Sources(), multirun=True)
    assert [len(g.texts) for g in given] == [3, 2, len(Sources().options("loss"))]
