"""Attention over a pack, by each of the ways it is computed, against a dense masked softmax."""

import functools
import inspect
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny import difference
from torch import Tensor
from torch.nn.attention import varlen

from dpo_lab.data.collate import collate
from dpo_lab.data.types import Example, Pair
from dpo_lab.preference.attention import _by_answer, packed_attention, varlen_attention
from dpo_lab.preference.layout import Layout

PAIR = Pair((), "a", "b", 1)
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5}
# (query heads, heads of keys and values, size of a head)
HEADS = {"GQA": (4, 2, 8), "MHA, odd size": (3, 3, 13), "MQA, odd size": (5, 1, 7)}


def pairs_of(*lengths: tuple[int, int, int]) -> Layout:
    """Pairs whose tokens are all different, so that none is shared."""
    return Layout(torch.arange(sum(map(sum, lengths))), lengths)


def ranked() -> Layout:
    """a > b > c as three pairs of one prompt of 3 tokens, and a pair of its own behind them."""
    prompt, a, b, c = [1, 2, 3], [4, 5], [6], [7, 8, 9, 10]
    pairs = [(prompt, a, b), (prompt, a, c), (prompt, b, c), ([11], [12, 13], [14])]
    return collate([Example(*ids, PAIR) for ids in pairs], range(4))


LAYOUTS = {
    "ragged": pairs_of((3, 2, 1), (1, 1, 2), (7, 5, 9)),
    "a single pair of single tokens": pairs_of((1, 1, 1)),
    "a long prompt beside short ones": pairs_of((2, 3, 1), (400, 3, 2), (5, 40, 1)),
    "many": pairs_of(*((1 + i % 5, 1 + i % 3, 1 + i % 4) for i in range(12))),
    "a ranked list": ranked(),
}


def who_sees_whom(layout: Layout) -> Tensor:
    """(T, T), from the definition: a token of an answer sees its prompt and the answer up to itself."""
    size = len(layout.ids)
    seen = torch.zeros(size, size, dtype=torch.bool)
    for prompt, p, start, n in layout.answers:
        seen[prompt : prompt + p, prompt : prompt + p] |= torch.ones(p, p).tril().bool()
        seen[start : start + n, prompt : prompt + p] = True
        seen[start : start + n, start : start + n] |= torch.ones(n, n).tril().bool()
    assert seen.any(-1).all()
    return seen


def dense(query: Tensor, key: Tensor, value: Tensor, layout: Layout, *, scale: float | None) -> Tensor:
    """The whole matrix of scores, masked."""
    groups = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(groups, 1) for x in (key, value))
    scores = query @ key.transpose(-1, -2) * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    return (scores.masked_fill(~who_sees_whom(layout), -torch.inf).softmax(-1) @ value).transpose(1, 2)


def with_gradients(
    function: Callable[..., Tensor],
    layout: Layout,
    heads: tuple[int, int, int],
    dtype: torch.dtype,
    scale: float | None,
) -> list[Tensor]:
    """Values, and gradients of queries, keys and values, of the same random numbers."""
    generator = torch.Generator().manual_seed(0)

    def random(count: int) -> Tensor:
        # As a projection lies in memory, tokens first: the kernels see strided heads.
        lying = torch.randn(1, len(layout.ids), count, heads[2], generator=generator, dtype=torch.float64)
        return lying.to(dtype).requires_grad_()

    leaves = [random(count) for count in (heads[0], heads[1], heads[1])]
    out = function(*(x.transpose(1, 2) for x in leaves), layout, scale=scale)
    assert out.shape == (1, len(layout.ids), heads[0], heads[2])
    assert out.dtype == dtype
    weights = torch.randn(out.shape, generator=generator, dtype=torch.float64).to(dtype)
    return [out.detach(), *torch.autograd.grad((out * weights).sum(), leaves)]


def plain_varlen(
    q: Tensor, k: Tensor, v: Tensor, starts_q: Tensor, starts_k: Tensor, *, group: bool, scale: float, causal: bool
) -> Tensor:
    """A sequence after the other; queries stand at the end of their keys."""
    if group:
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    assert q.shape[1] == k.shape[1] == v.shape[1]
    assert len(k) == len(v)
    parts = []
    for (a, b), (c, d) in zip(
        *(zip(s.tolist(), s.tolist()[1:], strict=False) for s in (starts_q, starts_k)), strict=True
    ):
        scores = torch.einsum("qhd,khd->hqk", q[a:b], k[c:d]) * scale
        if causal:
            scores = scores.masked_fill(~torch.ones(b - a, d - c).tril(d - c - (b - a)).bool(), -torch.inf)
        parts.append(torch.einsum("hqk,khd->qhd", scores.softmax(-1), v[c:d]))
    return torch.cat(parts)


def check_plan(q: Tensor, k: Tensor, starts_q: Tensor, starts_k: Tensor, max_q: int, max_k: int) -> None:
    """What the kernels rely on."""
    for x, starts, longest in ((q, starts_q, max_q), (k, starts_k, max_k)):
        assert starts.dtype == torch.int32
        assert starts[0] == 0
        assert starts[-1] == len(x)
        assert starts.diff().max() == longest
        assert starts.diff().min() > 0


