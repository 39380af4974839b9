"""sweep.yaml: what a sweep is about, so that the same command, or a larger one, goes on with it."""

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from dpo_lab.config.schema import flatten
from dpo_lab.runtime.errors import ConfigError
from dpo_lab.runtime.files import atomic_write, short

NAME = "sweep.yaml"
LOCK = "sweep.lock"
KEPT_CALLS = 100


@dataclass
class Book:
    """What is written down of a sweep.

    Attributes:
        axes: every value of every key that was ever swept, in the order met.
        fixed: settings that all trials have in common, as flat keys of what decides a run.
    """

    path: Path
    name: str
    command: str = ""
    calls: list[dict[str, str]] = field(default_factory=list)
    overrides: list[str] = field(default_factory=list)
    axes: dict[str, list[Any]] = field(default_factory=dict)
    fixed: dict[str, Any] = field(default_factory=dict)
    commit: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)  # launcher, sweeper, study, prune of the last call

    @classmethod
    def open(cls, path: Path, name: str) -> "Book":
        """The sweep in a folder, or a new one where there is none.

        Raises:
            ConfigError: the folder holds something else, or sweep.yaml cannot be read.
        """
        file = path / NAME
        if not file.exists():
            # hidden: half of a sweep.yaml whose writing was killed, what launchers set up before it is written
            found = [p.name for p in path.iterdir()] if path.is_dir() else []
            others = [name for name in found if name != LOCK and not name.startswith(".")]
            if path.exists() and (others or not path.is_dir()):
                raise ConfigError(
                    f"{short(path)} is not a sweep: it has no {NAME}, but {_some(others)}. Choose another sweep.name."
                )
            return cls(path, name)
        try:
            content = yaml.safe_load(file.read_text(encoding="utf-8"))
            known = {key: content[key] for key in ("calls", "overrides", "axes", "fixed", "commit")}
        except (OSError, ValueError, TypeError, KeyError, yaml.YAMLError) as e:
            raise ConfigError(
                f"{short(file)} cannot be read ({type(e).__name__}), so what its runs have in common is unknown. Restore "
                "it, or choose another sweep.name."
            ) from e
        return cls(path, name, **known)

    def agree(self, fixed: Mapping[str, Any]) -> None:
        """Take what the trials of this call have in common, beside what those of former calls had.

        Raises:
            ConfigError: both have a setting in common, and not the same one.
        """
        clash = [key for key, value in self.fixed.items() if key in fixed and fixed[key] != value]
        if clash:
            said = [f"{key} is {_text(self.fixed[key])} there and {_text(fixed[key])} here" for key in clash]
            raise ConfigError(
                f"{short(self.path)} holds a sweep with other fixed settings: {_some(said, '; ')}. Choose another "
                "sweep.name, or sweep over what differs: its runs are kept then, and compared."
            )
        self.fixed = {key: value for key, value in fixed.items() if key in self.fixed} if self.fixed else dict(fixed)

    def calls_now(self, command: str) -> None:
        """One more call of the sweep."""
        self.command = command
        now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        self.calls = [*self.calls, {"time": now, "command": command}][-KEPT_CALLS:]

    def meet(self, axes: Mapping[str, Iterable[Any]]) -> None:
        """Values of the axes that trials have."""
        for key, values in axes.items():
            known = self.axes.setdefault(key, [])
            for value in values:
                if value not in known:
                    known.append(value)

    def write(self) -> None:
        """Put it on disk.

        Raises:
            OutputError: it cannot be written.
        """
        content = {
            "name": self.name,
            "command": self.command,
            "calls": self.calls,
            "overrides": self.overrides,
            "axes": self.axes,
            "commit": self.commit,
            **self.settings,
            "fixed": self.fixed,
        }
        atomic_write(self.path / NAME, yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=110))


def in_common(trees: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The flat keys that have one value in all trees, and that value."""
    common: dict[str, Any] | None = None
    for tree in trees:
        flat = flatten(dict(tree))
        if common is None:
            common = flat
        else:
            common = {key: value for key, value in common.items() if key in flat and flat[key] == value}
    return common or {}


def _text(value: Any) -> str:
    return "null" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _some(words: list[str], between: str = ", ", most: int = 4) -> str:
    more = f"{between}and {len(words) - most} more" if len(words) > most else ""
    return between.join(words[:most]) + more
