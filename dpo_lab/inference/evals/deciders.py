"""Who says whose answers are better: people on a blind page, or a judge."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dpo_lab.config.door_schema import Judge
from dpo_lab.inference.evals.blind import PAGE, Match, arrange, write_blind
from dpo_lab.inference.evals.duel_report import Score, scores, show_scores
from dpo_lab.inference.evals.endpoint import Endpoint
from dpo_lab.inference.evals.judge import Asking, Question, Verdict, winner
from dpo_lab.inference.evals.ledger import Ledger
from dpo_lab.inference.evals.votes import read_votes
from dpo_lab.inference.evals.wilson import Side
from dpo_lab.runtime.files import short
from dpo_lab.runtime.terminal import Terminal

log = logging.getLogger(__name__)
Part = tuple[list[Score], dict[str, Any]]  # the scores, and how they came about


def by_people(matches: Sequence[Match], folder: Path, seed: int, terminal: Terminal) -> Part | None:
    """Write the page, and count the votes that are there; None without any.

    Args:
        matches: all of them; those with the same answer twice are not shown.
        folder: takes the page, and has the votes.
        seed: of who stands left.
        terminal: shows the result, or how to get one.
    """
    shown = arrange([m for m in matches if not m.same], seed)
    if not shown:
        terminal.say("All give the same answers: there is nothing to compare.")
        return None
    page = write_blind(folder, shown)
    votes = read_votes(folder, page, shown)
    for problem in votes.problems:
        log.warning(problem)
    if not votes.n:
        terminal.facts(
            {
                "page": f"{short(folder / PAGE)}: for people, who vote without knowing whose answers they see. Give them "
                "that file alone.",
                "votes": f"put the files that it saves into {short(folder)} and run the same command again.",
            }
        )
        return None
    sides: dict[int, Side | None] = {id(s.match): votes.side(s) for s in shown}
    found = scores(matches, lambda match: sides.get(id(match)))
    show_scores(terminal, "people", found)
    agreed = "" if votes.agreement is None else f"; two of them agreed {100 * votes.agreement:.0f} % of the time"
    terminal.say(f"{votes.n} votes of {votes.raters} {'person' if votes.raters == 1 else 'people'}{agreed}.")
    return found, {"raters": votes.raters, "votes": votes.n, "agreement": votes.agreement}


def by_judge(judge: Judge, matches: Sequence[Match], endpoint: Endpoint, folder: Path, terminal: Terminal) -> Part:
    """Ask the judge about what it hasn't answered yet, and count.

    Args:
        judge: how it is asked.
        matches: all of them; those with the same answer twice are not asked about.
        endpoint: the judge.
        folder: keeps the verdicts.
        terminal: shows progress and the result.

    Raises:
        JudgeError: the judge gives no verdicts.
    """
    asked = {id(m): (_question(m), _question(m, back=True)) for m in matches if not m.same}
    questions = [q for both in asked.values() for q in both]
    asking = Asking(endpoint, Ledger(folder / "judgements.jsonl"), judge.retries, judge.concurrency)
    open_ones = len({q.id(endpoint) for q in questions}) - len(asking.verdicts(questions))
    with terminal.progress("judge", open_ones, unit="questions") as bar:
        asking.ask(questions, bar)
    verdicts = asking.verdicts(questions)
    both: dict[int, tuple[Verdict | None, Verdict | None]] = {
        place: (verdicts.get(forth.id(endpoint)), verdicts.get(back.id(endpoint)))
        for place, (forth, back) in asked.items()
    }
    sides: dict[int, Side | None] = {place: winner(*pair) for place, pair in both.items()}
    found = scores(matches, lambda match: sides.get(id(match)))
    show_scores(terminal, f"judge {judge.model}", found)
    facts = {"model": endpoint.model, "base_url": endpoint.base_url} | _consistency(verdicts, [*both.values()])
    missing = asking.missing(questions)
    for line in _remarks(facts, missing):
        terminal.say(line)
    return found, facts | {"missing": missing}


def _question(match: Match, *, back: bool = False) -> Question:
    (first, second), (ours, theirs) = match.names, match.answers
    if back:
        return Question(match.prompt, match.conversation, (second, first), (theirs, ours))
    return Question(match.prompt, match.conversation, (first, second), (ours, theirs))


def _consistency(
    verdicts: Mapping[str, Verdict], both: Sequence[tuple[Verdict | None, Verdict | None]]
) -> dict[str, Any]:
    """How often the judge named either place, and how often it said the same in both orders."""
    places = Counter(verdicts.values())
    decided = [pair for pair in both if None not in pair]
    steady = sum(pair in (("A", "B"), ("B", "A"), ("TIE", "TIE")) for pair in decided)
    return {
        "verdicts": {name: places[name] for name in ("A", "B", "TIE")},
        "asked_in_both_orders": len(decided),
        "same_in_both_orders": steady,
    }


def _remarks(facts: Mapping[str, Any], missing: Mapping[str, int]) -> list[str]:
    first, second = (facts["verdicts"][place] for place in ("A", "B"))
    steady, decided = facts["same_in_both_orders"], facts["asked_in_both_orders"]
    lines = [f"The judge said the same in both orders {steady} of {decided} times; where it did not, that is a tie."]
    if first + second:
        lines.append(
            f"When it named one, it named the answer that came first in {100 * first / (first + second):.0f} %."
        )
    if missing:
        why = ", ".join(f"{n} x {reason}" for reason, n in missing.items())
        lines.append(
            f"{sum(missing.values())} verdicts are missing ({why}). Their prompts do not count; the same command asks again."
        )
    return lines
