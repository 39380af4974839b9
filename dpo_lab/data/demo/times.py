"""Days of the week, timetables and durations."""

from __future__ import annotations

import random

from dpo_lab.data.demo.english_voice import DAYS, NAMES
from dpo_lab.data.demo.task import Task

EVENTS = ("the exam", "the concert", "the wedding", "the visit to the dentist", "the flight", "the match")


def clock(minutes: int) -> str:
    """Minutes after midnight as 8:05."""
    return f"{minutes // 60}:{minutes % 60:02}"


def weekday(rng: random.Random) -> Task:
    """Which day it is some days later or earlier."""
    today, event = rng.randrange(7), rng.choice(EVENTS)
    ahead = rng.choice((8, 9, 10, 11, 12, 13, 15, 16, 17, 18))
    weeks, rest = divmod(ahead, 7)
    right, now = DAYS[(today + ahead) % 7], DAYS[today]
    bad = rng.choice([day for day in DAYS if day != right])
    prompt = rng.choice(
        (
            f"Today is {now}. {event.capitalize()} is in {ahead} days. On which day of the week is it?",
            f"If it is {now} now, which day will it be {ahead} days from now?",
            f"{event.capitalize()} takes place {ahead} days after a {now}. Which day is that?",
        )
    )
    span = "1 week" if weeks == 1 else f"{weeks} weeks"
    days = "1 day" if rest == 1 else f"{rest} days"
    steps = rng.choice(
        (
            (f"{ahead} days are {span} and {days}", f"after {span} it is {now} again", f"{days} later it is {right}"),
            (
                f"whole weeks change nothing, so only {ahead} - {7 * weeks} = {rest} counts",
                f"{days} after {now} comes {right}",
            ),
        )
    )
    false_steps = (
        f"{ahead} days are {span} and {days}",
        f"after {span} it is {now} again",
        f"{days} later it is {bad}",
    )
    reason = rng.choice(
        (
            "things like that are always put on such a day",
            f"a {bad} is when everyone has time",
            "the calendar repeats itself and people remember it",
        )
    )
    return Task(prompt, steps, f"it is a {right}", f"it is a {bad}", f"a {bad}", reason, false_steps)


def timetable(rng: random.Random) -> Task:
    """The next departure, and how long the wait is."""
    vehicle, first, gap = (
        rng.choice(("bus", "train", "ferry", "tram")),
        rng.randint(84, 210) * 5,
        rng.choice((20, 25, 35)),
    )
    departures = [first + gap * i for i in range(4)]
    index = rng.randint(1, 2)
    wait = rng.randint(2, 14)
    arrival = departures[index] - wait
    name, listed = rng.choice(NAMES), ", ".join(clock(t) for t in departures)
    missed, taken = departures[index - 1], departures[index]
    asked = rng.randrange(2) == 0
    text = rng.choice(
        (
            f"The {vehicle} leaves at {listed}. {name} comes to the stop at {clock(arrival)}.",
            f"Departures of the {vehicle}: {listed}. It is {clock(arrival)} now, and {name} is waiting.",
        )
    )
    check = (
        f"at {clock(arrival)} the {vehicle} of {clock(missed)} is gone",
        f"the one after that leaves at {clock(taken)}",
    )
    if asked:
        question, steps = f"Which {vehicle} can {name} take?", check
        bad = clock(rng.choice((missed, departures[3])))
        answer, wrong, short = f"{name} can take the {clock(taken)}", f"{name} can take the {bad}", f"the {bad}"
        false_steps = (
            f"at {clock(arrival)} {name} comes to the stop",
            f"after {clock(arrival)} the next {vehicle} leaves at {bad}",
        )
    else:
        question = f"How many minutes must {name} wait?"
        steps = (
            f"the next {vehicle} leaves at {clock(taken)}",
            f"from {clock(arrival)} to {clock(taken)} it is {wait} minutes",
        )
        bad = rng.choice([n for n in (5, 10, 15, gap) if n != wait])
        answer, wrong, short = f"the wait is {wait} minutes", f"the wait is {bad} minutes", f"{bad} minutes"
        false_steps = (steps[0], f"from {clock(arrival)} to {clock(taken)} it is {bad} minutes")
    reason = rng.choice(
        (
            f"a {vehicle} is never on time anyway",
            "people who live there know it without a list",
            "that is the usual thing at every stop I have seen",
        )
    )
    return Task(f"{text} {question}", steps, answer, wrong, short, reason, false_steps)


def film(rng: random.Random) -> Task:
    """When something ends, or how long it takes, across a full hour."""
    thing = rng.choice(("film", "concert", "football match", "lesson", "meeting", "play", "guided tour"))
    start, length = rng.randint(100, 250) * 5, rng.randint(14, 32) * 5
    end = start + length
    hours, rest = divmod(length, 60)
    hour_word = "1 hour" if hours == 1 else f"{hours} hours"
    spelled = f"{hour_word} and {rest} minutes" if rest else hour_word
    if rng.randrange(2):
        prompt = rng.choice(
            (
                f"The {thing} starts at {clock(start)} and lasts {length} minutes. When does it end?",
                f"A {thing} of {length} minutes begins at {clock(start)}. At what time is it over?",
            )
        )
        steps = (
            f"{length} minutes are {spelled}",
            f"{hour_word} after {clock(start)} it is {clock(start + 60 * hours)}",
        )
        if rest:
            steps = (*steps, f"{rest} minutes more make {clock(end)}")
        bad = clock(end + rng.choice((-60, -10, -5, 5, 10, 60)))
        answer, wrong, short = f"it ends at {clock(end)}", f"it ends at {bad}", rng.choice((bad, f"at {bad}"))
        false_steps = (f"{length} minutes are {spelled}", f"{spelled} after {clock(start)} it is {bad}")
    else:
        prompt = rng.choice(
            (
                f"The {thing} begins at {clock(start)} and is over at {clock(end)}. How long does it last?",
                f"How many minutes does a {thing} from {clock(start)} to {clock(end)} take?",
            )
        )
        steps = (f"from {clock(start)} to {clock(start + 60 * hours)} it is {hour_word}",)
        steps += (f"{rest} minutes more lead to {clock(end)}",) if rest else (f"{hour_word} make {length} minutes",)
        bad = f"{length + rng.choice((-40, -10, 10, 40))} minutes"
        answer, wrong, short = f"it lasts {length} minutes", f"it lasts {bad}", bad
        false_steps = (steps[0], f"what is left up to {clock(end)} makes it {bad}")
    reason = rng.choice(
        (
            f"a {thing} is always planned like that",
            "nobody wants to get home any later",
            "it feels that long when you are sitting there",
        )
    )
    return Task(prompt, steps, answer, wrong, short, reason, false_steps)
