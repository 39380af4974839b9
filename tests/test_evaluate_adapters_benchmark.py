"""benchmarks/evaluate_adapters.py on a tiny model: both sides do the same, and a difference would be seen."""

import argparse
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return import_module("evaluate_adapters")


@pytest.mark.slow
def test_one_call_and_separate_calls_come_to_the_same_scores(bench: Any, tmp_path: Path) -> None:
    options = argparse.Namespace(adapters=2, pairs=4, rounds=1, kl_pairs=0, tiny=True)
    result = bench.measure(options, bench.prepare(options, tmp_path))
    assert result["pairs"] == 4
    assert result["reference_pairs_computed"] == 0, "the cache was warm"
    assert 0 < result["ratio"] == result["one_call"] / result["separate_calls"]
    assert result["largest_relative_difference_of_scores"] < bench.SAME
    scores = [bench.read_json(tmp_path / f"separate_calls-0-{i}" / "scores.json") for i in range(2)]
    first, second = (content["results"][0]["metrics"]["logratios/margins"] for content in scores)
    assert first != second, "two adapters that are alike would hide a mistake"
    assert not (tmp_path / "outputs").exists()


def test_scores_that_differ_are_told(bench: Any) -> None:
    ours, theirs = ([{"metrics": {"loss": loss, "kl": 2.0}}] for loss in (0.5, 0.6))
    assert bench.difference(ours, theirs) == pytest.approx(0.1)
    assert bench.difference(ours, ours) == 0
