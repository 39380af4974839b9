"""Log-probs of given tokens from hidden states, without ever holding all logits.

N completion tokens, H hidden size, V vocabulary.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

# Logits of one chunk take about this many bytes in fp32, whatever the vocabulary.
CHUNK_BYTES = 64 * 2**20


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
        size = max(16, CHUNK_BYTES // (4 * self.weight.shape[0]))
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
    if not torch.is_grad_enabled() or not (hidden.requires_grad or head.weight.requires_grad):
        return torch.cat([_chunk_logps(hidden[c], targets[c], head) for c in head.chunks(len(targets))])
    if head.plain and not head.weight.requires_grad:
        return _FrozenHeadLogps.apply(hidden, targets, head)  # type: ignore[no-any-return]
    chunks = head.chunks(len(targets))
    return torch.cat([checkpoint(_chunk_logps, hidden[c], targets[c], head, use_reentrant=False) for c in chunks])  # type: ignore[arg-type]


def token_kl(hidden: Tensor, head: Head, ref_hidden: Tensor, ref_head: Head) -> Tensor:
    """Exact KL(policy || reference) over the vocabulary at each position: (N, H), (N, H) -> (N,), in nats."""
    parts = []
    for c in head.chunks(len(hidden)):
        policy = torch.log_softmax(head.logits(hidden[c]), -1)
        ref = torch.log_softmax(ref_head.logits(ref_hidden[c]), -1)
        parts.append((policy.exp() * (policy - ref)).sum(-1))
    return torch.cat(parts)


def _chunk_logps(hidden: Tensor, targets: Tensor, head: Head) -> Tensor:
    logits = head.logits(hidden)
    return logits.gather(-1, targets[:, None])[:, 0] - logits.logsumexp(-1)


class _FrozenHeadLogps(torch.autograd.Function):
    """d logp / d hidden = W[target] - softmax(logits) W depends on the loss only through one factor a token.

    So it is formed while the logits are at hand, and backward is a multiplication.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, targets: Tensor, head: Head) -> Tensor:
        logps, gradients = [], []
        for c in head.chunks(len(targets)):
            logits = head.logits(hidden[c])  # (C, V)
            lse = logits.logsumexp(-1, keepdim=True)
            logps.append((logits.gather(-1, targets[c, None]) - lse)[:, 0])
            probs = logits.sub_(lse).exp_().to(head.weight.dtype)
            gradients.append(head.weight[targets[c]] - probs @ head.weight)
        ctx.save_for_backward(torch.cat(gradients).to(hidden.dtype))
        return torch.cat(logps)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        # The product in fp32: under a loss scale the factor alone can exceed fp16.
        return (grads[0][:, None] * gradient.to(grads[0].dtype)).to(gradient.dtype), None, None