def today(
    query: Tensor, key: Tensor, value: Tensor, cu_seq_q: Tensor, cu_seq_k: Tensor, max_q: int, max_k: int, *,
    return_aux: Any = None, scale: float | None = None, window_size: tuple[int, int] = (-1, -1), enable_gqa: bool = False,
    seqused_k: Tensor | None = None, block_table: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """With the arguments of the `varlen_attn` that is installed."""
    assert return_aux is seqused_k is block_table is None
    assert window_size in ((-1, -1), (-1, 0))
    check_plan(query, key, cu_seq_q, cu_seq_k, max_q, max_k)
    assert scale is not None
    causal = window_size == (-1, 0)
    return plain_varlen(query, key, value, cu_seq_q, cu_seq_k, group=enable_gqa, scale=scale, causal=causal)


def earlier(
    query: Tensor, key: Tensor, value: Tensor, cu_seq_q: Tensor, cu_seq_k: Tensor, max_q: int, max_k: int,
    is_causal: bool = False, return_aux: Any = None,
) -> Tensor:  # fmt: skip
    """As torch 2.10 has it: no scale, no shared heads, no window."""
    assert return_aux is None
    check_plan(query, key, cu_seq_q, cu_seq_k, max_q, max_k)
    scale = query.shape[-1] ** -0.5
    return plain_varlen(query, key, value, cu_seq_q, cu_seq_k, group=False, scale=scale, causal=is_causal)


def between(
    query: Tensor, key: Tensor, value: Tensor, cu_seq_q: Tensor, cu_seq_k: Tensor, max_q: int, max_k: int, *,
    return_aux: Any = None, scale: float | None = None, window_size: tuple[int, int] = (-1, -1),
) -> Tensor:  # fmt: skip
    """A window and a scale, and no shared heads."""
    return today(
        query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, return_aux=return_aux, scale=scale, window_size=window_size
    )


def by_answer(query: Tensor, key: Tensor, value: Tensor, layout: Layout, *, scale: float | None) -> Tensor:
    return _by_answer(query, key, value, layout, query.shape[-1] ** -0.5 if scale is None else scale)


def by_varlen(query: Tensor, key: Tensor, value: Tensor, layout: Layout, *, scale: float | None) -> Tensor:
    return varlen_attention(query, key, value, layout, scale=query.shape[-1] ** -0.5 if scale is None else scale)


WAYS: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor] | None]] = {
    "packed": (packed_attention, None),
    "by answer": (by_answer, None),
    "varlen": (by_varlen, today),
    "varlen, torch 2.10": (by_varlen, earlier),
    "varlen without shared heads": (by_varlen, between),
}


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Tensor]:
    function, stand_in = WAYS[request.param]
    if stand_in is not None:
        monkeypatch.setattr(varlen, "varlen_attn", stand_in)
    return function


@functools.cache
def expected(layout: str, heads: str, dtype: torch.dtype, scale: float | None) -> list[Tensor]:
    return with_gradients(dense, LAYOUTS[layout], HEADS[heads], dtype, scale)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=["fp64", "fp32"])
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_values_and_gradients_are_those_of_a_dense_masked_softmax(
    way: Callable[..., Tensor], layout: str, heads: str, dtype: torch.dtype
) -> None:
    for scale in (None, 0.7):
        ours = with_gradients(way, LAYOUTS[layout], HEADS[heads], dtype, scale)
        for mine, other in zip(ours, expected(layout, heads, torch.float64, scale), strict=True):
            assert difference(mine, other) < TOLERANCE[dtype]


def test_the_scale_matters(way: Callable[..., Tensor]) -> None:
    one, other = (with_gradients(way, LAYOUTS["ragged"], HEADS["GQA"], torch.float64, s)[0] for s in (None, 0.7))
    assert difference(one, other) > 1e-2


def test_the_installed_function_begins_as_the_stand_ins_do_and_can_be_made_causal() -> None:
    known = list(inspect.signature(varlen.varlen_attn).parameters)
    for stand_in in (today, earlier, between):
        assert list(inspect.signature(stand_in).parameters)[:7] == known[:7]
    assert {"window_size", "is_causal"} & set(known)


def test_in_bf16_values_and_gradients_are_close_and_keep_their_dtype() -> None:
    ours = with_gradients(packed_attention, LAYOUTS["ragged"], HEADS["GQA"], torch.bfloat16, None)
    for mine, other in zip(ours, expected("ragged", "GQA", torch.float64, None), strict=True):
        assert mine.dtype == torch.bfloat16
        assert difference(mine, other) < 3e-2


def test_scores_of_a_hundred_and_more_do_not_overflow() -> None:
    """An answer's two parts are merged by their log-sum-exps, which lie far apart here."""
    layout, heads = LAYOUTS["ragged"], HEADS["GQA"]
    ours = with_gradients(packed_attention, layout, heads, torch.float64, 60.0)
    for mine, other in zip(ours, with_gradients(dense, layout, heads, torch.float64, 60.0), strict=True):
        assert difference(mine, other) < 1e-9  # nan is not


def test_no_gradient_leaks_from_an_answer_to_another_pair_or_to_the_other_answer() -> None:
    layout = LAYOUTS["ragged"]
    generator = torch.Generator().manual_seed(0)
    q, k, v = leaves = [torch.randn(1, 2, len(layout.ids), 8, generator=generator).requires_grad_() for _ in range(3)]
    out = packed_attention(q, k, v, layout, scale=None)
    _, _, start, n = layout.answers[2]  # the chosen answer of the second pair
    grads = torch.autograd.grad(out[:, start : start + n].sum(), leaves)
    assert (start, n) == (7, 1)
    queries, keys, values = (g.abs().sum((0, 1, 3)) > 0 for g in grads)
    assert queries.nonzero().flatten().tolist() == [7]
    assert keys.nonzero().flatten().tolist() == values.nonzero().flatten().tolist() == [6, 7]
