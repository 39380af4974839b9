"""One run from data to result."""

import logging
import time
from typing import Any

import lightning
import torch

from dpo_lab.data.collate import microbatches
from dpo_lab.data.module import PreferenceData, Steps
from dpo_lab.data.prepare import Split
from dpo_lab.inference.scoring import Scorer, Scores
from dpo_lab.models.save import model_card, save_final
from dpo_lab.preference.layout import Layout
from dpo_lab.preference.objective import Objective
from dpo_lab.runtime.errors import Interrupted, LabError
from dpo_lab.runtime.files import read_jsonl, write_jsonl
from dpo_lab.training.callbacks import RunCallback
from dpo_lab.training.checkpoint import last_checkpoint
from dpo_lab.training.curves import write_curves
from dpo_lab.training.module import PreferenceModule
from dpo_lab.training.parts import Parts, RunContext, load_parts
from dpo_lab.training.reference_pass import check_agreement, fill_reference
from dpo_lab.training.report import say_how_to_go_on, show_footer, show_header
from dpo_lab.training.samples import policy_answers, reference_answers, sample_prompts
from dpo_lab.training.setup import build_objective
from dpo_lab.training.trackers import MetricsFile, Tracker, open_tracker

log = logging.getLogger(__name__)


class Run:
    """One training run, gone on with where a former call was interrupted."""

    def __init__(self, context: RunContext, split: Split) -> None:
        self.context, self.split = context, split
        self.config, self.folder, self.terminal = context.config, context.folder, context.terminal
        self.begun = time.monotonic()
        self.train_seconds = 0.0
        self.samples: list[dict[str, Any]] = []

    def go(self) -> dict[str, float]:
        """Everything, in order; returns the metrics of the last evaluation."""
        found = last_checkpoint(self.folder.checkpoints)
        resume = found[1] if found else None
        parts = load_parts(self.context, self.split, resume["microbatch_tokens"] if resume else None)
        self.tracker = self._open_tracker()
        log.info("tracker open: %s", self.tracker.note or self.config.logger.name)
        exit_code, summary = 1, {}
        try:
            show_header(self.context, parts, self.tracker, resume)
            self.metrics = MetricsFile(self.folder.metrics, resume["step"] if resume else None)
            summary = self.align(parts, resume)
            exit_code = 0
        except Interrupted:
            exit_code = 255
            say_how_to_go_on(self.context, parts)
            raise
        finally:
            self.tracker.finish(exit_code, summary)
            self._write_curves()
        show_footer(self.context, parts, summary, self.tracker, self.samples, self.train_seconds)
        return summary

    def align(self, parts: Parts, resume: dict[str, Any] | None) -> dict[str, float]:
        """From the reference's log-probs to the saved result."""
        objective = build_objective(self.config)
        asked = sample_prompts(self.context, parts)
        before = reference_answers(self.context, parts, asked)  # may find the cache damaged, which is then filled anew
        fill_reference(self.context, parts)
        scorer = self.build_scorer(parts, objective)
        check_agreement(self.context, parts)
        log.info("reference ready (%s); %d steps of training follow", parts.reference.mode, parts.steps)
        if resume is None and len(scorer):
            self.record(scorer.start(lambda n: self.context.interrupt.check()), 0)
        began = time.monotonic()
        self.fit(parts, objective, scorer, resume)
        self.train_seconds = time.monotonic() - began
        if not self._evaluated(parts.steps):  # a former call may have come so far
            self.evaluate(scorer, parts, parts.steps)
        self.write_samples(policy_answers(self.context, parts, asked, before), parts.steps)
        return self.finish(parts)

    def finish(self, parts: Parts) -> dict[str, float]:
        """Save the result; the run is done when its status says so."""
        summary = _last(read_jsonl(self.folder.metrics))
        located = parts.start.located
        base = located.name if not located.note else str(located.path)
        card = model_card(parts.facts, summary, adapter=self.config.lora.r is not None, base=base)
        save_final(parts.policy, parts.template.tokenizer, self.folder.final, base=base, card=card)
        self.folder.write_status("done", metrics=summary, seconds=round(time.monotonic() - self.begun, 1))
        return summary

    def build_scorer(self, parts: Parts, objective: Objective) -> Scorer:
        """Held-out pairs in micro-batches; the first `trainer.kl_pairs` with the exact KL."""
        heldout, n = parts.data.heldout, self.config.trainer.kl_pairs if parts.reference.model else 0

        def cut(rows: range) -> list[Layout]:
            return microbatches([heldout[i] for i in rows], list(rows), tokens=2 * parts.tokens) if rows else []

        n = min(n, len(heldout))
        return Scorer(
            cut(range(n, len(heldout))),
            kl_layouts=cut(range(n)),
            forward=parts.forward,
            reference=parts.reference,
            objective=objective,
            device=parts.device,
        )

    def fit(self, parts: Parts, objective: Objective, scorer: Scorer, resume: dict[str, Any] | None) -> None:
        """The optimizer steps that are left."""
        config, done = self.config, resume["step"] if resume else 0
        module = PreferenceModule(
            parts.policy,
            parts.reference,
            parts.forward,
            objective,
            config.optim,
            total_steps=parts.steps,
            seed=config.seed,
        )
        if resume is not None:
            module.restore_trained(resume)
        if done == parts.steps:
            return
        steps = Steps(
            parts.data.train,
            start=done,
            end=parts.steps,
            batch_size=config.optim.batch_size,
            seed=config.data.seed,
            tokens=parts.tokens,
        )
        with self.terminal.progress("training", parts.steps, done, unit="steps") as bar:
            callback = RunCallback(
                self.folder,
                config.trainer,
                self.context.interrupt,
                bar,
                resume=resume,
                write=self.log_metrics,
                evaluate=lambda step: self.evaluate(scorer, parts, step),
                facts={"microbatch_tokens": parts.tokens, "run_id": self.context.id},
            )
            trainer = lightning.Trainer(
                accelerator="gpu" if parts.device.type == "cuda" else "cpu",
                devices=1,
                precision=parts.precision.lightning,  # type: ignore[arg-type]
                max_epochs=1,
                num_sanity_val_steps=0,
                use_distributed_sampler=False,
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                default_root_dir=self.folder.path,
                callbacks=[callback],
            )
            self._fit(trainer, module, PreferenceData(steps, workers=2 if parts.device.type == "cuda" else 0))

    def _fit(self, trainer: Any, module: Any, data: Any) -> None:
        try:
            trainer.fit(module, datamodule=data)
        except torch.OutOfMemoryError as e:
            raise LabError(
                "The GPU is out of memory. Lower trainer.microbatch_tokens (the result stays the same), set "
                "model.gradient_checkpointing=true, or use quant=4bit."
            ) from e

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        """To metrics.jsonl and to the tracker."""
        self.metrics.log(metrics, step)
        self.tracker.log(metrics, step)

    def evaluate(self, scorer: Scorer, parts: Parts, step: int) -> None:
        """Score the held-out pairs with the policy as it is."""
        if not len(scorer):
            return
        with self.terminal.progress("held-out pairs", len(scorer), unit="pairs", summary=False) as bar:
            scores = scorer.score(parts.policy, bar.advance)
        self.record(scores, step)
        found = scores.metrics
        self.terminal.say(
            f"step {step}/{parts.steps}: held-out accuracy {found['rewards/accuracies']:.3f}, "
            f"margin {found['logratios/margins']:+.2f} nats, loss {found['loss']:.4f}"
        )

    def record(self, scores: Scores, step: int) -> None:
        """One evaluation, in all places; metrics last, so that they say that the rest is there."""
        write_jsonl(self.folder.eval_pairs, [{"step": step} | row for row in scores.records])
        self.log_metrics({f"val/{name}": value for name, value in scores.metrics.items()}, step)

    def write_samples(self, rows: list[dict[str, Any]], step: int) -> None:
        """To samples.jsonl and to the tracker, as a table."""
        self.samples = rows
        if rows:
            write_jsonl(self.folder.samples, rows)
            table = [[row["prompt"][-1]["content"], row["reference"], row["policy"]] for row in rows]
            self.tracker.table("samples", ["prompt", "reference", "policy"], table, step)

    def _evaluated(self, step: int) -> bool:
        return any(row["step"] == step and "val/loss" in row for row in read_jsonl(self.folder.metrics))

    def _open_tracker(self) -> Tracker:
        run = self.context
        return open_tracker(
            self.config.logger,
            run_id=run.id,
            name=run.id,
            group=self.config.sweep.name,
            tree=run.tree,
            run_dir=self.folder.path,
        )

    def _write_curves(self) -> None:
        """curves.html, whatever became of the run."""
        try:
            write_curves(self.folder.path, f"dpo_lab run {self.context.id}")
        except LabError as e:
            log.warning("curves.html could not be written: %s", e)


def _last(history: list[dict[str, Any]]) -> dict[str, Any]:
    rows = [row for row in history if "val/loss" in row] or history
    return {k: v for k, v in rows[-1].items() if k != "time"} if rows else {}
