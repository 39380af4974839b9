import json
import re
from pathlib import Path
from typing import Any

import pytest

from dpo_lab.runtime.files import write_jsonl
from dpo_lab.training.curves import arrange, read_series, running_average, write_curves


def row(step: int, **metrics: Any) -> dict[str, Any]:
    return {"step": step, "time": 0.0} | {name.replace("__", "/"): value for name, value in metrics.items()}


def panels(page: Path) -> dict[str, list[dict[str, Any]]]:
    """The traces of each panel, by its heading."""
    text = page.read_text(encoding="utf-8")
    found = {}
    for heading, section in re.findall(r"<section><h2>(.*?)</h2>(.*?)</section>", text, flags=re.DOTALL):
        start = re.search(r'Plotly\.newPlot\(\s*"panel-\d+",\s*', section)
        assert start is not None
        found[heading], _ = json.JSONDecoder().raw_decode(section, start.end())
    return found


def test_without_metrics_there_is_no_page(tmp_path: Path) -> None:
    assert write_curves(tmp_path, "run") is None
    write_jsonl(tmp_path / "metrics.jsonl", [{"step": 1, "time": 0.0}])
    assert write_curves(tmp_path, "run") is None
    assert not (tmp_path / "curves.html").exists()


def test_train_and_val_of_a_metric_share_a_panel(tmp_path: Path) -> None:
    rows = [row(1, train__loss=0.7, train__lr=1e-5), row(2, train__loss=0.6, train__lr=2e-5), row(2, val__loss=0.65)]
    write_jsonl(tmp_path / "metrics.jsonl", rows)
    page = write_curves(tmp_path, "run")
    assert page is not None
    assert page == tmp_path / "curves.html"
    found = panels(page)
    assert list(found) == ["Loss", "Learning rate"]
    assert [(trace["name"], trace["x"], trace["y"]) for trace in found["Loss"]] == [
        ("train", [1, 2], [0.7, 0.6]),
        ("val", [2], [0.65]),
    ]
    assert "markers" in found["Loss"][1]["mode"]


def test_chosen_and_rejected_share_a_panel_in_colours_of_their_own(tmp_path: Path) -> None:
    names = ("train__rewards__chosen", "train__rewards__rejected", "val__rewards__chosen", "val__rewards__rejected")
    write_jsonl(tmp_path / "metrics.jsonl", [row(1, **dict.fromkeys(names, 0.1))])
    page = write_curves(tmp_path, "run")
    assert page is not None
    traces = panels(page)["Rewards"]
    assert [trace["name"] for trace in traces] == ["train chosen", "val chosen", "train rejected", "val rejected"]
    assert len({trace["line"]["color"] for trace in traces}) == 4


def test_a_long_training_line_gets_its_running_average_and_validation_does_not(tmp_path: Path) -> None:
    rows = [row(step, train__loss=step % 2, val__loss=0.5, train__lr=1e-5) for step in range(1, 101)]
    write_jsonl(tmp_path / "metrics.jsonl", rows)
    page = write_curves(tmp_path, "run")
    assert page is not None
    found = panels(page)
    assert [(trace["name"], len(trace["x"])) for trace in found["Loss"]] == [
        ("train", 100),
        ("train", 100),
        ("val", 100),
    ]
    smooth, raw, _ = found["Loss"]
    assert max(raw["y"]) - min(raw["y"]) == 1
    assert max(smooth["y"][20:]) - min(smooth["y"][20:]) < 0.5
    assert len(found["Learning rate"]) == 1


def test_values_that_are_not_finite_are_left_out(tmp_path: Path) -> None:
    write_jsonl(
        tmp_path / "metrics.jsonl", [row(1, train__loss=0.5), row(2, train__loss="NaN"), row(3, train__loss=None)]
    )
    (series,) = read_series(tmp_path / "metrics.jsonl")
    assert (series.steps, series.values) == ([1], [0.5])


def test_an_unknown_metric_gets_a_panel_at_the_end_and_other_keys_none(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "metrics.jsonl", [row(1, train__mine=1.0, epoch=2) | row(1, train__loss=0.5)])
    assert list(arrange(read_series(tmp_path / "metrics.jsonl"))) == ["Loss", "mine"]


def test_the_running_average_of_a_constant_is_that_constant_from_the_start() -> None:
    assert running_average([2.0] * 50) == pytest.approx([2.0] * 50)
    assert running_average([1.0, 3.0]) == pytest.approx([1.0, (1.0 * 2 / 3 + 3.0) / (2 / 3 + 1)])  # span 5: keeps 2/3


def test_a_very_long_run_is_thinned_out_and_keeps_its_last_step(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "metrics.jsonl", [row(step, train__loss=0.5) for step in range(1, 9001)])
    page = write_curves(tmp_path, "run")
    assert page is not None
    for trace in panels(page)["Loss"]:
        assert len(trace["x"]) <= 2001
        assert (trace["x"][0], trace["x"][-1]) == (1, 9000)


def test_the_page_asks_no_network_and_escapes_its_title(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "metrics.jsonl", [row(1, train__loss=0.5)])
    page = write_curves(tmp_path, "beta=0.1 <b> ab12cd34")
    assert page is not None
    text = page.read_text(encoding="utf-8")
    assert "<h1>beta=0.1 &lt;b&gt; ab12cd34</h1>" in text
    assert text.count("plotly.js v") == 1  # the library itself, once
    assert re.findall(r"<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)\s*=", text) == []
