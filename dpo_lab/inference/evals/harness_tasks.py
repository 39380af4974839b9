"""Which tasks of lm-evaluation-harness are meant: by name, or described in YAML files of one's own."""

import difflib
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from dpo_lab.config.paths import expand
from dpo_lab.models.quiet import quiet_loading
from dpo_lab.runtime.errors import ConfigError, DataError

log = logging.getLogger(__name__)


def check_package() -> None:
    """The harness must be there.

    Raises:
        ConfigError: it is not.
    """
    if find_spec("lm_eval") is None:
        raise ConfigError('harness= needs lm-evaluation-harness: pip install "dpo_lab[harness]".')


@dataclass(frozen=True)
class Tasks:
    """What is asked for.

    Attributes:
        manager: the harness's index.
        names: of tasks, groups and tags, each once.
        files: YAML files and folders that were given.
    """

    manager: Any
    names: tuple[str, ...]
    files: tuple[Path, ...]


def find_tasks(wanted: Sequence[str]) -> Tasks:
    """Look up names, and the tasks of YAML files and of folders with such files.

    A name may have * in it. The harness's own tasks are only read where a name is given, which takes seconds.

    Raises:
        ConfigError: there is no such task, or a file describes none.
    """
    from lm_eval.tasks import TaskManager

    paths = [path for word in wanted if (path := _path(word)) is not None]
    plain = [word for word in wanted if _path(word) is None]
    folders = list(dict.fromkeys(path if path.is_dir() else path.parent for path in paths))
    with quiet_harness():
        manager = TaskManager(include_path=list(folders), include_defaults=bool(plain))
    names = [name for path in paths for name in _of_path(manager, path)]
    for word in plain:
        found = manager.match_tasks([word])
        if not found:
            near = difflib.get_close_matches(word, manager.all_tasks, n=3)
            more = f" Did you mean {', '.join(near)}?" if near else ""
            raise ConfigError(
                f"harness={word}: lm-evaluation-harness has no such task, group or tag, and there is no such file.{more}"
            )
        names += found
    return Tasks(manager, tuple(dict.fromkeys(names)), tuple(paths))


def load_tasks(tasks: Tasks) -> dict[str, Any]:
    """The harness's own objects with their documents: tasks, groups and what belongs to which.

    Raises:
        DataError: a task's data cannot be had, or its description is wrong.
    """
    try:
        with quiet_harness():
            return tasks.manager.load(list(tasks.names))
    except Exception as e:  # a task runs code of its own, and loads its data from anywhere
        reason = (str(e).strip().splitlines() or [""])[0][:300].rstrip(".")
        raise DataError(
            f"harness={','.join(tasks.names)} cannot be loaded: {type(e).__name__}: {reason}. Tasks of the harness load "
            "their data from the Hugging Face hub; a YAML file of your own may name a file of yours."
        ) from e


@contextmanager
def quiet_harness() -> Iterator[None]:
    """Without what the harness logs of each step; its errors stay, and its progress bars."""
    logger = logging.getLogger("lm_eval")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with quiet_loading():
            yield
    finally:
        logger.setLevel(before)


def _path(word: str) -> Path | None:
    """The file or folder that a word names, if it is one."""
    path = expand(word)
    if path.suffix in (".yaml", ".yml") and not path.is_file():
        raise ConfigError(f"harness={word}: there is no such file.")
    return path if path.is_dir() or path.suffix in (".yaml", ".yml") else None


def _of_path(manager: Any, path: Path) -> list[str]:
    """The tasks that a file describes, or the files of a folder; of a folder with groups these alone."""
    index = {name: entry for name, entry in manager.task_index.items() if entry.yaml_path is not None}
    if path.is_file():
        found = [name for name, entry in index.items() if entry.yaml_path.resolve() == path.resolve()]
    else:
        inside = {n: e for n, e in index.items() if e.yaml_path.resolve().is_relative_to(path.resolve())}
        groups = [name for name in inside if name in manager.all_groups]
        found = groups or list(inside)
    if not found:
        raise ConfigError(
            f"harness={path} describes no task of lm-evaluation-harness: a YAML file with the key task is needed."
        )
    return sorted(found)
