"""Pairs that occur again, contradict each other, or stand on both sides of the split."""

from collections.abc import Sequence

import numpy as np

from dpo_lab.data.doctor.case import Case, Result, graded, shown
from dpo_lab.data.doctor.findings import Finding
from dpo_lab.data.doctor.hashing import Bools, again, distinct, joined, met, repeated, within
from dpo_lab.data.doctor.sample import Ragged, Sample
from dpo_lab.data.doctor.similar import SIMILAR, near_duplicates
from dpo_lab.data.doctor.statistics import percent
from dpo_lab.data.doctor.whole import Ints, Whole

REPEATED = 0.01  # of the pairs: more shifts the weight of what they say
REPEATED_MOST = 0.5
CONTRADICTING = 0.005
LEAKED = 0.01  # of the held-out prompts that resemble a training prompt
SHARED = 5  # prompts with the same system message, from which on what they begin and end with is left out


def exact_repeats(case: Case) -> Result:
    """The same prompt and answers again, or with the answers swapped, or an answer once chosen and once rejected."""
    result, (train, heldout) = Result(), case.whole
    prompts = distinct(train.prompts)
    result.numbers["repeats/prompts"] = prompts
    result.numbers["repeats/pairs_per_prompt"] = len(train) / max(1, prompts)
    twice, swapped, both = _ranked_again(train)
    _add(result, "exact-duplicates", train, twice, REPEATED, "the same prompt and answers occur before",
         "Drop the repetitions: each counts as often as it occurs.", error=REPEATED_MOST)  # fmt: skip
    _add(result, "contradicting-pairs", train, swapped, CONTRADICTING,
         "another pair has the same prompt and the two answers swapped",
         "Keep the judgement that you trust, or drop both: together they teach nothing.", error=REPEATED_MOST)  # fmt: skip
    _add(result, "chosen-and-rejected", train, both, 2.0,
         "another pair of the same prompt ranks one of the answers the other way",
         "Expected where several answers are ranked (data.ranking); else check the labels.")  # fmt: skip
    _add(result, "heldout-duplicates", heldout, again(joined(*heldout.keys.T)), REPEATED,
         "the same prompt and answers occur before",
         "Drop the repetitions: they add nothing to what an accuracy is measured on.", what="held-out pair")  # fmt: skip
    return result


def _ranked_again(whole: Whole) -> tuple[Bools, Bools, Bools]:
    """Pairs (N,) that occur before, that occur with the answers swapped, and others with an answer ranked otherwise."""
    masks = (np.zeros(len(whole), bool), np.zeros(len(whole), bool), np.zeros(len(whole), bool))
    prompts, chosen, rejected = whole.keys.T
    either = joined(prompts, chosen ^ rejected)  # the two answers, in whichever order
    same = np.flatnonzero(repeated(either))
    masks[0][same] = again(joined(prompts[same], chosen[same], rejected[same]))
    orders = (same[chosen[same] < rejected[same]], same[chosen[same] > rejected[same]])
    for order, marks in zip(orders, met(*(either[order] for order in orders)), strict=True):
        masks[1][order] = marks
    there = np.flatnonzero(repeated(prompts))  # all others have their prompt to themselves
    better, worse = met(joined(prompts[there], chosen[there]), joined(prompts[there], rejected[there]))
    masks[2][there] = (better | worse) & ~masks[1][there]
    return masks


def exact_leakage(case: Case) -> Result:
    """Held-out prompts that are trained on."""
    train, heldout = case.whole
    result = Result()
    _add(result, "leaked-prompts", heldout, within(heldout.prompts, train.prompts), 0.0, "the prompt is trained on",
         "Split by prompt: leave data.eval_path out, or take these prompts from one of the two files.",
         error=0.0, what="held-out pair")  # fmt: skip
    return result


