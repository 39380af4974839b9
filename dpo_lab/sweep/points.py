"""From a command line to the trials that it asks for."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString, ValueType
from omegaconf import DictConfig, OmegaConf

from dpo_lab.config.check import check
from dpo_lab.config.cli import Command
from dpo_lab.config.identity import decisive, run_id
from dpo_lab.config.overrides import Given
from dpo_lab.config.resolvers import plain
from dpo_lab.config.schema import Config
from dpo_lab.config.sweeps import combinations
from dpo_lab.config.verify import composer_of
from dpo_lab.sweep.axes import values_of
from dpo_lab.sweep.search import Point
from dpo_lab.sweep.space import Axis, read_axes

# Words that are the sweep's own: a trial gets them from the sweep, or has no use for them.
OURS = re.compile(r"(sweep|launcher|sweeper|study|prune|hydra\.(sweep|run|mode))(\..*)?")


@dataclass(frozen=True)
class Asked:
    """One trial that the command line asks for."""

    id: str  # of the run
    point: Point
    axes: dict[str, Any]  # key -> value
    words: tuple[str, ...]  # of its command line, without the sweep's own
    held: dict[str, Any] = field(default_factory=dict)  # the sweep's other axes, which this command does not sweep


class Points:
    """Composes points of the axes of a command line.

    Attributes:
        axes: what is swept.
        fixed: words that all trials share.
        known: keys that other calls of the sweep swept over.
    """

    def __init__(self, command: Command) -> None:
        assert command.sources is not None
        self.given = [g for g in command.given if not _is_ours(g.key)]
        self.axes: list[Axis] = read_axes([_as_choice(g) for g in self.given if g.swept])
        self.fixed = tuple(g.text for g in self.given if not g.swept)
        self.known: tuple[str, ...] = ()
        self._composer = composer_of(self.given, command.sources)
        self._parser = OverridesParser.create()

    def ask(self, point: Point) -> Asked:
        """The trial at a point."""
        words = self._words(point)
        cfg = self._compose(words)
        tree = plain(cfg)
        axes = {key: self._parser.parse_override(f"{key}={text}").value() for key, text in point.items()}
        others = [key for key in self.known if key not in axes]
        held = values_of(others, tree, lambda: _choices(cfg))
        return Asked(run_id(tree), point, axes, tuple(words), held)

    def problems(self, point: Point) -> list[str]:
        """What is wrong with a point that was not looked at before the sweep began."""
        try:
            return check(Config.model_validate(plain(self._compose(self._words(point)))), {g.key for g in self.given})
        except ValueError as e:  # pydantic's
            return [str(e)]

    def corners(self) -> list[dict[str, Any]]:
        """What decides the results of a few trials at the ends of all axes: what they share, all trials share."""
        return [decisive(plain(self._compose(words))) for words in combinations(self.given, most=1)]

    def _words(self, point: Point) -> list[str]:
        return [f"{g.override.get_key_element()}={point[g.key]}" if g.swept else g.text for g in self.given]

    def _compose(self, words: Sequence[str]) -> DictConfig:
        return self._composer.compose(words)


def trial_words(asked: Asked, flags: Sequence[str], *, sweep: str, folder: str) -> tuple[str, ...]:
    """The command line of a trial: that of a run alone, in the sweep's folder and under its name."""
    kept = [flag for flag in flags if flag not in ("--multirun", "-m")]
    return (*kept, *asked.words, f"sweep.name={quoted(sweep)}", f"hydra.run.dir={quoted(folder)}")


def quoted(text: str) -> str:
    """A text as Hydra's grammar takes it, whatever is in it."""
    return QuotedString(text, Quote.single).with_quotes()


def _choices(cfg: DictConfig) -> dict[str, Any]:
    """The option of each group."""
    return {str(key): value for key, value in OmegaConf.select(cfg, "hydra.runtime.choices").items()}


def _is_ours(key: str) -> bool:
    return OURS.fullmatch(key) is not None


def _as_choice(given: Given) -> str:
    """A sweep as a choice of its values; an interval as it is."""
    if given.override.value_type == ValueType.INTERVAL_SWEEP:
        return given.text
    values = [text.partition("=")[2] for text in given.texts]
    return f"{given.key}=choice({','.join(values)})"
