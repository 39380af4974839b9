"""What happens around a training step: metrics, evaluation, checkpoints, guards, requests to end."""

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
        now = time.monotonic()
        speed = module.pairs / max(1e-9, now - self.clock)
        metrics = {f"train/{name}": value for name, value in module.last.items()} | {"train/pairs_per_second": speed}
        self.write(metrics, module.step)
        last = module.last
        self.bar.advance(
            1,
            f"loss {last['loss']:.4f}  acc {last['rewards/accuracies']:.2f}  margin {last['rewards/margins']:+.2f}  "
            f"{speed:.2f} pairs/s",
        )
        self._check_collapse(module)
        ended = module.step == module.total_steps
        if not ended and _due(module.step, self.config.eval_every):
            self.evaluate(module.step)
        if ended or _due(module.step, self.config.checkpoint_every):
            self.save(module)
        try:
            self.interrupt.check()
        except Interrupted:
            if not ended:
                self.save(module)
                raise
        self.clock = time.monotonic()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """A second Ctrl-C ends the run as everywhere else; Lightning would make it an exit with code 1."""
        if isinstance(exception, KeyboardInterrupt):
            raise exception

    def save(self, module: PreferenceModule) -> None:
        """Write a checkpoint of this step, once."""
        if self.saved != module.step:
            save_checkpoint(self.folder.checkpoints, module.state() | self.facts, step=module.step)
            self.saved = module.step

    def _check_collapse(self, module: PreferenceModule) -> None:
        against = "logratios/chosen" if "logratios/chosen" in module.last else "logps/chosen"
        loss_per_token = -module.last[against] / module.last["tokens/chosen"]
        if against == "logps/chosen":  # without a reference: against the first step seen
            self.first = loss_per_token if self.first is None else self.first
            loss_per_token -= self.first
        self.collapsed = self.collapsed + 1 if loss_per_token > self.config.collapse_nats else 0
        if self.collapsed >= COLLAPSED_STEPS:
            raise Guarded(
                f"The log-probs have collapsed: by step {module.step} chosen answers have lost {loss_per_token:.1f} nats "
                f"per token{' against the reference' if against.startswith('logr') else ' since it began'}, {COLLAPSED_STEPS} steps in a row (limit: trainer.collapse_nats="
                f"{self.config.collapse_nats:g}). Lower optim.lr or raise loss.beta."
            )


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
