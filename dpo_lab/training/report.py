"""What a run says of itself: the facts before, the results after."""

import shlex
from typing import Any

from omegaconf import OmegaConf

from dpo_lab.data.gather import title
from dpo_lab.runtime.files import read_json, read_jsonl, short
from dpo_lab.training.checkpoint import last_step
from dpo_lab.training.parts import Parts, RunContext
from dpo_lab.training.trackers import Tracker

SWEEP_HINTS = {True: "loss.beta=0.05,0.1,0.2", False: "optim.lr=1e-4,5e-5"}  # by whether the loss has a beta


def show_header(run: RunContext, parts: Parts, tracker: Tracker, resume: dict[str, Any] | None) -> None:
    """The facts of the run in ten lines."""
    config, located, facts = run.config, parts.start.located, parts.facts
    share = facts["trainable_parameters"] / facts["parameters"]
    lora = config.lora
    kind = " ".join(name for name, there in {"DoRA": lora.dora, "rsLoRA": lora.rslora}.items() if there) or "LoRA"
    kind += f", {lora.init} start" if lora.init != "default" else ""
    adapter = f"{kind}, r {lora.r}, alpha {lora.alpha:g}: " if lora.r else "full fine-tuning: "
    model = f"{located.name}{f' ({located.note})' if located.note else ''}"
    if config.quant.bits:
        model += f", {config.quant.bits}-bit"
    threads = f"{facts['threads']} threads" if parts.device.type == "cpu" else facts["device"]["gpus"][0]["name"]
    if parts.devices > 1:
        threads = (
            f"{parts.devices} processes, {threads} in all"
            if parts.device.type == "cpu"
            else f"{parts.devices} x {threads}"
        )
    if parts.accelerator == "mps":
        threads = "Apple GPU: untested here"
    split = f"{len(parts.data.heldout)} held out" if parts.data.heldout else "none held out: no evaluation"
    optim, loss = config.optim, config.loss
    beta = f" beta {loss.beta:g}" if loss.beta is not None else ""
    rows = {
        "model": f"{model}, {parts.precision} on {parts.device.type} ({threads})",
        "trained": f"{adapter}{facts['trainable_parameters']:,} of {facts['parameters']:,} parameters ({share:.1%})",
        "reference": _reference(parts),
        "data": f"{title(config.data)} ({parts.data.format}): {parts.data.train_counts}; {split}"
        + (f" ({parts.data.heldout_counts})" if parts.data.heldout_counts.dropped else ""),
        **_doctor(run, parts),
        "loss": f"{loss.target.rsplit('.', 1)[-1]}{beta}, log-probs {'summed' if loss.average == 'sum' else 'averaged'}"
        f" over tokens{_modifiers(run)}; template {config.template.name}",
        "steps": f"{parts.steps} of {optim.batch_size} pairs; lr {optim.lr:g}, {optim.schedule}, "
        f"{optim.target.rsplit('.', 1)[-1]}",
        "forward": "each prompt once, nothing padded" if parts.passes.shared else f"padded rows: {parts.passes.why}",
        "log": tracker.note or config.logger.name,
        "folder": str(short(run.folder.path)),
    }
    run.terminal.header(f"dpo_lab  run {run.id}", rows)
    if resume is not None:
        run.terminal.say(f"going on from step {resume['step']} of {parts.steps}")


def _doctor(run: RunContext, parts: Parts) -> dict[str, str]:
    """What was found in the data: the findings that the reader should act on."""
    report = parts.report
    if report is None:
        return {}
    told = [f"{f.severity}: {f.message}" for f in report.findings if f.severity != "info"]
    more = f"\n({len(told) - 3} more)" if len(told) > 3 else ""
    page = short(run.folder.doctor.with_suffix(".html"))
    return {"doctor": "\n".join([report.summary(), *told[:3]]) + f"{more}\n{page}"}


