"""The folder name of a multirun, and its combinations."""

import re

import pytest

from dpo_lab.config import cli
from dpo_lab.config.overrides import read
from dpo_lab.config.sources import Sources
from dpo_lab.config.sweeps import combinations, default_name


def name(*words: str) -> str:
    given, problems = read(words, Sources(), multirun=True)
    assert problems == []
    return default_name(given)


def test_the_name_holds_the_swept_keys_in_their_order_and_a_hash():
    assert re.fullmatch(r"lr_beta-[0-9a-f]{8}", name("optim.lr=1e-4,5e-5", "loss.beta=0.1,0.2"))
    assert re.fullmatch(r"loss_r-[0-9a-f]{8}", name("loss=dpo,ipo", "seed=3", "lora.r=8,16"))
    assert re.fullmatch(r"single-[0-9a-f]{8}", name("seed=3"))


def test_more_values_of_the_same_axes_keep_the_name():
    assert name("seed=0,1") == name("seed=0,1,2")


def test_fixed_settings_are_part_in_any_order():
    assert name("seed=0,1", "loss=ipo", "lora=r16") == name("lora=r16", "seed=0,1", "loss=ipo")
    assert name("seed=0,1", "loss=ipo") != name("seed=0,1", "loss=dpo")


@pytest.mark.parametrize(
    "outside",
    [
        "output_dir=/x",
        "logger=none",
        "logger.project=x",
        "overwrite=true",
        "trainer.accelerator=cpu",
        "hydra.verbose=true",
    ],
)
def test_where_results_go_and_how_they_are_shown_is_no_part(outside):
    assert name("seed=0,1", outside) == name("seed=0,1")


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
