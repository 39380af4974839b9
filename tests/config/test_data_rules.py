"""What the door says of where pairs come from and how they are mixed, before anything is read."""

import json

import pytest

from dpo_lab.config import cli
from dpo_lab.config.schema import STRATEGIES


@pytest.fixture
def folder(tmp_path):
    """A folder with a dataset_info.json, and two files beside it."""
    (tmp_path / "dataset_info.json").write_text(json.dumps({"a": {"file_name": "a.json", "ranking": True}}))
    for name in ("a.json", "b.jsonl"):
        (tmp_path / name).write_text("[]")
    return tmp_path


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["data=llamafactory"], ["No data", "data=llamafactory data.dir=FOLDER data.name=NAME"]),
        (["data=llamafactory", "data.dir={0}/none", "data.name=a"], ["data.dir", "there is no folder"]),
        (["data=llamafactory", "data.dir={0}/a.json", "data.name=a"], ["is a file, a folder is needed"]),
        (["data=llamafactory", "data.dir={0}", "data.name=null"], ["needs data.name=NAME"]),
        (["data=file", "data.path={0}/a.json", "data.name=a"], ["data.name=a", "Add data=llamafactory"]),
        (["data=file", "data.path={0}/a.json", "data.dir={0}", "data.name=a"], ["are two sources"]),
        (
            ["data=llamafactory", "data.dir={0}", "data.name=a", "data.eval_name=a", "data.eval_path={0}/b.jsonl"],
            ["data.eval_name=a", "both say what is held out"],
        ),
        (["data=file", "data.path={0}/a.json", "data.mix=interleave_over"], ["no effect on one source"]),
        (["data=file", "data.path=[{0}/a.json,{0}/b.jsonl]", "data.probabilities=[0.5,0.5]"], ["no effect with"]),
        (
            [
                "data=file",
                "data.path=[{0}/a.json,{0}/b.jsonl]",
                "data.mix=interleave_under",
                "data.probabilities=[1.0]",
            ],
            ["1 numbers for 2 sources"],
        ),
        (
            [
                "data=file",
                "data.path=[{0}/a.json,{0}/b.jsonl]",
                "data.mix=interleave_under",
                "data.probabilities=[0.7,0.2]",
            ],
            ["add up to 0.9"],
        ),
        (["data.format=kto", "data.ranking=adjacent"], ["data.ranking=adjacent has no effect on data.format=kto"]),
        (["data.format=hh", "data.min_margin=1"], ["data.min_margin=1.0 has no effect on data.format=hh"]),
        (["data.format=hh", "data.tags={{role_tag: who}}"], ["data.tags has no effect on data.format=hh"]),
        (["data.format=shargpt"], ["data.format=shargpt", "Did you mean sharegpt?"]),
        (["data.columns={{promt: q}}"], ["promt cannot be a name here. Names: prompt, chosen"]),
        (["data.on_error=ignore"], ["raise, drop"]),
    ],
)
def test_what_cannot_be_is_refused(words, said, folder, capsys):
    with pytest.raises(SystemExit):
        cli.prepare([word.format(folder) for word in words])
    told = capsys.readouterr().err
    assert [part for part in said if part not in told] == []


@pytest.mark.parametrize(
    "words",
    [
        ["data=llamafactory", "data.dir={0}", "data.name=a"],
        [
            "data=llamafactory",
            "data.dir={0}",
            "data.name=[a,b]",
            "data.mix=interleave_over",
            "data.probabilities=[0.7,0.3]",
        ],
        ["data=file", "data.path=[{0}/a.json,{0}/b.jsonl]", "data.mix=interleave_under"],
        ["data=file", "data.path={0}", "data.format=ranked", "data.ranking=best_worst"],
        ["data=file", "data.path={0}", "data.format=sharegpt", "data.tags={{role_tag: role, user_tag: human}}"],
        ["data=hub", "data.hub.name=a/b", "data.hub.where=modelscope"],
    ],
)
def test_what_can_be_passes(words, folder):
    assert cli.prepare([word.format(folder) for word in words])


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_axolotls_names_of_strategies_are_names_of_formats(name):
    assert cli.prepare([f"data.format={name}"])
