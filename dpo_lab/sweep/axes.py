"""The axes of a sweep in a run's own configuration.

Calls of one sweep may sweep over different keys: what one of them holds fixed is an axis all the same, and which settings
are alike follows from the runs, not from the words of a call.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from dpo_lab.config.identity import is_outside
from dpo_lab.config.schema import flatten
from dpo_lab.sweep.wording import SEEDS, identity

Choices = Callable[[], Mapping[str, Any]]
Flat = Mapping[str, Any]
_ABSENT = object()


def values_of(keys: Iterable[str], tree: Mapping[str, Any], choices: Choices) -> dict[str, Any]:
    """The keys that a configuration has a value for, with that.

    Args:
        keys: of values (`optim.lr`) and groups (`loss`).
        tree: the configuration.
        choices: the option of each group, which the configuration does not name; asked for only where a key may be one.
    """
    found = {}
    for key in keys:
        value = _leaf(tree, key)
        if value is _ABSENT and "." not in key:
            value = choices().get(key, _ABSENT)
        if value is not _ABSENT:
            found[key] = value
    return found


def hydras_tree(folder: Path) -> dict[str, Any]:
    """The configuration of a run as Hydra noted it before its start, without what is computed; {} where it is lost."""
    tree = _yaml(folder / ".hydra" / "config.yaml")
    return {} if tree is None else _settled(tree)


def hydras_choices(folder: Path) -> Mapping[str, Any]:
    """The options of a run's groups as Hydra noted them."""
    node: Any = _yaml(folder / ".hydra" / "hydra.yaml")
    for name in ("hydra", "runtime", "choices"):
        node = node.get(name) if isinstance(node, dict) else None
    return node if isinstance(node, dict) else {}


def unnamed(settings: Iterable[Sequence[Mapping[str, Any]]], fixed: Iterable[str]) -> list[str]:
    """Keys that no axis names and that tell apart runs which pass for seeds of one setting: axes too.

    `lora.r=8,16`, then `lora.r=8 lora.alpha=64`: alpha followed the rank at first, so it is neither fixed nor swept.

    Args:
        settings: of each setting the configurations of its runs, as far as they are known.
        fixed: keys that all runs of the sweep have in common.
    """
    same = {*SEEDS, *fixed}
    found: dict[str, None] = {}
    for trees in settings:
        flats: list[Flat] = [flatten(dict(tree)) for tree in trees if tree]
        for key in dict.fromkeys(key for flat in flats for key in flat):
            if key not in same and not is_outside(key) and len({identity({key: f.get(key)}) for f in flats}) > 1:
                found[key] = None
    return [*found]


def _leaf(tree: Any, key: str) -> Any:
    for name in key.split("."):
        tree = tree.get(name, _ABSENT) if isinstance(tree, Mapping) else _ABSENT
    return _ABSENT if isinstance(tree, Mapping) else tree


def _settled(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Without interpolations."""
    return {
        key: _settled(value) if isinstance(value, dict) else value
        for key, value in tree.items()
        if not (isinstance(value, str) and "${" in value)
    }


def _yaml(path: Path) -> dict[str, Any] | None:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return None
    return content if isinstance(content, dict) else None
