"""Folders of data: what of them is read, and what is told of those that are something else."""

import json
from pathlib import Path

import pytest

from dpo_lab.data.files import data_files, read_file
from dpo_lab.data.folders import in_config, in_split, other_splits, split_of
from dpo_lab.runtime.errors import DataError


def tree(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text('{"a": 1}\n')
    return folder


def found(folder: Path) -> list[str]:
    return [file.relative_to(folder).as_posix() for file in data_files(folder)]


def test_a_file_is_itself(tmp_path):
    assert data_files(tmp_path / "a.jsonl") == [tmp_path / "a.jsonl"]


def test_the_data_files_of_a_folder_are_taken_in_order_and_nothing_else(tmp_path):
    tree(tmp_path, "b.jsonl", "a.json.gz", "sub/c.JSONL", "sub/deeper/d.ndjson.zst", ".hidden.jsonl", ".git/x.json")
    tree(
        tmp_path, "README.md", "dataset_info.json", "state.json", "sub/notes.txt", "cache-1.arrow", "__pycache__/x.json"
    )
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "b.jsonl")
    (tmp_path / "sub" / "loop").symlink_to(tmp_path)
    assert found(tmp_path) == ["a.json.gz", "b.jsonl", "link.jsonl", "sub/c.JSONL", "sub/deeper/d.ndjson.zst"]


def test_a_folder_without_data_is_told(tmp_path):
    with pytest.raises(DataError, match=r"no data files in this folder\. Read are \.json, "):
        data_files(tree(tmp_path, "README.md", "pairs.zip"))


def test_a_folder_with_the_same_data_twice_is_told(tmp_path):
    with pytest.raises(DataError, match=r"several types \(\.jsonl, \.parquet\)"):
        data_files(tree(tmp_path, "a.jsonl", "a.parquet"))


@pytest.mark.parametrize(
    ("names", "taken"),
    [
        (
            ["data/train-00000-of-00002.jsonl", "data/train-00001-of-00002.jsonl", "data/test-00000-of-00001.jsonl"],
            [0, 1],
        ),
        (["train.jsonl", "val.jsonl", "more.jsonl"], [2, 0]),
        (["train/a.jsonl", "test/a.jsonl"], [0]),
        (["a.jsonl", "unit_test.jsonl"], [0, 1]),  # no train split, so that the word means nothing
        (["training_set.jsonl", "trained_by.jsonl", "latest.jsonl"], [2, 1, 0]),
    ],
)
def test_the_train_split_alone_is_taken_where_names_tell_it(tmp_path, names, taken):
    assert found(tree(tmp_path, *names)) == sorted(names[i] for i in taken)


def test_a_dataset_saved_to_disk_is_read_by_the_files_that_it_names(tmp_path):
    import datasets

    rows = [{"prompt": f"{i}", "chosen": "a", "rejected": [{"role": "assistant", "content": "b"}]} for i in range(5)]
    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "set", num_shards=2)
    (tmp_path / "set" / "left-over.arrow").write_bytes(b"")
    files = data_files(tmp_path / "set")
    assert len(files) == 2
    assert [row for file in files for _, row in read_file(file)] == rows
    files[1].unlink()
    with pytest.raises(DataError, match=r"there is no such file, though .*state\.json names it"):
        data_files(tmp_path / "set")


def test_a_saved_dataset_with_splits_asks_for_one(tmp_path):
    (tmp_path / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "test"]}))
    with pytest.raises(DataError, match=r"saved with the splits train, test\. Give the folder of one, .*train\."):
        data_files(tree(tmp_path, "train/a.arrow", "test/a.arrow"))


@pytest.mark.parametrize("state", ["[]", "{", '{"_data_files": 3}', '{"_data_files": [{"filename": "../../x.arrow"}]}'])
def test_a_strange_description_does_not_matter(tmp_path, state):
    (tree(tmp_path, "a.jsonl") / "state.json").write_text(state)
    assert found(tmp_path) == ["a.jsonl"]


def test_a_folder_of_llama_factory_is_told_by_its_name(tmp_path):
    (tree(tmp_path, "a.json", "b.json") / "dataset_info.json").write_text('{"mine": {"file_name": "a.json"}, "x": 3}')
    with pytest.raises(DataError, match=r"data=llamafactory data\.dir=.* data\.name=mine"):
        data_files(tmp_path)


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("data/train-00000-of-00001.parquet", "train"),
        ("validation.jsonl", "validation"),
        ("Eval/part.csv", "validation"),
        ("test/part-1.csv", "test"),
        ("contest.jsonl", ""),
        ("pairs.jsonl", ""),
    ],
)
def test_a_name_tells_its_split(name, split):
    assert split_of(Path(name)) == split


def test_files_are_chosen_by_config_and_split_as_hubs_name_them():
    names = [
        "en/train-00000.parquet",
        "en/test-00000.parquet",
        "zh/train_sft-00000.parquet",
        "zh/train_prefs-00000.parquet",
    ]
    files = [Path(name) for name in names]

    def chosen(split: str, config: str | None = None) -> list[str]:
        return [str(f) for f in in_split(in_config(files, Path(), config), Path(), split)]

    assert chosen("train", "en") == names[:1]
    assert chosen("test") == names[1:2]
    assert chosen("train_prefs", "zh") == names[3:]
    assert chosen("train") == names[:1]
    assert chosen("nothing") == []
    assert chosen("train", "fr") == []
    assert [f.name for f in in_config([Path("fr-a.csv"), Path("frisian.csv")], Path(), "fr")] == ["fr-a.csv"]
    assert in_split([Path("pairs.jsonl")], Path(), "train") == [Path("pairs.jsonl")]
    assert in_split([Path("pairs.jsonl")], Path(), "test") == []


def test_held_out_pairs_of_a_folder_with_splits_are_its_test_or_validation_split(tmp_path):
    folder = tree(tmp_path, "train.jsonl", "test.jsonl", "validation.jsonl")
    assert [f.name for f in data_files(folder, heldout=True)] == ["test.jsonl"]
    assert [f.name for f in other_splits(folder)] == ["test.jsonl", "validation.jsonl"]
    (folder / "test.jsonl").unlink()
    assert [f.name for f in data_files(folder, heldout=True)] == ["validation.jsonl"]
    (folder / "validation.jsonl").unlink()
    assert [f.name for f in data_files(folder, heldout=True)] == ["train.jsonl"]
    assert other_splits(folder) == []
