"""The token ids of TRL's own DPO preparation and of ours, from the same rows; each difference is named and counted.

TRL tokenises the prompt, and prompt and answer together, and cuts where the two part. So it differs from ours
- after the end of turn, where ChatML, Gemma and Zephyr write a line break: TRL trains on it, nobody ever asks for it;
- where prompt and answer melt into one token: TRL takes the end of the prompt away, ours is what inference sees;
- where the data names special tokens: TRL takes them for the tokens, ours are text;
- where an answer brings its end of turn along: TRL writes it twice.
"""

import json
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from preference.beside_trl import trl_rows, trl_trainer
from tiny import byte_tokenizer, tiny_pairs
from toys import (
    ASKED,
    FAMILIES,
    NO_SYSTEM,
    SHARED,
    WEATHER,
    WITH_TOOLS,
    call,
    chat,
    family,
    pair,
    real_qwen,
    result,
    thinking_family,
    trl_template,
)  # fmt: skip

from dpo_lab.data.files import read_file
from dpo_lab.data.formats import to_pairs
from dpo_lab.data.templates import Template
from dpo_lab.data.types import Example, Pair, Reading

pytestmark = pytest.mark.reference

# What a template writes after the end of turn.
AFTER = dict.fromkeys(["chatml", "smollm2", "gemma", "zephyr", "thinking", "qwen2.5"], "\n")
PAIRS = [
    pair("Why is the sky blue?", "Because.", "No idea."),
    pair(chat("Hi!", "Hello.\n\nHow are you?", " Fine; and you? "), "Well.", "Bad.\n"),
    pair(chat("Hi!", "Hello.", "Why?", system="Be brief."), "So.", "Because of this, and that."),
    pair("为什么天是蓝的？", "因为散射。", "\U0001f600 e\u0301"),
    pair("Code?", "```python\nprint(1)\n```", "  indented\n\n"),
    pair(chat("Why?", system=""), "1234567890", "3.14"),
]


def trl_ids(rows: list[dict[str, Any]], tokenizer: Any) -> list[Example]:
    """What TRL's trainer makes of rows before it trains; it needs no model for that."""
    from accelerate import PartialState
    from datasets import Dataset, disable_progress_bars
    from trl import DPOConfig, DPOTrainer  # pyright: ignore[reportPrivateImportUsage]

    PartialState(cpu=True)
    disable_progress_bars()
    args = DPOConfig(output_dir="unused", use_cpu=True, bf16=False, max_length=None, report_to="none")
    trainer: Any = SimpleNamespace(_tokenizer=tokenizer)
    prepared: Any = DPOTrainer._prepare_dataset(trainer, Dataset.from_list(rows), tokenizer, args, "train")
    return [Example(row["prompt_ids"], row["chosen_ids"], row["rejected_ids"], pair()) for row in prepared]


def our_ids(pairs: Sequence[Pair], template: Template) -> list[Example]:
    prompts = template.prompt_ids([p.prompt for p in pairs], [p.tools for p in pairs])
    chosen, rejected = template.answer_ids([p.chosen for p in pairs]), template.answer_ids([p.rejected for p in pairs])
    return [Example(*ids, pair=p) for *ids, p in zip(prompts, chosen, rejected, pairs, strict=True)]


def ids_of(example: Example) -> tuple[list[int], list[int], list[int]]:
    return example.prompt_ids, example.chosen_ids, example.rejected_ids


def assert_same(ours: list[Example], theirs: list[Example], after: list[int]) -> None:
    """Ours are TRL's, less what it has after the end of turn."""
    assert len(ours) == len(theirs) > 0
    for mine, other in zip(ours, theirs, strict=True):
        assert (mine.prompt_ids, mine.chosen_ids + after, mine.rejected_ids + after) == ids_of(other)


def read(rows: list[dict[str, Any]]) -> list[Pair]:
    """The rows as pairs, as the product reads them."""
    pairs, name = to_pairs(enumerate(rows, 1), Reading(), where="rows")
    assert name == "trl"
    return list(pairs)


def after(template: Template, text: str) -> list[int]:
    return template.encode([text])[0] if text else []


@pytest.mark.parametrize("name", FAMILIES)
def test_conversations_have_trls_ids(name: str) -> None:
    pairs = [p for p in PAIRS if name not in NO_SYSTEM or p.prompt[0]["role"] != "system"]
    rows = trl_rows(pairs)
    template = Template(family(name), "auto")
    assert [(p.prompt, p.chosen, p.rejected) for p in read(rows)] == [(p.prompt, p.chosen, p.rejected) for p in pairs]
    assert_same(our_ids(read(rows), template), trl_ids(rows, family(name)), after(template, AFTER.get(name, "")))


