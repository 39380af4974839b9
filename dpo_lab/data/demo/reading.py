"""Short texts, and questions that they answer or leave open."""

from __future__ import annotations

import random

from dpo_lab.data.demo.english_voice import CITIES, DAYS, NAMES
from dpo_lab.data.demo.task import Task, near_miss

PLACES = ("museum", "zoo", "castle", "swimming pool", "aquarium", "planetarium", "science centre", "art gallery")

# What happened, its gist, and what it leaves open: question, topic, an invented answer, the same in short.
SCENES = (
    (
        "{a} took the night train to {city} and stayed there for {n} days.",
        "{a} travelled to {city} by train",
        ("How much did the ticket cost?", "the price of the ticket", "the ticket cost 60 dollars", "60 dollars"),
        ("Who travelled with {a}?", "who went along", "{b} travelled with {a}", "{b}"),
        ("Why did {a} go to {city}?", "the reason for the trip", "{a} went there for a wedding", "for a wedding"),
    ),
    (
        "{a} painted the kitchen together with {b}. The work took {n} hours.",
        "{a} and {b} needed {n} hours for the kitchen",
        ("Which colour did they choose?", "the colour", "they painted it yellow", "yellow"),
        ("What did {b} get for helping?", "a reward for {b}", "{b} got a dinner for it", "a dinner"),
        ("On which day did they paint?", "the day", "they painted it on Sunday", "on Sunday"),
    ),
    (
        "Last spring {a} adopted a dog from the animal shelter in {city}.",
        "{a} got a dog from a shelter",
        ("What is the dog called?", "the name of the dog", "the dog is called Rex", "Rex"),
        ("How old is the dog?", "the age of the dog", "the dog is {n} years old", "{n} years"),
        ("What breed is it?", "the breed", "it is a poodle", "a poodle"),
    ),
    (
        "The new bridge in {city} is {n}00 metres long. {a} opened it in May.",
        "the bridge is {n}00 metres long and was opened in May",
        ("What did the bridge cost?", "the cost", "the bridge cost {n} million dollars", "{n} million dollars"),
        ("Who designed the bridge?", "the designer", "{b} designed the bridge", "{b}"),
        ("How long did the builders need?", "the building time", "they needed {n} years", "{n} years"),
    ),
    (
        "{a} lent {b} a book about {city} and got it back after {n} weeks.",
        "{b} had the book for {n} weeks",
        ("Did {b} like the book?", "what {b} thought of it", "{b} loved the book", "yes, very much"),
        ("How many pages does it have?", "the number of pages", "it has {n}00 pages", "{n}00 pages"),
        ("Who wrote the book?", "the author", "{a} wrote the book", "{a}"),
    ),
    (
        "For the school fair {a} baked {n} loaves of bread, and {b} made the jam.",
        "{a} baked the bread and {b} made the jam",
        ("What was the jam made of?", "the fruit in the jam", "the jam was made of cherries", "cherries"),
        ("How much money did they earn?", "the money that came in", "they earned {n}0 dollars", "{n}0 dollars"),
        ("Where was the fair held?", "the place of the fair", "the fair was held in {city}", "in {city}"),
    ),
    (
        "{a} moved from {city} to a village by the sea {n} years ago.",
        "{a} left {city} {n} years ago",
        ("What is the village called?", "the name of the village", "the village is called Sandy Bay", "Sandy Bay"),
        ("What is {a}'s job now?", "the work that {a} does", "{a} works as a fisher", "a fisher"),
        ("Does {a} miss {city}?", "how {a} feels about it", "{a} misses {city} every day", "yes, every day"),
    ),
    (
        "{a} won the chess match against {b} in {n} moves and shook hands.",
        "{a} beat {b} in {n} moves",
        ("What was the prize?", "the prize", "the prize was a silver cup", "a silver cup"),
        ("How long did the match last?", "the time that it took", "the match lasted {n} hours", "{n} hours"),
        ("Who had the white pieces?", "the colours of the players", "{a} had the white pieces", "{a}"),
    ),
)

EVENTS = (
    ("the town elected a new mayor", "the new mayor"),
    ("a bakery opened next to the school", "the bakery"),
    ("the factory switched to night shifts", "the night work"),
    ("the office put up a big clock", "the clock"),
    ("the local radio began to play jazz", "the jazz"),
    ("the school painted its hall blue", "the blue hall"),
    ("a fountain was built on the square", "the fountain"),
)
OUTCOMES = (
    ("the shops sold more umbrellas", "a rainy season"),
    ("fewer people caught a cold", "mild weather"),
    ("the football team won five games", "a better goalkeeper"),
    ("more pupils passed the exam", "an easier exam"),
    ("the traffic became lighter", "the holidays"),
    ("the price of apples fell", "a good harvest"),
    ("more tourists came to town", "cheaper flights"),
)

