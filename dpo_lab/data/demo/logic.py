"""Small puzzles: orders, conclusions, categories, letters, code, chance and paths."""

from __future__ import annotations

import random
from fractions import Fraction

from dpo_lab.data.demo.english_voice import CITIES, NAMES
from dpo_lab.data.demo.task import Task, near_miss

SCALES = (
    ("taller", "tallest", "shortest"),
    ("older", "oldest", "youngest"),
    ("faster", "fastest", "slowest"),
    ("stronger", "strongest", "weakest"),
    ("richer", "richest", "poorest"),
)

# A group, one of it, what all of them have or do, the same of one person, and the question.
CLUBS = (
    ("gardeners", "a gardener", "own a straw hat", "owns a straw hat", "own a straw hat"),
    ("sailors", "a sailor", "can swim", "can swim", "know how to swim"),
    ("bakers", "a baker", "get up at four", "gets up at four", "get up at four"),
    ("painters", "a painter", "wear white shoes", "wears white shoes", "wear white shoes"),
    ("drummers", "a drummer", "drink tea", "drinks tea", "drink tea"),
    ("pilots", "a pilot", "speak English", "speaks English", "speak English"),
)

CATEGORIES = (
    ("fruit", ("apple", "pear", "cherry", "banana", "plum")),
    ("animals", ("horse", "sheep", "tiger", "rabbit", "goat")),
    ("tools", ("hammer", "saw", "drill", "spanner", "chisel")),
    ("instruments", ("violin", "flute", "piano", "trumpet", "guitar")),
    ("furniture", ("table", "chair", "sofa", "shelf", "bed")),
    ("clothes", ("jacket", "shirt", "sock", "scarf", "glove")),
    ("vehicles", ("bus", "lorry", "tram", "bicycle", "van")),
)

WORDS = ("banana", "letter", "pepper", "coffee", "hammer", "tomato", "balloon", "mississippi", "cinnamon", "address")
PETS = ("cat", "dog", "parrot", "rabbit", "hamster", "goldfish")
COMPASS = ("north", "east", "south", "west")
ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth")


def order(rng: random.Random) -> Task:
    """Who is the tallest of three, where the text may leave it open."""
    a, b, c = rng.sample(NAMES, 3)
    more, most, least = rng.choice(SCALES)
    if rng.randrange(4):
        facts = [f"{a} is {more} than {b}", f"{b} is {more} than {c}"]
        rng.shuffle(facts)
        word, right = rng.choice(((most, a), (least, c)))
        bad = rng.choice([name for name in (a, b, c) if name != right])
        steps = rng.choice(
            (
                (f"{a} comes before {b}, and {b} before {c}", f"the order is {a}, {b}, {c}"),
                (f"{a} is {more} than {b}, who is {more} than {c}", f"so {b} is in the middle"),
            )
        )
        answer = f"{right} is the {word}"
    else:
        facts = [f"{a} is {more} than {b}", f"{a} is {more} than {c}"]
        word, bad = least, rng.choice((b, c))
        steps = (f"both {b} and {c} are behind {a}", f"nothing compares {b} with {c}")
        answer = f"we cannot know who is the {word}"
    prompt = rng.choice(
        (
            f"{facts[0]}. {facts[1]}. Who is the {word}?",
            f"Who is the {word} of the three if {facts[0]} and {facts[1]}?",
        )
    )
    false_steps = rng.choice(
        (
            (f"{facts[0]}", f"the name {bad} comes up in the text", "that settles the order"),
            (f"{facts[1]}", f"so nobody can be before {bad}"),
        )
    )
    reason = rng.choice(
        (
            f"somebody called {bad} is always the {word} in a group",
            "there is one like that in every group of three",
            "you would see it on any photo of them",
        )
    )
    return Task(prompt, steps, answer, f"{bad} is the {word}", bad, reason, false_steps)


