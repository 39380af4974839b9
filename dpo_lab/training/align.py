"""One run from data to result."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from dpo_lab.data.collate import collate, microbatches
from dpo_lab.data.prepare import Split
from dpo_lab.inference.scoring import Scorer, Scores
from dpo_lab.inference.setup import build_objective
from dpo_lab.models.save import model_card, save_final
from dpo_lab.preference.layout import Layout
from dpo_lab.preference.objective import Objective
from dpo_lab.preference.ref_cache import answer_key
from dpo_lab.runtime.errors import Interrupted, LabError
from dpo_lab.runtime.files import read_json, read_jsonl, write_json, write_jsonl
from dpo_lab.training.callbacks import RunCallback
from dpo_lab.training.checkpoint import last_checkpoint
from dpo_lab.training.curves import write_curves
from dpo_lab.training.fit import fit
from dpo_lab.training.parts import Parts, RunContext, load_parts
from dpo_lab.training.ranks import LostTouch, Ranks
from dpo_lab.training.reference import check_agreement, fill_reference
from dpo_lab.training.report import say_how_to_go_on, show_footer, show_header
from dpo_lab.training.samples import policy_answers, reference_answers, sample_prompts
from dpo_lab.training.trackers import MetricsFile, Tracker, open_tracker

if TYPE_CHECKING:
    from dpo_lab.training.workers import Workers

log = logging.getLogger(__name__)


class Run:
    """One training run, gone on with where a former call was interrupted."""

    def __init__(self, context: RunContext, split: Split) -> None:
        self.context, self.split = context, split
        self.config, self.folder, self.terminal = context.config, context.folder, context.terminal
        self.begun = time.monotonic()
        self.train_seconds = 0.0
        self.samples: list[dict[str, Any]] = []
        self.prompts: list[str] = []  # of the held-out pairs: equal for pairs of one prompt

    def go(self) -> dict[str, float]:
        """Everything, in order; returns the metrics of the last evaluation."""
        found = last_checkpoint(self.folder.checkpoints)
        resume = found[1] if found else None
        parts = load_parts(self.context, self.split, resume["microbatch_tokens"] if resume else None)
        write_json(self.folder.facts, parts.facts)
        self.tracker = self._open_tracker()
        log.info("tracker open: %s", self.tracker.note or self.config.logger.name)
        exit_code, summary = 1, {}
        try:
            show_header(self.context, parts, self.tracker, resume)
            self._log_report(parts)
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
            self.record(self.score_start(parts, scorer), 0)
        began = time.monotonic()
        with self.other_ranks(parts, parts.steps - (resume["step"] if resume else 0)) as workers:
            self.fit(parts, scorer, resume, workers)
        self.train_seconds = time.monotonic() - began
        if not self._evaluated(parts.steps):  # a former call may have come so far
            self.evaluate(scorer, parts, parts.steps)
        self.write_samples(policy_answers(self.context, parts, asked, before), parts.steps)
        return self.finish(parts)

    def score_start(self, parts: Parts, scorer: Scorer) -> Scores:
        """The scores before the first update; those of a policy that is its own reference are known without a pass."""
        known = parts.source.is_start and parts.source.precision == parts.precision
        if parts.reference.present and known and not scorer.objective.needs_self:
            return scorer.start(lambda n: self.context.interrupt.check())
        return scorer.score(parts.policy, lambda n: self.context.interrupt.check())

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
        heldout, n = parts.data.heldout, self.config.trainer.kl_pairs if parts.has_kl else 0

        def cut(rows: range) -> list[Layout]:
            shared, tokens = parts.passes.shared, 2 * parts.tokens
            return microbatches([heldout[i] for i in rows], list(rows), tokens=tokens, shared=shared) if rows else []

        def halves(layout: Layout) -> list[Layout]:
            middle = len(layout) // 2
            return [
                collate([heldout[i] for i in rows], rows) for rows in (layout.index[:middle], layout.index[middle:])
            ]

        n = min(n, len(heldout))
        self.prompts = [answer_key(heldout[i].prompt_ids, ()).hex()[:12] for i in range(len(heldout))]
        return Scorer(
            cut(range(n, len(heldout))),
            kl_layouts=cut(range(n)),
            forward=parts.forward,
            reference_forward=parts.source.forward,
            reference=parts.reference,
            objective=objective,
            device=parts.device,
            halves=halves,
        )

    def fit(self, parts: Parts, scorer: Scorer, resume: dict[str, Any] | None, workers: "Workers | None") -> None:
        """The optimizer steps that are left, with the other ranks where there are any."""
        done = resume["step"] if resume else 0
        ranks = workers.ranks if workers else Ranks()
        with self.terminal.progress("training", parts.steps, done, unit="steps") as bar:
            callback = RunCallback(
                self.folder,
                self.config.trainer,
                self.context.interrupt,
                bar,
                resume=resume,
                write=self.log_metrics,
                evaluate=lambda step: self.evaluate(scorer, parts, step),
                facts={"microbatch_tokens": parts.tokens, "run_id": self.context.id},
            )
            try:
                if workers:
                    workers.wait(self.context.interrupt.check)
                with ranks.meeting(workers.place if workers else self.folder.path, parts.device):
                    ranks.from_first(done)
                    fit(self.config, parts, self.folder, ranks=ranks, resume=resume, callback=callback)
            except LostTouch as e:
                raise workers.explain(e) if workers else e from e

    @contextmanager
    def other_ranks(self, parts: Parts, steps: int) -> "Iterator[Workers | None]":
        """The processes beside this one, while the block runs; None where this one trains alone."""
        size = parts.devices
        if size == 1 or steps == 0:
            yield None
            return
        from dpo_lab.training.workers import started

        threads = torch.get_num_threads()
        share = max(1, threads // size)
        with started(self.context, self.context.tree, size=size, threads=share, tokens=parts.tokens) as workers:
            if parts.device.type == "cpu":
                torch.set_num_threads(share)
            try:
                yield workers
            finally:
                torch.set_num_threads(threads)

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
        nats = "logratios/margins" in found  # without a reference there are rewards only
        margin = f"{found['logratios/margins']:+.2f} nats" if nats else f"{found['rewards/margins']:+.3f}"
        self.terminal.say(
            f"step {step}/{parts.steps}: held-out accuracy {found['rewards/accuracies']:.3f}, margin {margin}, "
            f"loss {found['loss']:.4f}"
        )

    def record(self, scores: Scores, step: int) -> None:
        """One evaluation, in all places; metrics last, so that they say that the rest is there."""
        rows = [{"step": step, "prompt": self.prompts[row["index"]]} | row for row in scores.records]
        write_jsonl(self.folder.eval_pairs, rows)
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
        trial = read_json(self.folder.path / "trial.json")  # what the sweep knows of it
        axes = trial.get("axes") if isinstance(trial, dict) else None
        return open_tracker(
            self.config.logger,
            run_id=run.id,
            name=run.id,
            group=self.config.sweep.name,
            tree=run.tree,
            run_dir=self.folder.path,
            tags=[f"{key}={value}" for key, value in axes.items()] if isinstance(axes, dict) else [],
        )

    def _log_report(self, parts: Parts) -> None:
        """What was found in the data, to the tracker."""
        if parts.report is None:
            return
        findings = [[f.severity, f.check, f.message, f.fix] for f in parts.report.findings]
        if findings:
            self.tracker.table("doctor/findings", ["severity", "check", "message", "fix"], findings, 0)
        numbers = [[name, value] for name, value in parts.report.numbers.items()]
        self.tracker.table("doctor/numbers", ["number", "value"], numbers, 0)

    def _write_curves(self) -> None:
        """curves.html, whatever became of the run."""
        try:
            write_curves(self.folder.path, f"dpo_lab run {self.context.id}")
        except LabError as e:
            log.warning("curves.html could not be written: %s", e)


def _last(history: list[dict[str, Any]]) -> dict[str, Any]:
    rows = [row for row in history if "val/loss" in row] or history
    return {k: v for k, v in rows[-1].items() if k != "time"} if rows else {}
