"""Pruning ends what Optuna's rules would end, whatever the order of arrival, and never without a comparison."""

import math
import random
import sys
import time
import warnings

import pytest

from dpo_lab.runtime.errors import LabError
from dpo_lab.sweep.prune import History, Pruner

ACCURACY = "val/rewards/accuracies"
Curve = list[float]  # the value at each evaluation after step 0
EVERY = 10  # steps between evaluations


def asha(metric: str = ACCURACY, first_step: int = 10, startup: int = 1, factor: int = 3) -> Pruner:
    return Pruner("asha", metric=metric, first_step=first_step, startup=startup, factor=factor)


def median(metric: str = ACCURACY, first_step: int = 10, startup: int = 1) -> Pruner:
    return Pruner("median", metric=metric, first_step=first_step, startup=startup, factor=3)


def at(step: int, values: dict[str, float], state: str = "running") -> list[History]:
    """Trials that have been evaluated before training, where all are alike, and at one step."""
    return [History(key, i, state, {0: 0.5, step: value}) for i, (key, value) in enumerate(values.items())]


def ran(key: str, *values: float, state: str = "running", number: int = 0) -> History:
    return History(key, number, state, {0: 0.5} | {EVERY * i: v for i, v in enumerate(values, 1)})


def simulate(pruner: Pruner, curves: list[Curve], slots: int, *, restarts: bool = False) -> dict[str, list[int]]:
    """A sweep with so many trials at a time; evaluations of each trial, and 1 more where it came to its end."""
    waiting = [History(str(i), i, "running", {0: 0.5}) for i in range(len(curves))]
    started: list[History] = []
    over: dict[str, list[int]] = {}
    while len(over) < len(curves):
        running = [h for h in started if h.id not in over]
        while waiting and len(running) < slots:
            running.append(waiting.pop(0))
            started.append(running[-1])
        for h in running:
            h.values[EVERY * len(h.values)] = curves[h.number][len(h.values) - 1]
        histories = [History(h.id, h.number, "ended" if h.id in over else "running", dict(h.values)) for h in started]
        ended = pruner.look(histories)
        if restarts:
            assert fresh(pruner).look(histories) == ended
        for h in running:
            n = len(h.values) - 1
            if n == len(curves[h.number]):
                over[h.id] = [n, 1]
            elif h.id in ended:
                over[h.id] = [n, 0]
    return over


def fresh(pruner: Pruner) -> Pruner:
    return Pruner(
        pruner.name,
        metric=pruner.metric,
        first_step=pruner.first_step,
        startup=pruner.startup,
        factor=pruner.factor,
    )


def test_asha_keeps_the_best_third():
    values = {f"t{i}": 0.5 + i / 100 for i in (3, 1, 4, 8, 5, 0, 2, 6, 7)}
    ended = asha().look(at(20, values))
    assert sorted(ended) == ["t0", "t1", "t2", "t3", "t4", "t5"]
    assert ended["t1"] == "held-out accuracy 0.51 at step 20 is not among the best third of 9 trials there (0.56)"


@pytest.mark.parametrize(
    ("factor", "share", "kept"), [(2, "half", 4), (3, "third", 3), (4, "quarter", 2), (9, "1/9", 1)]
)
def test_the_factor_says_how_many_stay(factor, share, kept):
    ended = asha(factor=factor).look(at(10, {f"t{i}": i / 10 for i in range(9)}))
    assert len(ended) == 9 - kept
    bar = f"({0.8 - (kept - 1) / 10:.3g})"
    assert all(reason.endswith(f"is not among the best {share} of 9 trials there {bar}") for reason in ended.values())


def test_of_fewer_trials_than_the_factor_the_best_stays():
    ended = asha().look(at(10, {"a": 0.6, "b": 0.7}))
    assert ended == {"a": "held-out accuracy 0.6 at step 10 is not the best of 2 trials there (0.7)"}


def test_values_that_look_alike_are_told_apart():
    ended = asha().look(at(10, {"a": 0.61234, "b": 0.61239}))
    assert ended == {"a": "held-out accuracy 0.6123 at step 10 is not the best of 2 trials there (0.6124)"}


def test_a_trial_alone_is_never_ended():
    for pruner in (asha(), median()):
        assert pruner.look(at(10, {"a": 0.0})) == {}


@pytest.mark.parametrize("pruner", [asha(), median()], ids=lambda p: p.name)
def test_ties_stay(pruner):
    assert pruner.look(at(10, {f"t{i}": 0.6 for i in range(9)})) == {}
    tied = fresh(pruner).look(at(10, {f"t{i}": v for i, v in enumerate([0.7, 0.7, 0.7, 0.7, 0.7, 0.5])}))
    assert list(tied) == ["t5"]


