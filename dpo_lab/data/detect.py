"""Which format rows are in, by their columns and what these hold."""

from collections.abc import Mapping, Sequence

from dpo_lab.data.labels import ANSWERS as REPLIES
from dpo_lab.data.labels import LABELS
from dpo_lab.data.messages import decoded, first, is_conversation, is_transcript
from dpo_lab.data.ranking import PROMPTS, RANK, RANKS, SCORE, SCORES, holds, two_of
from dpo_lab.data.types import Row

SHAPES = {  # format -> the columns that tell it
    "trl": "prompt, chosen, rejected; or chosen, rejected with the prompt in both",
    "alpaca": "instruction, input, chosen, rejected (system, history)",
    "sharegpt": "conversations of {from, value}, chosen, rejected",
    "openai": "messages of {role, content}, chosen, rejected",
    "v1": "chosen_messages, rejected_messages",
    "orca": "system, question, chosen, rejected",
    "argilla": "instruction, chosen_response, rejected_response",
    "icr": "system, input, chosen, rejected",
    "hh": "chosen, rejected as texts of 'Human:' and 'Assistant:'",
    "ultrafeedback": "prompt, chosen, rejected, score_chosen, score_rejected",
    "ranked": "prompt, answers of {answer, rank}; or prompt, answers, ranks",
    "scored": "prompt, answers, scores; or two answers and a verdict (response_0, response_1, better_response_id)",
    "kto": "prompt, completion, label; or messages, label",
}
CHOSEN_SCORES = (
    ("score_chosen", "score_rejected"),
    ("chosen_score", "rejected_score"),
    ("chosen_rating", "rejected_rating"),
    ("chosen-rating", "rejected-rating"),
    ("rating_chosen", "rating_rejected"),
    ("chosen_reward", "rejected_reward"),
    ("chosen_avg_rating", "rejected_avg_rating"),
)


def detect(rows: Sequence[Row], columns: Mapping[str, str]) -> str | None:
    """The format of the first row that has all that a format needs, else what the first rows resemble.

    Args:
        rows: the first rows, their columns renamed.
        columns: the names that were asked for: a mapped `query` is alpaca's.
    """
    filled = [{name: value for name, value in row.items() if value is not None} for row in rows]
    for row in filled:
        if name := _certain(row, columns):
            return name
    for row in rows:
        if name := _certain(row, columns) or _likely(row):
            return name
    return None


def scores_of(row: Row) -> tuple[str, str] | None:
    """The columns of the scores that chosen and rejected have, if they have any."""
    return next((both for both in CHOSEN_SCORES if both[0] in row and both[1] in row), None)


def _certain(row: Row, columns: Mapping[str, str]) -> str | None:
    """The format of a row that is complete."""
    if {"chosen_messages", "rejected_messages"} <= row.keys():
        return "v1"
    if {"chosen_response", "rejected_response"} <= row.keys():
        return "argilla"
    if {"chosen", "rejected"} <= row.keys():
        return _of_pairs(row, columns)
    return _of_answers(row)


def _of_pairs(row: Row, columns: Mapping[str, str]) -> str | None:
    chosen, rejected = row["chosen"], row["rejected"]
    whole = is_conversation(chosen) and is_conversation(rejected)
    if (is_transcript(chosen) and is_transcript(rejected)) or is_transcript(row.get("prompt")):
        return "hh"
    if whole or "prompt" in row:
        if not whole and ("history" in row or "query" in columns or "instruction" in row):
            return "alpaca"
        return "ultrafeedback" if scores_of(row) else "trl"
    for column, name in (
        ("conversations", "sharegpt"),
        ("messages", "openai"),
        ("instruction", "alpaca"),
        ("question", "orca"),
        ("input", "icr"),
    ):
        if column in row:
            return name
    return None


def _of_answers(row: Row) -> str | None:
    if any(name in row for name in LABELS) and _labelled(row):
        return "kto"
    output = decoded(row.get("output"))
    if "instruction" in row and isinstance(output, list) and len(output) == 2:
        return "alpaca"
    if any(name in row for name in PROMPTS):
        if two_of(row) or holds(row, SCORES, SCORE):
            return "scored"
        if holds(row, RANKS, RANK):
            return "ranked"
    return None


def _labelled(row: Row) -> bool:
    said = first(row, ("messages", "conversations", "prompt"))
    return any(name in row for name in REPLIES) or isinstance(decoded(said), list)


def _likely(row: Row) -> str | None:
    """What an incomplete row resembles, so that its fault can be told."""
    if "conversations" in row:
        return "sharegpt"
    if "instruction" in row:
        return "alpaca"
    if "messages" in row and ("chosen" in row or "rejected" in row):
        return "openai"
    if ("prompt" in row and ("chosen" in row or "rejected" in row)) or {"chosen", "rejected"} <= row.keys():
        return "trl"
    return None
