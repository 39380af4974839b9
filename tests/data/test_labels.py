"""Single answers pair up where a prompt has a good and a bad one."""

import pytest
from rows import BAD, GOOD, OLD, USER, labelled, read
from toys import chat

from dpo_lab.data.formats import BadRow, Unpaired


def test_single_answers_pair_up_where_a_prompt_has_both_labels():
    bad: list[BadRow] = []
    pairs, name = read(
        labelled("q", "good 1", True),
        labelled("other", "bad", False),
        labelled("q", "good 2", True),
        labelled("q", "bad 1", False),
        labelled("q", "bad 2", 0),
        labelled("q", "bad 3", "False"),
        labelled("third", "good", 1),
        on_bad=bad.append,
    )
    assert name == "kto"
    assert [(p.chosen, p.rejected, p.row) for p in pairs] == [("good 1", "bad 1", 4), ("good 2", "bad 2", 5)]
    assert all(p.prompt == chat("q") for p in pairs)
    assert [(type(b), b.row, b.reason) for b in bad if isinstance(b, Unpaired)] == [
        (Unpaired, row, "no answer with the other label to this prompt") for row in (2, 6, 7)
    ]


def test_a_lone_answer_is_no_fault():
    rows = [labelled("q", "a", True), labelled("r", "a", True), labelled("q", "b", True)]
    assert read(*rows) == ([], "kto")
    bad: list[BadRow] = []
    read(*rows, on_bad=bad.append)
    assert [b.row for b in bad] == [1, 2, 3]


@pytest.mark.parametrize(
    ("row", "columns"),
    [
        (lambda answer, label: labelled([*OLD, USER], [answer], label), {}),
        (lambda answer, label: labelled("Hi", [*OLD, USER, answer], label), {}),
        (lambda answer, label: {"messages": [*OLD, USER, answer], "label": label}, {}),
        (lambda answer, label: {"conversations": [*OLD, USER, answer], "kto_tag": label}, {}),
        (
            lambda answer, label: {"prompt": "Hi", "completion": [*OLD, USER, answer], "good": label},
            {"prompt": "completion", "label": "good"},
        ),
    ],
)
def test_a_labelled_answer_may_be_part_of_its_conversation(row, columns):
    [pair], name = read(row(GOOD, True), row(BAD, False), columns=columns)
    assert (pair.prompt, pair.chosen, pair.rejected, name) == (chat("Hi", "Hello", "Why?"), "good", "bad", "kto")


def test_labelled_rows_of_alpaca_have_an_input():
    row = {"instruction": "Why", "input": "so?", "output": "good", "kto_tag": True}
    [pair], name = read(row, row | {"output": "bad", "kto_tag": False})
    assert (pair.prompt, pair.chosen, pair.rejected, name) == (chat("Why\nso?"), "good", "bad", "kto")
