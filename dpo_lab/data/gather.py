"""What conf/data names, as sources: files, folders, datasets of a hub or of a dataset_info.json."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from dpo_lab.config.paths import expand
from dpo_lab.config.schema import Data, HubData
from dpo_lab.data.files import data_files, read_file
from dpo_lab.data.folders import other_splits
from dpo_lab.data.llamafactory import Named, named
from dpo_lab.data.sources import hub_fingerprint, hub_rows
from dpo_lab.data.types import OnBad, Reading, Row
from dpo_lab.runtime.errors import DataError
from dpo_lab.runtime.files import digest, fingerprint

log = logging.getLogger(__name__)

Rows = Iterator[tuple[int, Row]]


@dataclass(frozen=True)
class Source:
    """One dataset.

    Attributes:
        name: for messages: the path, or the name on a hub.
        reading: how its rows become pairs.
        path: a file or folder; None for a dataset of a hub.
        hub: None for local files.
        samples: so many pairs are drawn from it; None takes all.
    """

    name: str
    reading: Reading
    path: Path | None = None
    hub: HubData | None = None
    samples: int | None = None
    heldout: bool = False  # of a folder with splits the test or validation split is taken, not train

    @property
    def title(self) -> str:
        """What to call it in a few words."""
        return self.path.name if self.path else self.name

    def files(self) -> list[Path]:
        """The local files; none for a dataset of a hub.

        Raises:
            DataError: there is nothing to read.
        """
        return [] if self.path is None else data_files(self.path, heldout=self.heldout)

    def parts(self, on_bad: OnBad) -> Iterator[tuple[str, Rows]]:
        """Each file's name and its rows, read as they are asked for; there is at least one.

        Raises:
            DataError: there is nothing to read.
        """
        if self.path is None:
            assert self.hub is not None
            yield self.name, hub_rows(self.hub, on_bad=on_bad)
            return
        for file in self.files():
            yield str(file), read_file(file, on_bad=on_bad)

    def fingerprint(self, memo: Path) -> str:
        """A hash of the content, and of the names that pairs carry.

        Raises:
            DataError: there is nothing to read.
        """
        if self.path is None:
            assert self.hub is not None
            return digest(self.name, hub_fingerprint(self.hub))
        try:
            return digest(*(part for f in self.files() for part in (str(f), fingerprint(f, memo))))
        except OSError as e:
            raise DataError(f"{self.path}: cannot be read ({e.strerror or e}).") from e


def training_sources(data: Data) -> list[Source]:
    """The sources of the pairs to train on.

    Raises:
        DataError: none is named, or dataset_info.json does not know it.
    """
    if data.paths:
        if data.eval_path is None:
            _tell_left_out(data)
        return [_local(data, path) for path in data.paths]
    if data.dir is not None:
        return [_named(data, name) for name in data.names]
    if data.hub is not None:
        return [Source(data.hub.name, _reading(data), hub=data.hub)]
    raise DataError(
        "No data: give data=file data.path=FILE, data=hub data.hub.name=OWNER/NAME, or data=llamafactory data.dir=FOLDER data.name=NAME."
    )


@cache
def _warn_once(text: str) -> None:
    log.warning(text)


def _tell_left_out(data: Data) -> None:
    """The test split that lies beside the train split, and how it could be of use."""
    for path in data.paths:
        if (folder := expand(path)).is_dir() and (others := other_splits(folder)):
            names = ", ".join(f.relative_to(folder).as_posix() for f in others[:3]) + (
                ", ..." if len(others) > 3 else ""
            )
            _warn_once(f"{path}: only the train split is read, not {names}. To evaluate on it: data.eval_path={path}")


def heldout_sources(data: Data) -> list[Source]:
    """The sources of held-out pairs; none where they are split off.

    Raises:
        DataError: dataset_info.json does not know one.
    """
    if data.eval_path is not None:
        return [replace(_local(data, data.eval_path), heldout=True)]
    return [_named(data, name) for name in data.eval_names]


def _local(data: Data, path: str) -> Source:
    where = expand(path)
    return Source(str(where), _reading(data), where)


def _named(data: Data, name: str) -> Source:
    assert data.dir is not None
    there = _entry(expand(data.dir), name)
    # What the command line says of the reading comes before what dataset_info.json says.
    own = {"format": data.format} if data.format != "auto" else {}
    reading = replace(
        there.reading,
        columns={**there.reading.columns, **data.columns},
        tags={**there.reading.tags, **data.tags},
        ranking=data.ranking,
        min_margin=data.min_margin,
        mixed=len(data.names) > 1,
        **own,
    )
    hub = None
    if there.hub is not None:
        where = "modelscope" if there.where == "modelscope" else "hf"
        hub = HubData(name=there.hub, config=there.subset, split=there.split, where=where, folder=there.folder)
    return Source(name, reading, there.path, hub, there.num_samples)


def _entry(folder: Path, name: str) -> Named:
    """On ModelScope where the Hugging Face hub does not have it."""
    try:
        return named(folder, name)
    except DataError:
        return named(folder, name, where="modelscope")


def _reading(data: Data) -> Reading:
    several = len(data.paths) > 1
    return Reading(data.format, {**data.columns}, {**data.tags}, data.ranking, data.min_margin, several)


def title(data: Data) -> str:
    """What to call the training data in a few words."""
    names = [Path(path.removeprefix("pkg://")).name for path in data.paths] or data.names
    if not names:
        return data.hub.name if data.hub else "data"
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
