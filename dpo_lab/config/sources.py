"""The files that a configuration is composed of: conf/ and the folder of --config-dir."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import hydra
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import MissingConfigException
from omegaconf import DictConfig

from dpo_lab.config.explain import composition
from dpo_lab.config.paths import CONF_DIR

_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class Uncomposable(Exception):
    """Hydra cannot make one configuration of these overrides; the message says why."""


@dataclass(frozen=True)
class Sources:
    """Folders with a subfolder a group and a file an option; the first that has a file wins."""

    folders: tuple[Path, ...] = (CONF_DIR,)
    primary: str = "train"

    @property
    def groups(self) -> list[str]:
        """data, experiment, loss, ..."""
        found = {f.parent.relative_to(root).as_posix() for root in self.folders for f in root.rglob("*.yaml")}
        return sorted(found - {"."})

    def is_group(self, key: str) -> bool:
        """Whether `key` is a folder with options."""
        return bool(key) and any((root / key).is_dir() for root in self.folders)

    def options(self, group: str) -> list[str]:
        """The options of a group; r8 before r16."""
        names = {f.stem for root in self.folders for f in (root / group).glob("*.yaml")}
        return sorted(names, key=lambda name: [int(p) if p.isdigit() else p for p in re.split(r"(\d+)", name)])

    def file(self, group: str, option: str) -> Path | None:
        """The file of an option."""
        found = (root / group / f"{option}.yaml" for root in self.folders)
        return next((file for file in found if file.is_file()), None)

    def options_with(self, group: str, key: str) -> list[str]:
        """The options of a group whose files hold `key` (relative to the group)."""
        files = {option: self.file(group, option) for option in self.options(group)}
        return [option for option, file in files.items() if file and _has(content(file)[1], key.split("."))]

    def holder(self, key: str, choices: dict[str, Any]) -> Path | None:
        """The file among those chosen that says what `key` is; the one that has the last word."""
        files = [(g, f, *content(f)) for g, o in choices.items() for one in _as_list(o) if (f := self.file(g, one))]
        for group, file, package, tree in sorted(files, key=lambda found: found[2] is None):  # experiments first
            at = group.replace("/", ".") if package is None else package
            inside = key if not at else key.removeprefix(f"{at}.") if key.startswith(f"{at}.") else None
            if inside and _has(tree, inside.split(".")):
                return file
        names = dict.fromkeys((self.primary, "train"))  # the other doors' files begin with training's
        primaries = [f for name in names for root in self.folders if (f := root / f"{name}.yaml").is_file()]
        return next((f for f in primaries if _has(content(f)[1], key.split("."))), None)

    def shadowed(self) -> list[tuple[Path, Path]]:
        """Files of a later folder that would never be read, each with the one that is read instead."""
        return [
            (file, first)
            for root in self.folders[1:]
            for file in sorted(root.rglob("*.yaml"))
            if (first := self.file(file.parent.relative_to(root).as_posix(), file.stem)) not in (file, None)
        ]

    def _asker(self, e: Exception, overrides: Sequence[str]) -> str:
        """The chosen file that asks for an option that does not exist, where the command line does not."""
        if not isinstance(e, MissingConfigException) or not e.missing_cfg_file:
            return ""
        group, _, option = e.missing_cfg_file.rpartition("/")
        chosen = [self.file(*key.split("=", 1)) for key in overrides if key.count("=") == 1]
        files = [f for f in chosen if f and re.search(rf"{re.escape(group)}:\s*{re.escape(option)}\b", f.read_text())]
        return f" (asked for in {shortened(files[0])})" if files else ""

    def compose(self, overrides: Sequence[str]) -> DictConfig:
        """What Hydra makes of the overrides, the hydra node included.

        Raises:
            Uncomposable: nothing.
        """
        base, *more = self.folders
        own = [o for o in overrides if not o.startswith("hydra.searchpath=")]
        paths: list[Any] = [f"file://{folder}" for folder in more]
        for override in overrides:
            if override not in own:  # --config-dir comes on top
                given: Any = OverridesParser.create().parse_override(override).value()
                paths = [*given, *paths]
        if paths:
            quoted = ",".join(QuotedString(str(path), Quote.single).with_quotes() for path in paths)
            own.append(f"hydra.searchpath=[{quoted}]")
        try:
            with hydra.initialize_config_dir(str(base), job_name="dpo_lab", version_base="1.3"):
                return hydra.compose(self.primary, own, return_hydra_config=True)
        except Exception as e:  # Hydra lets YAML's, OmegaConf's and its own errors through
            raise Uncomposable(composition(e, self.groups) + self._asker(e, overrides)) from e


@cache
def composed(sources: Sources, overrides: tuple[str, ...]) -> DictConfig:
    """A composition to look things up in, not to be changed."""
    return sources.compose(overrides)


@cache
def content(file: Path) -> tuple[str | None, dict[str, Any]]:
    """The package that a file's header names ("" for _global_, None for its group's) and its keys."""
    text = file.read_text(encoding="utf-8")
    header = re.search(r"^#\s*@package\s+(\S+)", text, re.MULTILINE)
    package = {"_group_": None, "_global_": ""}.get(header[1], header[1]) if header else None
    try:
        tree = yaml.load(text, Loader=_Loader)  # noqa: S506 - a safe loader
    except yaml.YAMLError:
        tree = None
    return package, tree if isinstance(tree, dict) else {}


def shortened(file: Path) -> str:
    """The path from here if the file is below."""
    relative = os.path.relpath(file)
    return str(file) if relative.startswith("..") else relative


def _has(tree: Any, path: list[str]) -> bool:
    for part in path:
        if not isinstance(tree, dict) or part not in tree:
            return False
        tree = tree[part]
    return True


def _as_list(chosen: Any) -> list[str]:
    return [str(c) for c in chosen] if isinstance(chosen, list) else [] if chosen is None else [str(chosen)]
