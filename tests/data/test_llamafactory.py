"""Folders of LLaMA-Factory are used as they are, and what is wrong with an entry is told."""

import json
from pathlib import Path

import pytest
from toys import chat

from dpo_lab.data.formats import to_pairs
from dpo_lab.data.llamafactory import Named, named
from dpo_lab.data.types import Pair, Reading
from dpo_lab.runtime.errors import DataError

RANKING = {"ranking": True, "formatting": "sharegpt"}
SHAREGPT = {"messages": "conversations", "chosen": "chosen", "rejected": "rejected"}
OPENAI_TAGS = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
ENTRIES = {
    "identity": {"file_name": "identity.json"},
    "dpo_en_demo": {"file_name": "dpo_en_demo.json", **RANKING, "columns": SHAREGPT},
    "dpo_mix_zh": {"hf_hub_url": "llamafactory/DPO-En-Zh-20k", "subset": "zh", **RANKING, "columns": SHAREGPT},
    "ultrafeedback": {
        "hf_hub_url": "llamafactory/ultrafeedback_binarized",
        "ms_hub_url": "AI/ultrafeedback_binarized",
        "ranking": True,
        "columns": {"prompt": "instruction", "chosen": "chosen", "rejected": "rejected"},
    },
    "orca_pairs": {
        "hf_hub_url": "Intel/orca_dpo_pairs",
        "ranking": True,
        "columns": {"prompt": "question", "chosen": "chosen", "rejected": "rejected", "system": "system"},
    },
    "orca_dpo_de": {"hf_hub_url": "mayflowergmbh/intel_orca_dpo_pairs_de", "ranking": True},
    "kto_en_demo": {
        "file_name": "kto_en_demo.json",
        "formatting": "sharegpt",
        "columns": {"messages": "messages", "kto_tag": "label"},
        "tags": OPENAI_TAGS,
    },
    "kto_mix_en": {
        "hf_hub_url": "argilla/kto-mix-15k",
        "formatting": "sharegpt",
        "columns": {"messages": "completion", "kto_tag": "label"},
        "tags": OPENAI_TAGS,
    },
    "ultrafeedback_kto": {
        "hf_hub_url": "argilla/ultrafeedback-binarized-preferences-cleaned-kto",
        "columns": {"prompt": "prompt", "response": "completion", "kto_tag": "label"},
    },
    "rlaif_v": {
        "hf_hub_url": "openbmb/RLAIF-V-Dataset",
        "ranking": True,
        "columns": {"prompt": "question", "chosen": "chosen", "rejected": "rejected", "images": "image"},
    },
    "split": {"ms_hub_url": "a/b", "ranking": True, "split": "dev", "folder": "zh", "num_samples": 7, "note": None},
    "remark": {"hf_hub_url": "a/b", "ranking": True, "remarks for the reader": [1]},
}
FILES = ("dpo_en_demo.json", "kto_en_demo.json")


@pytest.fixture
def folder(tmp_path) -> Path:
    for file in FILES:
        (tmp_path / file).write_text("[]")
    return put(tmp_path, ENTRIES)


def put(folder: Path, entries) -> Path:
    (folder / "dataset_info.json").write_text(entries if isinstance(entries, str) else json.dumps(entries))
    return folder


def read(entry: Named, *rows) -> list[Pair]:
    return list(to_pairs(enumerate(rows, 1), entry.reading, where="x")[0])


def turn(who, value):
    return {"from": who, "value": value}


def message(role, content):
    return {"role": role, "content": content}


def test_a_local_file_is_read_with_the_columns_that_its_entry_names(folder):
    entry = named(folder, "dpo_en_demo")
    assert (entry.path, entry.hub, entry.split) == (folder / "dpo_en_demo.json", None, "train")
    row = {"conversations": [turn("human", "Why?")], "chosen": turn("gpt", "good"), "rejected": turn("gpt", "bad")}
    [pair] = read(entry, row | {"system": "not named in the entry, so not read"})
    assert (pair.prompt, pair.chosen, pair.rejected) == (chat("Why?"), "good", "bad")


