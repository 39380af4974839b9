"""The curves of a run: metrics.jsonl drawn as one self-contained page, curves.html.

`train/<name>` and `val/<name>` share a panel, and so do the metrics that mean little without each other (chosen and
rejected). A metric that is not in PANELS gets a panel of its own at the end.
"""

import html
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dpo_lab.runtime.files import atomic_write, read_jsonl

PANELS = {  # title: the metrics in it
    "Loss": ["loss"],
    "Reward accuracy": ["rewards/accuracies"],
    "Reward margin": ["rewards/margins"],
    "Rewards": ["rewards/chosen", "rewards/rejected"],
    "Log-ratio margin (nats)": ["logratios/margins"],
    "Log-ratios to the reference (nats)": ["logratios/chosen", "logratios/rejected"],
    "Log-probs of the answers (nats)": ["logps/chosen", "logps/rejected"],
    "KL(policy ‖ reference) per token (nats)": ["kl"],
    "Gradient norm": ["grad_norm"],
    "Learning rate": ["lr"],
    "Pairs per second": ["pairs_per_second"],
    "Tokens per answer": ["tokens/chosen", "tokens/rejected"],
}
COLORS = {
    "": ("#4C78C8", "#E0701B"),
    "chosen": ("#3BA272", "#14532D"),
    "rejected": ("#E0627A", "#881337"),
}  # train, val
SMOOTHED_FROM = 24  # points; fewer are drawn as they are
EXACT = ("lr",)  # metrics without noise
MOST_POINTS = 2000  # of one line; a longer one is thinned out

PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
html {{ overflow-y: scroll; }}
body {{ margin: 0; padding: 24px; font-family: system-ui, sans-serif; color: #1f2937; background: #f5f6f8; }}
h1 {{ font-size: 19px; font-weight: 600; margin: 0 0 4px; overflow-wrap: anywhere; }}
p {{ font-size: 13px; color: #6b7280; margin: 0 0 18px; }}
main {{ display: grid; gap: 16px; grid-template-columns: repeat(auto-fill, minmax(min(100%, 420px), 1fr)); }}
section {{ background: #fff; border: 1px solid #e5e7eb; border-radius: 8px; padding: 12px 8px 4px; min-width: 0; overflow: hidden; }}
h2 {{ font-size: 14px; font-weight: 600; margin: 0 8px; }}
section > div {{ height: 270px; }}
</style></head><body>
<h1>{title}</h1>
<p>{about}</p>
<main>
{panels}
</main></body></html>
"""


@dataclass
class Series:
    """One metric of one split over the steps."""

    split: str  # train or val
    name: str
    steps: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)


def write_curves(run_dir: Path, title: str) -> Path | None:
    """Draw run_dir/metrics.jsonl into run_dir/curves.html; None where there is nothing to draw."""
    from plotly.io import to_html

    series = read_series(run_dir / "metrics.jsonl")
    panels = arrange(series)
    if not panels:
        return None
    first, last = min(one.steps[0] for one in series), max(one.steps[-1] for one in series)
    sections = []
    for i, (heading, content) in enumerate(panels.items()):
        chart = to_html(
            figure(content, first, last),
            include_plotlyjs=i == 0,
            full_html=False,
            default_height="270px",
            div_id=f"panel-{i}",
            config={"displaylogo": False, "displayModeBar": False, "responsive": True},
        )
        sections.append(f"<section><h2>{html.escape(heading)}</h2>{chart}</section>")
    about = f"{last} steps."
    if any(is_smoothed(one) for one in series):
        about += " Training is noisy: the thin line is each step, the strong one its running average."
    path = run_dir / "curves.html"
    atomic_write(path, PAGE.format(title=html.escape(title), about=about, panels="\n".join(sections)))
    return path


def read_series(path: Path) -> list[Series]:
    """Every train/ and val/ metric of metrics.jsonl; values that are no finite number are left out."""
    series: dict[str, Series] = {}
    for row in read_jsonl(path):
        for key, raw in row.items():
            split, _, name = key.partition("/")
            if split in ("train", "val") and math.isfinite(value := _number(raw)):
                one = series.setdefault(key, Series(split, name))
                one.steps.append(row["step"])
                one.values.append(value)
    return list(series.values())


def arrange(series: list[Series]) -> dict[str, list[Series]]:
    """The panels that have something to show, in the order of PANELS, then the metrics that are not in it."""
    known = {name for names in PANELS.values() for name in names}
    titles = PANELS | {one.name: [one.name] for one in series if one.name not in known}
    panels = {title: [one for name in names for one in series if one.name == name] for title, names in titles.items()}
    return {title: content for title, content in panels.items() if content}


def figure(content: list[Series], first: int, last: int) -> Any:
    """One panel: training as a thin line with its running average on top, validation as points on a line.

    All panels of a page show the steps from `first` to `last`.
    """
    import plotly.graph_objects as go

    chart = go.Figure()
    several = len({one.name for one in content}) > 1
    for one in content:
        kind = one.name.rpartition("/")[2] if several else ""
        color = COLORS.get(kind, COLORS[""])[one.split == "val"]
        label = f"{one.split} {kind}".strip()
        line = {"color": color, "width": 1.8, "dash": "dot" if one.split == "val" else "solid"}
        few = one.split == "val" or len(one.steps) < SMOOTHED_FROM
        marker = {"color": color, "size": 7 if one.split == "val" else 5}
        if is_smoothed(one):
            strong = line | {"width": 2.2}
            smooth = running_average(one.values)
            x, y = _thinned(one.steps), _thinned(smooth)
            chart.add_scatter(x=x, y=y, name=label, legendgroup=label, mode="lines", line=strong, hoverinfo="skip")
            line = line | {"width": 1}
        chart.add_scatter(
            x=_thinned(one.steps),
            y=_thinned(one.values),
            name=label,
            legendgroup=label,
            showlegend=not is_smoothed(one),
            opacity=0.35 if is_smoothed(one) else 1,
            mode="lines+markers" if few else "lines",
            line=line,
            marker=marker,
            hovertemplate="%{y:.4~g}",
        )
    axis = {"gridcolor": "#eef0f3", "zeroline": False, "linecolor": "#d1d5db", "automargin": True}
    pad = max(last - first, 1) * 0.03
    steps = {
        "title": {"text": "step", "font": {"size": 12}, "standoff": 4},
        "showline": True,
        "range": [first - pad, last + pad],
        "dtick": 1 if last - first <= 8 else None,
        "unifiedhovertitle": {"text": "step %{x}"},
    }
    legend: dict[str, Any] = {"orientation": "h", "x": 0, "xanchor": "left", "y": 1.02, "yanchor": "bottom"}
    if len(content) > 2:  # two rows of two, rather than three and one
        legend |= {"entrywidth": 0.4, "entrywidthmode": "fraction"}
    chart.update_layout(
        template="plotly_white",
        font={"family": "system-ui, sans-serif", "size": 12, "color": "#374151"},
        margin={"l": 8, "r": 12, "t": 34, "b": 8},
        hovermode="x unified",
        hoverlabel={"bgcolor": "rgba(255,255,255,0.95)"},
        showlegend=True,
        legend=legend,
        xaxis=axis | steps,
        yaxis=axis | {"exponentformat": "e", "nticks": 6},
    )
    return chart


def is_smoothed(one: Series) -> bool:
    """Whether the panel shows a running average: many noisy points."""
    return one.split == "train" and one.name not in EXACT and len(one.values) >= SMOOTHED_FROM


def running_average(values: list[float]) -> list[float]:
    """An exponential average over about a twentieth of the run, free of the pull of its start."""
    keep = 1 - 2 / (max(5, len(values) / 20) + 1)
    total = weight = 0.0
    smooth = []
    for value in values:
        total = keep * total + (1 - keep) * value
        weight = keep * weight + (1 - keep)
        smooth.append(total / weight)
    return smooth


def _number(raw: Any) -> float:
    try:
        return float(raw)
    except (TypeError, ValueError):
        return math.nan


def _thinned(points: list[Any]) -> list[Any]:
    stride = math.ceil(len(points) / MOST_POINTS)
    return points if stride <= 1 else [*points[:-1:stride], points[-1]]
