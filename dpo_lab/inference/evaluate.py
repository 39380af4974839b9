"""What `python -m dpo_lab.evaluate` does: one of its tasks, on one base in memory."""

from collections.abc import Callable, Collection
from functools import cache
from pathlib import Path
from typing import Any

from dpo_lab.config.brought import bring, explicit
from dpo_lab.config.schema import Config
from dpo_lab.inference.stage import Stage, load_stage
from dpo_lab.runtime.terminal import Terminal

StageLoader = Callable[[], Stage]  # the stage; loaded when it is asked for the first time


def evaluate(
    config: Config, tree: dict[str, Any], folder: Path, given: Collection[str] | None = None
) -> dict[str, float]:
    """Score results, let them answer, or compare their answers.

    Args:
        config: of the door.
        tree: the same as plain containers.
        folder: of the job; not used, each task has a folder of its own.
        given: keys and groups of the command line; None asks Hydra.

    Raises:
        LabError: what is asked for cannot be done; says why.
    """
    given = explicit() if given is None else given
    config, tree, subjects = bring(config, tree, given)
    terminal = Terminal()

    @cache
    def stage() -> Stage:
        return load_stage(config, subjects, terminal)

    assert config.evaluate is not None
    task = "harness" if config.harness else config.evaluate.task
    if task == "score":
        from dpo_lab.inference.evals.score import score

        return score(config, tree, subjects, stage, terminal, given=given)
    if task == "predict":
        from dpo_lab.inference.evals.predict import predict

        return predict(config, tree, subjects, stage, terminal)
    if task == "duel":
        from dpo_lab.inference.evals.duel import duel

        return duel(config, tree, subjects, stage, terminal)
    from dpo_lab.inference.evals.harness import run_harness

    return run_harness(config, tree, subjects, stage, terminal)
