"""Word problems with whole numbers."""

from __future__ import annotations

import random

from dpo_lab.data.demo.english_voice import NAMES
from dpo_lab.data.demo.task import Task, near_miss

GOODS = ("pens", "notebooks", "apples", "candles", "postcards", "cups", "sandwiches", "balloons", "plants", "buttons")
FOODS = ("flour", "rice", "sugar", "lentils", "pasta", "butter")
NOTES = (10, 20, 50, 100)

# One larger unit, several of it, the smaller unit, how many make one, and what it is easily mistaken for.
UNITS = (
    ("a metre", "metres", "centimetres", 100, 10),
    ("a kilogram", "kilograms", "grams", 1000, 100),
    ("an hour", "hours", "minutes", 60, 100),
    ("a litre", "litres", "millilitres", 1000, 100),
    ("a day", "days", "hours", 24, 12),
    ("a minute", "minutes", "seconds", 60, 100),
    ("a week", "weeks", "days", 7, 5),
    ("a kilometre", "kilometres", "metres", 1000, 100),
    ("a foot", "feet", "inches", 12, 10),
    ("a year", "years", "months", 12, 10),
)


def change(rng: random.Random) -> Task:
    """What comes back when a note is paid with."""
    name, goods, count, price = rng.choice(NAMES), rng.choice(GOODS), rng.randint(2, 6), rng.randint(2, 9)
    total = count * price
    note = next(n for n in NOTES if n > total)
    left = note - total
    bad = near_miss(rng, left)
    prompt, remain = rng.choice(
        (
            (
                f"{name} buys {count} {goods} at {price} dollars each and pays with a {note}-dollar note. "
                "How much change is due?",
                "the change is {} dollars",
            ),
            (
                f"In a shop, {goods} cost {price} dollars each. {name} takes {count} and hands over {note} dollars. "
                "How much comes back?",
                "{} dollars come back",
            ),
            (
                f"You have {note} dollars and buy {count} {goods} for {price} dollars each. What is left?",
                "{} dollars are left",
            ),
        )
    )
    steps = rng.choice(
        (
            (f"the {goods} cost {count} x {price} = {total} dollars", f"{note} - {total} = {left}"),
            (f"{count} times {price} makes {total} dollars", f"from {note} dollars that leaves {left}"),
        )
    )
    false_steps = rng.choice(
        (
            (f"the {goods} cost {count} x {price} = {note - bad} dollars", f"{note} - {note - bad} = {bad}"),
            (f"{count} times {price} makes {note - bad} dollars", f"from {note} dollars that leaves {bad}"),
        )
    )
    reason = rng.choice(
        (
            "shops like round little sums and hardly ever give back anything else",
            "prices like these come out that way every time",
            "people who work in shops know such sums by heart",
        )
    )
    return Task(prompt, steps, remain.format(left), remain.format(bad), f"{bad} dollars", reason, false_steps)


def conversion(rng: random.Random) -> Task:
    """From a larger unit to a smaller one, or back."""
    one, large, small, factor, mistaken = rng.choice(UNITS)
    n = rng.randint(2, 9)
    amount, bad = n * factor, n * mistaken
    if rng.randrange(2):
        prompt = rng.choice(
            (
                f"How many {small} are {n} {large}?",
                f"Convert {n} {large} to {small}.",
                f"What is {n} {large} in {small}?",
            )
        )
        steps = (f"{one} has {factor} {small}", f"{n} x {factor} = {amount}")
        false_steps = (f"{one} has {mistaken} {small}", f"{n} x {mistaken} = {bad}")
        answer, wrong, short = f"the result is {amount} {small}", f"the result is {bad} {small}", f"{bad} {small}"
    else:
        prompt = rng.choice((f"How many {large} are {amount} {small}?", f"Express {amount} {small} in {large}."))
        bad = near_miss(rng, n, spread=3)
        steps = (f"{one} has {factor} {small}", f"{amount} / {factor} = {n}")
        false_steps = (f"{one} has {factor} {small}", f"{amount} / {factor} = {bad}")
        answer, wrong, short = f"the result is {n} {large}", f"the result is {bad} {large}", f"{bad} {large}"
    reason = rng.choice(
        (
            "units like these go up and down in handy little jumps",
            "that is what it says in every school book",
            f"{large} and {small} are nearly the same thing anyway",
        )
    )
    return Task(prompt, steps, answer, wrong, short, reason, false_steps)


