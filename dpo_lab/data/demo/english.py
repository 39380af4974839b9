"""The English pairs: which families train, which are held out, and what the system asks for."""

from __future__ import annotations

from dpo_lab.data.demo import arithmetic, english_voice, logic, reading, times
from dpo_lab.data.demo.task import Language, Row, rows

TRAIN = (
    *(reading.notice, reading.missing, reading.cause, reading.opinion, reading.hearsay),
    *(arithmetic.change, arithmetic.conversion, arithmetic.stock, arithmetic.recipe, arithmetic.travel),
    *(arithmetic.average, arithmetic.sequence, arithmetic.area, times.weekday, times.timetable),
    *(logic.order, logic.syllogism, logic.odd_one_out, logic.letters, logic.code, logic.elimination, logic.chance),
)
EVAL = (reading.choice, reading.message, arithmetic.ages, times.film, logic.directions, logic.queue)

ENGLISH = Language(
    systems=(
        "Think step by step and explain your steps.",
        "Reason step by step. If the text does not say, tell us so.",
        "Explain how you get to the answer.",
        "Show your steps, and say when something is not in the text.",
        "Work it out step by step. Do not guess.",
        "Think first, explain each step, then answer.",
        "Explain your reasoning and use only what is given.",
        "Go through the question step by step.",
        "Give your reasons before the answer. Never make things up.",
        "You are a careful tutor. Explain every step.",
        "Think it through aloud. If it cannot be known, say that.",
        "Answer step by step and stick to the text.",
    ),
    requests=(
        " Explain your steps.",
        " Please think step by step.",
        " How do you know?",
        " Show how you get there.",
        " Give your reasons.",
    ),
    explain=english_voice.explain,
    blurt=english_voice.blurt,
    bluster=english_voice.bluster,
    length=english_voice.length,
)


def train_rows() -> list[Row]:
    """The 320 training pairs."""
    return rows(ENGLISH, TRAIN, 320, "english train 4")


def eval_rows() -> list[Row]:
    """The 80 held-out pairs, from families that the training pairs don't have."""
    return rows(ENGLISH, EVAL, 80, "english eval 4")
