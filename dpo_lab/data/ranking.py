"""Rows with several answers to a prompt, in an order or with scores -> the pairs that they make."""

import math
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import Any

from dpo_lab.data.messages import Fault, NoPair, decoded, first, get, given, kind, reply, text, tools
from dpo_lab.data.prompts import Rules, answer, asked, finished, in_full, require_list
from dpo_lab.data.types import Message, Pair, Row

PROMPTS = ("prompt", "instruction", "question", "messages", "conversations", "context", "query", "input", "history")
ANSWERS = ("answers", "responses", "completions", "candidates", "candidates_completions", "outputs")
RANKS = ("ranks", "rank", "ranking")
SCORES = ("scores", "score", "ratings", "rating", "rewards")
TEXT = ("answer", "response", "completion", "text", "content", "output", "value")  # within one answer
RANK = ("rank", "ranking")
SCORE = ("overall_score", "score", "rating", "reward")


@dataclass(frozen=True)
class Two:
    """Columns of two answers, and what says which of them is the better one."""

    answers: tuple[str, str]
    scores: tuple[str, str] | None = None
    index: str = ""  # holds 0 or 1, the better answer
    preference: str = ""  # holds a number below 0 where the first answer is better, above 0 where the second is


TWOS = (
    Two(("response_j", "response_k")),  # Stack Exchange: the first is the better one
    Two(("response_0", "response_1"), index="better_response_id"),  # PKU-SafeRLHF
    Two(("human_ref_A", "human_ref_B"), scores=("score_A", "score_B")),  # SHP
    Two(("response_a", "response_b"), scores=("score_a", "score_b")),
    Two(("response_a", "response_b"), scores=("response_a_score", "response_b_score")),
    Two(("response_1", "response_2"), preference="preference_strength"),  # HelpSteer2
    Two(("response1", "response2"), preference="overall_preference"),  # HelpSteer3
    Two(("response_1", "response_2"), scores=("score_1", "score_2")),
)


def ranked(row: Row, number: int, rules: Rules) -> list[Pair]:
    """Answers in an order, 1 the best (Nectar): `prompt`, `answers` of {answer, rank}.

    Or `prompt`, `answers` (or responses, completions) of texts, and `ranks`; without ranks the best comes first. With
    `history` and `input` where these are given, as in alpaca.
    """
    answers = require_list(decoded(get(row, *ANSWERS)), "answers")
    ranks = _numbers(row, RANKS, RANK, answers, "ranks")
    if first(row, RANKS) is not None and len(answers) > 1 and set(ranks or ()) == {*range(len(answers))}:
        raise Fault(
            "ranks from 0 may be the rank of each answer or the order of their numbers; give ranks from 1, the best, "
            "or the answers in their order without ranks (data.format=ranked 'data.columns={ranks: \"\"}')"
        )
    if ranks is None:
        ranks = [float(place) for place in range(len(answers))]
    return _pairs(answers, [None if r is None else -r for r in ranks], row, number, rules, margin=0.0)


def scored(row: Row, number: int, rules: Rules) -> list[Pair]:
    """Answers with scores, higher is better: `prompt`, `answers` (or responses, completions) and `scores`.

    Or `instruction`, `completions` of {response, overall_score} (UltraFeedback); or two answers in columns of their
    own: `response_0`, `response_1`, `better_response_id` (PKU-SafeRLHF), `human_ref_A`, `human_ref_B`, `score_A`,
    `score_B` (SHP), `response_a`, `response_b`, `score_a`, `score_b`, `question`, `response_j`, `response_k` (Stack
    Exchange), `response_1`, `response_2`, `preference_strength` (HelpSteer).
    """
    if (two := two_of(row)) is not None:
        scores, margin = _verdict(two, row, rules)
        return _pairs([row[name] for name in two.answers], scores, row, number, rules, margin=margin)
    answers = require_list(decoded(get(row, *ANSWERS)), "answers")
    scores = _numbers(row, SCORES, SCORE, answers, "scores")
    if scores is None:
        raise Fault("scores is missing, and the answers hold none")
    return _pairs(answers, scores, row, number, rules, margin=rules.min_margin)


def two_of(row: Row) -> Two | None:
    """The columns of two answers that a row has, if it has such."""
    for two in TWOS:
        needed = (*two.answers, *(two.scores or ()), two.index, two.preference)
        if all(name in row for name in needed if name):
            return two
    return None


