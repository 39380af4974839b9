"""What was left out or cut before training, and whether that is too much."""

from dpo_lab.data.doctor.case import Case, Marked, Result, graded, mask_of, pairs_word, shown
from dpo_lab.data.doctor.findings import Finding, Place
from dpo_lab.data.doctor.statistics import percent
from dpo_lab.data.types import Counts

MOST = 0.5  # left out: what remains is another data set
MANY = 0.05  # left out or cut
CUT_MANY = 0.2  # cut: the answers that stay end in the middle
NAMES = {"train": "training", "heldout": "held-out"}
FAULTY = ("faulty-rows", "Correct the row named here, or leave such rows out with data.on_error=drop.")
FIXES = {  # a word of the reason -> check and fix
    "empty": (
        "empty-answers",
        "Drop these rows at their source, or correct data.columns if the column is the wrong one.",
    ),
    "identical": ("identical-answers", "Such pairs teach nothing: drop them at their source, or correct data.columns."),
    "longer": ("too-long", "Raise data.max_length, or keep them cut: data.truncation=cut_both."),
    "refused": ("refused-by-template", "Choose another template=, or take out the turns that it refuses."),
    "held out": (
        "held-out-prompts",
        "Nothing to do: they were kept out of training so that the evaluation stays honest.",
    ),
}


def left_out(case: Case) -> Result:
    """Pairs that were dropped, by reason, and pairs that were cut."""
    result = Result()
    for split, counts in (("train", case.train_counts), ("heldout", case.heldout_counts)):
        total = counts.kept + sum(counts.dropped.values())
        dropped = sum(counts.dropped.values())
        result.numbers[f"{split}/kept"] = counts.kept
        result.numbers[f"{split}/dropped"] = dropped
        for check, reasons in _by_check(counts).items():
            result.findings.append(_dropped(split, check, reasons, total, counts))
        for what, count in counts.cut.items():
            result.numbers[f"{split}/{what.replace(' ', '_')}"] = count
            result.findings.append(_cut(split, what, count, counts))
        if total and dropped / total >= MOST and len(counts.dropped) > 1:
            result.findings.append(
                Finding(
                    "mostly-dropped",
                    "error",
                    f"{dropped:,} of {total:,} {NAMES[split]} pairs ({percent(dropped / total)}) were left out.",
                    "What remains is another data set than the one you gave. See the reasons below.",
                    count=dropped,
                    share=dropped / total,
                )
            )
    return result


def alike_answers(case: Case) -> Result:
    """Answers that differ in white space or case alone."""
    masks = [mask_of(_alike(p.chosen, p.rejected) for p in sample.pairs) for sample in case.samples]
    found = Marked.of(case, masks)
    result = Result(numbers={"alike_answers/share": found.share})
    if found.count:
        example = next(
            p for s, m in zip(case.samples, masks, strict=True) for p, hit in zip(s.pairs, m, strict=True) if hit
        )
        result.findings.append(
            Finding(
                "alike-answers",
                graded(found.share, warning=0.01, error=MOST),
                f"{pairs_word(found.count)} ({percent(found.share)}) have two answers that differ in white space or "
                "letter case alone.",
                "Drop them: the loss would push two spellings of one answer apart.",
                found.count,
                found.share,
                found.rows,
                shown(example.chosen),
            )
        )
    return result


def _alike(chosen: str, rejected: str) -> bool:
    if chosen.lstrip()[:1].lower() != rejected.lstrip()[:1].lower():  # nearly always decides, and costs nothing
        return False
    return chosen.split() == rejected.split() or chosen.casefold().split() == rejected.casefold().split()


def _by_check(counts: Counts) -> dict[str, list[str]]:
    """The reasons that concern the same check."""
    found: dict[str, list[str]] = {}
    for reason in counts.dropped:
        check = next((check for key, (check, _) in FIXES.items() if key in reason), FAULTY[0])
        found.setdefault(check, []).append(reason)
    return found


def _dropped(split: str, check: str, reasons: list[str], total: int, counts: Counts) -> Finding:
    count = sum(counts.dropped[reason] for reason in reasons)
    share = count / max(1, total)
    severity = "info" if check == "held-out-prompts" else graded(share, warning=MANY, error=MOST)
    named = [f"{reason} ({counts.dropped[reason]:,})" if len(reasons) > 1 else reason for reason in reasons]
    return Finding(
        check,
        severity,
        f"{count:,} of {total:,} {NAMES[split]} pairs ({percent(share)}) were left out: {', '.join(named)}.",
        dict([*FIXES.values(), FAULTY])[check],
        count,
        share,
        tuple(
            Place(counts.first_file.get(reason, ""), counts.first_row[reason], split)
            for reason in reasons
            if reason in counts.first_row
        ),
    )


def _cut(split: str, what: str, count: int, counts: Counts) -> Finding:
    share = count / max(1, counts.kept)
    answers = "answer" in what
    return Finding(
        "cut-answers" if answers else "cut-prompts",
        graded(share, warning=MANY if answers else CUT_MANY),
        f"{what.capitalize()} in {count:,} of {counts.kept:,} {NAMES[split]} pairs ({percent(share)})."
        + (" A cut answer has no end of turn: the model is not shown where it ends." if answers else ""),
        "Raise data.max_length so that fewer are, or drop them with data.truncation=drop.",
        count,
        share,
        (Place(counts.first_file.get(what, ""), counts.first_row[what], split),) if what in counts.first_row else (),
    )
