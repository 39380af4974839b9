"""Every format in use becomes the same pairs, and what is none of them is said with its row."""

import random
from contextlib import suppress

import pytest
from rows import (
    ASKED,
    BAD,
    CALL,
    GOOD,
    OLD,
    SHORT,
    SYSTEM,
    TEXT_PART,
    TURNS,
    USER,
    VALUES,
    both,
    check_sound,
    hh,
    message,
    read,
    read_one,
    turn,
    v1,
)
from toys import chat

from dpo_lab.data.formats import FORMATS, BadRow, to_pairs
from dpo_lab.data.types import Reading
from dpo_lab.runtime.errors import DataError


@pytest.mark.parametrize(
    ("row", "prompt", "name"),
    [
        ({"prompt": "Why?", "chosen": "good", "rejected": "bad"}, SHORT, "trl"),
        ({"prompt": "Why?", "chosen": [GOOD], "rejected": [BAD], "score": 3}, SHORT, "trl"),
        ({"prompt": [USER], "chosen": GOOD, "rejected": "bad"}, SHORT, "trl"),
        ({"prompt": USER, "chosen": "good", "rejected": "bad"}, SHORT, "trl"),
        ({"prompt": "Why?", "chosen": [USER, GOOD], "rejected": [USER, BAD]}, SHORT, "trl"),
        ({"chosen": [USER, GOOD], "rejected": [USER, BAD]}, SHORT, "trl"),
        ({"chosen": [SYSTEM, *OLD, USER, GOOD], "rejected": [SYSTEM, *OLD, USER, BAD]}, ASKED, "trl"),
        ({"prompt": [SYSTEM, *OLD, USER], "chosen": [GOOD], "rejected": [BAD]}, ASKED, "trl"),
        ({"prompt": [*OLD, USER], "system": "Be brief.", "chosen": "good", "rejected": "bad"}, ASKED, "trl"),
        ({"prompt": [SYSTEM, *OLD, USER], "system": "other", "chosen": "good", "rejected": "bad"}, ASKED, "trl"),
        ({"prompt": "Why?", "system": None, "chosen": "good", "rejected": "bad"}, SHORT, "trl"),
        ({"instruction": "Why?", "input": "", "chosen": "good", "rejected": "bad"}, SHORT, "alpaca"),
        ({"instruction": "Why", "input": "so?", "chosen": "good", "rejected": "bad"}, chat("Why\nso?"), "alpaca"),
        ({"instruction": "", "input": "Why?", "chosen": "good", "rejected": "bad"}, SHORT, "alpaca"),
        ({"instruction": "Why?", "chosen": "good", "rejected": "bad"}, SHORT, "alpaca"),
        (
            {
                "instruction": "Why?",
                "chosen": "good",
                "rejected": "bad",
                "system": "Be brief.",
                "history": [["Hi", "Hello"]],
            },
            ASKED,
            "alpaca",
        ),
        (
            {
                "instruction": "Why?",
                "chosen": "good",
                "rejected": "bad",
                "system": "Be brief.",
                "history": '[["Hi", "Hello"]]',
            },
            ASKED,
            "alpaca",
        ),
        ({"instruction": "Why?", "chosen": "good", "rejected": "bad", "system": "", "history": []}, SHORT, "alpaca"),
        (
            {"conversations": TURNS[2:], "chosen": turn("gpt", "good"), "rejected": turn("gpt", "bad")},
            SHORT,
            "sharegpt",
        ),
        (
            {
                "conversations": TURNS,
                "system": "Be brief.",
                "chosen": turn("gpt", "good"),
                "rejected": turn("gpt", "bad"),
            },
            ASKED,
            "sharegpt",
        ),
        (
            {"conversations": [turn("system", "Be brief."), *TURNS], "chosen": turn("gpt", "good"), "rejected": "bad"},
            ASKED,
            "sharegpt",
        ),
        ({"conversations": [USER], "chosen": GOOD, "rejected": BAD}, SHORT, "sharegpt"),
    ],
)
def test_a_row_becomes_a_pair(row, prompt, name):
    assert read_one(row) == (prompt, "good", "bad", name)
    assert read_one(row, format=name) == (prompt, "good", "bad", name)