def show_footer(
    run: RunContext,
    parts: Parts,
    summary: dict[str, float],
    tracker: Tracker,
    samples: list[dict[str, Any]],
    seconds: float,
) -> None:
    """What came out and what to do next; `seconds` were spent in training."""
    history = read_jsonl(run.folder.metrics)
    start = {k.removeprefix("val/"): v for k, v in _first(history).items()}
    end = {k.removeprefix("val/"): v for k, v in summary.items() if k.startswith("val/")}
    run.terminal.samples(samples, "reference" if parts.reference.present else "start")
    run.terminal.results(start, end, seconds, parts.steps)
    folder = short(run.folder.path)
    what = "adapter" if run.config.lora.r else "model"
    rows = {
        what: f"{folder}/final",
        "curves": f"{folder}/curves.html",
        "train on": f"python -m dpo_lab {shlex.join(_going_on(run, str(folder)))}",
    }
    if run.config.sweep.name is None:
        hint = SWEEP_HINTS[run.config.loss.beta is not None]
        rows["sweep"] = f"python -m dpo_lab --multirun {shlex.join([*_overrides(run), hint])}"
    if tracker.note and "wandb sync" in tracker.note:
        rows["W&B"] = tracker.note[tracker.note.index("wandb sync") :]
    run.terminal.facts(rows)


def say_how_to_go_on(run: RunContext, parts: Parts) -> None:
    """Where an interrupted run stands."""
    step = last_step(run.folder.checkpoints)
    where = f"with step {step} of {parts.steps} saved" if step is not None else "before the first checkpoint"
    run.terminal.say(f"Stopped {where}. The same command goes on from there: {short(run.folder.path)}")


def _first(history: list[dict[str, Any]]) -> dict[str, Any]:
    return next((row for row in history if row.get("step") == 0 and "val/loss" in row), {})


def _overrides(run: RunContext) -> list[str]:
    """What the user gave on the command line, as Hydra recorded it."""
    file = run.folder.path / ".hydra" / "overrides.yaml"
    given = OmegaConf.load(file) if file.is_file() else []
    return [str(o) for o in given if not str(o).startswith(("sweep.name=", "lora.adapter=", "overwrite="))]


def _going_on(run: RunContext, folder: str) -> list[str]:
    """A command that starts from this run's result; after fine-tuning comes a preference loss."""
    tuned = run.config.loss.target.endswith(".sft_loss")
    words = [word for word in _overrides(run) if not (tuned and word.startswith("loss"))]
    words += ["loss=dpo"] if tuned else []
    if run.config.lora.init in ("pissa", "olora"):  # what was saved is a plain adapter of twice the rank
        saved = read_json(run.folder.final / "adapter_config.json") or {}
        words = [word for word in words if not word.startswith(("lora=", "lora.init=", "lora.r=", "lora.alpha="))]
        words += [f"lora.r={saved.get('r')}", f"lora.alpha={saved.get('lora_alpha')}"]
    if run.config.lora.r is None:  # in the weights' own config.json
        words = [word for word in words if not word.startswith("model.rope")]
    return [*words, f"lora.adapter={folder}" if run.config.lora.r else f"model.path={folder}/final"]


def _modifiers(run: RunContext) -> str:
    """What changes the loss, in words."""
    loss = run.config.loss
    terms = " + ".join(f"{t.weight:g} {name}" for name, t in (loss.terms or {}).items())
    asked = {
        f"sft_weight {loss.sft_weight:g}": loss.sft_weight > 0,
        f"ld_alpha {loss.ld_alpha}": loss.ld_alpha is not None,
        "wpo": loss.wpo,
        f"f_divergence {loss.f_divergence}": loss.f_divergence != "reverse_kl",
    }
    said = "".join(f", {name}" for name, there in asked.items() if there)
    return f" unless a term says otherwise: {terms}{said}" if terms else said


def _reference(parts: Parts) -> str:
    """What the policy is measured against, and how its log-probs are had."""
    reference = parts.reference
    if not reference.present:
        return (
            "none: the loss needs none, so rewards are the policy's own log-probs (reference=cached measures it anyway)"
        )
    note = "" if reference.model else " (not in memory, so no val/kl: reference.mode=frozen has it)"
    return f"{parts.source.what}, {reference.mode}{note}"
