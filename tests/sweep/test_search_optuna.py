"""The search by Optuna finds better points than chance, goes on after any interruption, and repeats nothing."""

import logging
import math
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from itertools import pairwise
from statistics import fmean

import pytest

from dpo_lab.runtime.errors import ConfigError, LabError
from dpo_lab.sweep.search import Point, Seen, random_points
from dpo_lab.sweep.search_optuna import OptunaSearch
from dpo_lab.sweep.space import Axis, read_axes

AXES = read_axes(
    [
        "optim.lr=tag(log,interval(1e-6,1e-2))",
        "loss.beta=interval(0,1)",
        "lora.r=int(interval(4,64))",
        "loss=dpo,ipo,kto",
    ]
)


def accuracy(point: Point) -> float:
    """Smooth, best at lr 1e-4, beta 0.3, rank 32 and ipo."""
    far = (math.log10(float(point["optim.lr"])) + 4) ** 2 + 4 * (float(point["loss.beta"]) - 0.3) ** 2
    far += ((int(point["lora.r"]) - 32) / 40) ** 2 + {"dpo": 0.2, "ipo": 0.0, "kto": 0.4}[point["loss"]]
    return 0.8 * math.exp(-far)


def done(point: Point, *values: float) -> Seen:
    return Seen(point, "done", values, {})


def searched(
    axes: Sequence[Axis], n: int, seed: int, score: Callable[[Point], float] = accuracy, objective: str = "accuracy"
) -> list[Seen]:
    """A search from its start, each trial done before the next is asked for."""
    search = OptunaSearch(axes, objectives=[objective], seed=seed)
    seen: list[Seen] = []
    for _ in range(n):
        point = search.ask(seen)
        assert point is not None
        seen.append(done(point, score(point)))
    return seen


def scores(points: Sequence[Point]) -> list[float]:
    return [accuracy(point) for point in points]


def key(point: Point) -> tuple[tuple[str, str], ...]:
    return tuple(point.items())


def test_it_finds_better_points_than_chance():
    ours = [scores([one.point for one in searched(AXES, 30, seed)]) for seed in range(8)]
    chance = [scores(random_points(AXES, 30, seed)) for seed in range(8)]
    assert fmean(map(max, ours)) > fmean(map(max, chance)) + 0.04
    assert fmean(fmean(run[20:]) for run in ours) > fmean(fmean(run[20:]) for run in chance) + 0.15


def test_a_loss_is_made_small():
    runs = [searched(AXES, 30, seed, lambda point: 1 - accuracy(point), "loss") for seed in range(4)]
    found = [scores([one.point for one in run]) for run in runs]
    assert fmean(fmean(run[20:]) for run in found) > fmean(fmean(run[:10]) for run in found) + 0.1


def test_points_are_what_hydra_takes_and_inside():
    for one in searched(AXES, 25, seed=1):
        assert list(one.point) == [axis.key for axis in AXES]
        assert 1e-6 <= float(one.point["optim.lr"]) <= 1e-2
        assert len(one.point["optim.lr"]) <= 9
        assert 4 <= int(one.point["lora.r"]) <= 64
        assert one.point["loss"] in ("dpo", "ipo", "kto")


def test_a_search_that_goes_on_asks_what_an_uninterrupted_one_asks():
    seen = searched(AXES, 16, seed=2)
    for n in (0, 1, 9, 10, 15):
        fresh = OptunaSearch(AXES, objectives=["accuracy"], seed=2)
        assert fresh.ask(seen[:n]) == seen[n].point


def test_another_process_asks_the_same():
    code = (
        "from dpo_lab.sweep.search import Seen\nfrom dpo_lab.sweep.search_optuna import OptunaSearch\n"
        "from dpo_lab.sweep.space import read_axes\n"
        "axes = read_axes(['a=interval(0,1)', 'b=x,y,z', 'c=tag(log,interval(1,9))'])\n"
        "search = OptunaSearch(axes, objectives=['accuracy'], seed=0)\nseen = []\n"
        "for i in range(14):\n    seen.append(Seen(search.ask(seen), 'done', (float(i % 5),), {}))\n"
        "import sys; sys.stdout.write(repr([one.point for one in seen]))"
    )
    told = [
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": h},
        )
        for h in ("1", "2")
    ]
    assert told[0].stdout == told[1].stdout != ""
    assert told[0].stderr == ""


def test_another_seed_is_another_search():
    assert [one.point for one in searched(AXES, 3, seed=0)] != [one.point for one in searched(AXES, 3, seed=1)]


def test_the_first_points_are_not_repeated_after_an_interruption():
    seen = searched(AXES, 9, seed=0)
    assert len({key(one.point) for one in seen}) == 9


@pytest.mark.parametrize("state", ["running", "failed", "pruned", "done"])
def test_no_point_is_asked_for_twice_whatever_became_of_it(state):
    axes = read_axes(["a=x,y,z", "b=1,2,3,4", "c=int(interval(1,2))"])
    search = OptunaSearch(axes, objectives=["accuracy"], seed=0)
    seen: list[Seen] = []
    while (point := search.ask(seen)) is not None:
        assert key(point) not in {key(one.point) for one in seen}
        seen.append(Seen(point, state, (float(point["b"]),) if state == "done" else None, {10: 0.5}))
    assert len(seen) == 24