def stock(rng: random.Random) -> Task:
    """Full boxes, some of it sold or some more arriving."""
    goods, boxes, each = rng.choice(GOODS), rng.randint(3, 8), rng.randint(4, 12)
    full, moved = boxes * each, rng.randint(3, 11)
    sold = rng.randrange(2) == 0
    left = full - moved if sold else full + moved
    bad = near_miss(rng, left)
    moves = f"{moved} {goods} are sold" if sold else f"{moved} more {goods} arrive"
    prompt = rng.choice(
        (
            f"A shop has {boxes} boxes with {each} {goods} each. Then {moves}. How many {goods} are there now?",
            f"There are {boxes} boxes on a shelf, {each} {goods} in each of them. After that {moves}. "
            "How many does the shop have?",
        )
    )
    sign = "-" if sold else "+"
    steps = rng.choice(
        (
            (f"{boxes} boxes of {each} make {full} {goods}", f"{full} {sign} {moved} = {left}"),
            (f"at the start there are {boxes} x {each} = {full}", f"{moves}, so {full} {sign} {moved} = {left}"),
        )
    )
    slip = bad + moved if sold else bad - moved
    false_steps = (f"{boxes} boxes of {each} make {slip} {goods}", f"{slip} {sign} {moved} = {bad}")
    reason = rng.choice(
        (
            f"no shop would ever keep a different number of {goods}",
            "boxes are always packed for numbers like that",
            "you can feel how many that must be",
        )
    )
    answer, wrong = f"there are {left} {goods} now", f"there are {bad} {goods} now"
    return Task(prompt, steps, answer, wrong, f"{bad} {goods}", reason, false_steps)


def recipe(rng: random.Random) -> Task:
    """The same dish for more people."""
    food, each, people = rng.choice(FOODS), rng.choice((20, 30, 40, 50, 60, 80)), rng.randint(2, 5)
    guests = people + rng.randint(1, 5)
    grams, need = each * people, each * guests
    bad = grams + (guests - people)
    prompt = rng.choice(
        (
            f"A dish for {people} people takes {grams} grams of {food}. How much {food} is needed for {guests} people?",
            f"The recipe says: {grams} g of {food} for {people}. {guests} guests are coming. How many grams is that?",
        )
    )
    steps = rng.choice(
        (
            (f"one person needs {grams} / {people} = {each} grams", f"{guests} x {each} = {need}"),
            (
                f"{grams} grams for {people} people are {each} grams for one",
                f"{guests} people need {guests} x {each}",
            ),
        )
    )
    false_steps = (f"{guests} people are {guests - people} more than {people}", f"{grams} + {guests - people} = {bad}")
    reason = rng.choice(
        (
            f"nobody ever notices a little more or less {food}",
            "good cooks never count and it always tastes fine",
            "guests eat less than you would believe",
        )
    )
    answer, wrong = f"we need {need} grams of {food}", f"we need {bad} grams of {food}"
    return Task(prompt, steps, answer, wrong, f"{bad} grams", reason, false_steps)


