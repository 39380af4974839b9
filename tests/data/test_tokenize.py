"""Pairs become tokens within a bound; whatever is dropped or cut is counted with its reason and first row."""

import logging

import pytest
from toys import CHATML, chat, family, pair

from dpo_lab.data import tokenize as module
from dpo_lab.data.templates import Template
from dpo_lab.data.tokenize import tokenize, warn_of_names

HEADER = "<|im_start|>assistant\n"
LONG = ("old question", "old answer", "newer question", "newer answer", "last question")


@pytest.fixture
def template():
    return Template(family("chatml"), "auto")


def run(pairs, template, *, max_length=10_000, truncation="drop", limit=None):
    return tokenize(pairs, template, max_length=max_length, truncation=truncation, limit=limit)


def text(template, ids):
    return template.tokenizer.decode(ids)


def length(template, messages):
    return len(template.prompt_ids([messages])[0])


def test_an_example_reads_as_the_conversation(template):
    [example], counts = run([pair("Why?", "So.", "Dunno.")], template)
    assert text(template, example.prompt_ids) == f"<|im_start|>user\nWhy?<|im_end|>\n{HEADER}"
    assert text(template, example.chosen_ids) == "So.<|im_end|>"
    assert text(template, example.rejected_ids) == "Dunno.<|im_end|>"
    assert (counts.kept, counts.dropped, counts.cut, counts.first_row) == (1, {}, {}, {})
    assert template.tokenizer.pad_token_id == template.end_of_turn[0], "and the pad token is the end of turn"


@pytest.mark.parametrize("n", [255, 256, 257, 600])
def test_no_pair_is_lost_between_chunks(template, n):
    examples, counts = run([pair(f"q{i}", row=i) for i in range(n)], template)
    assert [e.pair.row for e in examples] == list(range(n))
    assert counts.kept == n


def test_chunks_do_not_change_the_tokens(template, monkeypatch):
    pairs = [pair(f"question {i}", "yes" * i, "no", i) for i in range(1, 8)]
    at_once, _ = run(pairs, template)
    monkeypatch.setattr(module, "CHUNK", 2)
    assert run(pairs, template)[0] == at_once


# What is dropped


@pytest.mark.parametrize(
    ("reason", "faulty"),
    [
        ("empty answer", pair(chosen="", row=2)),
        ("empty answer", pair(rejected=" \n\t", row=2)),
        ("empty answer", pair(chosen="<|im_end|>", row=2)),
        ("identical answers", pair(chosen="bad", row=2)),
        ("identical answers", pair(chosen="bad<|im_end|>\n", row=2)),
        ("empty prompt", pair("", row=2)),
        ("empty prompt", pair(chat("Hi", "Hello", " \n"), row=2)),
    ],
)
def test_a_faulty_pair_is_dropped_and_counted(template, reason, faulty):
    again = type(faulty)(faulty.prompt, faulty.chosen, faulty.rejected, 4)
    pairs = [pair(row=1), faulty, pair("Why not?", row=3), again]
    examples, counts = run(pairs, template)
    assert [e.pair.row for e in examples] == [1, 3]
    assert counts.kept == 2
    assert counts.dropped == {reason: 2}
    assert counts.first_row == {reason: 2}


def test_answers_that_a_template_strips_to_the_same_are_identical():
    _, counts = run([pair(chosen="yes", rejected=" yes\n")], Template(family("llama3"), "auto"))
    assert counts.dropped == {"identical answers": 1}


def test_what_a_template_refuses_is_dropped_and_counted_alone():
    pairs = [pair("one", row=1), pair(chat("two", system="S"), row=2), pair("three", row=3)]
    examples, counts = run(pairs, Template(family("gemma"), "auto"))
    assert [e.pair.row for e in examples] == [1, 3]
    assert counts.dropped == {"refused by the chat template: System role not supported": 1}
    assert counts.first_row == {"refused by the chat template: System role not supported": 2}


def test_special_names_in_the_data_are_told(template, caplog):
    with caplog.at_level(logging.WARNING):
        _, counts = run(
            [pair("plain"), pair("no <|im_start|>", row=7), pair(rejected="bad <|im_end|> end", row=9)], template
        )
        warn_of_names(counts)
    assert "2 pairs, first row 7" in caplog.text
    caplog.clear()
    warn_of_names(run([pair("plain")], template)[1])
    assert not caplog.text


# Limit


def test_a_limit_counts_kept_pairs_and_nothing_beyond_it(template):
    pairs = [pair(chosen="", row=1), pair("a", row=2), pair(chosen="bad", row=3), pair("b", row=4), pair("", row=5)]
    examples, counts = run(pairs, template, limit=2)
    assert [e.pair.row for e in examples] == [2, 4]
    assert counts.dropped == {"empty answer": 1, "identical answers": 1}