@pytest.mark.parametrize("metric", ["val/loss", "val/kl"])
def test_of_a_loss_and_a_kl_the_small_ones_stay(metric):
    values = {"a": 0.3, "b": 0.4, "c": 0.5}
    name = {"val/loss": "held-out loss", "val/kl": "held-out KL"}[metric]
    ended = asha(metric).look(at(10, values))
    assert sorted(ended) == ["b", "c"]
    assert ended["c"] == f"{name} 0.5 at step 10 is not among the best third of 3 trials there (0.3)"
    ended = median(metric).look(at(10, values))
    assert ended == {"c": f"{name} 0.5 at best up to step 10 is worse than the median of 2 other trials there (0.35)"}


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("metric", [ACCURACY, "val/loss"])
@pytest.mark.parametrize("make", [asha, median])
def test_what_is_no_number_is_worst(make, metric, bad):
    values = {"a": bad, "b": 0.6, "c": 0.6, "d": 0.6}
    ended = make(metric).look(at(10, values))
    assert list(ended) == ["a"]
    assert str(bad) in ended["a"]
    assert make(metric).look(at(10, dict.fromkeys("abcd", bad))) == {}


def test_the_median_rule_forgets_what_a_trial_was_before_it_broke():
    histories = [ran("a", 0.9, math.nan), ran("b", 0.6, 0.6), ran("c", 0.6, 0.6)]
    assert median().look(histories) == {
        "a": "held-out accuracy nan at best up to step 20 is worse than the median of 2 other trials there (0.6)"
    }


def test_the_median_rule_takes_the_best_so_far():
    histories = [ran("a", 0.7, 0.5), ran("b", 0.5, 0.5), ran("c", 0.6, 0.6), ran("d", 0.4, 0.61)]
    assert median().look(histories) == {
        "b": "held-out accuracy 0.5 at best up to step 20 is worse than the median of 3 other trials there (0.6)"
    }


def test_the_median_rule_counts_every_trial_that_got_as_far_however_it_ended():
    past = [ran(f"p{i}", 0.6, 0.7, state=state) for i, state in enumerate(["done", "pruned", "failed", "interrupted"])]
    assert list(median().look([*past, ran("a", 0.5, 0.5)])) == ["a"]
    assert median(startup=5).look([*past, ran("a", 0.5, 0.5)]).keys() == {"a"}
    assert median(startup=6).look([*past, ran("a", 0.5, 0.5)]) == {}
    assert median(startup=5).look([*past[1:], ran("b", 0.9), ran("a", 0.5, 0.5)]) == {}


def test_asha_waits_until_enough_trials_got_as_far():
    values = {"a": 0.5, "b": 0.6, "c": 0.7, "d": 0.8}
    pruner = asha(startup=4)
    assert pruner.look(at(10, {key: values[key] for key in "abc"})) == {}
    assert sorted(pruner.look(at(10, values))) == ["a", "b", "c"]


@pytest.mark.parametrize("make", [asha, median])
def test_none_is_ended_before_the_first_step_nor_at_step_0(make):
    assert make(first_step=20).look(at(19, {"a": 0.1, "b": 0.9, "c": 0.9})) == {}
    assert make(first_step=20).look(at(20, {"a": 0.1, "b": 0.9, "c": 0.9})).keys() >= {"a"}
    start = [History(key, 0, "running", {0: value}) for key, value in {"a": 0.1, "b": 0.9, "c": 0.9}.items()]
    assert make(first_step=1).look(start) == {}
    lucky = [History("a", 0, "running", {0: 0.99, 10: 0.1}), *at(10, {"b": 0.6, "c": 0.6})]
    assert make(first_step=1).look(lucky).keys() == {"a"}


@pytest.mark.parametrize("make", [asha, median])
@pytest.mark.parametrize("state", ["done", "failed", "pruned", "interrupted", "new"])
def test_only_running_trials_are_ended(make, state):
    assert make().look(at(10, {"a": 0.1, "b": 0.5, "c": 0.9}, state)) == {}


def test_between_two_rungs_a_trial_is_left_alone():
    """Rungs at 10, 30 and 90: it is judged there until its next evaluation, and not for what it was before."""
    good = [ran(f"g{i}", 0.8, 0.8, 0.8, state="done") for i in range(3)]
    assert asha().look([*good, ran("a", 0.5)]).keys() == {"a"}
    assert asha().look([*good, ran("a", 0.5, 0.5)]) == {}
    assert asha().look([*good, ran("a", 0.5, 0.5, 0.5)]).keys() == {"a"}
    assert asha().look([*good, ran("a", 0.5, 0.5, 0.9)]) == {}


def test_an_evaluation_that_jumps_over_rungs_is_compared_at_the_same_step():
    """Evaluations every 50 steps, rungs at 10, 30 and 90: step 50 counts for the first two, for all trials alike."""
    values = {"a": 0.7, "b": 0.6, "c": 0.5}
    histories = [History(key, 0, "running", {0: 0.5, 50: value}) for key, value in values.items()]
    pruner = asha()
    reasons = pruner.look(histories)
    assert sorted(reasons) == ["b", "c"]
    assert all("at step 50" in reason and "3 trials" in reason for reason in reasons.values())
    later = [History(h.id, 0, "done", h.values | {100: 0.9}) for h in histories]
    assert pruner.look([*later, History("d", 3, "running", {0: 0.5, 50: 0.65})]) == {
        "d": "held-out accuracy 0.65 at step 50 is not among the best third of 4 trials there (0.7)"
    }
    assert pruner.look([*later, History("e", 4, "running", {0: 0.5, 50: 0.8})]) == {}  # 0.9 was at another step
    assert asha().look([History(h.id, 0, "running", h.values) for h in later]) == {}  # the rung at 90: all alike


