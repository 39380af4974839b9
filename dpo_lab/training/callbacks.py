"""What happens around a training step: metrics, evaluation, checkpoints, guards, requests to end."""

import contextlib
import time
from collections.abc import Callable
from typing import Any

import lightning

from dpo_lab.config.schema import Trainer as TrainerConfig
from dpo_lab.runtime.errors import Guarded, Interrupted
from dpo_lab.runtime.terminal import Bar
from dpo_lab.training.checkpoint import save_checkpoint
from dpo_lab.training.folder import RunFolder
from dpo_lab.training.interrupt import Interrupt
from dpo_lab.training.ledger import StepRow
from dpo_lab.training.module import PreferenceModule

COLLAPSED_STEPS = 3  # in a row, before the guard stops the run


class RunCallback(lightning.Callback):
    """Keeps the run folder up to date while the trainer runs."""

    def __init__(
        self,
        folder: RunFolder,
        config: TrainerConfig,
        interrupt: Interrupt,
        bar: Bar,
        *,
        resume: dict[str, Any] | None,
        write: Callable[[dict[str, float], int], None],
        evaluate: Callable[[int], None],
        facts: dict[str, Any],
    ) -> None:
        self.folder, self.config, self.interrupt, self.bar = folder, config, interrupt, bar
        self.resume, self.write, self.evaluate, self.facts = resume, write, evaluate, facts
        self.collapsed = 0
        self.first: float | None = None
        self.saved = -1
        self.clock = time.monotonic()

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Restore the optimizer, and take the signals back from Lightning."""
        self.interrupt.listen()
        if self.resume is not None:
            pl_module.restore_optimizer(self.resume)
        self.clock = time.monotonic()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """After each optimizer step."""
        module: PreferenceModule = pl_module
        ended = module.step == module.total_steps
        evaluates = not ended and _due(module.step, self.config.eval_every)
        saves = ended or _due(module.step, self.config.checkpoint_every)
        if evaluates or saves or _due(module.step, self.config.log_every):
            self._log(module)
        if evaluates:
            self.evaluate(module.step)
        if saves:
            self.save(module)
        if evaluates or saves:
            self.clock = time.monotonic()
        try:
            self.interrupt.check()
        except Interrupted:
            if not ended:
                self._log(module)
                self.save(module)
                raise

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """A second Ctrl-C ends the run as everywhere else; Lightning would make it an exit with code 1.

        What was read of the steps before a failure is written.
        """
        if isinstance(exception, KeyboardInterrupt):
            raise exception
        with contextlib.suppress(Guarded):  # the failure at hand is the one that counts
            self._write(pl_module)

    def _log(self, module: PreferenceModule) -> None:
        """Write the steps since the last time, and look at them."""
        module.read()
        self._write(module)

    def _write(self, module: PreferenceModule) -> None:
        rows = [row for row in module.rows if row.step <= module.step]  # an exception may come before an update
        module.rows = []
        if not rows:
            return
        now = time.monotonic()
        # The steps of a block have one speed: when each of them ended is not known without waiting for it.
        speed = sum(row.pairs for row in rows) / max(1e-9, now - self.clock)
        self.clock = now
        for row in rows:
            metrics = {f"train/{name}": value for name, value in row.metrics.items()}
            self.write(metrics | {"train/pairs_per_second": speed}, row.step)
            self.bar.advance(
                1,
                f"loss {row.metrics['loss']:.4f}  acc {row.metrics['rewards/accuracies']:.2f}  "
                f"margin {row.metrics['rewards/margins']:+.2f}  {speed:.2f} pairs/s",
            )
            self._check_collapse(row)

    def save(self, module: PreferenceModule) -> None:
        """Write a checkpoint of this step, once."""
        if self.saved != module.step:
            state = self.facts | module.state()  # in this order: micro-batches may have become smaller since
            save_checkpoint(self.folder.checkpoints, state, step=module.step)
            self.saved = module.step

    def _check_collapse(self, row: StepRow) -> None:
        against = "logratios/chosen" if "logratios/chosen" in row.metrics else "logps/chosen"
        loss_per_token = -row.metrics[against] / row.metrics["tokens/chosen"]
        if against == "logps/chosen":  # without a reference: against the first step seen
            self.first = loss_per_token if self.first is None else self.first
            loss_per_token -= self.first
        self.collapsed = self.collapsed + 1 if loss_per_token > self.config.collapse_nats else 0
        if self.collapsed >= COLLAPSED_STEPS:
            raise Guarded(
                f"The log-probs have collapsed: by step {row.step} chosen answers have lost {loss_per_token:.1f} nats "
                f"per token{' against the reference' if against.startswith('logr') else ' since it began'}, {COLLAPSED_STEPS} steps in a row (limit: trainer.collapse_nats="
                f"{self.config.collapse_nats:g}). Lower optim.lr or raise loss.beta."
            )


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
