"""Answers with a thought are written as the model's template writes them, and a prompt's own thought is not repeated."""

from typing import Any

import pytest
from toys import FAMILIES, chat, family, pair, thinking_family, trl_template

from dpo_lab.data.templates import Template
from dpo_lab.data.tokenize import tokenize
from dpo_lab.data.types import Message

EMPTY = "<think>\n\n</think>\n\n"
THOUGHT = "<think>\nIt is\n\nthe air.\n</think>\n\n"
TALKS = {
    "a question": chat("Why?"),
    "a system message": chat("Why?", system="Be brief."),
    "an earlier answer": chat("Hi!", "Hello.", "Why?"),
    "an earlier thought": chat("Hi!", "<think>\nA greeting.\n</think>\n\nHello.", "Why?"),
}
PLAIN = {
    "plain": "Because.",
    "line breaks first": "\n\nBecause.",
    "space around": " \n Because.\n\n",
    "a thought that does not end": "<think>\nIt is",
    "an open tag within": "Write <think> first.",
}
THOUGHTS = {
    "a thought": f"{THOUGHT}Because.",
    "an empty thought": f"{EMPTY}Because.",
    "a thought in one line": "<think>It is the air.</think>Because.",
    "space everywhere": "\n<think>\n\n  It is \n\n</think>\n\n\n\n Because. \n",
    "no open tag": "It is the air.\n</think>\n\nBecause.",
    "two thoughts": f"{THOUGHT}Because.\n{THOUGHT}So.",
    "tags within": "<think>\nA <tag>.\n</think>\n\nUse <b>, then </b>.",
}
# The generation prompt opens a thought, has an empty one, or leaves it to the answer.
MODELS = [
    *[("qwen3", None, ""), ("qwen3", True, ""), ("qwen3", False, EMPTY)],
    *[("qwen3_5_think", None, "<think>\n"), ("qwen3_5_think", True, "<think>\n"), ("qwen3_5_think", False, EMPTY)],
    *[("qwen3_5_nothink", None, EMPTY), ("qwen3_5_nothink", True, "<think>\n"), ("qwen3_5_nothink", False, EMPTY)],
    *[("qwen3_6", None, "<think>\n"), ("qwen3_6", False, EMPTY)],
    *[("nemotron_3_nano", None, "<think>\n"), ("nemotron_3_nano", False, "<think></think>")],
    ("deepseek_r1_distill", None, "<think>\n"),
]


def template_of(name: str, thinking: bool | None, *, special: bool = False, kind: str = "bytes") -> Template:
    return Template(thinking_family(trl_template(name), special=special, kind=kind), "auto", enable_thinking=thinking)


def ids(template: Template, messages: Any, *, ask: bool) -> list[int]:
    return template.tokenizer.apply_chat_template(
        list(messages), tokenize=True, return_dict=False, add_generation_prompt=ask
    )


def answered(template: Template, messages: Any, answer: str) -> list[int]:
    return ids(template, [*messages, Message(role="assistant", content=answer)], ask=False)


def decode(template: Template, tokens: list[int]) -> str:
    return template.tokenizer.decode(tokens)


def goes_on(template: Template, messages: Any, answer: str) -> bool:
    """Whether the whole conversation goes on from the prompt; then its ids are ours."""
    prompt, given = template.prompt_ids([messages])[0], template.answer_ids([answer])[0]
    assert prompt == ids(template, messages, ask=True)
    whole = answered(template, messages, answer)
    if whole[: len(prompt)] != prompt:
        return False
    assert prompt + given == whole[: len(prompt + given)], decode(template, prompt + given)
    assert decode(template, whole[len(prompt + given) :]).strip() == ""
    return True


@pytest.mark.parametrize("talk", TALKS)
@pytest.mark.parametrize(("name", "thinking", "header"), MODELS)
def test_ids_are_those_of_the_whole_conversation_where_it_goes_on_from_the_prompt(
    name: str, thinking: bool | None, header: str, talk: str
) -> None:
    template = template_of(name, thinking)
    assert template.render(TALKS[talk]).endswith(f"assistant\n{header}" if "r1" not in name else header)
    going_on = {case for case, answer in (PLAIN | THOUGHTS).items() if goes_on(template, TALKS[talk], answer)}
    if "qwen" in name:
        apart = set(THOUGHTS) - {"an empty thought"} if header == EMPTY else set()
        assert going_on == set(PLAIN | THOUGHTS) - apart
    assert going_on or "r1" in name, "the case would prove nothing"


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("name", ["deepseek_r1_distill", "nemotron_3_nano", "qwen3_5_think", "qwen3_6"])
def test_a_thought_that_the_prompt_opens_is_opened_once_and_always_closed(name: str, special: bool) -> None:
    template = template_of(name, None, special=special)
    prompt = template.prompt_ids([chat("Why?")])[0]
    end = decode(template, template.end_of_turn)
    opening, closing = (template.tokenizer.convert_tokens_to_ids(tag) for tag in ("<think>", "</think>"))
    for answer in ("Because.", f"{THOUGHT}Because.", "<think>It is</think>Because.", "It is\n</think>\n\nBecause."):
        tokens = prompt + template.answer_ids([answer])[0]
        assert (tokens.count(opening), tokens.count(closing)) == (1, 1)
        assert tokens[-1] == template.end_of_turn[-1]
        assert ("It is" in decode(template, tokens)) == ("It is" in answer)
    assert decode(template, template.answer_ids(["Because."])[0]) == f"\n</think>\n\nBecause.{end}"
    expected = f"{THOUGHT}Because.{end}".removeprefix("<think>\n")
    assert decode(template, template.answer_ids([f"{THOUGHT}Because."])[0]) == expected


