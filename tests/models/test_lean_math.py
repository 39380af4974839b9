"""Adapted linear layers, gated MLPs and RMS norms by hand, against the same written plainly and differentiated by autograd."""

from collections.abc import Callable, Set
from typing import Any

import pytest
import torch
from tiny import difference
from torch import Tensor
from torch.nn import functional as F

from dpo_lab.models.lean_math import Base, gated_mlp, linear, rms_norm

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5, torch.bfloat16: 5e-2}
DTYPES = pytest.mark.parametrize("dtype", TOLERANCE, ids=["fp64", "fp32", "bf16"])
SHAPES = {"one vector": (), "rows": (7,), "a batch": (2, 5), "heads": (2, 3, 4), "one token": (1, 1)}
INPUTS, OUTPUTS, RANK, SCALE, EPS = 12, 20, 3, 1.7, 1e-5


def random(*size: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*size, dtype=torch.float64, generator=generator).div(3).to(dtype)


def plain_linear(x: Tensor, base: Base, a: Tensor | None, b: Tensor | None) -> Tensor:
    out = torch.zeros(*x.shape[:-1], OUTPUTS, dtype=x.dtype) if base.weight is None else x @ base.weight.T
    out = out if base.bias is None else out + base.bias
    return out if a is None or b is None else out + base.scale * ((x @ a.T) @ b.T)


def plain_mlp(x: Tensor, parts: tuple[Base, Base, Base], adapters: tuple[Tensor | None, ...]) -> Tensor:
    def part(i: int, x: Tensor) -> Tensor:
        base, a, b = parts[i], adapters[2 * i], adapters[2 * i + 1]
        assert base.weight is not None
        out = x @ base.weight.T + (0 if base.bias is None else base.bias)
        return out if a is None or b is None else out + base.scale * ((x @ a.T) @ b.T)

    gate = part(0, x)
    return part(2, gate * torch.sigmoid(gate) * part(1, x))


def plain_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight


def evaluated(
    function: Callable[..., Tensor], leaves: dict[str, Tensor], fixed: Set[str] = frozenset()
) -> dict[str, Any]:
    """Value, and gradients of a weighted sum by everything that is not fixed."""
    own = {name: t.detach().clone().requires_grad_(name not in fixed) for name, t in leaves.items()}
    out = function(**own)
    upstream = random(*out.shape, seed=99, dtype=out.dtype)
    asked = {name: t for name, t in own.items() if t.requires_grad}
    grads = torch.autograd.grad((out * upstream).sum(), list(asked.values())) if asked else ()
    return {"value": out.detach()} | dict(zip(asked, grads, strict=True))


def agree(ours: dict[str, Any], theirs: dict[str, Any], dtype: torch.dtype) -> None:
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        assert ours[name].dtype == dtype, name
        assert expected.abs().max() > 1e-3, name
        assert difference(ours[name], expected) < TOLERANCE[dtype], name


# -- linear ---------------------------------------------------------------------------------------------------------


