"""A task, its two answers, and how they become rows of a preference file.

A family is a small function that draws one Task. It knows the facts; a Language knows how to say them: the
chosen answer explains the steps, the rejected one is curt, blusters, or walks through wrong steps.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Kind = Literal["curt", "long_bluster", "bluster", "faked"]
Row = dict[str, object]

# Of 20 rejected answers: longer than the chosen one are the long blusters and half of the faked, about 40 %,
# so that length does not give the label away.
SHARES: dict[Kind, int] = {"curt": 8, "long_bluster": 6, "bluster": 4, "faked": 2}
KINDS: list[Kind] = [kind for kind, share in SHARES.items() for _ in range(share)]


@dataclass(frozen=True)
class Task:
    """One question with its true and its false way to an answer.

    Every field but `prompt` and `short` is a clause: no capital at the start, no full stop at the end.
    """

    prompt: str
    steps: tuple[str, ...]
    answer: str
    wrong: str  # contradicts the answer, or claims what the prompt doesn't hold
    short: str  # the wrong answer in a word or two
    reason: str  # sounds good, and uses nothing of what the prompt gives
    false_steps: tuple[str, ...]  # lead to `wrong`


Family = Callable[[random.Random], Task]


@dataclass(frozen=True)
class Language:
    """How one language asks and answers."""

    systems: tuple[str, ...]
    requests: tuple[str, ...]  # end the prompts that have no system message
    explain: Callable[[random.Random, tuple[str, ...], str], str]
    blurt: Callable[[random.Random, Task], str]
    bluster: Callable[[random.Random, Task, int], str]  # at least that long
    length: Callable[[str], int]


def rows(language: Language, families: tuple[Family, ...], count: int, seed: str) -> list[Row]:
    """`count` rows with distinct prompts, the families and the kinds of rejected answer well mixed.

    >>> rows(ENGLISH, (change,), 1, "en")[0]
    {"prompt": [{"role": "system", ...}, {"role": "user", ...}],
     "chosen": [{"role": "assistant", ...}], "rejected": [...], "family": "change"}
    """
    rng = random.Random(seed)
    kinds: list[Kind] = [KINDS[i % len(KINDS)] for i in range(count)]
    rng.shuffle(kinds)
    made: list[Row] = []
    seen: set[str] = set()
    for i, kind in enumerate(kinds):
        family = families[i % len(families)]
        task = family(rng)
        while task.prompt in seen:
            task = family(rng)
        seen.add(task.prompt)
        made.append(_row(rng, language, task, kind, family.__name__))
    rng.shuffle(made)  # a run on the first n pairs sees every family
    return made


def _row(rng: random.Random, language: Language, task: Task, kind: Kind, family: str) -> Row:
    if rng.randrange(10):
        system = [{"role": "system", "content": rng.choice(language.systems)}]
        user = task.prompt
    else:
        system = []
        user = f"{task.prompt}{rng.choice(language.requests)}"
    chosen = language.explain(rng, task.steps, task.answer)
    return {
        "prompt": [*system, {"role": "user", "content": user}],
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": _rejected(rng, language, task, kind, chosen)}],
        "family": family,
    }


def _rejected(rng: random.Random, language: Language, task: Task, kind: Kind, chosen: str) -> str:
    match kind:
        case "curt":
            return language.blurt(rng, task)
        case "bluster":
            return language.bluster(rng, task, 0)
        case "long_bluster":
            return language.bluster(rng, task, language.length(chosen) + 1)
        case "faked":
            return language.explain(rng, task.false_steps, task.wrong)


def near_miss(rng: random.Random, value: int, *, spread: int = 4) -> int:
    """A positive number close to `value` but not equal to it."""
    low = max(1, value - spread)
    return rng.choice([n for n in range(low, value + spread + 1) if n != value])