def optunas(curves: list[Curve], first_step: int, factor: int) -> dict[str, list[int]]:
    """The same sweep by Optuna alone: one trial after the other, each asking after each evaluation."""
    import optuna

    pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=first_step, reduction_factor=factor)
    study = optuna.create_study(direction="maximize", pruner=pruner)
    over: dict[str, list[int]] = {}
    for i, curve in enumerate(curves):
        trial = study.ask()
        for n, value in enumerate(curve, 1):
            trial.report(value, EVERY * n)
            over[str(i)] = [n, int(n == len(curve))]
            if n < len(curve) and trial.should_prune():
                break
        study.tell(trial, curve[-1])
    return over


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_one_trial_after_the_other_it_decides_as_optuna_does_alone(factor):
    ended = 0
    for seed in range(20):
        draw = random.Random(seed)
        curves = [[draw.random() for _ in range(10)] for _ in range(15)]
        expected = optunas(curves, 10, factor)
        assert simulate(asha(factor=factor), curves, slots=1) == expected
        ended += sum(not finished for _, finished in expected.values())
    assert ended > 100


@pytest.mark.parametrize("make", [asha, median])
@pytest.mark.parametrize("slots", [1, 4])
def test_a_pruner_that_starts_anew_decides_the_same(make, slots):
    for seed in range(5):
        draw = random.Random(seed)
        curves = [[draw.random() for _ in range(10)] for _ in range(15)]
        over = simulate(make(startup=3), curves, slots, restarts=True)
        assert 0 < sum(finished for _, finished in over.values()) < 15


@pytest.mark.parametrize("make", [asha, median])
def test_the_order_in_which_trials_are_shown_does_not_matter(make):
    histories = [ran(f"t{i}", *(random.Random(i).random() for _ in range(3)), number=i) for i in range(9)]
    expected = make().look(histories)
    assert expected
    assert make().look(histories[::-1]) == expected
    one_by_one = make()
    for i in range(len(histories)):
        last = one_by_one.look(histories[: i + 1])
    assert last == expected


def test_a_trial_that_begins_again_is_judged_by_its_new_values():
    good = [ran(f"g{i}", 0.8, state="done") for i in range(3)]
    pruner = asha()
    assert pruner.look([*good, ran("a", 0.5)]).keys() == {"a"}
    assert pruner.look([*good, ran("a")]) == {}
    assert pruner.look([*good, ran("a", 0.9)]) == {}
    others = pruner.look([*good, ran("a", 0.9), ran("b", 0.85)])
    assert others == {"b": "held-out accuracy 0.85 at step 10 is not among the best third of 5 trials there (0.9)"}


GOOD, BAD = [0.9, 0.7, 0.68, 0.66], [0.5 + i / 100 for i in range(8)]  # where settings end up


@pytest.mark.parametrize("slots", [1, 2, 4])
def test_on_a_grid_with_bad_settings_half_the_work_is_saved_and_the_winner_stays(slots):
    share = {"asha": 0.0, "median": 0.0}
    for seed in range(10):
        ends = random.Random(seed).sample(GOOD + BAD, 12)
        curves = [[0.5 + (end - 0.5) * (1 - 0.8**n) for n in range(1, 21)] for end in ends]
        for name in share:
            pruner = Pruner(name, metric=ACCURACY, first_step=10, startup=3, factor=3)
            over = simulate(pruner, curves, slots)
            assert over[str(ends.index(0.9))] == [20, 1]
            share[name] += sum(n for n, _ in over.values()) / (12 * 20) / 10
    assert share["asha"] < 0.5
    assert share["median"] < 0.75


def test_none_ends_nothing_and_needs_no_optuna(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    pruner = Pruner("none", metric=ACCURACY, first_step=1, startup=1, factor=2)
    assert pruner.look(at(10, {"a": 0.1, "b": 0.9})) == {}


@pytest.mark.parametrize("name", ["asha", "median"])
def test_without_optuna_the_extra_is_named(name, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(LabError) as e:
        Pruner(name, metric=ACCURACY, first_step=1, startup=1, factor=2)
    assert str(e.value) == f'prune={name} needs the optuna package: pip install "dpo_lab[search]"'


@pytest.mark.parametrize("make", [asha, median])
def test_a_thousand_trials_are_looked_at_in_no_time_and_in_silence(make, capfd):
    draw = random.Random(0)
    states = ["running"] * 16 + ["done"] * 984
    histories = [History(f"t{i}", i, s, {10 * n: draw.random() for n in range(100)}) for i, s in enumerate(states)]
    pruner = make()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pruner.look(histories)
        for history in histories[:16]:
            history.values[1000] = draw.random()
        begin = time.process_time()
        pruner.look(histories)
        assert time.process_time() - begin < 0.5
    assert capfd.readouterr() == ("", "")