def test_the_hub_that_is_asked_for_is_taken(folder):
    assert named(folder, "dpo_mix_zh").hub == "llamafactory/DPO-En-Zh-20k"
    assert named(folder, "dpo_mix_zh").subset == "zh"
    assert named(folder, "ultrafeedback").hub == "llamafactory/ultrafeedback_binarized"
    entry = named(folder, "ultrafeedback", where="modelscope")
    assert (entry.path, entry.hub, entry.where) == (None, "AI/ultrafeedback_binarized", "modelscope")
    entry = named(folder, "split", where="modelscope")
    assert (entry.split, entry.folder, entry.num_samples) == ("dev", "zh", 7)


def test_a_local_file_wins_over_a_hub_only_where_it_is_there(tmp_path):
    entry = {"file_name": "a.json", "hf_hub_url": "a/b", "ranking": True}
    put(tmp_path, {"x": entry})
    assert (named(tmp_path, "x").path, named(tmp_path, "x").hub) == (None, "a/b")
    (tmp_path / "a.json").write_text("[]")
    assert (named(tmp_path, "x").path, named(tmp_path, "x").hub) == (tmp_path / "a.json", None)


def test_a_folder_of_files_and_a_link_may_be_named(tmp_path):
    (tmp_path / "many").mkdir()
    (tmp_path / "kept elsewhere.json").write_text("[]")
    data = tmp_path / "data"
    data.mkdir()
    (data / "many").symlink_to(tmp_path / "many")
    (data / "中文 数据.json").symlink_to(tmp_path / "kept elsewhere.json")
    put(data, {"x": {"file_name": "many", "ranking": True}, "y": {"file_name": "./中文 数据.json", "ranking": True}})
    assert named(data, "x").path == data / "many"
    assert named(data, "y").path == data / "中文 数据.json"


def test_alpaca_rows_are_read_with_the_named_columns_alone(folder):
    row = {"question": "Why?", "input": "noise", "system": "Be brief.", "chosen": "good", "rejected": "bad"}
    [pair] = read(named(folder, "orca_pairs"), row)
    assert (pair.prompt, pair.chosen, pair.rejected) == (chat("Why?", system="Be brief."), "good", "bad")
    [pair] = read(named(folder, "ultrafeedback"), row | {"instruction": "So?", "history": [["a", "b"]]})
    assert pair.prompt == chat("So?")


def test_an_entry_without_columns_has_the_default_ones(folder):
    [pair] = read(named(folder, "orca_dpo_de"), {"instruction": "Why", "input": "so?", "output": ["good", "bad"]})
    assert (pair.prompt, pair.chosen, pair.rejected) == (chat("Why\nso?"), "good", "bad")


def test_columns_for_a_query_a_history_and_tools_are_read(tmp_path):
    columns = {"prompt": "ask", "query": "more", "history": "before", "tools": "functions"}
    put(tmp_path, {"x": {"hf_hub_url": "a/b", "ranking": True, "columns": columns}})
    tools = json.dumps([{"name": "look", "parameters": {}}])
    row = {"ask": "Why", "more": "so?", "before": [["Hi", "Hello"]], "functions": tools}
    [pair] = read(named(tmp_path, "x"), row | {"chosen": "good", "rejected": "bad"})
    assert pair.prompt == chat("Hi", "Hello", "Why\nso?")
    assert pair.tools[0]["function"]["name"] == "look"


@pytest.mark.parametrize("name", ["kto_en_demo", "kto_mix_en"])
def test_labelled_conversations_pair_up(folder, name):
    entry = named(folder, name)
    column = "messages" if name == "kto_en_demo" else "completion"
    rows = [
        {column: [message("user", "Why?"), message("assistant", text)], "label": good, "prompt": "noise"}
        for text, good in (("good", True), ("bad", False))
    ]
    [pair] = read(entry, *rows)
    assert (pair.prompt, pair.chosen, pair.rejected) == (chat("Why?"), "good", "bad")