def test_a_limit_is_filled_up_from_later_pairs_when_some_are_too_long(template):
    pairs = [pair("x" * (300 if i % 2 else 1), row=i) for i in range(20)]
    examples, counts = run(pairs, template, limit=5, max_length=100)
    assert [e.pair.row for e in examples] == [0, 2, 4, 6, 8]
    assert counts.kept == 5
    assert counts.dropped == {"prompt longer than data.max_length": 4}


# Length


def test_the_bound_is_prompt_plus_each_answer(template):
    one = pair("Why?", "a" * 10, "b" * 30)
    exact = length(template, one.prompt) + 31
    assert run([one], template, max_length=exact)[1].kept == 1
    assert run([one], template, max_length=exact - 1)[1].dropped == {"prompt and answer longer than data.max_length": 1}
    other = pair("Why?", "a" * 30, "b" * 10)
    assert run([other], template, max_length=exact)[1].kept == 1
    assert run([other], template, max_length=exact - 1)[1].kept == 0


@pytest.mark.parametrize("truncation", ["drop", "cut_prompt", "cut_answer", "cut_both"])
def test_a_prompt_that_cannot_be_cut_is_dropped_never_cut_at_its_end(template, truncation):
    _, counts = run([pair("x" * 100, row=6)], template, max_length=60, truncation=truncation)
    assert counts.dropped == {"prompt longer than data.max_length": 1}
    assert counts.first_row == {"prompt longer than data.max_length": 6}
    assert counts.cut == {}


@pytest.mark.parametrize("system", [None, "Be brief."])
@pytest.mark.parametrize("start", [0, 2, 4])
def test_a_prompt_loses_its_oldest_turns_and_only_as_many_as_needed(template, start, system):
    long, short = chat(*LONG, system=system), chat(*LONG[start:], system=system)
    room = length(template, short) + len("good") + 1
    [example], counts = run([pair(long, row=5)], template, max_length=room, truncation="cut_prompt")
    assert text(template, example.prompt_ids) == template.render(short)
    assert template.render(short).endswith(HEADER)
    assert text(template, example.chosen_ids) == "good<|im_end|>"
    assert counts.cut == ({"prompts cut": 1} if start else {})
    assert counts.first_row == ({"prompts cut": 5} if start else {})
    [tighter], _ = (
        run([pair(long)], template, max_length=room - 1, truncation="cut_prompt") if start < 4 else [[None], 0]
    )
    assert tighter is None or len(tighter.prompt_ids) < len(example.prompt_ids)


def test_a_cut_conversation_starts_with_a_user_turn(template):
    messages = (*chat("first", "one"), {"role": "assistant", "content": "two"}, *chat("x" * 20, "three", "last"))
    room = length(template, messages) - 5
    [example], _ = run([pair(messages)], template, max_length=room, truncation="cut_prompt")
    assert text(template, example.prompt_ids) == template.render(chat("x" * 20, "three", "last"))


def test_a_prompt_that_was_cut_in_vain_is_counted_as_dropped_only(template):
    _, counts = run([pair(chat("a", "b", "x" * 100))], template, max_length=60, truncation="cut_prompt")
    assert counts.cut == {}
    assert sum(counts.dropped.values()) == 1


def test_an_answer_loses_its_end_and_with_it_the_end_of_turn(template):
    one = pair("Why?", "a" * 10, "b" * 30, row=3)
    room = length(template, one.prompt) + 12
    [example], counts = run([one], template, max_length=room, truncation="cut_answer")
    assert text(template, example.prompt_ids) == template.render(one.prompt)
    assert text(template, example.chosen_ids) == "a" * 10 + "<|im_end|>"
    assert text(template, example.rejected_ids) == "b" * 12
    assert (counts.cut, counts.first_row) == ({"answers cut": 1}, {"answers cut": 3})


def test_answers_that_differ_only_beyond_the_cut_are_dropped(template):
    one = pair("Why?", "quite the same beginning, good", "quite the same beginning, bad")
    room = length(template, one.prompt) + 20
    examples, counts = run([one], template, max_length=room, truncation="cut_answer")
    assert not examples
    assert (counts.dropped, counts.cut) == ({"identical answers after cutting": 1}, {})


