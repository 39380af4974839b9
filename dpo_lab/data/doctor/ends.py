"""The tokens that begin and end: once each, at their place."""

from typing import Any

import numpy as np

from dpo_lab.data.doctor.case import Case, Marked, Result, graded, pairs_word
from dpo_lab.data.doctor.findings import Finding, Histogram
from dpo_lab.data.doctor.sample import Bools, Ragged, Sample
from dpo_lab.data.doctor.statistics import histogram, percent, quantiles

NEAR = 0.9  # of data.max_length
NEAR_MANY = 0.1  # of the prompts


def special_tokens(case: Case) -> Result:
    """Doubled and missing tokens of beginning and end."""
    tokenizer: Any = case.template.tokenizer
    bos, end = tokenizer.bos_token_id, case.template.end_of_turn
    closing = {end[-1], tokenizer.eos_token_id} - {None}
    masks = {name: [] for name in ("doubled-bos", "bos-in-answer", "doubled-eos", "missing-eos", "eos-within-answer")}
    for sample in case.samples:
        answers = (sample.chosen, sample.rejected)
        ended = [x.ends_with(end) for x in answers]
        room = case.max_length - sample.prompts.lengths
        masks["doubled-bos"].append(_doubled_bos(sample, bos))
        masks["bos-in-answer"].append(
            _either([x.at(0) == (-2 if bos is None or bos in closing else bos) for x in answers])
        )
        masks["doubled-eos"].append(_either([x.ends_with(end * 2) | _twice(x, closing) for x in answers]))
        masks["missing-eos"].append(_either([~e & (x.lengths < room) for e, x in zip(ended, answers, strict=True)]))
        masks["eos-within-answer"].append(_either([_within(x, end[-1], len(end)) for x in answers]))
    masks["eos-within-answer"] = [m & ~d for m, d in zip(masks["eos-within-answer"], masks["doubled-eos"], strict=True)]
    result = Result()
    for check, marks in masks.items():
        found = Marked.of(case, marks)
        result.numbers[f"tokens/{check.replace('-', '_')}"] = found.count
        if found.count:
            message, fix = _TEXTS[check]
            result.findings.append(
                Finding(
                    check,
                    "error",
                    f"{message} in {pairs_word(found.count)} ({percent(found.share)}).",
                    fix,
                    found.count,
                    found.share,
                    found.rows,
                )
            )
    return result


def token_lengths(case: Case) -> Result:
    """How long prompts and answers are, and how many prompts leave little room."""
    result = Result()
    for part in ("prompts", "chosen", "rejected"):
        lengths = np.concatenate([getattr(sample, part).lengths for sample in case.samples])
        name = part.removesuffix("s")
        result.numbers.update({f"tokens/{name}/{k}": v for k, v in quantiles(lengths).items()})
    near = Marked.of(case, [s.prompts.lengths > NEAR * case.max_length for s in case.samples])
    result.numbers["tokens/prompts_near_max_length"] = near.count
    if near.count:
        result.findings.append(
            Finding(
                "long-prompts",
                graded(near.share, warning=NEAR_MANY),
                f"{pairs_word(near.count)} ({percent(near.share)}) have a prompt that fills more than {NEAR:.0%} of "
                f"data.max_length={case.max_length}: little room is left for answers.",
                "Raise data.max_length, or shorten prompts with data.truncation=cut_prompt.",
                near.count,
                near.share,
                near.rows,
            )
        )
    return result


def length_histograms(case: Case) -> tuple[Histogram, ...]:
    """Token lengths of prompts and answers, over both splits."""
    return tuple(
        histogram(part.removesuffix("s"), np.concatenate([getattr(sample, part).lengths for sample in case.samples]))
        for part in ("prompts", "chosen", "rejected")
    )


_TEXTS = {
    "doubled-bos": (
        "The prompt begins with the bos token twice",
        "The template writes it, and the data or the tokenizer does again: take it out of the data, or choose "
        "another template=.",
    ),
    "bos-in-answer": (
        "An answer begins with the bos token",
        "Take it out of the answers, or choose another template=.",
    ),
    "doubled-eos": (
        "An answer ends with its end of turn twice",
        "Take the end of turn out of the answers: the template writes it.",
    ),
    "missing-eos": (
        "An answer that was not cut has no end of turn, so the model never learns to stop there",
        "Choose the template= that the model was trained with; its end of turn must be a token.",
    ),
    "eos-within-answer": (
        "The end of turn stands in the middle of an answer",
        "Take it out of the answers: inference would stop there.",
    ),
}


def _either(masks: list[Bools]) -> Bools:
    return masks[0] | masks[1]


def _doubled_bos(sample: Sample, bos: int | None) -> Bools:
    return (sample.prompts.at(0) == (-2 if bos is None else bos)) & (sample.prompts.at(1) == sample.prompts.at(0))


def _twice(answers: Ragged, closing: set[int]) -> Bools:
    """Two closing tokens at the end, whichever they are."""
    return np.isin(answers.at(-1), list(closing)) & np.isin(answers.at(-2), list(closing))


def _within(answers: Ragged, token: int, tail: int) -> Bools:
    """The closing token before the tail of `tail` tokens that an answer ends with."""
    hits = answers.values == token
    counts = np.concatenate([np.zeros(1, np.int64), np.cumsum(hits)])
    stop = np.maximum(answers.offsets[1:] - tail, answers.offsets[:-1])
    return counts[stop] > counts[answers.offsets[:-1]]
