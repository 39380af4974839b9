"""The parts of the page that are HTML from the start: leaderboard, failures, samples, commands, facts."""

import html
import math
from dataclasses import dataclass

from dpo_lab.sweep.contents import Report
from dpo_lab.sweep.leaderboard import Row, between, score, seeds_text
from dpo_lab.sweep.page_data import varying
from dpo_lab.sweep.results import Trial
from dpo_lab.sweep.samples import Sample
from dpo_lab.sweep.statistics import Interval
from dpo_lab.sweep.wording import NONE, fixed, kl_text, number_of, percent, setting_text, short_names, value_text

SHOWN = 20  # settings, until the reader asks for all
MOST_AXES = 6  # with a column of their own; more are told in words
FIRST_LOST, MOST_LOST = 8, 200


@dataclass(frozen=True)
class Span:
    """The range over which the interval bars of the leaderboard are drawn."""

    low: float
    high: float

    def bar(self, value: float, interval: Interval) -> str:
        """A bar from one end of the interval to the other, with a mark at the value."""
        ends = [self._share(x) for x in (interval.low, interval.high, value)]
        width = max(ends[1] - ends[0], 0.5)
        return f"<i class='bar' style='--low:{ends[0]:.1f}%;--width:{width:.1f}%;--at:{ends[2]:.1f}%'></i>"

    def _share(self, value: float) -> float:
        wide = self.high - self.low
        return 50.0 if not wide > 0 or not math.isfinite(value) else 100 * min(1, max(0, (value - self.low) / wide))


def leaderboard(report: Report) -> str:
    """A table with a body for each setting: its row, and its trials, folded."""
    keys = varying(report)
    own = keys if len(keys) <= MOST_AXES else []
    names = short_names(report.sweep.axes)
    standings = report.answer.standings
    span = Span(
        min((s.accuracy_interval.low for s in standings), default=0.0),
        max((s.accuracy_interval.high for s in standings), default=1.0),
    )
    heads = [("place", "#", "num"), ("setting", "setting", "label" + ("" if own else " always"))]
    heads += [(f"axis{i}", _e(names[key]), "axis") for i, key in enumerate(own)]
    heads += [("accuracy", "accuracy", "wide"), ("margin", "margin <small>nats</small>", "num"), ("kl", "KL", "num")]
    if any(s.tokens is not None for s in standings):
        heads.append(("tokens", "answer <small>tokens</small>", "num"))
    heads += [("behind", "behind best <small>points</small>", "num"), ("state", "state", "")]
    first = "".join(
        f"<th class='{kind}' scope='col' data-sort='{key}' aria-sort='{'ascending' if key == 'place' else 'none'}'>"
        f"<button type='button'>{text}</button></th>"
        for key, text, kind in heads
    )
    columns = [key for key, *_ in heads]
    bodies = "".join(_body(row, place, own, columns, span) for place, row in enumerate(report.rows))
    more = len(report.rows) - SHOWN
    button = f"<button type='button' id='all'>Show all {len(report.rows):,} settings</button>" if more > 0 else ""
    note = (
        "<p class='note'><b class='dot'></b> may be the best, at 95 % confidence for all settings together. Bars: 95 % "
        "intervals. A row opens to its trials.</p>"
    )
    return (
        f"<div class='scroll'><table id='board' class='{'columns' if own else 'words'}'><thead><tr>{first}</tr></thead>"
        f"{bodies}</table></div>{button}{note}"
    )


def failures(report: Report) -> str:
    """Every trial that does not count, with why."""
    rows = [
        f"<tr><td class='id'>{_link(trial)}</td><td>{_e(setting_text(trial.axes))}</td>"
        f"<td>{_state(trial)}</td><td>{_e(why)}</td></tr>"
        for trial, why in report.lost[:MOST_LOST]
    ]
    more = len(report.lost) - MOST_LOST
    note = f"<p class='note'>{more:,} more are in leaderboard.csv.</p>" if more > 0 else ""
    head = "<thead><tr><th>trial</th><th>setting</th><th>state</th><th>why</th></tr></thead>"

    def table(some: list[str]) -> str:
        return f"<div class='scroll'><table class='plain lost'>{head}<tbody>{''.join(some)}</tbody></table></div>"

    if len(rows) <= FIRST_LOST:
        return table(rows)
    rest = f"<summary>{len(report.lost) - FIRST_LOST:,} more</summary>{table(rows[FIRST_LOST:])}{note}"
    return f"{table(rows[:FIRST_LOST])}<details class='rest'>{rest}</details>"


def samples(report: Report) -> str:
    """One fold a prompt; the first is open."""
    return "".join(_sample(report, sample, place == 0) for place, sample in enumerate(report.samples))


def commands(lines: tuple[str, ...] | list[str]) -> str:
    """Commands with a button that copies them."""
    text = _e("\n".join(lines))
    return f"<div class='command'><pre><code>{text}</code></pre><button type='button' class='copy'>Copy</button></div>"


def advice(report: Report) -> str:
    """What to try next."""
    items = [f"<li><p>{_e(a.text)}</p>{commands(a.commands) if a.commands else ''}</li>" for a in report.advice]
    return f"<ul class='advice'>{''.join(items)}</ul>"


