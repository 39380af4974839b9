"""Errors of pydantic, OmegaConf and Hydra in plain words."""

import json
import re
from collections.abc import Iterable
from typing import Any, get_args

import yaml
from hydra.errors import MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ValidationError

from dpo_lab.config.names import did_you_mean, listed
from dpo_lab.config.schema import Config, flatten

UNKNOWN = "is not a key"
NO_NAME = "cannot be a name here"
_NAME = object()  # in the place of a value: the key itself is wrong
_PHRASES = {
    "greater_than": "must be greater than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    "finite_number": "must be a finite number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "string_type": "must be a text",
    "list_type": "must be a list: [a,b]",
    "dict_type": "must be a mapping: {{name: value}}",
    "model_type": "must be a mapping: {{name: value}}",
    "model_attributes_type": "must be a mapping: {{name: value}}",
    "string_pattern_mismatch": "must match {pattern}",
}


def invalid(tree: dict[str, Any], e: ValidationError) -> dict[str, str]:
    """What pydantic refused: key -> `key=value: must be ...`; an unknown key's text is `key is not a key`."""
    found: dict[str, list[tuple[str, bool]]] = {}
    values: dict[str, Any] = {}
    for error in e.errors(include_url=False):
        path = _path(tree, error["loc"])
        key = ".".join(path)
        if error["loc"][-1] == "[key]":
            found[key] = [(f"{NO_NAME}. Names: {_phrase(error)}", False)]
            values[key] = _NAME
        elif values.setdefault(key, error["input"]) is not _NAME:
            found.setdefault(key, []).append((_phrase(error), error["type"] == "literal_error"))
    return {key: _message(key, values[key], phrases) for key, phrases in found.items()}


def shown(value: Any) -> str:
    """A value as one would write it on the command line."""
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, default=str)


def unresolved(cfg: DictConfig) -> dict[str, str]:
    """Interpolations that lead nowhere: key -> what is wrong."""
    leaves = flatten(OmegaConf.to_container(cfg, resolve=False))  # pyright: ignore[reportArgumentType]
    found = {}
    for key, value in leaves.items():
        if isinstance(value, str) and "${" in value:
            try:
                OmegaConf.select(cfg, key, throw_on_resolution_failure=True)
            except OmegaConfBaseException as e:
                reason = str(e.msg or e).splitlines()[0]
                if match := re.match(r"Interpolation key '(.+)' not found", reason):
                    reason = f"there is no key {match[1]}{did_you_mean(match[1], leaves)}"
                elif match := re.match(r"Unsupported interpolation type (\S+)", reason):
                    reason = f"there is no function {match[1]}. Functions: mul, oc.env"
                found[key] = f"{key}={value} cannot be worked out: {reason}"
    return found


def composition(e: Exception, groups: Iterable[str]) -> str:
    """What Hydra could not compose."""
    if isinstance(e, MissingConfigException) and (match := re.search(r"Could not find '(.+)'", str(e))):
        group, _, option = match[1].rpartition("/")
        return no_option(group, option, e.options or [])
    if isinstance(e, yaml.MarkedYAMLError) and e.problem_mark is not None:
        return f"{e.problem_mark.name}, line {e.problem_mark.line + 1}: this is not valid YAML: {e.problem}"
    if isinstance(e, UnicodeDecodeError):
        return f"A configuration file is not UTF-8 text: {e}"
    cause = e.__cause__
    text = str(cause) if isinstance(cause, OmegaConfBaseException) and not str(e).strip() else str(e)
    if match := re.match(r"In '(.+)': Could not override '(.+)'. No match in the defaults list", text):
        return f"{match[1]}.yaml overrides {match[2]}, which is not in the defaults{did_you_mean(match[2], groups)}"
    first = next((line for line in text.splitlines() if line.strip()), type(e).__name__)
    detail = str(cause).splitlines()[0] if isinstance(cause, OmegaConfBaseException) and text is not str(cause) else ""
    return f"{first.rstrip('.')}: {detail}" if detail and detail not in first else first


def no_option(group: str, option: str, options: Iterable[str]) -> str:
    """`lora=r32: lora has no option r32. Options: none, r8.`."""
    known = list(options)
    hint = did_you_mean(option, known).removeprefix(". ")
    return f"{group}={option}: {group} has no option {option}. Options: {', '.join(known)}. {hint}".rstrip()


def _path(tree: dict[str, Any], loc: tuple[int | str, ...]) -> list[str]:
    """The key that an error is about: pydantic appends the alternatives of a union to it."""
    path: list[str] = []
    node: Any = tree
    for part in loc:
        inside = isinstance(node, dict) or (isinstance(node, list) and isinstance(part, int))
        if not inside or part == "[key]":
            break
        path.append(str(part))
        node = node.get(part) if isinstance(node, dict) else node[part] if part < len(node) else None  # pyright: ignore[reportOperatorIssue,reportCallIssue,reportArgumentType]
    return path


def _phrase(error: Any) -> str:
    kind, context = error["type"], error.get("ctx", {})
    if kind == "missing":
        return "is missing"
    if kind == "extra_forbidden":
        return UNKNOWN
    if kind == "literal_error":
        return context["expected"].replace("'", "").replace(" or ", ", ")
    phrase = _PHRASES.get(kind)
    numbers = {k: f"{v:g}" if isinstance(v, int | float) else v for k, v in context.items()}
    return phrase.format(**numbers) if phrase else error["msg"]


def _message(key: str, value: Any, phrases: list[tuple[str, bool]]) -> str:
    texts = list(dict.fromkeys(text for text, _ in phrases))
    if texts in (["is missing"], [UNKNOWN]):
        return f"{key} {texts[0]}"
    if value is _NAME:
        return f"{key}: {key.rpartition('.')[2]} {texts[0]}"
    literals = list(dict.fromkeys(text for text, literal in phrases if literal))
    others = [text for text in texts if text not in literals]
    nullable = ["null"] if _nullable(key) else []
    if literals:
        choices = [*", ".join(literals).split(", "), *nullable]
        others.append(f"must be one of {', '.join(choices)}" if not others else listed(choices, "or"))
    elif nullable:
        others.append("null")
    hint = did_you_mean(str(value), ", ".join(literals).split(", ")) if literals and isinstance(value, str) else ""
    return (
        f"{key}={shown(value)}: {', or '.join([*others[:1], *(o.removeprefix('must be ') for o in others[1:])])}{hint}"
    )


def _nullable(key: str) -> bool:
    """Whether the schema lets a key be null."""
    model: Any = Config
    annotation: Any = None
    for part in key.split("."):
        if not (isinstance(model, type) and issubclass(model, BaseModel)):
            return False
        fields = {f.alias or name: f for name, f in model.model_fields.items()}
        if part not in fields:
            return False
        annotation = fields[part].annotation
        model = next((a for a in (annotation, *get_args(annotation)) if isinstance(a, type)), None)
    return type(None) in get_args(annotation)
