"""Values that the shell handed over as they are, made safe for Hydra's grammar."""

import re

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException

from dpo_lab.config.paths import expand
from dpo_lab.config.schema import PATH_KEYS, TEXT_KEYS

_OUTPUTS = ("output_dir", "cache_dir", "sweep.dir")  # never swept
_FREE = ("data.columns", "data.tags")  # mappings whose keys are not in conf/
_LISTS = ("lora.target_modules", "data.path", "data.name", "data.eval_name", "run", "adapter")  # a text or a list
_OVERRIDE = re.compile(r"(?P<prefix>\+{0,2})(?P<key>[\w.]+)=(?P<value>.*)", re.DOTALL)


def quote(override: str, *, multirun: bool) -> str:
    """The override as Hydra must see it for a path or a text to arrive as it was typed.

    `data.path=/tmp/a (1).jsonl` -> `data.path='/tmp/a (1).jsonl'`. In a multirun commas separate the values of a
    sweep, unless the whole is the name of a file.
    """
    match = _OVERRIDE.fullmatch(override)
    if not match:
        return override
    prefix, key, value = match["prefix"], match["key"], match["value"]
    if any(key == free or key.startswith(f"{free}.") for free in _FREE):
        return f"++{key}={value}"
    if key not in (*PATH_KEYS, *TEXT_KEYS) or not value:
        return override
    start = f"{prefix}{key}="
    if key in _LISTS and re.fullmatch(r"\[.*\]", value, re.DOTALL) and not _exists(value):
        return override if _parse(override) else start + _quoted_list(value)
    if _arrives(start, value):
        return override
    if not multirun or key in _OUTPUTS or "," not in value or (key in PATH_KEYS and _exists(value)):
        return start + _quoted(value)
    parsed = _parse(f"{start}{value}")
    if parsed and parsed.is_sweep_override() and all(isinstance(v, QuotedString) for v in _elements(parsed)):
        return override
    if re.fullmatch(r"(choice|glob|sort|shuffle|tag)\(.*\)", value) and parsed:
        return override
    parts = [part.strip() for part in value.split(",")]
    return start + ",".join(part if _arrives(start, part) else _quoted(part) for part in parts if part)


def _arrives(start: str, value: str) -> bool:
    """Whether Hydra reads the value as one text (or null), as it was typed or deliberately quoted."""
    parsed = _parse(start + value)
    if parsed is None or parsed.is_sweep_override():
        return False
    element = parsed._value  # pyright: ignore[reportPrivateUsage]
    if element is None or isinstance(element, QuotedString):
        return True
    if isinstance(element, str) and element != value:
        return not _exists(value)  # escapes as Hydra's grammar has them, unless a file is really called that
    return isinstance(element, str)


def _elements(parsed: Override) -> list[object]:
    return list(parsed.sweep_iterator()) if parsed.is_choice_sweep() else []


def _parse(text: str) -> Override | None:
    try:
        return OverridesParser.create().parse_override(text)
    except HydraException:
        return None


def _quoted(value: str) -> str:
    return QuotedString(value, Quote.single).with_quotes()


def _quoted_list(value: str) -> str:
    parts = (part.strip() for part in value[1:-1].split(","))
    return f"[{','.join(part if _parse(f'x={part}') else _quoted(part) for part in parts if part)}]"


def _exists(value: str) -> bool:
    try:
        return expand(value).exists()
    except (OSError, RuntimeError, ValueError):
        return False
