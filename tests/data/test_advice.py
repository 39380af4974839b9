"""Where nothing is left to train on, what to do is said by the commonest reason, and is not what is done already."""

from typing import Any

import pytest
from toys import data_config

from dpo_lab.data.prepare import _advice
from dpo_lab.data.types import Counts

LONG = ("prompt longer than data.max_length", "prompt and answer longer than data.max_length")
CUT = "identical answers after cutting"


def advice(*reasons: str, kinds: tuple[str, ...] = (), **changes: Any) -> str:
    """What is said where the first reason is the commonest."""
    counts = Counts()
    for i, reason in enumerate(reasons):
        counts.drop(reason, 1, len(reasons) - i, kind=dict(enumerate(kinds)).get(i, ""))
    return _advice(counts, data_config(**changes))


@pytest.mark.parametrize("reason", [*LONG, CUT])
@pytest.mark.parametrize("truncation", ["drop", "cut_prompt", "cut_answer", "cut_both"])
def test_a_setting_that_is_already_set_is_not_advised(reason: str, truncation: str) -> None:
    text = advice(reason, truncation=truncation, max_length=77)
    assert "Raise data.max_length=77" in text
    assert ("data.truncation=cut_both" in text) == (truncation != "cut_both")


@pytest.mark.parametrize(
    "reason",
    ["the column longer_answer is missing", "refused: the label is no number", "an answer was cutting, held out"],
)
def test_rows_that_gave_no_pair_have_advice_of_their_own_whatever_words_their_reason_has(reason: str) -> None:
    faulty, unpaired = advice(reason, kinds=("faulty",)), advice(reason, kinds=("unpaired",))
    assert "data.columns" in faulty
    assert "data.format" in faulty
    assert "kto" in unpaired
    assert "data.min_margin" in unpaired
    for text in (faulty, unpaired):
        assert "max_length" not in text
        assert "template" not in text
        assert "eval_fraction" not in text


def test_the_commonest_reason_decides() -> None:
    assert "data.columns" in advice("a fault", LONG[0], kinds=("faulty",))
    assert "data.max_length" in advice(LONG[0], "a fault", kinds=("", "faulty"))
    assert "template=" in advice("refused by the chat template: roles must alternate", LONG[0])
    assert "data.eval_fraction" in advice("prompt is held out", LONG[0])
    assert "data.eval_fraction" in advice()
    assert "other files" in advice(eval_path="held.jsonl")
    assert "row named first" in advice("empty answer", LONG[0])
