"""The format of public data is told by its columns; broken rows do not mislead, and no part of a prompt is lost."""

import json
from contextlib import suppress

import pytest
from rows import BAD, GOOD, OLD, RANKED, SHORT, TURNS, USER, VALUES, both, check_sound, hh, read, read_one, turn, v1
from toys import SHARED, chat

from dpo_lab.config.schema import STRATEGIES
from dpo_lab.data.formats import FORMATS, BadRow
from dpo_lab.runtime.errors import DataError

PUBLIC = {
    "HH-RLHF": ({"chosen": hh("Hi", "Hello", "Why?", "good "), "rejected": hh("Hi", "Hello ", "Why?", "bad")}, "hh"),
    "full-hh-rlhf": (
        {"prompt": hh("Hi", "Hello", "Why?", ""), "response": "noise", **both({}), "chosen": " good"},
        "hh",
    ),
    "a transcript and messages": (
        {"prompt": hh("Hi", "Hello", "Why?", ""), "chosen": [GOOD], "rejected": BAD},
        "hh",
    ),
    "a transcript and whole conversations": (
        {"prompt": hh("Hi", "Hello", "Why?", ""), "chosen": [*OLD, USER, GOOD], "rejected": [*OLD, USER, BAD]},
        "trl",
    ),
    "dpo-mix-7k": (
        {"dataset": "x", "chosen": [*OLD, USER, GOOD], "rejected": [*OLD, USER, BAD], "chosen_rating": 5.0}
        | {"rejected_rating": 1.0},
        "ultrafeedback",
    ),
    "Skywork": ({"chosen": [*OLD, USER, GOOD], "rejected": [*OLD, USER, BAD], "source": "x"}, "trl"),
    "capybara-dpo": (
        {"source": "x", "conversation": [{"input": "Hi", "output": "Hello"}], "rating_chosen": 5, "rating_rejected": 4}
        | {"chosen": [*OLD, USER, GOOD], "rejected": [*OLD, USER, BAD], "original_response": "x"},
        "ultrafeedback",
    ),
    "orpo-dpo-mix-40k": (
        {"prompt": "Hi", "question": "Hi", "chosen": [*OLD, USER, GOOD], "rejected": [*OLD, USER, BAD]},
        "trl",
    ),
    "RLHFlow": (
        {"chosen": [*OLD, USER, GOOD], "rejected": [*OLD, USER, BAD], "chosen_score": 2.0, "rejected_score": 1.0},
        "ultrafeedback",
    ),
    "ultrafeedback_binarized (H4)": (
        {"prompt": "Hi", "prompt_id": "x", "messages": [*OLD, USER, GOOD], "score_chosen": 8.0, "score_rejected": 7.5}
        | {"chosen": [*OLD, USER, GOOD], "rejected": [*OLD, USER, BAD]},
        "ultrafeedback",
    ),
    "DPO-En-Zh-20k": (
        {"conversations": TURNS, "chosen": turn("gpt", "good"), "rejected": turn("gpt", "bad"), "system": None},
        "sharegpt",
    ),
    "chat_template.default": ({"messages": [*OLD, USER], "chosen": GOOD, "rejected": BAD}, "openai"),
    "messages and texts": (both({"messages": [*OLD, USER]}), "openai"),
    "messages and lists": ({"messages": [*OLD, USER], "chosen": [GOOD], "rejected": [BAD]}, "openai"),
    "LLaMA-Factory v1": (
        {"chosen_messages": v1(*OLD, USER, GOOD), "rejected_messages": v1(*OLD, USER, BAD), "tools": None},
        "v1",
    ),
    "orca_dpo_pairs": (both({"system": "", "question": "Why?"}), "orca"),
    "distilabel-intel-orca-dpo-pairs": (
        both({"system": None, "input": "Why?", "generations": ["good", "bad"], "rating": [9.0, 8.0], "order": ["a"]})
        | {"chosen_score": 9.0, "labelling_prompt": [USER], "status": "unchanged"},
        "icr",
    ),
    "truthy-dpo": (both({"id": "x", "source": "y", "system": "", "prompt": "Why?"}), "trl"),
    "py-dpo": (both({"prompt": "Why?", "id": 3}), "trl"),
    "llamafactory/ultrafeedback_binarized": (both({"instruction": "Why?"}), "alpaca"),
    "orca_dpo_de": ({"instruction": "Why?", "input": "", "output": ["good", "bad"]}, "alpaca"),
    "argilla": (
        {"instruction": "Why?", "chosen_response": "good", "rejected_response": "bad", "chosen_avg_rating": 5.0},
        "argilla",
    ),
    "Nectar": (
        {
            "prompt": hh("Hi", "Hello", "Why?", " "),
            "answers": [RANKED[1] | {"answer": "good"}, RANKED[2] | {"answer": "bad"}],
        }
        | {"turns": 2, "num_responses": 2, "source": ["x"], "good_natured": True},
        "ranked",
    ),
    "ranks beside": ({"prompt": "Why?", "completions": ["bad", "good"], "ranks": [2, 1]}, "ranked"),
    "scores beside": ({"prompt": "Why?", "responses": ["bad", "good"], "scores": [2, 3.5]}, "scored"),
    "UltraFeedback": (
        {"instruction": "Why?", "models": ["a", "b"], "correct_answers": ["x"]}
        | {"completions": [{"response": "bad", "overall_score": 3}, {"response": "good", "overall_score": "7.5"}]},
        "scored",
    ),
    "PKU-SafeRLHF": (
        {"prompt": "Why?", "response_0": "bad", "response_1": "good", "better_response_id": 1, "safer_response_id": 0},
        "scored",
    ),
    "SHP": (
        {"history": "Why?", "human_ref_A": "bad", "human_ref_B": "good", "labels": 0, "score_A": 3, "score_B": 9},
        "scored",
    ),
    "two scores": (
        {"prompt": "Why?", "response_a": "bad", "response_b": "good", "score_a": 1, "score_b": 2},
        "scored",
    ),
    "HelpSteer2": ({"prompt": "Why?", "response_1": "good", "response_2": "bad", "preference_strength": -2}, "scored"),
    "HelpSteer3": (
        {"context": [*OLD, USER], "response1": "bad", "response2": "good", "overall_preference": 1, "domain": "x"},
        "scored",
    ),
    "stack-exchange-paired": ({"qid": 1, "question": "Why?", "response_j": "good", "response_k": "bad"}, "scored"),
}