@pytest.mark.parametrize(
    ("row", "columns", "format", "prompt"),
    [
        (
            {"question": "Why?", "good": "good", "bad": "bad"},
            {"prompt": "question", "chosen": "good", "rejected": "bad"},
            "auto",
            SHORT,
        ),
        ({"prompt": "noise", "q": "Why?", "chosen": "good", "rejected": "bad"}, {"prompt": "q"}, "auto", SHORT),
        (
            {"prompt": "Why?", "chosen": "bad", "rejected": "good"},
            {"chosen": "rejected", "rejected": "chosen"},
            "auto",
            SHORT,
        ),
        ({"q": TURNS[2:], "chosen": "good", "rejected": "bad"}, {"prompt": "q"}, "auto", SHORT),
        ({"q": TURNS[2:], "chosen": "good", "rejected": "bad"}, {"prompt": "q"}, "sharegpt", SHORT),
        (
            {"q": "Why?", "h": [["Hi", "Hello"]], "s": "Be brief.", "chosen": "good", "rejected": "bad"},
            {"prompt": "q", "history": "h", "system": "s"},
            "auto",
            ASKED,
        ),
        ({"q": "Why?", "chosen": "good", "rejected": "bad"}, {"prompt": "q"}, "alpaca", SHORT),
    ],
)
def test_columns_go_by_other_names(row, columns, format, prompt):
    assert read_one(row, columns=columns, format=format)[:3] == (prompt, "good", "bad")


def test_an_optional_column_may_be_missing_in_some_rows():
    plain = {"q": "a", "chosen": "x", "rejected": "y"}
    pairs, _ = read(plain, plain | {"s": "S"}, plain, columns={"prompt": "q", "system": "s"})
    assert [p.prompt for p in pairs] == [chat("a"), chat("a", system="S"), chat("a")]


def test_a_mapped_column_is_never_replaced_by_one_of_our_name():
    row = {"prompt": "noise", "chosen": "x", "rejected": "y"}
    with pytest.raises(DataError, match="row 2: prompt is missing"):
        read(row | {"q": "a"}, row, columns={"prompt": "q"})


def test_rows_are_numbered_from_one():
    row = {"prompt": "Why?", "chosen": "good", "rejected": "bad"}
    assert [p.row for p in read(row, row, row)[0]] == [1, 2, 3]


@pytest.mark.parametrize(
    "text",
    [
        "[[1, 2], [3, 4]]",
        '{"role": "admin"}',
        '[{"role": "wizard", "content": "x"}]',
        '[{"role": "user"}]',
        '[{"role": "user", "content": "x"}, 3]',
        '[{"role": "user", "content": "x"',
        '["role"]',
        "[" * 100_000,
    ],
)
def test_text_that_looks_like_data_stays_text(text):
    assert read_one({"prompt": text, "chosen": text, "rejected": "bad"})[:2] == (chat(text), text)
    assert read_one({"instruction": text, "chosen": text, "rejected": "bad"})[:2] == (chat(text), text)


def test_an_answer_that_is_json_of_messages_without_an_answer_is_text():
    said = '[{"role": "user", "content": "x"}]'
    assert read_one({"prompt": "As JSON?", "chosen": said, "rejected": "bad"})[:2] == (chat("As JSON?"), said)
    assert read_one({"instruction": "As?", "input": said, "chosen": said, "rejected": "bad"})[0] == chat(f"As?\n{said}")


@pytest.mark.parametrize(
    ("row", "name"),
    [
        ({"instruction": "Why", "input": "so?", "chosen_response": "good", "rejected_response": "bad"}, "argilla"),
        ({"question": "Why", "input": "so?", "chosen_response": "good", "rejected_response": "bad"}, "argilla"),
        (both({"question": "Why", "input": "so?"}), "orca"),
        ({"instruction": "Why", "input": "so?", "responses": ["bad", "good"], "scores": [1, 2]}, "scored"),
        ({"prompt": "Why", "input": "so?", "responses": ["bad", "good"], "ranks": [2, 1]}, "ranked"),
    ],
)
def test_the_input_stands_below_the_instruction_in_every_format_that_has_one(row, name):
    assert read_one(row) == (chat("Why\nso?"), "good", "bad", name)


@pytest.mark.parametrize("history", [[["Hi", "Hello"]], '[["Hi", "Hello"]]', OLD])
@pytest.mark.parametrize(
    "row",
    [
        both({"question": "Why?"}),
        both({"input": "Why?"}),
        both({"prompt": "Why?"}),
        both({"instruction": "Why?"}),
        {"instruction": "Why?", "chosen_response": "good", "rejected_response": "bad"},
        {"prompt": "Why?", "responses": ["bad", "good"], "scores": [1, 2]},
    ],
)
def test_the_turns_of_a_history_stand_before_the_prompt(row, history):
    assert read_one(row | {"history": history})[:3] == (chat("Hi", "Hello", "Why?"), "good", "bad")


