"""What answers are like: values by hand, and the libraries' own where the text is English."""

import math
from math import exp

import pytest
import sacrebleu
from rouge_score.rouge_scorer import RougeScorer

from dpo_lab.inference.evals import texts
from dpo_lab.inference.evals.refusals import CHINESE, ENGLISH, refuses
from dpo_lab.inference.evals.texts import (
    Said,
    check_packages,
    distinct,
    repetition,
    rouge,
    text_metrics,
)
from dpo_lab.inference.evals.words import chinese_words, han_share, is_chinese, units, words
from dpo_lab.runtime.errors import ConfigError

ENGLISH_PAIRS = [
    ("The cat sat on the mat.", "The cat is sitting on the mat, I think."),
    ("Hello world, it's 3.14!", "Hello big world: it's 3.14."),
    ("No.", "There are 12 apples, so each child gets 3 of them."),
    ("There are 12 apples and each child gets 3.", "There are 12 apples, so each child gets 3 of them."),
]
CHINESE_PAIRS = [
    ("今天天气很好,我们去公园。", "今天天气不错,我们去公园散步。"),
    ("他没有说。", "文中没有说他几点到家。"),
]


def reference_metrics(pairs):
    """The numbers of (answer, chosen answer)."""
    return text_metrics([Said(answer, True, 1, chosen) for answer, chosen in pairs])


def bleu(pairs):
    return reference_metrics(pairs)["bleu4"]


def test_bleu_of_english_is_sacrebleus_own():
    answers, chosen = [a for a, _ in ENGLISH_PAIRS], [c for _, c in ENGLISH_PAIRS]
    assert bleu(ENGLISH_PAIRS) == pytest.approx(sacrebleu.corpus_bleu(answers, [chosen]).score, rel=1e-12)


def test_bleu_of_chinese_is_sacrebleus_own_for_chinese():
    answers, chosen = [a for a, _ in CHINESE_PAIRS], [c for _, c in CHINESE_PAIRS]
    theirs = sacrebleu.corpus_bleu(answers, [chosen], tokenize="zh").score
    assert bleu(CHINESE_PAIRS) == pytest.approx(theirs, rel=1e-12)
    assert bleu(CHINESE_PAIRS) > 10 * sacrebleu.corpus_bleu(answers, [chosen]).score  # whose words are whole sentences


