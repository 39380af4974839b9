"""What people said on the blind page: files of votes, read back and counted."""

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from dpo_lab.inference.evals.blind import CHOICES, Shown
from dpo_lab.inference.evals.wilson import Side
from dpo_lab.runtime.files import read_json

VOTES = "votes*.json"


@dataclass(frozen=True)
class Votes:
    """The votes of all raters.

    Attributes:
        raters: who voted.
        given: left, right and tie for each item of the page that somebody voted on.
        problems: what is wrong with files that were left out, a sentence each.
    """

    raters: int
    given: Mapping[str, Sequence[str]]
    problems: tuple[str, ...] = ()

    @property
    def n(self) -> int:
        """How many votes there are."""
        return sum(len(found) for found in self.given.values())

    @property
    def agreement(self) -> float | None:
        """How often two raters of the same item said the same; None where no item has two."""
        pairs = [a == b for found in self.given.values() for a, b in combinations(found, 2)]
        return sum(pairs) / len(pairs) if pairs else None

    def side(self, shown: Shown) -> Side | None:
        """Who won a match: whom most raters preferred, a tie where nobody leads; None without a vote."""
        found = Counter(self.given.get(shown.id, ()))
        if not found:
            return None
        lead = found["right"] - found["left"] if shown.turned else found["left"] - found["right"]
        return "first" if lead > 0 else "second" if lead < 0 else "tie"


def read_votes(folder: Path, page: str, shown: Sequence[Shown]) -> Votes:
    """The votes in the folder's files, of each rater the last that were saved.

    Args:
        folder: with files as the page saves them.
        page: what the page is called in them.
        shown: its items.
    """
    latest: dict[str, dict[str, Any]] = {}
    problems = []
    for path in sorted(folder.glob(VOTES)):
        content: Any = None
        with suppress(RecursionError):  # a file that nests without end
            content = read_json(path)
        if why := _wrong(content, page, {s.id for s in shown}):
            problems.append(f"{path.name} does not count: {why}.")
            continue
        former = latest.get(content["session"])
        if former is None or former["saved"] <= content["saved"]:
            latest[content["session"]] = content
    given: dict[str, list[str]] = {}
    for content in latest.values():
        for item, choice in content["votes"].items():
            given.setdefault(item, []).append(choice)
    return Votes(len(latest), given, tuple(problems))


def _wrong(content: Any, page: str, known: set[str]) -> str | None:
    """Why a file's content is not votes on this page."""
    if not isinstance(content, dict) or not isinstance(votes := content.get("votes"), dict):
        return "it is damaged, or no file that the page saved"
    if content.get("page") != page:
        return "its votes are on other answers"
    named = isinstance(content.get("session"), str) and isinstance(content.get("saved"), int | float)
    if not named or not votes.keys() <= known or any(choice not in CHOICES for choice in votes.values()):
        return "it was changed after the page had saved it"
    return None