@pytest.mark.parametrize(("row", "name"), PUBLIC.values(), ids=PUBLIC)
def test_public_data_is_told_by_its_columns(row, name):
    longer = str(OLD[0]["content"]) in str(row)
    prompt = chat("Hi", "Hello", "Why?") if longer else SHORT
    assert read_one(row) == (prompt, "good", "bad", name)
    assert read_one(row, format=name) == (prompt, "good", "bad", name)


def test_a_broken_first_row_does_not_decide_the_format():
    bad: list[BadRow] = []
    rows = [["a"], {"chosen": "a", "rejected": "b"}, {}, {"question": "Why?", "chosen": "good", "rejected": "bad"}]
    pairs, name = read(*rows, on_bad=bad.append)
    assert (name, [p.row for p in pairs]) == ("orca", [4])
    assert [(b.row, b.reason) for b in bad] == [
        (1, "it is a list, not an object with named columns"),
        (2, "question is missing"),
        (3, "question is missing"),
    ]


def test_no_rows_are_no_pairs_and_an_unknown_format_of_nothing():
    assert read(format="trl") == ([], "trl")
    with pytest.raises(DataError, match="holds no rows"):
        read()


def test_what_no_format_fits_is_told_with_all_formats():
    with pytest.raises(DataError) as caught:
        read({"text": "a"}, {"text": "b"})
    for name in FORMATS:
        assert f"\n  {name}: " in str(caught.value)
    assert "nor is any of the 1 after it" in str(caught.value)


def test_axolotl_names_of_strategies_stand_for_formats():
    assert read_one(both({"question": "Why?"}), format="llama3.intel") == (SHORT, "good", "bad", "orca")
    assert read_one(both({"question": "Why?"}), format="chatml.argilla") == (SHORT, "good", "bad", "argilla")
    assert set(STRATEGIES.values()) <= set(FORMATS)