@pytest.mark.parametrize("column", ["system", "system_prompt", "system_message"])
def test_a_system_text_goes_by_several_names(column):
    for row in (
        both({"prompt": "Why?"}),
        both({"question": "Why?"}),
        {"chosen": [USER, GOOD], "rejected": [USER, BAD]},
    ):
        assert read_one({"system": None, **row, column: "Be brief."})[0] == chat("Why?", system="Be brief.")
    assert read_one(both({"prompt": "Why?", column: "noise", "s": "Be brief."}), columns={"system": "s"})[0] == chat(
        "Why?", system="Be brief."
    )
    assert read_one(both({"prompt": "Why?", column: "noise"}), columns={"system": ""})[0] == SHORT


@pytest.mark.parametrize("value", ["text", [["a", "b"]], "[" * 100_000])
def test_a_history_is_not_lost_in_silence(value):
    row = {"prompt": "Why?", "history": value, "chosen": "good", "rejected": "bad"}
    if isinstance(value, list):
        assert read_one(row)[0] == chat("a", "b", "Why?")
    else:
        with pytest.raises(DataError, match="history must be a list"):
            read(row)
    assert read_one(row, format="trl")[0] == SHORT


FAULTS = {
    "no format": ({"text": "a", "label": 1}, ["none of the formats", "text, label", "data.columns"]),
    "no prompt": ({"chosen": "a", "rejected": "b"}, ["prompt is missing", "not conversations"]),
    "no answer": ({"prompt": "a", "chosen": "b"}, ["rejected is missing", "prompt, chosen", "data.columns"]),
    "alpaca of one answer": ({"instruction": "a", "output": "b"}, ["chosen is missing", "format alpaca"]),
    "implicit prompts differ": (
        {"chosen": [USER, GOOD], "rejected": [*OLD, USER, BAD]},
        ["prompt is missing", "differ in more than their last"],
    ),
    "conversations that part early beside a prompt": (
        {"prompt": "Why?", "chosen": [USER, GOOD, USER, GOOD], "rejected": [USER, BAD, USER, BAD]},
        ["row 1: chosen and rejected differ in more than their last message"],
    ),
    "nothing but an answer": ({"chosen": [GOOD], "rejected": [BAD]}, ["prompt is missing"]),
    "a number": ({"prompt": 3, "chosen": "a", "rejected": "b"}, ["prompt must be text, not a number"]),
    "a truth": (
        {"prompt": "q", "chosen": True, "rejected": "b"},
        ["chosen must be text or messages, not true or false"],
    ),
    "a number as an answer": (
        {"prompt": "q", "chosen": 3, "rejected": "b"},
        ["must be text or messages, not a number"],
    ),
    "an empty list as an answer": (
        {"prompt": "q", "chosen": [], "rejected": "b"},
        ["chosen must be a non-empty list of messages, not an empty list"],
    ),
    "ranks from zero": (
        {"prompt": "q", "answers": ["a", "b", "c"], "ranking": [1, 0, 2]},
        ["ranks from 0", "give ranks from 1", "data.format=ranked"],
    ),
    "bytes": ({"prompt": b"q", "chosen": "a", "rejected": "b"}, ["prompt must be text, not a bytes"]),
    "an empty list": (
        {"prompt": [], "chosen": "a", "rejected": "b"},
        ["prompt must be a non-empty list", "an empty list"],
    ),
    "a list of texts": ({"prompt": ["q"], "chosen": "a", "rejected": "b"}, ["prompt holds text where a message"]),
    "an unknown role": (
        {"prompt": [message("bot", "x")], "chosen": "a", "rejected": "b"},
        ["role 'bot'", "human, gpt"],
    ),
    "no role": ({"prompt": [{"content": "x"}], "chosen": "a", "rejected": "b"}, ["role None"]),
    "a role that is a list": ({"prompt": [message(["user"], "x")], "chosen": "a", "rejected": "b"}, ["role ['user']"]),
    "a message without content": (
        {"prompt": [message("user", None)], "chosen": "a", "rejected": "b"},
        ["user without content"],
    ),
    "a picture in a message": (
        {"prompt": [message("user", [{"type": "image"}, TEXT_PART])], "chosen": "a", "rejected": "b"},
        ["prompt holds a part of the type 'image'", "no images, video or sound"],
    ),
    "content in parts of text alone": (
        {"prompt": [message("user", ["x"])], "chosen": "a", "rejected": "b"},
        ["a message's content in prompt must be text, or parts"],
    ),
    "a picture beside the prompt": (
        {"prompt": "q", "images": ["a.png"], "chosen": "a", "rejected": "b"},
        ["images is not empty", "text alone"],
    ),
    "an answer that calls a tool": (
        {"prompt": "q", "chosen": [CALL], "rejected": "b"},
        ["chosen calls a tool"],
    ),
    "a function call as the answer": (
        {"conversations": TURNS, "chosen": turn("function_call", '{"name": "f"}'), "rejected": turn("gpt", "b")},
        ["chosen calls a tool", "format sharegpt"],
    ),
    "a broken function call": (
        {"conversations": [turn("function_call", "f(")], "chosen": turn("gpt", "a"), "rejected": turn("gpt", "b")},
        ["conversations holds a tool call that is not {name: ..., arguments: ...}: 'f('"],
    ),
    "tools that are none": (
        {"prompt": "q", "chosen": "a", "rejected": "b", "tools": "weather"},
        ["tools must be a list of JSON schemas", "'weather'"],
    ),
    "texts without a common beginning": (
        {"chosen": "blue", "rejected": "black"},
        ["prompt is missing", "not conversations or texts that begin with it"],
    ),
    "the same texts": ({"chosen": "It is.", "rejected": "It is."}, ["prompt is missing", "the same text"]),
    "transcripts that part early": (
        {"chosen": hh("Hi", "Hello", "Why?", "good"), "rejected": hh("Hi", "Go.", "Why?", "bad")},
        ["differ before the last turn of the Assistant", "format hh"],
    ),
    "transcripts of one turn": (
        {"chosen": "Human: a\n\nAssistant: b\n\nHuman: c", "rejected": "Human: a\n\nAssistant: b"},
        ["chosen must end with a turn of the Assistant"],
    ),
    "conversations of LLaMA-Factory v1 that part early": (
        {"chosen_messages": v1(USER, GOOD, USER, GOOD), "rejected_messages": v1(USER, BAD, USER, BAD)},
        ["chosen_messages and rejected_messages differ in more than their last message", "format v1"],
    ),
    "fewer scores than answers": (
        {"prompt": "q", "answers": ["a", "b"], "scores": [1]},
        ["scores must hold a number for each of the 2 answers, not 1 numbers"],
    ),
    "a score that is no number": (
        {"prompt": "q", "answers": ["a", "b"], "scores": [1, "high"]},
        ["scores must hold numbers, not 'high'", "format scored"],
    ),
    "a verdict for a third answer": (
        {"prompt": "q", "response_0": "a", "response_1": "b", "better_response_id": 2},
        ["better_response_id must be 0 or 1, not 2"],
    ),
    "a label that is none": (
        {"prompt": "q", "completion": "a", "label": "good"},
        ["label must be true or false, not 'good'", "format kto"],
    ),
    "a labelled conversation without an answer": (
        {"messages": [USER], "label": True},
        ["messages must hold a prompt and the answer"],
    ),
    "a prompt that ends with an answer": (
        {"prompt": OLD, "chosen": "a", "rejected": "b"},
        ["end with a user's turn", "assistant's"],
    ),
    "a system message alone": (
        {"prompt": [SYSTEM], "chosen": "a", "rejected": "b"},
        ["end with a user's turn", "system's"],
    ),
    "an answer of the user": (
        {"prompt": "q", "chosen": [USER], "rejected": "b"},
        ["chosen must be one message", "not user"],
    ),
    "an answer of two": ({"prompt": "q", "chosen": [GOOD, GOOD], "rejected": "b"}, ["not assistant + assistant"]),
    "another prompt in the answer": (
        {"prompt": "q", "chosen": [USER, GOOD], "rejected": "b"},
        ["not user + assistant"],
    ),
    "history of texts": (
        {"instruction": "q", "history": ["a"], "chosen": "a", "rejected": "b"},
        ["[question, answer]"],
    ),
    "history of numbers": (
        {"instruction": "q", "history": [[1, 2]], "chosen": "a", "rejected": "b"},
        ["history must be text"],
    ),
    "conversations of text": (
        {"conversations": "q", "chosen": "a", "rejected": "b"},
        ["conversations must be", "not text"],
    ),
    "null conversations": (
        {"conversations": None, "chosen": "a", "rejected": "b"},
        ["conversations must be", "not null"],
    ),
    "a system of numbers": ({"prompt": "q", "system": 1, "chosen": "a", "rejected": "b"}, ["system must be text"]),
    "a row without columns": ({}, ["none of the formats", "(none)"]),
}