def test_a_point_written_otherwise_is_the_same_point():
    axes = read_axes(["a=int(interval(1,2))"])
    search = OptunaSearch(axes, objectives=["accuracy"], seed=0)
    assert search.ask([done({"a": "1.0"}, 0.5)]) == {"a": "2"}


def test_running_trials_keep_others_away():
    axes = read_axes(["x=interval(0,1)"])
    past = [done({"x": f"{i / 20}"}, -abs(i / 20 - 0.5)) for i in range(21)]
    running: list[Seen] = []
    for _ in range(6):
        point = OptunaSearch(axes, objectives=["accuracy"], seed=0).ask([*past, *running])
        assert point is not None
        running.append(Seen(point, "running", None, {}))
    places = sorted(float(one.point["x"]) for one in running)
    assert min(b - a for a, b in pairwise(places)) > 0.002


def test_what_pruned_trials_reached_guides_the_search():
    axes = read_axes(["x=interval(0,1)"])

    def mean(best: float, steps: Sequence[int]) -> float:
        values = [(i / 40, 1 - abs(i / 40 - best)) for i in range(41)]
        seen = [Seen({"x": f"{x}"}, "pruned", None, dict.fromkeys(steps, value)) for x, value in values]
        asked = [OptunaSearch(axes, objectives=["accuracy"], seed=seed).ask(seen) for seed in range(20)]
        return fmean(float(point["x"]) for point in asked if point)

    assert mean(0.9, [10]) > 0.75
    assert mean(0.1, [10]) < 0.25
    assert mean(0.9, [0]) == mean(0.1, [0])  # before training all are alike, whatever it says


@pytest.mark.parametrize("bad", [(math.nan,), (math.inf,), None, (), (0.9, 0.9)])
def test_a_done_trial_without_a_usable_value_counts_as_failed(bad):
    seen = searched(AXES, 14, seed=0)
    (broken, *_), rest = seen, seen[1:]
    search = OptunaSearch(AXES, objectives=["accuracy"], seed=0)
    with_bad = search.ask([Seen(broken.point, "done", bad, {}), *rest])
    with_failed = search.ask([Seen(broken.point, "failed", None, {}), *rest])
    assert with_bad == with_failed != search.ask(seen)


def test_failed_trials_say_nothing_of_the_space():
    seen = searched(AXES, 14, seed=0)
    points = random_points(AXES, 3, seed=9)
    search = OptunaSearch(AXES, objectives=["accuracy"], seed=0)
    here, there = (search.ask([*seen, *(Seen(p, "failed", None, {5: v}) for p in points)]) for v in (0.0, 0.9))
    assert here == there


def test_trials_of_another_space_are_left_out():
    seen = searched(AXES, 14, seed=0)
    others = [
        {**seen[0].point, "optim.lr": "1.0"},
        {**seen[0].point, "lora.r": "4.5"},
        {**seen[0].point, "loss": "orpo"},
        {"loss": "dpo"},
    ]
    search = OptunaSearch(AXES, objectives=["accuracy"], seed=0)
    failed = [Seen(seen[0].point, "failed", None, {})] * len(others)
    assert search.ask([*seen, *(done(p, 1.0) for p in others)]) == search.ask([*seen, *failed])


def test_two_objectives_spread_along_their_front():
    """Accuracy grows with x, and so does the KL; y only costs."""
    axes = read_axes(["x=interval(0,1)", "y=interval(0,1)"])
    search = OptunaSearch(axes, objectives=["accuracy", "kl"], seed=0)
    seen: list[Seen] = []
    for i in range(50):
        point = search.ask(seen)
        assert point is not None
        x, y = float(point["x"]), float(point["y"])
        state = "pruned" if i % 7 == 6 else "done"
        seen.append(Seen(point, state, (x - y, x + y) if state == "done" else None, {10: x - y}))
    late = [one.point for one in seen[25:]]
    assert fmean(float(p["y"]) for p in late) < 0.3
    assert max(float(p["x"]) for p in late) - min(float(p["x"]) for p in late) > 0.5


def test_an_objective_that_is_not_known_is_an_error():
    with pytest.raises(ConfigError, match="speed is none of accuracy, margin, kl, loss"):
        OptunaSearch(AXES, objectives=["accuracy", "speed"], seed=0)


def test_without_optuna_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(LabError) as e:
        OptunaSearch(AXES, objectives=["accuracy"], seed=0)
    assert str(e.value) == 'sweeper=optuna needs the optuna package: pip install "dpo_lab[search]"'


def test_nothing_is_said_on_the_way(capfd):
    before = logging.getLogger().level
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        searched(AXES, 12, seed=0)
    assert capfd.readouterr() == ("", "")
    assert logging.getLogger().level == before