@pytest.mark.parametrize("file", ["dpo_en_demo.json", "dpo_zh_demo.json"])
def test_the_demo_files_of_llama_factory_are_read_whole(file):
    path = SHARED / "data" / file
    if not path.is_file():
        pytest.skip("LLaMA-Factory's demo files are not on this machine (../shared/data)")
    content = json.loads(path.read_text(encoding="utf-8"))
    pairs, name = read(*content)
    assert (name, [p.row for p in pairs]) == ("sharegpt", [*range(1, len(content) + 1)])
    assert [p.chosen for p in pairs] == [row["chosen"]["value"] for row in content]
    assert [p.prompt[-1]["content"] for p in pairs] == [row["conversations"][-1]["value"] for row in content]


@pytest.mark.parametrize(("row", "name"), PUBLIC.values(), ids=PUBLIC)
def test_public_data_with_any_other_value_is_a_pair_or_a_told_fault(row, name):
    found = 0
    for column in row:
        for value in VALUES:
            bad: list[BadRow] = []
            pairs, _ = read(row | {column: value}, row, format=name, on_bad=bad.append)
            assert len({p.row for p in pairs} | {b.row for b in bad}) == 2
            for pair in pairs:
                check_sound(pair)
            found += len(bad)
            with suppress(DataError):
                read(row | {column: value})
    assert found > len(VALUES) // 2


SUM = {"problem": "What is 2 + 3?", "chosen": "The answer is 5.", "rejected": "The answer is 6."}


@pytest.mark.parametrize(
    ("row", "column"),
    [
        (SUM, "problem"),
        (SUM | {"dataset": "a math set", "problem": "Sum"}, "problem"),
        ({"task": "Add 2 and 3", **both({})}, "task"),
        ({"q": "Why?", "id": "x-7", **both({})}, "q"),
        ({"problem": "Why?", "chosen": [GOOD], "rejected": [BAD]}, "problem"),
        (SUM | {"score_chosen": 2, "score_rejected": 1}, "problem"),
    ],
)
def test_a_text_column_that_could_be_the_prompt_is_asked_about(row, column):
    with pytest.raises(DataError, match=rf"row 1: which column is the prompt: {column}") as caught:
        read(row)
    assert f"'data.columns={{prompt: {column}}}'" in str(caught.value)
    assert read_one(row, columns={"prompt": column})[0] == chat(row[column])


def test_what_is_asked_about_a_prompt_tells_the_columns_as_the_source_names_them():
    with pytest.raises(DataError, match=r"column context is not read.* columns there are q, context, chosen") as caught:
        read(both({"q": "Why?", "context": "A text."}) | {"prompt": "noise"}, columns={"prompt": "q"})
    assert "'data.columns={prompt: q, query: context}'" in str(caught.value)


def test_the_common_beginning_is_the_prompt_where_the_format_is_named():
    assert read_one(SUM, format="trl")[:3] == (chat("The answer is"), " 5.", " 6.")


def test_columns_that_are_no_prompt_or_stand_in_it_do_not_keep_the_common_beginning_from_being_it():
    row = {"chosen": "Q: Why so?\nA: Rayleigh.", "rejected": "Q: Why so?\nA: Magic.", "source": "some web", "id": "7"}
    row |= {"problem": "Why so?", "response": "Q: Why so?\nA: Magic.", "lang": None}
    assert read_one(row) == (chat("Q: Why so?\nA:"), " Rayleigh.", " Magic.", "trl")


@pytest.mark.parametrize("words", ["Sure. ", "I am ", "我们", "It is ("])
def test_a_word_or_two_that_answers_share_are_no_prompt(words):
    row = {"chosen": f"{words}好one", "rejected": f"{words}坏two"}
    with pytest.raises(DataError, match=r"row 2: prompt is missing, and .* both begin with") as caught:
        read({"chosen": "The sky is blue.", "rejected": "The sky is green."}, row)
    assert repr(words.rstrip()) in str(caught.value)
    assert "data.format=trl" in str(caught.value)
    assert read_one(row, format="trl")[0] == chat(words.rstrip())


