"""Time, memory and what was learned, step by step, while Lightning trains."""

import time
from dataclasses import dataclass
from typing import Any

import lightning
import torch
from torch.profiler import record_function

from dpo_lab.preference.layout import Layout
from dpo_lab.runtime.terminal import Bar
from dpo_lab.training.bench_memory import Peak
from dpo_lab.training.bench_profile import LABELS, Profile
from dpo_lab.training.interrupt import Interrupt
from dpo_lab.training.module import PreferenceModule


@dataclass(frozen=True)
class Step:
    """One optimizer step.

    Attributes:
        seconds: from the end of the step before to its own.
        waited: seconds of them until its pairs were on the device.
        layouts: its micro-batches.
        loss: mean of its pairs, before its update.
        grad_norm: of its gradient, before clipping.
    """

    seconds: float
    waited: float
    layouts: list[Layout]
    loss: float
    grad_norm: float


class Clock(lightning.Callback):
    """Takes the time of `timed` steps after the first `warmup`, and profiles those that are left.

    Attributes:
        steps: all steps, in order.
        peak_bytes: the most memory up to the end of the timed steps, before the profiler takes its own.
        profiled_seconds: of the steps under the profiler, together.
    """

    def __init__(
        self,
        *,
        warmup: int,
        timed: int,
        profile: Profile,
        peak: Peak,
        device: torch.device,
        interrupt: Interrupt,
        bar: Bar,
    ) -> None:
        self.warmup, self.timed, self.profile, self.peak, self.device = warmup, timed, profile, peak, device
        self.interrupt, self.bar = interrupt, bar
        self.steps: list[Step] = []
        self.peak_bytes, self.profiled_seconds = 0, 0.0
        self._waiting: record_function | None = None
        self._begun = self._waited = 0.0

    @property
    def measured(self) -> list[Step]:
        """The timed steps."""
        return self.steps[self.warmup : self.warmup + self.timed]

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Take the signals back from Lightning; the first step begins."""
        self.interrupt.listen()
        self._wait_for_data()

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """The step's pairs are there."""
        assert self._waiting is not None
        self._waiting.__exit__(None, None, None)
        self._waiting = None
        self._waited = time.perf_counter() - self._begun

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """A step is done once the device is."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        seconds = time.perf_counter() - self._begun
        module: PreferenceModule = pl_module
        module.read()
        loss, norm = float(module.last["loss"]), float(module.last["grad_norm"])
        self.steps.append(Step(seconds, self._waited, list(batch), loss, norm))
        self.bar.advance(1, f"loss {loss:.4f}  {seconds:.2f} s")
        self.interrupt.check()
        done = len(self.steps)
        if done > self.warmup + self.timed:
            self.profiled_seconds += seconds
        elif done == self.warmup + self.timed:
            self.peak_bytes = self.peak.peak()
            if done < module.total_steps:
                self.profile.start()
        if done < module.total_steps:
            self._wait_for_data()
        elif done > self.warmup + self.timed:
            self.profile.stop()

    def _wait_for_data(self) -> None:
        self._begun = time.perf_counter()
        self._waiting = record_function(LABELS["data"])
        self._waiting.__enter__()
