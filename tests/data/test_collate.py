"""How pairs lie in a pack: a prompt that several pairs have, and an answer, lie there once."""

import pickle
from collections.abc import Callable

import pytest
import torch
from tiny import tiny_examples

from dpo_lab.data.collate import collate, microbatches
from dpo_lab.data.types import Example, Pair
from dpo_lab.preference.layout import Layout
from dpo_lab.preference.ref_cache import answer_key

PAIR = Pair((), "a", "b", 1)
PROMPT, A, B, C = [10, 11, 12], [20, 21], [30], [40, 41, 42]


def of(prompt: list[int], chosen: list[int], rejected: list[int]) -> Example:
    return Example(prompt, chosen, rejected, PAIR)


RANKED = [of(PROMPT, A, B), of(PROMPT, A, C), of(PROMPT, B, C)]
OTHER = of([50], [20, 21], [51, 52])  # an answer as long and as worded as A, to another prompt


# -- a ranked list, by hand -----------------------------------------------------------------------------------------


@pytest.fixture
def layout() -> Layout:
    return collate([RANKED[0], OTHER, RANKED[1], RANKED[2]], [4, 9, 2, 7])


def test_a_ranked_list_has_its_prompt_and_each_of_its_answers_once(layout: Layout) -> None:
    assert layout.ids.tolist() == [10, 11, 12, 20, 21, 30, 40, 41, 42, 50, 20, 21, 51, 52]
    assert layout.runs == [((0, 3), ((3, 2), (5, 1), (6, 3))), ((9, 1), ((10, 2), (12, 2)))]
    assert [run.stop for run in layout.runs] == [9, 14]


def test_each_pair_of_it_finds_its_own_tokens(layout: Layout) -> None:
    assert layout.index == (4, 9, 2, 7)
    assert layout.lengths == ((3, 2, 1), (1, 2, 2), (3, 2, 3), (3, 1, 3))
    assert layout.places == ((0, 3, 5), (9, 10, 12), (0, 3, 6), (0, 5, 6))
    assert layout.targets.tolist() == [20, 21, 30, 20, 21, 51, 52, 20, 21, 40, 41, 42, 30, 40, 41, 42]
    assert layout.answer_tokens.tolist() == [2, 1, 2, 2, 2, 3, 1, 3]
    assert layout.keys[0] == layout.keys[4] == answer_key(PROMPT, A)
    assert layout.keys[2] == answer_key([50], A)


def test_every_answer_goes_on_from_its_prompt(layout: Layout) -> None:
    assert layout.positions.tolist() == [0, 1, 2, 3, 4, 3, 3, 4, 5, 0, 1, 2, 1, 2]


def test_the_first_token_of_an_answer_is_predicted_by_the_last_of_its_prompt(layout: Layout) -> None:
    assert layout.predictors.tolist() == [2, 3, 2, 9, 10, 9, 12, 2, 3, 2, 6, 7, 2, 2, 6, 7]


def test_the_plan_of_unequal_lengths_has_a_prompt_before_the_keys_of_each_answer(layout: Layout) -> None:
    plan = layout.varlen
    assert plan.starts_q.tolist() == [0, 3, 5, 6, 9, 10, 12, 14]
    assert plan.starts_k.tolist() == [0, 3, 8, 12, 18, 19, 22, 25]
    assert plan.keys.tolist() == [
        *(0, 1, 2),
        *(0, 1, 2, 3, 4),
        *(0, 1, 2, 5),
        *(0, 1, 2, 6, 7, 8),
        *(9,),
        *(9, 10, 11),
        *(9, 12, 13),
    ]
    assert (plan.max_q, plan.max_k) == (3, 6)
    assert plan.starts_q.dtype == plan.starts_k.dtype == torch.int32


def test_rows_of_the_padded_way_are_whole_for_every_pair(layout: Layout) -> None:
    rows, predictors = layout.padded()
    assert rows.shape == (8, 6)
    assert rows[4].tolist()[:5] == PROMPT + A
    assert rows[5].tolist() == PROMPT + C
    assert rows[2].tolist()[:3] == [50, *A]
    assert rows.flatten()[predictors + 1].tolist() == layout.targets.tolist()
    assert rows.flatten()[predictors].tolist() == layout.ids[layout.predictors].tolist()
    assert layout.padded_positions()[7].tolist() == [0, 1, 2, 3, 4, 5]


# -- what is the same and what is not -------------------------------------------------------------------------------


def test_two_answers_of_a_pair_that_are_one_lie_in_the_pack_once() -> None:
    layout = collate([of(PROMPT, A, A)], [0])
    assert layout.ids.tolist() == PROMPT + A
    assert layout.runs == [((0, 3), ((3, 2),))]
    assert layout.targets.tolist() == A + A
    assert layout.predictors.tolist() == [2, 3, 2, 3]


def test_an_answer_that_begins_as_another_is_an_answer_of_its_own() -> None:
    layout = collate([of(PROMPT, [20], A)], [0])
    assert layout.ids.tolist() == [*PROMPT, 20, *A]
    assert layout.positions.tolist() == [0, 1, 2, 3, 3, 4]


def test_a_prompt_that_begins_as_another_is_a_prompt_of_its_own() -> None:
    layout = collate([of([10, 11], [12, 20], [21]), of([10, 11, 12], [20], [21])], [0, 1])
    assert layout.ids.tolist() == [10, 11, 12, 20, 21, 10, 11, 12, 20, 21]
    assert [run.prompt for run in layout.runs] == [(0, 2), (5, 3)]


