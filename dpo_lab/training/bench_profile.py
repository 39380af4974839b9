"""Steps under torch's profiler: which part of them takes the time, and a trace to look at."""

import gzip
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity

from dpo_lab.runtime.files import atomic_produce

# What the training code calls its parts under the profiler, in the order of a step. `data` is the wait for a step.
LABELS = {
    "data": "dpo_lab/data",
    "reference": "dpo_lab/reference",
    "forward": "dpo_lab/body",
    "head": "dpo_lab/head",
    "backward": "dpo_lab/backward",
    "optimizer": "dpo_lab/optimizer",
}
LARGE = 8 * 2**20  # bytes of a trace from which on it is packed


@dataclass(frozen=True)
class Split:
    """Where the time of the profiled steps went.

    Attributes:
        seconds: part -> seconds, `other` included; they add up to `total`. On a GPU seconds of its kernels, and `other`
            is when none of a labelled part ran.
        total: seconds of the steps under the profiler, which are slower than others.
        missing: parts that the profiler did not see.
    """

    seconds: dict[str, float]
    total: float
    missing: tuple[str, ...]

    @property
    def shares(self) -> dict[str, float]:
        """Part -> share of the whole."""
        return {part: seconds / self.total for part, seconds in self.seconds.items()}


class Profile:
    """Torch's profiler over some steps.

    Args:
        device: where the model is.
        shapes: whether the trace says the operators' shapes, which takes time.
    """

    def __init__(self, device: torch.device, *, shapes: bool) -> None:
        self.on_gpu = device.type == "cuda"
        activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * self.on_gpu
        self._profiler = torch.profiler.profile(activities=activities, record_shapes=shapes)

    def start(self) -> None:
        """Begin to record."""
        self._profiler.start()

    def stop(self) -> None:
        """End it."""
        self._profiler.stop()

    def split(self, total: float) -> Split:
        """The recorded time by part; `total` are the seconds from start to end."""
        events: list[Any] = list(self._profiler.events() or [])
        spans = outermost(
            (e.time_range.start, e.time_range.end, e.name)
            for e in events
            if e.name in LABELS.values() and "CPU" in str(e.device_type)
        )
        kernels = None
        if self.on_gpu:
            kernels = [(float(e.time_range.start), float(sum(k.duration for k in _kernels(e)))) for e in events]
        return divide(spans, kernels, total)

    def write(self, path: Path) -> Path:
        """Write the trace, packed as PATH.gz where it is large; returns where it is."""
        atomic_produce(path, lambda temporary: self._profiler.export_chrome_trace(str(temporary)))
        if path.stat().st_size < LARGE:
            return path
        packed = path.with_name(f"{path.name}.gz")
        atomic_produce(packed, lambda temporary: _pack(path, temporary))
        path.unlink()
        return packed


Span = tuple[float, float, str]  # start and end in microseconds, label


def outermost(spans: Iterable[Span]) -> list[Span]:
    """Without those that lie in another: the head of a reference's own forward pass is part of the reference."""
    kept: list[Span] = []
    for span in sorted(spans, key=lambda s: (s[0], -s[1])):
        if not kept or span[0] >= kept[-1][1]:
            kept.append(span)
    return kept


def divide(spans: list[Span], kernels: list[tuple[float, float]] | None, total: float) -> Split:
    """Seconds of each part.

    Args:
        spans: labelled stretches of the thread that trains, in order, none in another.
        kernels: (when an operator started, microseconds that its kernels took) on a GPU, whose work ends later than
            the stretch that asked for it; None counts the stretches themselves.
        total: seconds of the whole.
    """
    names = {label: part for part, label in LABELS.items()}
    taken = dict.fromkeys(LABELS, 0.0)
    for start, end, label in spans:
        if kernels is None:
            taken[names[label]] += (end - start) / 1e6
        else:  # of any thread: autograd has its own, and works while this one waits for it
            taken[names[label]] += sum(us for begun, us in kernels if start <= begun < end) / 1e6
    seen = {names[label] for *_, label in spans}
    missing = tuple(part for part in LABELS if part not in seen)
    return Split(taken | {"other": max(0.0, total - sum(taken.values()))}, total, missing)


def _kernels(event: Any) -> list[Any]:
    """What an operator ran on the GPU, without the labels that the profiler repeats there."""
    return [k for k in event.kernels if "/" not in k.name and not k.name.startswith("enumerate(")]


def _pack(source: Path, target: Path) -> None:
    with open(source, "rb") as plain, gzip.open(target, "wb", compresslevel=6) as packed:
        shutil.copyfileobj(plain, packed)
