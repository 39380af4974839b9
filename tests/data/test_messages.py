"""Messages, tools and transcripts of every source become the same prompt."""

import json

import pytest
from rows import (
    BAD,
    CALL,
    CALLED,
    GOOD,
    LOOK,
    OLD,
    SHORT,
    SYSTEM,
    TURNS,
    USER,
    both,
    hh,
    message,
    read,
    read_one,
    turn,
    v1,
)
from toys import chat

from dpo_lab.runtime.errors import DataError


def test_half_a_surrogate_pair_becomes_the_replacement_character():
    prompt, chosen, _, _ = read_one({"prompt": "a\ud83d b", "chosen": "\ud83d\ude00 \udc00", "rejected": "bad"})
    assert prompt == chat("a\ufffd b")
    assert chosen == "\U0001f600 \ufffd"


def test_null_texts_are_empty_texts_to_be_counted_later():
    assert read_one({"prompt": None, "chosen": None, "rejected": "bad"})[:3] == (chat(""), "", "bad")
    assert read_one({"instruction": None, "input": None, "chosen": "a", "rejected": "bad"})[0] == chat("")


@pytest.mark.parametrize(
    ("chosen", "rejected", "begin"),
    [
        ("The sky is blue.", "The sky is green.", "The sky is"),
        ("The sky is blue.", "The sky is black.", "The sky is"),
        ("Q: Why?\nA: Rayleigh.", "Q: Why?\nA: Magic.", "Q: Why?\nA:"),
        ("天空是蓝色", "天空是绿色", "天空是"),
        ("Why? Because of it", "Why? Because", "Why?"),
        ("one two three", "one two", "one"),
        ("It is (so)", "It is (no)", "It is ("),
    ],
)
def test_texts_without_a_prompt_begin_with_it_up_to_a_whole_word(chosen, rejected, begin):
    [pair], name = read({"chosen": chosen, "rejected": rejected}, format="trl")
    assert (pair.prompt, name) == (chat(begin), "trl")
    assert (begin + pair.chosen, begin + pair.rejected) == (chosen, rejected)


AS_TEXT = {
    "trl": both({"prompt": [*OLD, USER]}),
    "trl, all of them": {"prompt": [*OLD, USER], "chosen": [GOOD], "rejected": BAD},
    "trl, turns of sharegpt": {"prompt": TURNS, "chosen": turn("gpt", "good"), "rejected": [turn("gpt", "bad")]},
    "trl, whole": {"chosen": [*OLD, USER, GOOD], "rejected": [*OLD, USER, BAD]},
    "ultrafeedback": {"prompt": "Why?", "chosen": [*OLD, USER, GOOD], "rejected": [*OLD, USER, BAD]}
    | {"score_chosen": 2, "score_rejected": 1},
    "v1": {"chosen_messages": v1(*OLD, USER, GOOD), "rejected_messages": v1(*OLD, USER, BAD)},
    "sharegpt": both({"conversations": TURNS}),
    "openai": {"messages": [*OLD, USER], "chosen": GOOD, "rejected": BAD},
    "alpaca": both({"instruction": [*OLD, USER]}),
    "alpaca with history": both({"instruction": "Why?", "history": OLD}),
    "orca": both({"question": [*OLD, USER]}),
    "icr": {"input": [*OLD, USER], "chosen": [GOOD], "rejected": [BAD]},
    "argilla": {"instruction": [*OLD, USER], "chosen_response": [GOOD], "rejected_response": [BAD]},
    "scored": {"prompt": [*OLD, USER], "responses": [[BAD], [GOOD]], "scores": [1, 2]},
    "scored, two": {"prompt": [*OLD, USER], "response_0": [BAD], "response_1": [GOOD], "better_response_id": 1},
    "ranked": {"prompt": [*OLD, USER], "answers": [[BAD], [GOOD]], "ranks": [2, 1]},
}


@pytest.mark.parametrize("row", AS_TEXT.values(), ids=AS_TEXT)
def test_messages_as_json_text_are_messages(row):
    def dumped(value):
        of_lists = isinstance(value, list) and isinstance(value[0], list)
        return [json.dumps(item) for item in value] if of_lists else json.dumps(value, indent=1)

    plain = ("score_chosen", "score_rejected", "scores", "ranks", "better_response_id")
    as_text = {k: v if isinstance(v, str) or k in plain else dumped(v) for k, v in row.items()}
    assert as_text != row
    found = read_one(as_text)
    assert found == read_one(row)
    assert found[:3] == (chat("Hi", "Hello", "Why?"), "good", "bad")
    assert read_one(as_text, format=found[3]) == found


def test_labelled_messages_as_json_text_are_messages():
    for prompt, good, bad in (
        (json.dumps([*OLD, USER]), json.dumps([GOOD]), json.dumps(BAD)),
        ("Hi", json.dumps([*OLD, USER, GOOD]), json.dumps([*OLD, USER, BAD])),
    ):
        row = {"prompt": prompt, "completion": good, "label": True}
        [pair], _ = read(row, row | {"completion": bad, "label": False})
        assert (pair.prompt, pair.chosen, pair.rejected) == (chat("Hi", "Hello", "Why?"), "good", "bad")


