"""The reference's log-probs, however they are had. Training code does not ask which way it is."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from dpo_lab.preference.forward import Forward
from dpo_lab.preference.layout import Layout
from dpo_lab.preference.ref_cache import RefCache

COPY = "reference"  # name of the frozen copy of a continued adapter

ModelContext = Callable[[], AbstractContextManager[nn.Module]]


class Reference(Protocol):
    """Per-token log-probs of what the policy is measured against."""

    @property
    def present(self) -> bool:
        """Whether there is one."""
        ...

    @property
    def mode(self) -> str:
        """How the log-probs are had."""
        ...

    @property
    def model(self) -> ModelContext | None:
        """The reference as a model in eval mode while the context is open; None if it is not in memory."""
        ...

    def logps(self, layout: Layout) -> Tensor:
        """Per-token log-probs (N,) of the completions, without gradients."""
        ...


class LiveReference:
    """A forward pass of the reference at every step, on its own device."""

    present = True

    def __init__(self, mode: str, model: ModelContext, forward: Forward, device: torch.device | None = None) -> None:
        self.mode, self.model, self.forward, self.device = mode, model, forward, device

    @torch.no_grad()
    def logps(self, layout: Layout) -> Tensor:
        """Per-token log-probs (N,) of the completions."""
        with self.model() as model:
            there = layout if self.device is None else layout.to(self.device)
            return self.forward.logps(model, there).to(layout.ids.device)


class CachedReference:
    """Log-probs computed before and kept on disk."""

    mode, present = "cached", True

    def __init__(self, cache: RefCache, model: ModelContext | None) -> None:
        self.cache, self.model = cache, model

    def logps(self, layout: Layout) -> Tensor:
        """Per-token log-probs (N,) of the completions."""
        return torch.cat(self.cache.read(layout.keys)).to(layout.ids.device, non_blocking=True)


class NoReference:
    """Nothing to measure against: log-ratios are the policy's own log-probs."""

    mode, present = "none", False
    model: ModelContext | None = None

    def logps(self, layout: Layout) -> Tensor:
        """Zeros (N,)."""
        return torch.zeros(len(layout.targets), device=layout.ids.device)


def frozen_model(model: nn.Module) -> ModelContext:
    """A model of its own."""
    model.requires_grad_(False).eval()
    return lambda: nullcontext(model)


def adapter_off(policy: nn.Module) -> ModelContext:
    """The policy without its adapter."""

    @contextmanager
    def switched() -> Iterator[nn.Module]:
        peft: Any = policy
        with _evaluating(policy), peft.disable_adapter():
            yield policy

    return switched


def adapter_copy(policy: nn.Module) -> ModelContext:
    """The policy with the frozen copy of its start adapter, COPY, in place of the trained one."""

    @contextmanager
    def switched() -> Iterator[nn.Module]:
        peft: Any = policy
        trained = peft.active_adapter
        with _evaluating(policy):
            peft.base_model.set_adapter(COPY, inference_mode=True)
            try:
                yield policy
            finally:
                peft.base_model.set_adapter(trained)

    return switched


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def fill_cache(
    cache: RefCache,
    layouts: list[Layout],
    model: ModelContext,
    forward: Forward,
    *,
    device: torch.device,
    on_batch: Callable[[int], None],
) -> None:
    """Compute the log-probs of the layouts' answers and keep them, committing each micro-batch.

    Args:
        cache: where they are kept.
        layouts: micro-batches of pairs whose answers are missing.
        model: the reference.
        forward: how log-probs are computed.
        device: where the model is.
        on_batch: called with the number of pairs after each micro-batch; may raise to stop.
    """
    with model() as opened, torch.no_grad():  # once: opening may mean loading
        for layout in layouts:
            per_token = forward.logps(opened, layout.to(device)).float().cpu()
            cache.write(dict(zip(layout.keys, per_token.split([n for *_, n in layout.answers]), strict=True)))
            on_batch(len(layout))
