"""Who won how often: the numbers, and how they are shown."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from dpo_lab.inference.evals.blind import Match
from dpo_lab.inference.evals.wilson import Side, Tally
from dpo_lab.inference.talk.clean import shown
from dpo_lab.runtime.terminal import Terminal

COUNTED = "A tie counts as half a win, also where both gave the same answer; intervals are Wilson's, 95 %."


@dataclass(frozen=True)
class Score:
    """How one contestant does against another.

    Attributes:
        names: the one whose wins are counted, and the other.
        tally: of the prompts that were decided.
        same: of these, prompts that got the same answer from both; nobody was asked about them.
        missing: prompts that nobody decided.
    """

    names: tuple[str, str]
    tally: Tally
    same: int
    missing: int

    @property
    def what(self) -> str:
        """In words."""
        return f"{self.names[0]} over {self.names[1]}"

    def to_json(self) -> dict[str, Any]:
        """As plain containers."""
        low, high = self.tally.interval or (None, None)
        first, second = self.names
        counts = {"won": self.tally.won, "tied": self.tally.tied, "lost": self.tally.lost}
        counts |= {"same": self.same, "missing": self.missing}
        return {"first": first, "second": second, "win_rate": self.tally.rate, "low": low, "high": high, **counts}


def scores(matches: Sequence[Match], side_of: Callable[[Match], Side | None]) -> list[Score]:
    """The score of each pair of contestants.

    Prompts that got the same answer from both are ties, in proportion: where half of the others are decided, half of
    them count. So a vote that has only begun isn't drowned in them.

    Args:
        matches: all of them.
        side_of: who won one; None where nobody decided. Not asked where the answers are the same.
    """
    of_pair: dict[tuple[str, str], list[Side | None]] = {}
    same: dict[tuple[str, str], int] = {}
    for match in matches:
        found = of_pair.setdefault(match.names, [])
        if match.same:
            same[match.names] = same.get(match.names, 0) + 1
        else:
            found.append(side_of(match))
    return [_score(names, found, same.get(names, 0)) for names, found in of_pair.items()]


def _score(names: tuple[str, str], sides: Sequence[Side | None], same: int) -> Score:
    decided: list[Side] = [side for side in sides if side is not None]
    ties = round(same * len(decided) / len(sides)) if sides else same
    tally = Tally.of(decided)
    return Score(names, replace(tally, tied=tally.tied + ties), ties, len(sides) - len(decided))


def show_scores(terminal: Terminal, who: str, found: Sequence[Score]) -> None:
    """A table of win rates; `who` decided."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=Text(who, style="bold"), title_justify="left")
    table.add_column("better answers", overflow="fold")
    for name in ("win rate", "95 %", "won", "tied", "lost", "open"):
        table.add_column(name, justify="right", no_wrap=True)
    for score in found:
        rate, interval, tally = score.tally.rate, score.tally.interval, score.tally
        sure = interval is not None and not interval[0] <= 0.5 <= interval[1]
        table.add_row(
            shown(score.what),
            Text("–" if rate is None else f"{100 * rate:.1f} %", style="bold" if sure else ""),
            "–" if interval is None else f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f}",
            *(str(n) for n in (tally.won, tally.tied, tally.lost, score.missing)),
        )
    terminal.console.print(table)
