"""Compose every job of a command line and collect all that is wrong with any of them."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError

from dpo_lab.config import explain, resolvers
from dpo_lab.config.check import check
from dpo_lab.config.composer import Composer
from dpo_lab.config.overrides import Given, key_problem, option_problems, unknown_key
from dpo_lab.config.schema import Config
from dpo_lab.config.sources import Sources, Uncomposable, composed, shortened
from dpo_lab.config.sweeps import combinations, swept_part

_ABSENT = object()


@dataclass(frozen=True)
class Verdict:
    """What is wrong, and the composed config of a job (the first's in a single run)."""

    problems: list[str]
    cfg: DictConfig | None


@dataclass
class _Findings:
    """Problems in the order they were met, each with how often and the first combination that shows it."""

    jobs: int = 0
    seen: dict[str, tuple[int, str]] = field(default_factory=dict)

    def add(self, problems: Sequence[str], combination: str) -> None:
        self.jobs += 1
        for problem in dict.fromkeys(problems):
            count, first = self.seen.get(problem, (0, combination))
            self.seen[problem] = (count + 1, first)

    def listed(self) -> list[str]:
        return [p if n == self.jobs or not first else f"{p} (with {first})" for p, (n, first) in self.seen.items()]


def verify(given: Sequence[Given], sources: Sources) -> Verdict:
    """Check every combination of the overrides."""
    problems = [
        f"{file} would never be read: {first} has the same name. Rename it." for file, first in sources.shadowed()
    ]
    doomed = any(option_problems(g, sources)[0] for g in given)
    findings, cfg, broken = (_Findings(), None, None) if doomed else _examined(given, sources)
    if doomed or broken is not None:
        found, usable = _diagnosed(given, sources)
        problems += found or [str(broken)]
        if found:
            findings, cfg, broken = _examined(usable, sources)
            problems += [str(broken)] if broken is not None else []
    return Verdict([*problems, *findings.listed()], cfg)


def _examined(given: Sequence[Given], sources: Sources) -> tuple[_Findings, DictConfig | None, Uncomposable | None]:
    """What is wrong with each job, up to the first that Hydra cannot compose."""
    findings, cfg = _Findings(), None
    try:
        for combination, cfg in _jobs(given, sources):
            findings.add(_examine(cfg, given, sources), swept_part(combination, given))
    except Uncomposable as e:
        return findings, cfg, e
    return findings, cfg, None


def _jobs(given: Sequence[Given], sources: Sources) -> Iterator[tuple[list[str], DictConfig]]:
    """Each combination with its config."""
    composer = composer_of(given, sources)
    for combination in combinations(given):
        yield combination, composer.compose(combination)


def composer_of(given: Sequence[Given], sources: Sources) -> Composer:
    """What composes the combinations of a command line."""
    values = [i for i, g in enumerate(given) if g.swept and not _is_choice(g, sources) and not g.override.is_delete()]
    return Composer(given, sources, values)


def _examine(cfg: DictConfig, given: Sequence[Given], sources: Sources) -> list[str]:
    """All that is wrong with one job."""
    try:
        tree, bad = resolvers.plain(cfg), {}
    except OmegaConfBaseException:
        tree, bad = _salvaged(cfg)
    try:
        config = Config.model_validate(tree)
    except ValidationError as e:
        bad = explain.invalid(tree, e) | bad
        chosen = tuple(g.text for g in given if _is_choice(g, sources) and not g.swept)
        config = _repaired(tree, bad, [composed(sources, chosen), composed(sources, ())])
    keys = {g.key for g in given}
    problems = [_worded(key, text, cfg, given, sources, [*bad]) for key, text in bad.items()]
    if config is not None:
        problems += [_located(p, cfg, keys, sources) for p in check(config, keys) if not any(key in p for key in bad)]
    return problems


def _salvaged(cfg: DictConfig) -> tuple[dict[str, Any], dict[str, str]]:
    """The tree with null where a value is missing or cannot be worked out, and what is wrong with those."""
    own = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
    bad = explain.unresolved(own)
    for key in bad:
        OmegaConf.update(own, key, None)
    for key in sorted(OmegaConf.missing_keys(own)):
        bad[key] = f"{key} is missing"
        OmegaConf.update(own, key, None)
    return resolvers.plain(own), bad


def _repaired(tree: dict[str, Any], bad: dict[str, str], bases: Sequence[DictConfig]) -> Config | None:
    """The config with other values in place of the bad ones, for the rules that look at the rest."""
    for key, text in bad.items():
        *path, last = key.split(".")
        node: Any = tree
        for part in path:
            node = node.get(part) if isinstance(node, dict) else None
        if not isinstance(node, dict):
            return None
        wrong = node.pop(last, _ABSENT)
        if not (text.endswith(explain.UNKNOWN) or explain.NO_NAME in text):
            values = [_value(base, key) for base in bases]
            node[last] = next((v for v in values if v is not _ABSENT and v != wrong), "?")
    try:
        return Config.model_validate(tree)
    except ValidationError:
        return None


def _value(base: DictConfig, key: str) -> Any:
    parent, _, last = key.rpartition(".")
    node: Any = OmegaConf.select(base, parent, default=None) if parent else base
    if not OmegaConf.is_dict(node) or last not in node:
        return _ABSENT
    return OmegaConf.to_container(node[last], resolve=True) if OmegaConf.is_config(node[last]) else node[last]


def _worded(key: str, text: str, cfg: DictConfig, given: Sequence[Given], sources: Sources, bad: list[str]) -> str:
    """The problem with its remedy, and where it was said if that was not on the command line."""
    group = key.partition(".")[0]
    if text.endswith(explain.UNKNOWN):
        text = unknown_key(key, cfg, sources, without=bad)
    if text.endswith("is missing"):
        deleted = next((g for g in given if g.override.is_delete() and f"{key}.".startswith(f"{g.key}.")), None)
        if deleted:
            group = deleted.key
            remedy = f" Options: {', '.join(sources.options(group))}." if sources.is_group(group) else ""
            return f"{deleted.typed}: {key} is needed and cannot be removed.{remedy}"
        option = f": {group}={cfg.hydra.runtime.choices.get(group)} needs it" if sources.is_group(group) else ""
        return f"{text}{option}. Add {key}=VALUE."
    said = next((g for g in given if f"{key}.".startswith(f"{g.key}.") and not sources.is_group(g.key)), None)
    if said is not None:
        return (
            text
            if text.startswith(key) and said.key == key and not said.typed.startswith("+")
            else f"{said.typed}: {text}"
        )
    file = sources.holder(key, dict(cfg.hydra.runtime.choices))
    return f"{text} (in {shortened(file)})" if file else text


def _located(problem: str, cfg: DictConfig, given: set[str], sources: Sources) -> str:
    """A problem that begins with a key, with the option or experiment file that the key's value is from."""
    match = re.match(r"(\w+(\.\w+)+)[:=]", problem)
    file = sources.holder(match[1], dict(cfg.hydra.runtime.choices)) if match and match[1] not in given else None
    return f"{problem} (in {shortened(file)})" if file and file.stem != sources.primary else problem


def _diagnosed(given: Sequence[Given], sources: Sources) -> tuple[list[str], list[Given]]:
    """Why Hydra refuses the command line, override by override; and the overrides that are fine."""
    problems: list[str] = []
    usable: list[Given] = []
    doubtful: set[str] = set()  # groups of which none of the options asked for exists
    for g in given:
        found, rest = option_problems(g, sources)
        problems += found
        usable += [rest] if rest else []
        doubtful |= set() if rest else {g.key}
    choices = [g for g in usable if _is_choice(g, sources)]
    values = [g for g in usable if g not in choices]
    findings = _Findings()
    bad: set[str] = set()
    unusable, choices = _uncomposable(choices, sources)
    problems += unusable
    for combination in combinations(choices):
        try:
            base = composed(sources, tuple(combination))
        except Uncomposable as e:
            return [*problems, str(e)], []
        found = {g.key: problem for g in values if (problem := key_problem(g, base, sources))}
        bad |= found.keys()
        certain = [problem for key, problem in found.items() if key.partition(".")[0] not in doubtful]
        findings.add(certain, swept_part(combination, choices))
    return [*problems, *findings.listed()], [*choices, *(g for g in values if g.key not in bad)]


def _uncomposable(choices: Sequence[Given], sources: Sources) -> tuple[list[str], list[Given]]:
    """Choices that Hydra cannot compose even alone, such as a broken file; and the others."""
    try:
        composed(sources, tuple(g.texts[0] for g in choices))
        return [], [*choices]
    except Uncomposable:
        problems: list[str] = []
        rest: list[Given] = []
        for g in choices:
            try:
                for text in g.texts:
                    composed(sources, (text,))
                rest.append(g)
            except Uncomposable as e:
                problems.append(str(e))
        return problems, rest


def _is_choice(given: Given, sources: Sources) -> bool:
    """Whether an override chooses an option, rather than sets a value."""
    if given.override.package is not None or "/" in given.key:
        return True
    return sources.is_group(given.key) and not any(isinstance(value, dict) for value in given.values())
