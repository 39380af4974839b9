"""`python -m dpo_lab`: align one model, or say that it is done. Heavy libraries load once the data has been read."""

import logging
from pathlib import Path
from typing import Any

from dpo_lab.config.paths import expand
from dpo_lab.config.schema import Config
from dpo_lab.data.prepare import Split, read_pairs
from dpo_lab.runtime.files import read_json, short
from dpo_lab.runtime.terminal import Terminal
from dpo_lab.training.folder import RunFolder
from dpo_lab.training.interrupt import Interrupt

log = logging.getLogger(__name__)


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

        return show_plan(config, _read(config, terminal), terminal)
    interrupt = Interrupt(folder.control)
    with folder.held(), interrupt.listening():
        if config.overwrite and folder.done:  # an interrupted run still goes on
            folder.clear()
        if folder.control.exists():  # an order to a former call of this run
            folder.control.unlink()
        folder.write_status("running")
        with interrupt.at_once():
            split = _read(config, terminal)
        log.info("%d pairs to train on and %d held out, as %s", len(split.train), len(split.heldout), split.format)
        with terminal.working("loading libraries"):
            from dpo_lab.training.align import Run
            from dpo_lab.training.parts import RunContext
        return Run(RunContext(config, tree, folder, terminal, interrupt), split).go()


def _read(config: Config, terminal: Terminal) -> Split:
    return read_pairs(config.data, expand(config.cache_dir), terminal.progress)


def _already_done(folder: RunFolder, terminal: Terminal) -> dict[str, float]:
    status = read_json(folder.path / "status.json")
    metrics = status.get("metrics", {})
    accuracy = metrics.get("val/rewards/accuracies")
    found = f" Held-out reward accuracy {accuracy:.3f}." if accuracy is not None else ""
    terminal.say(f"Already done: {short(folder.path)}/final.{found} To repeat it: overwrite=true.")
    return metrics
