"""Axes are read from Hydra's sweep syntax, and their values are what Hydra itself would run."""

import math

import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser

from dpo_lab.config import resolvers
from dpo_lab.config.overrides import read
from dpo_lab.config.paths import CONF_DIR
from dpo_lab.config.sources import Sources
from dpo_lab.config.verify import verify
from dpo_lab.runtime.errors import ConfigError
from dpo_lab.sweep.space import Axis, read_axes

SHARES = [0.0, 0.1, 0.3, 0.5, 0.77, 0.999999, 1 - 2**-53]


def axis(word: str) -> Axis:
    (found,) = read_axes([word])
    return found


def hydra_reads(key: str, text: str) -> object:
    return OverridesParser.create().parse_override(f"{key}={text}").value()


@pytest.mark.parametrize(
    ("word", "key", "values"),
    [
        ("optim.lr=1e-4,5e-5", "optim.lr", [1e-4, 5e-5]),
        ("loss=choice(dpo,ipo)", "loss", ["dpo", "ipo"]),
        ("lora.r=range(1,10,3)", "lora.r", [1, 4, 7]),
        ("loss.beta=range(0.1,0.35,0.1)", "loss.beta", [0.1, 0.2, 0.30000000000000004]),
        ("data.path='a (1).jsonl','b=2.jsonl'", "data.path", ["a (1).jsonl", "b=2.jsonl"]),
        ("data.max_pairs=null,100", "data.max_pairs", [None, 100]),
        ("lora.rslora=true,false", "lora.rslora", [True, False]),
        ("lora.target_modules=[q_proj],[q_proj,v_proj]", "lora.target_modules", [["q_proj"], ["q_proj", "v_proj"]]),
        ("+x.y=1,2", "x.y", [1, 2]),
        ("seed=sort(3,1,2)", "seed", [1, 2, 3]),
        ("seed=1,2,1", "seed", [1, 2]),
    ],
)
def test_named_values_are_read_back_by_hydra_as_the_same(word, key, values):
    found = axis(word)
    assert found.key == key
    assert [hydra_reads(found.key, text) for text in found.values] == values
    assert (found.count, found.points(99)) == (len(values), found.values)
    assert [found.nth(i) for i in range(len(values))] == list(found.values)


def test_words_that_are_no_sweeps_are_ignored_and_the_order_is_kept():
    found = read_axes(["model=qwen05b", "b=1,2", "~c", "optim.betas=[0.9,0.99]", "a=3,4"])
    assert [a.key for a in found] == ["b", "a"]


def test_a_shuffled_axis_has_the_same_order_each_time_but_not_the_written_one():
    word = f"seed=shuffle({','.join(map(str, range(20)))})"
    first, second = axis(word).values, axis(word).values
    assert first == second
    assert sorted(first, key=int) == [str(i) for i in range(20)] != list(first)


@pytest.mark.parametrize(
    ("word", "n", "points"),
    [
        ("a=tag(log,interval(1e-5,1e-3))", 3, ["1e-05", "0.0001", "0.001"]),
        ("a=tag(log,interval(2e-5,5e-4))", 3, ["2e-05", "0.0001", "0.0005"]),
        ("a=tag(log,interval(0.01,1.0))", 5, ["0.01", "0.032", "0.1", "0.32", "1.0"]),
        ("a=interval(0,1)", 3, ["0.0", "0.5", "1.0"]),
        ("a=interval(0,1)", 4, ["0.0", "0.33", "0.67", "1.0"]),
        ("a=interval(-1,1)", 3, ["-1.0", "0.0", "1.0"]),
        ("a=interval(1.0001,1.0003)", 3, ["1.0001", "1.0002", "1.0003"]),
        ("a=tag(log,interval(1.23456789,9.87654321))", 2, ["1.23456789", "9.87654321"]),
        ("a=interval(0.5,0.5)", 3, ["0.5"]),
        ("a=interval(0,1)", 1, ["0.5"]),
        ("a=tag(log,interval(1e-5,1e-3))", 1, ["0.0001"]),
        ("a=int(interval(4,64))", 3, ["4", "34", "64"]),
        ("a=int(interval(1,3))", 9, ["1", "2", "3"]),
        ("a=tag(log,int(interval(4,64)))", 3, ["4", "16", "64"]),
    ],
)
def test_an_interval_becomes_evenly_spaced_points_with_few_digits(word, n, points):
    assert list(axis(word).points(n)) == points