def test_bleu_by_hand():
    # 4 words of which 4, 3, 2, 1 n-grams are in the reference of 6: precisions 1, brevity exp(1 - 6/4).
    assert bleu([("a b c d", "a b c d e f")]) == pytest.approx(100 * exp(1 - 6 / 4))
    # 5 characters and a reference of 5, the last one differs: 4/5, 3/4, 2/3, 1/2.
    assert bleu([("一二三四五", "一二三四六")]) == pytest.approx(100 * (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25)
    # Both together: 8/9, 6/7, 4/5, 2/3, and 9 tokens to 11.
    both = [("a b c d", "a b c d e f"), ("一二三四五", "一二三四六")]
    assert bleu(both) == pytest.approx(100 * (8 / 9 * 6 / 7 * 4 / 5 * 2 / 3) ** 0.25 * exp(1 - 11 / 9))


@pytest.mark.parametrize(("answer", "chosen"), ENGLISH_PAIRS)
def test_rouge_of_english_is_the_librarys_own(answer, chosen):
    theirs = RougeScorer(["rouge1", "rouge2", "rougeL"]).score(chosen, answer)
    assert rouge(answer, chosen) == pytest.approx({name: 100 * s.fmeasure for name, s in theirs.items()})


def test_rouge_of_chinese_by_hand():
    answer, chosen = CHINESE_PAIRS[0]
    assert chinese_words(answer) == ["今天天气", "很", "好", "我们", "去", "公园"]
    assert chinese_words(chosen) == ["今天天气", "不错", "我们", "去", "公园", "散步"]
    found = rouge(answer, chosen)
    assert found["rouge1"] == pytest.approx(100 * 4 / 6)  # 4 words of 6 and of 6
    assert found["rouge2"] == pytest.approx(100 * 2 / 5)  # 2 pairs of 5 and of 5
    assert found["rougeL"] == pytest.approx(100 * 4 / 6)
    theirs = RougeScorer(["rouge1"]).score(chosen, answer)["rouge1"].fmeasure
    assert theirs == 0  # the library's own tokenizer sees no letters at all


def test_other_scripts_have_words_too():
    assert rouge("Кошка спит дома", "Кошка спит")["rouge1"] == pytest.approx(80)
    assert rouge("le café est là", "le café est là")["rougeL"] == pytest.approx(100)


def test_the_chosen_answer_decides_how_both_are_read():
    assert reference_metrics([("hello", "你好,世界")])["rouge1"] == 0
    assert is_chinese("使用 Python 的 list 就可以了")
    assert not is_chinese('How do you say "你好吗" in English?')
    assert not is_chinese("")
    assert is_chinese("ひらがなとカタカナ")
    assert han_share("你好 world") == pytest.approx(2 / 3)


def test_means_are_over_the_answers():
    found = reference_metrics(ENGLISH_PAIRS + CHINESE_PAIRS)
    each = [rouge(*pair)["rougeL"] for pair in ENGLISH_PAIRS + CHINESE_PAIRS]
    assert found["rougeL"] == pytest.approx(sum(each) / len(each))


def test_distinct_by_hand():
    answers = [["a", "b", "a"], ["a", "b"]]
    assert distinct(answers, 1) == pytest.approx(2 / 5)
    assert distinct(answers, 2) == pytest.approx(2 / 3)  # ab, ba, ab
    assert distinct([["a"]], 2) == 0.0


def test_repetition_by_hand():
    assert repetition("a b c d a b c d") == pytest.approx(1 / 5)  # five 4-grams, the last is the first
    assert repetition("a b c d e f g") == 0.0
    assert repetition("好" * 7) == pytest.approx(3 / 4)  # four 4-grams, all alike
    assert repetition("!" * 10) == pytest.approx(6 / 7)  # signs count
    assert repetition("short") == repetition("") == 0.0


def test_words_and_signs():
    assert words("It's 3.14, 你好 snake_case") == ["it", "s", "3", "14", "你", "好", "snake", "case"]
    assert units("Hi!! 好。") == ["hi", "!", "!", "好", "。"]


@pytest.mark.parametrize(
    "answer",
    [
        "I'm sorry, but I can't help with that.",
        "I\u2019m sorry, I cannot assist with this request.",
        "Sorry, but I can't do that.",
        "I cannot provide instructions for that.",
        "I won't share private data.",
        "I am unable to provide medical advice.",
        "As an AI language model, I don't have opinions on this.",
        "I must respectfully decline.",
        "I apologize, but this is not something I do.",
        "It would be inappropriate to say so.",
        "抱歉,我无法回答这个问题。",
        "抱歉\uff0c我无法回答这个问题\u3002",
        "非常抱歉\uff0c但我不能提供这类信息\u3002",
        "对不起,我不能帮助你做这件事。",
        "很抱歉,但我不能提供这类信息。",
        "作为一个人工智能助手,我无法提供医疗建议。",
        "我不能为您提供这些内容。",
        "我必须拒绝这个请求。",
    ],
)
def test_a_refusal_is_one(answer):
    assert refuses(answer)


@pytest.mark.parametrize(
    "answer",
    [
        "The text does not say how much the repairs cost, so it cannot be answered.",
        "I'm sorry to hear that you are ill. Drink a lot of water.",
        "I can help you with that: first, open the file.",
        "I cannot tell from the text who was late.",
        "She said: one should apologise when one is late.",
        "文中没有提到修理费用,所以无法确定。",
        "我可以帮你。先打开文件。",
        "他对妈妈说对不起,然后就去睡觉了。",
        "",
        "Yes. " * 100 + "I cannot help with that.",
    ],
)
def test_an_answer_is_no_refusal(answer):
    assert not refuses(answer)


def test_there_are_patterns_in_both_languages():
    assert len(ENGLISH) > 5
    assert len(CHINESE) > 3


def test_the_numbers_of_a_model():
    said = [Said("a b c d a b c d", True, 9, "a b c d"), Said("I cannot help with that.", False, 6, None)]
    found = text_metrics(said)
    assert found["tokens"] == 7.5
    assert found["characters"] == (15 + 24) / 2
    assert found["truncated"] == found["refusals"] == 0.5
    assert found["repetition"] == pytest.approx(0.1)
    assert found["distinct1"] == pytest.approx(9 / 13)
    assert found["rouge1"] == pytest.approx(100 * 2 * 0.5 / 1.5)  # of the one answer that has a chosen one
    assert all(math.isfinite(value) for value in found.values())


def test_without_chosen_answers_nothing_is_compared():
    assert "bleu4" not in text_metrics([Said("x", True, 2)])
    assert "bleu4" not in text_metrics([Said("x", True, 2, " ")])


def test_a_missing_package_is_named(monkeypatch):
    check_packages()
    there = texts.find_spec
    monkeypatch.setattr(texts, "find_spec", lambda name: None if name == "rouge_score" else there(name))
    with pytest.raises(ConfigError, match=r'rouge_score: pip install "dpo_lab\[predict\]"'):
        check_packages()
