"""Types and ranges of the nodes that say what a multirun does with its trials."""

from typing import Annotated, Any, Literal

from pydantic import Field

from dpo_lab.config.fields import Count, Group, Positive, Text


class Sweep(Group):
    """The folder of a multirun, and what it does about failures."""

    name: Text | None
    dir: Text | None
    retry: Literal["failed", "oom", "none"]
    on_failure: Literal["continue", "stop"]


class Launcher(Group):
    """conf/launcher: where the trials of a sweep run."""

    name: Literal["serial", "processes", "slurm", "submitit_local", "ray"]
    n: Positive | Literal["auto"]
    threads: Positive | Literal["auto"]
    address: Text | None
    options: dict[str, Any]


class Sweeper(Group):
    """conf/sweeper: which points of the axes become trials."""

    name: Literal["grid", "random", "optuna"]
    trials: Positive | None
    points: Annotated[int, Field(ge=2, strict=True)]
    seed: Count
    objective: Annotated[list[Literal["accuracy", "margin", "kl", "loss"]], Field(min_length=1)]


class Study(Group):
    """conf/study: a question, and the axes that answer it, in Hydra's sweep syntax."""

    name: Text | None
    question: str | None
    params: dict[str, Text]


class Prune(Group):
    """conf/prune: when a trial is given up. Of the metrics of an evaluation those that say which trial is better."""

    name: Literal["none", "asha", "median"]
    metric: Literal[
        "val/rewards/accuracies", "val/rewards/margins", "val/rewards/chosen", "val/logratios/margins",
        "val/logratios/chosen", "val/logps/chosen", "val/loss", "val/kl",
    ]  # fmt: skip
    first_step: Positive
    startup: Count
    factor: Annotated[int, Field(ge=2, strict=True)]
