"""Rows of the datasets of hubs, each through the hub's own library; without a network, of the copy on this machine."""

import logging
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from dpo_lab.config.schema import HubData
from dpo_lab.data.files import read_file
from dpo_lab.data.folders import TYPES, all_files, in_config, in_split, split_of
from dpo_lab.data.types import OnBad, Row
from dpo_lab.runtime.errors import DataError
from dpo_lab.runtime.files import digest, fingerprint

if TYPE_CHECKING:
    from datasets import Dataset

log = logging.getLogger(__name__)

HUB_SECONDS = 5  # how long a hub may take to say that it is there
ROWS = 256  # that are Python objects at once
PATTERNS = [f"*{suffix}{packing}" for suffix in TYPES for packing in ("", ".gz", ".zst")]


def hub_rows(hub: HubData, *, on_bad: OnBad | None = None) -> Iterator[tuple[int, Row]]:
    """The rows of a dataset of a hub, numbered from 1, as they are asked for.

    Args:
        hub: which one.
        on_bad: takes what is wrong with a row of a file, as `read_file`.

    Raises:
        DataError: it cannot be had.
    """
    if hub.where == "modelscope":
        return _rows_of_files(_modelscope_files(hub), on_bad)
    return _rows_of_dataset(_hf(hub), hub)


def hub_fingerprint(hub: HubData) -> str:
    """A hash that changes when the rows do, the same with and without a network.

    Raises:
        DataError: the dataset cannot be had.
    """
    if hub.where == "modelscope":
        return digest(*(part for file in _modelscope_files(hub) for part in (file.name, fingerprint(file))))
    return digest(_hf(hub)._fingerprint)


def _rows_of_files(files: list[Path], on_bad: OnBad | None) -> Iterator[tuple[int, Row]]:
    before = 0
    for file in files:
        number = 0
        for number, row in read_file(file, on_bad=on_bad):
            yield before + number, row
        before += number


def _rows_of_dataset(dataset: "Dataset", hub: HubData) -> Iterator[tuple[int, Row]]:
    number = 0
    try:
        for columns in dataset.iter(batch_size=ROWS):
            assert isinstance(columns, dict)
            for values in zip(*columns.values(), strict=True):
                number += 1
                yield number, dict(zip(columns, values, strict=True))
    except Exception as e:  # Arrow, or what decodes a column: types differ, the advice is the same
        raise DataError(
            f"{_title(hub)}: row {number + 1} or one soon after it cannot be read: {_first_line(e)}. Delete its copy on "
            "this machine and load it again."
        ) from e
    if not number:
        raise DataError(f"{_title(hub)} holds no rows. Check data.hub.split.")


def _title(hub: HubData) -> str:
    return f"The dataset {hub.name} (config {hub.config}, split {hub.split})"


# The Hugging Face hub


def _hf(hub: HubData) -> "Dataset":
    """The dataset, memory-mapped."""
    import datasets
    from datasets import config

    offline = config.HF_HUB_OFFLINE
    silent = not offline and not _hub_answers(hub.name)
    try:
        # `datasets` asks an unreachable hub six times over, for 23 s to 80 s. Offline it goes straight to its copy.
        config.HF_HUB_OFFLINE = offline or silent
        found = datasets.load_dataset(hub.name, hub.config, data_dir=hub.folder, split=hub.split)
    except Exception as e:  # the hub, the network, Arrow, a builder: types differ, the advice is the same
        reason = "the hub does not answer, and no copy is on this machine" if silent else _first_line(e)
        raise DataError(
            f"{_title(hub)} could not be loaded from the hub: {reason}. Check data.hub and the network; offline, "
            "download it elsewhere and use data=file data.path=FILE."
        ) from e
    finally:
        config.HF_HUB_OFFLINE = offline
    assert isinstance(found, datasets.Dataset)
    return found


