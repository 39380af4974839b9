"""Grids and points at random: complete, without repeats, and the same each time."""

import math

from dpo_lab.sweep.search import grid, random_points, size
from dpo_lab.sweep.space import read_axes

MIXED = ["optim.lr=tag(log,interval(1e-5,1e-3))", "loss.beta=0.05,0.1,0.3", "lora.r=int(interval(4,64))"]


def test_a_grid_is_the_product_with_the_last_axis_changing_fastest():
    axes = read_axes(["loss=dpo,ipo", "loss.beta=interval(0,1)"])
    assert grid(axes, 3) == [
        {"loss": loss, "loss.beta": beta} for loss in ("dpo", "ipo") for beta in ("0.0", "0.5", "1.0")
    ]


def test_without_axes_there_is_one_point():
    assert grid([], 3) == random_points([], 5, 0) == [{}]


def test_random_points_are_different_and_inside():
    points = random_points(read_axes(MIXED), 200, seed=0)
    assert len({tuple(p.items()) for p in points}) == 200
    assert all(list(p) == ["optim.lr", "loss.beta", "lora.r"] for p in points)
    assert all(1e-5 <= float(p["optim.lr"]) <= 1e-3 and 4 <= int(p["lora.r"]) <= 64 for p in points)


def test_more_points_go_on_where_fewer_ended():
    for words in (MIXED, ["a=1,2,3", "b=x,y,z", "c=range(5)"]):
        axes = read_axes(words)
        assert random_points(axes, 40, seed=3)[:11] == random_points(axes, 11, seed=3)


def test_points_that_were_tried_come_first_and_count():
    """Fails where a larger axis is drawn from anew on top of them, or where one outside the space is asked for again."""
    for few, many in ((["a=1,2,3,4"], ["a=1,2,3,4,5,6,7,8"]), (["a=interval(1,2)"], ["a=interval(1,4)"])):
        tried = random_points(read_axes(few), 3, seed=0)
        axes = read_axes(many)
        points = random_points(axes, 6, 0, [*tried, {"a": "9"}])
        assert len(points) == len({point["a"] for point in points}) == 6
        assert points[:3] == tried
        assert random_points(axes, 6, 0, points[:4]) == points  # however far it came before it was cut off
        assert random_points(axes, 2, 0, tried) == tried


def test_the_seed_matters_and_the_order_of_the_axes_does_not():
    for words in (MIXED, ["a=1,2,3", "b=x,y,z", "c=range(5)"]):
        axes = read_axes(words)
        points = random_points(axes, 20, seed=0)
        assert points == random_points(axes[::-1], 20, seed=0)
        assert points != random_points(axes, 20, seed=1)


def test_a_finite_space_is_never_asked_for_more_than_it_has():
    axes = read_axes(["a=1,2,3", "b=int(interval(0,1))", "c=interval(2,2)"])
    points = random_points(axes, 100, seed=0)
    assert size(axes) == len(points) == 6
    assert sorted(map(tuple, (p.values() for p in points))) == sorted(map(tuple, (p.values() for p in grid(axes, 9))))
    assert len(random_points(axes, 5, seed=0)) == 5


def test_a_continuous_space_of_few_texts_ends_too():
    axes = read_axes(["a=interval(1,2)"])
    points = random_points(axes, 10**6, seed=0)
    assert 500 < len(points) < 2000  # all texts that a rounding to a thousandth leaves, or nearly


def test_every_value_of_a_large_finite_space_is_about_equally_likely():
    axes = read_axes(["a=x,y", "b=int(interval(1,1000000))"])
    points = random_points(axes, 1000, seed=0)
    assert abs(sum(p["a"] == "x" for p in points) - 500) < 80  # 5 standard deviations
    assert abs(sum(int(p["b"]) for p in points) / 1000 - 5e5) < 5 * 1e6 / math.sqrt(12 * 1000)


def test_a_log_axis_is_even_in_its_logarithm():
    points = random_points(read_axes(MIXED), 1000, seed=1)
    logs = [math.log10(float(p["optim.lr"])) for p in points]
    assert abs(sum(x < -4 for x in logs) - 500) < 80