def facts(report: Report) -> str:
    """Where the numbers come from."""
    rows = "".join(f"<div><dt>{_e(name)}</dt><dd>{_e(text)}</dd></div>" for name, text in report.facts.items())
    return f"<dl>{rows}</dl>"


def _body(row: Row, place: int, own: list[str], columns: list[str], span: Span) -> str:
    s = row.standing
    values = [row.axes.get(key) for key in own]
    texts = [NONE if value is None else value_text(value) for value in values]
    sort: dict[str, float | str | None] = {"place": float(place), "setting": row.label, "state": row.state}
    for i, (value, text) in enumerate(zip(values, texts, strict=True)):
        number = number_of(value)
        sort[f"axis{i}"] = text if number is None else number
    shown = {f"axis{i}": _e(text) for i, text in enumerate(texts)}
    shown |= {"setting": _e(row.label), "state": _e("" if row.state == "done" else row.state)}
    if s is not None:
        sort |= {"accuracy": s.accuracy, "margin": s.margin, "kl": s.kl, "tokens": s.tokens, "behind": s.behind}
        seeds = f"{len(s.trials)} seeds" if len(s.trials) > 1 else "1 seed"
        shown |= {
            "accuracy": f"<b>{percent(s.accuracy)}</b> <small>{between(s.accuracy_interval, 100)}</small>"
            f"{span.bar(s.accuracy, s.accuracy_interval)}",
            "margin": f"{fixed(s.margin)}<small>{between(s.margin_interval, digits=2)}</small>",
            "kl": kl_text(s.kl),
            "tokens": fixed(s.tokens, 0),
            "behind": ""
            if place == 0
            else f"{fixed(100 * s.behind, 1)}<small>{between(s.behind_interval, 100)}</small>",
            "state": f"<span class='quiet'>{shown['state'] or seeds}</span>",
        }
    mark = f"<b class='dot' title='may be the best'></b>{row.place}" if s and s.may_be_best else f"{row.place or ''}"
    shown["place"] = f"<button type='button' class='fold' aria-expanded='false' aria-label='trials of {_e(row.label)}'></button>{mark}"  # fmt: skip
    cells = "".join(_cell(key, shown.get(key, NONE), sort.get(key)) for key in columns)
    hidden = " hidden" if place >= SHOWN else ""
    trials = "".join(_trial(trial, len(own), columns) for trial in row.trials)
    kind = "setting" if s else "setting out"
    return f"<tbody{hidden}><tr class='{kind}'>{cells}</tr>{trials}</tbody>"


def _cell(key: str, text: str, value: float | str | None) -> str:
    kind = {"setting": "label", "accuracy": "wide", "state": "", "axis": "axis"}.get(key.rstrip("0123456789"), "num")
    worth = "" if value is None else f" data-v='{_e(f'{value:.8g}' if isinstance(value, float) else str(value))}'"
    return f"<td class='{kind}'{worth}>{text}</td>"


def _trial(trial: Trial, axes: int, columns: list[str]) -> str:
    own = score(trial)
    shown = {
        "accuracy": percent(own.accuracy),
        "margin": fixed(own.margin),
        "kl": kl_text(own.kl),
        "state": _state(trial) + (f"<small>step {trial.step:,}</small>" if trial.state != "done" else ""),
    }
    name = f"{_e(seeds_text(trial))} {_link(trial)}" if seeds_text(trial) != trial.id else _link(trial)
    rest = "".join(
        f"<td class='{'wide' if key == 'accuracy' else '' if key == 'state' else 'num'}'>{shown.get(key, '')}</td>"
        for key in columns[2 + axes :]
    )
    # Two cells hold the name: one where the axes have columns, one where the setting is told in words.
    across = f"<td class='axis' colspan='{axes}'>{name}</td>" if axes else ""
    return f"<tr class='trial' hidden><td></td><td class='label'>{name}</td>{across}{rest}</tr>"


def _sample(report: Report, sample: Sample, is_open: bool) -> str:
    turns = "".join(f"<p class='turn'><small>{_e(role)}</small>{_e(text)}</p>" for role, text in sample.prompt)
    asked = sample.prompt[-1][1] if sample.prompt else ""
    answers = [("the reference", "reference", sample.reference)]
    for row, answer in zip(report.best, sample.answers, strict=True):
        answers.append((f"{row.place}. {row.label}", "", NONE if answer is None else answer))
    columns = "".join(
        f"<section class='{kind}'><h4>{_e(who)}</h4><div class='text'>{_e(text)}</div></section>"
        for who, kind, text in answers
    )
    title = " ".join(asked.split())
    title = f"{title[:160]}…" if len(title) > 160 else title
    return (
        f"<details{' open' if is_open else ''}><summary>{_e(title)}</summary><div class='prompt'>{turns}</div>"
        f"<div class='answers'>{columns}</div></details>"
    )


def _link(trial: Trial) -> str:
    """To the trial's own page of curves, where there is one."""
    page = trial.path / "curves.html"
    name = f"<code>{_e(trial.id[:12])}</code>"
    return f"<a href='{_e(trial.path.name)}/curves.html'>{name}</a>" if page.is_file() else name


def _state(trial: Trial) -> str:
    kind = trial.state if trial.state in ("done", "running", "failed", "pruned", "interrupted") else "new"
    return f"<span class='state {kind}'>{_e(trial.state)}</span>"


def _e(text: str) -> str:
    return html.escape(text)
