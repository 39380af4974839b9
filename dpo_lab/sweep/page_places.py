"""The places of the page's charts: their controls, and boxes of the size that the script fills."""

import html
from collections.abc import Mapping
from typing import Any

COLORED = 5  # settings with a colour of their own, as in charts.js

PARALLEL = (
    "<p class='note'>A line is a setting, darker where its accuracy is higher. Drag along an axis to select a range, "
    "click the axis to let go of it.</p><div class='parallel' id='parallel'></div>"
    "<p class='told' id='parallel-told'>&nbsp;</p>"
)


def curves(data: Mapping[str, Any]) -> str:
    """The metric, steps or pairs, the chart, and whose lines have which colour."""
    metrics = [title for _, title, _ in data["metrics"]]
    best = [setting["label"] for setting in data["settings"][:COLORED]]
    there = {trial["setting"] for trial in data["trials"]}
    named = "".join(
        f"<span class='s{i}'><i></i>{html.escape(label)}</span>" for i, label in enumerate(best) if i in there
    )
    others = "<span><i></i>the others</span>" if there - {*range(len(best))} else ""
    known = all(trial["batch"] for trial in data["trials"])
    unit = _switch("unit", "x axis", {"step": "steps", "pairs": "pairs"}) if known else ""
    return (
        f"<div class='controls'><label>metric {_select('metric', metrics)}</label>"
        f"{unit}</div><p class='note' id='metric-note'>&nbsp;</p><div class='chart tall' id='curves'></div><div class='legend'>{named}{others}</div>"
    )


def effects(data: Mapping[str, Any]) -> str:
    """A box an axis."""
    boxes = "".join(
        f"<div><h3>{html.escape(data['axes'][effect['axis']]['name'])}</h3><div class='chart small' data-effect='{i}'></div></div>"
        for i, effect in enumerate(data["effects"])
    )
    return (
        "<p class='note'>Means over the settings with this value, and their 95 % intervals.</p>"
        f"<div class='grid'>{boxes}</div>"
    )


def heat(data: Mapping[str, Any]) -> str:
    """The two axes, the measure, and a box as high as the table that comes."""
    measures = {"accuracy": "accuracy", "margin": "margin"}
    if any(setting["kl"] is not None for setting in data["settings"]):
        measures["kl"] = "KL"
    names = [axis["name"] for axis in data["axes"]]
    pickers = f"<label>across {_select('heat-x', names)}</label><label>down {_select('heat-y', names, 1)}</label>"
    if len(names) < 3:
        pickers = f"<span hidden>{pickers}</span>"
    return (
        f"<div class='controls'>{pickers}{_switch('heat-measure', 'measure', measures)}</div>"
        f"<div class='scroll' id='heat' style='min-height:{74 + 47 * len(data['axes'][1]['cells'])}px'></div>"
        "<p class='note' id='heat-note'>&nbsp;</p>"
    )


def pareto() -> str:
    """The measure and the chart."""
    switch = _switch("pareto-measure", "measure", {"accuracy": "accuracy", "margin": "margin"})
    return (
        f"<div class='controls'>{switch}</div><div class='chart tall' id='pareto'></div>"
        "<p class='note' id='pareto-note'>&nbsp;</p>"
    )


def _switch(name: str, label: str, options: Mapping[str, str]) -> str:
    """Buttons of which one is pressed, the first one at the start."""
    buttons = "".join(
        f"<button type='button' data-value='{value}' aria-pressed='{'false' if i else 'true'}'>{text}</button>"
        for i, (value, text) in enumerate(options.items())
    )
    return f"<div class='switch' id='{name}' role='group' aria-label='{label}'>{buttons}</div>"


def _select(name: str, options: list[str], chosen: int = 0) -> str:
    inside = "".join(
        f"<option value='{i}'{' selected' if i == chosen else ''}>{html.escape(text)}</option>"
        for i, text in enumerate(options)
    )
    return f"<select id='{name}'>{inside}</select>"