@pytest.mark.parametrize(
    "word",
    [
        "a=tag(log,interval(1e-5,1e-3))",
        "a=interval(3,7)",
        "a=interval(1.000001,1.000002)",
        "a=tag(log,interval(5,5.001))",
    ],
)
@pytest.mark.parametrize("n", [2, 3, 7, 50, 500])
def test_any_number_of_points_stays_evenly_spaced(word, n):
    found = axis(word)
    numbers = [float(text) for text in found.points(n)]
    assert (numbers[0], numbers[-1]) == (found.low, found.high)
    places = [math.log(x) for x in numbers] if found.log else numbers
    gaps = [after - before for before, after in zip(places, places[1:], strict=False)]
    assert len(numbers) == n
    even = (places[-1] - places[0]) / (n - 1)
    assert all(abs(gap - even) < 0.05 * even for gap in gaps)


def test_a_share_of_a_choice_is_a_value_and_all_are_equally_likely():
    found = axis("a=x,y,z")
    assert [found.at(i / 300) for i in range(300)] == ["x"] * 100 + ["y"] * 100 + ["z"] * 100


def test_a_share_of_an_interval_lies_in_it_and_on_its_scale():
    linear, log = axis("a=interval(2,10)"), axis("a=tag(log,interval(1e-5,1e-3))")
    for share in SHARES:
        assert float(linear.at(share)) == pytest.approx(2 + 8 * share, abs=0.01)
        assert 2 <= float(linear.at(share)) <= 10
        assert math.log10(float(log.at(share))) == pytest.approx(-5 + 2 * share, abs=0.01)
        assert 1e-5 <= float(log.at(share)) <= 1e-3


@pytest.mark.parametrize("word", ["a=int(interval(1,4))", "a=tag(log,int(interval(1,4)))"])
def test_whole_numbers_are_drawn_ends_included(word):
    found = axis(word)
    drawn = [found.at(i / 1000) for i in range(1000)]
    assert set(drawn) == {"1", "2", "3", "4"}
    assert (found.integer, found.count) == (True, 4)
    if not found.log:
        assert all(drawn.count(text) == 250 for text in set(drawn))
    else:
        assert drawn.count("1") > drawn.count("2") > drawn.count("3") > drawn.count("4")


@pytest.mark.parametrize("word", ["a=int(interval(1,4))", "a=interval(1,4)", "a=tag(log,interval(1e-9,1e3))"])
def test_the_text_of_a_number_is_read_back_with_its_type(word):
    found = axis(word)
    for share in SHARES:
        assert isinstance(hydra_reads("a", found.at(share)), int if found.integer else float)


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("a=interval(10,1)", "ends before it starts. Write interval(1,10)"),
        ("a=interval(0,inf)", "finite"),
        ("a=interval(nan,1)", "finite"),
        ("a=tag(log,interval(0,1))", "start above 0"),
        ("a=tag(log,interval(-1,1))", "start above 0"),
        ("a=tag(lgo,interval(1,2))", "the tag lgo has no effect"),
        ("a=tag(log,choice(1,2))", "the tag log has no effect on named values"),
        ("a=range(10,1)", "selects no value"),
        ("a=range(1,5,0)", "cannot be read"),
        ("a=range(0.1,0.5,0)", "cannot be read"),
        ("a=choice()", "cannot be read"),
        ("a=glob(*)", "Name them: a=A,B"),
        ("a=choice(1,2", "cannot be read"),
    ],
)
def test_a_word_that_ranges_over_nothing_is_a_clear_error(word, says):
    with pytest.raises(ConfigError) as e:
        read_axes([word])
    assert str(e.value).startswith(word)
    assert says in str(e.value)


STUDIES = sorted(file for file in (CONF_DIR / "study").glob("*.yaml") if file.stem != "none")


def test_there_are_studies():
    assert {"beta_lr_rank", "losses", "ipo_beta", "lora_rank"} <= {file.stem for file in STUDIES}


@pytest.mark.parametrize("file", STUDIES, ids=lambda file: file.stem)
def test_every_point_of_a_study_is_a_valid_run(file):
    resolvers.register()
    study = yaml.safe_load(file.read_text(encoding="utf-8"))
    assert (study.keys(), study["name"]) == ({"name", "question", "params"}, file.stem)
    axes = read_axes([f"{key}={sweep}" for key, sweep in study["params"].items()])
    assert len(axes) == len(study["params"])
    given, problems = read([f"{a.key}={','.join(a.points(3))}" for a in axes], Sources(), multirun=True)
    assert problems + verify(given, Sources()).problems == []