FACTS = (
    ("Spiders have eight legs", "by counting"),
    ("A week has seven days", "with a calendar"),
    ("The Nile flows through Egypt", "on a map"),
    ("The Moon goes around the Earth", "by watching the sky"),
    ("Paris is the capital of France", "in an atlas"),
    ("Ice melts when it gets warm", "with a glass of ice"),
    ("A piano has black and white keys", "by looking at one"),
    ("Gold is heavier than wood of the same size", "with a scale"),
)
OPINIONS = (
    ("Summer is the best season", "best"),
    ("Chess is more fun than tennis", "fun"),
    ("Green tea tastes awful", "awful"),
    ("Paris is the loveliest city in Europe", "loveliest"),
    ("Modern music is boring", "boring"),
    ("Dogs are nicer pets than cats", "nicer"),
    ("Schools should start at ten", "should"),
    ("Blue cars look ugly", "ugly"),
)

DEEDS = (
    ("broke the window", "break the window"),
    ("ate the last piece of cake", "eat the last piece of cake"),
    ("took the red umbrella", "take the red umbrella"),
    ("left the door open", "leave the door open"),
    ("wrote the letter", "write the letter"),
    ("lost the tickets", "lose the tickets"),
    ("fed the cat", "feed the cat"),
    ("sent the flowers", "send the flowers"),
)

GOODS = ("bag", "bike", "lamp", "chair", "coat", "table", "radio", "tent")
COLOURS = ("red", "blue", "green", "black", "white", "yellow")
PARTY = ("the cake", "the chairs", "the lemonade", "the plates", "the candles", "the music", "the salad", "the games")


def notice(rng: random.Random) -> Task:
    """Hours, prices and the closed day of a place, all of them in the text."""
    place, price, closed = rng.choice(PLACES), rng.randint(3, 15), rng.choice(DAYS)
    opens, closes = rng.randint(8, 11), rng.randint(4, 9)
    text = rng.choice(
        (
            f"The {place} opens at {opens} am and closes at {closes} pm. It is closed on {closed}. "
            f"A ticket costs {price} dollars.",
            f"Notice at the {place}: open from {opens} am to {closes} pm, not on {closed}, {price} dollars a ticket.",
        )
    )
    asked = rng.choice(("closing", "tickets", "visit"))
    if asked == "closing":
        late = near_miss(rng, closes, spread=2)
        question = rng.choice(("When does it close?", "Until when can visitors stay?"))
        steps = (f"the text gives two times, {opens} am and {closes} pm", f"{opens} am is when the doors open")
        answer, wrong, short = f"it closes at {closes} pm", f"it closes at {late} pm", f"{late} pm"
        false_steps = (f"the doors open at {opens} am", f"the text says that they close at {late} pm")
    elif asked == "tickets":
        people = rng.randint(2, 6)
        total, bad = people * price, near_miss(rng, people * price)
        question = rng.choice((f"What do {people} tickets cost?", f"What will {people} people pay?"))
        steps = (f"one ticket costs {price} dollars", f"{people} x {price} = {total}")
        answer, wrong, short = f"they cost {total} dollars", f"they cost {bad} dollars", f"{bad} dollars"
        false_steps = (f"one ticket costs {price} dollars", f"{people} x {price} = {bad}")
    else:
        question = rng.choice((f"Can I go in on {closed}?", f"I am free on {closed}. Will it be open?"))
        steps = (f"the text says that the {place} is closed on {closed}", f"{closed} is the day in question")
        answer, wrong, short = f"it is not open on {closed}", f"it is open on {closed}", "yes"
        false_steps = (f"the {place} opens at {opens} am", f"{closed} is a day like any other")
    reason = rng.choice(
        (
            f"every {place} in the country works like that",
            "such places never do it in any other way",
            "that is how it was the last time somebody went",
        )
    )
    return Task(f"{text} {question}", steps, answer, wrong, short, reason, false_steps)