def _hub_answers(name: str) -> bool:
    """Whether the hub says anything at all, be it that it has no such dataset."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        HfApi().dataset_info(name, timeout=HUB_SECONDS)
    except (HfHubHTTPError, HFValidationError):
        return True
    except Exception:  # whatever a network does
        return False
    return True


# ModelScope


def _modelscope_files(hub: HubData) -> list[Path]:
    """The files of the config and split, in the folder where modelscope_hub keeps them."""
    folder = _modelscope_folder(hub)
    files = in_config(all_files(folder), folder, hub.config)
    if not files:
        folders = sorted({f.parent.relative_to(folder).as_posix() for f in all_files(folder)} - {"."})
        raise DataError(
            f"{_title(hub)} has no files that can be read{f' for the config {hub.config}' if hub.config else ''} on "
            f"ModelScope. Set data.hub.config to one of its folders ({', '.join(folders)[:300] or 'none'}), or null."
        )
    chosen = in_split(files, folder, hub.split)
    if not chosen:
        splits = sorted({split_of(f.relative_to(folder)) for f in files} - {""})
        names = ", ".join(f.relative_to(folder).as_posix() for f in files)[:300]
        raise DataError(
            f"{_title(hub)} has no file of that split on ModelScope. Set data.hub.split"
            f"{f' to {chr(32).join(splits)}' if splits else ''}, or to a word of a file's name: {names}."
        )
    return chosen


def _modelscope_folder(hub: HubData) -> Path:
    """The dataset's files as they are on ModelScope now; as they were where it does not answer."""
    if find_spec("modelscope_hub") is None:
        raise DataError(
            'data.hub.where=modelscope needs the package modelscope_hub: pip install "dpo_lab[hubs]". Or use '
            "data.hub.where=hf."
        )
    import requests
    from modelscope_hub import HubApi  # pyright: ignore[reportMissingImports]
    from modelscope_hub.config import HubConfig  # pyright: ignore[reportMissingImports]
    from modelscope_hub.errors import (  # pyright: ignore[reportMissingImports]
        APIError,
        AuthenticationError,
        CacheNotFound,
        InvalidParameter,
        NotExistError,
        PermissionDeniedError,
    )

    owner, _, name = hub.name.partition("/")
    if not owner or not name or "/" in name or any(c.isspace() for c in hub.name):
        raise DataError(
            f"{hub.name!r} is no name of a dataset on ModelScope (OWNER/NAME). For files use data=file data.path=FILE."
        )
    api = HubApi()
    try:
        requests.head(str(HubConfig().endpoint), timeout=HUB_SECONDS)  # the client itself asks a silent hub for minutes
        return Path(api.download_repo(hub.name, "dataset", allow_patterns=PATTERNS))
    except (AuthenticationError, PermissionDeniedError) as e:
        raise DataError(
            f"ModelScope does not give {hub.name} to this user: accept its terms at "
            f"https://modelscope.cn/datasets/{hub.name} and run 'modelscope login', or set MODELSCOPE_API_TOKEN."
        ) from e
    except (NotExistError, InvalidParameter) as e:
        raise DataError(
            f"There is no dataset {hub.name!r} on ModelScope (or it is private, or no longer there). Check data.hub.name."
        ) from e
    except APIError as e:
        _unreachable(hub, e)
    except Exception as e:  # whatever a network does
        reason = e
    try:
        folder = Path(api.download_repo(hub.name, "dataset", local_files_only=True))
    except (CacheNotFound, OSError):
        _unreachable(hub, reason)
    if any(folder.rglob("*.incomplete")):
        _unreachable(hub, reason)
    log.info("ModelScope does not answer: %s is read as it was when it was last fetched", hub.name)
    return folder


def _unreachable(hub: HubData, e: BaseException) -> NoReturn:
    raise DataError(
        f"{_title(hub)} is not on this machine and could not be fetched from ModelScope: {_first_line(e)[:200]}. Check "
        "data.hub and the network; offline, download it elsewhere and use data=file data.path=FILE."
    ) from e


def _first_line(e: BaseException) -> str:
    return (str(e).strip().splitlines() or [type(e).__name__])[0][:300].rstrip(".")
