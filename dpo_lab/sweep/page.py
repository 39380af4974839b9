"""One HTML file with the whole report; it needs nothing but a browser."""

import base64
import gzip
import html
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dpo_lab.runtime.files import atomic_write, filled
from dpo_lab.sweep import page_parts as parts
from dpo_lab.sweep import page_places as places
from dpo_lab.sweep.contents import Report, facts_line
from dpo_lab.sweep.page_data import page_data
from dpo_lab.sweep.wording import counted

HERE = Path(__file__).parent
SCRIPTS = ("page.js", "charts.js", "parallel.js")
LONG = 130  # characters of the headline, from which on it is set smaller
VERDICTS = {"clear winner": "clear", "no clear winner": "open", "leader": "leader"}  # as the style sheet colours them


def write_page(path: Path, report: Report) -> None:
    """Write the page, atomically. No text of the data is read as HTML.

    Raises:
        OutputError: it cannot be written.
    """
    from plotly.offline import get_plotlyjs

    data = page_data(report)
    answer = report.answer
    first, dot, more = answer.sentence.partition(". ")
    first += dot.strip()
    page = filled(
        (HERE / "page.html").read_text(encoding="utf-8"),
        {
            "title": html.escape(report.title),
            "verdict": VERDICTS.get(answer.verdict, "none"),
            "verdict_text": html.escape(answer.verdict),
            "sentence": html.escape(first),
            "length": "long" if len(first) > LONG else "",
            "more": html.escape(more),
            "facts": html.escape(facts_line(report)),
            "css": (HERE / "page.css").read_text(encoding="utf-8"),
            "sections": _sections(report, data),
            "plotly": packed(get_plotlyjs()),
            "data": packed(json.dumps(data, separators=(",", ":"))),
            "js": "\n".join((HERE / name).read_text(encoding="utf-8") for name in SCRIPTS),
        },
    )
    atomic_write(path, page.encode("utf-8", "replace"))


def packed(text: str) -> str:
    """Compressed, as text that HTML leaves alone."""
    return base64.b64encode(gzip.compress(text.encode(), 6, mtime=0)).decode()


def _sections(report: Report, data: Mapping[str, Any]) -> str:
    """Those that have something to show, and the links to them."""
    several = len(data["settings"]) > 1
    grid = [axis for axis in data["axes"] if len(axis["cells"]) > 1]
    has_kl = sum(setting["kl"] is not None for setting in data["settings"]) > 1
    lost = f"Did not count <small>{counted(len(report.lost), 'trial')}</small>"
    sections = (  # place, its name in the bar, its heading, what stands there
        ("board", "Leaderboard", "Leaderboard", parts.leaderboard(report) if report.rows else ""),
        ("curves", "Curves", "Curves", places.curves(data) if data["curves"] else ""),
        ("effects", "Effects", "Effect of each axis", places.effects(data) if data["effects"] else ""),
        ("heat", "Heat map", "Two axes at a time", places.heat(data) if len(grid) > 1 and several else ""),
        ("parallel", "Parallel", "All axes at a time", places.PARALLEL if grid and several else ""),
        ("pareto", "Pareto", "Pareto front", places.pareto() if has_kl else ""),
        ("lost", "Did not count", lost, parts.failures(report) if report.lost else ""),
        ("samples", "Answers", "Sample answers", parts.samples(report) if report.samples else ""),
        ("winner", "Winner", "The winner's command", _command(report) if report.command else ""),
        ("next", "Next", "What to try next", parts.advice(report) if report.advice else ""),
        ("facts", "Facts", "Facts", parts.facts(report)),
    )
    there = [section for section in sections if section[-1]]
    links = "".join(f"<a href='#{place}-section'>{name}</a>" for place, name, *_ in there)
    body = "".join(
        f"<section class='card' id='{place}-section'><h2>{title}</h2>{content}</section>"
        for place, _, title, content in there
    )
    return f"<nav aria-label='sections'><div>{links}</div></nav><main>{body}</main>"


def _command(report: Report) -> str:
    row = report.rows[0]
    what = {"clear winner": "the clear winner", "no clear winner": "the leader, not a clear winner"}
    who = what.get(report.answer.verdict, "the leader")
    assert report.winner is not None
    assert report.command is not None
    best = " Of its trials this one is the best." if len(row.trials) > 1 else ""
    folder = f"<code>winner</code> leads to <code>{html.escape(report.winner.id)}/final</code>."
    text = f"<p><b>{html.escape(row.label)}</b> is {who}.{best} {folder}</p>"
    return text + parts.commands([report.command])