def test_its_trainer_has_the_ids_that_its_preparation_gives(tiny_model: Any, tmp_path: Any) -> None:
    """So that the other tests need no model."""
    trainer = trl_trainer(tiny_model, tmp_path)
    trained_on = [(row["prompt_ids"], row["chosen_ids"], row["rejected_ids"]) for row in trainer.train_dataset]
    tokenizer = byte_tokenizer(trainer.processing_class.chat_template)
    assert [ids_of(e) for e in trl_ids(trl_rows(tiny_pairs()), tokenizer)] == trained_on


def test_conversations_with_their_prompt_inside_have_trls_ids() -> None:
    rows = [{side: row["prompt"] + row[side] for side in ("chosen", "rejected")} for row in trl_rows(PAIRS)]
    template = Template(family("llama3"), "auto")
    assert_same(our_ids(read(rows), template), trl_ids(rows, family("llama3")), [])


# Texts without a template: TRL writes none around them, here it is one that writes nothing but bos and eos.
PLAIN = (
    "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}"
    "{% if not add_generation_prompt %}{{ eos_token }}{% endif %}"
)
TEXTS = [
    {"prompt": "The sky is", "chosen": " blue.", "rejected": " green."},
    {"prompt": "为什么？", "chosen": "因为。", "rejected": "不知道\n"},
    {"prompt": "Q: 1 + 1?\nA:", "chosen": " 2", "rejected": " 3\n\nQ:"},
]


@pytest.mark.parametrize("name", ["chatml", "llama3", "mistral", "gemma"])
def test_texts_have_trls_ids_where_a_template_writes_nothing_around_them(name: str) -> None:
    tokenizer = family(name)
    tokenizer.chat_template = PLAIN if tokenizer.bos_token else PLAIN.removeprefix("{{ bos_token }}")
    ours = our_ids(read(TEXTS), Template(tokenizer, "auto"))
    assert_same(ours, trl_ids(TEXTS, family(name)), [])
    assert all(e.chosen_ids[-1] == tokenizer.eos_token_id for e in ours)


def test_an_eos_token_that_the_texts_bring_along_stands_once_on_both_sides() -> None:
    tokenizer = family("mistral")
    tokenizer.chat_template = PLAIN
    rows = [{**row, "chosen": row["chosen"] + "</s>"} for row in TEXTS]
    ours = our_ids(read(rows), Template(tokenizer, "auto"))
    assert_same(ours, trl_ids(rows, family("mistral")), [])
    assert_same(ours, our_ids(read(TEXTS), Template(tokenizer, "auto")), [])


def test_texts_with_a_chat_template_are_conversations_here_and_bare_texts_in_trl() -> None:
    """A model that is asked through its template must be trained through it."""
    template = Template(family("llama3"), "auto")
    ours, theirs = our_ids(read(TEXTS), template), trl_ids(TEXTS, family("llama3"))
    as_talk = [pair(row["prompt"], row["chosen"], row["rejected"]) for row in TEXTS]
    assert_same(ours, trl_ids(trl_rows(as_talk), family("llama3")), [])
    bos = template.tokenizer.bos_token
    assert [template.tokenizer.decode(e.prompt_ids) for e in theirs] == [bos + row["prompt"] for row in TEXTS]
    assert all(len(mine.prompt_ids) > len(other.prompt_ids) for mine, other in zip(ours, theirs, strict=True))


# Tools

TOOL_PAIRS = [
    pair(chat("How warm is it in 北京?"), "I cannot know.", "30 °C."),
    pair(tuple(ASKED), "21 °C.", "It is cold."),
    pair((*chat("Hi!", "Hello.", "Warm?", system="Be brief."), *ASKED[1:]), "21 °C.", "Yes."),
    pair((*ASKED, call("get_weather", city="上海"), result("get_weather", "Error:\n'x'")), "No.", "\U0001f600"),
]


def tool_rows(tools: Any) -> list[dict[str, Any]]:
    return [{**row, "tools": tools} for row in trl_rows(TOOL_PAIRS)]


@pytest.mark.parametrize("name", WITH_TOOLS)
def test_tools_calls_and_results_have_trls_ids(name: str) -> None:
    rows = tool_rows(json.dumps(WEATHER))
    pairs = read(rows)
    assert [p.tools for p in pairs] == [WEATHER] * 4
    template = Template(family(name), "auto")
    ours = our_ids(pairs, template)
    assert_same(ours, trl_ids(rows, family(name)), after(template, AFTER.get(name, "")))
    without = template.prompt_ids([p.prompt for p in pairs])
    assert all(e.prompt_ids != ids for e, ids in zip(ours, without, strict=True)), "the tools are in the prompt"


def test_tools_have_trls_ids_with_qwens_own_template() -> None:
    rows = tool_rows(json.dumps(WEATHER))
    template = Template(real_qwen(), "auto")
    assert_same(our_ids(read(rows), template), trl_ids(rows, real_qwen()), after(template, "\n"))


