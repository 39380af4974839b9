"""`trainer.microbatch_tokens=auto` on a GPU: the largest micro-batch that fits, found by trying small ones."""

import logging
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import nn

from dpo_lab.config.schema import Config
from dpo_lab.data.collate import count, microbatches
from dpo_lab.data.tokens import Examples
from dpo_lab.data.types import Example
from dpo_lab.inference.setup import microbatch_tokens
from dpo_lab.models.memory import MOST_TOKENS, NO_ROOM
from dpo_lab.models.precision import Precision
from dpo_lab.preference.forward import Forward
from dpo_lab.preference.layout import Layout
from dpo_lab.runtime.errors import NoRoom

log = logging.getLogger(__name__)
SMALL = 3  # pairs of the larger of the two tries
MARGIN = 0.1  # of the free memory, for what lies in pieces
SMALLER = 0.8  # of the tokens, where the result did not fit after all


class Meter(Protocol):
    """The memory of a device."""

    def peak(self, work: Callable[[], None]) -> int:
        """Bytes that `work` held at most, beyond what was there before."""
        ...

    def free(self) -> int:
        """Bytes that can still be had."""
        ...


class CudaMeter:
    """PyTorch's own counts on a CUDA device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def peak(self, work: Callable[[], None]) -> int:
        """Bytes that `work` held at most, beyond what was there before."""
        before = torch.cuda.memory_allocated(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        work()
        torch.cuda.synchronize(self.device)
        return torch.cuda.max_memory_allocated(self.device) - before

    def free(self) -> int:
        """Bytes that can still be had, those that PyTorch keeps ready included."""
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info(self.device)
        used, kept = torch.cuda.memory_allocated(self.device), torch.cuda.memory_reserved(self.device)
        allowed = int(torch.cuda.get_per_process_memory_fraction(self.device) * total)
        return min(free + kept, allowed) - used


def find_microbatch(
    config: Config,
    policy: nn.Module,
    forward: Forward,
    train: Examples,
    precision: Precision,
    device: torch.device,
) -> int:
    """Tokens of a training micro-batch, for a run that begins: measured on a GPU, else a function of the model alone."""
    tokens = microbatch_tokens(config, getattr(policy, "config"), precision, device)  # noqa: B009
    if config.trainer.microbatch_tokens != "auto" or device.type != "cuda":
        return tokens
    longest = np.argsort(-train.lengths.sum(axis=1), kind="stable")[: config.optim.batch_size]
    found = largest_that_fits(policy, forward, [train[int(row)] for row in longest], CudaMeter(device), device)
    torch.cuda.empty_cache()  # so that the reference pass, which comes next, sees what is free
    return found


def largest_that_fits(
    policy: nn.Module, forward: Forward, longest: Sequence[Example], meter: Meter, device: torch.device
) -> int:
    """Tokens of the largest micro-batch whose forward and backward pass fit beside the optimizer's state.

    Peak memory is taken to be a constant and so many bytes a token, from two small micro-batches of the longest pairs;
    what comes out is tried once on them. Gradients and the random state are as before.

    Args:
        policy: on the device, in eval mode.
        forward: how log-probs are computed.
        longest: the longest pairs, as many as a step has, in falling order.
        meter: of the device.
        device: where the policy is.

    Raises:
        NoRoom: one pair is too large.
    """
    shared = forward.shares(policy)

    def largest(pairs: Sequence[Example], tokens: int) -> Layout:
        cut = microbatches(pairs, range(len(pairs)), tokens=tokens, shared=shared)
        return max(cut, key=lambda layout: count(layout, shared=shared))

    def peak(layout: Layout) -> int:
        return meter.peak(lambda: _forward_and_backward(policy, forward, layout.to(device)))

    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        one, more = largest(longest[:1], 1), largest(longest[:SMALL], MOST_TOKENS)
        try:
            peak(one)  # the first pass of all makes room for kernels' own needs, which is not counted
            low, high = peak(one), peak(more)
        except torch.OutOfMemoryError:
            low = high = None
        if low is None or high is None:
            return _tried(largest, peak, longest, count(more, shared=shared), shared)
        sizes = count(one, shared=shared), count(more, shared=shared)
        per_token = (high - low) / (sizes[1] - sizes[0]) if sizes[1] > sizes[0] else low / sizes[0]
        per_token = max(per_token, 1.0)
        fixed = max(0.0, low - per_token * sizes[0])
        room = meter.free() * (1 - MARGIN) - _state_bytes(policy) - fixed
        tokens = max(sizes[0], min(MOST_TOKENS, int(room / per_token)))
        log.info("memory: %.0f bytes a token and %.0f MiB beside; trying %d tokens", per_token, fixed / 2**20, tokens)
        return _tried(largest, peak, longest, tokens, shared)


def _tried(
    largest: Callable[[Sequence[Example], int], Layout],
    peak: Callable[[Layout], int],
    longest: Sequence[Example],
    tokens: int,
    shared: bool,
) -> int:
    """`tokens`, or less if the longest pairs do not fit when cut by it."""
    while True:
        layout = largest(longest, tokens)
        try:
            peak(layout)
        except torch.OutOfMemoryError:
            pass
        else:
            return tokens
        if len(layout) == 1:
            raise NoRoom(NO_ROOM)
        tokens = int(SMALLER * min(tokens, count(layout, shared=shared)))


def _forward_and_backward(policy: nn.Module, forward: Forward, layout: Layout) -> None:
    was_training = policy.training
    policy.train()
    try:
        logps = forward.logps(policy, layout)
        with torch.no_grad():
            forward.logps(policy, layout)  # as a reference that is in memory would
        logps.sum().backward()
    finally:
        policy.zero_grad(set_to_none=True)
        policy.train(was_training)


def _state_bytes(policy: nn.Module) -> int:
    """Of the gradients, which stay between micro-batches, and AdamW's two moments."""
    return sum(3 * p.numel() * p.element_size() for p in policy.parameters() if p.requires_grad)
