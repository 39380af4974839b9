"""Small rows of the formats, and how tests read them."""

import json

from toys import chat

from dpo_lab.data.formats import to_pairs
from dpo_lab.data.types import Reading

ASKED = chat("Hi", "Hello", "Why?", system="Be brief.")
SHORT = chat("Why?")


def message(role, content):
    return {"role": role, "content": content}


def turn(who, value):
    return {"from": who, "value": value}


GOOD, BAD = message("assistant", "good"), message("assistant", "bad")
USER, OLD = message("user", "Why?"), [message("user", "Hi"), message("assistant", "Hello")]
SYSTEM = message("system", "Be brief.")
TURNS = [turn("human", "Hi"), turn("gpt", "Hello"), turn("human", "Why?")]


TEXT_PART = {"type": "text", "text": "Why?"}
CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"type": "function", "function": {"name": "look", "arguments": '{"at": "sky"}'}}],
}
CALLED = [{"type": "function", "function": {"name": "look", "arguments": {"at": "sky"}}}]
LOOK = {"name": "look", "parameters": {"type": "object"}}
RANKED = [{"answer": "worst", "rank": 3.0}, {"answer": "best", "rank": 1.0}, {"answer": "middle", "rank": 2.0}]


def hh(*turns):
    return "".join(f"\n\n{('Human', 'Assistant')[i % 2]}: {said}" for i, said in enumerate(turns))


def v1(*said):
    return [{"role": m["role"], "content": [{"type": "text", "value": m["content"]}], "loss_weight": 0.5} for m in said]


def both(row):
    """A row with its two plain answers."""
    return {**row, "chosen": "good", "rejected": "bad"}


def read(*rows, on_bad=None, **reading):
    pairs, name = to_pairs(enumerate(rows, 1), Reading(**reading), where="file.json", on_bad=on_bad)
    return list(pairs), name


def read_one(row, **reading):
    [pair], name = read(row, **reading)
    return pair.prompt, pair.chosen, pair.rejected, name


def labelled(prompt, completion, label):
    return {"prompt": prompt, "completion": completion, "label": label}


def check_sound(pair):
    """That a pair holds what it must, and nothing that cannot be written down."""
    assert isinstance(pair.chosen, str)
    assert isinstance(pair.rejected, str)
    assert pair.prompt[-1]["role"] in ("user", "tool")
    assert all(isinstance(m["content"], str) for m in pair.prompt)
    json.dumps([pair.prompt, pair.chosen, pair.rejected, pair.tools], ensure_ascii=False).encode()


# what a column may hold by mistake
VALUES = [
    None,
    "",
    "text",
    "\ud83d",
    3,
    -1.5,
    float("nan"),
    10**400,
    True,
    b"x",
    [],
    {},
    [None],
    [[]],
    [{}],
    ["a", "b"],
]
VALUES += [
    [1, 2],
    USER,
    GOOD,
    [USER],
    [GOOD],
    [USER, GOOD],
    [GOOD, USER],
    TURNS,
    CALL,
    [USER, CALL],
    hh("a", "b"),
    "[",
    '["a"]',
]
VALUES += [
    [[USER], [GOOD]],
    {"role": ["user"], "content": {}},
    [{"role": "user", "content": [{}]}],
    RANKED,
    {"a": {"b": [1]}},
]