def test_a_row_that_lacks_its_prompt_among_others_is_a_fault_of_its_own():
    bad = []
    pairs, _ = read(both({"prompt": "Why?"}), both({"source": "a long text here"}), on_bad=bad.append)
    assert len(pairs) == 1
    assert [(b.row, b.reason.partition(",")[0]) for b in bad] == [(2, "prompt is missing")]


UNREAD = {
    "trl": (both({"prompt": "Why?", "context": "A text."}), "context", "trl", "Why?\nA text.", "alpaca"),
    "trl with input": (both({"prompt": "Why?", "input": "A text."}), "input", "trl", "Why?\nA text.", "alpaca"),
    "trl with a problem": (both({"prompt": "Solve:", "problem": "1 + 1"}), "problem", "trl", "Solve:\n1 + 1", "alpaca"),
    "orca": (both({"question": "Why?", "passage": "A text."}), "passage", "orca", "Why?\nA text.", "alpaca"),
    "icr": (both({"input": "Why?", "context": "A text."}), "context", "icr", "Why?\nA text.", "alpaca"),
    "alpaca": (both({"instruction": "Why?", "question": "Q"}), "question", "alpaca", "Why?\nQ", "alpaca"),
    "argilla": (
        {"question": "Why?", "context": "A text.", "chosen_response": "good", "rejected_response": "bad"},
        "context",
        "argilla",
        "Why?\nA text.",
        "argilla",
    ),
    "scored": (
        {"prompt": "Why?", "context": "A text.", "responses": ["bad", "good"], "scores": [1, 2]},
        "context",
        "scored",
        "Why?\nA text.",
        "scored",
    ),
}


@pytest.mark.parametrize(("row", "column", "name", "prompt", "then"), UNREAD.values(), ids=UNREAD)
def test_a_column_of_a_prompts_name_that_is_not_read_is_asked_about_once(row, column, name, prompt, then):
    plain = {key: value for key, value in row.items() if key != column}
    with pytest.raises(DataError, match=rf"file\.json: row 2: the column {column} is not read \(format {name}\)") as e:
        read(plain, row)
    assert str(e.value).endswith(f"To leave it out: data.format={name}.")
    assert read_one(row, format=name)[0] == read_one(plain)[0] == chat(prompt.partition("\n")[0])
    said = str(e.value).partition("data.columns={")[2].partition("}")[0]
    columns = dict(pair.split(": ") for pair in said.split(", "))
    assert read_one(row, columns=columns) == (chat(prompt), "good", "bad", then)


@pytest.mark.parametrize(
    ("row", "column"),
    [
        (both({"prompt": "Hi", "messages": [*OLD, USER, GOOD]}), "messages"),
        (both({"prompt": "Why?", "conversations": [*OLD, USER]}), "conversations"),
        (both({"prompt": [USER], "history": [["Hi", "Hello"]]}), "history"),
        (both({"question": "Why?", "history": "Hi. Hello."}), "history"),
        (both({"messages": [USER], "context": "A text."}), "context"),
        (both({"prompt": "Why?", "messages": v1(*OLD, USER)}), "messages"),
        (both({"prompt": "Why?", "messages": [USER | {"content": [{"type": "text", "text": "Hi"}]}]}), "messages"),
        (both({"prompt": "Why?", "context": ["A text.", "Another."]}), "context"),
    ],
)
def test_turns_and_lists_that_are_not_read_are_asked_about_too(row, column):
    with pytest.raises(DataError, match=rf"the column {column} is not read"):
        read(row)


@pytest.mark.parametrize(
    "row",
    [
        both({"prompt": "Why?", "messages": [USER, GOOD], "question": " Why? ", "context": "", "input": None}),
        both({"prompt": "Why?", "messages": [], "history": []}),
        {"prompt": "Why?", "question": "Why?", "chosen": [USER, GOOD], "rejected": [USER, BAD]},
        {"instruction": "Why?", "input": "Why?", "chosen_response": "good", "rejected_response": "bad"},
        {"chosen": hh("Why?", "good"), "rejected": hh("Why?", "bad"), "question": "Why?"},
    ],
)
def test_what_repeats_the_prompt_or_is_empty_is_not_asked_about(row):
    assert read_one(row)[:3] == (SHORT, "good", "bad")
