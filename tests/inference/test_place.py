"""The folder of an evaluation: nothing that is not an evaluation is ever written into, or deleted."""

import json
from pathlib import Path

import pytest
from doors import door_config

from dpo_lab.config.brought import Subject
from dpo_lab.inference.evals.place import METRICS, NOTE, RECORDS, open_place
from dpo_lab.runtime.errors import ConfigError, OutputError

WHAT = {"task": "score"}


@pytest.fixture
def subject(tmp_path: Path) -> Subject:
    run = tmp_path / "runs" / "A"
    (run / "final").mkdir(parents=True)
    (run / "final" / "adapter_model.safetensors").write_bytes(b"weights")
    (run / RECORDS).write_text("of the run")
    return Subject("A", run, run / "final", False, {})


def opened(subject: Subject, output: Path, *words: str, what: dict[str, str] | None = None):
    root = subject.path.parent.parent
    config = door_config("evaluate", f"output={output}", f"output_dir={root}", f"cache_dir={root / 'cache'}", *words)[0]
    return open_place(config, [subject], what or WHAT)


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def evaluated(subject: Subject, folder: Path) -> Path:
    """A finished evaluation as `score` and `duel` leave it."""
    place = opened(subject, folder)
    place.of(subject).mkdir(parents=True)
    for path in (place.of(subject) / METRICS, place.of(subject) / RECORDS, folder / "answers.jsonl"):
        path.write_text("{}")
    place.note(done=True, task="score")
    return folder


@pytest.mark.parametrize("words", [(), ("overwrite=true",)], ids=["plain", "overwrite"])
def test_a_folder_without_our_record_is_never_taken(subject, tmp_path, words):
    """Not by the first call, which would leave its record, nor by the second, which would find it and delete all."""
    held = tmp_path / "held"
    held.mkdir()
    (held / "notes.txt").write_text("mine")
    for _ in range(2):
        with pytest.raises(OutputError, match=r"holds other files.*Choose another folder"):
            opened(subject, held, *words)
    assert content(held) == {"notes.txt": b"mine"}


@pytest.mark.parametrize("where", [".", "runs", "runs/A", "runs/A/final", "runs/A/evaluation", "runs/link"])
@pytest.mark.parametrize("words", [(), ("overwrite=true",)], ids=["plain", "overwrite"])
def test_an_output_in_or_around_the_result_is_refused_even_with_a_record_in_it(subject, tmp_path, where, words):
    (tmp_path / "runs" / "link").symlink_to("A")
    output = tmp_path / where
    output.mkdir(exist_ok=True)
    (output / NOTE).write_text(json.dumps({"identity": "x", "done": True}))
    before = content(tmp_path)
    with pytest.raises(ConfigError, match="lie in one another"):
        opened(subject, output, *words)
    assert content(tmp_path) == before


@pytest.mark.parametrize("key", ["data.path", "data.eval_path", "model.path", "lora.adapter", "reference.path"])
def test_an_output_around_what_is_read_beside_the_results_is_refused(subject, tmp_path, key):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "input").mkdir()
    groups = {"data": ("data=file", f"data.path={tmp_path / 'absent.jsonl'}"), "model": ("model=hf",)}
    words = [word for word in groups.get(key.partition(".")[0], ()) if not word.startswith(f"{key}=")]
    with pytest.raises(ConfigError, match="lie in one another"):
        opened(subject, folder, *words, f"{key}={folder / 'input'}")
    assert not (folder / NOTE).exists()


def test_overwriting_removes_an_evaluation_whole(subject, tmp_path):
    folder = evaluated(subject, tmp_path / "out")
    assert opened(subject, folder).done
    with pytest.raises(OutputError, match=r"evaluation of something else.*overwrite=true"):
        opened(subject, folder, what={"task": "predict"})
    assert (folder / "answers.jsonl").exists()
    place = opened(subject, folder, "overwrite=true", what={"task": "predict"})
    assert not folder.exists()
    assert not place.done


def test_votes_of_people_outlive_overwriting_and_the_folder_stays_known(subject, tmp_path):
    folder = evaluated(subject, tmp_path / "out")
    (folder / "votes-of-ann.json").write_text("ann")
    (folder / "votes.json").write_text("bob")
    place = opened(subject, folder, "overwrite=true")
    assert {p.name for p in folder.iterdir()} == {NOTE, "votes-of-ann.json", "votes.json"}
    assert (folder / "votes-of-ann.json").read_text() == "ann"
    assert not place.done
    assert opened(subject, folder).path == folder, "an interrupted call is gone on with"
    opened(subject, folder, "overwrite=true")
    assert (folder / "votes.json").read_text() == "bob"


def test_a_run_that_lies_in_an_evaluations_folder_is_not_deleted(subject, tmp_path):
    folder = evaluated(subject, tmp_path / "out")
    (folder / "B" / "final").mkdir(parents=True)
    (folder / "B" / "final" / "adapter_model.safetensors").write_bytes(b"B")
    before = content(folder)
    with pytest.raises(OutputError, match=r"B is no part of an evaluation"):
        opened(subject, folder, "overwrite=true")
    assert content(folder) == before