def holds(row: Row, columns: tuple[str, ...], keys: tuple[str, ...]) -> bool:
    """Whether the answers of a row come with numbers, in a column of their own or in each answer."""
    answers = decoded(first(row, ANSWERS))
    if not isinstance(answers, list) or not answers:
        return False
    beside = decoded(first(row, columns))
    within = answers[0]
    return isinstance(beside, list) or (isinstance(within, dict) and any(key in within for key in keys))


def _verdict(two: Two, row: Row, rules: Rules) -> tuple[list[float | None], float]:
    """The scores of two answers and the margin that they need; a mere verdict has no margin."""
    if two.scores:
        return [_number(row[name], name) for name in two.scores], rules.min_margin
    if two.index:
        better = _number(row[two.index], two.index)
        if better not in (0, 1, None):
            raise Fault(f"{two.index} must be 0 or 1, not {row[two.index]!r:.40}")
        return [None, None] if better is None else [1 - better, better], 0.0
    if two.preference:
        return [0.0, _number(row[two.preference], two.preference)], 0.0
    return [1.0, 0.0], 0.0


def _pairs(
    answers: list[Any], scores: list[float | None], row: Row, number: int, rules: Rules, *, margin: float
) -> list[Pair]:
    """The pairs of answers whose scores differ, by `margin` or more; answers without a score make none."""
    column, said = given(row, *PROMPTS)
    prompt = finished(in_full(asked(said, "prompt", rules.tags), column, row, rules), row)
    known = tools(row.get("tools"))
    texts = [(score, _answer(a, prompt, rules)) for a, score in zip(answers, scores, strict=True) if score is not None]
    if len(texts) < 2:
        raise NoPair("fewer than two answers with a rank or score")
    texts.sort(key=lambda item: -item[0])
    found = [
        Pair(tuple(prompt), good, bad, number, tools=known)
        for (high, good), (low, bad) in _chosen(texts, rules.ranking)
        if high > low and reaches(high - low, margin)
    ]
    if not found:
        tie = all(score == texts[0][0] for score, _ in texts)
        raise NoPair("no answer is better than another" if tie else "scores differ by less than data.min_margin")
    return found


def _chosen(texts: list[tuple[float, str]], ranking: str) -> list[tuple[tuple[float, str], tuple[float, str]]]:
    if ranking == "best_worst":
        return [(texts[0], texts[-1])]
    return list(pairwise(texts) if ranking == "adjacent" else combinations(texts, 2))


def _answer(value: Any, prompt: list[Message], rules: Rules) -> str:
    value = reply(value, rules.tags)
    if isinstance(value, dict) and first(value, rules.tags.role) is None:
        return text(get(value, *TEXT), "an answer")
    return answer(value, "answers", prompt, rules.tags)


def _numbers(
    row: Row, columns: tuple[str, ...], keys: tuple[str, ...], answers: list[Any], what: str
) -> list[float | None] | None:
    """One number an answer, from a column of their own or from each answer; None where there are none at all."""
    values = decoded(first(row, columns))
    if values is None:
        if not any(isinstance(a, dict) and any(key in a for key in keys) for a in answers):
            return None
        values = [first(a, keys) if isinstance(a, dict) else None for a in answers]
    if not isinstance(values, list) or len(values) != len(answers):
        size = f"{len(values)} numbers" if isinstance(values, list) else kind(values)
        raise Fault(f"{what} must hold a number for each of the {len(answers)} answers, not {size}")
    return [_number(value, what) for value in values]


def _number(value: Any, what: str) -> float | None:
    """A number, or None where there is none: null, not a number, an empty text, N/A."""
    if value is None or (isinstance(value, str) and value.strip().lower() in ("", "n/a", "na", "none", "null")):
        return None
    if not isinstance(value, int | float | str):
        raise Fault(f"{what} must hold numbers, not {kind(value)}")
    try:
        number = float(value)
    except (ValueError, OverflowError):
        raise Fault(f"{what} must hold numbers, not {value!r:.40}") from None
    return None if math.isnan(number) else number


def reaches(difference: float, margin: float) -> bool:
    """Whether two scores are a margin apart, which 4.1 and 4.0 are of 0.1 although floats say 0.0999."""
    return difference >= margin or math.isclose(difference, margin, rel_tol=1e-9)


def margin_of(row: Row, scores: tuple[str, str]) -> float | None:
    """By how much the score of the chosen answer is the higher one; None where one of them has none."""
    good, bad = (_number(row.get(name), name) for name in scores)
    return None if good is None or bad is None else good - bad
