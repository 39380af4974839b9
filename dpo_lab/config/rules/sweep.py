"""Rules of sweeps: launchers, searches, pruning."""

import sys
from collections.abc import Iterable

from dpo_lab.config.rules.loss import needs_reference
from dpo_lab.config.schema import Config
from dpo_lab.config.sweep_schema import Prune

MANY = sys.maxsize  # steps, where nobody knows yet


def sweep(config: Config) -> Iterable[str]:
    """What a launcher, a sweeper and a pruner need."""
    launcher, sweeper, prune = config.launcher, config.sweeper, config.prune
    if launcher.name == "serial" and launcher.n not in (1, "auto"):
        yield f"launcher=serial runs one trial at a time, not launcher.n={launcher.n}. Use launcher=processes."
    if launcher.address is not None and launcher.name != "ray":
        yield f"launcher.address={launcher.address} is for launcher=ray. Drop it, or add launcher=ray."
    asked = [key for key, value in launcher.options.items() if value is not None]
    if asked and launcher.name not in ("slurm", "submitit_local", "ray"):
        yield f"launcher.options.{asked[0]} means nothing to launcher={launcher.name}. Drop it, or use launcher=slurm."
    if sweeper.name != "grid" and sweeper.trials is None:
        yield f"sweeper={sweeper.name} needs sweeper.trials, the number of trials in all."
    if len(sweeper.objective) > 1 and sweeper.name != "optuna":
        yield f"sweeper.objective={sweeper.objective} names several objectives, which only sweeper=optuna weighs. Keep one."
    if len(set(sweeper.objective)) < len(sweeper.objective):
        yield f"sweeper.objective={sweeper.objective} names one objective twice. Keep one of them."
    if prune.name != "none":
        yield from _evaluations(config)
        yield from _metric(config)


def never_prunes(prune: Prune, *, every: int, steps: int) -> str | None:
    """Why no trial of so many steps, evaluated every so many, can be ended early; None where it can."""
    if every == 0:
        return f"prune={prune.name} compares evaluations, but trainer.eval_every=0 makes none before the end. Raise it."
    judged = -(-prune.first_step // every) * every
    if judged < steps:
        return None
    late = [
        key for key, value in (("trainer.eval_every", every), ("prune.first_step", prune.first_step)) if value >= steps
    ]
    return (
        f"prune={prune.name} ends no trial of {steps} steps: it first judges one at step {judged} "
        f"(trainer.eval_every={every}, prune.first_step={prune.first_step}). "
        f"Lower {' and '.join(late) or 'trainer.eval_every or prune.first_step'}."
    )


def _evaluations(config: Config) -> Iterable[str]:
    """There is an evaluation to judge by before a trial's end. Where epochs say when that is, the sweep looks."""
    d, o, name = config.data, config.optim, config.prune.name
    if d.eval_fraction == 0 and d.eval_path is None and not d.eval_names:
        yield f"prune={name} compares evaluations, but data.eval_fraction=0 holds out no pairs. Raise it."
    if why := never_prunes(config.prune, every=config.trainer.eval_every, steps=o.max_steps or MANY):
        yield why


def _metric(config: Config) -> Iterable[str]:
    """What trials are judged by is measured."""
    metric, r, lora = config.prune.metric, config.reference, config.lora
    apart = r.path is not None or (r.quant, r.dtype) != ("same", "same")
    none = r.mode == "none" or (r.mode == "auto" and not apart and needs_reference(config.loss) is False)
    if none and metric.startswith(("val/kl", "val/logratios/")):
        yield (
            f"prune.metric={metric} is not measured without a reference. Use prune.metric=val/rewards/accuracies, or "
            "add reference=cached."
        )
    elif metric == "val/kl" and config.trainer.kl_pairs == 0:
        yield "prune.metric=val/kl is not measured with trainer.kl_pairs=0. Raise it."
    elif metric == "val/kl" and r.mode in ("auto", "cached") and (lora.r is None or r.path is not None):
        yield (
            "prune.metric=val/kl is not measured where the reference is not in memory: its log-probs are cached. Add "
            "reference=frozen."
        )