def travel(rng: random.Random) -> Task:
    """Distance from speed and time, or time from distance and speed."""
    vehicle, speed = rng.choice((("train", 90), ("bus", 60), ("cyclist", 15), ("lorry", 70), ("boat", 20), ("car", 80)))
    hours = rng.randint(2, 6)
    distance = speed * hours
    if rng.randrange(2):
        bad = distance + rng.choice((-10, 10, speed))
        prompt = rng.choice(
            (
                f"A {vehicle} goes {speed} km every hour. How far does it get in {hours} hours?",
                f"At {speed} km per hour, how many km does a {vehicle} cover in {hours} hours?",
            )
        )
        steps = (f"in one hour the {vehicle} covers {speed} km", f"{hours} x {speed} = {distance}")
        false_steps = (f"in one hour the {vehicle} covers {speed} km", f"{hours} x {speed} = {bad}")
        answer, wrong, short = f"it covers {distance} km", f"it covers {bad} km", f"{bad} km"
    else:
        bad = near_miss(rng, hours, spread=2)
        prompt = rng.choice(
            (
                f"A {vehicle} goes {speed} km every hour. How long does it need for {distance} km?",
                f"It is {distance} km to the coast. How many hours does a {vehicle} need at {speed} km per hour?",
            )
        )
        steps = (f"each hour covers {speed} of the {distance} km", f"{distance} / {speed} = {hours}")
        false_steps = (f"each hour covers {speed} of the {distance} km", f"{distance} / {speed} = {bad}")
        answer, wrong, short = f"it takes {hours} hours", f"it takes {bad} hours", f"{bad} hours"
    reason = rng.choice(
        (
            f"that is what a {vehicle} usually does on a normal day",
            "journeys like this are all about the same",
            "with a bit of luck and no wind it works out like that",
        )
    )
    return Task(prompt, steps, answer, wrong, short, reason, false_steps)


def average(rng: random.Random) -> Task:
    """The mean of three numbers."""
    mean, low, high = rng.randint(8, 20), rng.randint(1, 5), rng.randint(1, 5)
    values = [mean - low, mean + high, mean + low - high]
    rng.shuffle(values)
    x, y, z = values
    total = x + y + z
    bad = total if rng.randrange(2) else near_miss(rng, mean, spread=3)
    name, what = rng.choice(NAMES), rng.choice(("points", "goals", "pages", "kilometres", "visitors"))
    prompt = rng.choice(
        (
            f"On three days {name} counts {x}, {y} and {z} {what}. What is the average per day?",
            f"What is the average of {x}, {y} and {z}?",
            f"The list for the week shows {x}, {y} and {z} {what}. What is the mean?",
        )
    )
    steps = rng.choice(
        (
            (f"the sum is {x} + {y} + {z} = {total}", f"there are 3 numbers, and {total} / 3 = {mean}"),
            (f"together the numbers make {total}", f"shared among three that is {mean}"),
        )
    )
    false_steps = (f"the sum is {x} + {y} + {z} = {3 * bad}", f"there are 3 numbers, and {3 * bad} / 3 = {bad}")
    if bad == total:
        false_steps = (f"the sum is {x} + {y} + {z} = {total}", "the sum of 3 numbers is their average")
    reason = rng.choice(
        (
            "an average is just the number that looks best",
            "numbers of that kind all lie close together",
            "nobody would be happy with any other number",
        )
    )
    return Task(prompt, steps, f"the average is {mean}", f"the average is {bad}", f"{bad}", reason, false_steps)


def sequence(rng: random.Random) -> Task:
    """The next number of a row."""
    start, step = rng.randint(1, 9), rng.randint(2, 9)
    if rng.randrange(3):
        row = [start + step * i for i in range(5)]
        rule, last = f"each number is {step} more than the one before", f"{row[3]} + {step} = {row[4]}"
    else:
        row = [start * 2**i for i in range(5)]
        rule, last = "each number is twice the one before", f"2 x {row[3]} = {row[4]}"
    bad = near_miss(rng, row[4])
    shown = ", ".join(str(n) for n in row[:4])
    prompt = rng.choice(
        (
            f"Which number comes next: {shown}?",
            f"Continue the row {shown} by one number.",
            f"Find the rule behind {shown} and give the next number.",
        )
    )
    steps = rng.choice(((rule, last), (rule, f"the last one is {row[3]}", last)))
    false_steps = (f"each number is {bad - row[3]} more than the one before", f"{row[3]} + {bad - row[3]} = {bad}")
    reason = rng.choice(
        (
            "rows like this can go on in any way you like",
            "that number has been a favourite in tests for years",
            "the eye sees it before the head does",
        )
    )
    answer, wrong = f"the next number is {row[4]}", f"the next number is {bad}"
    return Task(prompt, steps, answer, wrong, f"{bad}", reason, false_steps)