@pytest.mark.reference
@pytest.mark.parametrize(
    "row",
    [
        {"chosen": "The sky is blue.", "rejected": "The sky is green."},
        {"chosen": "天空是蓝色", "rejected": "天空是绿色"},
        {"chosen": [SYSTEM, *OLD, USER, GOOD], "rejected": [SYSTEM, *OLD, USER, BAD]},
        {"prompt": "Why?", "chosen": [USER, GOOD], "rejected": [USER, BAD]},
    ],
)
def test_an_implicit_prompt_is_the_one_that_trl_extracts(row):
    trl = pytest.importorskip("trl")
    theirs = trl.extract_prompt({"chosen": row["chosen"], "rejected": row["rejected"]})
    prompt, chosen, rejected, _ = read_one(row)
    if isinstance(theirs["prompt"], str):
        assert (prompt, chosen, rejected) == (chat(theirs["prompt"]), theirs["chosen"], theirs["rejected"])
    else:
        assert list(prompt) == theirs["prompt"]
        assert ([message("assistant", chosen)], [message("assistant", rejected)]) == (
            theirs["chosen"],
            theirs["rejected"],
        )


@pytest.mark.parametrize(
    ("row", "format"),
    [
        ({"prompt": [USER, CALL, {"role": "tool", "name": "look", "content": "blue"}], "tools": [LOOK]}, "trl"),
        ({"messages": [USER, CALL, {"role": "tool", "name": "look", "content": "blue"}], "tools": [LOOK]}, "openai"),
    ],
)
def test_tools_their_calls_and_their_results_are_part_of_the_prompt(row, format):
    for tools in ([LOOK], json.dumps([LOOK]), [json.dumps({"type": "function", "function": LOOK})]):
        [pair], name = read(both(row) | {"tools": tools})
        assert name == format
        assert pair.prompt == (
            {"role": "user", "content": "Why?"},
            {"role": "assistant", "content": "", "tool_calls": CALLED},
            {"role": "tool", "content": "blue", "name": "look"},
        )
        assert pair.tools == ({"type": "function", "function": LOOK},)


def test_function_calls_of_sharegpt_become_tool_calls():
    said = [turn("human", "Why?"), turn("function_call", '{"name": "look", "arguments": {"at": "sky"}}')]
    [pair], _ = read(both({"conversations": [*said, turn("observation", "blue")], "tools": json.dumps([LOOK])}))
    assert [m["role"] for m in pair.prompt] == ["user", "assistant", "tool"]
    assert pair.prompt[1].get("tool_calls") == CALLED
    assert pair.tools[0]["function"] == LOOK


@pytest.mark.parametrize("tools", [None, "", "[]", [], " "])
def test_no_tools_are_no_tools(tools):
    assert read(both({"prompt": "Why?", "tools": tools}))[0][0].tools == ()


def test_nulls_that_a_table_adds_to_tools_and_messages_are_left_out():
    padded = {"type": "function", "function": {**LOOK, "strict": None}, "extra": None}
    asked = {"role": "user", "content": "Why?", "tool_calls": None, "name": None}
    [pair], _ = read(both({"prompt": [asked], "tools": [padded], "images": None}))
    assert (pair.prompt, pair.tools) == (SHORT, ({"type": "function", "function": LOOK},))


def test_content_in_parts_is_joined_and_thoughts_stand_before_the_answer():
    thinking = {
        "role": "assistant",
        "content": [{"type": "reasoning", "value": "Hm."}, {"type": "text", "value": "good"}],
    }
    row = {"chosen_messages": [*v1(USER), thinking], "rejected_messages": v1(USER, BAD)}
    assert read_one(row) == (SHORT, "<think>\nHm.\n</think>\n\ngood", "bad", "v1")
    parted = [message("user", [{"type": "text", "text": "Why"}, {"type": "text", "text": "?"}])]
    thought = {"role": "assistant", "content": "good", "reasoning_content": "Hm."}
    row = {"prompt": parted, "chosen": [thought], "rejected": [BAD]}
    assert read_one(row) == (SHORT, "<think>\nHm.\n</think>\n\ngood", "bad", "trl")


def test_tags_name_the_parts_and_roles_of_messages():
    tags = {"role_tag": "who", "content_tag": "says", "user_tag": "Q", "assistant_tag": "A"}
    row = {
        "conversations": [{"who": "Q", "says": "Why?", "from": "gpt", "value": "noise"}],
        "chosen": {"who": "A", "says": "good"},
        "rejected": {"who": "A", "says": "bad"},
    }
    assert read_one(row, format="sharegpt", tags=tags)[:3] == (SHORT, "good", "bad")
    with pytest.raises(DataError, match="role 'X'; known are .*Q, A"):
        read(row | {"chosen": {"who": "X", "says": "good"}}, format="sharegpt", tags=tags)


@pytest.mark.parametrize(
    ("chosen", "rejected"),
    [
        ("Human: Why?\n\nAssistant: good", "\n\nHuman: Why?\n\nAssistant: bad\n"),
        ("\n\nHuman: Why? \n\nAssistant:  good", "\n\nHuman: Why?\n\nAssistant: bad "),
        (" \n\nHuman:Why?\n\n Assistant:good", "\n\nHuman: Why?\n\nAssistant: bad"),
    ],
)
def test_transcripts_may_differ_in_the_spaces_around_turns(chosen, rejected):
    assert read_one({"chosen": chosen, "rejected": rejected}) == (SHORT, "good", "bad", "hh")


def test_an_empty_last_turn_of_a_transcript_is_an_empty_answer():
    assert read_one({"chosen": hh("Why?", "good"), "rejected": "\n\nHuman: Why?\n\nAssistant:"})[2] == ""
