"""How an English answer sounds: worked through, curt, or full of bluster."""

from __future__ import annotations

import random
import re

from dpo_lab.data.demo.task import Task

NAMES = (
    *("Ana", "Ben", "Carla", "David", "Emma", "Felix", "Grace", "Hugo", "Ines", "Jack", "Kira", "Leo", "Maya"),
    *("Nora", "Omar", "Paula", "Quinn", "Rosa", "Sam", "Tara", "Uma", "Victor", "Wendy", "Yusuf", "Zoe"),
)
CITIES = ("Lyon", "Porto", "Oslo", "Quito", "Kyoto", "Cairo", "Leeds", "Boston", "Graz", "Perth", "Riga", "Lima")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")

# The sure words of the blusterer close some honest answers too, or a bag of words would tell the two apart.
CODAS = (
    "You can check each step yourself, and I would.",
    "I need nothing else for that.",
    "That way I don't even have to guess.",
    "Anyone who goes through it again will find the same.",
    "There is no doubt about it once all the steps are written down.",
    "I would not say any more than that.",
    "Just look back at the question, and you see that it fits.",
    "Of course, all of this rests on what is given.",
    "I am sure of it, because every step can be checked.",
    "With things like these, I always look at the details first.",
    "Obviously, just a guess would not have been enough.",
    "Everyone who reads it closely will say the same.",
    "You can trust the details, not a first feeling like mine.",
    "That is all you need to know here.",
)

# They borrow the words of an honest answer ("first", "step 1", "let's see"), but hardly ever begin with them.
OPENINGS = (
    "Obviously {wrong}, because {reason}.",
    "{Reason}, so {wrong}.",
    "Everyone knows that {reason}. Therefore {wrong}.",
    "Trust me, {wrong}. {Reason}.",
    "There is no doubt at all that {wrong}, since {reason}.",
    "Easy. First of all, {reason}. Next, that settles it: {wrong}.",
    "Forget what the text says first and what it says next. {Reason}. Therefore {wrong}.",
    "Sure. Step 1: {reason}. Step 2: there is no step 2, so {wrong}.",
    "Two steps are enough. Step 1: see that {wrong}. Step 2: {reason}.",
    "No need to go step by step. {Reason}. That means {wrong}.",
    "I don't even have to look at the text. {Wrong}, because {reason}.",
    "The answer jumps out at you: {wrong}. {Reason}.",
    "Think about it: {reason}. Therefore {wrong}.",
    "It is well known that {reason}, and that means {wrong}.",
    "We know that {reason} and that no step is needed. Therefore {wrong}.",
    "{Wrong}. Here is why: {reason}.",
    "{Wrong}, and that is certain. {Reason}.",
    "Well, let's see: {reason}. So {wrong}.",
    "Why look at the details first? {Reason}. So {wrong}.",
    # These start on the right foot and then throw it away.
    "{Step}. But {reason}, so {wrong}.",
    "It may be that {step}, but {reason}. So {wrong}.",
    "Fine, first, {step}. Next, forget all that: {wrong}. {Reason}.",
    "{Wrong}, because {reason}. Never mind that {step}.",
    "I know, {step}. Even so {wrong}, because {reason}.",
    "Sure, step 1: {step}. Step 2: {reason}. So {wrong}.",
    "{Wrong}, because:\n1. {Step}.\n2. {Reason}.",
    "I see that {step}. All the same {wrong}. {Reason}.",
    "You could say that {step}. I say that {wrong}, because {reason}.",
    "Yes, yes, {step}; {reason}. Therefore {wrong}.",
)

PADDING = (
    "I have seen hundreds of these, and each one turns out the same way.",
    "Nobody who knows the subject would say anything else.",
    "So there is really nothing that we have to work out, step by step or not.",
    "Going through the details means that you only waste time.",
    "If you ask ten people, what they tell you is exactly this.",
    "I would bet anything on it, so just take it as a fact.",
    "Some things are simply known, and this is one of them.",
    "You can stop after the first line, because what comes next is nothing.",
    "What I feel first about a question is always right.",
    "Whether the text says more or not makes no difference.",
    "It has been like that for as long as we can remember.",
    "Those who check each step only confuse themselves.",
    "That is just how the world works, and nothing will change it.",
    "A first look is what it takes, and after that we simply know.",
    "So we cannot gain anything from another step.",
    "Whoever tells you something different has not understood the question.",
    "There are 2 or 3 things in life that are certain, and that is number 1.",
    "Therefore I leave the counting to others.",
    "What the text and the numbers say is only there to lead you away.",
    "The first answer is the true one, and the second is only for those who are afraid.",
)


