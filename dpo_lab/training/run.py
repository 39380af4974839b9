"""`python -m dpo_lab`: build, fit, save, report. The only place that wires the pieces."""

import logging
import shlex
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from dpo_lab.config.paths import expand
from dpo_lab.config.schema import Config
from dpo_lab.data.prepare import Prepared, Split, prepare, read_pairs
from dpo_lab.runtime.errors import ConfigError, Guarded, Interrupted, LabError
from dpo_lab.runtime.facts import device_facts, git_commit, versions
from dpo_lab.runtime.files import read_json, read_jsonl, write_json, write_jsonl
from dpo_lab.training.folder import RunFolder
from dpo_lab.training.interrupt import Interrupt
from dpo_lab.training.terminal import Terminal
from dpo_lab.training.trackers import MetricsFile, Tracker, open_tracker

if TYPE_CHECKING:  # torch and its friends are imported once the data has been read
    import torch
    from torch import nn

    from dpo_lab.data.templates import Template
    from dpo_lab.data.types import Example
    from dpo_lab.inference.scoring import Scorer, Scores
    from dpo_lab.models.precision import Precision
    from dpo_lab.preference.forward import Forward
    from dpo_lab.preference.layout import Layout
    from dpo_lab.preference.ref_cache import RefCache
    from dpo_lab.preference.reference import ModelContext, Reference
    from dpo_lab.training.callbacks import RunCallback
    from dpo_lab.training.setup import Start

log = logging.getLogger(__name__)
SWEEP_HINT = "loss.beta=0.05,0.1,0.2"


def train(config: Config, tree: dict[str, Any], run_dir: Path) -> dict[str, float]:
    """Train one model as configured, or go on where a former call was interrupted.

    Args:
        config: the validated configuration.
        tree: the same as plain containers, for records.
        run_dir: the run folder; its name is the run's id.

    Returns:
        The metrics of the last evaluation, `val/...`.

    Raises:
        LabError: something the user can act on.
        Interrupted: a signal or control.json ended the run; it can be gone on with.
    """
    terminal, folder = Terminal(), RunFolder(run_dir)
    if folder.done and not config.overwrite and not config.plan:
        return _already_done(folder, terminal)
    if config.plan:
        from dpo_lab.training.plan import show_plan

        return show_plan(config, read_pairs(config.data), terminal)
    interrupt = Interrupt(folder.control)
    with folder.held(), interrupt.listening():
        if config.overwrite and folder.done:  # an interrupted run still goes on
            folder.clear()
        if folder.control.exists():  # an order to a former call of this run
            folder.control.unlink()
        folder.write_status("running")
        split = read_pairs(config.data)
        return Run(config, tree, folder, terminal, interrupt, split).go()


@dataclass
class Parts:
    """What a run is made of, once loaded."""

    start: "Start"
    template: "Template"
    data: Prepared
    precision: "Precision"
    device: "torch.device"
    policy: "nn.Module"
    forward: "Forward"
    cache: "RefCache"
    reference: "Reference"
    start_model: "ModelContext"  # the reference as a model; valid until the first update
    tokens: int  # padded tokens of a training micro-batch
    steps: int
    facts: dict[str, Any]


