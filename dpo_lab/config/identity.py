"""A run's id: the hash of all that decides its result, so that the same command finds its own folder again."""

import hashlib
import json
import sysconfig
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from dpo_lab.config import inputs
from dpo_lab.config.paths import expand
from dpo_lab.config.schema import Config
from dpo_lab.config.target import source_file
from dpo_lab.runtime.files import digest, fingerprint

# Where results go, how they are shown and where they are computed: none of it changes them.
_OUTSIDE = {
    "": ("output_dir", "cache_dir", "logger", "sweep", "plan", "overwrite", "hydra", "doctor", "launcher", "sweeper")
    + ("study", "prune"),
    "data": ("workers",),
    "reference": ("device",),
    "trainer": ("accelerator", "devices", "forward", "lean", "microbatch_tokens", "compile", "log_every")
    + ("checkpoint_every",),
}
# Of the other doors. After training a result's own configuration counts, and not how it is looked at.
_DOORS = ("preview", "bench", "output", "profile", "run", "adapter", "force", "evaluate", "judge", "harness", "chat")
_DOORS += ("prompt", "prompt_file", "format", "export", "serve")

SUFFIXES = frozenset(inputs.SUFFIXES)


def run_id(tree: dict[str, Any]) -> str:
    """12 hexadecimal digits from a resolved config; input paths count by the content they name."""
    text = json.dumps(decisive(tree), sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def is_outside(key: str) -> bool:
    """Whether a key of training's configuration changes no result, so that it is no part of a run's id."""
    group, _, inner = key.replace("/", ".").partition(".")
    return group in _OUTSIDE[""] or inner.partition(".")[0] in _OUTSIDE.get(group, ())


def decisive(tree: dict[str, Any]) -> dict[str, Any]:
    """What of a resolved config decides a run's result: input paths as the content they name, no output paths."""
    tree = _normal(tree)
    memo = expand(tree["cache_dir"]) / "fingerprints"
    kept: dict[str, Any] = {k: v for k, v in tree.items() if k not in (*_OUTSIDE[""], *_DOORS)}
    for group, keys in _OUTSIDE.items():
        if group in kept:
            kept[group] = {k: v for k, v in kept[group].items() if k not in keys}
    model, data = kept["model"], kept["data"]
    if model["path"] is not None:  # the folder is the model: what it is called does not matter
        kept["model"] = {**model, "path": _content(model["path"], memo), "name": None, "names": {}, "wheel": None}
    else:  # of the names only the one that is asked for
        name = model["name"] or model["names"].get(model["hub"])
        kept["model"] = {**model, "name": name, "names": {}}
    if kept["template"]["path"] is not None:
        kept["template"] = {**kept["template"], "path": _content(kept["template"]["path"], memo)}
    # Keys that are younger than others, at the values that do nothing, leave ids as they were.
    if kept["prompts"].get("system") is None:
        kept["prompts"] = {k: v for k, v in kept["prompts"].items() if k != "system"}
    if not kept["generation"].get("temperature"):
        drawn = ("temperature", "top_p", "top_k") + (
            ("repetition_penalty",) if kept["generation"].get("repetition_penalty", 1.0) == 1.0 else ()
        )
        kept["generation"] = {k: v for k, v in kept["generation"].items() if k not in drawn}
    kept["data"] = {**data, "eval_path": _pairs(data["eval_path"], memo)}
    if data["path"] is not None:
        paths = [data["path"]] if isinstance(data["path"], str) else data["path"]
        kept["data"] |= {"path": [_pairs(path, memo) for path in paths], "hub": None}
    if data["dir"] is not None:
        named = {key: _named(data["dir"], data[key], memo) for key in ("name", "eval_name")}
        kept["data"] |= {"dir": None} | named
    if kept["lora"]["adapter"] is not None:
        kept["lora"] = {**kept["lora"], "adapter": _result(kept["lora"]["adapter"], memo)}
    if kept["reference"]["path"] is not None:
        kept["reference"] = {**kept["reference"], "path": _result(kept["reference"]["path"], memo)}
    targets = {group: kept[group].get("_target_") for group in ("loss", "optim")}
    targets |= {name: term.get("_target_") for name, term in (kept["loss"].get("terms") or {}).items()}
    kept["code"] = {name: _own_code(target, memo) for name, target in targets.items()}
    return kept


def _normal(tree: dict[str, Any]) -> dict[str, Any]:
    """Equal settings written differently (1 and 1.0, 32 and "32") become the same."""
    try:
        return Config.model_validate(tree).model_dump(by_alias=True)
    except ValidationError:
        return tree  # nothing will run: the door reports what is wrong


def _result(path: str, memo: Path) -> str | None:
    """Of a run its result, of a folder its content; a hub's name is itself."""
    folder = expand(path)
    final = folder / "final"
    return _content(str(final if final.is_dir() else folder), memo) if folder.exists() else path


def _content(path: str | None, memo: Path) -> str | None:
    if path is None:
        return None
    try:
        return fingerprint(expand(path), memo)
    except OSError:
        return f"absent: {path}"


def _pairs(path: str | None, memo: Path) -> str | None:
    """Of a folder the data files: a README in it changes nothing."""
    folder = expand(path) if path is not None else None
    if folder is None or not folder.is_dir():
        return _content(path, memo)
    files = [p for p in sorted(folder.rglob("*")) if p.is_file() and not SUFFIXES.isdisjoint(p.suffixes)]
    return digest(*(part for p in files for part in (str(p.relative_to(folder)), str(_content(str(p), memo)))))


def _named(folder: str, names: str | list[str] | None, memo: Path) -> list[Any]:
    """What dataset_info.json says of each dataset, and the content of its file."""
    try:  # with or without a byte order mark, as it is read later
        listed = json.loads((expand(folder) / "dataset_info.json").read_bytes().decode("utf-8-sig"))
    except (OSError, ValueError, RecursionError):
        listed = None
    entries = listed if isinstance(listed, dict) else {}
    found: list[Any] = []
    for name in [names] if isinstance(names, str) else names or []:
        entry = entries.get(name)
        file = entry.get("file_name") if isinstance(entry, dict) else None
        found.append([entry or name, _pairs(f"{folder}/{file}", memo) if isinstance(file, str) else None])
    return found


def _own_code(target: str | None, memo: Path) -> str | None:
    """The fingerprint of the source of a user's own loss or optimizer; None for this package and installed ones."""
    if target is None or target.partition(".")[0] == "dpo_lab":
        return None
    source = source_file(target)
    if source is None or any(source.is_relative_to(sysconfig.get_path(kind)) for kind in ("purelib", "stdlib")):
        return None
    return _content(str(source), memo)
