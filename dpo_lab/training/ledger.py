"""The numbers of the steps: they stay on the device until they are read, all that wait in one transfer."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from dpo_lab.preference.objective import PairLogps
from dpo_lab.runtime.errors import Guarded

NO_GRADIENT = (
    "The gradient of the first step is zero, so nothing would be learned: the loss does not depend on what is trained. "
    "Check lora.target_modules and the loss's hyper-parameters."
)


@dataclass(frozen=True)
class StepRow:
    """One step, read.

    Attributes:
        step: its number, from 1.
        pairs: of the step, on all ranks.
        metrics: by name, without prefix.
        finite: whether these numbers were finite; for messages.
        scaled: whether the gradient was scaled, so that a norm that is not finite skips the update and no more.
    """

    step: int
    pairs: int
    metrics: dict[str, float]
    finite: dict[str, bool]
    scaled: bool

    def check(self) -> None:
        """Stop where the numbers have ceased to mean anything.

        Raises:
            Guarded: loss or gradient are not finite, or the first gradient is zero.
        """
        loss, norm = self.metrics["loss"], self.metrics["grad_norm"]
        if not math.isfinite(loss):
            worst = [name for name, fine in self.finite.items() if not fine]
            where = f" ({', '.join(worst)} are not finite)" if worst else ""
            raise Guarded(
                f"The loss of step {self.step} is {loss}{where}. Lower optim.lr, raise loss.beta, or check the data."
            )
        if not math.isfinite(norm) and not self.scaled:
            raise Guarded(
                f"The gradient of step {self.step} is not finite (norm {norm}), though its loss is. Lower optim.lr, or "
                "check the loss where log-ratios are zero."
            )
        if self.step == 1 and norm == 0.0:
            raise Guarded(NO_GRADIENT)


class Ledger:
    """Steps whose numbers have not been read yet."""

    def __init__(self) -> None:
        self._waiting: list[tuple[StepRow, tuple[str, ...], Tensor]] = []

    def add(
        self, step: int, pairs: PairLogps, metrics: Mapping[str, Tensor], *, lr: float, scaled: bool = False
    ) -> None:
        """Keep the numbers of a step.

        Args:
            step: its number, from 1.
            pairs: of the step.
            metrics: scalars on the device.
            lr: of the step.
            scaled: whether the gradient was scaled.
        """
        sums = {"policy log-probs": pairs.chosen_logps, "reference log-probs": pairs.ref_chosen_logps}
        flags = [torch.isfinite(values).all() for values in sums.values()]
        # float64 holds every float32, so that what is read is what `item` would give; Apple's GPUs have none.
        dtype = torch.float32 if pairs.chosen_logps.device.type == "mps" else torch.float64
        vector = torch.stack([value.detach().to(dtype) for value in (*metrics.values(), *flags)])
        row = StepRow(step, len(pairs.chosen_logps), {"lr": lr}, dict.fromkeys(sums, True), scaled)
        self._waiting.append((row, tuple(metrics), vector))

    def read(self) -> list[StepRow]:
        """The steps that wait, in order. The only place of a step that waits for the device."""
        if not self._waiting:
            return []
        values = torch.stack([vector for *_, vector in self._waiting]).tolist()
        rows = [_filled(row, names, found) for (row, names, _), found in zip(self._waiting, values, strict=True)]
        self._waiting.clear()
        return rows


def _filled(row: StepRow, names: tuple[str, ...], values: list[float]) -> StepRow:
    metrics = dict(zip(names, values, strict=False)) | row.metrics
    finite = {name: bool(v) for name, v in zip(row.finite, values[len(names) :], strict=True)}
    return StepRow(row.step, row.pairs, metrics, finite, row.scaled)
