"""`python -m dpo_lab --multirun`: where the sweep lies, and that nobody else is at it."""

import logging
import sys
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from dpo_lab.config.cli import Command
from dpo_lab.config.paths import expand
from dpo_lab.config.resolvers import plain
from dpo_lab.config.schema import Config
from dpo_lab.config.sweeps import default_name
from dpo_lab.runtime.errors import ConfigError, LabError, OutputError
from dpo_lab.runtime.files import file_lock, short
from dpo_lab.sweep.book import LOCK, Book
from dpo_lab.sweep.master import Master


def sweep(command: Command) -> int:
    """Run what a multirun asks for, as far as it is not there yet.

    Returns:
        The exit code. 0: all trials are done or pruned; 1: some failed; 2: nothing was started; 128 + n: signal n came.
    """
    assert command.cfg is not None
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s", stream=sys.stderr)
    try:
        folder, name, config = _place(command, command.cfg)
        Book.open(folder, name)  # before anything is written there
        with file_lock(folder / LOCK, wait=False) as alone:
            if not alone:
                raise OutputError(
                    f"Another process is running the sweep in {short(folder)} (its pid is in {LOCK}). Wait for it, or stop "
                    "it: what its trials have done is kept, and this command goes on from there."
                )
            return Master(command, config, folder, name).go()
    except LabError as e:
        sys.stderr.write(f"Error: {e}\n")
        return 2 if isinstance(e, ConfigError) else 1


def _place(command: Command, cfg: DictConfig) -> tuple[Path, str, Config]:
    """The sweep's folder and name, and the configuration of its first trial."""
    assert command.sources is not None
    given = cfg.sweep.name or (Path(str(cfg.sweep.dir)).name if cfg.sweep.dir else None)
    name = str(given or default_name(command.given, command.sources))
    OmegaConf.update(cfg, "sweep.name", name)
    folder = expand(str(cfg.sweep.dir)) if cfg.sweep.dir else expand(str(OmegaConf.select(cfg, "hydra.sweep.dir")))
    return folder.absolute(), name, Config.model_validate(plain(cfg))