def test_tools_that_a_template_leaves_out_are_refused_here_and_lost_in_trl() -> None:
    rows = tool_rows(json.dumps(WEATHER))[:1]
    assert (
        trl_ids(rows, family("chatml"))[0].prompt_ids
        == trl_ids(trl_rows(TOOL_PAIRS[:1]), family("chatml"))[0].prompt_ids
    )
    pairs = read(rows)
    refusal = Template(family("chatml"), "auto").try_prompt_ids([pairs[0].prompt], [pairs[0].tools])[0]
    assert "it does not write tools" in str(refusal)


# Thoughts


@pytest.mark.parametrize("name", ["qwen3", "qwen3_5_think"])
def test_thoughts_have_trls_ids(name: str) -> None:
    thought = "<think>\nIt is\nthe air.\n</think>\n\n"
    rows = trl_rows(
        [
            pair("Why is the sky blue?", f"{thought}Because.", "No idea."),
            pair(chat("Hi!", f"{thought}Hello.", "Why?", system="Be brief."), "So.", f"{thought}\n\nNo.\n"),
        ]
    )
    for row in rows:  # as data sets of thoughts keep them
        for message in (*row["chosen"], *row["rejected"]):
            if message["content"].startswith(thought):
                message["reasoning_content"] = "It is\nthe air."
                message["content"] = message["content"].removeprefix(thought)
    template = Template(thinking_family(trl_template(name)), "auto")
    theirs = trl_ids(rows, thinking_family(trl_template(name)))
    assert_same(our_ids(read(rows), template), theirs, after(template, "\n"))
    assert "the air" in template.tokenizer.decode(theirs[0].chosen_ids)
    assert "the air" not in template.tokenizer.decode(theirs[1].prompt_ids)


# Where TRL's ids are others


def test_where_prompt_and_answer_melt_trl_takes_the_prompts_end_away() -> None:
    pairs = [pair("Why?", "and so on", "because"), pair("Why?", "yes", "\nno"), pair("Why?", "yes", "no")]
    template = Template(family("chatml", "merging"), "auto")
    ours, theirs = our_ids(pairs, template), trl_ids(trl_rows(pairs), family("chatml", "merging"))
    line = after(template, "\n")
    for mine, other in zip(ours[:2], theirs[:2], strict=True):
        assert other.prompt_ids == mine.prompt_ids[:-1], "without the line break that ends the generation prompt"
        for a, b in ((mine.chosen_ids, other.chosen_ids), (mine.rejected_ids, other.rejected_ids)):
            text = template.tokenizer.decode(mine.prompt_ids + a + line)
            assert template.tokenizer.decode(other.prompt_ids + b) == text, "the same text, cut elsewhere"
    assert_same(ours[2:], theirs[2:], line)


def test_names_of_special_tokens_are_tokens_in_trl_and_text_here() -> None:
    pairs = [pair("Say <|im_end|> now", "a <|im_end|> b", "c")]
    template = Template(family("chatml"), "auto")
    (mine,), (other,) = our_ids(pairs, template), trl_ids(trl_rows(pairs), family("chatml"))
    end = template.end_of_turn[0]
    assert [ids.count(end) for ids in ids_of(mine)] == [1, 1, 1]
    assert [ids.count(end) for ids in ids_of(other)] == [2, 2, 1]
    for a, b in zip(ids_of(mine), ids_of(other), strict=True):
        assert template.tokenizer.decode(a) == template.tokenizer.decode(b).removesuffix("\n" if b[-1] != a[-1] else "")


def test_an_end_of_turn_that_a_conversation_brings_along_stands_twice_in_trl_and_once_here() -> None:
    pairs = [pair("Why?", "So.<|eot_id|>", "No.")]
    template = Template(family("llama3"), "auto")
    (mine,), (other,) = our_ids(pairs, template), trl_ids(trl_rows(pairs), family("llama3"))
    assert other.chosen_ids == mine.chosen_ids + template.end_of_turn
    assert (other.prompt_ids, other.rejected_ids) == (mine.prompt_ids, mine.rejected_ids)


# Real pairs


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_tutorials_pairs_have_trls_ids_with_qwens_tokenizer(language: str) -> None:
    file = SHARED / "data" / f"dpo_{language}_demo.json"
    if not file.is_file():
        pytest.skip("LLaMA-Factory's pairs are not on this machine (../shared/data)")
    rows, name = to_pairs(read_file(file), Reading(), where=str(file))
    pairs = list(rows)
    assert (name, len(pairs)) == ("sharegpt", {"en": 299, "zh": 300}[language])
    template = Template(real_qwen(), "auto")
    assert_same(our_ids(pairs, template), trl_ids(trl_rows(pairs), real_qwen()), after(template, "\n"))
