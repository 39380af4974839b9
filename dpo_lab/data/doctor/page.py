"""One HTML file with the report and all pairs: raw, rendered and tokenised side by side."""

import base64
import gzip
import html
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpo_lab.data.doctor.findings import Finding, Histogram, Report
from dpo_lab.data.doctor.pieces import Pieces, visible
from dpo_lab.data.templates import Template
from dpo_lab.data.types import Example
from dpo_lab.runtime.files import atomic_write, filled

HERE = Path(__file__).parent
MARKS = {"error": "✗", "warning": "!", "info": "i"}
WIDTH, HEIGHT = 300, 72  # of a histogram, in CSS pixels


@dataclass(frozen=True)
class PageItem:
    """A pair of the page, or what became of it."""

    split: str  # train | heldout
    source: str
    row: int
    raw: str | None = None  # the source's row as JSON
    example: Example | None = None
    dropped: str | None = None  # why it was left out
    cut: bool = False


def write_page(path: Path, *, title: str, report: Report, items: Iterable[PageItem], template: Template) -> None:
    """Write the page, atomically. It needs nothing but a browser; no text of the data is read as HTML.

    Args:
        path: the file.
        title: its heading.
        report: what stands on top.
        items: the pairs, in the order in which they are shown.
        template: tokenizer and chat template of the examples.

    Raises:
        OutputError: it cannot be written.
    """
    packed = gzip.compress(json.dumps(_data(report, items, template), ensure_ascii=True).encode(), mtime=0)
    parts = {
        "title": html.escape(visible(title, breaks=False)),
        "css": (HERE / "page.css").read_text(encoding="utf-8"),
        "js": (HERE / "page.js").read_text(encoding="utf-8"),
        "report": report_html(report),
        "data": base64.b64encode(packed).decode(),
    }
    atomic_write(path, filled((HERE / "page.html").read_text(encoding="utf-8"), parts))


def report_html(report: Report) -> str:
    """Summary, findings and histograms."""
    numbers = (
        ("pairs to train on", f"{report.sizes.get('train', 0):,}"),
        ("held out", f"{report.sizes.get('heldout', 0):,}"),
        ("longer answer chosen", _share(report.numbers.get("length_bias/longer_chosen"))),
        ("bag of words", _share(report.numbers.get("words/accuracy"))),
    )
    tiles = "".join(f"<div class='tile'><b>{value}</b><span>{name}</span></div>" for name, value in numbers)
    findings = "".join(_finding(i, finding) for i, finding in enumerate(report.findings))
    charts = "".join(_chart(h, report.numbers.get(f"tokens/{h.name}/median")) for h in report.histograms)
    skipped = f"<p class='skipped'>No time for: {html.escape(', '.join(report.skipped))}.</p>" if report.skipped else ""
    worst = report.worst or "good"
    return (
        f"<p class='summary {worst}'>{html.escape(report.summary())}</p><div class='tiles'>{tiles}</div>"
        f"<ol class='findings'>{findings}</ol>{skipped}<div class='charts'>{charts}</div>"
    )


def _data(report: Report, items: Iterable[PageItem], template: Template) -> dict[str, Any]:
    """What the script reads. Token ids become places in `vocab`, which holds (id, text or bytes, special)."""
    pieces, places, sources, rows = Pieces(template), {}, {}, []

    def place_of(token: int) -> int:
        return places.setdefault(token, len(places))

    for item in items:
        example = item.example
        ids = () if example is None else (example.prompt_ids, example.chosen_ids, example.rejected_ids)
        rows.append(
            {
                "s": item.split,
                "f": sources.setdefault(item.source, len(sources)),
                "n": item.row,
                "r": _pretty(item.raw),
                "t": [[place_of(token) for token in part] for part in ids] or None,
                "d": item.dropped,
                "x": int(item.cut),
            }
        )
    return {
        "items": rows,
        "sources": [*sources],
        "vocab": [_entry(pieces, token) for token in places],
        "findings": [
            {"check": f.check, "severity": f.severity, "rows": [[p.split, p.source, p.row] for p in f.rows]}
            for f in report.findings
        ],
    }


def _entry(pieces: Pieces, token: int) -> list[Any]:
    text = pieces.text(token)
    return [token, [*pieces.content(token)] if text is None else text, int(pieces.is_special(token))]


def _pretty(raw: str | None) -> str | None:
    """JSON with one field a line; another text as it is."""
    if raw is None:
        return None
    try:
        return json.dumps(json.loads(raw), indent=2, ensure_ascii=False)
    except (ValueError, RecursionError):
        return raw


def _finding(number: int, finding: Finding) -> str:
    example = f"<p class='example'>{html.escape(visible(finding.example, breaks=False))}</p>" if finding.example else ""
    rows = f"<button type='button' data-finding='{number}'>show the pairs</button>" if finding.rows else ""
    return (
        f"<li class='{finding.severity}'><span class='mark' aria-hidden='true'>{MARKS[finding.severity]}</span><div>"
        f"<h3>{html.escape(finding.check)} <small>{finding.severity}</small></h3>"
        f"<p>{html.escape(visible(finding.message, breaks=False))}</p>"
        f"<p class='fix'>{html.escape(finding.fix)}</p>{example}{rows}</div></li>"
    )


def _chart(histogram: Histogram, median: float | int | None) -> str:
    """Bars, and the range and median in words below."""
    n, top = len(histogram.counts), max(1, *histogram.counts)
    width = WIDTH / n
    bars = "".join(
        f"<rect x='{i * width:.1f}' y='{HEIGHT - HEIGHT * count / top:.1f}' width='{max(1.0, width - 1):.1f}' "
        f"height='{HEIGHT * count / top:.1f}'><title>{histogram.edges[i]:,.0f} to {histogram.edges[i + 1] - 1:,.0f} "
        f"tokens: {count:,}</title></rect>"
        for i, count in enumerate(histogram.counts)
    )
    name = html.escape(histogram.name)
    middle = f"median {median:,.0f}" if median is not None else ""
    return (
        f"<figure class='{name}'><figcaption>{name} <small>tokens</small></figcaption>"
        f"<svg viewBox='0 0 {WIDTH} {HEIGHT + 1}' preserveAspectRatio='none' role='img' aria-label='token lengths: {name}'>"
        f"{bars}<path d='M0 {HEIGHT + 0.5}H{WIDTH}'/></svg>"
        f"<p><span>{histogram.edges[0]:,.0f}</span><span>{middle}</span><span>{histogram.edges[-1] - 1:,.0f}</span></p>"
        "</figure>"
    )


def _share(value: float | int | None) -> str:
    return "–" if value is None else f"{100 * value:.0f} %"
