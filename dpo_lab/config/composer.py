"""The configurations of many command lines that differ in a few words."""

import copy
from collections.abc import Collection, Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from dpo_lab.config.overrides import Given
from dpo_lab.config.sources import Sources, composed


class Composer:
    """Composes combinations of swept values. Composing takes 0.2 s: those that choose the same options share it.

    Args:
        given: the overrides of the command line.
        sources: the files that options are read from.
        values: places in `given` of the swept overrides that set a value, rather than choose an option.
    """

    def __init__(self, given: Sequence[Given], sources: Sources, values: Collection[int]) -> None:
        self.given, self.sources, self.values = given, sources, values
        self._started: dict[tuple[str, ...], DictConfig] = {}
        self._parsed: dict[str, Override] = {}
        self._parser = OverridesParser.create()

    def compose(self, combination: Sequence[str]) -> DictConfig:
        """The configuration of one text an override. The next call may change it.

        Raises:
            Uncomposable: Hydra refuses it.
        """
        overrides = {i: self._parse(combination[i]) for i in self.values}
        if any(isinstance(override.value(), dict) for override in overrides.values()):
            return composed(self.sources, tuple(combination))
        options = tuple(text for i, text in enumerate(combination) if i not in self.values)
        if options not in self._started:
            cfg = composed(self.sources, tuple(combination))
            self._started[options] = copy.deepcopy(cfg) if self.values else cfg
        for i, override in overrides.items():
            OmegaConf.update(self._started[options], self.given[i].key, override.value(), force_add=True)
        return self._started[options]

    def _parse(self, text: str) -> Override:
        if text not in self._parsed:
            self._parsed[text] = self._parser.parse_override(text)
        return self._parsed[text]
