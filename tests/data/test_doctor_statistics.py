"""The statistics of the doctor against hand-computed values, brute force and planted signals."""

import numpy as np
import pytest

from dpo_lab.data.doctor.sample import Ragged
from dpo_lab.data.doctor.similar import BANDS, HASHES, Shingles, jaccard, near_duplicates, signatures
from dpo_lab.data.doctor.statistics import histogram, percent, quantiles, wilson
from dpo_lab.data.doctor.words import COLUMNS, baseline, differences


@pytest.mark.parametrize(
    ("hits", "n", "low", "high"),
    # Newcombe 1998 (Statistics in Medicine 17:857), table I, method 3
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_the_interval_is_wilsons(hits, n, low, high):
    assert wilson(hits, n) == pytest.approx((low, high), abs=5e-5)


def test_the_interval_of_nothing_is_everything():
    assert wilson(0, 0) == (0.0, 1.0)


def test_a_histogram_counts_every_value_once():
    values = np.array([3, 3, 4, 10, 11, 12, 500])
    found = histogram("prompt", values)
    assert sum(found.counts) == len(values)
    assert (found.edges[0], found.edges[-1]) == (3.0, 501.0)
    assert list(np.diff(found.edges) > 0).count(False) == 0
    assert len(found.edges) == len(found.counts) + 1


def test_equal_values_make_one_bin():
    found = histogram("prompt", np.array([7, 7, 7]))
    assert (found.edges, found.counts) == ((7.0, 8.0), (3,))


def test_quantiles_are_of_the_values():
    assert quantiles(np.array([1, 2, 3, 10])) == {"mean": 4.0, "median": 2.5, "p95": pytest.approx(8.95), "max": 10.0}
    assert quantiles(np.array([], dtype=np.int64)) == {}


def test_a_share_is_written_with_a_decimal_where_it_matters():
    assert [percent(x) for x in (0.004, 0.5, 0.996, 1.0)] == ["0.4 %", "50 %", "99.6 %", "100 %"]


# Lists of tokens


def test_ends_of_ragged_lists_are_found():
    lists = Ragged.of([[1, 2, 3], [3], [], [9, 2, 3]])
    assert lists.at(-1).tolist() == [3, 3, -1, 3]
    assert lists.at(1).tolist() == [2, -1, -1, 2]
    assert lists.ends_with([2, 3]).tolist() == [True, False, False, True]
    assert lists.owners.tolist() == [0, 0, 0, 1, 3, 3, 3]


# Near-duplicates


def edited(rng, document, changes):
    copy = document.copy()
    copy[rng.choice(len(copy), changes, replace=False)] = rng.integers(10_000, 20_000, changes)
    return copy


def brute_force(documents):
    sets = [{tuple(d[i : i + 5]) for i in range(len(d) - 4)} if len(d) >= 8 else set() for d in documents]
    found = {}
    for i, a in enumerate(sets):
        for j in range(i + 1, len(sets)):
            both = len(a & sets[j])
            found[i, j] = both / max(1, len(a) + len(sets[j]) - both)
    return found


def test_near_duplicates_are_those_of_a_comparison_of_all_with_all():
    rng = np.random.default_rng(0)
    documents = []
    for _ in range(60):
        document = rng.integers(0, 300, int(rng.integers(30, 200)))
        documents += [document, edited(rng, document, int(rng.integers(0, 8)))]
    wanted = {pair for pair, similarity in brute_force([tuple(d) for d in documents]).items() if similarity >= 0.8}
    assert len(wanted) > 20
    assert set(near_duplicates(Ragged.of(documents))) == wanted


def test_signatures_agree_as_often_as_documents_do():
    rng = np.random.default_rng(1)
    agreed, similarities = [], []
    for _ in range(200):
        document = rng.integers(0, 1000, 120)
        shingles = Shingles.of(Ragged.of([document, edited(rng, document, 5)]))
        a, b = signatures(shingles)
        agreed.append((a == b).mean())
        similarities.append(jaccard(shingles.of_document(0), shingles.of_document(1)))
    assert np.mean(agreed) == pytest.approx(np.mean(similarities), abs=0.02)
    assert HASHES % BANDS == 0


def test_short_documents_are_never_near_duplicates():
    assert near_duplicates(Ragged.of([[1, 2, 3, 4, 5, 6, 7]] * 5)) == []


def test_every_member_of_a_large_group_is_found():
    rng = np.random.default_rng(2)
    document = rng.integers(0, 1000, 100)
    documents = [edited(rng, document, 1) for _ in range(50)] + [rng.integers(0, 1000, 100) for _ in range(50)]
    found = near_duplicates(Ragged.of(documents))
    assert {i for pair in found for i in pair} == set(range(50))


def test_with_a_border_only_pairs_across_it_are_found():
    rng = np.random.default_rng(3)
    document = rng.integers(0, 1000, 100)
    documents = [document, document, rng.integers(0, 1000, 100), document]
    assert near_duplicates(Ragged.of(documents), split_at=2) in ([(0, 3), (1, 3)], [(0, 3)])


# Bag of words


def answers(rng, n, *, planted=0.0):
    chosen = [rng.integers(0, 500, int(rng.integers(20, 60))) for _ in range(n)]
    rejected = [rng.integers(0, 500, int(rng.integers(20, 60))) for _ in range(n)]
    for i in range(int(planted * n)):
        chosen[i] = np.append(chosen[i], [777] * 3)
    return Ragged.of(chosen), Ragged.of(rejected)


def test_noise_is_predicted_by_chance():
    found = baseline(*answers(np.random.default_rng(0), 1500), list(range(1500)))
    assert found.low < 0.5 < found.high
    assert found.pairs == 1500


def test_a_planted_word_is_found_and_named():
    found = baseline(*answers(np.random.default_rng(0), 1500, planted=0.9), list(range(1500)))
    assert found.accuracy > 0.9
    assert found.for_chosen[0] == 777
    assert 777 not in found.for_rejected


def test_pairs_of_one_prompt_do_not_teach_each_other():
    rng = np.random.default_rng(0)  # a word of each prompt's own tells its pairs apart: useless on other prompts
    chosen, rejected, prompts = [], [], []
    for prompt in range(150):
        for _ in range(6):
            chosen.append([1000 + prompt] * 3 + rng.integers(0, 50, 10).tolist())
            rejected.append([2000 + prompt] * 3 + rng.integers(0, 50, 10).tolist())
            prompts.append(prompt)
    assert baseline(Ragged.of(chosen), Ragged.of(rejected), prompts).accuracy < 0.6
    assert baseline(Ragged.of(chosen), Ragged.of(rejected), list(range(len(chosen)))).accuracy > 0.95


def test_the_order_of_answers_cannot_leak():
    same = Ragged.of([[1, 2, 3]] * 100)
    found = baseline(same, Ragged.of([[3, 2, 1]] * 100), list(range(100)))
    assert found.accuracy == 0.5, "equal bags are a coin flip"


def test_the_baseline_agrees_with_a_second_implementation():
    import torch

    rng = np.random.default_rng(4)
    n = 400
    chosen, rejected = answers(rng, n, planted=0.3)
    groups = list(range(n))
    dense = np.zeros((n, 778))
    for sign, part in ((1, chosen), (-1, rejected)):
        for i in range(n):
            np.add.at(dense[i], part[i], sign)
    x = torch.tensor(dense / np.linalg.norm(dense, axis=1, keepdims=True))
    fold = np.random.default_rng(0).permutation(n) % 5
    right = 0
    for k in range(5):
        inside = torch.tensor(fold != k)
        w = torch.zeros(778, dtype=x.dtype, requires_grad=True)
        solver = torch.optim.LBFGS([w], max_iter=200, line_search_fn="strong_wolfe")

        def loss(w=w, solver=solver, inside=inside):
            solver.zero_grad()
            value = torch.nn.functional.softplus(-(x[inside] @ w)).mean() + 0.5e-3 * (w @ w)
            value.backward()
            return value

        solver.step(loss)  # type: ignore[arg-type]
        right += int((x[~inside] @ w.detach() > 0).sum())
    assert baseline(chosen, rejected, groups).accuracy == pytest.approx(right / n, abs=0.03)


def test_only_the_commonest_words_have_columns():
    many = Ragged.of([list(range(i, i + 20)) for i in range(0, 40_000, 20)])
    none = Ragged.of([[]] * len(many))
    rows, columns, values, tokens = differences(many, none, ends=[5])
    assert len(tokens) == COLUMNS
    assert columns.max() < COLUMNS
    assert 5 not in tokens
    assert set(values.tolist()) == {1}
    assert len(rows) == len(columns) == len(values) == COLUMNS