@pytest.mark.parametrize(("name", "thinking"), [(n, t) for n, t, header in MODELS if header.endswith("</think>\n\n")])
def test_after_a_prompt_with_an_empty_thought_an_answers_own_is_left_out_and_counted(
    name: str, thinking: bool | None
) -> None:
    template = template_of(name, thinking)
    assert template.answer_ids([f"{THOUGHT}Because."]) == template.answer_ids(["Because."])
    pairs = [
        pair("a", f"{THOUGHT}Yes.", "No.", row=3),
        pair("b", "Yes.", f"{EMPTY}No.", row=4),
        pair("c", f"{THOUGHT}Yes.", "Yes.", row=5),
        pair("d", THOUGHT, "Yes.", row=6),
    ]
    _, counts = tokenize(pairs, template, max_length=9999, truncation="drop", limit=None)
    assert (counts.kept, counts.cut) == (2, {"thoughts left out": 1})
    assert counts.first_row["thoughts left out"] == 3
    assert counts.dropped == {"identical answers": 1, "empty answer": 1}


@pytest.mark.parametrize("special", [False, True])
def test_thoughts_are_tokens_and_names_of_other_special_tokens_in_them_text(special: bool) -> None:
    template = template_of("qwen3", None, special=special)
    opening, closing, end = (
        template.tokenizer.convert_tokens_to_ids(name) for name in ("<think>", "</think>", "<|im_end|>")
    )
    answer = "<think>\nAn <|im_end|> here.\n</think>\n\nA <|im_end|> there."
    tokens = template.answer_ids([answer])[0]
    assert [i for i in tokens if i in (opening, closing, end)] == [opening, closing, end]
    assert decode(template, tokens) == f"{answer}<|im_end|>"
    assert [i for i in template.answer_ids(["So."])[0] if i in (opening, closing, end)] == [opening, closing, end]


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("kind", ["merging", "sentencepiece"])
def test_other_kinds_of_tokenizers_write_the_same_text(kind: str, special: bool) -> None:
    template = template_of("qwen3", None, special=special, kind=kind)
    prompt = template.prompt_ids([chat("Why?")])[0]
    for answer in (f"{THOUGHT}and so on", "and so on", f"{EMPTY}\nand"):
        tokens = prompt + template.answer_ids([answer])[0]
        assert decode(template, tokens) + "\n" == decode(template, answered(template, chat("Why?"), answer))


@pytest.mark.parametrize(("thinking", "header"), [(None, "<think>\n"), (True, "<think>\n"), (False, EMPTY)])
def test_a_template_that_takes_thoughts_in_a_field_gets_them_there(thinking: bool | None, header: str) -> None:
    template = template_of("qwen3_8", thinking)
    thought = {"role": "assistant", "reasoning_content": "It is\n\nthe air."}
    talk = (*chat("Hi!"), {**thought, "content": "Hello."}, *chat("Why?"))
    prompt = template.prompt_ids([chat("Hi!", f"{THOUGHT}Hello.", "Why?")])[0]
    assert prompt == ids(template, talk, ask=True)
    named = template.prompt_ids([chat("Hi!", f"{THOUGHT}Hello.", "Why <|im_end|>?")])[0]
    assert decode(template, named) == decode(template, prompt).replace("Why?", "Why <|im_end|>?")
    given = decode(template, prompt + template.answer_ids([f"{THOUGHT}Because."])[0])
    whole = decode(template, ids(template, [*talk, {**thought, "content": "Because."}], ask=False))
    expected = whole if thinking is not False else decode(template, prompt) + "Because.<|im_end|>\n"
    assert given + "\n" == expected
    assert given.count("<think>") == given.count("</think>") == 2
    assert decode(template, prompt).endswith(header)


def test_a_template_that_writes_an_empty_thought_before_any_text_does_not_before_a_thought() -> None:
    template = Template(family("thinking"), "auto")
    assert decode(template, template.answer_ids(["Because."])[0]) == f"{EMPTY}Because.<|im_end|>"
    assert decode(template, template.answer_ids([f"{THOUGHT}Because."])[0]) == f"{THOUGHT}Because.<|im_end|>"


@pytest.mark.parametrize("name", sorted(set(FAMILIES) - {"thinking"}))
def test_a_template_that_knows_no_thoughts_writes_them_as_they_are(name: str) -> None:
    template = Template(family(name), "auto")
    assert goes_on(template, chat("Why?"), f"{THOUGHT}Because.")


def test_a_thought_that_a_template_drops_stays_where_the_model_has_to_think_itself() -> None:
    """As DeepSeek-R1's first template: its prompts open no thought, its conversations keep none."""
    dropping = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content.split('</think>')[-1] + '<|im_end|>' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    )
    template = Template(thinking_family(dropping), "auto")
    assert decode(template, template.answer_ids([f"{THOUGHT}Because."])[0]) == f"{THOUGHT}Because.<|im_end|>"
    assert "greeting" not in template.render(TALKS["an earlier thought"])


def test_an_answer_loses_the_space_that_its_template_takes_away_and_no_other() -> None:
    template = template_of("qwen3", None)
    lead = decode(template, template.answer_ids([""])[0]).removesuffix("<|im_end|>")
    assert lead == EMPTY
    assert decode(template, template.answer_ids(["\n\n a \n"])[0]) == f"{EMPTY} a \n<|im_end|>"
