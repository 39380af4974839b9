"""Log-probs of given tokens from hidden states, without ever holding all logits.

N completion tokens, H hidden size, V vocabulary.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

# Logits of one chunk take about this many bytes in fp32, whatever the vocabulary; on a GPU, where each chunk reads the
# whole head anew, four times as many.
CHUNK_BYTES = 64 * 2**20
HALF = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Head:
    """The language-model head: logits = cap(scale (hidden W^T + b))."""

    weight: Tensor  # (V, H)
    bias: Tensor | None = None  # (V,)
    scale: float = 1.0
    softcap: float | None = None

    @property
    def plain(self) -> bool:
        """Whether logits are hidden W^T and nothing more."""
        return self.bias is None and self.scale == 1.0 and self.softcap is None

    def logits(self, hidden: Tensor) -> Tensor:
        """(N, H) -> (N, V) in fp32, or in fp64 for an fp64 head."""
        logits = nn.functional.linear(hidden.to(self.weight.dtype), self.weight, self.bias)
        logits = logits if logits.dtype == torch.float64 else logits.float()
        if self.scale != 1.0:
            logits = logits * self.scale
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)

    def chunks(self, n: int) -> list[slice]:
        """Slices of n tokens, each small enough that its logits take CHUNK_BYTES."""
        room = CHUNK_BYTES if self.weight.device.type == "cpu" else 4 * CHUNK_BYTES
        size = max(16, room // (4 * self.weight.shape[0]))
        return [slice(i, min(i + size, n)) for i in range(0, n, size)]


def head_of(model: nn.Module) -> Head:
    """The head of a transformers causal language model, with its family's own scaling."""
    output: Any = model.get_output_embeddings()  # type: ignore[operator]
    config: Any = model.config
    scale = 1.0
    if (multiplier := getattr(config, "logit_scale", None)) is not None:  # Cohere
        scale = float(multiplier)
    elif (divisor := getattr(config, "logits_scaling", None)) is not None:  # Granite
        scale = 1.0 / float(divisor)
    return Head(output.weight, getattr(output, "bias", None), scale, getattr(config, "final_logit_softcapping", None))


def token_logps(hidden: Tensor, targets: Tensor, head: Head) -> Tensor:
    """Log-prob of each target given the hidden state that predicts it: (N, H), (N,) -> (N,).

    Logits exist for one chunk of tokens at a time. Under a frozen plain head the gradient with respect to the hidden
    states is formed during forward; otherwise a chunk's logits are computed again in backward.
    """
    return _over_chunks(hidden, targets, head, squares=False)[0]


def token_statistics(hidden: Tensor, targets: Tensor, head: Head) -> tuple[Tensor, Tensor]:
    """Log-prob of each target, and log sum_v p_v^2 of the distribution it comes from: (N, H), (N,) -> (N,), (N,).

    The second has no gradient. It is how likely, on log scale, a token drawn from the model is under the model.
    """
    return _over_chunks(hidden, targets, head, squares=True)


def token_kl(hidden: Tensor, head: Head, ref_hidden: Tensor, ref_head: Head) -> Tensor:
    """Exact KL(policy || reference) over the vocabulary at each position: (N, H), (N, H) -> (N,), in nats."""
    parts = []
    for c in head.chunks(len(hidden)):
        policy = torch.log_softmax(head.logits(hidden[c]), -1)
        ref = torch.log_softmax(ref_head.logits(ref_hidden[c]), -1).to(policy)
        parts.append((policy.exp() * (policy - ref)).sum(-1))
    return torch.cat(parts)


