"""Intervals of the numbers of answers: what they are by hand, and that a draw is what the drawn answers come to."""

import math

import numpy as np
import pytest

from dpo_lab.inference.evals.perplexity import perplexity
from dpo_lab.inference.evals.sureness import ratio, sureness
from dpo_lab.inference.evals.texts import Said, additive_numbers, text_metrics

SAID = [
    Said("The cat sat on the mat.", True, 7, "The cat is sitting on the mat, I think."),
    Said("今天天气很好,我们去公园。", True, 9, "今天天气不错,我们去公园散步。"),
    Said("I'm sorry, but I can't help with that.", False, 12, None),
    Said("There are 12 apples and each child gets 3.", False, 10, "There are 12 apples, so each child gets 3 of them."),
]


def mean(values):
    return ratio(np.array(values, dtype=float), np.ones(len(values)))


def test_the_interval_of_a_mean_by_hand():
    # Of two prompts a draw has the one twice, both, or the other twice: 1/4, 1/2, 1/4.
    found = sureness({"a": {"x": mean([0.0, 1.0])}}, "a", prompts=2, resamples=4000, seed=0)
    assert (found.alone["a"]["x"].value, found.alone["a"]["x"].low, found.alone["a"]["x"].high) == (0.5, 0.0, 1.0)
    assert found.apart == {}


def test_the_interval_of_a_mean_is_as_wide_as_theory_has_it():
    values = np.random.default_rng(1).normal(size=400)
    found = sureness({"a": {"x": mean(values)}}, "a", prompts=400, resamples=4000, seed=0).alone["a"]["x"]
    width = 2 * 1.96 * values.std() / math.sqrt(400)
    assert found.low is not None
    assert found.high is not None
    assert found.high - found.low == pytest.approx(width, rel=0.1)


def test_models_are_compared_on_the_same_draws():
    values = np.random.default_rng(1).normal(size=50)
    numbers = {"reference": {"x": mean(values)}, "run": {"x": mean(values + 0.25), "only": mean(values)}}
    found = sureness(numbers, "reference", prompts=50, resamples=100, seed=0)
    apart = found.apart["run"]["x"]
    assert [apart.value, apart.low, apart.high] == pytest.approx([0.25] * 3)
    assert set(found.apart["run"]) == {"x"}
    assert found.to_json()["differences"]["run"]["x"] == pytest.approx({"value": 0.25, "low": 0.25, "high": 0.25})


def test_one_prompt_has_no_interval_and_a_number_that_is_not_there_has_none():
    one = sureness({"a": {"x": mean([2.0])}}, "a", prompts=1, resamples=100, seed=0).alone["a"]["x"]
    assert (one.value, one.low) == (2.0, None)
    nothing = ratio(np.zeros(3), np.zeros(3))
    none = sureness({"a": {"x": nothing}}, "a", prompts=3, resamples=100, seed=0).alone["a"]["x"]
    assert math.isnan(none.value)
    assert none.low is None


@pytest.mark.parametrize("times", [(1, 1, 1, 1), (2, 0, 1, 1), (0, 3, 0, 1), (0, 0, 4, 0)])
def test_a_draw_is_what_the_drawn_answers_come_to(times):
    drawn = [said for said, n in zip(SAID, times, strict=True) for _ in range(n)]
    theirs = text_metrics(drawn)
    for key, number in additive_numbers(SAID).items():
        ours = number.of(np.array([times], dtype=float) @ number.sums)[0]
        if key in theirs:
            assert ours == pytest.approx(theirs[key], rel=1e-12), key
        else:  # no drawn answer has a chosen one
            assert math.isnan(ours) or ours == 0


def test_perplexity_is_over_the_tokens_of_all_answers():
    rows = [{"nats": 4.0, "tokens": 2}, None, {"nats": 3.0, "tokens": 5}]
    assert perplexity(rows).value == pytest.approx(math.exp(7 / 7))
    assert math.isnan(perplexity([None]).value)
    assert perplexity([{"nats": 1e6, "tokens": 1}]).value == math.inf