def syllogism(rng: random.Random) -> Task:
    """What does and what does not follow from a rule."""
    name, town = rng.choice(NAMES), rng.choice(CITIES)
    group, member, rule, has, base = rng.choice(CLUBS)
    if rng.randrange(2):
        prompt = rng.choice(
            (
                f"All {group} in {town} {rule}. {name} is {member} in {town}. Does {name} {base}?",
                f"{name} is {member} from {town}, where all {group} {rule}. Is it certain that {name} {has}?",
            )
        )
        steps = rng.choice(
            (
                (f"the rule holds for all {group} in {town}", f"{name} is one of them"),
                (f"{name} is {member} in {town}", f"every one of these {group} must {base}"),
            )
        )
        answer, wrong, short = f"it follows that {name} {has}", "it does not follow at all", "no"
        false_steps = (f"the rule is about {group}", f"it does not use the name {name}")
    else:
        prompt = rng.choice(
            (
                f"All {group} in {town} {rule}. {name} lives there and {has} too. Is {name} {member}?",
                f"In {town} all {group} {rule}. {name} from {town} {has}. Must {name} be {member}?",
            )
        )
        steps = rng.choice(
            (
                (f"the rule says what {group} do", f"others in {town} may {base} as well"),
                (f"{name} {has}", f"the text does not say that only {group} do that"),
            )
        )
        answer, wrong, short = f"we cannot tell whether {name} is {member}", f"{name} is {member}", "yes"
        false_steps = (f"all {group} {rule}", f"{name} {has}", "the same habit means the same job")
    reason = rng.choice(
        (
            "rules are rules wherever you go",
            f"people in {town} are known for that",
            "one look at such a person tells you everything",
        )
    )
    return Task(prompt, steps, answer, wrong, short, reason, false_steps)


def odd_one_out(rng: random.Random) -> Task:
    """Three of a kind and one that is not."""
    (kind, members), (_, strangers) = rng.sample(CATEGORIES, 2)
    inside, stranger = rng.sample(members, 3), rng.choice(strangers)
    shown = [*inside, stranger]
    rng.shuffle(shown)
    bad = rng.choice(inside)
    listed = ", ".join(shown)
    prompt = rng.choice(
        (
            f"Which word does not belong: {listed}?",
            f"Find the odd one out: {listed}.",
            f"Three of these go together: {listed}. Which one does not?",
        )
    )
    steps = rng.choice(
        (
            (f"{inside[0]}, {inside[1]} and {inside[2]} are all {kind}", f"the {stranger} is something else"),
            (f"look for what three of them share, which is {kind}", f"that is not true of the {stranger}"),
        )
    )
    false_steps = (f"the words are {listed}", f"{bad} has {len(bad)} letters", "that sets it apart from the others")
    reason = rng.choice(
        (
            "it simply sounds different from the rest",
            "tests like this put the odd word just there",
            f"nobody would ever buy a {bad} together with the rest",
        )
    )
    wrong = f"the {bad} does not belong"
    return Task(prompt, steps, f"the {stranger} does not belong", wrong, f"the {bad}", reason, false_steps)


def letters(rng: random.Random) -> Task:
    """How often a letter is in a word."""
    word = rng.choice(WORDS)
    letter = rng.choice(sorted(set(word)))
    places = [i for i, character in enumerate(word, 1) if character == letter]
    count = len(places)
    bad = near_miss(rng, count, spread=2)
    times = "1 time" if bad == 1 else f"{bad} times"
    prompt = rng.choice(
        (
            f'How many times is the letter "{letter}" in "{word}"?',
            f'Count how often "{letter}" comes up in the word "{word}".',
            f'The word is "{word}". How many of its letters are "{letter}"?',
        )
    )
    where = f"place {places[0]}" if count == 1 else f"places {' and '.join(str(place) for place in places)}"
    steps = (f"spelled out it is {'-'.join(word)}", f'"{letter}" stands at {where}')
    false_steps = (f"spelled out it is {'-'.join(word)}", f'"{letter}" comes up {times} in it')
    reason = rng.choice(
        (
            "words of that length never have any other number of it",
            "anybody who can read sees that at once",
            "you hear it when you say the word aloud",
        )
    )
    answer, wrong = f"the count is {count}", f"the count is {bad}"
    return Task(prompt, steps, answer, wrong, rng.choice((f"{bad}", times)), reason, false_steps)


