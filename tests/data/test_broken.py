"""The files of broken/: each is told with its place and a fix, or what cannot be used is counted and the rest kept."""

import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from dpo_lab.data.files import read_file
from dpo_lab.data.formats import to_pairs
from dpo_lab.data.llamafactory import named
from dpo_lab.data.types import OnBad, Pair, Reading
from dpo_lab.runtime.errors import DataError

BROKEN = Path(__file__).parent / "broken"


def read(file: Path, on_bad: OnBad | None = None) -> list[Pair]:
    """The pairs of a file, or of the dataset `mine` of a folder with a dataset_info.json."""
    reading = Reading()
    if file.name == "dataset_info.json":
        found = named(file.parent, "mine")
        assert found.path is not None
        file, reading = found.path, found.reading
    pairs, _ = to_pairs(read_file(file, on_bad=on_bad), reading, where=str(file), on_bad=on_bad)
    return list(pairs)


@dataclass(frozen=True)
class Case:
    """What the manifest says of a file; `kept` and `out` are None where it is an error even if rows may be left out."""

    file: Path
    says: list[str]
    kept: int | None
    out: int | None


def cases() -> dict[str, dict[str, Case]]:
    """Class of fault -> name -> case."""
    manifest: dict[str, dict[str, Any]] = yaml.safe_load((BROKEN / "manifest.yaml").read_text(encoding="utf-8"))
    return {
        fault: {
            name: Case(
                BROKEN / name,
                entry["says"],
                *((None, None) if entry["drop"] == "error" else (entry["drop"]["kept"], entry["drop"]["out"])),
            )
            for name, entry in files.items()
        }
        for fault, files in manifest.items()
    }


CASES = cases()
ALL = {f"{fault}: {name}": case for fault, files in CASES.items() for name, case in files.items()}
SECONDS = 20  # the longest takes one or two here


def names_and_fragments(message: str, case: Case) -> Iterable[str]:
    """What a message lacks."""
    if str(case.file.parent if case.file.name == "dataset_info.json" else case.file) not in message:
        yield str(case.file)
    yield from (fragment for fragment in case.says if fragment not in message)


def test_the_corpus_is_as_large_as_it_should_be():
    assert len(CASES) >= 28
    assert len(ALL) >= 70
    files = {f for f in BROKEN.rglob("*") if f.is_file() and "__pycache__" not in f.parts}
    described = {case.file for case in ALL.values()}
    assert files - described == {BROKEN / name for name in ("write.py", "manifest.yaml")} | {
        BROKEN / "info_absent_column" / "mine.jsonl",
        BROKEN / "info_broken_data" / "mine.jsonl",
    }
    assert described <= files
    assert sum(f.stat().st_size for f in files) < 600_000


@pytest.mark.parametrize("case", ALL.values(), ids=ALL)
def test_a_broken_file_is_told_with_its_place_and_what_to_do(case):
    began = time.monotonic()
    with pytest.raises(DataError) as caught:
        read(case.file)
    assert time.monotonic() - began < SECONDS
    message = str(caught.value)
    assert list(names_and_fragments(message, case)) == []
    assert case.says
    assert len(message) < 2500
    assert "Traceback" not in message


@pytest.mark.parametrize("case", ALL.values(), ids=ALL)
def test_what_is_sound_is_kept_and_the_rest_counted_where_rows_may_be_left_out(case):
    faults: list[DataError] = []
    began = time.monotonic()
    if case.kept is None:
        with pytest.raises(DataError):
            read(case.file, faults.append)
    else:
        assert len(read(case.file, faults.append)) == case.kept
        assert len(faults) == case.out
        assert faults
        assert list(names_and_fragments(str(faults[0]), case)) == []
    assert time.monotonic() - began < SECONDS
