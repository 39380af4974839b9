"""Every check: data that it must speak of, and data of which it must be silent."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from toys import ASKED, FAMILIES, WEATHER, call, chat, family, pair

import dpo_lab.data.demo
from dpo_lab.data.doctor.examine import CHECKS, examine
from dpo_lab.data.doctor.writing import SCRIPTS, scripts_of
from dpo_lab.data.formats import NO_PARTNER
from dpo_lab.data.templates import Template
from dpo_lab.data.tokenize import tokenize
from dpo_lab.data.types import Counts, Example, Pair

DEMO = Path(dpo_lab.data.demo.__file__).parent
WORDS = [
    "amber",
    "birch",
    "cedar",
    "delta",
    "ember",
    "fjord",
    "grove",
    "heron",
    "inlet",
    "joist",
    "knoll",
    "larch",
    "maple",
    "nylon",
    "ocean",
    "pearl",
    "quill",
]


@pytest.fixture(scope="module")
def template():
    return Template(family("chatml"), "auto")


def texts(rng, n=12):
    return " ".join(rng.choice(WORDS, n))


def sound(n, seed=0, start=1):
    """Pairs of which there is nothing to say."""
    rng = np.random.default_rng(seed)
    return [pair(f"{i} {texts(rng)}?", texts(rng), texts(rng), i) for i in range(start, start + n)]


def look(template, train, heldout=None, *, max_length=4096, truncation="drop", **options):
    """The report on pairs, or on examples as they are."""
    heldout = sound(60, seed=9, start=5000) if heldout is None else heldout
    split = []
    for part in (train, heldout):
        if part and isinstance(part[0], Example):
            split.append((part, Counts(kept=len(part))))
        else:
            split.append(tokenize(part, template, max_length=max_length, truncation=truncation, limit=None))
    (a, a_counts), (b, b_counts) = split
    return examine(
        a, b, train_counts=a_counts, heldout_counts=b_counts, template=template, max_length=max_length, **options
    )


def the(report, check):
    [finding] = [f for f in report.findings if f.check == check]
    return finding


def checks(report):
    return {f.check for f in report.findings}


def examples(pairs, template):
    return tokenize(pairs, template, max_length=4096, truncation="drop", limit=None)[0]


def test_of_sound_data_nothing_is_said(template):
    report = look(template, sound(200))
    assert report.findings == ()
    assert report.worst is None
    assert report.skipped == ()


@pytest.mark.parametrize("name", ["smollm2", "llama3", "mistral", "zephyr", "gemma"])
def test_every_family_writes_sound_data_soundly(name):
    assert checks(look(Template(family(name), "auto"), sound(100))) == set()


def demo_pairs(name):
    rows = [json.loads(line) for line in (DEMO / name).read_text().splitlines()]
    return [
        Pair(tuple(r["prompt"]), r["chosen"][0]["content"], r["rejected"][0]["content"], i, name)
        for i, r in enumerate(rows, 1)
    ]


@pytest.mark.parametrize(
    ("train", "heldout"), [("demo_train.jsonl", "demo_eval.jsonl"), ("demo_zh_train.jsonl", "demo_zh_eval.jsonl")]
)
def test_the_demo_has_no_error(train, heldout):
    report = look(Template(family("smollm2"), "auto"), demo_pairs(train), demo_pairs(heldout))
    assert report.count("error") == 0, report.findings
    assert report.numbers["words/accuracy"] > 0.75, "a bag of characters tells the voices of the demo apart"


# Left out and cut


@pytest.mark.parametrize(
    ("faulty", "check"),
    [
        (pair("q", "same", "same"), "identical-answers"),
        (pair("q", "", "b"), "empty-answers"),
        (pair(" ", "a", "b"), "empty-answers"),
        (pair("long " * 400, "a", "b"), "too-long"),
        (pair("q", "long " * 400, "b"), "too-long"),
    ],
)
@pytest.mark.parametrize(("bad", "severity"), [(1, "info"), (30, "warning"), (300, "error")])
def test_pairs_left_out_are_told_by_reason_and_share(template, faulty, check, bad, severity):
    report = look(template, [*sound(100), *[replace(faulty, row=1000 + i) for i in range(bad)]], max_length=1000)
    found = the(report, check)
    assert (found.severity, found.count) == (severity, bad)
    assert found.share == pytest.approx(bad / (100 + bad))
    assert found.rows[0].row == 1000
    assert report.numbers["train/dropped"] == bad


def test_a_refusing_template_is_told():
    report = look(Template(family("gemma"), "auto"), [*sound(50), pair(chat("Hi", system="Be brief."), row=77)])
    found = the(report, "refused-by-template")
    assert "System role not supported" in found.message
    assert found.rows[0].row == 77


def test_rows_of_another_fault_are_told(template):
    counts = Counts(kept=100, dropped={"row is no object": 3}, first_row={"row is no object": 8})
    data = examples(sound(100), template)
    report = examine(data, data[:0], train_counts=counts, heldout_counts=Counts(), template=template, max_length=4096)
    assert the(report, "faulty-rows").rows[0].row == 8


def lost(template, reason, n, kind="", kept=100):
    """The finding about pairs or rows that are lost for one reason."""
    counts = Counts(kept=kept)
    counts.drop(reason, 8, n, kind=kind)
    data = examples(sound(kept), template)
    report = examine(data, [], train_counts=counts, heldout_counts=Counts(), template=template, max_length=4096)
    [finding] = [f for f in report.findings if f.check != "few-heldout"]
    return finding


@pytest.mark.parametrize(
    "reason",
    ["answers must be a non-empty list, not null", "row is longer than 64 MiB", "the two are identical", "refused"],
)
def test_a_faulty_row_is_one_whatever_words_its_fault_is_told_in(template, reason):
    found = lost(template, reason, 3, "faulty")
    assert (found.check, found.severity, found.rows[0].row) == ("faulty-rows", "info", 8)
    assert "data.max_length" not in found.fix
    assert "or leave" not in found.fix, "that is done already"
    assert lost(template, reason, 10, "faulty").severity == "warning"
    assert lost(template, reason, 100, "faulty").severity == "error"


@pytest.mark.parametrize(("n", "severity"), [(3, "info"), (90, "info"), (100, "warning"), (5000, "warning")])
@pytest.mark.parametrize("reason", ["no answer is better than another", "an answer has no score", "of another kind"])
def test_a_sound_row_that_gives_no_pair_is_no_fault(template, reason, n, severity):
    found = lost(template, reason, n, "unpaired")
    assert (found.check, found.severity, found.count) == ("unpaired-rows", severity, n)
    assert found.share == n / (n + 100)
    assert f"{n:,} of {n + 100:,} rows" in found.message
    assert "on_error" not in found.fix


def test_a_margin_that_leaves_pairs_out_can_be_lowered(template):
    assert "data.min_margin" in lost(template, "scores differ by less than data.min_margin", 9, "unpaired").fix


def test_a_single_answer_is_half_a_pair(template):
    found = lost(template, NO_PARTNER, 200, "unpaired")
    assert (found.share, found.severity) == (0.5, "warning"), "a hundred pairs are of two hundred rows"
    assert "200 of 400 rows" in found.message


def test_rows_and_pairs_are_counted_apart(template):
    counts = Counts(kept=100)
    counts.drop("an answer has no score", 1, 900, kind="unpaired")
    counts.drop("empty answer", 2, 25)
    data = examples(sound(100), template)
    report = examine(data, [], train_counts=counts, heldout_counts=Counts(), template=template, max_length=4096)
    assert the(report, "empty-answers").share == 0.2
    assert "25 of 125 training pairs" in the(report, "empty-answers").message
    assert "mostly-dropped" not in checks(report)
    assert report.numbers["train/dropped"] == 25
    assert report.numbers["train/unpaired_rows"] == 900


def test_prompts_that_are_held_out_are_no_loss(template):
    found = lost(template, "prompt is held out", 900)
    assert (found.check, found.severity) == ("held-out-prompts", "info")


def test_answers_that_a_cut_makes_the_same_need_more_room(template):
    same = "word " * 300
    report = look(
        template, [*sound(99), pair("q", same + "a", same + "b", 901)], max_length=600, truncation="cut_answer"
    )
    assert "data.max_length" in the(report, "identical-when-cut").fix


def test_reasons_that_add_up_to_most_of_the_data_are_an_error(template):
    bad = [pair("q", "", "b", 1)] * 60 + [pair("q", "a", "a", 2)] * 60
    assert the(look(template, [*sound(100), *bad]), "mostly-dropped").severity == "error"
    assert "mostly-dropped" not in checks(look(template, [*sound(300), *bad]))


def test_cut_answers_are_counted_and_not_taken_for_answers_without_end(template):
    long = [pair(f"q{i}", f"{i} " + "word " * 300, "short", 900 + i) for i in range(20)]
    report = look(template, [*sound(100), *long], max_length=600, truncation="cut_answer")
    assert (the(report, "cut-answers").count, the(report, "cut-answers").severity) == (20, "warning")
    assert "missing-eos" not in checks(report)


def test_cut_prompts_are_counted(template):
    long = pair(chat("word " * 200, "yes", "last"), row=900)
    report = look(template, [*sound(100), long], max_length=600, truncation="cut_prompt")
    assert (the(report, "cut-prompts").count, the(report, "cut-prompts").severity) == (1, "info")


@pytest.mark.parametrize(("rejected", "alike"), [("A b.", True), ("a  B.\n", True), ("a b. c", False), ("b a.", False)])
def test_answers_that_differ_in_spaces_or_case_are_told(template, rejected, alike):
    report = look(template, [*sound(100), pair("q", "a b.", rejected, 901)])
    assert ("alike-answers" in checks(report)) == alike
    if alike:
        assert [p.row for p in the(report, "alike-answers").rows] == [901]


# Tokens at the ends


def spoiled(template, change):
    data = examples(sound(100), template)
    return [*data[:99], change(data[99])]


def with_tokens(example, prompt=None, chosen=None):
    return replace(example, prompt_ids=prompt or example.prompt_ids, chosen_ids=chosen or example.chosen_ids)


BOS = {
    "doubled-bos": lambda bos, end, e: with_tokens(e, prompt=[bos, *e.prompt_ids]),
    "bos-in-answer": lambda bos, end, e: with_tokens(e, chosen=[bos, *e.chosen_ids]),
    "doubled-eos": lambda bos, end, e: with_tokens(e, chosen=[*e.chosen_ids, end]),
    "missing-eos": lambda bos, end, e: with_tokens(e, chosen=e.chosen_ids[:-1]),
    "eos-within-answer": lambda bos, end, e: with_tokens(e, chosen=[*e.chosen_ids[:3], end, *e.chosen_ids[3:]]),
}


@pytest.mark.parametrize("check", BOS)
@pytest.mark.parametrize("name", ["llama3", "mistral", "gemma"])
def test_a_token_that_stands_wrongly_is_an_error(name, check):
    template = Template(family(name), "auto")
    bos, end = template.tokenizer.bos_token_id, template.end_of_turn[-1]
    report = look(template, spoiled(template, lambda e: BOS[check](bos, end, e)))
    assert checks(report) == {check}
    assert (the(report, check).severity, the(report, check).count) == ("error", 1)
    assert the(report, check).rows[0].row == 100


def test_a_bos_that_is_also_the_mark_of_a_turn_is_no_double():
    template = Template(family("smollm2"), "auto")
    assert template.tokenizer.bos_token == "<|im_start|>"
    assert checks(look(template, [pair(chat("a", "b", "c"), row=i) for i in range(3)], [])) <= {
        "few-heldout",
        "exact-duplicates",
    }


def test_the_real_eos_after_the_end_of_turn_is_a_double():
    template = Template(family("llama3 with another eos"), "auto")
    eos = template.tokenizer.eos_token_id
    assert eos not in template.end_of_turn
    report = look(template, spoiled(template, lambda e: with_tokens(e, chosen=[*e.chosen_ids, eos])))
    assert "doubled-eos" in checks(report)


def test_prompts_that_fill_the_room_are_told(template):
    long = [pair(f"{i:03} {'word ' * 180}", "a", "b", 900 + i) for i in range(20)]
    report = look(template, [*sound(100), *long], max_length=1000)
    assert (the(report, "long-prompts").count, the(report, "long-prompts").severity) == (20, "warning")
    assert "long-prompts" not in checks(look(template, [*sound(100), *long], max_length=1500))


# Templates


def test_a_template_whose_tokens_the_tokenizer_splits_is_an_error():
    foreign = family("llama3")
    foreign.chat_template = FAMILIES["chatml"][0]
    report = look(Template(foreign, "auto"), sound(100))
    found = the(report, "split-template-tokens")
    assert found.severity == "error"
    assert "<|im_start|>" in found.message
    assert the(report, "wrong-template").severity == "warning"


def test_a_template_that_leaves_the_turn_tokens_aside_is_told():
    tokenizer = family("chatml")
    report = look(Template(tokenizer, "zephyr"), sound(100))
    assert "ChatML" in the(report, "wrong-template").message
    assert "split-template-tokens" not in checks(report), "Zephyr's marks are text for its own tokenizer, too"


def test_a_template_other_than_the_tokenizers_own_is_told():
    template = Template(family("mistral"), "zephyr")
    template.own = FAMILIES["mistral"][0]  # type: ignore[attr-defined]
    assert "[INST]" in the(look(template, sound(100)), "another-template").example
    template.own = template.tokenizer.chat_template  # type: ignore[attr-defined]
    assert "another-template" not in checks(look(template, sound(100)))


def test_texts_that_were_written_with_a_template_are_told(template):
    def written(p):
        prompt = f"[INST] {p.prompt[0]['content']} [/INST]"
        return replace(p, prompt=chat(prompt))

    pairs = sound(100)
    few, many = [*pairs[:99], written(pairs[99])], [written(p) for p in pairs]
    assert (the(look(template, few), "template-in-data").severity) == "info"
    found = the(look(template, [written(p) if i < 20 else p for i, p in enumerate(pairs)]), "template-in-data")
    assert (found.severity, found.count) == ("warning", 20)
    assert "Mistral" in found.message
    assert "[INST]" in found.example
    heldout = [written(p) for p in sound(60, seed=9, start=5000)]
    assert the(look(template, many, heldout), "template-in-data").severity == "error"


# Repetition and leakage


def test_exact_duplicates_are_counted(template):
    pairs = sound(100)
    report = look(template, [*pairs, *[replace(p, row=p.row + 900) for p in pairs[:4]]])
    found = the(report, "exact-duplicates")
    assert (found.severity, found.count, [p.row for p in found.rows]) == ("warning", 4, [901, 902, 903, 904])
    assert "near-duplicates" not in checks(report)


def test_contradicting_pairs_are_counted_on_both_sides(template):
    pairs = sound(100)
    swapped = replace(pairs[0], chosen=pairs[0].rejected, rejected=pairs[0].chosen, row=901)
    report = look(template, [*pairs, swapped])
    found = the(report, "contradicting-pairs")
    assert (found.severity, [p.row for p in found.rows]) == ("warning", [1, 901])
    assert "chosen-and-rejected" not in checks(report)


def test_an_answer_chosen_here_and_rejected_there_is_worth_knowing(template):
    pairs = sound(100)
    worse = replace(pairs[0], chosen=pairs[0].rejected, rejected="nothing at all", row=901)
    report = look(template, [*pairs, worse])
    assert the(report, "chosen-and-rejected").severity == "info"
    assert "contradicting-pairs" not in checks(report)


def test_a_prompt_on_both_sides_is_an_error(template):
    pairs = sound(100)
    other = replace(pairs[7], chosen="another answer", row=5999)
    found = the(look(template, pairs, [*sound(60, seed=9, start=5000), other]), "leaked-prompts")
    assert (found.severity, [(p.split, p.row) for p in found.rows]) == ("error", [("heldout", 5999)])


def test_repeats_are_counted_over_all_pairs_however_few_are_looked_at(template):
    pairs = sound(600)
    twice = [*pairs, *[replace(p, row=p.row + 600) for p in pairs]]
    report = look(template, twice, [*sound(60, seed=9, start=5000), *[replace(pairs[599], row=5999)]], pairs=100)
    assert report.sizes["train/looked_at"] == 100
    found = the(report, "exact-duplicates")
    assert (found.count, found.share, found.rows[0].row) == (600, 0.5, 601)
    assert "600 training pairs (50 % of all)" in found.message
    assert report.numbers["repeats/prompts"] == 600
    assert [p.row for p in the(report, "leaked-prompts").rows] == [5999]


def test_contradictions_are_counted_over_all_pairs(template):
    pairs = sound(600)
    swapped = [replace(p, chosen=p.rejected, rejected=p.chosen, row=p.row + 600) for p in pairs[:300]]
    report = look(template, [*pairs, *swapped], pairs=100)
    assert the(report, "contradicting-pairs").count == 600
    assert checks(report) == {"contradicting-pairs"}


def test_of_three_the_same_two_are_repeats_and_one_swapped_contradicts_all(template):
    one = pair("q", "a b c", "d e f", 901)
    report = look(template, [*sound(97), one, replace(one, row=902), replace(one, row=903),
                             replace(one, chosen=one.rejected, rejected=one.chosen, row=904)])  # fmt: skip
    assert [p.row for p in the(report, "exact-duplicates").rows] == [902, 903]
    assert [p.row for p in the(report, "contradicting-pairs").rows] == [901, 902, 903, 904]


@pytest.mark.parametrize("what", ["arguments", "tools", "nothing"])
def test_prompts_that_differ_in_their_tools_are_different_prompts(what):
    template = Template(family("qwen2.5"), "auto")

    def using(i):
        prompt = (ASKED[0], call("get_weather", city="北京" if what != "arguments" else f"City {i}"), *ASKED[2:])
        about = {"type": "function", "function": {"name": f"tool_{i}", "parameters": {}}}
        return replace(pair(prompt, "Warm.", "Cold.", i), tools=(about,) if what == "tools" else WEATHER)

    report = look(template, [*sound(50), *[using(i) for i in range(901, 905)]], [*sound(60, 9, 5000), using(5901)])
    found = {"leaked-prompts", "exact-duplicates"}
    assert checks(report) & found == (found if what == "nothing" else set())
    assert ("near-leakage" in checks(report)) == (what != "nothing"), "they are nearly the same nevertheless"


def test_repeats_of_heldout_pairs_are_told_and_do_not_count(template):
    pairs = sound(60, seed=9, start=5000)
    report = look(template, sound(100), [*pairs, *[replace(p, row=6000 + p.row) for p in pairs[:20]]])
    found = the(report, "heldout-duplicates")
    assert (found.severity, found.count, found.share) == ("warning", 20, 0.25)
    assert report.numbers["heldout/distinct"] == 60
    assert "few-heldout" not in checks(report)
    few = the(look(template, sound(100), pairs[:16] * 5), "few-heldout")
    assert (few.count, "Only 16 different ones of 80 pairs" in few.message) == (16, True)
    assert "12 points" in few.message


# Prompts


def test_one_prompt_everywhere_is_told(template):
    found = the(look(template, [replace(p, prompt=chat("math")) for p in sound(200)]), "same-prompt")
    assert (found.severity, found.count) == ("warning", 200)
    assert found.message == "All 200 pairs have the same prompt."
    assert "data.columns" in found.fix
    assert found.example == "math"


def test_one_prompt_nearly_everywhere_is_told(template):
    pairs = [replace(p, prompt=chat("math")) if p.row <= 150 else p for p in sound(200)]
    assert "150 pairs of 200 (75 %)" in the(look(template, pairs), "same-prompt").message
    few = [replace(p, prompt=chat("math")) if p.row <= 15 else p for p in sound(200)]
    assert checks(look(template, few)) == set()


def test_few_different_prompts_are_told(template):
    pairs = [replace(p, prompt=chat(f"Write a poem about {WORDS[p.row % 5]} and the sea.")) for p in sound(200)]
    found = the(look(template, pairs), "few-prompts")
    assert "200 pairs have only 5 different prompts" in found.message
    assert len(found.rows) == 5


def test_many_short_prompts_that_rows_share_are_told(template):
    pairs = [replace(p, prompt=chat(f"topic {p.row // 8}")) if p.row <= 100 else p for p in sound(200)]
    found = the(look(template, pairs), "short-prompts")
    assert found.count > 90
    assert "very short" in found.message
    assert "short-prompts" not in checks(look(template, [replace(p, prompt=chat(f"t{p.row}")) for p in pairs]))
    long = [replace(p, prompt=chat(f"topic {p.row // 8} is what this question is about")) for p in pairs]
    assert "short-prompts" not in checks(look(template, long))


def test_several_answers_of_a_row_are_no_prompt_that_rows_share(template):
    rng = np.random.default_rng(3)
    ranked = [pair(f"sum {row}?", texts(rng), texts(rng), row) for row in range(1, 31) for _ in range(10)]
    assert checks(look(template, ranked)) == set()
    one = [pair("sum?", texts(rng), texts(rng), 1) for _ in range(200)]
    assert checks(look(template, one)) == set()


def test_near_duplicates_are_found(template):
    rng = np.random.default_rng(5)
    pairs = sound(100)
    long = pair(f"Long {texts(rng, 40)}", texts(rng, 60), texts(rng, 60), 901)
    report = look(template, [*pairs, long, replace(long, chosen=long.chosen + "!", row=902)])
    found = the(report, "near-duplicates")
    assert [p.row for p in found.rows] == [902]
    assert "Long" in found.example


def test_a_prompt_with_one_word_changed_leaks(template):
    rng = np.random.default_rng(6)
    prompt = texts(rng, 60)
    train = [*sound(100), pair(prompt, "a", "b", 901)]
    heldout = [*sound(60, seed=9, start=5000), pair(prompt + " now", "c", "d", 5901)]
    found = the(look(template, train, heldout), "near-leakage")
    assert [(p.split, p.row) for p in found.rows] == [("heldout", 5901)]


def test_a_long_system_message_does_not_make_prompts_alike(template):
    system = "You are a careful assistant. " * 30
    rng = np.random.default_rng(7)
    split = [
        [replace(p, prompt=chat(texts(rng, 20), system=system)) for p in part]
        for part in (sound(100), sound(60, seed=9, start=5000))
    ]
    report = look(template, *split)
    assert report.numbers["repeats/near_leakage"] == 0
    assert report.numbers["repeats/near_duplicates"] == 0


# Turns


@pytest.mark.parametrize(
    ("roles", "fault"),
    [
        (("user", "user"), "two user turns in a row"),
        (("user", "assistant", "assistant", "user"), "two assistant turns in a row"),
        (("assistant", "user"), "the assistant begins"),
        (("user", "system", "user"), "a system message after the first turn"),
        (("system",), "no user turn"),
        (("user", "assistant"), "the prompt ends with the assistant"),
    ],
)
def test_an_unusual_order_of_roles_is_told(template, roles, fault):
    odd = pair(tuple({"role": role, "content": f"turn {i}"} for i, role in enumerate(roles)), row=901)  # type: ignore[misc]
    found = the(look(template, [*sound(200), odd]), "role-order")
    assert fault in found.message
    assert (found.severity, found.count) == ("info", 1)
    assert the(look(template, [*sound(20), odd], []), "role-order").severity == "warning"


@pytest.mark.parametrize(
    "roles",
    [
        ("system", "user"),
        ("user", "assistant", "user"),
        ("user", "assistant", "tool", "tool", "assistant", "user"),
        ("user", "assistant", "tool"),
    ],
)
def test_a_usual_order_is_not(template, roles):
    usual = pair(tuple({"role": role, "content": f"turn {i}"} for i, role in enumerate(roles)), row=901)  # type: ignore[misc]
    assert "role-order" not in checks(look(template, [*sound(50), usual]))


# Writing


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("The quick brown fox jumps over it.", "Latin"),
        ("今天的天气非常好我们去公园", "Han"),
        ("今天用 Python 写一个 hello world 程序", "Han"),
        ("今日はとても良い天気なので公園に行きます", "Japanese"),
        ("오늘은 날씨가 정말 좋습니다 공원에", "Hangul"),
        ("Сегодня очень хорошая погода", "Cyrillic"),
        ("الطقس جميل جدا اليوم في الحديقة", "Arabic"),
        ("Ο καιρός είναι πολύ καλός", "Greek"),
        ("12 + 30 = 42", None),
        ("", None),
    ],
)
def test_the_script_of_a_text_is_known(text, script):
    names = {0: None} | {number: name for number, (name, _) in SCRIPTS.items()}
    assert names[int(scripts_of([text])[0])] == script


def test_answers_in_two_languages_are_told(template):
    odd = pair("Was ist das für ein Vogel dort?", "Das ist eine schöne Amsel.", "这是一只非常漂亮的黑色的鸟", 901)
    found = the(look(template, [*sound(99), odd]), "answers-in-two-languages")
    assert (found.count, [p.row for p in found.rows]) == (1, [901])


def test_answers_that_leave_the_language_of_the_prompt_on_one_side_are_told(template):
    rng = np.random.default_rng(8)
    odd = [
        pair(f"这只鸟叫什么名字请告诉我{i}", f"这是一只非常漂亮的黑色的鸟{i}", texts(rng), 900 + i) for i in range(30)
    ]
    both = [pair(f"这只鸟叫什么名字请告诉我{i}", texts(rng), texts(rng), 900 + i) for i in range(30)]
    assert "rejected" in the(look(template, [*sound(100), *odd]), "language-of-the-prompt").fix
    assert "language-of-the-prompt" not in checks(look(template, [*sound(100), *both])), "a task of translation"


@pytest.mark.parametrize(
    ("text", "check"),
    [("a\x0crac{1}{2}", "control-characters"), ("a\x1b[31mred", "control-characters"), ("\ud800", "control-characters"),
     ("工\ufffd\ufffd具", "lost-characters"), ("tab\there\r\nnext", None), ("naïve 👩‍👩‍👧 😀", None)],
)  # fmt: skip
def test_characters_that_nobody_types_are_told(template, text, check):
    data = examples([*sound(100)], template)
    odd = replace(data[-1], pair=replace(data[-1].pair, chosen=f"good {text}"))
    report = look(template, [*data[:-1], odd])
    assert checks(report) == ({check} if check else set())
    if check:
        assert [p.row for p in the(report, check).rows] == [100]
        assert the(report, check).example.isprintable()


# Shortcuts


def lengths(template, pairs_of_lengths):
    [e] = examples([pair("q", "a", "b")], template)
    end = template.end_of_turn
    return [
        Example([*e.prompt_ids, i], [5] * c + end, [5] * r + end, replace(e.pair, prompt=chat(f"{i} {i * i}"), row=i))
        for i, (c, r) in enumerate(pairs_of_lengths, 1)
    ]


def test_the_length_rule_is_as_counted_by_hand(template):
    found = look(template, lengths(template, [(9, 3)] * 6 + [(3, 5)] * 1 + [(4, 4)] * 1), []).numbers
    assert found["length_bias/longer_chosen"] == 6 / 8
    assert found["length_bias/rule_accuracy"] == 6.5 / 8
    assert found["length_bias/rule_accuracy_widest_quarter"] == 1.0
    assert found["length_bias/median_ratio"] == 10 / 4
    assert found["length_bias/mean_ratio"] == pytest.approx((6 * 10 / 4 + 4 / 6 + 1) / 8)


@pytest.mark.parametrize(
    ("longer", "of", "severity"), [(160, 200, "warning"), (40, 200, "warning"), (120, 200, "info"), (105, 200, None)]
)
def test_a_length_bias_is_told_by_its_strength(template, longer, of, severity):
    report = look(template, lengths(template, [(30, 20)] * longer + [(20, 30)] * (of - longer)))
    if severity is None:
        assert "length-bias" not in checks(report)
    else:
        assert the(report, "length-bias").severity == severity
        assert ("the shorter one wins" in the(report, "length-bias").message) == (longer < 100)


@pytest.mark.parametrize(
    ("share", "severity", "words"),
    [(1.0, "warning", "almost certainly"), (0.6, "info", "bag of words"), (0.0, None, "")],
)
def test_an_answer_that_gives_itself_away_by_a_word_is_told(template, share, severity, words):
    pairs = [replace(p, chosen=f"Sure! {p.chosen}", rejected=f"S-re- {p.rejected}") if p.row <= 300 * share else p
             for p in sound(300)]  # fmt: skip
    report = look(template, pairs)
    if severity is None:
        assert "words-tell" not in checks(report)
    else:
        assert the(report, "words-tell").severity == severity
        assert words in the(report, "words-tell").message
        assert "'!'" in the(report, "words-tell").message


def test_refusals_are_told_by_side(template):
    pairs = sound(100)
    chosen = [replace(p, chosen=f"I’m sorry, but {p.chosen}") if p.row <= 30 else p for p in pairs]
    rejected = [replace(p, rejected=f"抱歉，{p.rejected}") if p.row <= 30 else p for p in pairs]
    assert the(look(template, chosen), "refusals").severity == "warning"
    assert the(look(template, rejected), "refusals").severity == "info"


@pytest.mark.parametrize(("n", "told"), [(0, True), (16, True), (49, True), (50, False)])
def test_few_heldout_pairs_are_told(template, n, told):
    report = look(template, sound(100), sound(n, seed=9, start=5000))
    assert ("few-heldout" in checks(report)) == told
    if n == 16:
        assert report.numbers["heldout/accuracy_standard_error"] == 0.125
        assert "12 points" in the(report, "few-heldout").message


def test_every_check_is_in_a_report_of_numbers(template):
    report = look(template, sound(100))
    areas = {name.split("/")[0] for name in report.numbers}
    assert areas >= {"train", "tokens", "length_bias", "words", "repeats", "roles", "languages", "characters"}
    assert len(CHECKS) == 17


def test_the_histograms_are_of_both_splits(template):
    report = look(template, sound(100), sound(60, seed=9, start=5000))
    assert [h.name for h in report.histograms] == ["prompt", "chosen", "rejected"]
    assert [sum(h.counts) for h in report.histograms] == [160, 160, 160]
    assert [h.edges[-1] - 1 for h in report.histograms] == [
        report.numbers[f"tokens/{h.name}/max"] for h in report.histograms
    ]