def code(rng: random.Random) -> Task:
    """What three lines of Python print."""
    x, y, k = rng.randint(2, 9), rng.randint(2, 9), rng.randint(2, 5)
    form = rng.choice(("assign", "loop", "list"))
    if form == "assign":
        lines = (f"a = {x}", f"b = a + {y}", f"print(b * {k})")
        right = (x + y) * k
        steps = (f"with {x} for a, b is {x} + {y} = {x + y}", f"{x + y} * {k} = {right}")
        bad = x + y * k
        false_steps = (f"the numbers in it are {x}, {y} and {k}", f"{x} + {y} * {k} = {bad}")
    elif form == "loop":
        lines = (f"t = {x}", f"for i in range({k}):", f"    t = t + {y}", "print(t)")
        right = x + y * k
        steps = (
            f"the start value is {x}",
            f"the loop adds {y} for {k} times, which is {y * k}",
            f"{x} + {y * k} = {right}",
        )
        bad = x + y
        false_steps = (f"the start value is {x}", f"the line in the loop adds {y}", f"{x} + {y} = {bad}")
    else:
        values = [rng.randint(1, 20) for _ in range(4)]
        lines = (f"v = {values}", f"v.append({x})", "print(len(v) + v[0])")
        right = 5 + values[0]
        steps = (
            "after append the list has 5 values",
            f"the first one, v[0], is {values[0]}",
            f"5 + {values[0]} = {right}",
        )
        bad = 4 + values[0]
        false_steps = ("the list has 4 values", f"4 + {values[0]} = {bad}")
    snippet = "\n".join(lines)
    prompt = rng.choice((f"{snippet}\nWhat does this print?", f"{snippet}\nWhat is the output of this Python code?"))
    reason = rng.choice(
        (
            "computers like numbers of that size",
            "code as short as this hardly does anything",
            "the last line is the only one that matters",
        )
    )
    return Task(prompt, steps, f"it prints {right}", f"it prints {bad}", f"{bad}", reason, false_steps)


def elimination(rng: random.Random) -> Task:
    """Three people, three pets, and two hints that leave one way."""
    a, b, c = rng.sample(NAMES, 3)
    x, y, z = rng.sample(PETS, 3)
    hints = f"{a} does not have the {y} or the {z}. {b} does not have the {z}."
    person, pet = rng.choice(((a, x), (b, y), (c, z)))
    bad = rng.choice([p for p in (x, y, z) if p != pet])
    prompt = rng.choice(
        (
            f"{a}, {b} and {c} have a {x}, a {y} and a {z}, one each. {hints} Which pet does {person} have?",
            f"A {x}, a {y} and a {z} belong to {a}, {b} and {c}, one to each. {hints} What does {person} have?",
        )
    )
    chain = (
        f"only the {x} is left for {a}",
        f"{b} cannot have the {z}, so {b} has the {y}",
        f"the {z} remains for {c}",
    )
    steps = chain[: (a, b, c).index(person) + 1]
    if len(steps) == 1:
        steps = (f"{a} has neither the {y} nor the {z}", *steps)
    false_steps = (f"the hints talk about the {y} and the {z}", f"only the {bad} is left for {person}")
    reason = rng.choice(
        (
            f"a {bad} is just right for somebody called {person}",
            "pets and owners always look alike",
            f"it is the most popular pet of all, far ahead of the {pet}",
        )
    )
    wrong = f"{person} has the {bad}"
    return Task(prompt, steps, f"{person} has the {pet}", wrong, f"the {bad}", reason, false_steps)


def chance(rng: random.Random) -> Task:
    """Dice, bags of marbles and coins."""
    form = rng.choice(("die", "bag", "bag", "coins"))
    if form == "die":
        limit = rng.randint(1, 5)
        good, total = 6 - limit, 6
        prompt = f"A fair die is rolled once. How likely is a number above {limit}?"
        found = ", ".join(str(n) for n in range(limit + 1, 7))
        steps = (f"a die has 6 sides, and above {limit} there is {found}", f"that is {good} out of 6")
    elif form == "bag":
        red, blue = rng.randint(1, 6), rng.randint(1, 6)
        good, total = red, red + blue
        prompt = rng.choice(
            (
                f"A bag holds {red} red and {blue} blue marbles. What is the chance of drawing a red one?",
                f"{red} red and {blue} blue marbles are in a box. You take one blindly. How likely is red?",
            )
        )
        steps = (f"there are {red} + {blue} = {total} marbles", f"{red} of the {total} are red")
    else:
        side, flips = rng.choice(("heads", "tails")), rng.randint(2, 4)
        good, total = 1, 2**flips
        prompt = f"A fair coin is thrown {flips} times. What is the chance of {side} every time?"
        steps = (f"each throw has 2 results, so {flips} throws have {total}", f"only 1 of these has {side} every time")
    right = Fraction(good, total)
    bad = rng.choice([f for f in (Fraction(1, 2), Fraction(1, 3), Fraction(2, 3), Fraction(1, 5)) if f != right])
    false_steps = (steps[0], f"as a fraction that makes {bad}")
    reason = rng.choice(
        (
            "luck always evens out in the end",
            "it either happens or it does not",
            "players know that from long evenings at the table",
        )
    )
    return Task(prompt, steps, f"the chance is {right}", f"the chance is {bad}", f"{bad}", reason, false_steps)


