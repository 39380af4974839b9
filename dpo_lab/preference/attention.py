"""Attention over a layout as it lies: an answer sees its own prompt and itself.

A function for transformers' `AttentionInterface`. Given a layout it computes each prompt's keys and values once and
attends without a mask over the pack; without one it is transformers' own SDPA attention.

T tokens of the pack, A query heads, K heads of keys and values, D size of a head.
"""

import functools
import importlib.util
import inspect
from typing import Any

import torch
from torch import Tensor, nn

from dpo_lab.preference.layout import Layout, Run

NAME = "dpo_lab"
_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


@functools.cache
def register() -> None:
    """Make NAME an attention implementation of transformers."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
    from transformers.modeling_utils import AttentionInterface

    def attention(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
    ) -> tuple[Tensor, None]:
        layout: Layout | None = kwargs.pop("layout", None)
        if layout is None:
            return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
        if torch.is_autocast_enabled(kind := query.device.type):  # fp32 weights: rotated q and k are fp32, v is not
            query, key, value = (x.to(torch.get_autocast_dtype(kind)) for x in (query, key, value))
        return packed_attention(query, key, value, layout, scale=kwargs.get("scaling")), None

    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)


def packed_attention(query: Tensor, key: Tensor, value: Tensor, layout: Layout, *, scale: float | None) -> Tensor:
    """Attention of a pack: queries (1, A, T, D), keys and values (1, K, T, D) -> (1, T, A, D).

    Args:
        query: rotated.
        key: rotated.
        value: as they are.
        layout: who sees whom.
        scale: of the scores; None is 1 / sqrt(D).
    """
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    if query.device.type == "cpu":
        return _Parts.apply(query, key, value, layout.runs, factor)  # type: ignore[no-any-return]
    if query.is_cuda and takes_varlen(query.device, query.dtype):
        return varlen_attention(query, key, value, layout, scale=factor)
    return _by_answer(query, key, value, layout, factor)


class _Parts(torch.autograd.Function):
    """Split attention on a CPU, from the flash kernel's causal and unmasked forms alone.

    A prompt and each answer attend to themselves causally; the answers attend to their prompt in full, all of them in
    one call, for they lie side by side. The two parts of an answer are merged by their log-sum-exps, and since the
    kernel's backward takes the log-sum-exp and the output of the *whole* softmax, each part's gradient is exact.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, runs: list[Run], scale: float) -> Tensor:
        heads, tokens, size = query.shape[1:]
        out = query.new_empty(1, tokens, heads, size)  # (1, T, A, D), as the kernel writes its own
        accurate = torch.float64 if query.dtype == torch.float64 else torch.float32
        lse = torch.empty(1, tokens, heads, dtype=accurate)
        for span in _causal_spans(runs):
            q, k, v = (x[:, :, span] for x in (query, key, value))
            part, part_lse = _flash(q, k, v, 0.0, True, scale=scale)
            out[:, span], lse[:, span] = part.transpose(1, 2), part_lse.transpose(1, 2)
        for prompt, answers in _cross_spans(runs):
            part, part_lse = _flash(
                query[:, :, answers], key[:, :, prompt], value[:, :, prompt], 0.0, False, scale=scale
            )
            own, own_lse = out[:, answers], lse[:, answers]
            theirs = part_lse.transpose(1, 2)
            total = torch.logaddexp(own_lse, theirs)
            own.mul_((own_lse - total).exp_()[..., None])
            own.addcmul_(part.transpose(1, 2), (theirs - total).exp_()[..., None].to(own.dtype))
            own_lse.copy_(total)
        ctx.save_for_backward(query, key, value, out, lse)
        ctx.runs, ctx.scale = runs, scale
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        query, key, value, out, lse = ctx.saved_tensors
        grad, out, lse = grads[0].transpose(1, 2), out.transpose(1, 2), lse.transpose(1, 2)
        dq, dk, dv = (torch.empty_like(x) for x in (query, key, value))
        for s in _causal_spans(ctx.runs):
            args = (x[:, :, s] for x in (grad, query, key, value, out, lse))
            parts = _flash_backward(*args, 0.0, True, scale=ctx.scale)
            for whole, part in zip((dq, dk, dv), parts, strict=True):
                whole[:, :, s] = part
        for prompt, answers in _cross_spans(ctx.runs):
            k, v = key[:, :, prompt], value[:, :, prompt]
            g, q, whole_out, whole_lse = (x[:, :, answers] for x in (grad, query, out, lse))
            parts = _flash_backward(g, q, k, v, whole_out, whole_lse, 0.0, False, scale=ctx.scale)
            for whole, part, s in zip((dq, dk, dv), parts, (answers, prompt, prompt), strict=True):
                whole[:, :, s] += part
        return dq, dk, dv, None, None