def near_repeats(case: Case) -> Result:
    """Pairs that are nearly the same (MinHash), within training and between training and evaluation."""
    train, heldout = own_prompts(case)
    result = Result()
    documents = [
        np.concatenate([prompt, case.train.chosen[i], case.train.rejected[i]]) for i, prompt in enumerate(train)
    ]
    exact = joined(*case.train.keys.T)
    alike = [(i, j) for i, j in near_duplicates(Ragged.of(documents)) if exact[i] != exact[j]]
    mask = np.zeros(len(case.train), bool)
    mask[[j for _, j in alike]] = True
    _add(result, "near-duplicates", case.train, mask, 0.05,
         f"nearly the same as another, with at least {SIMILAR:.0%} of their runs of tokens in common",
         "Keep one of each group, or accept that its content weighs more.",
         example=_example(case.train, alike))  # fmt: skip
    pairs = near_duplicates(Ragged.of([*train, *heldout]), split_at=len(train))
    pairs = [(i, j - len(train)) for i, j in pairs if case.train.keys[i, 0] != case.heldout.keys[j - len(train), 0]]
    leaked = np.zeros(len(case.heldout), bool)
    leaked[[j for _, j in pairs]] = True
    _add(result, "near-leakage", case.heldout, leaked, LEAKED,
         "the prompt is nearly the same as one that is trained on",
         "Held-out accuracy will look better than it is on new prompts. Take out one of each two, or hold out whole "
         "topics by data.eval_path.", what="held-out pair",
         example=" | ".join(shown(_last(s, i)) for s, i in [(case.train, pairs[0][0]), (case.heldout, pairs[0][1])])
         if pairs else "")  # fmt: skip
    return result


def own_prompts(case: Case) -> tuple[list[Ints], list[Ints]]:
    """The prompts of both splits as far as they are their own.

    Tokens that all prompts with the same system message begin or end with are left out: a long one in common would
    make all prompts alike.
    """
    groups: dict[str, list[tuple[int, int]]] = {}
    for split, sample in enumerate(case.samples):
        for i, pair in enumerate(sample.pairs):
            system = "\n".join(m["content"] for m in pair.prompt if m["role"] == "system")
            groups.setdefault(system, []).append((split, i))
    parts = ([*map(case.train.prompts.__getitem__, range(len(case.train)))],
             [*map(case.heldout.prompts.__getitem__, range(len(case.heldout)))])  # fmt: skip
    for members in groups.values():
        if len({int(case.samples[split].keys[i, 0]) for split, i in members}) < SHARED:
            continue
        head, tail = common_ends([parts[split][i] for split, i in members])
        for split, i in members:
            ids = parts[split][i]
            parts[split][i] = ids[head : max(head, len(ids) - tail)]
    return parts


def common_ends(prompts: Sequence[Ints]) -> tuple[int, int]:
    """How many tokens all prompts begin with and end with."""
    first = prompts[0]
    head = tail = min(len(p) for p in prompts)
    for other in prompts[1:]:
        head = _agreement(first[:head], other[:head])
        tail = _agreement(first[len(first) - tail :][::-1], other[len(other) - tail :][::-1])
    return head, tail


def _agreement(a: Ints, b: Ints) -> int:
    """How many elements two sequences of one length have in common at their beginning."""
    differs = a != b
    return int(differs.argmax()) if differs.any() else len(a)


def _add(
    result: Result,
    check: str,
    pairs: Sample | Whole,
    mask: Bools,
    warning: float,
    text: str,
    fix: str,
    *,
    error: float = 2.0,
    what: str = "training pair",
    example: str = "",
) -> None:
    """Count what a mask marks, and report it if it is anything."""
    count, share = int(mask.sum()), float(mask.sum() / max(1, len(pairs)))
    result.numbers[f"repeats/{check.replace('-', '_')}"] = share
    if count:
        severity = graded(share, warning=warning, error=error)
        of = "all" if isinstance(pairs, Whole) else "those looked at"
        message = f"{count:,} {what}{'' if count == 1 else 's'} ({percent(share)} of {of}): {text}."
        result.findings.append(Finding(check, severity, message, fix, count, share, pairs.places(mask), example))


def _example(sample: Sample, alike: list[tuple[int, int]]) -> str:
    return " | ".join(shown(_last(sample, i)) for i in alike[0]) if alike else ""


def _last(sample: Sample, i: int) -> str:
    return sample.pairs[i].prompt[-1]["content"]
