"""What could be learned instead of the preference: length, single words, refusals; and whether it could be noticed."""

import math
from typing import Any

import numpy as np

from dpo_lab.data.doctor.case import Case, Result, graded
from dpo_lab.data.doctor.findings import Finding
from dpo_lab.data.doctor.hashing import distinct, joined
from dpo_lab.data.doctor.sample import Ragged, Sample
from dpo_lab.data.doctor.statistics import interval, percent, wilson
from dpo_lab.data.doctor.words import Baseline, baseline

LENGTH_RULE = 0.65  # accuracy of "the longer answer wins", or loses, that misleads
WORDS, ALL_WORDS, SOME_WORDS = 0.95, 0.99, 0.75  # accuracy of a bag of words
WORD_PAIRS = 8_000  # that the bag of words learns from: an interval of 2 points
FEWEST = 50  # pairs without which shares say little
REFUSED = 0.2  # of one side's answers
REFUSALS = (  # how refusals begin, in lower case
    "i'm sorry, but", "i am sorry, but", "sorry, but i", "i cannot", "i can't", "i'm not able to", "i am not able to",
    "i'm unable to", "i am unable to", "as an ai", "i apologize, but", "i won't", "i will not",
    "抱歉", "对不起", "很抱歉", "作为一个人工智能", "作为一个ai", "我无法", "我不能",
)  # fmt: skip
BEGINNING = 60  # characters in which a refusal shows


def enough_heldout(case: Case) -> Result:
    """The standard error that the number of different held-out pairs allows."""
    heldout = case.whole[1]
    n = distinct(joined(*heldout.keys.T))
    result = Result(
        numbers={"heldout/distinct": n, "heldout/accuracy_standard_error": 0.5 / math.sqrt(n) if n else None}
    )
    fix = "Hold out more: data.eval_fraction, or a file by data.eval_path."
    if n == 0:
        message = "No pair is held out: nothing tells learning from memorising."
        result.findings.append(Finding("few-heldout", "warning", message, fix))
    elif n < FEWEST:
        message = (
            f"Only {n} {'' if n == len(heldout) else f'different ones of {len(heldout):,} '}pairs are held out: an "
            f"accuracy measured on them has a standard error of up to {50 / math.sqrt(n):.0f} points."
        )
        result.findings.append(Finding("few-heldout", "warning", message, fix, count=n))
    return result


