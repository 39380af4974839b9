"""What the page's charts are drawn from: axes, settings, curves and effects, as small as they can be."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dpo_lab.sweep.contents import Report
from dpo_lab.sweep.leaderboard import seeds_text
from dpo_lab.sweep.results import Trial
from dpo_lab.sweep.wording import NONE, SEEDS, identity, number_of, number_text, short_names, value_text

METRICS = {  # as recorded: title, what to know of it
    "val/rewards/accuracies": ("held-out accuracy", ""),
    "val/logratios/margins": ("held-out margin", "log-ratio margin in nats"),
    "val/kl": ("KL to the reference", "nats per token, on held-out answers"),
    "val/loss": ("held-out loss", "depends on the loss and its beta: compare within one of them"),
    "val/rewards/margins": ("held-out reward margin", "depends on beta: compare within one of them"),
    "val/logratios/chosen": (
        "held-out log-ratio of chosen",
        "nats; below zero the policy likes them less than the reference does",
    ),  # fmt: skip
    "train/loss": ("train loss", "depends on the loss and its beta: compare within one of them"),
    "train/rewards/accuracies": ("train accuracy", ""),
    "train/logratios/margins": ("train margin", "log-ratio margin in nats"),
    "train/grad_norm": ("gradient norm", ""),
    "train/lr": ("learning rate", ""),
}
EXACT = ("train/lr",)  # metrics without noise
SMOOTHED_FROM = 24  # points; fewer are drawn as they are
MOST_POINTS = 40_000  # of one metric, all trials together
GRID_VALUES = 12  # of an axis; more are a range rather than a grid
BINS = 6  # that a range becomes in the heat map


def page_data(report: Report) -> dict[str, Any]:
    """The data of all charts, ready for JSON."""
    keys = varying(report)
    axes = [_axis(key, report) for key in keys]
    places = {axis["key"]: {text: i for i, text in enumerate(axis["values"])} for axis in axes}
    settings = [
        {
            "label": standing.label,
            "at": [places[key][_text(standing.axes, key)] for key in keys],
            "accuracy": _numbers(standing.accuracy, standing.accuracy_interval.low, standing.accuracy_interval.high),
            "margin": _numbers(standing.margin, standing.margin_interval.low, standing.margin_interval.high),
            "kl": _number(standing.kl),
            "tokens": _number(standing.tokens),
            "best": standing.may_be_best,
        }
        for standing in report.answer.standings
    ]
    found = {identity(row.axes): place for place, row in enumerate(report.rows) if row.standing}
    trials = [
        {
            "label": ", ".join(dict.fromkeys((label, seeds_text(trial)))),
            "setting": found.get(identity(trial.seedless()), -1),
            "state": trial.state,
            "batch": _batch(trial),
        }
        for trial, label in _labelled(report)
    ]
    curves = _curves([trial for trial, _ in _labelled(report)])
    return {
        "axes": axes,
        "settings": settings,
        "trials": trials,
        "metrics": [[key, *METRICS[key]] for key in curves],
        "curves": curves,
        "effects": _effects(report, keys, places),
    }


def varying(report: Report) -> list[str]:
    """The axes with several values, without the seeds."""
    return [key for key, values in report.sweep.axes.items() if key not in SEEDS and len(values) > 1]


def thinned(count: int, most: int) -> list[int]:
    """At most `most` places of `count`, evenly spread, first and last among them."""
    if count <= most:
        return [*range(count)]
    return np.unique(np.linspace(0, count - 1, most).round().astype(int)).tolist()


def smoothed(values: Sequence[float]) -> list[float]:
    """The mean of each point and its neighbours, about a twentieth of the run, fewer of them at both ends."""
    size = max(2, len(values) // 40)
    sums = np.concatenate(([0.0], np.cumsum(values)))
    places = np.arange(len(values))
    reach = np.minimum(size, np.minimum(places, len(values) - 1 - places))
    return ((sums[places + reach + 1] - sums[places - reach]) / (2 * reach + 1)).tolist()


def _labelled(report: Report) -> list[tuple[Trial, str]]:
    return [(trial, row.label) for row in report.rows for trial in row.trials]


def _axis(key: str, report: Report) -> dict[str, Any]:
    """Values in order; `scale` says whether they are a grid or a range; `cells` are the heat map's."""
    known = report.sweep.axes
    values = [*known[key]]
    if any(key not in s.axes for s in report.answer.standings):
        values.append(None)
    texts = [*dict.fromkeys(NONE if value is None else value_text(value) for value in values)]
    numbers = [number_of(value) for value in values]
    axis: dict[str, Any] = {"key": key, "name": short_names(known)[key], "values": texts}
    there = [number for number in numbers if number is not None]
    if len(texts) <= GRID_VALUES or len(there) < len(values) or len(there) != len(texts):
        return axis | {"scale": "grid", "numbers": None, "cells": texts, "cell": [*range(len(texts))]}
    log = min(there) > 0 and max(there) / min(there) >= 20
    cell = [i * BINS // len(there) for i in range(len(there))]  # values are in order of size
    bins = [[n for n, c in zip(there, cell, strict=True) if c == b] for b in range(BINS)]
    names = [f"{number_text(_short(b[0]))} … {number_text(_short(b[-1]))}" for b in bins]
    return axis | {"scale": "log" if log else "linear", "numbers": there, "cells": names, "cell": cell}


def _short(value: float) -> float:
    return float(f"{value:.2g}")


def _text(axes: Mapping[str, Any], key: str) -> str:
    value = axes.get(key)
    return NONE if value is None else value_text(value)


def _effects(report: Report, keys: Sequence[str], places: Mapping[str, Mapping[str, int]]) -> list[dict[str, Any]]:
    effects = []
    for number, key in enumerate(keys):
        own = [e for e in report.answer.effects if e.axis == key]
        points = [
            [
                places[key][NONE if e.value is None else value_text(e.value)],
                *_numbers(e.accuracy, e.accuracy_interval.low, e.accuracy_interval.high),
                *_numbers(e.margin, e.margin_interval.low, e.margin_interval.high),
                e.settings,
            ]
            for e in own
        ]
        if len(points) > 1:
            effects.append({"axis": number, "points": sorted(points)})
    return effects


def _curves(trials: Sequence[Trial]) -> dict[str, list[list[Any]]]:
    """By metric: [trial, steps, values], noisy ones smoothed, long ones thinned."""
    found: dict[str, list[tuple[int, list[int], list[float]]]] = {key: [] for key in METRICS}
    for number, trial in enumerate(trials):
        for key, (steps, values) in _series(trial).items():
            found[key].append((number, steps, values))
    curves = {}
    for key, lines in found.items():
        if not any(len(steps) > 1 for _, steps, _ in lines):
            continue
        most = max(12, min(400, MOST_POINTS // len(lines)))
        curves[key] = [[number, *_line(key, steps, values, most)] for number, steps, values in lines]
    return curves


def _line(key: str, steps: list[int], values: list[float], most: int) -> tuple[list[int], list[float | None]]:
    if key.startswith("train/") and key not in EXACT and len(values) >= SMOOTHED_FROM:
        values = smoothed(values)
    places = thinned(len(steps), most)
    return [steps[i] for i in places], [_number(values[i]) for i in places]


def _series(trial: Trial) -> dict[str, tuple[list[int], list[float]]]:
    found: dict[str, tuple[list[int], list[float]]] = {}
    for row in trial.rows:
        step = row.get("step")
        if not isinstance(step, int):
            continue
        for key, raw in row.items():
            if step == 0 and key == "val/rewards/accuracies" and "val/logratios/margins" in row:
                continue  # the policy still is the reference: no pair has a margin
            if key in METRICS and (value := number_of(raw)) is not None:
                steps, values = found.setdefault(key, ([], []))
                steps.append(step)
                values.append(value)
    return found


def _batch(trial: Trial) -> float | None:
    """Pairs of a step; None where nobody knows."""
    config = trial.facts.get("config")
    optim = config.get("optim") if isinstance(config, Mapping) else None
    fixed = optim.get("batch_size") if isinstance(optim, Mapping) else None
    return number_of(trial.axes.get("optim.batch_size", fixed))


def _numbers(*values: float) -> list[float | None]:
    return [_number(value) for value in values]


def _number(value: float | None) -> float | None:
    """Five figures are enough to draw."""
    return float(f"{value:.5g}") if value is not None and math.isfinite(value) else None