def linear_leaves(shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    return {
        "x": random(*shape, INPUTS, seed=1, dtype=dtype),
        "a": random(RANK, INPUTS, seed=2, dtype=dtype),
        "b": random(OUTPUTS, RANK, seed=3, dtype=dtype),
    }


def base_of(dtype: torch.dtype, *, bias: bool, weight: bool = True) -> Base:
    return Base(
        random(OUTPUTS, INPUTS, seed=4, dtype=dtype) if weight else None,
        random(OUTPUTS, seed=5, dtype=dtype) if bias else None,
        SCALE,
    )


def both_linear(shape: tuple[int, ...], dtype: torch.dtype, *, fixed: set[str], **how: bool) -> None:
    base, exact = base_of(dtype, **how), base_of(torch.float64, **how)
    leaves = linear_leaves(shape, dtype)
    ours = evaluated(lambda x, a, b: linear(x, base, a, b), leaves, fixed)
    theirs = evaluated(lambda x, a, b: plain_linear(x, exact, a, b), linear_leaves(shape), fixed)
    assert ours["value"].shape == (*shape, OUTPUTS)
    agree(ours, theirs, dtype)


@DTYPES
@pytest.mark.parametrize("how", [{"bias": True}, {"bias": False}, {"bias": False, "weight": False}], ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_an_adapted_linear_layer(shape: str, how: dict[str, bool], dtype: torch.dtype) -> None:
    both_linear(SHAPES[shape], dtype, fixed=set(), **how)


@pytest.mark.parametrize(
    "fixed", [{"x"}, {"a"}, {"b"}, {"x", "a"}, {"a", "b"}], ids=lambda names: "+".join(sorted(names))
)
def test_a_linear_layer_of_which_some_is_frozen(fixed: set[str]) -> None:
    both_linear((2, 5), torch.float64, fixed=fixed, bias=True)
    both_linear((2, 5), torch.float64, fixed=fixed, bias=False, weight=False)


def test_a_linear_layer_without_an_adapter_is_the_plain_one() -> None:
    base, x = base_of(torch.float64, bias=True), random(2, 5, INPUTS, seed=1)
    ours = evaluated(lambda x: linear(x, base, None, None), {"x": x})
    agree(ours, evaluated(lambda x: F.linear(x, base.weight, base.bias), {"x": x}), torch.float64)  # type: ignore[arg-type]


def test_gradients_of_a_linear_layer_are_those_of_finite_differences() -> None:
    base = base_of(torch.float64, bias=True)
    leaves = [t.requires_grad_() for t in linear_leaves((4,)).values()]
    assert torch.autograd.gradcheck(lambda x, a, b: linear(x, base, a, b), leaves)


def test_inputs_that_do_not_lie_in_a_row_are_taken_as_they_are() -> None:
    base = base_of(torch.float64, bias=True)
    leaves = linear_leaves((5, 2))
    ours = evaluated(lambda x, a, b: linear(x.transpose(0, 1), base, a, b).transpose(0, 1), leaves)
    agree(ours, evaluated(lambda x, a, b: plain_linear(x, base, a, b), leaves), torch.float64)


def test_nothing_that_is_given_is_changed() -> None:
    base, leaves = base_of(torch.float64, bias=True), linear_leaves((2, 5))
    parts = [*leaves.values(), base.weight, base.bias]
    before = [t.clone() for t in parts if t is not None]
    evaluated(lambda x, a, b: linear(x, base, a, b), leaves)
    assert all(torch.equal(t, copy) for t, copy in zip(parts, before, strict=True) if t is not None)


# -- gated MLP ------------------------------------------------------------------------------------------------------

WIDE = 20
ADAPTED = {"all": (0, 1, 2), "gate alone": (0,), "up and down": (1, 2), "down alone": (2,), "none": ()}


def mlp_leaves(
    shape: tuple[int, ...], adapted: tuple[int, ...], dtype: torch.dtype = torch.float64
) -> dict[str, Tensor]:
    sizes = [(INPUTS, WIDE), (INPUTS, WIDE), (WIDE, INPUTS)]
    leaves = {"x": 2 * random(*shape, INPUTS, seed=1, dtype=dtype)}
    for i in adapted:
        leaves[f"a{i}"] = random(RANK + i, sizes[i][0], seed=10 + i, dtype=dtype)
        leaves[f"b{i}"] = random(sizes[i][1], RANK + i, seed=20 + i, dtype=dtype)
    return leaves


def mlp_parts(dtype: torch.dtype, *, bias: bool) -> tuple[Base, Base, Base]:
    gate, up, down = (
        Base(random(o, i, seed=30 + k, dtype=dtype), random(o, seed=40 + k, dtype=dtype) if bias else None, 0.5 + k)
        for k, (i, o) in enumerate([(INPUTS, WIDE), (INPUTS, WIDE), (WIDE, INPUTS)])
    )
    return gate, up, down


def mlp_by(function: Callable[..., Tensor], parts: tuple[Base, Base, Base]) -> Callable[..., Tensor]:
    def called(x: Tensor, **adapters: Tensor) -> Tensor:
        return function(x, parts, tuple(adapters.get(f"{k}{i}") for i in range(3) for k in "ab"))

    return called


@DTYPES
@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_gated_mlp(shape: str, bias: bool, dtype: torch.dtype) -> None:
    size = SHAPES[shape]
    ours = evaluated(mlp_by(gated_mlp, mlp_parts(dtype, bias=bias)), mlp_leaves(size, (0, 1, 2), dtype))
    theirs = evaluated(mlp_by(plain_mlp, mlp_parts(torch.float64, bias=bias)), mlp_leaves(size, (0, 1, 2)))
    assert len(theirs) == 8
    agree(ours, theirs, dtype)


@pytest.mark.parametrize(
    "fixed", [set(), {"x"}, {"x", "a0", "b2"}, {"a0", "a1", "a2"}], ids=lambda names: "+".join(sorted(names)) or "none"
)
@pytest.mark.parametrize("adapted", ADAPTED)
def test_a_gated_mlp_of_which_some_is_adapted_and_some_frozen(adapted: str, fixed: set[str]) -> None:
    leaves, parts = mlp_leaves((2, 5), ADAPTED[adapted]), mlp_parts(torch.float64, bias=True)
    ours, theirs = (evaluated(mlp_by(f, parts), leaves, fixed) for f in (gated_mlp, plain_mlp))
    agree(ours, theirs, torch.float64)


def test_gradients_of_a_gated_mlp_are_those_of_finite_differences() -> None:
    parts, leaves = mlp_parts(torch.float64, bias=True), mlp_leaves((3,), (0, 1, 2))

    def called(x: Tensor, *adapters: Tensor) -> Tensor:
        return gated_mlp(x, parts, adapters)

    assert torch.autograd.gradcheck(called, [t.requires_grad_() for t in leaves.values()])


# -- RMS norm -------------------------------------------------------------------------------------------------------


@DTYPES
@pytest.mark.parametrize("shape", SHAPES)
def test_an_rms_norm(shape: str, dtype: torch.dtype) -> None:
    weight = random(INPUTS, seed=6) + 1
    x = random(*SHAPES[shape], INPUTS, seed=1)
    ours = evaluated(lambda x: rms_norm(x, weight.to(dtype), EPS), {"x": x.to(dtype)})
    agree(ours, evaluated(lambda x: plain_norm(x, weight, EPS), {"x": x}), dtype)


def test_gradients_of_an_rms_norm_are_those_of_finite_differences() -> None:
    weight = random(INPUTS, seed=6) + 1
    assert torch.autograd.gradcheck(lambda x: rms_norm(x, weight, EPS), [random(4, INPUTS, seed=1).requires_grad_()])


@pytest.mark.parametrize("size", [0.0, 1e-12, 1e12])
def test_an_rms_norm_of_tiny_and_huge_values_is_finite(size: float) -> None:
    weight = random(INPUTS, seed=6) + 1
    x = random(3, INPUTS, seed=1).mul(size)
    ours = evaluated(lambda x: rms_norm(x, weight.float(), EPS), {"x": x.float()})
    theirs = evaluated(lambda x: plain_norm(x, weight, EPS), {"x": x})
    for name in ("value", "x"):
        assert difference(ours[name], theirs[name]) < 1e-5


def test_a_norm_in_bf16_under_fp32_weights_keeps_transformers_dtype() -> None:
    weight, x = (random(INPUTS, seed=6) + 1).float(), random(3, INPUTS, seed=1).bfloat16().requires_grad_()
    out = rms_norm(x, weight, EPS)
    assert out.dtype == torch.float32
    out.sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == torch.bfloat16


# -- no gradients ---------------------------------------------------------------------------------------------------


def test_without_gradients_the_values_are_the_same_and_carry_none() -> None:
    base, parts, weight = base_of(torch.float64, bias=True), mlp_parts(torch.float64, bias=True), random(INPUTS, seed=6)
    leaves, wide = linear_leaves((2, 5)), mlp_leaves((2, 5), (0, 1, 2))
    x, a, b = (t.requires_grad_() for t in leaves.values())
    adapters = tuple(t.requires_grad_() for name, t in wide.items() if name != "x")
    for ours, theirs in (
        (lambda: linear(x, base, a, b), lambda: plain_linear(x, base, a, b)),
        (lambda: gated_mlp(x, parts, adapters), lambda: plain_mlp(x, parts, adapters)),
        (lambda: rms_norm(x, weight, EPS), lambda: plain_norm(x, weight, EPS)),
    ):
        assert ours().requires_grad
        with torch.no_grad():
            value = ours()
        assert not value.requires_grad
        assert difference(value, theirs().detach()) < 1e-9
