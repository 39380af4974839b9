"""The examination: what hashes tell of all pairs, and every other check on a sample that fits the time there is."""

import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import replace

from dpo_lab.data.doctor.case import Case, Result
from dpo_lab.data.doctor.ends import length_histograms, special_tokens, token_lengths
from dpo_lab.data.doctor.findings import SEVERITIES, Number, Report
from dpo_lab.data.doctor.losses import alike_answers, left_out
from dpo_lab.data.doctor.markers import marked_texts, template_tokens
from dpo_lab.data.doctor.prompts import few_prompts
from dpo_lab.data.doctor.repeats import exact_leakage, exact_repeats, near_repeats
from dpo_lab.data.doctor.sample import Sample
from dpo_lab.data.doctor.shortcuts import enough_heldout, length_bias, refusals, word_baseline
from dpo_lab.data.doctor.turns import role_order
from dpo_lab.data.doctor.whole import Whole
from dpo_lab.data.doctor.writing import languages, odd_characters
from dpo_lab.data.templates import Template
from dpo_lab.data.types import Counts, Example

FIRST = 256  # pairs of the first look, which tells what a pair costs
FIRST_WEIGHT, MOST_WEIGHT = 750_000, 16_000_000  # of the first look, which takes its time; of any, which takes memory
PAIR = 100  # tokens that a pair weighs besides its own: what it costs to read it
CAREFUL = 0.7  # of the time left is planned for
Checks = dict[str, Callable[[Case], Result]]  # what matters most and costs least comes first
OF_ALL: Checks = {  # on hashes and counts, once
    "left out and cut": left_out,
    "held-out pairs": enough_heldout,
    "leaked prompts": exact_leakage,
    "repeated pairs": exact_repeats,
    "repeated prompts": few_prompts,
}
OF_SAMPLE: Checks = {
    "beginning and end": special_tokens,
    "template": template_tokens,
    "token lengths": token_lengths,
    "length bias": length_bias,
    "role order": role_order,
    "alike answers": alike_answers,
    "template markers": marked_texts,
    "bag of words": word_baseline,
    "languages": languages,
    "odd characters": odd_characters,
    "refusals": refusals,
    "near-duplicates": near_repeats,
}
CHECKS: Checks = OF_ALL | OF_SAMPLE


def examine(
    train: Sequence[Example],
    heldout: Sequence[Example],
    *,
    train_counts: Counts,
    heldout_counts: Counts,
    template: Template,
    max_length: int,
    pairs: int | None = 20_000,
    seconds: float | None = None,
) -> Report:
    """What is wrong with the data, with numbers and fixes.

    Args:
        train: examples by index, each read twice at most; never all of them at once where they know their hashes and
            lengths, as `Examples` do.
        heldout: the same of the other split.
        train_counts: what was dropped and cut on the way.
        heldout_counts: the same of the other split.
        template: tokenizer and chat template.
        max_length: data.max_length.
        pairs: of each split that the checks of texts and tokens look at, at most, evenly spaced; fewer where they are
            so long that they fill memory. None looks at all.
        seconds: CPU time that the examination may take; the sample shrinks to it, and what still does not fit is
            named in `skipped`.
    """
    started = time.process_time()
    deadline = None if seconds is None else started + seconds
    whole = (Whole.of(train, "train"), Whole.of(heldout, "heldout"))
    most = max(len(train), len(heldout))
    if pairs is not None:
        most = _largest(whole, MOST_WEIGHT, min(most, pairs))

    def case(size: int) -> Case:
        train, heldout = (Sample.of(split, size) for split in whole)
        return Case(train, heldout, train_counts, heldout_counts, template, max_length, whole)

    def look(size: int) -> Report:
        report = _reported(case(size), of_all, deadline)
        return replace(report, seconds=round(time.process_time() - started, 3))

    of_all = _results(OF_ALL, case(0), deadline)
    if deadline is None:
        return look(most)
    before = time.process_time()
    first = _largest(whole, FIRST_WEIGHT, min(FIRST, most))
    report = look(first)
    now = time.process_time()
    rate = (now - before) / max(1, _weight(whole, first))
    size = _largest(whole, CAREFUL * (deadline - now) / max(rate, 1e-12), most)
    if report.skipped or size <= first or (size < most and size < 2 * first):
        return report
    return look(size)


def _weight(whole: Sequence[Whole], size: int) -> int:
    """What a look at `size` pairs of each split costs, in tokens."""
    return sum(int(split.lengths[split.spread(size)].sum()) + PAIR * min(size, len(split)) for split in whole)


def _largest(whole: Sequence[Whole], weight: float, most: int) -> int:
    """The largest size up to `most` that weighs no more than `weight`, or 1."""
    return min(most, max(1, bisect_right(range(most + 1), weight, key=lambda size: _weight(whole, size)) - 1))


def _results(checks: Checks, case: Case, deadline: float | None) -> dict[str, Result]:
    """Of the checks for which there is time."""
    return {name: check(case) for name, check in checks.items() if deadline is None or time.process_time() < deadline}


def _reported(case: Case, of_all: dict[str, Result], deadline: float | None) -> Report:
    results = of_all | _results(OF_SAMPLE, case, deadline)
    numbers: dict[str, Number] = {}
    for result in results.values():
        numbers.update(result.numbers)
    findings = [finding for result in results.values() for finding in result.findings]
    return Report(
        tuple(sorted(findings, key=lambda f: SEVERITIES.index(f.severity))),
        numbers,
        length_histograms(case),
        {
            "train": len(case.whole[0]),
            "train/looked_at": len(case.train),
            "heldout": len(case.whole[1]),
            "heldout/looked_at": len(case.heldout),
        },
        tuple(name for name in CHECKS if name not in results),
    )
