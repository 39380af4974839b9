"""The leaderboard: a row a setting, best first, then what could not be compared; in the terminal, as CSV, as Markdown."""

import csv
import io
import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from dpo_lab.sweep.results import Sweep, Trial
from dpo_lab.sweep.statistics import Answer, Interval, Standing
from dpo_lab.sweep.wording import SEEDS, fixed, identity, kl_text, percent, setting_text, value_text

LEFT_OVER = {"kl": "val/kl", "accuracy": "val/rewards/accuracies", "margin": "val/logratios/margins"}


@dataclass(frozen=True)
class Row:
    """A setting and its trials, those that differ in seeds alone.

    Attributes:
        place: from 1; None for a setting that could not be compared.
        label: the setting in words.
        axes: its values, without seeds.
        standing: how it did, where it was compared.
        trials: all of them, in the order in which they started.
    """

    place: int | None
    label: str
    axes: dict[str, Any]
    standing: Standing | None
    trials: tuple[Trial, ...]

    @property
    def state(self) -> str:
        """`done`, or how many trials are in which state."""
        states = Counter(trial.state for trial in self.trials)
        if len(states) == 1:
            return next(iter(states))
        return ", ".join(f"{n} {state}" for state, n in sorted(states.items(), key=lambda s: (s[0] != "done", s[0])))


@dataclass(frozen=True)
class Score:
    """A single trial's means over the held-out pairs; None where it has none."""

    accuracy: float | None
    margin: float | None
    kl: float | None


def rank(sweep: Sweep, answer: Answer) -> tuple[Row, ...]:
    """Every setting: the compared ones as the answer ranks them, then the others as they were started."""
    groups: dict[str, list[Trial]] = {}
    for trial in sweep.trials:
        groups.setdefault(identity(trial.seedless()), []).append(trial)
    rows = []
    for place, standing in enumerate(answer.standings, 1):
        trials = groups.pop(identity(standing.trials[0].seedless()), list(standing.trials))
        rows.append(Row(place, standing.label, standing.axes, standing, tuple(trials)))
    others = sorted(groups.values(), key=lambda trials: trials[0].number)
    return (*rows, *(Row(None, setting_text(t[0].seedless()), t[0].seedless(), None, tuple(t)) for t in others))


def score(trial: Trial) -> Score:
    """From the trial's last evaluation of the held-out pairs."""
    last = {name: _finite(trial.metrics.get(key)) for name, key in LEFT_OVER.items()}
    if trial.pairs is not None and len(trial.pairs.margins):
        last |= {
            "accuracy": _finite(float(trial.pairs.correct.mean())),
            "margin": _finite(float(trial.pairs.margins.mean())),
        }
    return Score(**last)


def best_trial(standing: Standing) -> Trial:
    """The setting's trial with the highest accuracy, ties by margin, then by who came first."""

    def order(trial: Trial) -> tuple[float, float, int]:
        own = score(trial)
        return own.accuracy or 0.0, -math.inf if own.margin is None else own.margin, -trial.number

    return max(standing.trials, key=order)


def seeds_text(trial: Trial) -> str:
    """`seed 0`: what tells a trial from the others of its setting."""
    return ", ".join(f"{key} {value_text(trial.axes[key])}" for key in SEEDS if key in trial.axes) or trial.id


def between(interval: Interval, scale: float = 1.0, digits: int = 1) -> str:
    """`58.1 to 66.0`."""
    return f"{fixed(scale * interval.low, digits)} to {fixed(scale * interval.high, digits)}"


def as_csv(sweep: Sweep, rows: tuple[Row, ...], reasons: dict[str, str]) -> str:
    """A line a trial, with the columns of its setting; `reasons` says why a trial was left out, by id."""
    keys = [*sweep.axes]
    metrics = sorted({name for trial in sweep.trials for name in trial.metrics})
    lines = [
        {**_setting_columns(row), **_trial_columns(trial, reasons), **{key: _cell(trial.axes.get(key)) for key in keys}}
        | {name: trial.metrics.get(name) for name in metrics}
        for row in rows
        for trial in row.trials
    ]
    columns = ["place", "setting", "trial", *keys, "state", "accuracy", "margin", "kl"]
    columns = [*dict.fromkeys([*columns, *(name for line in lines for name in line)])]
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return out.getvalue()


