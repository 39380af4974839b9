"""Adapted linear layers, gated MLPs and RMS norms as autograd functions that keep and pass over memory as little as can be.

What PEFT and transformers compute, in fewer passes: products add in place, thin products are formed the way round in
which they are fast, and what is cheap to compute again is not kept. The base is frozen.

N tokens, I inputs, O outputs, R rank.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class Base(NamedTuple):
    """The frozen part of an adapted linear layer, and the factor of its adapter."""

    weight: Tensor | None  # (O, I); None: the adapter's part alone
    bias: Tensor | None  # (O,)
    scale: float


def linear(x: Tensor, base: Base, a: Tensor | None, b: Tensor | None) -> Tensor:
    """The product x W^T + bias + scale (x A^T) B^T: (..., I), (R, I), (O, R) -> (..., O), all of one dtype."""
    if a is None or b is None:
        assert base.weight is not None
        return F.linear(x, base.weight, base.bias)
    return _Linear.apply(x, base, a, b)  # type: ignore[no-any-return]


def gated_mlp(x: Tensor, parts: tuple[Base, Base, Base], adapters: tuple[Tensor | None, ...]) -> Tensor:
    """down(silu(gate(x)) up(x)): (..., I) -> (..., I).

    Args:
        x: of the weights' dtype.
        parts: gate, up and down.
        adapters: A and B of each, or six times None.
    """
    return _Mlp.apply(x, parts, *adapters)  # type: ignore[no-any-return]


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Scale x / sqrt(mean(x^2) + eps) by weight, over the last dimension, in fp32 at least: (..., I), (I,) -> (..., I)."""
    return _RmsNorm.apply(x, weight, eps)  # type: ignore[no-any-return]


def _forward(x: Tensor, base: Base, a: Tensor | None, b: Tensor | None) -> tuple[Tensor, Tensor]:
    """(N, I) -> (N, O), and x A^T (N, R), empty without an adapter."""
    if a is None or b is None:
        assert base.weight is not None
        return F.linear(x, base.weight, base.bias), x.new_empty(0)
    xa = x @ a.t()
    if base.weight is None:
        return (xa @ b.t()).mul_(base.scale), xa
    return F.linear(x, base.weight, base.bias).addmm_(xa, b.t(), alpha=base.scale), xa


def _input_gradient(g: Tensor, base: Base, gb: Tensor | None, a: Tensor | None, into: Tensor | None) -> Tensor:
    """Form g W + scale (g B) A, added to `into` where that is given: (N, O) -> (N, I)."""
    if base.weight is not None:
        into = g @ base.weight if into is None else into.addmm_(g, base.weight)
    if gb is None or a is None:
        assert into is not None
        return into
    return (gb @ a).mul_(base.scale) if into is None else into.addmm_(gb, a, alpha=base.scale)


def _through_b(g: Tensor, b: Tensor | None) -> Tensor | None:
    """G B, (N, O) -> (N, R). A thin product is twice as fast with its small side lying in rows."""
    return None if b is None else g @ b.t().contiguous().t()


def _adapter_gradients(g: Tensor, x: Tensor, xa: Tensor, gb: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Gradients of A (R, I) and B (O, R); x^T g the other way round would be up to seven times slower."""
    return (gb.t() @ x).mul_(scale), (xa.t() @ g).mul_(scale).t()


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, base: Base, a: Tensor, b: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        y, xa = _forward(flat, base, a, b)
        ctx.save_for_backward(flat, xa, a, b)
        ctx.base = base
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, xa, a, b = ctx.saved_tensors
        g = grads[0].reshape(-1, grads[0].shape[-1])
        gb = _through_b(g, b)
        assert gb is not None
        dx = None
        if ctx.needs_input_grad[0]:
            dx = _input_gradient(g, ctx.base, gb, a, None).view(*grads[0].shape[:-1], -1)
        return dx, None, *_adapter_gradients(g, x, xa, gb, ctx.base.scale)


class _Mlp(torch.autograd.Function):
    """Keeps gate and up; their product, and the activation, are computed again in backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, parts: tuple[Base, Base, Base], *adapters: Tensor | None) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        gate, gate_xa = _forward(flat, parts[0], *adapters[0:2])
        up, up_xa = _forward(flat, parts[1], *adapters[2:4])
        y, down_xa = _forward(F.silu(gate).mul_(up), parts[2], *adapters[4:6])
        ctx.save_for_backward(flat, gate, up, gate_xa, up_xa, down_xa, *adapters)
        ctx.parts = parts
        return y.view(x.shape)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, gate, up, *inner = ctx.saved_tensors
        xas, adapters = inner[:3], inner[3:]
        a, b, parts = adapters[0::2], adapters[1::2], ctx.parts
        g = grads[0].reshape(-1, grads[0].shape[-1])
        found: list[Tensor | None] = [None] * 6

        def adapter(place: int, g: Tensor, x: Tensor, gb: Tensor | None) -> None:
            if gb is not None:
                found[2 * place : 2 * place + 2] = _adapter_gradients(g, x, xas[place], gb, parts[place].scale)

        gb = _through_b(g, b[2])
        through = _input_gradient(g, parts[2], gb, a[2], None)  # of silu(gate) up
        active = F.silu(gate)
        if gb is not None:
            adapter(2, g, active * up, gb)
        d_up = active.mul_(through)
        d_gate = torch.ops.aten.silu_backward(through.mul_(up), gate)
        dx = None
        for place, d in enumerate((d_gate, d_up)):
            gb = _through_b(d, b[place])
            adapter(place, d, x, gb)
            if ctx.needs_input_grad[0]:
                dx = _input_gradient(d, parts[place], gb, a[place], dx)
        return dx if dx is None else dx.view(grads[0].shape), None, *found


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide = x if x.dtype in (torch.float32, torch.float64) else x.float()
        size = x.shape[-1]
        norm = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        scale = norm.square_().div_(size).add_(eps).rsqrt_()  # (..., 1)
        ctx.save_for_backward(x, weight, scale)
        return (wide * scale).to(x.dtype) * weight

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        x, weight, scale = ctx.saved_tensors
        wide = x.to(scale.dtype)
        g = (grads[0] * weight).to(scale.dtype)
        inner = (g * wide).sum(-1, keepdim=True).mul_(scale.pow(3)).div_(x.shape[-1])
        return g.mul_(scale).addcmul_(wide, inner, value=-1).to(x.dtype), None, None