def length_bias(case: Case) -> Result:
    """How often the chosen answer is the longer one, and how well length alone predicts the label."""
    sample = _learned_from(case)
    chosen, rejected = sample.chosen.lengths, sample.rejected.lengths
    n, difference = len(sample), chosen - rejected
    if n == 0:
        return Result()
    longer = int((difference > 0).sum())
    rule = (longer + 0.5 * int((difference == 0).sum())) / n
    low, high = wilson(longer, n)
    widest = np.argsort(-np.abs(difference), kind="stable")[: max(1, n // 4)]
    widest_rule = float((np.sign(difference[widest]) + 1).mean() / 2)
    ratio = chosen / np.maximum(1, rejected)
    result = Result(
        numbers={
            "length_bias/longer_chosen": longer / n,
            "length_bias/longer_chosen_low": low,
            "length_bias/longer_chosen_high": high,
            "length_bias/rule_accuracy": max(rule, 1 - rule),
            "length_bias/rule_accuracy_widest_quarter": max(widest_rule, 1 - widest_rule),
            "length_bias/mean_ratio": float(ratio.mean()),
            "length_bias/median_ratio": float(np.median(ratio)),
        }
    )
    rule_low, rule_high = wilson(rule * n, n)
    if rule_low <= 0.5 <= rule_high:
        return result
    which = "longer" if rule > 0.5 else "shorter"
    strong = max(rule_low, 1 - rule_high) >= LENGTH_RULE
    result.findings.append(
        Finding(
            "length-bias",
            "warning" if strong else "info",
            f"The chosen answer is the longer one in {percent(longer / n)} of {n:,} pairs ({interval((low, high))}); "
            f'"the {which} one wins" is right in {percent(max(rule, 1 - rule))}, and in '
            f"{percent(max(widest_rule, 1 - widest_rule))} of the quarter with the largest difference. "
            f"Median ratio of lengths {np.median(ratio):.2f}.",
            "Compare held-out accuracy with this rule's; balance lengths in the data, or use loss.average=mean or a loss "
            "that divides by length (loss=simpo).",
            longer,
            longer / n,
        )
    )
    return result


def word_baseline(case: Case) -> Result:
    """How far a bag of words predicts the label on prompts that it has not seen."""
    sample = _learned_from(case)
    if len(sample) < FEWEST:
        return Result()
    found = _on_part(sample, case)
    words = {side: _named(case, ids) for side, ids in (("chosen", found.for_chosen), ("rejected", found.for_rejected))}
    result = Result(
        numbers={
            "words/accuracy": found.accuracy,
            "words/accuracy_low": found.low,
            "words/accuracy_high": found.high,
            "words/pairs": found.pairs,
        }
    )
    if found.low <= 0.5 or found.accuracy < SOME_WORDS:
        return result
    text = (
        f"A bag of words, told nothing but which tokens an answer has, picks the chosen answer in "
        f"{percent(found.accuracy)} of {found.pairs:,} pairs of unseen prompts "
        f"({interval((found.low, found.high))}). For chosen: {words['chosen']}. For rejected: {words['rejected']}."
    )
    if found.accuracy >= ALL_WORDS:
        text += (
            " The label can be read off the wording: this is almost certainly an artefact of how the answers were made."
        )
    elif found.accuracy >= WORDS:
        text += " That is more than opinions allow: probably an artefact of how the answers were made."
    result.findings.append(
        Finding(
            "words-tell",
            graded(found.accuracy, warning=WORDS),
            text,
            "Look at the words: if they are a habit of one source (a model's phrases, a format), make both answers with "
            "the same source, or strip it. Held-out accuracy will not show more than this.",
        )
    )
    return result


def refusals(case: Case) -> Result:
    """Answers that decline."""
    sample = _learned_from(case)
    shares = {
        side: sum(_declines(getattr(p, side)) for p in sample.pairs) / max(1, len(sample))
        for side in ("chosen", "rejected")
    }
    result = Result(numbers={f"refusals/{side}": share for side, share in shares.items()})
    if max(shares.values()) >= REFUSED:
        side = max(shares, key=lambda s: shares[s])
        result.findings.append(
            Finding(
                "refusals",
                "warning" if side == "chosen" else "info",
                f"{percent(shares['chosen'])} of the chosen and {percent(shares['rejected'])} of the rejected answers "
                "begin as a refusal.",
                "A model trained on this declines "
                + ("more often" if side == "chosen" else "less often")
                + ". If that is not the aim, balance them.",
                round(shares[side] * len(sample)),
                shares[side],
            )
        )
    return result


def _learned_from(case: Case) -> Sample:
    return case.train if len(case.train) else case.heldout


def _declines(answer: str) -> bool:
    beginning = answer[:BEGINNING].lower().replace("\u2019", "'")
    return any(phrase in beginning for phrase in REFUSALS)


def _on_part(sample: Sample, case: Case) -> Baseline:
    count = min(len(sample), WORD_PAIRS)
    chosen, rejected, prompts = sample.chosen, sample.rejected, sample.keys[:, 0].tolist()
    if count < len(sample):
        which = [i * len(sample) // count for i in range(count)]
        chosen, rejected = (Ragged.of([part[i] for i in which]) for part in (chosen, rejected))
        prompts = [prompts[i] for i in which]
    tokenizer: Any = case.template.tokenizer
    ends = [*case.template.end_of_turn, *([] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id])]
    return baseline(chosen, rejected, prompts, ends=ends)


def _named(case: Case, ids: tuple[int, ...]) -> str:
    """Tokens as readers know them."""
    words = [case.template.tokenizer.decode([i]) for i in ids]
    return ", ".join(repr(word) for word in words) or "none"
