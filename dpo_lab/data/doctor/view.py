"""Pairs and reports in the terminal."""

from collections.abc import Iterable, Sequence

from rich.cells import cell_len, chop_cells
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dpo_lab.data.doctor.findings import Finding, Histogram, Report
from dpo_lab.data.doctor.pieces import Pieces, visible
from dpo_lab.data.templates import Template
from dpo_lab.data.types import Example

HEAD, TAIL = 160, 200  # tokens of a long part that are shown
PLACES = 5  # rows of a finding
SHADES = {  # of a part: tokens alternate between two
    "prompt": ("grey58", "grey46"),
    "chosen": ("green", "green3"),
    "rejected": ("red", "indian_red1"),
}
SPECIAL = "bold reverse"
MARKS = {"error": ("✗ error", "bold red"), "warning": ("! warning", "bold yellow"), "info": ("· info", "bold cyan")}
BARS = " ▁▂▃▄▅▆▇█"


def show_pairs(
    console: Console, examples: Iterable[Example], template: Template, *, ids: bool = False, full: bool = False
) -> None:
    """Pairs as the model sees them, token by token.

    Where there are no colours a bar stands between tokens.

    Args:
        console: where to.
        examples: what.
        template: tokenizer and chat template.
        ids: write the ids after each token.
        full: show long parts in full; else their beginning and end.
    """
    pieces = Pieces(template)
    for example in examples:
        where = f"{example.pair.source.rsplit('/', 1)[-1]} row {example.pair.row}".strip()
        console.rule(Text(visible(where, breaks=False), style="bold"), align="left")
        parts = (("prompt", example.prompt_ids), ("chosen", example.chosen_ids), ("rejected", example.rejected_ids))
        for name, tokens in parts:
            title = Text(f"{name} ", style=f"bold {SHADES[name][0]}")
            title.append(f"{len(tokens):,} token{'' if len(tokens) == 1 else 's'}", style="dim")
            console.print(title)
            shown = _tokens(pieces, tokens, SHADES[name], ids=ids, full=full, console=console)
            console.print(shown, no_wrap=True, overflow="ignore", crop=False)
        console.print()


def show_report(console: Console, report: Report) -> None:
    """Findings, the worst first, then token lengths and the line that sums up."""
    if report.findings:
        table = Table.grid(padding=(0, 2, 1, 0))
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold", ratio=1)
        for finding in report.findings:
            mark, style = MARKS[finding.severity]
            table.add_row(Text(mark, style=style), _finding(finding))
        console.print(table)
    for histogram in report.histograms:
        console.print(_histogram(histogram, report))
    if report.skipped:
        console.print(Text(f"No time for: {', '.join(report.skipped)}.", style="yellow"))
    style = MARKS[report.worst][1] if report.worst else "bold green"
    console.print(Text(report.summary(), style=style))


class _Lines:
    """Text that is folded between tokens, and within one only where it is longer than a line."""

    def __init__(self, width: int) -> None:
        self.text, self._width, self._used = Text(), width, 0

    def add(self, token: str, style: str) -> None:
        """One token, or a note to it."""
        for number, line in enumerate(token.split("\n")):
            if number or 0 < self._used > self._width - cell_len(line):
                self._break()
            for row, piece in enumerate(chop_cells(line, self._width)):
                if row:
                    self._break()
                self.text.append(piece, style=style)
                self._used += cell_len(piece)

    def _break(self) -> None:
        self.text.append("\n")
        self._used = 0


def _tokens(
    pieces: Pieces, tokens: Sequence[int], shades: tuple[str, str], *, ids: bool, full: bool, console: Console
) -> Text:
    short = full or len(tokens) <= HEAD + TAIL + 40
    lines = _Lines(console.width)
    for number, part in enumerate([tokens] if short else [tokens[:HEAD], tokens[-TAIL:]]):
        if number:
            lines.add(f"\n... {len(tokens) - HEAD - TAIL:,} tokens left out ...\n", "italic dim")
        for i, piece in enumerate(pieces.group(part)):
            if console.color_system is None and i:
                lines.add("|", "")
            shown = visible(piece.text)
            body = shown.rstrip("\n") if ids else shown
            lines.add(body, f"{shades[i % 2]} {SPECIAL}" if piece.special else shades[i % 2])
            if ids:
                lines.add(f"‹{','.join(map(str, piece.ids))}›{shown[len(body) :]}", "dim cyan")
    return lines.text


def _finding(finding: Finding) -> Text:
    text = Text(visible(finding.check), style="bold")
    text.append(f"  {visible(finding.message, breaks=False)}", style="not bold")
    text.append(f"\n→ {visible(finding.fix, breaks=False)}", style="not bold")
    if finding.rows:
        text.append(f"\n  {visible(_places(finding), breaks=False)}", style="not bold dim")
    if finding.example:
        text.append(f"\n  “{visible(finding.example, breaks=False)}”", style="not bold italic dim")
    return text


def _places(finding: Finding) -> str:
    """The first rows, by source."""
    sources: dict[str, list[str]] = {}
    for place in finding.rows[:PLACES]:
        sources.setdefault(place.name, []).append(str(place.row))
    named = "; ".join(f"{name} row{'s' if len(rows) > 1 else ''} {', '.join(rows)}" for name, rows in sources.items())
    return named + (", ..." if finding.count > min(PLACES, len(finding.rows)) else "")


def _histogram(histogram: Histogram, report: Report) -> Text:
    top = max(1, *histogram.counts)
    bars = "".join(BARS[min(8, -(-8 * count // top))] for count in histogram.counts)
    text = Text(f"{histogram.name:<9}", style=SHADES.get(histogram.name, ("", ""))[0])
    text.append(f"{bars} ")
    text.append(f"{histogram.edges[0]:,.0f} to {histogram.edges[-1] - 1:,.0f} tokens", style="dim")
    median = report.numbers.get(f"tokens/{histogram.name}/median")
    if median is not None:
        text.append(f", median {median:,.0f}", style="dim")
    return text