def as_markdown(rows: tuple[Row, ...], most: int = 50) -> str:
    """The compared settings as a table; the longer rest is in the CSV."""
    shown = [row for row in rows if row.standing][:most]
    lines = [
        "| | setting | accuracy [95 %] | margin, nats [95 %] | behind the best, points | KL | answer tokens | seeds |",
        "| --: | :-- | :-- | :-- | :-- | --: | --: | --: |",
    ]
    for row in shown:
        s = row.standing
        assert s is not None
        cells = (
            f"{row.place}{' ●' if s.may_be_best else ''}",
            cell(row.label),
            f"{percent(s.accuracy)} [{between(s.accuracy_interval, 100)}]",
            f"{fixed(s.margin)} [{between(s.margin_interval, digits=2)}]",
            f"{fixed(100 * s.behind, 1)} [{between(s.behind_interval, 100)}]",
            kl_text(s.kl),
            fixed(s.tokens, 0),
            str(len(s.trials)),
        )
        lines.append(f"| {' | '.join(cells)} |")
    more = sum(row.standing is not None for row in rows) - len(shown)
    end = f"\n\n{more:,} more settings are in leaderboard.csv." if more > 0 else ""
    return "\n".join(lines) + f"\n\n● may be the best at 95 % confidence.{end}"


def cell(text: str) -> str:
    """Text of the data inside a Markdown table: on one line, neither column nor HTML."""
    for sign, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("|", "\\|"), ("`", "\\`"), ("*", "\\*")):
        text = text.replace(sign, entity)
    return " ".join(text.split())


def as_table(rows: tuple[Row, ...], most: int = 15) -> Table:
    """The terminal's leaderboard: the best settings."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("", justify="right", no_wrap=True)
    table.add_column("setting", overflow="fold", ratio=1)
    for name in ("accuracy", "[95 %]", "margin", "behind", "KL", "tokens", "seeds"):
        table.add_column(Text(name), justify="right", no_wrap=True)
    for row in [row for row in rows if row.standing][:most]:
        s = row.standing
        assert s is not None
        table.add_row(
            f"{row.place} {'●' if s.may_be_best else ' '}",
            Text(row.label),
            percent(s.accuracy),
            Text(between(s.accuracy_interval, 100), style="dim"),
            fixed(s.margin),
            "" if row.place == 1 else fixed(100 * s.behind, 1),
            kl_text(s.kl),
            fixed(s.tokens, 0),
            str(len(s.trials)),
            style="bold" if row.place == 1 else "",
        )
    return table


def _setting_columns(row: Row) -> dict[str, Any]:
    s = row.standing
    if s is None:
        return {"place": None, "setting": row.label}
    spans = {"accuracy": s.accuracy_interval, "margin": s.margin_interval, "behind": s.behind_interval}
    values = {"accuracy": s.accuracy, "margin": s.margin, "behind": s.behind}
    columns: dict[str, Any] = {"place": row.place, "setting": row.label}
    for name, span in spans.items():
        columns |= {f"setting_{name}": values[name], f"setting_{name}_low": span.low, f"setting_{name}_high": span.high}
    own = {"may_be_best": s.may_be_best, "setting_kl": s.kl, "setting_tokens": s.tokens}
    return columns | own | {"setting_seeds": len(s.trials)}


def _trial_columns(trial: Trial, reasons: dict[str, str]) -> dict[str, Any]:
    own = score(trial)
    return {
        "trial": trial.id,
        "state": trial.state,
        "accuracy": own.accuracy,
        "margin": own.margin,
        "kl": own.kl,
        "step": trial.step,
        "steps": trial.steps,
        "seconds": trial.seconds,
        "reason": " ".join((trial.reason or reasons.get(trial.id, "")).split()),
    }


def _cell(value: Any) -> Any:
    return value if value is None or isinstance(value, int | float) else value_text(value)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
