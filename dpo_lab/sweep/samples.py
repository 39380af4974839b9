"""What the best settings answer to the same prompts, beside the reference."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dpo_lab.runtime.files import read_jsonl
from dpo_lab.sweep.leaderboard import best_trial
from dpo_lab.sweep.statistics import Standing

MOST_PROMPTS = 8
LONGEST = 6000  # characters of an answer


@dataclass(frozen=True)
class Sample:
    """A prompt as (role, text) turns, the reference's answer, and one of each setting; None where it has none."""

    prompt: tuple[tuple[str, str], ...]
    reference: str
    answers: tuple[str | None, ...]


def side_by_side(standings: Sequence[Standing]) -> tuple[Sample, ...]:
    """The prompts of the first setting's best trial, with the answers of each setting's best trial."""
    asked = [_answers(read_jsonl(best_trial(standing).path / "samples.jsonl")) for standing in standings]
    if not asked:
        return ()
    return tuple(
        Sample(_turns(first), _text(first.get("reference")), tuple(_policy(answers.get(key)) for answers in asked))
        for key, first in [*asked[0].items()][:MOST_PROMPTS]
    )


def _answers(rows: Sequence[Any]) -> dict[str, dict[str, Any]]:
    """The last row of each prompt."""
    whole = [row for row in rows if isinstance(row, dict) and row.get("prompt") and "policy" in row]
    return {json.dumps(row["prompt"], sort_keys=True): row for row in whole}


def _policy(row: dict[str, Any] | None) -> str | None:
    return None if row is None else _text(row.get("policy"))


def _turns(row: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    prompt = row["prompt"]
    if not isinstance(prompt, list):
        return (("user", _text(prompt)),)
    turns = [turn if isinstance(turn, dict) else {"role": "user", "content": turn} for turn in prompt]
    return tuple((_text(turn.get("role")), _text(turn.get("content"))) for turn in turns)


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else "" if value is None else str(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} …"