def test_labelled_alpaca_rows_pair_up(folder, tmp_path):
    rows = [{"prompt": "Why?", "completion": text, "label": text == "good"} for text in ("good", "bad")]
    [pair] = read(named(folder, "ultrafeedback_kto"), *rows)
    assert (pair.prompt, pair.chosen, pair.rejected) == (chat("Why?"), "good", "bad")
    columns = {"prompt": "ask", "query": "more", "response": "said", "kto_tag": "ok"}
    put(tmp_path, {"x": {"hf_hub_url": "a/b", "columns": columns}})
    rows = [{"ask": "Why", "more": "so?", "said": text, "ok": text == "good"} for text in ("good", "bad")]
    assert [p.prompt for p in read(named(tmp_path, "x"), *rows)] == [chat("Why\nso?")]


def test_the_column_of_a_single_answer_is_not_needed_where_there_are_two(tmp_path):
    columns = {"prompt": "instruction", "response": "output", "messages": "dialog"}
    put(tmp_path, {"x": {"hf_hub_url": "a/b", "ranking": True, "columns": columns}})
    assert len(read(named(tmp_path, "x"), {"instruction": "Why?", "chosen": "good", "rejected": "bad"})) == 1


def test_tags_are_kept(tmp_path):
    tags = {"role_tag": "who", "content_tag": "says", "user_tag": "Q", "assistant_tag": "A", "system_tag": None}
    put(tmp_path, {"x": {"hf_hub_url": "a/b", **RANKING, "columns": SHAREGPT, "tags": tags}})
    row = {"conversations": [{"who": "Q", "says": "Why?"}]}
    [pair] = read(named(tmp_path, "x"), row | {key: {"who": "A", "says": key} for key in ("chosen", "rejected")})
    assert (pair.prompt, pair.chosen, pair.rejected) == (chat("Why?"), "chosen", "rejected")


def test_rows_with_pictures_are_faults(folder):
    row = {"question": "Why?", "chosen": "good", "rejected": "bad"}
    assert len(read(named(folder, "rlaif_v"), row | {"image": None})) == 1
    with pytest.raises(DataError, match="row 1: images is not empty"):
        read(named(folder, "rlaif_v"), row | {"image": {"bytes": b"x"}})


def test_a_remark_is_left_alone(folder):
    assert named(folder, "remark").reading == Reading("alpaca", {"history": "", "system": "", "tools": ""})


def broken(**changes) -> str:
    return json.dumps({"x": {"hf_hub_url": "a/b", "ranking": True} | changes})


