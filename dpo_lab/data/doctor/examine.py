"""The examination: every check on a sample that fits the time there is."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from dpo_lab.data.doctor.case import Case, Result
from dpo_lab.data.doctor.ends import length_histograms, special_tokens, token_lengths
from dpo_lab.data.doctor.findings import SEVERITIES, Finding, Number, Report
from dpo_lab.data.doctor.losses import alike_answers, left_out
from dpo_lab.data.doctor.markers import marked_texts, template_tokens
from dpo_lab.data.doctor.repeats import exact_leakage, exact_repeats, near_repeats
from dpo_lab.data.doctor.sample import Sample
from dpo_lab.data.doctor.shortcuts import enough_heldout, length_bias, refusals, word_baseline
from dpo_lab.data.doctor.turns import role_order
from dpo_lab.data.doctor.writing import languages, odd_characters
from dpo_lab.data.templates import Template
from dpo_lab.data.types import Counts, Example

FIRST = 256  # pairs of the first look, which tells what a pair costs
PROBED, TOKENS = 32, 16_000_000  # examples whose length is looked at first; tokens of a sample, which bound its memory
CAREFUL = 0.7  # of the time left is planned for
CHECKS: dict[str, Callable[[Case], Result]] = {  # what matters most and costs least comes first
    "left out and cut": left_out,
    "beginning and end": special_tokens,
    "template": template_tokens,
    "held-out pairs": enough_heldout,
    "token lengths": token_lengths,
    "length bias": length_bias,
    "leaked prompts": exact_leakage,
    "repeated pairs": exact_repeats,
    "role order": role_order,
    "alike answers": alike_answers,
    "template markers": marked_texts,
    "bag of words": word_baseline,
    "languages": languages,
    "odd characters": odd_characters,
    "refusals": refusals,
    "near-duplicates": near_repeats,
}


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
        train: examples by index, each read three times at most; never all of them at once.
        heldout: the same of the other split.
        train_counts: what was dropped and cut on the way.
        heldout_counts: the same of the other split.
        template: tokenizer and chat template.
        max_length: data.max_length.
        pairs: of each split that are looked at, at most, evenly spaced; fewer where they are so long that they fill
            memory. None looks at all.
        seconds: CPU time that the examination may take; the sample shrinks to it, and what still does not fit is
            named in `skipped`.
    """
    started = time.process_time()
    most = max(len(train), len(heldout))
    if pairs is not None:
        most = min(most, pairs, _fitting(train or heldout))

    def look(size: int) -> Report:
        case = Case(
            Sample.of(train, size, "train"),
            Sample.of(heldout, size, "heldout"),
            *(train_counts, heldout_counts, template, max_length, (len(train), len(heldout))),
        )
        report = _checked(case, None if seconds is None else started + seconds)
        return replace(report, seconds=round(time.process_time() - started, 3))

    if seconds is None:
        return look(most)
    report = look(min(FIRST, most))
    spent = time.process_time() - started
    seen = report.sizes["train/looked_at"] + report.sizes["heldout/looked_at"]
    affordable = int(CAREFUL * (seconds - spent) / max(spent / max(1, seen), 1e-9))
    size = _size_for(affordable, len(train), len(heldout), most)
    if report.skipped or size < 2 * min(FIRST, most):
        return report
    return look(size)


def _fitting(examples: Sequence[Example]) -> int:
    """How many examples have TOKENS tokens."""
    count = min(PROBED, len(examples))
    probed = [sum(examples[i * len(examples) // count].lengths) for i in range(count)]
    return int(TOKENS * count / max(1, sum(probed)))


def _size_for(affordable: int, train: int, heldout: int, most: int) -> int:
    """The largest sample of each split that keeps both together within `affordable` pairs."""
    smaller, larger = sorted((train, heldout))
    size = affordable // 2 if affordable < 2 * smaller else affordable - smaller
    return min(size, larger, most)


def _checked(case: Case, deadline: float | None) -> Report:
    findings: list[Finding] = []
    numbers: dict[str, Number] = {}
    skipped = []
    for name, check in CHECKS.items():
        if deadline is not None and time.process_time() >= deadline:
            skipped.append(name)
            continue
        result = check(case)
        findings += result.findings
        numbers.update(result.numbers)
    return Report(
        tuple(sorted(findings, key=lambda f: SEVERITIES.index(f.severity))),
        numbers,
        length_histograms(case),
        {
            "train": case.sizes[0],
            "train/looked_at": len(case.train),
            "heldout": case.sizes[1],
            "heldout/looked_at": len(case.heldout),
        },
        tuple(skipped),
    )
