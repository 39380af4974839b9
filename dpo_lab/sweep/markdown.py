"""report.md: what the page says, as far as text can."""

import re

from dpo_lab.sweep.contents import Report, facts_line
from dpo_lab.sweep.leaderboard import as_markdown, between, cell
from dpo_lab.sweep.samples import Sample
from dpo_lab.sweep.wording import fixed, percent, setting_text, value_text

MOST_LOST = 50


def markdown(report: Report) -> str:
    """The report as Markdown; sections with nothing to show are left out."""
    sections = [
        f"# {cell(report.title)}\n\n**{cell(report.answer.sentence)}**\n\n{facts_line(report)}",
        _section("Leaderboard", as_markdown(report.rows) if report.answer.standings else ""),
        _section("Effect of each axis", _effects(report)),
        _section("What did not count", _lost(report)),
        _section("Sample answers", "\n\n".join(_sample(report, sample) for sample in report.samples)),
        _section("The winner's command", _fenced(report.command, "sh") if report.command else ""),
        _section("What to try next", "\n".join(_advice(report))),
        _section("Facts", "\n".join(f"- {name}: {cell(text)}" for name, text in report.facts.items())),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _section(title: str, text: str) -> str:
    return f"## {title}\n\n{text}" if text else ""


def _effects(report: Report) -> str:
    lines = []
    for e in report.answer.effects:
        cells = (
            cell(e.axis),
            cell(value_text(e.value)),
            f"{percent(e.accuracy)} [{between(e.accuracy_interval, 100)}]",
            f"{fixed(e.margin)} [{between(e.margin_interval, digits=2)}]",
            str(e.settings),
        )
        lines.append(f"| {' | '.join(cells)} |")
    head = "| axis | value | accuracy [95 %] | margin, nats [95 %] | settings |\n| :-- | :-- | :-- | :-- | --: |"
    return "\n".join([head, *lines]) if lines else ""


def _lost(report: Report) -> str:
    lines = [
        f"- {cell(trial.id)} ({cell(setting_text(trial.axes))}): {cell(why)}" for trial, why in report.lost[:MOST_LOST]
    ]
    more = len(report.lost) - MOST_LOST
    return "\n".join([*lines, *([f"- {more:,} more are in leaderboard.csv"] if more > 0 else [])])


def _sample(report: Report, sample: Sample) -> str:
    asked = "\n\n".join(f"{cell(role)}:\n\n{_fenced(text)}" for role, text in sample.prompt)
    answers = {"the reference": sample.reference}
    for row, answer in zip(report.best, sample.answers, strict=True):
        if answer is not None:
            answers[f"{row.place}. {cell(row.label)}"] = answer
    return "\n\n".join([asked, *(f"**{who}**\n\n{_fenced(text)}" for who, text in answers.items()), "---"])


def _advice(report: Report) -> list[str]:
    lines = []
    for advice in report.advice:
        lines.append(f"- {cell(advice.text)}")
        if advice.commands:
            block = _fenced("\n".join(advice.commands), "sh")
            lines += ["", *(f"  {line}" for line in block.splitlines()), ""]
    return lines


def _fenced(text: str, language: str = "") -> str:
    """A block of code whose fence is longer than any in the text."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"
