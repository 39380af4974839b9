"""Several processes that train one model: each takes its share of a step's pairs, and they meet once a step."""

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from dpo_lab.preference.objective import PairLogps
from dpo_lab.runtime.errors import LabError

BUCKET = 32 * 2**20  # gradient entries that travel together
PATIENCE = timedelta(hours=2)  # ranks wait while the first one evaluates


class LostTouch(LabError):
    """A rank went away, so that the others wait for nobody."""


@contextmanager
def _in_touch() -> Iterator[None]:
    try:
        yield
    except RuntimeError as e:  # gloo's and NCCL's alike
        raise LostTouch(f"The processes that train together lost touch: {str(e).splitlines()[0]}") from e


@dataclass(frozen=True)
class Ranks:
    """This process among those of the run. Alone, nothing is sent."""

    rank: int = 0
    size: int = 1

    def total(self, n: int, device: torch.device) -> int:
        """The sum of a count over all ranks."""
        if self.size == 1:
            return n
        count = torch.tensor(n, device=device)
        with _in_touch():
            dist.all_reduce(count)
            return int(count)

    def join(self, pairs: PairLogps) -> tuple[PairLogps, slice]:
        """The pairs of all ranks as one step, in the order of the ranks, and where this rank's own stand in it."""
        if self.size == 1:
            return pairs, slice(0, len(pairs.chosen_logps))
        columns = {f.name: column for f in fields(pairs) if (column := getattr(pairs, f.name)) is not None}
        own = torch.stack([column.detach().double() for column in columns.values()])  # (fields, B of this rank)
        counts = [torch.zeros((), dtype=torch.long, device=own.device) for _ in range(self.size)]
        with _in_touch():
            dist.all_gather(counts, torch.tensor(own.shape[1], device=own.device))
            lengths = [int(n) for n in counts]
        padded = own.new_zeros(own.shape[0], max(lengths))
        padded[:, : own.shape[1]] = own
        all_ranks = [torch.empty_like(padded) for _ in lengths]
        with _in_touch():
            dist.all_gather(all_ranks, padded)
        whole = torch.cat([part[:, :n] for part, n in zip(all_ranks, lengths, strict=True)], dim=1)
        step = {name: row.to(column.dtype) for (name, column), row in zip(columns.items(), whole, strict=True)}
        start = sum(lengths[: self.rank])
        return PairLogps(**step), slice(start, start + lengths[self.rank])

    def add_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Replace each gradient by its sum over all ranks."""
        if self.size == 1:
            return
        for bucket in _buckets([p.grad for p in parameters if p.grad is not None]):
            flat = torch.cat([g.reshape(-1) for g in bucket])
            with _in_touch():
                dist.all_reduce(flat)
            for gradient, summed in zip(bucket, flat.split([g.numel() for g in bucket]), strict=True):
                gradient.copy_(summed.view_as(gradient))

    def from_first(self, value: Any) -> Any:
        """What the first rank has."""
        if self.size == 1:
            return value
        box = [value]
        with _in_touch():
            dist.broadcast_object_list(box)
        return box[0]

    @contextmanager
    def meeting(self, place: Path, device: torch.device) -> Iterator[None]:
        """Connected to the other ranks, who come to the same `place`, a file that does not exist yet."""
        if self.size == 1:
            yield
            return
        if device.type == "cpu" and sys.platform == "linux":
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # all ranks are on this machine
        if device.type == "cuda":
            torch.cuda.set_device(device)
        with _in_touch():
            dist.init_process_group(
                "nccl" if device.type == "cuda" else "gloo", init_method=place.absolute().as_uri(), rank=self.rank,
                world_size=self.size, timeout=PATIENCE,
            )  # fmt: skip
        try:
            yield
        finally:
            dist.destroy_process_group()


def _buckets(gradients: list[Tensor]) -> Iterator[list[Tensor]]:
    """Gradients of one dtype, up to BUCKET entries together, in the order of the parameters."""
    bucket: list[Tensor] = []
    for gradient in gradients:
        if bucket and (gradient.dtype != bucket[0].dtype or sum(g.numel() for g in bucket) + gradient.numel() > BUCKET):
            yield bucket
            bucket = []
        bucket.append(gradient)
    if bucket:
        yield bucket
