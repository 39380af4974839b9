"""Configurations as a run would get them, composed in this process."""

from typing import Any

from dpo_lab.config import resolvers
from dpo_lab.config.overrides import read
from dpo_lab.config.schema import Config
from dpo_lab.config.sources import Sources


def composed(*words: str) -> Config:
    """The config of a single run with these words on its command line."""
    return Config.model_validate(tree_of(*words))


def tree_of(*words: str) -> dict[str, Any]:
    """The same as plain containers."""
    resolvers.register()
    sources = Sources()
    given, problems = read(words, sources, multirun=False)
    assert not problems
    return resolvers.plain(sources.compose([g.text for g in given]))
