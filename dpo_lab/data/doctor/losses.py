"""What was left out or cut before training, and whether that is too much."""

from dpo_lab.data.doctor.case import Case, Marked, Result, graded, mask_of, pairs_word, shown
from dpo_lab.data.doctor.findings import Finding, Place
from dpo_lab.data.doctor.statistics import percent
from dpo_lab.data.doctor.whole import Whole
from dpo_lab.data.formats import NO_PARTNER
from dpo_lab.data.types import Counts

MOST = 0.5  # left out: what remains is another data set
MANY = 0.05  # left out or cut
CUT_MANY = 0.2  # cut: the answers that stay end in the middle
NAMES = {"train": "training", "heldout": "held-out"}
EMPTY = ("empty-answers", "Drop these rows at their source, or correct data.columns if the column is the wrong one.")
LONG = ("too-long", "Raise data.max_length, or keep them cut: data.truncation=cut_both.")
REFUSED = ("refused-by-template", "Choose another template=, or take out the turns that it refuses.")
HELD_OUT = "held-out-prompts"
CHECKS = {  # why tokenisation left a pair out -> check and fix
    "empty prompt": EMPTY,
    "empty answer": EMPTY,
    "identical answers": (
        "identical-answers",
        "Such pairs teach nothing: drop them at their source, or correct data.columns.",
    ),
    "identical answers after cutting": (
        "identical-when-cut",
        "Raise data.max_length, so that what makes the answers different is kept.",
    ),
    "prompt longer than data.max_length": LONG,
    "prompt and answer longer than data.max_length": LONG,
    "prompt is held out": (
        HELD_OUT,
        "Nothing to do: they were kept out of training so that the evaluation stays honest.",
    ),
}
FAULTY = (
    "faulty-rows",
    "data.on_error=drop left them out. Look at the rows named here: correct them, or the options by which they are read "
    "(data.format, data.columns).",
)
UNPAIRED = "unpaired-rows"
OF_ROWS = (UNPAIRED, FAULTY[0])
UNPAIRED_FIXES = {
    NO_PARTNER: "A prompt needs a good and a bad answer: each of either kind is used once.",
    "scores differ by less than data.min_margin": "Lower data.min_margin, if more of them are wanted.",
}


def left_out(case: Case) -> Result:
    """Rows that gave no pair, pairs that were dropped, by reason, and pairs that were cut."""
    result = Result()
    for whole, counts in zip(case.whole, (case.train_counts, case.heldout_counts), strict=True):
        split = whole.split
        dropped = {check: reasons for check, reasons in _by_check(counts).items() if check not in OF_ROWS}
        sizes = {check: sum(counts.dropped[reason] for reason in reasons) for check, reasons in dropped.items()}
        total = counts.kept + sum(sizes.values())
        lost = sum(sizes.values()) - sizes.get(HELD_OUT, 0)
        result.numbers[f"{split}/kept"] = counts.kept
        result.numbers[f"{split}/dropped"] = sum(sizes.values())
        for kind in ("unpaired", "faulty"):
            rows = [n for reason, n in counts.dropped.items() if counts.kinds.get(reason) == kind]
            result.numbers[f"{split}/{kind}_rows"] = sum(rows)
        result.findings.extend(_rows_without(whole, counts))
        result.findings.extend(_dropped(split, check, reasons, total, counts) for check, reasons in dropped.items())
        for what, count in counts.cut.items():
            result.numbers[f"{split}/{what.replace(' ', '_')}"] = count
            result.findings.append(_cut(split, what, count, counts))
        if total and lost / total >= MOST and len(sizes.keys() - {HELD_OUT}) > 1:
            result.findings.append(
                Finding(
                    "mostly-dropped",
                    "error",
                    f"{lost:,} of {total:,} {NAMES[split]} pairs ({percent(lost / total)}) were left out.",
                    "What remains is another data set than the one you gave. See the reasons below.",
                    count=lost,
                    share=lost / total,
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


def _check_of(reason: str, kind: str | None) -> tuple[str, str]:
    """The check and the fix of a reason; the kind is that of rows which gave no pair."""
    if kind == "unpaired":
        return UNPAIRED, UNPAIRED_FIXES.get(
            reason, "Nothing to do, unless they should: then look at the rows named here."
        )
    if kind is None and reason.startswith("refused by the chat template: "):
        return REFUSED
    return FAULTY if kind else CHECKS.get(reason, FAULTY)


def _by_check(counts: Counts) -> dict[str, list[str]]:
    """The reasons that concern the same check."""
    found: dict[str, list[str]] = {}
    for reason in counts.dropped:
        found.setdefault(_check_of(reason, counts.kinds.get(reason))[0], []).append(reason)
    return found


def _rows_without(whole: Whole, counts: Counts) -> list[Finding]:
    """Findings about rows that gave no pair, against all rows: those that gave one, or more, and those that did not."""
    found = {check: reasons for check, reasons in _by_check(counts).items() if check in OF_ROWS}
    if not found:
        return []
    used = whole.rows_of_source * (2 if NO_PARTNER in counts.dropped else 1)  # single answers: two rows a pair
    total = used + sum(counts.dropped[reason] for reasons in found.values() for reason in reasons)
    findings = []
    for check, reasons in found.items():
        count = sum(counts.dropped[reason] for reason in reasons)
        share = count / total
        sound = check == UNPAIRED
        findings.append(
            Finding(
                check,
                graded(share, warning=MOST) if sound else graded(share, warning=MANY, error=MOST),
                f"{count:,} of {total:,} rows with {NAMES[whole.split]} data ({percent(share)}) "
                f"{'gave no pair' if sound else 'could not be used'}: {_named(reasons, counts)}.",
                _fixes(reasons, counts),
                count,
                share,
                _places(whole.split, reasons, counts),
            )
        )
    return findings


def _dropped(split: str, check: str, reasons: list[str], total: int, counts: Counts) -> Finding:
    count = sum(counts.dropped[reason] for reason in reasons)
    share = count / max(1, total)
    return Finding(
        check,
        "info" if check == HELD_OUT else graded(share, warning=MANY, error=MOST),
        f"{count:,} of {total:,} {NAMES[split]} pairs ({percent(share)}) were left out: {_named(reasons, counts)}.",
        _fixes(reasons, counts),
        count,
        share,
        _places(split, reasons, counts),
    )


def _named(reasons: list[str], counts: Counts) -> str:
    return ", ".join(f"{reason} ({counts.dropped[reason]:,})" if len(reasons) > 1 else reason for reason in reasons)


def _fixes(reasons: list[str], counts: Counts) -> str:
    return " ".join(dict.fromkeys(_check_of(reason, counts.kinds.get(reason))[1] for reason in reasons))


def _places(split: str, reasons: list[str], counts: Counts) -> tuple[Place, ...]:
    return tuple(
        Place(counts.first_file.get(reason, ""), counts.first_row[reason], split)
        for reason in reasons
        if reason in counts.first_row
    )


def _cut(split: str, what: str, count: int, counts: Counts) -> Finding:
    share = count / max(1, counts.kept)
    if "thought" in what:
        return Finding(
            "thoughts-left-out",
            "warning",
            f"In {count:,} {split} pairs an answer's thought was left out: the template puts an empty one in its place.",
            "To train on the thoughts set template.enable_thinking=true, or choose a template that keeps them.",
            count,
            share,
            (Place(counts.first_file.get(what, ""), counts.first_row[what], split),)
            if what in counts.first_row
            else (),
        )
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
