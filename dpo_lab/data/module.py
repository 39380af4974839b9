"""The training pairs as optimizer steps."""

import signal
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import lightning
import torch
from torch.utils.data import DataLoader, Dataset

from dpo_lab.data.collate import microbatches
from dpo_lab.data.types import Example
from dpo_lab.preference.layout import Layout
from dpo_lab.runtime.files import digest


@lru_cache(maxsize=2)
def epoch_order(n: int, *, seed: int, epoch: int) -> list[int]:
    """The order of n pairs in an epoch: a pure function of the data's seed and the epoch."""
    generator = torch.Generator().manual_seed(int(digest(f"order {seed} {epoch}"), 16) % 2**63)
    return torch.randperm(n, generator=generator).tolist()


def step_pairs(step: int, n: int, *, batch_size: int, seed: int) -> list[int]:
    """The pairs of a step, counted from 0. A step may span epochs, so no pair is left out but the run's remainder."""
    first, orders, rows = step * batch_size, {}, []
    for position in range(first, first + batch_size):
        epoch, place = divmod(position, n)
        if epoch not in orders:
            orders[epoch] = epoch_order(n, seed=seed, epoch=epoch)
        rows.append(orders[epoch][place])
    return rows


def count_steps(n: int, *, batch_size: int, epochs: float, max_steps: int | None) -> int:
    """Optimizer steps of a run over n pairs; `max_steps` overrides `epochs`."""
    return max_steps if max_steps is not None else int(n * epochs / batch_size + 1e-9)


class Steps(Dataset[list[Layout]]):
    """One item is one optimizer step, as a list of micro-batches; of several ranks each has its share of the pairs."""

    def __init__(
        self,
        examples: Sequence[Example],
        *,
        start: int,
        end: int,
        batch_size: int,
        seed: int,
        tokens: int,
        rank: int = 0,
        ranks: int = 1,
        shared: bool = False,
    ) -> None:
        self.examples, self.start, self.end = examples, start, end
        self.batch_size, self.seed, self.tokens = batch_size, seed, tokens
        self.rank, self.ranks, self.shared = rank, ranks, shared

    def __len__(self) -> int:
        return self.end - self.start

    def __getitem__(self, i: int) -> list[Layout]:
        if i >= len(self):
            raise IndexError(i)
        return self.cut(self.start + i, self.tokens)

    def cut(self, step: int, tokens: int) -> list[Layout]:
        """The micro-batches, of at most `tokens` tokens, of a step of the run, counted from 0."""
        rows = step_pairs(step, len(self.examples), batch_size=self.batch_size, seed=self.seed)
        rows = rows[self.rank :: self.ranks]
        return microbatches([self.examples[r] for r in rows], rows, tokens=tokens, shared=self.shared)


class PreferenceData(lightning.LightningDataModule):
    """Serves the steps from `start` to `end`: resuming is skipping.

    Args:
        steps: what is served.
        workers: processes that lay out steps ahead. They are forked, so the memory-mapped pairs are shared; each step
            is a function of its number, so how many they are changes nothing.
        pinned: lay them out in pinned memory, from which a GPU takes them without waiting.
    """

    def __init__(self, steps: Steps, *, workers: int, pinned: bool = False) -> None:
        super().__init__()
        self.steps, self.workers, self.pinned = steps, workers, pinned

    def train_dataloader(self) -> Any:
        """Steps in order."""
        return DataLoader(
            self.steps,
            batch_size=None,
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
            pin_memory=self.pinned,
            collate_fn=_as_is,
            worker_init_fn=_leave_ctrl_c_to_the_parent,
        )

    def transfer_batch_to_device(self, batch: list[Layout], device: torch.device, dataloader_idx: int) -> list[Layout]:
        """To the device, without waiting where the memory is pinned."""
        return [layout.to(device, non_blocking=self.pinned) for layout in batch]


def _as_is(step: list[Layout]) -> list[Layout]:
    return step


def _leave_ctrl_c_to_the_parent(worker: int) -> None:
    """A terminal sends it to all processes; the run ends at the end of its step and still needs what is laid out."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
