"""LLaMA-Factory's dataset_info.json: which data a name stands for, and how its rows are read."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from dpo_lab.config.names import did_you_mean, listed, nearest
from dpo_lab.data.messages import TAGS, kind
from dpo_lab.data.types import Reading
from dpo_lab.runtime.errors import DataError

INFO = "dataset_info.json"
HUBS = {"hf": "hf_hub_url", "modelscope": "ms_hub_url", "openmind": "om_hub_url"}
FORMATTINGS = ("alpaca", "sharegpt", "openai")
TYPES: dict[str, type] = {  # the keys of an entry
    **dict.fromkeys(("file_name", *HUBS.values(), "script_url", "cloud_file_name", "formatting"), str),
    **dict.fromkeys(("subset", "split", "folder"), str),
    **{"ranking": bool, "num_samples": int, "columns": dict, "tags": dict},
}
COLUMNS = {  # theirs -> our name of a column
    "prompt": "prompt",
    "messages": "prompt",
    "query": "query",
    "response": "completion",
    "kto_tag": "label",
    **{same: same for same in ("history", "system", "tools", "images", "videos", "audios", "chosen", "rejected")},
}
ALPACA_ONLY = ("prompt", "query", "response", "history")
UNREAD = ("history", "system", "tools")  # columns that LLaMA-Factory reads only where the entry names them
TAG_NAMES = ("role_tag", "content_tag", *TAGS)


@dataclass(frozen=True)
class Named:
    """What a name in dataset_info.json stands for: a local path, or a dataset of a hub."""

    name: str
    path: Path | None
    hub: str | None
    where: str  # hf | modelscope
    subset: str | None
    split: str
    reading: Reading
    num_samples: int | None
    folder: str | None = None  # within the hub's repository


def named(folder: Path, name: str, *, where: str = "hf") -> Named:
    """The data that `name` stands for in `folder`/dataset_info.json. A local file wins over hubs.

    Args:
        folder: as LLaMA-Factory's dataset_dir.
        name: an entry's name.
        where: the hub that is asked where there is no local file, hf or modelscope.

    Raises:
        DataError: there is no such entry, it is broken, it has no preferences, or it cannot be had.
    """
    entries = _entries(folder / INFO)
    if name not in entries:
        usable = sorted(key for key, entry in entries.items() if isinstance(entry, dict) and _is_preference(entry))
        there = f"With preferences there are {', '.join(usable)}." if usable else "It has none with preferences."
        raise DataError(f"{folder / INFO}: has no dataset {name}{_hint(name, entries)} {there}")
    at = f"{folder / INFO}: {name}"
    entry = _checked(entries[name], at)
    if not _is_preference(entry):
        raise DataError(
            f"{at} is no preference dataset: it has neither 'ranking': true nor a kto_tag among its columns. If its "
            "rows have a chosen and a rejected answer, add 'ranking': true."
        )
    path = _path(folder, entry, at)
    return Named(
        name=name,
        path=path,
        hub=None if path else _hub(entry, where, at),
        where=where,
        subset=entry.get("subset"),
        split=entry.get("split", "train"),
        reading=_reading(entry, at),
        num_samples=entry.get("num_samples"),
        folder=entry.get("folder"),
    )


def _entries(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_bytes().decode("utf-8-sig"), object_pairs_hook=_object)
        twice = _twice(content)
    except FileNotFoundError as e:
        raise DataError(
            f"{file}: there is no such file. Give the folder that holds LLaMA-Factory's {INFO}, or read a data file by "
            "itself with data=file data.path=FILE."
        ) from e
    except OSError as e:
        raise DataError(f"{file}: cannot be read ({e.strerror}).") from e
    except UnicodeDecodeError as e:
        line = e.object[: e.start].count(b"\n") + 1
        raise DataError(f"{file}: line {line} is not UTF-8 text. Save it as UTF-8.") from e
    except json.JSONDecodeError as e:
        raise DataError(f"{file}: broken JSON in line {e.lineno}, column {e.colno}: {e.msg}.") from e
    except RecursionError as e:
        raise DataError(f"{file}: nested too deeply to be a list of datasets.") from e
    if not isinstance(content, dict):
        raise DataError(f"{file}: holds {kind(content)}; an object with an entry for each dataset is needed.")
    if twice is not None:
        raise DataError(f"{file}: names {twice} more than once. Keep one of them.")
    return content


class _Object(dict[str, Any]):
    """An object of JSON that knows a key which stood in it twice."""

    twice: str | None = None


def _object(pairs: list[tuple[str, Any]]) -> _Object:
    found = _Object(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        found.twice = next(key for key in keys if keys.count(key) > 1)
    return found


def _twice(value: Any, place: str = "") -> str | None:
    """The first key that stands twice in one object, and in which."""
    if not isinstance(value, _Object):
        return None
    if value.twice is not None:
        return f"{value.twice!r}{place}"
    return next((found for key, item in value.items() if (found := _twice(item, f" in {key}"))), None)


def _is_preference(entry: Mapping[str, Any]) -> bool:
    columns = entry.get("columns")
    return entry.get("ranking") is True or (isinstance(columns, dict) and bool(columns.get("kto_tag")))


def _checked(entry: Any, at: str) -> dict[str, Any]:
    """The entry without nulls, its values of the right types."""
    if not isinstance(entry, dict):
        raise DataError(f"{at} must be an object with keys such as file_name, formatting, ranking, not {kind(entry)}.")
    entry = {key: value for key, value in entry.items() if value is not None}
    for key, value in entry.items():
        if key not in TYPES and nearest(key, TYPES):  # a note of the user is left alone, a typo is not
            raise DataError(f"{at}: the key {key} is unknown{_hint(key, TYPES)}")
        if key in TYPES and (not isinstance(value, TYPES[key]) or (key == "num_samples" and isinstance(value, bool))):
            needed = {str: "text", bool: "true or false", int: "a whole number", dict: "an object"}[TYPES[key]]
            raise DataError(f"{at}: {key} must be {needed}, not {kind(value)}.")
    if entry.get("num_samples", 1) < 1:
        raise DataError(f"{at}: num_samples must be at least 1, not {entry['num_samples']}.")
    if entry.get("formatting", "alpaca") not in FORMATTINGS:
        raise DataError(f"{at}: formatting must be {listed(FORMATTINGS, 'or')}, not {entry['formatting']!r:.60}.")
    for key, known in (("columns", COLUMNS), ("tags", TAG_NAMES)):
        for name, value in entry.get(key, {}).items():
            if name not in known:
                raise DataError(f"{at}: {key} has no {name}{_hint(name, known)} Known are {', '.join(known)}.")
            if not isinstance(value, str | None):
                raise DataError(f"{at}: {name} in {key} must be text, not {kind(value)}.")
    return entry


def _hint(word: str, known: Iterable[str]) -> str:
    return did_you_mean(word, known) or "."


def _path(folder: Path, entry: Mapping[str, Any], at: str) -> Path | None:
    """The local file or folder, if there is one. Links may lead anywhere, as those of the hub's cache do."""
    file = entry.get("file_name")
    if file is None:
        return None
    parts = {*PurePosixPath(file).parts, *PureWindowsPath(file).parts}
    if not file or "\0" in file or ".." in parts or Path(file).is_absolute() or PureWindowsPath(file).anchor:
        raise DataError(
            f"{at}: file_name {file!r:.80} leads out of the folder. Move the data into {folder}, or read it by itself "
            "with data=file data.path=FILE."
        )
    path = folder / file
    if path.exists():
        return path
    if any(key in entry for key in HUBS.values()):
        return None
    others = [p.name for p in path.parent.iterdir() if p.name != INFO] if path.parent.is_dir() else []
    raise DataError(f"{at}: there is no file {path}{_hint(path.name, others)} Check file_name.")