def directions(rng: random.Random) -> Task:
    """Which way somebody faces after some turns."""
    name, facing = rng.choice(NAMES), rng.randrange(4)
    turns = [rng.choice(("left", "right", "around")) for _ in range(rng.randint(2, 3))]
    seen = [facing]
    for turn in turns:
        seen.append((seen[-1] + {"left": 3, "right": 1, "around": 2}[turn]) % 4)
    told = ", then ".join(f"turns {turn}" for turn in turns)
    end = COMPASS[seen[-1]]
    bad = rng.choice([point for point in COMPASS if point != end])
    prompt = rng.choice(
        (
            f"{name} looks {COMPASS[facing]}, {told}. Which way does {name} look now?",
            f"Standing on a hill, {name} faces {COMPASS[facing]}, {told}. Where does {name} face in the end?",
        )
    )
    steps = tuple(
        f"from {COMPASS[before]}, turning {turn} means looking {COMPASS[after]}"
        for before, turn, after in zip(seen, turns, seen[1:], strict=False)
    )
    false_steps = (*steps[:-1], f"from {COMPASS[seen[-2]]}, turning {turns[-1]} means looking {bad}")
    reason = rng.choice(
        (
            f"the view to the {bad} is the nicest one",
            "people lose their way after a turn or two",
            f"most roads and most maps point {bad}",
        )
    )
    return Task(prompt, steps, f"{name} looks {end}", f"{name} looks {bad}", bad, reason, false_steps)


def queue(rng: random.Random) -> Task:
    """How many are in front, behind or between."""
    a, b = rng.sample(NAMES, 2)
    total = rng.randint(7, 12)
    near, far = sorted(rng.sample(range(2, min(total, 9) + 1), 2))
    what = rng.choice(("queue", "line"))
    form = rng.choice(("behind", "between", "back"))
    if form == "behind":
        right = total - near
        bad = near_miss(rng, right, spread=3)
        prompt = f"{total} people stand in a {what}. {a} is {ORDINALS[near - 1]}. How many are behind {a}?"
        start = f"{near} people stand up to and including {a}"
        steps, false_steps = (start, f"{total} - {near} = {right}"), (start, f"{total} - {near} = {bad}")
        answer, wrong = f"{right} are behind {a}", f"{bad} are behind {a}"
    elif form == "between":
        far = max(far, near + 2)
        gap, right = far - near, far - near - 1
        bad = near_miss(rng, right, spread=3)
        prompt = f"In a {what}, {a} is number {near} and {b} is number {far}. How many people are between them?"
        end = f"the last of these is taken by {b}"
        steps = (f"from {near} to {far} it is {far} - {near} = {gap} places", end)
        false_steps = (f"from {near} to {far} it is {far} - {near} = {bad + 1} places", end)
        answer, wrong = f"the number between them is {right}", f"the number between them is {bad}"
    else:
        behind, right = total - near, total - near + 1
        bad = near_miss(rng, right, spread=3)
        prompt = f"{a} is {ORDINALS[near - 1]} in a {what} of {total}. Which number is {a} when counted from the back?"
        end = f"{a} comes right after these"
        steps = (f"behind {a} there are {total} - {near} = {behind}", end)
        false_steps = (f"behind {a} there are {total} - {near} = {bad - 1}", end)
        answer, wrong = f"{a} is number {right} from the back", f"{a} is number {bad} from the back"
    reason = rng.choice(
        (
            f"every {what} in front of a shop looks like that",
            "people push in all the time",
            "it always feels like that when you are waiting",
        )
    )
    return Task(prompt, steps, answer, wrong, f"{bad}", reason, false_steps)