def missing(rng: random.Random) -> Task:
    """A text that doesn't hold what is asked for."""
    text, gist, *details = rng.choice(SCENES)
    a, b = rng.sample(NAMES, 2)
    city, n = rng.choice(CITIES), rng.randint(2, 9)
    question, topic, wrong, short = rng.choice(details)
    frame = rng.choice(("{text} {question}", "Text: {text}\nQuestion: {question}", "{question} Text: {text}"))
    prompt, gist, topic, wrong, short = (
        part.format(a=a, b=b, city=city, n=n)
        for part in (frame.format(text=text, question=question), gist, topic, wrong, short)
    )
    steps = rng.choice(
        (
            (f"the text says that {gist}", f"it does not mention {topic}"),
            (f"the question is about {topic}", f"the text only says that {gist}"),
            (f"we are told that {gist}", f"nothing is said about {topic}"),
        )
    )
    answer = rng.choice(
        (
            "the text does not hold the answer",
            "this cannot be known from the text",
            "I can't tell, and anything else would be a guess",
            "the text leaves this open",
        )
    )
    reason = rng.choice(
        (
            "people in such stories always do it that way",
            "the text makes it plain between the lines",
            "nearly every story of this kind goes like that",
            "that is what anyone would expect there",
            "it says so right in the middle of the text",
        )
    )
    false_steps = rng.choice(
        (
            (f"the text says that {gist}", f"it also says that {wrong}"),
            (f"the question is about {topic}", "the text answers it in plain words"),
        )
    )
    return Task(prompt, steps, answer, wrong, short, reason, false_steps)


def cause(rng: random.Random) -> Task:
    """Two events in a row, which the question takes for cause and effect."""
    (event, subject), (outcome, other) = rng.choice(EVENTS), rng.choice(OUTCOMES)
    later = rng.choice(("a month later", "soon after", "the year after", "within a few weeks"))
    prompt = rng.choice(
        (
            f"A report says that {event} and that {later} {outcome}. Was {subject} the cause?",
            f"In {rng.choice(CITIES)} {event}. We know that {later} {outcome}. Does this prove an effect of {subject}?",
            f"Last year {event}, and {later} {outcome}. Is {subject} the reason?",
        )
    )
    steps = rng.choice(
        (
            (f"we are told that {event} and that {later} {outcome}", f"{other} could be behind it just as well"),
            (f"the text only tells us what came first and what came {later}", "coming later is not proof of a cause"),
            (f"{outcome}, but the text gives no reason for it", f"it could also be {other}"),
        )
    )
    answer = rng.choice(
        (
            "the text does not show what the cause was",
            "we cannot know this from the text",
            f"it is not proven that {subject} had anything to do with it",
        )
    )
    wrong = rng.choice((f"{subject} caused it", f"it all comes from {subject}"))
    reason = rng.choice(
        (
            "nothing on earth happens without a reason like this",
            "such things always have an effect that everybody feels",
            "two things in a row can never be an accident",
        )
    )
    false_steps = (f"{event}", f"{later} {outcome}", "what comes first is always the cause")
    return Task(prompt, steps, answer, wrong, rng.choice(("yes", "yes, it was", "yes, clearly")), reason, false_steps)


def opinion(rng: random.Random) -> Task:
    """Is a sentence a fact or an opinion?"""
    is_fact = rng.randrange(2) == 0
    label, other = ("a fact", "an opinion") if is_fact else ("an opinion", "a fact")
    sentence, hint = rng.choice(FACTS if is_fact else OPINIONS)
    prompt = rng.choice(
        (
            f'Is this a fact or an opinion? "{sentence}."',
            f'Somebody wrote: "{sentence}." Would you call that an opinion or a fact?',
            f'Fact or opinion: "{sentence}."',
        )
    )
    if is_fact:
        steps = rng.choice(
            (
                (f"this can be checked {hint}", "the result is the same for everyone"),
                (f"anyone can find out {hint} whether it is true", "taste plays no part in it"),
            )
        )
        false_steps = ("somebody has written this sentence", "what somebody writes is what somebody feels")
    else:
        steps = rng.choice(
            (
                (f'the word "{hint}" is a judgement', "other people may see it differently"),
                (f'there is no way to measure "{hint}"', "the sentence tells us what somebody feels"),
            )
        )
        false_steps = ("the sentence has no question mark", "what is not a question can be checked")
    reason = rng.choice(
        (
            "all sentences that sound like this one are of that kind",
            "most people I ask would put it that way",
            "a sentence as short as that can't be anything else",
        )
    )
    return Task(prompt, steps, f"it is {label}", f"it is {other}", other, reason, false_steps)


