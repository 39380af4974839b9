"""Several answers to a prompt make the pairs that are asked for."""

import pytest
from rows import RANKED, SHORT, both, message, read

from dpo_lab.data.formats import BadRow, Unpaired
from dpo_lab.runtime.errors import DataError


@pytest.mark.parametrize(
    ("ranking", "expected"),
    [
        ("all", ["best>middle", "best>worst", "middle>worst"]),
        ("best_worst", ["best>worst"]),
        ("adjacent", ["best>middle", "middle>worst"]),
    ],
)
def test_ranked_answers_make_the_pairs_that_are_asked_for(ranking, expected):
    texts = {"worst": 3, "best": 1, "middle": 2}
    for row in (
        {"prompt": "Why?", "answers": RANKED},
        {"prompt": "Why?", "responses": list(texts), "ranks": list(texts.values())},
        {"prompt": "Why?", "answers": ["best", "middle", "worst"]},
        {"prompt": "Why?", "answers": [[message("assistant", text)] for text in texts], "ranks": list(texts.values())},
    ):
        pairs, _ = read(row, format="ranked", ranking=ranking)
        assert [f"{p.chosen}>{p.rejected}" for p in pairs] == expected
        assert all((p.prompt, p.row) == (SHORT, 1) for p in pairs)


def test_the_order_of_answers_without_ranks_is_never_guessed():
    with pytest.raises(DataError, match="none of the formats"):
        read({"prompt": "Why?", "responses": ["a", "b"]})


def test_ties_make_no_pair_and_a_row_of_ties_is_counted():
    bad: list[DataError] = []
    row = {"prompt": "q", "answers": ["a", "b", "c"]}
    pairs, _ = read(row | {"ranks": [1, 2, 2]}, row | {"ranks": [1, 1, 1]}, on_bad=bad.append)
    assert [(p.chosen, p.rejected) for p in pairs] == [("a", "b"), ("a", "c")]
    assert [type(b) for b in bad] == [Unpaired]
    assert "row 2: no answer is better than another" in str(bad[0])


def test_answers_whose_scores_differ_by_less_than_the_margin_make_no_pair():
    bad: list[BadRow] = []
    row = {"prompt": "q", "answers": ["a", "b", "c"], "scores": [1, 2, 4.5]}
    near = {"prompt": "q", "answers": ["a", "b"], "scores": [1, 2]}
    lone = {"prompt": "q", "answers": ["a", "b"], "scores": [1, "N/A"]}
    assert len(read(row)[0]) == 3
    pairs, _ = read(row, near, lone, min_margin=2.5, on_bad=bad.append)
    assert [(p.chosen, p.rejected) for p in pairs] == [("c", "b"), ("c", "a")]
    assert [(b.row, b.reason) for b in bad] == [
        (2, "scores differ by less than data.min_margin"),
        (3, "fewer than two answers with a rank or score"),
    ]


def test_the_margin_counts_for_scores_of_chosen_and_rejected():
    row = {"prompt": "q", "chosen": "a", "rejected": "b", "score_chosen": 8.0}
    rows = [row | {"score_rejected": 5.0}, row | {"score_rejected": 7.5}, row | {"score_rejected": None}]
    bad: list[BadRow] = []
    assert len(read(*rows)[0]) == 3
    assert [p.row for p in read(*rows, min_margin=1.0, on_bad=bad.append)[0]] == [1]
    assert [b.reason for b in bad] == ["scores differ by less than data.min_margin", "an answer has no score"]


def test_a_margin_is_reached_although_floats_fall_short_of_it():
    scored = {"prompt": "q", "answers": ["a", "b"], "scores": [4.1, 4.0]}
    pair = {"prompt": "q", "chosen": "a", "rejected": "b", "score_chosen": 4.1, "score_rejected": 4.0}
    assert 4.1 - 4.0 < 0.1
    assert len(read(scored, min_margin=0.1)[0]) == len(read(pair, min_margin=0.1)[0]) == 1
    assert read(scored, min_margin=0.1001)[0] == read(pair, min_margin=0.1001)[0] == []


def test_ranks_that_include_zero_are_read_where_they_cannot_be_an_order_of_numbers():
    row = {"prompt": "q", "answers": ["c", "a", "b"]}
    with pytest.raises(DataError, match="ranks from 0"):
        read(row | {"ranking": [2, 0, 1]})
    assert read(row | {"answers": ["a", "b", "c"], "ranking": [2, 0, 1]}, columns={"ranks": ""}, format="ranked")[0]
    assert [p.chosen for p in read(row | {"ranks": [1, 0, 1]})[0]] == ["a", "a"]
    within = [{"text": "b", "rank": 1}, {"text": "a", "rank": 0}]
    assert [p.chosen for p in read({"prompt": "q", "answers": within})[0]] == ["a"]


@pytest.mark.parametrize("option", [{"ranking": "adjacent"}, {"min_margin": 1.0}])
def test_an_option_without_effect_on_the_format_is_an_error(option):
    with pytest.raises(DataError, match="has no effect on the format trl"):
        read(both({"prompt": "q"}), **option)