@pytest.mark.parametrize(("row", "fragments"), FAULTS.values(), ids=FAULTS)
def test_a_faulty_row_is_named_with_its_columns(row, fragments):
    with pytest.raises(DataError) as caught:
        read(row)
    for fragment in ("file.json: row 1", "columns there are", *fragments):
        assert fragment in str(caught.value)


def test_the_faulty_row_need_not_be_the_first_and_its_own_names_are_told():
    rows = [{"q": "Why?", "chosen": "good", "rejected": "bad"}] * 2 + [{"q": "Why?", "rejected": "bad"}]
    with pytest.raises(DataError, match=r"file\.json: row 3: chosen is missing.*columns there are q, rejected\."):
        read(*rows, columns={"prompt": "q"})


def test_a_mapped_column_that_no_row_has_is_told():
    with pytest.raises(
        DataError, match=r"no row has a column question, best \(data\.columns\)\. The columns there are q,"
    ):
        read({"q": "Why?", "chosen": "a", "rejected": "b"}, columns={"prompt": "question", "chosen": "best"})


def test_a_mapped_column_may_first_stand_in_a_late_row():
    row = {"q": "Why?", "chosen": "a", "rejected": "b"}
    pairs, _ = read(*[row] * 30, row | {"s": "Be brief."}, columns={"prompt": "q", "system": "s"})
    assert [p.prompt for p in pairs[-2:]] == [SHORT, chat("Why?", system="Be brief.")]
    with pytest.raises(DataError, match=r"no row has a column s \(data\.columns\)"):
        read(*[row] * 30, columns={"prompt": "q", "system": "s"})
    with pytest.raises(DataError, match=r"none of the first 20 rows has a column p \(data\.columns\)"):
        read(*[row] * 30, columns={"prompt": "p"})