def _causal_spans(runs: list[Run]) -> list[slice]:
    """What attends to itself: each prompt and each answer."""
    return [slice(a, a + n) for run in runs for a, n in (run.prompt, *run.answers)]


def _cross_spans(runs: list[Run]) -> list[tuple[slice, slice]]:
    """Each prompt, and all the answers that see it."""
    return [(slice(start, start + n), slice(start + n, run.stop)) for run in runs for start, n in [run.prompt]]


@functools.cache
def takes_varlen(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether PyTorch's flash attention for sequences of unequal lengths runs on a CUDA device in a dtype."""
    there = importlib.util.find_spec("torch.nn.attention.varlen") is not None
    half = dtype in (torch.float16, torch.bfloat16)
    return there and half and torch.cuda.get_device_capability(device) >= (8, 0)


@functools.cache
def _known_to(varlen_attn: Any) -> frozenset[str]:
    """Names of its arguments: they differ between releases of PyTorch."""
    return frozenset(inspect.signature(varlen_attn).parameters)


def varlen_attention(query: Tensor, key: Tensor, value: Tensor, layout: Layout, *, scale: float) -> Tensor:
    """The same in one call of `torch.nn.attention.varlen`: every prompt and every answer is a sequence of queries.

    Its keys are its prompt's and its own; causal masks are aligned at the ends, so an answer sees all of its prompt.
    """
    from torch.nn.attention.varlen import varlen_attn

    known, plan = _known_to(varlen_attn), layout.varlen
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))  # (T, heads, D)
    k, v = k.index_select(0, plan.keys), v.index_select(0, plan.keys)
    options: dict[str, Any] = {"window_size": (-1, 0)} if "window_size" in known else {"is_causal": True}
    if "scale" in known:
        options["scale"] = scale
    else:
        q = q * (scale * q.shape[-1] ** 0.5)
    if q.shape[1] != k.shape[1]:
        if "enable_gqa" in known:
            options["enable_gqa"] = True
        else:
            k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
    out: Any = varlen_attn(q, k, v, plan.starts_q, plan.starts_k, plan.max_q, plan.max_k, **options)
    return out[None]


def _by_answer(query: Tensor, key: Tensor, value: Tensor, layout: Layout, scale: float) -> Tensor:
    """The same by plain SDPA, a call for each prompt and each answer: any device, any dtype."""
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    parts = []
    for (start, p), answers in layout.runs:
        prompt = slice(start, start + p)
        q, k, v = (x[:, :, prompt] for x in (query, key, value))
        parts.append(nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale))
        for a, n in answers:
            own = slice(a, a + n)
            seen_k, seen_v = (torch.cat([x[:, :, prompt], x[:, :, own]], dim=2) for x in (key, value))
            # With fewer queries than keys `is_causal` is aligned at the start, so the mask is written out.
            mask = torch.ones(n, p + n, dtype=torch.bool, device=query.device).tril(p)
            q = query[:, :, own]
            parts.append(nn.functional.scaled_dot_product_attention(q, seen_k, seen_v, attn_mask=mask, scale=scale))
    return torch.cat(parts, dim=2).transpose(1, 2)