def area(rng: random.Random) -> Task:
    """Area and fence of a rectangle, which are easily mistaken for each other."""
    place = rng.choice(("garden", "room", "field", "yard", "playground", "terrace"))
    width, length = rng.randint(3, 9), rng.randint(10, 15)
    surface, border = width * length, 2 * (width + length)
    size = rng.choice((f"{length} metres long and {width} metres wide", f"{width} by {length} metres"))
    if rng.randrange(2):
        question = rng.choice(("How many square metres is that?", "What is its area?"))
        steps = ("the area is the length times the width", f"{length} x {width} = {surface}")
        false_steps = ("the area is all sides together", f"2 x {length} + 2 x {width} = {border}")
        right, bad, unit = surface, border, "square metres"
    else:
        question = rng.choice(("How long is a fence around it?", "How far is it once around the edge?"))
        steps = (f"there are two sides of {length} and two of {width} metres", f"2 x {length} + 2 x {width} = {border}")
        false_steps = ("once around is the length times the width", f"{length} x {width} = {surface}")
        right, bad, unit = border, surface, "metres"
    reason = rng.choice(
        (
            f"a {place} of a normal family has just that size",
            "long and wide things always measure like that",
            "builders can see it without a tape",
        )
    )
    answer, wrong = f"it is {right} {unit}", f"it is {bad} {unit}"
    return Task(f"A {place} is {size}. {question}", steps, answer, wrong, f"{bad} {unit}", reason, false_steps)


def ages(rng: random.Random) -> Task:
    """The age of somebody, given in terms of two others."""
    a, b, c = rng.sample(NAMES, 3)
    youngest, more = rng.randint(3, 12), rng.randint(2, 7)
    factor, word = rng.choice(((2, "twice"), (3, "three times")))
    middle = factor * youngest
    oldest = middle + more
    bad = youngest + more if rng.randrange(2) else near_miss(rng, oldest)
    prompt = rng.choice(
        (
            f"{a} is {more} years older than {b}. {b} is {word} as old as {c}, who is {youngest}. How old is {a}?",
            f"{c} is {youngest} years old, {b} is {word} as old, and {a} is {more} years older than {b}. "
            f"What is {a}'s age?",
        )
    )
    steps = rng.choice(
        (
            (f"{c} is {youngest}, so {b} is {factor} x {youngest} = {middle}", f"{a} is {middle} + {more} = {oldest}"),
            (f"{b} is {word} {youngest}, which is {middle}", f"{more} years more than {middle} makes {oldest}"),
        )
    )
    slip = bad - more
    false_steps = rng.choice(
        (
            (f"{c} is {youngest}, so {b} is {factor} x {youngest} = {slip}", f"{a} is {slip} + {more} = {bad}"),
            (f"{b} is {word} {youngest}, which is {slip}", f"{more} years more than {slip} makes {bad}"),
        )
    )
    reason = rng.choice(
        (
            f"most people called {a} are about that age",
            "you can hear it from the way the story is told",
            "friends are nearly always of the same age",
        )
    )
    answer, wrong = f"{a} is {oldest} years old", f"{a} is {bad} years old"
    return Task(prompt, steps, answer, wrong, rng.choice((f"{bad}", f"{bad} years")), reason, false_steps)
