"""What a report says, in whatever form: gathered once for terminal, Markdown, CSV and page."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from dpo_lab.sweep.advice import Advice, advise, trial_command
from dpo_lab.sweep.leaderboard import Row, best_trial, rank
from dpo_lab.sweep.provenance import provenance
from dpo_lab.sweep.results import Sweep, Trial
from dpo_lab.sweep.samples import Sample, side_by_side
from dpo_lab.sweep.statistics import Answer
from dpo_lab.sweep.verdict import varied
from dpo_lab.sweep.wording import counted, duration

COMPARED = 3  # settings whose sample answers stand side by side


@dataclass(frozen=True)
class Report:
    """A sweep, its answer, and what follows from them.

    Attributes:
        sweep: what was read.
        answer: what it says.
        rows: of the leaderboard.
        winner: the best trial of the best setting; None where no setting was compared.
        command: that repeats it.
        advice: what to try next.
        samples: answers of the best settings.
        facts: where the numbers come from.
        lost: trials that don't count, with why.
    """

    sweep: Sweep
    answer: Answer
    rows: tuple[Row, ...]
    winner: Trial | None
    command: str | None
    advice: tuple[Advice, ...]
    samples: tuple[Sample, ...]
    facts: dict[str, str]
    lost: tuple[tuple[Trial, str], ...]

    @property
    def title(self) -> str:
        """Of the page and of the Markdown."""
        return f"Sweep {self.sweep.name}"

    @property
    def best(self) -> tuple[Row, ...]:
        """The settings whose samples are shown."""
        return tuple(row for row in self.rows[:COMPARED] if row.standing)

    def file(self, name: str) -> Path:
        """A file of the report in the sweep's folder."""
        return self.sweep.path / name


def gather(sweep: Sweep, answer: Answer) -> Report:
    """All that the forms of the report share."""
    winner = best_trial(answer.standings[0]) if answer.standings else None
    return Report(
        sweep=sweep,
        answer=answer,
        rows=rank(sweep, answer),
        winner=winner,
        command=trial_command(winner) if winner else None,
        advice=advise(sweep, answer),
        samples=side_by_side(answer.standings[:COMPARED]),
        facts=provenance(sweep),
        lost=tuple((trial, _why(trial, why)) for trial, why in answer.left_out),
    )


def facts_line(report: Report) -> str:
    """`12 trials: 10 done, 2 pruned · 6 settings · 64 held-out pairs of 60 prompts · 14 min 3 s of training`."""
    trials, answer = report.sweep.trials, report.answer
    states = Counter(trial.state for trial in trials)
    told = counted(len(trials), "trial")
    told += " done" if [*states] == ["done"] else f": {', '.join(f'{n} {state}' for state, n in states.most_common())}"
    words = [told]
    if answer.standings:
        words.append(f"{counted(len(answer.standings), 'setting')} compared")
        most = max(len(standing.trials) for standing in answer.standings)
        word, each = ("trial", " each") if len(varied(answer.standings)) > 1 else ("seed", "")
        words.append((counted(most, word) if most == answer.seeds else f"{answer.seeds} to {most} {word}s") + each)
        words.append(f"{counted(answer.pairs, 'held-out pair')} of {counted(answer.prompts, 'prompt')}")
    spent = sum(trial.seconds or 0.0 for trial in trials)
    return " · ".join([*words, *([f"{duration(spent)} of training"] if spent else [])])


def _why(trial: Trial, why: str) -> str:
    """The trial's own reason says more than the state alone."""
    own = " ".join(trial.reason.split())
    kind = f" ({trial.kind})" if trial.kind and trial.kind not in why else ""
    return f"{why}{kind}" if not own or own in why else f"{why}{kind}: {own}"
