"""The door: the command line is read, quoted and checked as a whole before anything heavy loads."""

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from hydra._internal.utils import get_args_parser
from hydra.plugins.sweeper import Sweeper
from omegaconf import DictConfig, OmegaConf

from dpo_lab.config import resolvers
from dpo_lab.config.names import did_you_mean
from dpo_lab.config.overrides import Given, read
from dpo_lab.config.paths import CONF_DIR
from dpo_lab.config.sources import Sources
from dpo_lab.config.sweeps import default_name, of_sweeps, with_study, without_effect
from dpo_lab.config.verify import verify


@dataclass(frozen=True)
class Command:
    """A command line that was read and checked."""

    words: list[str]  # as Hydra should get it, flags first
    flags: list[str]  # those of them that are flags
    given: Sequence[Given] = ()
    sources: Sources | None = None
    cfg: DictConfig | None = None  # of a job, the first's in a single run; None where Hydra answers by itself
    multirun: bool = False


def prepare(argv: Sequence[str], primary: str = "train") -> list[str]:
    """The command line as Hydra should get it; see `read_command`."""
    return read_command(argv, primary).words


def read_command(argv: Sequence[str], primary: str = "train") -> Command:
    """The command line, read and checked, for the door whose configuration is conf/`primary`.yaml.

    Raises:
        SystemExit: with code 2 after all that is wrong was written to stderr; with 0 once `--cfg job` was answered.
    """
    resolvers.register()
    flags, typed, problems = _split(argv)
    passing = flags.shell_completion or flags.experimental_rerun or flags.hydra_help or (flags.help and not typed)
    if passing and not problems:
        words = [] if flags.hydra_help else typed
        return Command(_joined(flags, words), _joined(flags, []))
    own = [Path(os.path.abspath(flags.config_dir))] if flags.config_dir else []
    if own and not own[0].is_dir():
        problems.append(f"--config-dir {flags.config_dir}: there is no folder {own[0]}")
        own = []
    sys.path[:0] = [str(folder) for folder in own if str(folder) not in sys.path]
    base = Path(os.path.abspath(flags.config_path)) if flags.config_path else CONF_DIR
    sources = Sources((base, *own), flags.config_name or primary)
    multirun = flags.multirun or any(t.upper() == "HYDRA.MODE=MULTIRUN" for t in typed)
    typed, unknown = with_study(typed, sources, multirun=multirun)
    problems += unknown
    given, unreadable = read(typed, sources, multirun=multirun)
    if primary == "train":
        problems += without_effect(given) if multirun else of_sweeps(given)
    verdict = verify(given, sources)
    if problems := [*problems, *unreadable, *verdict.problems]:
        refuse(problems)
    if flags.cfg == "job" and not (flags.package or flags.resolve) and verdict.cfg is not None:
        _show(verdict.cfg)
    overrides = [g.text for g in given]
    # Hydra would compose every job again before the first, 0.2 s each; they have all just been checked.
    Sweeper.validate_batch_is_legal = _already_checked
    if multirun and verdict.cfg is not None and verdict.cfg.sweep.name is None:
        overrides.append(f"sweep.name={default_name(given, sources)}")
    return Command(_joined(flags, overrides), _joined(flags, []), given, sources, verdict.cfg, multirun)


def refuse(problems: Sequence[str]) -> NoReturn:
    """Say what is wrong, all of it, and leave."""
    if len(problems) == 1:
        text = f"Error: {problems[0]}\n"
    else:
        lines = [f"  {i}. {problem}\n" for i, problem in enumerate(problems, 1)]
        text = f"Error: {len(problems)} problems, nothing was started.\n{''.join(lines)}"
    sys.stderr.write(text)
    raise SystemExit(2)


def _split(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str], list[str]]:
    """Flags and overrides in any order, and what is wrong with the flags."""
    parser = get_args_parser()
    parser.error = _raise  # pyright: ignore[reportAttributeAccessIssue]
    known = [name for action in parser._actions for name in action.option_strings]  # pyright: ignore[reportPrivateUsage]
    try:
        flags, unknown = parser.parse_known_intermixed_args(list(argv))
    except argparse.ArgumentError as e:
        refuse([str(e)])
    problems = [
        f"{flag}: there is no such flag{did_you_mean(flag, known)}"
        if (key := flag.lstrip("-")).partition("=")[0] == key
        else f"{flag}: there is no such flag. A key stands without dashes: {key}"
        for flag in unknown
    ]
    modes = [f"--{name}" for name in ("run", "multirun", "cfg", "info") if getattr(flags, name)]
    if len(modes) > 1:
        problems.append(f"{' and '.join(modes)} cannot be used together.")
    if flags.resolve and not (flags.cfg or flags.help):
        problems.append("--resolve goes with --cfg or --help.")
    return flags, flags.overrides, problems


def _already_checked(self: Sweeper, batch: Sequence[Sequence[str]]) -> None:
    pass


def _raise(message: str) -> NoReturn:
    raise argparse.ArgumentError(None, message)


def _joined(flags: argparse.Namespace, overrides: Sequence[str]) -> list[str]:
    """Flags first: Hydra does not find overrides that stand on both sides of one."""
    words: list[str] = []
    for name, value in vars(flags).items():
        if name != "overrides" and value not in (None, False):
            words += [f"--{name.replace('_', '-')}"] + ([] if value is True else [str(value)])
    return [*words, *overrides]


def _show(cfg: DictConfig) -> NoReturn:
    """What Hydra's `--cfg job` shows, without composing a second time."""
    sys.stdout.write(OmegaConf.to_yaml(OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])))
    sys.stdout.flush()
    raise SystemExit(0)
