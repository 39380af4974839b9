"""Rules of sweeps: launchers, searches, pruning."""

from collections.abc import Iterable

from dpo_lab.config.schema import Config


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
    if prune.name != "none" and config.trainer.eval_every == 0:
        yield f"prune={prune.name} compares evaluations, but trainer.eval_every=0 makes none before the end. Raise it."
    if prune.name != "none" and prune.metric == "val/kl" and config.trainer.kl_pairs == 0:
        yield "prune.metric=val/kl is not measured with trainer.kl_pairs=0. Raise it."