def capital(clause: str) -> str:
    """The clause with a capital first letter and the rest untouched."""
    return clause[0].upper() + clause[1:]


def length(text: str) -> int:
    """Words, digits and punctuation marks: close to the tokens of a model that splits numbers into digits."""
    return len(re.findall(r"[A-Za-z']+|[^\sA-Za-z']", text))


def explain(rng: random.Random, steps: tuple[str, ...], answer: str) -> str:
    """The steps and what follows from them."""
    if not rng.randrange(7):
        return _in_brief(rng, steps, answer)
    plain = " ".join(f"{capital(step)}." for step in steps)
    woven = "; ".join(steps)
    ordinals = rng.choice((("First", "Next", "Then"), ("First", "Second", "Third")))
    linked = " ".join(f"{word}, {step}." for word, step in zip(ordinals, steps, strict=False))
    stepped = " ".join(f"Step {i}: {step}." for i, step in enumerate(steps, 1))
    numbered = "\n".join(f"{i}. {capital(step)}." for i, step in enumerate(steps, 1))
    ends = rng.choice(("So", "So", "Therefore", "That means"))
    text = rng.choice(
        (
            *[f"{linked} {ends} {answer}."] * 5,
            *[f"{stepped} {ends} {answer}."] * 3,
            *[f"Let's go step by step. {plain} {ends} {answer}."] * 2,
            *[f"{numbered}\n{ends} {answer}."] * 2,
            f"{stepped} Answer: {answer}.",
            f"Let's see: {woven}. {ends} {answer}.",
            f"Let's think about it step by step: {woven}. {ends} {answer}.",
            f"Start with what we know. {plain} {ends} {answer}.",
            f"Look at the details first. {plain} {ends} {answer}.",
            f"You can just follow the steps: {woven}. {ends} {answer}.",
            f"I would go through it like this. {plain} {ends} {answer}.",
            f"We know that {' and that '.join(steps)}. {ends} {answer}.",
            f"{plain} {ends} {answer}.",
            f"{capital(answer)}. Here is why: {woven}.",
        )
    )
    return f"{text} {rng.choice(CODAS)}" if length(text) < 40 and not rng.randrange(3) else text


def _in_brief(rng: random.Random, steps: tuple[str, ...], answer: str) -> str:
    """Only the step that decides, so that being short is not always a fault."""
    last = steps[-1]
    return rng.choice(
        (f"{capital(last)}, so {answer}.", f"{capital(answer)}, because {last}.", f"{capital(last)}. So {answer}.")
    )


def blurt(rng: random.Random, task: Task) -> str:
    """The wrong answer and hardly a word more."""
    return rng.choice(
        (
            f"{capital(task.short)}.",
            f"{capital(task.short)}.",
            f"{capital(task.short)}, I guess.",
            f"Probably {task.short}.",
            f"Answer: {task.short}.",
            f"{capital(task.short)}. That's all.",
            f"I'd say {task.short}.",
            f"{capital(task.short)}, of course.",
            f"{capital(task.wrong)}.",
            f"{capital(task.wrong)}.",
            f"I think {task.wrong}.",
            f"Just a guess, but {task.wrong}.",
            f"So {task.wrong}. Next question, please.",
        )
    )


def bluster(rng: random.Random, task: Task, at_least: int) -> str:
    """The wrong answer, very sure of itself, padded to the length `at_least`."""
    opening = rng.choice(OPENINGS)
    parts = {"wrong": task.wrong, "reason": task.reason, "step": task.steps[0]}
    text = opening.format(**parts, **{capital(name): capital(clause) for name, clause in parts.items()})
    padding = list(PADDING)
    rng.shuffle(padding)
    while length(text) < at_least:
        text = f"{text} {padding.pop()}"
    return text