def _hub(entry: Mapping[str, Any], where: str, at: str) -> str:
    by_hand = "Download the data into the folder and name it with file_name."
    if hub := entry.get(HUBS[where]):
        if where == "openmind":
            raise DataError(f"{at}: data is not loaded from Openmind, whose library takes datasets apart. {by_hand}")
        return hub
    if others := [hub for hub, key in HUBS.items() if entry.get(key) and hub != "openmind"]:
        raise DataError(f"{at} is not on {where}, but on {listed(others, 'and')}. Choose that hub. Or: {by_hand}")
    for key, reason in (
        ("script_url", "runs a script of its own, which is not done"),
        ("cloud_file_name", "is kept in a cloud store, which is not read"),
        ("om_hub_url", "is on Openmind alone, from which no data is loaded"),
    ):
        if key in entry:
            raise DataError(f"{at} {reason} ({key}). {by_hand}")
    raise DataError(f"{at} says not where its data is: give file_name, hf_hub_url or ms_hub_url.")


def _reading(entry: Mapping[str, Any], at: str) -> Reading:
    given = {name: theirs for name, theirs in entry.get("columns", {}).items() if theirs}
    formatting = entry.get("formatting", "alpaca")
    unpaired = "kto_tag" in given
    if unpaired and entry.get("ranking"):
        raise DataError(
            f"{at}: has both 'ranking': true and a kto_tag; rows are pairs or single answers. Take one out."
        )
    dropped = [name for name in (ALPACA_ONLY if formatting != "alpaca" else ("messages",)) if name in given]
    if not unpaired:
        dropped.append("response")
    columns = {COLUMNS[name]: theirs for name, theirs in given.items() if name not in dropped}
    unread = (*UNREAD, "query") if "columns" in entry else UNREAD
    columns |= {name: "" for name in unread if name not in columns}
    tags = {name: tag for name, tag in entry.get("tags", {}).items() if tag}
    return Reading(format="kto" if unpaired else formatting, columns=columns, tags=tags)