def test_a_column_that_is_mapped_to_nothing_is_not_read():
    row = {"instruction": "Why?", "input": "noise", "system": "noise", "chosen": "good", "rejected": "bad"}
    assert read_one(row, columns={"query": "", "system": ""}, format="alpaca")[0] == SHORT


def test_rows_are_read_lazily_and_faults_are_handed_over():
    taken = []

    def rows():
        for number in range(1, 101):
            taken.append(number)
            yield number, {"prompt": "q", "chosen": "a", "rejected": 3 if number == 22 else "b"}

    bad: list[BadRow] = []
    pairs, _ = to_pairs(rows(), Reading(), where="x", on_bad=bad.append)
    assert len(taken) == 20
    assert [next(pairs).row for _ in range(22)] == [*range(1, 22), 23]
    assert len(taken) == 23
    assert [str(b).split(" (format")[0] for b in bad] == ["x: row 22: rejected must be text or messages, not a number"]


def test_what_is_nested_too_deeply_is_a_fault():
    deep: list = []
    for _ in range(5000):
        deep = [deep]
    with pytest.raises(DataError, match="row 1: it is nested too deeply"):
        read(both({"prompt": "q", "tools": [{"name": "look", "parameters": deep}]}))
    assert read_one(both({"prompt": "Why?", "context": deep}))[0] == SHORT


NAMES = [
    "prompt",
    "chosen",
    "rejected",
    "system",
    "history",
    "instruction",
    "input",
    "output",
    "conversations",
    "messages",
    "question",
    "tools",
    "images",
    "chosen_messages",
    "rejected_messages",
    "chosen_response",
    "rejected_response",
    "answers",
    "ranks",
    "scores",
    "completion",
    "label",
    "score_chosen",
    "score_rejected",
    "response_0",
    "response_1",
    "better_response_id",
]


@pytest.mark.parametrize("format", FORMATS)
def test_whatever_a_row_holds_it_is_a_pair_or_a_told_fault(format):
    bad: list[BadRow] = []
    pairs, _ = read(*_any_rows(), format=format, on_bad=bad.append)
    assert len(bad) > 0
    assert all(b.reason and f"row {b.row}: " in str(b) for b in bad)
    for pair in pairs:
        check_sound(pair)


def test_whatever_a_row_holds_its_format_is_told_or_asked_for():
    told, bad = [], []
    for row in _any_rows():
        with suppress(DataError):
            pairs, name = read(row, on_bad=bad.append)
            told.append(name)
            for pair in pairs:
                check_sound(pair)
    assert {"alpaca", "argilla", "trl", "v1"} <= set(told)
    assert len(bad) > len(told) / 2


def _any_rows():
    chance = random.Random(0)
    return [
        {name: chance.choice(VALUES) for name in chance.sample(NAMES, chance.choice([6, 12, len(NAMES)]))}
        for _ in range(1500)
    ]