def _over_chunks(hidden: Tensor, targets: Tensor, head: Head, *, squares: bool) -> tuple[Tensor, Tensor]:
    """Log-probs (N,), and log sum_v p_v^2 (N,) or, unless asked for, (0,)."""
    chunks = head.chunks(len(targets))
    if not torch.is_grad_enabled() or not (hidden.requires_grad or head.weight.requires_grad):
        parts = [_in_place(hidden[c], targets[c], head, squares)[:2] for c in chunks]
    elif head.plain and not head.weight.requires_grad:
        return _FrozenHeadLogps.apply(hidden, targets, head, squares)  # type: ignore[no-any-return]
    else:
        parts = [checkpoint(_chunk, hidden[c], targets[c], head, squares, use_reentrant=False) for c in chunks]  # type: ignore[misc]
    logps, log_sum_sq = zip(*parts, strict=True)
    return torch.cat(logps), torch.cat(log_sum_sq)


def _chunk(hidden: Tensor, targets: Tensor, head: Head, squares: bool) -> tuple[Tensor, Tensor]:
    """Log-probs (C,) and log sum_v p_v^2 (C,), to be differentiated."""
    logits = head.logits(hidden)  # (C, V)
    lse = logits.logsumexp(-1, keepdim=True)
    logps = (logits.gather(-1, targets[:, None]) - lse)[:, 0]
    if not squares:
        return logps, logps.new_empty(0)
    return logps, _log_sum_sq((logits.detach() - lse.detach()).exp_(), 1.0)


def _in_place(hidden: Tensor, targets: Tensor, head: Head, squares: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The same without gradient, and softmax(logits) as (C, V) over (C, 1), of the head's dtype.

    The logits are overwritten: a second (C, V) costs more in fresh memory than in arithmetic.
    """
    if head.plain and head.weight.dtype in HALF:
        return _in_16_bits(nn.functional.linear(hidden.to(head.weight.dtype), head.weight), targets, squares)
    logits = head.logits(hidden)
    logits.sub_(logits.amax(-1, keepdim=True))
    target = logits.gather(-1, targets[:, None])
    powers = logits.exp_()
    total = powers.sum(-1, keepdim=True)
    log_sum_sq = _log_sum_sq(powers, total) if squares else total.new_empty(0)
    return (target - total.log())[:, 0], log_sum_sq, powers, total


def _in_16_bits(logits: Tensor, targets: Tensor, squares: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """From logits (C, V) as the product left them: two kernels that compute in fp32 and pass over them once each."""
    log_probs = torch.log_softmax(logits, -1, dtype=torch.float32)
    logps = log_probs.gather(-1, targets[:, None])[:, 0]
    log_sum_sq = _log_sum_sq(log_probs.exp_(), 1.0) if squares else logps.new_empty(0)
    return logps, log_sum_sq, torch.softmax(logits, -1), torch.ones_like(logps)[:, None]


def _log_sum_sq(powers: Tensor, total: Tensor | float) -> Tensor:
    """Log sum_v p_v^2 of p = powers / total, (C, V), (C, 1) -> (C,). It is at least -log V, so nothing underflows."""
    return 2 * (torch.linalg.vector_norm(powers, dim=-1, keepdim=True) / total).log()[:, 0]


class _FrozenHeadLogps(torch.autograd.Function):
    """d logp / d hidden = W[target] - softmax(logits) W depends on the loss only through one factor a token.

    So it is formed while the logits are at hand, and backward is a multiplication.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, targets: Tensor, head: Head, squares: bool) -> tuple[Tensor, Tensor]:
        parts, gradients = [], []
        for c in head.chunks(len(targets)):
            logps, log_sum_sq, powers, total = _in_place(hidden[c], targets[c], head, squares)
            parts.append((logps, log_sum_sq))
            mean = powers @ head.weight  # (C, H), times the total
            gradients.append(torch.addcdiv(head.weight[targets[c]], mean, total.to(mean.dtype), value=-1))
        ctx.save_for_backward(torch.cat(gradients).to(hidden.dtype))
        first, second = (torch.cat(values) for values in zip(*parts, strict=True))
        ctx.mark_non_differentiable(second)
        return first, second

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        # The product in fp32: under a loss scale the factor alone can exceed fp16.
        return (grads[0][:, None] * gradient.to(grads[0].dtype)).to(gradient.dtype), None, None, None