def hearsay(rng: random.Random) -> Task:
    """What somebody believes is not yet what happened."""
    a, b, c = rng.sample(NAMES, 3)
    past, base = rng.choice(DEEDS)
    believes = rng.choice(("believes", "is convinced", "has heard", "tells everyone"))
    if rng.randrange(3):
        prompt = rng.choice(
            (
                f"{a} {believes} that {b} {past}, but nobody saw it. Did {b} {base}?",
                f"Nobody was there. {a} {believes} that {b} {past}. Is it true that {b} {past}?",
            )
        )
        steps = rng.choice(
            (
                (f"{a} {believes} that {b} {past}", "that alone does not make it true", "nobody saw it"),
                (f"all we have is the word of {a}", "nobody was there to see it"),
            )
        )
        answer = rng.choice((f"we cannot say whether {b} {past}", "the text does not hold the answer"))
        wrong, short = f"{b} {past}", rng.choice(("yes", "yes, it was " + b))
        false_steps = (f"{a} {believes} that {b} {past}", "what people say is what happened")
    else:
        prompt = f"{a} {believes} that {b} {past}. A camera shows that it was {c}. Who {past}?"
        steps = (f"{a} {believes} that it was {b}", f"the camera shows {c}", "a picture counts for more")
        answer, wrong, short = f"{c} {past}", f"{b} {past}", b
        false_steps = (f"{a} {believes} that it was {b}", f"{a} is named first in the text")
    reason = rng.choice(
        (
            "people like that never do anything else",
            "where there is smoke there is always a fire",
            "it is written all over the story",
        )
    )
    return Task(prompt, steps, answer, wrong, short, reason, false_steps)


def choice(rng: random.Random) -> Task:
    """Three options, one of them that the text doesn't tell."""
    thing, (one, two) = rng.choice(GOODS), rng.sample(COLOURS, 2)
    low, high = sorted(rng.sample(range(20, 90), 2))
    prices = {one: low, two: high} if rng.randrange(2) else {one: high, two: low}
    first, second = f"the {one} {thing}", f"the {two} {thing}"
    options = f"A) {first} B) {second} C) the text does not say"
    text = f"{first[0].upper()}{first[1:]} costs {prices[one]} dollars and {second} costs {prices[two]} dollars."
    known = rng.randrange(2) == 0
    if known:
        word = rng.choice(("cheaper", "more expensive"))
        right = first if (prices[one] < prices[two]) == (word == "cheaper") else second
        bad = second if right == first else first
        steps = (f"the prices are {prices[one]} and {prices[two]} dollars", f"{low} is less than {high}")
        answer = f"{right} is {word}, which is {'A' if right == first else 'B'}"
        false_steps = (f"the prices are {prices[one]} and {prices[two]} dollars", f"{high} is less than {low}")
    else:
        word = rng.choice(("older", "heavier", "stronger", "better made"))
        bad = rng.choice((first, second))
        steps = (f"the text compares the prices, {low} and {high} dollars", f"it says nothing about which is {word}")
        answer = "the text does not say, which is C"
        false_steps = (f"one costs {low} dollars, the other {high}", f"a price tells us which one is {word}")
    letter = "A" if bad == first else "B"
    prompt = rng.choice((f"{text} Which one is {word}? {options}", f"{text} Choose the {word} one. {options}"))
    reason = rng.choice(
        (
            f"a {thing} in that colour is always the one to pick",
            f"option {letter} is right far more often than the others",
            f"any shop that sells a {thing} will tell you the same",
        )
    )
    wrong = f"{bad} is {word}"
    return Task(prompt, steps, answer, wrong, rng.choice((letter, bad)), reason, false_steps)


def message(rng: random.Random) -> Task:
    """Who brings what to a party, as far as the message tells."""
    host, helper, sender, stranger = rng.sample(NAMES, 4)
    mine, theirs, nobodys = rng.sample(PARTY, 3)
    text = rng.choice(
        (
            f'"Hi {host}, I will bring {mine} on {rng.choice(DAYS)}, and {helper} takes care of {theirs}. {sender}"',
            f'"Dear {host}, {helper} brings {theirs}. You can count on me for {mine}. Yours, {sender}"',
        )
    )
    thing, who, bad = rng.choice(((mine, sender, host), (theirs, helper, sender), (nobodys, None, stranger)))
    if who == sender:
        steps = (f'the writer says "I" or "me" when it comes to {mine}', f"the message is signed by {sender}")
        false_steps = (f"the message starts with the name {host}", f"the first name must be the one who brings {mine}")
    elif who == helper:
        steps = (f"the message talks about {mine} and {theirs}", f"it names {helper} together with {theirs}")
        false_steps = (f"the message is signed by {sender}", "who signs it brings everything")
    else:
        steps = (f"the message tells us about {mine} and {theirs}", f"it does not mention {nobodys}")
        false_steps = (f"the message is from {sender} to {host}", f"it says that {bad} brings {nobodys}")
    answer = f"{who} brings {thing}" if who else f"the message does not say who brings {thing}"
    reason = rng.choice(
        (
            "at every party the same people do the same jobs",
            "somebody with that name is made for it",
            "no one else would be asked for such a thing",
        )
    )
    prompt = rng.choice((f"Message: {text} Who brings {thing}?", f"{text} Who will bring {thing}?"))
    return Task(prompt, steps, answer, f"{bad} brings {thing}", bad, reason, false_steps)