def test_a_pair_that_comes_twice_is_computed_once_and_counted_twice() -> None:
    layout = collate([RANKED[0], RANKED[0]], [3, 3])
    assert len(layout) == 2
    assert layout.ids.tolist() == PROMPT + A + B
    assert layout.targets.tolist() == (A + B) * 2
    assert layout.answer_sums(torch.arange(6.0)).tolist() == [1, 2, 7, 5]


def test_a_layout_moves_and_is_pinned_with_everything_that_says_where_things_lie(layout: Layout) -> None:
    moved = layout.to(torch.device("cpu"))
    assert (moved.places, moved.lengths, moved.keys, moved.index) == (
        layout.places,
        layout.lengths,
        layout.keys,
        layout.index,
    )
    assert moved.runs == layout.runs


# -- micro-batches --------------------------------------------------------------------------------------------------


def tokens_of(layout: Layout, shared: bool) -> int:
    return len(layout.ids) if shared else layout.padded()[0].numel()


def lists(count: int, answers: int) -> list[Example]:
    """Ranked lists of several answers as all of their pairs, shuffled."""
    found = []
    for i in range(count):
        prompt = [1000 + i] * (2 + i % 4)
        ranked = [[10 * i + k] * (1 + (i + k) % 3) for k in range(answers)]
        found += [of(prompt, ranked[a], ranked[b]) for a in range(answers) for b in range(a + 1, answers)]
    order = torch.randperm(len(found), generator=torch.Generator().manual_seed(0)).tolist()
    return [found[i] for i in order]


SETS: dict[str, Callable[[], list[Example]]] = {
    "apart": tiny_examples,
    "ranked lists": lambda: lists(5, 4),
    "one prompt": lambda: lists(1, 6),
    "mixed": lambda: [*tiny_examples(), *lists(3, 3), *tiny_examples()[:2]],
}


@pytest.mark.parametrize("tokens", [1, 12, 40, 100, 256, 10**6])
@pytest.mark.parametrize("shared", [True, False], ids=["shared", "padded"])
@pytest.mark.parametrize("name", SETS)
def test_micro_batches_hold_each_pair_once_and_whole_within_the_budget(name: str, shared: bool, tokens: int) -> None:
    examples = SETS[name]()
    index = [7 * i + 3 for i in range(len(examples))]
    cut = microbatches(examples, index, tokens=tokens, shared=shared)
    assert sorted(i for layout in cut for i in layout.index) == index
    for layout in cut:
        assert tokens_of(layout, shared) <= tokens or len(layout) == 1
        for place, i in enumerate(layout.index):
            example = examples[index.index(i)]
            prompt, p, start, n = layout.answers[2 * place]
            assert layout.ids[prompt : prompt + p].tolist() == example.prompt_ids
            assert layout.ids[start : start + n].tolist() == example.chosen_ids
            _, _, start, n = layout.answers[2 * place + 1]
            assert layout.ids[start : start + n].tolist() == example.rejected_ids
    if tokens in (1, 10**6):
        assert len(cut) == (len(examples) if tokens == 1 else 1)


@pytest.mark.parametrize(
    ("name", "tokens"),
    [("apart", 100), ("apart", 256), ("ranked lists", 12), ("ranked lists", 40), ("one prompt", 12), ("mixed", 150)],
)
def test_a_pack_is_as_full_as_the_budget_allows(name: str, tokens: int) -> None:
    examples = SETS[name]()
    cut = microbatches(examples, range(len(examples)), tokens=tokens, shared=True)
    assert len(cut) > 1
    for layout, following in zip(cut, cut[1:], strict=False):
        grown = [*layout.index, following.index[0]]
        assert len(collate([examples[i] for i in grown], grown).ids) > tokens


def test_pairs_of_one_prompt_are_in_one_pack_where_it_fits() -> None:
    examples = lists(4, 3)  # each list is at most 5 + 6 tokens, apart from each other at least 15
    cut = microbatches(examples, range(len(examples)), tokens=12, shared=True)
    assert len(cut) == 4
    assert all(len({tuple(examples[i].prompt_ids) for i in layout.index}) == 1 for layout in cut)
    assert len(microbatches(examples, range(len(examples)), tokens=12)) > 4


def test_a_list_that_is_longer_than_the_budget_is_cut_between_its_pairs() -> None:
    (examples,) = [lists(1, 6)]
    cut = microbatches(examples, range(15), tokens=8, shared=True)
    assert len(cut) > 2
    assert all(len(layout.runs) == 1 for layout in cut)


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "padded"])
def test_the_cut_is_a_function_of_the_pairs_alone(shared: bool) -> None:
    one, other = (
        [layout.index for layout in microbatches(SETS["mixed"](), range(19), tokens=100, shared=shared)]
        for _ in range(2)
    )
    assert one == other


@pytest.mark.parametrize("pairs", [RANKED, [OTHER]], ids=["answers in common", "none"])
def test_a_layout_goes_to_another_process_with_all_that_was_planned(pairs: list[Example]) -> None:
    layout = collate(pairs, range(len(pairs)))
    sent = pickle.dumps(layout)
    assert b"rebuild_storage" not in sent, "each tensor would take a file descriptor"
    there = pickle.loads(sent)
    assert there.__dict__.keys() == layout.__dict__.keys()
    assert torch.equal(there.ids, layout.ids)
    assert torch.equal(there.predictors, layout.predictors)
    assert torch.equal(there.varlen.keys, layout.varlen.keys)
    assert there.varlen.max_k == layout.varlen.max_k
    assert (there.once is None) == (layout.once is None) == (len(pairs) == 1)
    moved = there.to(torch.device("cpu"))
    assert moved.__dict__.keys() == layout.__dict__.keys() - {"answers", "runs"}
