"""The folder of an evaluation: found again by the same command, and never taken from another."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpo_lab.config.brought import Subject
from dpo_lab.config.identity import decisive
from dpo_lab.config.paths import expand
from dpo_lab.config.schema import Config
from dpo_lab.runtime.errors import OutputError
from dpo_lab.runtime.files import digest, fingerprint, read_json, remove, short, write_json

NOTE = "evaluation.json"  # what the folder is of


@dataclass(frozen=True)
class Place:
    """A folder and what it is of.

    Attributes:
        path: the folder.
        identity: changes with the results, the pairs and all that changes the numbers.
    """

    path: Path
    identity: str

    @property
    def done(self) -> bool:
        """Whether an earlier call came to its end."""
        note = read_json(self.path / NOTE)
        return isinstance(note, dict) and bool(note.get("done"))

    def note(self, *, done: bool, **facts: Any) -> None:
        """Say what the folder is of, and whether all of it is there."""
        write_json(self.path / NOTE, {"identity": self.identity, "done": done, **facts})

    def of(self, subject: Subject) -> Path:
        """The folder of one result."""
        return self.path / subject.name.replace("/", "__")


def open_place(config: Config, subjects: Sequence[Subject], what: dict[str, Any]) -> Place:
    """The folder for this evaluation: `output`, or one below `output_dir` that is named after what is evaluated.

    Args:
        config: with what the results bring along.
        subjects: the results.
        what: beside them, all that the numbers depend on.

    Raises:
        OutputError: the folder holds something else, and overwrite=true was not given.
    """
    memo = expand(config.cache_dir) / "fingerprints"
    results = [(s.name, s.whole, fingerprint(s.result, memo)) for s in subjects]
    identity = digest(repr(results), repr(sorted(what.items())))[:12]
    path = expand(config.output) if config.output else expand(config.output_dir) / "evaluations" / identity
    place = Place(path, identity)
    if path.exists() and not path.is_dir():
        raise OutputError(f"output={config.output} is a file, a folder is needed.")
    note = read_json(path / NOTE)
    ours = isinstance(note, dict)
    if config.overwrite and ours:
        remove(path)
    elif (
        path.is_dir()
        and any(path.iterdir())
        and not config.overwrite
        and not (ours and note.get("identity") == identity)
    ):
        held = "the evaluation of something else" if ours else "other files"
        raise OutputError(
            f"output={short(path)} holds {held}, which is not overwritten. Choose another folder, or add overwrite=true."
        )
    return place


def data_facts(tree: dict[str, Any]) -> dict[str, Any]:
    """Of a configuration with what the results bring along, the model, the pairs and how they are measured."""
    kept = decisive(tree)
    groups = ("model", "quant", "template", "lora", "data", "loss", "reference", "seed", "code")
    return {group: kept[group] for group in groups} | {"precision": kept["trainer"]["precision"]}
