"""Every format in use becomes the same pairs, and what is none of them is said with its row."""

import pytest
from toys import chat

from dpo_lab.data.formats import to_pairs
from dpo_lab.runtime.errors import DataError

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


def read(*rows, format="auto", columns=None):
    return to_pairs(list(rows), format=format, columns=columns or {}, where="file.json")


def read_one(row, **settings):
    [pair], name = read(row, **settings)
    return pair.prompt, pair.chosen, pair.rejected, name


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
    "text", ["[[1, 2], [3, 4]]", '{"role": "admin"}', '[{"role": "user", "content": "x"}]', "[" * 100_000]
)
def test_text_that_looks_like_data_stays_text(text):
    assert read_one({"prompt": text, "chosen": text, "rejected": "bad"})[:2] == (chat(text), text)
    assert read_one({"instruction": text, "chosen": text, "rejected": "bad"})[:2] == (chat(text), text)


@pytest.mark.parametrize("value", ["text", [["a", "b"]], "[" * 100_000])
def test_a_history_is_not_lost_in_silence(value):
    row = {"prompt": "Why?", "history": value, "chosen": "good", "rejected": "bad"}
    if isinstance(value, list):
        assert read_one(row)[0] == chat("a", "b", "Why?")
    else:
        with pytest.raises(DataError, match="history must be a list"):
            read(row)
    assert read_one(row, format="trl")[0] == SHORT


def test_half_a_surrogate_pair_becomes_the_replacement_character():
    prompt, chosen, _, _ = read_one({"prompt": "a\ud83d b", "chosen": "\ud83d\ude00 \udc00", "rejected": "bad"})
    assert prompt == chat("a\ufffd b")
    assert chosen == "\U0001f600 \ufffd"


def test_null_texts_are_empty_texts_to_be_counted_later():
    assert read_one({"prompt": None, "chosen": None, "rejected": "bad"})[:3] == (chat(""), "", "bad")
    assert read_one({"instruction": None, "input": None, "chosen": "a", "rejected": "bad"})[0] == chat("")


FAULTS = {
    "no format": ({"text": "a", "label": 1}, ["none of the formats", "text, label", "data.columns"]),
    "no prompt": ({"chosen": "a", "rejected": "b"}, ["prompt is missing", "not conversations"]),
    "no answer": ({"prompt": "a", "chosen": "b"}, ["rejected is missing", "prompt, chosen", "data.columns"]),
    "alpaca of one answer": ({"instruction": "a", "output": "b"}, ["chosen is missing", "format alpaca"]),
    "implicit prompts differ": (
        {"chosen": [USER, GOOD], "rejected": [*OLD, USER, BAD]},
        ["prompt is missing", "differ in more than their last"],
    ),
    "nothing but an answer": ({"chosen": [GOOD], "rejected": [BAD]}, ["prompt is missing"]),
    "a number": ({"prompt": 3, "chosen": "a", "rejected": "b"}, ["prompt must be text, not a number"]),
    "a truth": ({"prompt": "q", "chosen": True, "rejected": "b"}, ["chosen must be a non-empty list", "true or false"]),
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
    "content in parts": (
        {"prompt": [message("user", [{"type": "text", "text": "x"}])], "chosen": "a", "rejected": "b"},
        ["a message's content in prompt must be text, not a list"],
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