class Run:
    """One training run from data to result."""

    def __init__(
        self,
        config: Config,
        tree: dict[str, Any],
        folder: RunFolder,
        terminal: Terminal,
        interrupt: Interrupt,
        split: Split,
    ) -> None:
        self.config, self.tree, self.folder = config, tree, folder
        self.terminal, self.interrupt, self.split = terminal, interrupt, split
        self.cache_dir = expand(config.cache_dir)
        self.id = folder.path.name
        self.begun = time.monotonic()

    def go(self) -> dict[str, float]:
        """Everything, in order."""
        from dpo_lab.training.checkpoint import last_checkpoint

        found = last_checkpoint(self.folder.checkpoints)
        parts = self.load(found[1].get("microbatch_tokens") if found else None)
        resume = found[1] if found else None
        tracker = self.open_tracker()
        exit_code, summary = 1, {}
        try:
            self.show_header(parts, tracker, resume)
            self.metrics = MetricsFile(self.folder.metrics, resume["step"] if resume else None)
            self.tracker = tracker
            summary = self.align(parts, resume)
            exit_code = 0
        except Interrupted:
            exit_code = 255
            self._say_how_to_go_on(parts)
            raise
        finally:
            tracker.finish(exit_code, summary)
            self.write_curves()
        self.show_footer(parts, summary, tracker)
        return summary

    # -- build ---------------------------------------------------------------------------------------------------

    def load(self, microbatch: int | None) -> Parts:
        """Data, model and reference; what can be wrong with the cheaper ones is found first."""
        config = self.config
        with self.terminal.working("loading libraries") as say:
            import torch

            from dpo_lab.data.module import count_steps
            from dpo_lab.data.templates import Template
            from dpo_lab.models.load import load_tokenizer
            from dpo_lab.models.lora import parameter_counts
            from dpo_lab.models.precision import resolve_precision
            from dpo_lab.models.quiet import quiet_running
            from dpo_lab.preference.forward import Forward
            from dpo_lab.preference.ref_cache import RefCache
            from dpo_lab.training import setup

            quiet_running()
            torch.manual_seed(config.seed)
            accelerator, device = setup.choose_device(config.trainer.accelerator)
            precision = resolve_precision(config, accelerator)
            start = setup.find_start(config, self.cache_dir, say)
            template = Template(load_tokenizer(start.located, config.model), config.template.name)
            data = prepare(self.split, config.data, template)
            optim = config.optim
            steps = count_steps(
                len(data.train), batch_size=optim.batch_size, epochs=optim.epochs, max_steps=optim.max_steps
            )
            if steps < 1:
                raise ConfigError(
                    f"{len(data.train)} training pairs x optim.epochs={optim.epochs:g} make no step of "
                    f"optim.batch_size={optim.batch_size} pairs. Lower optim.batch_size, or raise optim.epochs."
                )
            say("loading the model")
            policy = setup.load_policy(config, start, precision, device)
            self.interrupt.check()
            forward = Forward(precision.autocast)
            reference_id, reference_facts = setup.reference_identity(config, start, precision)
            cache = RefCache(self.cache_dir, reference_id, facts=reference_facts)
            reference, start_model = setup.build_reference(config, start, policy, cache, forward, precision)
            lm: Any = policy
            tokens = microbatch or setup.microbatch_tokens(config, lm.config, precision, device)
            if config.trainer.microbatch_tokens != "auto":
                tokens = config.trainer.microbatch_tokens
        trainable, total = parameter_counts(policy)
        facts = {
            "name": f"dpo_lab run {self.id}",
            "run_id": self.id,
            "versions": versions(),
            "commit": git_commit(),
            "device": device_facts(),
            "accelerator": accelerator,
            "threads": torch.get_num_threads(),
            "precision": str(precision),
            "quant": f"{config.quant.bits}-bit" if config.quant.bits else "none",
            "model": {"name": start.located.name, "note": start.located.note, "identity": start.identity}
            | {"path": str(start.located.path)},
            "template": config.template.name,
            "reference": {"mode": reference.mode, "what": start.what, "identity": reference_id},
            "data": data.facts(),
            "trainable_parameters": trainable,
            "parameters": total,
            "microbatch_tokens": tokens,
            "loss": _node(config.loss.model_dump(by_alias=True)),
            "optim": _node(config.optim.model_dump(by_alias=True)),
            "steps": steps,
        }
        write_json(self.folder.facts, facts)
        return Parts(
            start,
            template,
            data,
            precision,
            device,
            policy,
            forward,
            cache,
            reference,
            start_model,
            tokens,
            steps,
            facts,
        )

    def open_tracker(self) -> Tracker:
        """W&B, TensorBoard or nothing."""
        sweep = self.config.sweep.name
        return open_tracker(
            self.config.logger, run_id=self.id, name=self.id, group=sweep, tree=self.tree, run_dir=self.folder.path
        )

    # -- train ---------------------------------------------------------------------------------------------------

    def align(self, parts: Parts, resume: dict[str, Any] | None) -> dict[str, float]:
        """From the reference's log-probs to the saved result."""
        from dpo_lab.models.save import model_card, save_final
        from dpo_lab.training.setup import build_objective

        objective = build_objective(self.config)
        before = self.reference_answers(parts)  # first: it may find the cache damaged, which is then filled anew
        self.fill_reference(parts)
        scorer = self.build_scorer(parts, objective)
        self.check_agreement(parts)
        if resume is None and len(scorer):
            self.record(scorer.start(lambda n: self.interrupt.check()), 0)
        began = time.monotonic()
        self.fit(parts, objective, scorer, resume)
        self.train_seconds = time.monotonic() - began
        if not self._evaluated(parts.steps):  # a former call may have come so far
            self.evaluate(scorer, parts, parts.steps)
        self.write_samples(parts, before)
        history = read_jsonl(self.folder.metrics)
        summary = _last(history)
        adapter = self.config.lora.r is not None
        located = parts.start.located
        base = located.name if not located.note else str(located.path)
        card = model_card(parts.facts, summary, adapter=adapter, base=base)
        save_final(parts.policy, parts.template.tokenizer, self.folder.final, base=base, card=card)
        self.folder.write_status("done", metrics=summary, seconds=round(time.monotonic() - self.begun, 1))
        return summary

    def fill_reference(self, parts: Parts) -> None:
        """Compute the reference's log-probs that are not on disk yet; parallel runs wait for the one that computes."""
        from dpo_lab.data.module import step_pairs
        from dpo_lab.preference.ref_cache import answer_key

        if parts.reference.mode != "cached":
            return
        optim, train = self.config.optim, parts.data.train
        if parts.steps * optim.batch_size < len(train):
            rows = [
                row
                for step in range(parts.steps)
                for row in step_pairs(step, len(train), batch_size=optim.batch_size, seed=self.config.data.seed)
            ]
            train = [train[row] for row in sorted(set(rows))]
        examples = [*train, *parts.data.heldout]
        keys = [[answer_key(e.prompt_ids, ids) for ids in (e.chosen_ids, e.rejected_ids)] for e in examples]
        with parts.cache.filling(lambda: self.terminal.say("waiting for another run that computes the same reference")):
            for _ in range(3):  # a damaged file may be found only by writing to it, and is then begun anew
                missing = set(parts.cache.missing(key for pair in keys for key in pair))
                todo = [e for e, pair in zip(examples, keys, strict=True) if missing & set(pair)]
                if not todo:
                    break
                self._compute_reference(parts, todo, len(examples))
            else:
                raise LabError(f"The reference cache in {self.cache_dir} loses what is written to it. Check the disk.")
        if parts.cache.damaged:
            self.terminal.say(f"{parts.cache.damaged} damaged entries of the reference cache were computed again")

    def _compute_reference(self, parts: Parts, todo: "list[Example]", total: int) -> None:
        from dpo_lab.data.collate import microbatches
        from dpo_lab.preference.reference import fill_cache

        layouts = microbatches(todo, list(range(len(todo))), tokens=2 * parts.tokens)
        with self.terminal.progress("reference", total, total - len(todo), unit="pairs") as bar:

            def on_batch(n: int) -> None:
                bar.advance(n)
                self.interrupt.check()

            fill_cache(parts.cache, layouts, parts.start_model, parts.forward, device=parts.device, on_batch=on_batch)

    def build_scorer(self, parts: Parts, objective: Any) -> "Scorer":
        """Held-out pairs in micro-batches; the first `trainer.kl_pairs` with the exact KL."""
        from dpo_lab.data.collate import microbatches
        from dpo_lab.inference.scoring import Scorer

        heldout, n = parts.data.heldout, self.config.trainer.kl_pairs if parts.reference.model else 0

        def cut(rows: range) -> "list[Layout]":
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

    def check_agreement(self, parts: Parts) -> None:
        """Before the first update, in eval mode, policy and reference must be the same model."""
        import torch

        from dpo_lab.data.collate import microbatches

        first = parts.data.train[: min(4, len(parts.data.train))]
        rows = list(range(len(first)))
        if parts.steps * self.config.optim.batch_size < len(parts.data.train):  # only those have a cached reference
            from dpo_lab.data.module import step_pairs

            rows = step_pairs(
                0, len(parts.data.train), batch_size=self.config.optim.batch_size, seed=self.config.data.seed
            )[:4]
            first = [parts.data.train[row] for row in rows]
        layout = microbatches(first, rows, tokens=parts.tokens)[0].to(parts.device)
        parts.policy.eval()
        with torch.no_grad():
            gap = (parts.forward.logps(parts.policy, layout) - parts.reference.logps(layout)).abs().mean().item()
        limit = 2e-2 if self.config.quant.bits == 8 else parts.precision.tolerance
        parts.facts["reference"]["start_gap"] = gap
        write_json(self.folder.facts, parts.facts)
        if not gap <= limit:
            raise Guarded(
                f"Before the first update policy and reference differ by {gap:.2e} nats per token on average (at most "
                f"{limit:.0e} is rounding), so rewards would be wrong from the start. Reference: {parts.start.what}, "
                f"reference.mode={parts.reference.mode}. Delete {self.cache_dir / 'reference'} if the weights of a "
                "folder were changed in place."
            )
        log.info("policy and reference agree to %.1e nats per token", gap)

    def fit(self, parts: Parts, objective: Any, scorer: "Scorer", resume: dict[str, Any] | None) -> None:
        """The optimizer steps that are left."""
        import lightning

        from dpo_lab.data.module import PreferenceData, Steps
        from dpo_lab.training.callbacks import RunCallback
        from dpo_lab.training.module import PreferenceModule

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
                self.interrupt,
                bar,
                resume=resume,
                write=self.log_metrics,
                evaluate=lambda step: self.evaluate(scorer, parts, step),
                facts={"microbatch_tokens": parts.tokens, "run_id": self.id},
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
            self._fit(trainer, module, PreferenceData(steps, workers=2 if parts.device.type == "cuda" else 0), callback)

    def _fit(self, trainer: Any, module: Any, data: Any, callback: "RunCallback") -> None:
        import torch

        try:
            trainer.fit(module, datamodule=data)
        except torch.OutOfMemoryError as e:
            raise LabError(
                "The GPU is out of memory. Lower trainer.microbatch_tokens (the result stays the same), set "
                "model.gradient_checkpointing=true, or use quant=4bit."
            ) from e

    # -- record --------------------------------------------------------------------------------------------------

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        """To metrics.jsonl and to the tracker."""
        self.metrics.log(metrics, step)
        self.tracker.log(metrics, step)

    def evaluate(self, scorer: "Scorer", parts: Parts, step: int) -> None:
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

    def record(self, scores: "Scores", step: int) -> None:
        """One evaluation, in all places; metrics last, so that they say that the rest is there."""
        write_jsonl(self.folder.eval_pairs, [{"step": step} | row for row in scores.records])
        self.log_metrics({f"val/{name}": value for name, value in scores.metrics.items()}, step)

    def _evaluated(self, step: int) -> bool:
        return any(row["step"] == step and "val/loss" in row for row in read_jsonl(self.folder.metrics))

    def reference_answers(self, parts: Parts) -> list[tuple[list[dict[str, str]], list[int], str]]:
        """The reference's greedy answers to the fixed prompts, from the cache where they are known."""
        from dpo_lab.inference.generate import greedy_answers
        from dpo_lab.preference.ref_cache import answer_key

        prompts = self.sample_prompts(parts)
        if not prompts:
            return []
        length = self.config.generation.max_new_tokens
        batch = [token for _, ids in prompts for token in [*ids, -1]]  # batch mates may change the last bits
        keys = [answer_key(ids, [length, *parts.template.end_of_turn, *batch]) for _, ids in prompts]
        known = [parts.cache.read_text(key) for key in keys]
        if any(text is None for text in known):
            with self.terminal.working("sampling the reference's answers"), parts.start_model() as model:
                known = greedy_answers(
                    model,
                    [ids for _, ids in prompts],
                    parts.template,
                    max_new_tokens=length,
                    precision=parts.precision,
                )
            for key, text in zip(keys, known, strict=True):
                parts.cache.write_text(key, text or "")
        self.interrupt.check()
        return [(messages, ids, text or "") for (messages, ids), text in zip(prompts, known, strict=True)]

    def sample_prompts(self, parts: Parts) -> list[tuple[list[dict[str, str]], list[int]]]:
        """The fixed prompts as messages and token ids: the user's own, or the first held-out ones."""
        config = self.config.prompts
        if config.own:
            own = [[{"role": "user", "content": text}] for text in config.own]
            ids = parts.template.prompt_ids(own)  # type: ignore[arg-type]
            return list(zip(own, ids, strict=True))
        return [([dict(m) for m in e.pair.prompt], e.prompt_ids) for e in parts.data.heldout[: config.count]]  # type: ignore[misc]

    def write_samples(self, parts: Parts, before: list[tuple[list[dict[str, str]], list[int], str]]) -> None:
        """The policy's answers beside the reference's."""
        from dpo_lab.inference.generate import greedy_answers

        self.sample_rows: list[dict[str, Any]] = []
        if not before:
            return
        parts.policy.eval()
        with self.terminal.working("sampling the policy's answers"):
            answers = greedy_answers(
                parts.policy,
                [ids for _, ids, _ in before],
                parts.template,
                max_new_tokens=self.config.generation.max_new_tokens,
                precision=parts.precision,
            )
        self.sample_rows = [
            {"step": parts.steps, "prompt": messages, "reference": reference, "policy": policy}
            for (messages, _, reference), policy in zip(before, answers, strict=True)
        ]
        write_jsonl(self.folder.samples, self.sample_rows)
        columns = ["prompt", "reference", "policy"]
        rows = [[row["prompt"][-1]["content"], row["reference"], row["policy"]] for row in self.sample_rows]
        self.tracker.table("samples", columns, rows, parts.steps)

    def write_curves(self) -> None:
        """curves.html, whatever became of the run."""
        from dpo_lab.training.curves import write_curves

        try:
            write_curves(self.folder.path, f"dpo_lab run {self.id}")
        except LabError as e:
            log.warning("curves.html could not be written: %s", e)

    # -- report --------------------------------------------------------------------------------------------------

    def show_header(self, parts: Parts, tracker: Tracker, resume: dict[str, Any] | None) -> None:
        """The facts of the run in ten lines."""
        config, located, facts = self.config, parts.start.located, parts.facts
        share = facts["trainable_parameters"] / facts["parameters"]
        lora = config.lora
        adapter = f"LoRA r {lora.r}, alpha {lora.alpha:g}: " if lora.r else "full fine-tuning: "
        model = f"{located.name}{f' ({located.note})' if located.note else ''}"
        if config.quant.bits:
            model += f", {config.quant.bits}-bit"
        threads = f"{facts['threads']} threads" if parts.device.type == "cpu" else facts["device"]["gpus"][0]["name"]
        split = f"{len(parts.data.heldout)} held out" if parts.data.heldout else "none held out: no evaluation"
        optim, loss = config.optim, config.loss
        beta = f" beta {loss.beta:g}" if loss.beta is not None else ""
        rows = {
            "model": f"{model}, {parts.precision} on {parts.device.type} ({threads})",
            "trained": f"{adapter}{facts['trainable_parameters']:,} of {facts['parameters']:,} parameters ({share:.1%})",
            "reference": f"{parts.start.what}, {parts.reference.mode}"
            + ("" if parts.reference.model else " (not in memory, so no val/kl: reference.mode=frozen has it)"),
            "data": f"{self._data_name()} ({parts.data.format}): {parts.data.train_counts}; {split}"
            + (f" ({parts.data.heldout_counts})" if parts.data.heldout_counts.dropped else ""),
            "loss": f"{loss.target.rsplit('.', 1)[-1]}{beta}, log-probs {'summed' if loss.average == 'sum' else 'averaged'}"
            f" over tokens; template {config.template.name}",
            "steps": f"{parts.steps} of {optim.batch_size} pairs; lr {optim.lr:g}, {optim.schedule}, "
            f"{optim.target.rsplit('.', 1)[-1]}",
            "log": tracker.note or config.logger.name,
            "folder": str(_short(self.folder.path)),
        }
        self.terminal.header(f"dpo_lab  run {self.id}", rows)
        if resume is not None:
            self.terminal.say(f"going on from step {resume['step']} of {parts.steps}")

    def _overrides(self) -> list[str]:
        """What the user gave on the command line, as Hydra recorded it."""
        file = self.folder.path / ".hydra" / "overrides.yaml"
        given = OmegaConf.load(file) if file.is_file() else []
        return [str(o) for o in given if not str(o).startswith(("sweep.name=", "init_from=", "overwrite="))]

    def _data_name(self) -> str:
        data = self.config.data
        return Path(data.path.removeprefix("pkg://")).name if data.path else data.hub.name if data.hub else "data"

    def show_footer(self, parts: Parts, summary: dict[str, float], tracker: Tracker) -> None:
        """What came out and what to do next."""
        history = read_jsonl(self.folder.metrics)
        start = {k.removeprefix("val/"): v for k, v in _first(history).items()}
        end = {k.removeprefix("val/"): v for k, v in summary.items() if k.startswith("val/")}
        self.terminal.samples(self.sample_rows)
        self.terminal.results(start, end, self.train_seconds, parts.steps)
        folder = _short(self.folder.path)
        what = "adapter" if self.config.lora.r else "model"
        rows = {
            what: f"{folder}/final",
            "curves": f"{folder}/curves.html",
            "train on": f"python -m dpo_lab {shlex.join([*self._overrides(), f'init_from={folder}'])}",
        }
        if self.config.sweep.name is None:
            rows["sweep"] = f"python -m dpo_lab --multirun {shlex.join([*self._overrides(), SWEEP_HINT])}"
        if tracker.note and "wandb sync" in tracker.note:
            rows["W&B"] = tracker.note[tracker.note.index("wandb sync") :]
        self.terminal.facts(rows)

    def _say_how_to_go_on(self, parts: Parts) -> None:
        from dpo_lab.training.checkpoint import last_step

        step = last_step(self.folder.checkpoints)
        where = f"with step {step} of {parts.steps} saved" if step is not None else "before the first checkpoint"
        self.terminal.say(f"Stopped {where}. The same command goes on from there: {_short(self.folder.path)}")


def _already_done(folder: RunFolder, terminal: Terminal) -> dict[str, float]:
    status = read_json(folder.path / "status.json")
    metrics = status.get("metrics", {})
    accuracy = metrics.get("val/rewards/accuracies")
    found = f" Held-out reward accuracy {accuracy:.3f}." if accuracy is not None else ""
    terminal.say(f"Already done: {_short(folder.path)}/final.{found} To repeat it: overwrite=true.")
    return metrics


def _node(node: dict[str, Any]) -> str:
    name = node.pop("_target_").rsplit(".", 1)[-1]
    return f"{name}({', '.join(f'{k}={v}' for k, v in node.items() if v is not None)})"


def _first(history: list[dict[str, Any]]) -> dict[str, Any]:
    return next((row for row in history if row.get("step") == 0 and "val/loss" in row), {})


def _last(history: list[dict[str, Any]]) -> dict[str, Any]:
    rows = [row for row in history if "val/loss" in row] or history
    return {k: v for k, v in rows[-1].items() if k != "time"} if rows else {}


def _short(path: Path) -> Path:
    """Relative to the current folder where it lies below it."""
    try:
        return path.resolve().relative_to(Path.cwd())
    except ValueError:
        return path
