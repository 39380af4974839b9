"""The command line's overrides: read one by one, and held against the keys and options that there are."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from antlr4.error.Errors import LexerNoViableAltException
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, ValueType
from hydra.errors import HydraException
from omegaconf import OmegaConf

from dpo_lab.config.explain import UNKNOWN, no_option
from dpo_lab.config.names import did_you_mean, listed
from dpo_lab.config.quoting import quote
from dpo_lab.config.sources import Sources
from dpo_lab.config.target import TargetError, signature


@dataclass(frozen=True)
class Given:
    """One override: as it was typed, as Hydra sees it, and once for each of its values if it is a sweep.

    Of an interval the values are its ends.
    """

    typed: str
    text: str
    override: Override
    texts: tuple[str, ...]

    @property
    def key(self) -> str:
        """The key or group, without + and ~."""
        return self.override.key_or_group

    @property
    def swept(self) -> bool:
        """Whether it holds several values."""
        return self.override.is_sweep_override()

    def values(self) -> list[Any]:
        """Its value, or each of the values of a sweep."""
        if not self.swept:
            return [self.override.value()]
        parser = OverridesParser.create()
        return [parser.parse_override(text).value() for text in self.texts]


def read(typed: Iterable[str], sources: Sources, *, multirun: bool) -> tuple[list[Given], list[str]]:
    """The overrides that can be read, and what is wrong with the others."""
    parser = OverridesParser.create()
    found: dict[str, Given] = {}
    problems = []
    for text in typed:
        quoted = quote(text, multirun=multirun)
        try:
            override = parser.parse_override(quoted)
            given = Given(text, quoted, override, _texts(quoted, override, sources))
        except HydraException as e:
            problems.append(_unreadable(text, quoted, e, sources))
            continue
        name = f"{given.key}@{given.override.package or ''}"
        if name in found:
            problems.append(f"{given.key} is given twice: {found[name].typed} and {text}. Keep one.")
        elif problem := _sweep_problem(given, multirun):
            problems.append(problem)
        else:
            found[name] = given
    return list(found.values()), problems


def option_problems(given: Given, sources: Sources) -> tuple[list[str], Given | None]:
    """Options that a group does not have, and the override without them (None if nothing is left)."""
    group = given.key
    if given.override.is_delete() or given.override.package is not None or not sources.is_group(group):
        return [], given
    options = sources.options(group)
    problems: list[str] = []
    good: list[str] = []
    for text, value in zip(given.texts, given.values(), strict=True):
        chosen = [] if isinstance(value, dict) else value if isinstance(value, list) else [value]
        wrong = [name for one in chosen if (name := _option_name(one)) not in options]
        problems += [no_option(group, name, options) for name in wrong]
        good += [] if wrong else [text]
    if given.override.is_add() and not problems:
        return [f"{given.typed}: {group} is there already. Drop the +: {given.typed.lstrip('+')}"], None
    return problems, replace(given, texts=tuple(good)) if good else None


def key_problem(given: Given, cfg: Any, sources: Sources) -> str | None:
    """What is wrong with the key of an override of a value, seen from the config that it would change."""
    key, override = given.key, given.override
    nodes = _nodes(cfg)
    if override.is_delete():
        return None if key in nodes else f"{given.typed}: {unknown_key(key, cfg, sources)}"
    if override.is_add():
        kept = OmegaConf.select(cfg, key, throw_on_missing=False, throw_on_resolution_failure=False)
        taken = key in nodes and kept is not None and not OmegaConf.is_config(kept)
        return f"{given.typed}: {key} is there already. Drop the +: {given.typed.lstrip('+')}" if taken else None
    if override.is_force_add():
        return None
    if key not in nodes:
        return unknown_key(key, cfg, sources)
    below = [f"{key}.{inner}" for value in given.values() if isinstance(value, dict) for inner in value]
    wrong = [inner for inner in below if nodes[key] and inner not in nodes]
    return unknown_key(wrong[0], cfg, sources) if wrong else None


def unknown_key(key: str, cfg: Any, sources: Sources, without: Iterable[str] = ()) -> str:
    """That there is no such key, and which one was probably meant."""
    group, _, inner = key.partition(".")
    choices = cfg.hydra.runtime.choices
    if inner and sources.is_group(group) and (owners := sources.options_with(group, inner)):
        names = listed([f"{group}={owner}" for owner in owners], "or")
        return f"{key} {UNKNOWN} of {group}={choices.get(group)}. Choose {names} to use it."
    target = OmegaConf.select(cfg, f"{group}._target_", default=None)
    if isinstance(target, str) and inner:
        try:
            accepts = signature(target)
        except TargetError:
            accepts = None
        if accepts and inner in accepts.names[1:]:
            return f"{key} {UNKNOWN} of {group}={choices.get(group)}, but {target} takes it: write +{key}=VALUE."
    candidates = [n for n in _nodes(cfg).keys() - set(without) if n.partition(".")[0] == "hydra" or group != "hydra"]
    if group != "hydra":
        candidates = [n for n in candidates if n.partition(".")[0] != "hydra"] + sources.groups
    hint = did_you_mean(key, dict.fromkeys(candidates))
    return f"{key} {UNKNOWN}{hint or '. All keys: python -m dpo_lab --help'}"


def _nodes(cfg: Any, prefix: str = "") -> dict[str, bool]:
    """Every key of the config, with whether it holds keys of its own."""
    tree: Any = OmegaConf.to_container(cfg, resolve=False) if OmegaConf.is_config(cfg) else cfg
    found: dict[str, bool] = {}
    for name, value in tree.items():
        found[f"{prefix}{name}"] = isinstance(value, dict) and bool(value)
        if isinstance(value, dict):
            found |= _nodes(value, f"{prefix}{name}.")
    return found


def _texts(text: str, override: Override, sources: Sources) -> tuple[str, ...]:
    """The override once for each of its values."""
    if not override.is_sweep_override():
        return (text,)
    if override.value_type == ValueType.INTERVAL_SWEEP:  # what holds at both ends holds between them
        interval: Any = override._value  # pyright: ignore[reportPrivateUsage]
        return tuple(f"{override.get_key_element()}={end!r}" for end in (interval.start, interval.end))
    if not override.is_discrete_sweep():
        return ()
    if override.value_type == ValueType.GLOB_CHOICE_SWEEP:
        glob: Any = override._value  # pyright: ignore[reportPrivateUsage]
        values = glob.filter(sources.options(override.key_or_group))
    else:
        values = override.sweep_string_iterator()
    return tuple(f"{override.get_key_element()}={value}" for value in values)


def _option_name(value: Any) -> str:
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _sweep_problem(given: Given, multirun: bool) -> str | None:
    override = given.override
    if not given.swept:
        return None
    if not multirun:
        values = override.get_value_string()
        return (
            f"{given.typed}: several values are a sweep, which needs --multirun. "
            f"A list is written in brackets: {given.key}=[{values}]"
        )
    if override.is_hydra_override():
        return f"{given.typed}: Hydra's own keys cannot be swept."
    if not given.texts:
        return f"{given.typed}: nothing to sweep over: this selects no value."
    return None


def _unreadable(text: str, quoted: str, e: HydraException, sources: Sources) -> str:
    """Our words for an override that Hydra's grammar refuses."""
    if "=" not in text:
        owners = [f"{g}={text}" for g in sources.groups if text in sources.options(g)]
        hint = f" Did you mean {listed(owners, 'or')}?" if owners else ""
        return f"{text}: an override has the form KEY=VALUE.{hint}"
    key, _, value = text.partition("=")
    if not re.fullmatch(r"[+~]{0,2}[\w$./@:-]*", key.strip()) or not key.isascii() or key != key.strip():
        return f"{text}: {key} cannot be a key. An override has the form KEY=VALUE, without a space around the =."
    for opening, closing in ("[]", "{}", "()"):
        if value.count(opening) != value.count(closing):
            return f"{text}: the {opening} and {closing} do not match."
    if any(value.count(quote_mark) % 2 for quote_mark in "'\""):
        return f"{text}: a quote is not closed."
    example = f"'{key}=[\"...\"]'" if value.startswith("[") else f"'{key}=\"...\"'"
    cause = e.__cause__
    if isinstance(cause, LexerNoViableAltException):
        return (
            f"{text}: {quoted[cause.startIndex]} is only allowed in quotes. Write {example}, with both kinds of quotes."
        )
    reason = re.sub(r"^Error parsing override.*\n", "", str(e)).splitlines()[0]
    return f"{text}: this value cannot be read ({reason}). Text with special characters needs quotes: {example}."
