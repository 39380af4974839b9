"""The data files of a folder, and the split that their names tell."""

import json
import os
import re
from collections.abc import Iterable
from pathlib import Path

from dpo_lab.data.blocks import kind_of
from dpo_lab.data.types import Row
from dpo_lab.runtime.errors import DataError

FAMILIES = ((".json", ".jsonl", ".ndjson"), (".csv", ".tsv"), (".parquet",), (".arrow", ".feather"))
TYPES = tuple(suffix for family in FAMILIES for suffix in family)
# What stands beside data and is none.
NO_DATA = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "configuration.json")
MOST_FILES = 100_000
SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev", "eval", "evaluation"),
    "test": ("test", "testing"),
}


def folder_files(folder: Path, *, heldout: bool = False) -> list[Path]:
    """The data files of a folder and its subfolders, sorted by name.

    Hidden files, descriptions (dataset_info.json, README, ...) and files of types that are not read are left out. Where
    names tell a train split from others, it alone is taken, as `datasets` does; with `heldout`, the test or validation
    split.

    Raises:
        DataError: the folder holds no data, or data of several types, or is of a kind that something else reads.
    """
    _check_folder(folder)
    files = saved if (saved := _saved_by_datasets(folder)) else all_files(folder)
    if not files:
        raise DataError(
            f"{folder}: there are no data files in this folder. Read are {', '.join(TYPES)}, also packed as .gz or .zst."
        )
    types = sorted({kind_of(file)[0] for file in files})
    if not any(set(types) <= set(family) for family in FAMILIES):
        raise DataError(
            f"{folder}: holds files of several types ({', '.join(types)}), maybe the same data twice. Give one file, or a "
            "folder with files of one type."
        )
    return _of_split(folder, files, ("test", "validation") if heldout else ("train",))


def other_splits(folder: Path) -> list[Path]:
    """The files that are left out of a folder because they are of other splits than train."""
    files = saved if (saved := _saved_by_datasets(folder)) else all_files(folder)
    return sorted({*files} - {*_of_split(folder, files, ("train",))})


def all_files(folder: Path) -> list[Path]:
    """Every data file in a folder and its subfolders, sorted by name.

    Raises:
        DataError: there are too many files for a folder of data.
    """
    found: list[Path] = []
    seen = 0
    for here, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__")))
        seen += len(names) + len(folders)
        if seen > MOST_FILES:
            raise DataError(f"{folder}: holds more than {MOST_FILES} files. Give the folder with the data alone.")
        found += [Path(here, name) for name in names if _is_data(name) and Path(here, name).is_file()]
    return sorted(found)


def _is_data(name: str) -> bool:
    if name.startswith((".", "_", "cache-", "tmp")) or name in NO_DATA:  # datasets keeps results in cache-*.arrow
        return False
    return kind_of(Path(name))[0] in TYPES


def _check_folder(folder: Path) -> None:
    if isinstance(splits := _described(folder / "dataset_dict.json").get("splits"), list) and len(splits) > 1:
        raise DataError(
            f"{folder}: was saved with the splits {', '.join(map(str, splits))[:300]}. Give the folder of one, "
            f"{folder / str(splits[0])}."
        )
    named = [
        name
        for name, entry in _described(folder / "dataset_info.json").items()
        if isinstance(entry, dict) and ({"file_name", "hf_hub_url", "ms_hub_url"} & entry.keys())
    ]
    if named:
        raise DataError(
            f"{folder}: holds the datasets {', '.join(named)[:300]} of a dataset_info.json. Choose one with "
            f"data=llamafactory data.dir={folder} data.name={named[0][:100]}."
        )


def _described(file: Path) -> Row:
    try:
        found = json.loads(file.read_bytes()) if file.stat().st_size < 2**24 else None
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _saved_by_datasets(folder: Path) -> list[Path]:
    """The files that `save_to_disk` names as those of the dataset, where all of them are there."""
    listed = _described(folder / "state.json").get("_data_files")
    names = [x.get("filename") if isinstance(x, dict) else None for x in listed] if isinstance(listed, list) else []
    if not all(isinstance(name, str) and Path(name).name == name for name in names):
        return []
    files = [folder / str(name) for name in names]
    if missing := next((file for file in files if not file.is_file()), None):
        raise DataError(
            f"{missing}: there is no such file, though {folder / 'state.json'} names it. Copy the whole folder."
        )
    return files


def _of_split(folder: Path, files: list[Path], wanted: tuple[str, ...]) -> list[Path]:
    """The files of the first of some splits that is there; all of them where names tell no splits apart."""
    splits = {file: split_of(file.relative_to(folder)) for file in files}
    split = next((split for split in wanted if split in splits.values()), None)
    if split is None:
        return files
    return [file for file in files if splits[file] == split or (split == "train" and not splits[file])]


def split_of(file: Path) -> str:
    """The split that the name of a file or of its folders tells: data/train-00000-of-00002.parquet -> train."""
    for part in (file.name, *reversed(file.parts[:-1])):
        words = re.split(r"[^a-z]+", part.lower())
        for split, names in SPLITS.items():
            if any(word in names for word in words):
                return split
    return ""


def in_split(files: Iterable[Path], folder: Path, split: str) -> list[Path]:
    """Those of a folder's files that belong to a split, by any of its names; all for train if no name tells."""
    files = list(files)
    standard = next((name for name, names in SPLITS.items() if split in names), None)
    own = [f for f in files if _has_word(f.relative_to(folder), split)]
    if not own and standard:
        own = [f for f in files if split_of(f.relative_to(folder)) == standard]
    if not own and standard == "train" and not any(split_of(f.relative_to(folder)) for f in files):
        return files
    return own


def in_config(files: Iterable[Path], folder: Path, config: str | None) -> list[Path]:
    """Those of a folder's files that belong to a config: in a folder of that name, or with names that begin with it."""
    files = list(files)
    if config in (None, "default"):
        return files
    inside = [f for f in files if config in f.relative_to(folder).parts[:-1]]
    return inside or [f for f in files if re.match(rf"{re.escape(str(config))}([^a-zA-Z0-9]|$)", f.name)]


def _has_word(file: Path, word: str) -> bool:
    """Whether a name stands in a path between separators: train_sft in data/train_sft-00000.parquet."""
    return re.search(rf"(^|[^a-zA-Z0-9]){re.escape(word)}([^a-zA-Z0-9_]|_\d|$)", file.as_posix()) is not None