def test_cut_both_takes_from_the_prompt_first_and_then_from_the_answers(template):
    messages = chat(*LONG)
    short = length(template, chat("last question"))
    one = pair(messages, "a" * 10, "b" * 200)
    fits = length(template, messages) + 201
    [untouched], _ = run([one], template, max_length=fits, truncation="cut_both")
    assert text(template, untouched.prompt_ids) == template.render(messages)
    [example], counts = run([one], template, max_length=2 * short, truncation="cut_both")
    assert text(template, example.prompt_ids) == template.render(chat("last question"))
    assert len(example.prompt_ids) + len(example.rejected_ids) == 2 * short
    assert counts.cut == {"prompts cut": 1, "answers cut": 1}
    [half], _ = run([one], template, max_length=fits - 1, truncation="cut_both")
    assert len(half.prompt_ids) < len(untouched.prompt_ids)
    assert len(half.rejected_ids) == 201


@pytest.mark.parametrize("truncation", ["cut_answer", "cut_both"])
@pytest.mark.parametrize(
    ("left", "chosen", "rejected", "kept"),
    [
        (1, "a" * 50, "b" * 50, []),
        (15, "a" * 50, "b" * 50, []),
        (16, "a" * 50, "b" * 50, [16, 16]),
        (4, "yes", "b" * 50, [4, 4]),
        (3, "yes", "b" * 50, []),
        (4, "a" * 50, "no", [4, 3]),
        (2, "a" * 50, "no", []),
    ],
)
def test_a_cut_leaves_enough_of_an_answer_to_tell_it_by(template, truncation, left, chosen, rejected, kept):
    one = pair("Why?" * 50, chosen, rejected)
    room = length(template, one.prompt) + left
    examples, counts = run([one], template, max_length=room, truncation=truncation)
    assert [n for e in examples for n in e.lengths[1:]] == kept
    assert counts.dropped == ({} if kept else {"prompt longer than data.max_length": 1})


@pytest.mark.parametrize("place", range(6))
def test_a_cut_leaves_messages_in_their_order(template, place):
    messages = [*chat(*LONG)]
    messages.insert(place, {"role": "system", "content": "Be brief."})
    left = [m for m in messages if m["content"] not in LONG[:2]]
    room = length(template, left) + 5
    [example], _ = run([pair(tuple(messages))], template, max_length=room, truncation="cut_prompt")
    assert text(template, example.prompt_ids) == template.render(left)


def refusing(*first):
    """A template that takes no conversation which begins with one of these."""
    tokenizer = family("chatml")
    refusal = "{% if messages[0].content in " + str([*first]) + " %}{{ raise_exception('not so') }}{% endif %}"
    tokenizer.chat_template = refusal + CHATML
    return Template(tokenizer, "auto")


def test_a_shorter_prompt_that_the_template_refuses_is_passed_over():
    template, pairs = refusing("newer question"), [pair(chat(*LONG), row=1), pair("Why?", row=2)]
    room = length(template, chat(*LONG)) + 4
    examples, counts = run(pairs, template, max_length=room, truncation="cut_prompt")
    assert text(template, examples[0].prompt_ids) == template.render(chat("last question"))
    assert (counts.kept, counts.cut) == (2, {"prompts cut": 1})


@pytest.mark.parametrize("truncation", ["cut_prompt", "cut_both"])
def test_where_every_shorter_prompt_is_refused_the_pair_is_counted_as_refused(truncation):
    template, pairs = refusing("newer question", "last question"), [pair(chat(*LONG), row=1), pair("Why?", row=2)]
    room = length(template, chat(*LONG)) + 3
    examples, counts = run(pairs, template, max_length=room, truncation=truncation)
    assert [e.pair.row for e in examples] == [2]
    assert counts.dropped == {"refused by the chat template: not so": 1}
    assert counts.first_row == {"refused by the chat template: not so": 1}


def test_cut_both_cuts_the_answers_where_every_shorter_prompt_is_refused():
    template = refusing("newer question", "last question")
    room = length(template, chat(*LONG)) + 20
    [example], counts = run([pair(chat(*LONG), "a" * 99, "b")], template, max_length=room, truncation="cut_both")
    assert example.lengths == (room - 20, 20, 2)
    assert counts.cut == {"answers cut": 1}


def test_counts_read_as_a_sentence(template):
    pairs = [pair("a", row=1), pair("x" * 99, row=2), pair(chosen="", row=3), pair(chat("o" * 40, "k", "q"), row=4)]
    _, counts = run(pairs, template, max_length=60, truncation="cut_prompt")
    assert str(counts) == (
        "2 kept, 1 dropped (prompt longer than data.max_length, first in row 2), 1 dropped (empty answer, first in row 3), "
        "1 prompts cut"
    )


def test_the_toy_template_is_chatml(template):
    assert template.tokenizer.chat_template == CHATML
