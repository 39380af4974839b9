"""Scripts, and characters that should not be there.

N texts, K classes of characters.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from dpo_lab.data.doctor.case import Case, Marked, Result, graded, pairs_word, shown
from dpo_lab.data.doctor.findings import Finding
from dpo_lab.data.doctor.sample import Ints, Sample
from dpo_lab.data.doctor.statistics import percent

READ = 10_000  # characters of a text
CHUNK = 512  # texts at a time
LETTERS = 20  # that a text must have before it is of a script
SHARE = 0.01  # of the pairs whose answers differ in script: more is a habit
ONE_SIDED = 0.05  # how much oftener one side leaves the prompt's script
DAMAGED = 0.001  # of the pairs with control or replacement characters

NONE, CONTROL, LOST = 0, 1, 2  # classes that are no script
SCRIPTS = {  # class -> name and ranges of code points, as far as chats use them
    3: ("Latin", ((0x41, 0x5A), (0x61, 0x7A), (0xC0, 0xD6), (0xD8, 0xF6), (0xF8, 0x24F), (0x1E00, 0x1EFF))),
    4: ("Greek", ((0x370, 0x3FF), (0x1F00, 0x1FFF))),
    5: ("Cyrillic", ((0x400, 0x52F),)),
    6: ("Hebrew", ((0x5D0, 0x5EA),)),
    7: ("Arabic", ((0x620, 0x6D3), (0x750, 0x77F), (0xFB50, 0xFDFF), (0xFE70, 0xFEFC))),
    8: ("Devanagari", ((0x900, 0x963), (0x970, 0x97F))),
    9: ("Bengali", ((0x980, 0x9E3),)),
    10: ("Tamil", ((0xB80, 0xBE5),)),
    11: ("Thai", ((0xE01, 0xE4E),)),
    12: ("Hangul", ((0x1100, 0x11FF), (0xAC00, 0xD7A3))),
    13: ("Japanese", ((0x3041, 0x30FF),)),
    14: ("Han", ((0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x323AF))),
}
CLASSES = max(SCRIPTS) + 1
HAN, JAPANESE, HANGUL = 14, 13, 12
DENSE = {HAN: 3, JAPANESE: 2, HANGUL: 2}  # letters of an alphabet that a character stands for


def languages(case: Case) -> Result:
    """Scripts of prompts and answers, and where the answers of a pair differ in theirs."""
    differs, leaves, known = [], np.zeros(2, np.int64), 0
    result, tally = Result(), np.zeros(CLASSES, np.int64)
    for sample in case.samples:
        chosen = scripts_of([p.chosen for p in sample.pairs])
        rejected = scripts_of([p.rejected for p in sample.pairs])
        prompts = scripts_of([_question(sample, i) for i in range(len(sample))])
        tally += np.bincount(chosen, minlength=CLASSES)
        differs.append((chosen != rejected) & (chosen > 0) & (rejected > 0))
        clear = (chosen > 0) & (rejected > 0) & (prompts > 0)
        known += int(clear.sum())
        leaves += [int((clear & (answers != prompts)).sum()) for answers in (chosen, rejected)]
    for script, (name, _) in SCRIPTS.items():
        if tally[script]:
            result.numbers[f"languages/{name}"] = float(tally[script] / max(1, len(case)))
    found = Marked.of(case, differs)
    result.numbers["languages/answers_differ"] = found.share
    if found.count:
        result.findings.append(_differing(found))
    away = leaves / max(1, known)
    result.numbers["languages/chosen_leaves_prompt"] = float(away[0])
    result.numbers["languages/rejected_leaves_prompt"] = float(away[1])
    if abs(away[0] - away[1]) >= ONE_SIDED:
        result.findings.append(_one_sided(away, leaves))
    return result


def odd_characters(case: Case) -> Result:
    """Control characters, and U+FFFD: what a decoder writes where it lost one."""
    masks: dict[int, list[Any]] = {CONTROL: [], LOST: []}
    example = {CONTROL: "", LOST: ""}
    for sample in case.samples:
        texts = ["".join((p.chosen, "\n", p.rejected, "\n", *(m["content"] for m in p.prompt))) for p in sample.pairs]
        counts = classes_of(texts)
        for kind, parts in masks.items():
            parts.append(counts[:, kind] > 0)
            if not example[kind] and parts[-1].any():
                text = texts[int(np.argmax(parts[-1]))]
                at = next(i for i, c in enumerate(text) if _table()[ord(c)] == kind)
                example[kind] = shown(text[:at] + repr(text[at])[1:-1] + text[at + 1 :], at)
    result = Result()
    for kind, check, what, fix in (
        (CONTROL, "control-characters", "Control characters", "Remove them at the source: nobody types them."),
        (LOST, "lost-characters", "U+FFFD, which stands where a character was lost,", "Read the source with its own "
         "encoding (UTF-8, GB18030, ...) and write it again as UTF-8."),
    ):  # fmt: skip
        found = Marked.of(case, masks[kind])
        result.numbers[f"characters/{check.split('-')[0]}"] = found.count
        if found.count:
            result.findings.append(
                Finding(
                    check,
                    graded(found.share, warning=DAMAGED),
                    f"{what} in {pairs_word(found.count)} ({percent(found.share)}).",
                    fix,
                    found.count,
                    found.share,
                    found.rows,
                    example[kind],
                )
            )
    return result


def scripts_of(texts: Sequence[str]) -> Ints:
    """The class of the script that most of each text is in (N,); 0 where it has too few letters.

    Chinese characters among kana are Japanese.
    """
    letters = classes_of(texts)
    letters[:, : min(SCRIPTS)] = 0
    japanese = 10 * letters[:, JAPANESE] > letters[:, HAN]
    letters[japanese, JAPANESE] += letters[japanese, HAN]
    letters[japanese, HAN] = 0
    for script, weight in DENSE.items():
        letters[:, script] *= weight
    return np.where(letters.sum(axis=1) >= LETTERS, letters.argmax(axis=1), 0)


def classes_of(texts: Sequence[str]) -> Ints:
    """How many characters of each class each text has (N, K)."""
    counts = [np.zeros((0, CLASSES), np.int64)]
    for start in range(0, len(texts), CHUNK):
        chunk = [text[:READ] for text in texts[start : start + CHUNK]]
        codes = np.frombuffer("".join(chunk).encode("utf-32-le", "surrogatepass"), np.uint32)
        owners = np.repeat(np.arange(len(chunk)), [len(text) for text in chunk])
        cells = owners * CLASSES + _table()[codes]
        counts.append(np.bincount(cells, minlength=len(chunk) * CLASSES).reshape(len(chunk), CLASSES))
    return np.concatenate(counts)


@cache
def _table() -> Any:
    """The class of every code point."""
    table = np.zeros(0x110000, np.uint8)
    table[:0x20] = CONTROL
    table[[0x09, 0x0A, 0x0D]] = NONE
    table[0x7F:0xA0] = CONTROL
    table[0xD800:0xE000] = CONTROL
    table[0xFEFF] = CONTROL
    table[0xFFFD] = LOST
    for script, (_, ranges) in SCRIPTS.items():
        for first, last in ranges:
            table[first : last + 1] = script
    return table


def _question(sample: Sample, i: int) -> str:
    return next((m["content"] for m in reversed(sample.pairs[i].prompt) if m["role"] == "user"), "")


def _differing(found: Marked) -> Finding:
    return Finding(
        "answers-in-two-languages",
        graded(found.share, warning=SHARE),
        f"In {pairs_word(found.count)} ({percent(found.share)}) the chosen and the rejected answer are written in "
        "different scripts.",
        "If the language is not the preference, drop them: it is easier to learn than anything else in the pair.",
        found.count,
        found.share,
        found.rows,
    )


def _one_sided(away: Any, leaves: Any) -> Finding:
    side = "chosen" if away[0] > away[1] else "rejected"
    return Finding(
        "language-of-the-prompt",
        "warning",
        f"Chosen answers leave the script of their prompt in {percent(away[0])} of the pairs, rejected ones in "
        f"{percent(away[1])}: the language tells them apart.",
        f"Balance it, or drop the pairs whose {side} answer is in another language, unless that is what you teach.",
        int(leaves.max()),
        float(away.max()),
    )