BROKEN = {
    "no such name": ({"dpo_zh": {"ranking": True}, "sft": {}}, ["has no dataset x.", "there are dpo_zh."]),
    "a name like another": ({"xx": {"ranking": True}}, ["has no dataset x. Did you mean xx?"]),
    "nothing with preferences": ({"sft": {}}, ["none with preferences"]),
    "no preferences": ({"x": {"file_name": "a.json"}}, ["x is no preference dataset", "'ranking': true"]),
    "ranking is false": (broken(ranking=False), ["x is no preference dataset"]),
    "ranking is text": (broken(ranking="true"), ["ranking must be true or false, not text"]),
    "both kinds": (broken(columns={"kto_tag": "label"}), ["both 'ranking': true and a kto_tag"]),
    "an entry that is text": ({"x": "a.json"}, ["x must be an object", "not text"]),
    "a list": ([], ["holds an empty list; an object"]),
    "broken": ('{"x": {', ["broken JSON in line 1, column 8"]),
    "empty": ("", ["broken JSON in line 1"]),
    "deep": ("[" * 100_000, ["nested too deeply"]),
    "deep objects": ('{"x":' * 600 + "1" + "}" * 600, ["dataset_info.json: "]),
    "a name twice": ('{"x": {"ranking": true}, "x": {}}', ["names 'x' more than once"]),
    "a key twice": ('{"x": {"ranking": true, "ranking": false}}', ["names 'ranking' in x more than once"]),
    "a typo": (broken(formating="sharegpt"), ["the key formating is unknown. Did you mean formatting?"]),
    "an unknown formatting": (broken(formatting="chatml"), ["formatting must be alpaca, sharegpt or openai"]),
    "an unknown column": (broken(columns={"choosen": "a"}), ["columns has no choosen. Did you mean chosen?"]),
    "a column of numbers": (broken(columns={"chosen": 1}), ["chosen in columns must be text, not a number"]),
    "columns in a list": (broken(columns=["chosen"]), ["columns must be an object, not a list"]),
    "an unknown tag": (broken(tags={"from": "a"}), ["tags has no from."]),
    "a tag that is a list": (broken(tags={"user_tag": ["a"]}), ["user_tag in tags must be text, not a list"]),
    "no number": (broken(num_samples="7"), ["num_samples must be a whole number, not text"]),
    "true for a number": (broken(num_samples=True), ["num_samples must be a whole number, not true or false"]),
    "a number below 1": (broken(num_samples=0), ["num_samples must be at least 1, not 0"]),
    "a path upwards": (broken(file_name="../secret.json"), ["file_name '../secret.json' leads out of the folder"]),
    "a path upwards within": (broken(file_name="a/../../secret.json"), ["leads out of the folder"]),
    "a path upwards of Windows": (broken(file_name="..\\secret.json"), ["leads out of the folder"]),
    "an absolute path": (broken(file_name="/etc/passwd"), ["leads out of the folder"]),
    "a drive": (broken(file_name="C:\\secret.json"), ["leads out of the folder"]),
    "an empty path": (broken(file_name=""), ["leads out of the folder"]),
    "a path with a null": (broken(file_name="a\0b"), ["leads out of the folder"]),
    "a missing file": ({"x": {"file_name": "dpo.jsonl", "ranking": True}}, ["no file", "Did you mean dpo.json?"]),
    "nowhere": ({"x": {"ranking": True}}, ["says not where its data is"]),
    "a script": ({"x": {"script_url": "s", "ranking": True}}, ["runs a script of its own", "script_url"]),
    "a cloud store": ({"x": {"cloud_file_name": "s3://a", "ranking": True}}, ["cloud store"]),
    "another hub": ({"x": {"ms_hub_url": "a/b", "ranking": True}}, ["is not on hf, but on modelscope"]),
    "Openmind alone": ({"x": {"om_hub_url": "a/b", "ranking": True}}, ["Openmind alone"]),
}


@pytest.mark.parametrize(("entries", "fragments"), BROKEN.values(), ids=BROKEN)
def test_what_is_wrong_with_an_entry_is_told(tmp_path, entries, fragments):
    (tmp_path / "dpo.json").write_text("[]")
    put(tmp_path, entries)
    with pytest.raises(DataError) as caught:
        named(tmp_path, "x")
    for fragment in (str(tmp_path / "dataset_info.json"), *fragments):
        assert fragment in str(caught.value)


def test_openmind_is_refused_with_its_reason(tmp_path):
    put(tmp_path, {"x": {"om_hub_url": "a/b", "ranking": True}})
    with pytest.raises(DataError, match="not loaded from Openmind"):
        named(tmp_path, "x", where="openmind")


def test_a_folder_without_dataset_info_and_one_in_another_encoding_are_told(tmp_path):
    with pytest.raises(DataError, match=r"dataset_info\.json: there is no such file"):
        named(tmp_path, "x")
    (tmp_path / "dataset_info.json").write_bytes('{\n"数据": {}}'.encode("gb18030"))
    with pytest.raises(DataError, match="line 2 is not UTF-8"):
        named(tmp_path, "x")
    (tmp_path / "dataset_info.json").write_bytes(b"\xef\xbb\xbf" + broken().encode())
    assert named(tmp_path, "x").hub == "a/b"
