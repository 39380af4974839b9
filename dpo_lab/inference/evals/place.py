"""The folder of an evaluation: found again by the same command, and never taken from another."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpo_lab.config.brought import Subject
from dpo_lab.config.identity import decisive
from dpo_lab.config.paths import expand
from dpo_lab.config.schema import Config
from dpo_lab.inference.evals.votes import VOTES
from dpo_lab.inference.exports.disk import check_apart
from dpo_lab.runtime.errors import OutputError
from dpo_lab.runtime.files import digest, fingerprint, read_json, remove, short, write_json

NOTE = "evaluation.json"  # what the folder is of; what lacks it is not overwritten
METRICS, RECORDS = "metrics.json", "eval_pairs.jsonl"  # of one result, in a folder of its own


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
        ConfigError: `output` lies in or around what is read.
        OutputError: the folder holds something else, or another evaluation and overwrite=true was not given.
    """
    memo = expand(config.cache_dir) / "fingerprints"
    results = [(s.name, s.whole, fingerprint(s.result, memo)) for s in subjects]
    identity = digest(repr(results), repr(sorted(what.items())))[:12]
    path = expand(config.output) if config.output else expand(config.output_dir) / "evaluations" / identity
    place = Place(path, identity)
    if path.exists() and not path.is_dir():
        raise OutputError(f"output={config.output} is a file, a folder is needed.")
    check_apart(path, _read(config, subjects), "is evaluated or read")
    if not path.is_dir() or not any(path.iterdir()):
        return place
    note = read_json(path / NOTE)
    if not isinstance(note, dict):
        raise OutputError(
            f"output={short(path)} holds other files and no evaluation (it has no {NOTE}), so nothing is written there, not "
            "with overwrite=true either. Choose another folder."
        )
    if config.overwrite:
        _clear(place)
    elif note.get("identity") != identity:
        raise OutputError(
            f"output={short(path)} holds the evaluation of something else, which is not overwritten. Choose another folder, "
            "or add overwrite=true."
        )
    return place


def _read(config: Config, subjects: Sequence[Subject]) -> Iterable[Path]:
    """What of this machine is read: results, models and pairs. Names on a hub are none of it."""
    data = config.data
    named = [config.model.path, config.lora.adapter, config.reference.path, *data.paths, data.eval_path]
    there = [path for path in map(expand, filter(None, named)) if path.exists()]
    return [*(path for s in subjects for path in (s.path, s.result)), *there]


def _clear(place: Place) -> None:
    """Remove an earlier evaluation, but what people said of its answers: nobody can compute that again.

    Raises:
        OutputError: there are folders that no evaluation makes, a run for example.
    """
    entries = sorted(place.path.iterdir())
    folders = [path for path in entries if path.is_dir()]
    for folder in folders:
        if folder.is_symlink() or {path.name for path in folder.iterdir()} - {METRICS, RECORDS}:
            raise OutputError(
                f"{short(folder)} is no part of an evaluation, so overwrite=true does not delete it. Choose another output, "
                "or move it away."
            )
    votes = set(place.path.glob(VOTES))
    if votes:
        place.note(done=False)  # the folder stays, and stays known
    for path in sorted(entries, key=lambda path: path.name == NOTE):  # last: without it nobody may overwrite the rest
        if path not in votes and not (votes and path.name == NOTE):
            remove(path)
    if not votes:
        remove(place.path)


def data_facts(tree: dict[str, Any]) -> dict[str, Any]:
    """Of a configuration with what the results bring along, the model, the pairs and how they are measured."""
    kept = decisive(tree)
    groups = ("model", "quant", "template", "lora", "data", "loss", "reference", "seed", "code")
    return {group: kept[group] for group in groups} | {"precision": kept["trainer"]["precision"]}
