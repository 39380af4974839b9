"""Files as they come: what can be read is read alike from every type, and the rest is told with its place."""

import json
import time
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from toys import chat, data_config

from dpo_lab.config.schema import HubData
from dpo_lab.data import sources
from dpo_lab.data.prepare import read_pairs
from dpo_lab.data.sources import read_file, read_hub
from dpo_lab.runtime.errors import DataError

ROWS = [
    {"prompt": "Why, so?", "chosen": 'a "good"\nanswer', "rejected": "bad\u2028one"},
    {"prompt": "为什么？ \x00\x85", "chosen": "é" * 200_000, "rejected": "[1, 2]"},
]
MESSAGES = [{"role": "user", "content": "It's why?"}]


def put(folder: Path, name: str, content: bytes | str) -> Path:
    file = folder / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return file


def as_csv(rows) -> str:
    quoted = [",".join('"' + str(v).replace('"', '""') + '"' for v in row.values()) for row in rows]
    return "\r\n".join([",".join(rows[0]), *quoted, ""])


WHOLE = {
    "list.json": json.dumps(ROWS),
    "pretty.json": json.dumps(ROWS, indent=2, ensure_ascii=False),
    "windows.json": b"\xef\xbb\xbf" + json.dumps(ROWS, indent=1).replace("\n", "\r\n").encode(),
    "lines.jsonl": "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in ROWS),
    "windows.jsonl": b"\xef\xbb\xbf" + "\r\n\r\n".join(json.dumps(r) for r in ROWS).encode(),
    "lines.json": "\n".join(json.dumps(r) for r in ROWS),
    "list.jsonl": json.dumps(ROWS, indent=2),
    "UPPER.JSONL": "\n".join(json.dumps(r) for r in ROWS),
    "quoted.csv": as_csv(ROWS),
    "windows.csv": b"\xef\xbb\xbf" + as_csv(ROWS).encode(),
}


@pytest.mark.parametrize(("name", "content"), WHOLE.items(), ids=WHOLE)
def test_the_same_rows_come_from_every_type_of_file(tmp_path, name, content):
    assert read_file(put(tmp_path, name, content)) == ROWS


def test_the_same_rows_come_from_parquet(tmp_path):
    file = tmp_path / "a.parquet"
    rows = [*ROWS, {"prompt": "a", "chosen": None, "rejected": "b"}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    assert read_file(file) == rows


@pytest.mark.parametrize(
    "cell",
    [json.dumps(MESSAGES), repr(MESSAGES), json.dumps(MESSAGES[0]), "[{'content': 'It\\'s why?', 'role': 'user'}]"],
)
def test_a_csv_cell_may_hold_messages(tmp_path, cell):
    row = {"prompt": cell, "chosen": "It's [so]", "rejected": '{"a": 1}'}
    [pair] = read_pairs(data_config(path=str(put(tmp_path, "a.csv", as_csv([row]))))).train
    assert pair.prompt == chat("It's why?")
    assert (pair.chosen, pair.rejected) == ("It's [so]", '{"a": 1}')


GOOD = b'{"prompt": "q", "chosen": "a", "rejected": "b"}'
BROKEN: dict[str, tuple[str, bytes, list[str]]] = {
    "an empty json file": ("a.json", b"", ["holds no rows"]),
    "an empty jsonl file": ("a.jsonl", b"\n \r\n", ["holds no rows"]),
    "an empty csv file": ("a.csv", b"", ["holds no rows"]),
    "a header alone": ("a.csv", b"prompt,chosen,rejected\n", ["holds no rows"]),
    "an empty parquet file": ("a.parquet", b"", ["not a readable Parquet file"]),
    "an empty list": ("a.json", b" [] ", ["holds no rows"]),
    "a byte order mark alone": ("a.json", b"\xef\xbb\xbf", ["holds no rows"]),
    "one object": ("a.json", b'{"version": 1, "data": []}', ["one object with the keys version, data", "list of rows"]),
    "one empty object": ("a.json", b"{}", ["one object with the keys (none)"]),
    "a text": ("a.json", b'"hello"', ["holds text, not a list"]),
    "a number": ("a.json", b"3", ["holds a number, not a list"]),
    "a list of texts": ("a.json", b'["a"]', ["row 1 is text, not an object"]),
    "a null row": ("a.json", b"[" + GOOD + b", null]", ["row 2 is null, not an object"]),
    "a row that is a list": ("a.jsonl", GOOD + b'\n["q", "a", "b"]', ["row 2 is a list, not an object"]),
    "a missing comma": ("a.json", b'[\n {"prompt": "q"\n "chosen": "a"}]', ["line 3, column 2", "delimiter"]),
    "a torn json file": ("a.json", b"[" + GOOD + b",\n" + GOOD[:20], ["line 2, column", "Unterminated string"]),
    "a torn jsonl file": ("a.jsonl", GOOD + b"\n" + GOOD[:20], ["line 2, column", "Unterminated string"]),
    "a torn object": ("a.json", b'{\n"prompt": "q",\n"chosen"', ["line 3"]),
    "two objects on a line": ("a.jsonl", GOOD + GOOD, ["line 1, column", "Extra data"]),
    "a raw line break in a text": ("a.jsonl", GOOD + b'\n{"prompt": "a\nb"}', ["line 2", "Unterminated string"]),
    "single quotes": ("a.jsonl", b"{'prompt': 'q'}", ["line 1, column 2"]),
    "no json at all": ("a.json", b"prompt,chosen\nq,a\n", ["line 1, column 1", "Expecting value"]),
    "nul characters": ("a.json", b"\x00\x00\x00\x00", ["broken JSON in line 1"]),
    "a raw nul in a text": ("a.jsonl", b'{"prompt": "a\x00b"}', ["line 1", "control character"]),
    "utf-16": ("a.json", "[]".encode("utf-16"), ["line 1 is not UTF-8", "0xff", "iconv"]),
    "latin-1": ("a.jsonl", GOOD + b'\n{"prompt": "caf\xe9"}', ["line 2 is not UTF-8", "0xe9"]),
    "gbk in csv": ("a.csv", b"prompt,chosen,rejected\n" + "天空".encode("gbk") + b",a,b\n", ["line 2 is not UTF-8"]),
    "a deep list": ("a.json", b"[" * 100_000, ["nested too deeply"]),
    "a deep list in a line": ("a.jsonl", GOOD + b"\n" + b'{"a":' * 100_000, ["in line 2", "nested too deeply"]),
    "a long number": ("a.jsonl", b'{"prompt": ' + b"1" * 10_000 + b"}", ["in line 1", "integer"]),
    "a key twice": (
        "a.jsonl",
        GOOD + b'\n{"prompt": "q", "chosen": "a", "chosen": "b"}',
        ["line 2", "'chosen' stands twice", "'b'"],
    ),
    "a key twice in a list": ("a.json", b'[{"prompt": "q", "prompt": "r"}]', ["'prompt' stands twice", "'r'"]),
    "a long line": ("a.jsonl", b'{"prompt": "' + b"x" * 5_000_000, ["line 1", "Unterminated string"]),
    "not a number": (
        "a.jsonl",
        b'{"prompt": NaN, "chosen": "a", "rejected": "b"}',
        ["row 1", "prompt must be text, not a number"],
    ),
    "too few fields": (
        "a.csv",
        b"prompt,chosen,rejected\nq,a,b\nq,a\n",
        ["ends in line 3 has fewer fields", "prompt, chosen, rejected"],
    ),
    "too many fields": (
        "a.csv",
        b"prompt,chosen,rejected\nq,a, and so on,b\n",
        ["ends in line 2 has more fields", "double quotes"],
    ),
    "an open quote": (
        "a.csv",
        b'prompt,chosen,rejected\nq,a,b\nq,"a,b\nq,a,b\n',
        ["broken CSV", "begins in line 3", "doubled"],
    ),
    "a quote within": ("a.csv", b'prompt,chosen,rejected\nq,"a"x,b\n', ["broken CSV", "begins in line 2"]),
    "a column twice": ("a.csv", b"prompt,chosen,chosen\nq,a,b\n", ["names chosen more than once"]),
    "semicolons": (
        "a.csv",
        b"prompt;chosen;rejected\nq;a;b\n",
        ["row 1 is in none of the formats", "prompt;chosen;rejected"],
    ),
    "numpy's messages": (
        "a.csv",
        b"prompt,chosen,rejected\n\"[{'role': 'user', 'content': 'q'}\n {'role': 'user', 'content': 'r'}]\",a,b\n",
        ["line 3, prompt", "Python's notation", ".jsonl or .parquet"],
    ),
    "parquet garbage": ("a.parquet", b"PAR1 nothing of the kind PAR1", ["not a readable Parquet file"]),
    "json named parquet": ("a.parquet", b"[" + GOOD + b"]", ["not a readable Parquet file"]),
    "a torn parquet file": ("a.parquet", b"PAR1" + b"\x15\x04" * 50, ["not a readable Parquet file"]),
    "a compressed file": ("a.json.gz", b"\x1f\x8b", ["files of type .gz are not read", ".jsonl"]),
    "a file without a suffix": ("a", GOOD, ["files of type (none) are not read"]),
    "a text file": ("a.txt", GOOD, ["files of type .txt are not read", ".parquet"]),
    "other columns": (
        "a.jsonl",
        b'{"question": "q", "good": "a"}',
        ["none of the formats", "question, good", "data.columns"],
    ),
    "a row without an answer": (
        "a.jsonl",
        GOOD + b'\n{"prompt": "q", "chosen": "a"}',
        ["row 2", "rejected is missing", "prompt, chosen"],
    ),
    "a wrong role": (
        "a.jsonl",
        b'{"prompt": [{"role": "x", "content": "q"}], "chosen": "a", "rejected": "b"}',
        ["row 1", "role 'x'"],
    ),
}


def test_there_are_thirty_ways_to_break_a_file():
    assert len(BROKEN) >= 30


@pytest.mark.parametrize(("name", "content", "fragments"), BROKEN.values(), ids=BROKEN)
def test_a_broken_file_is_told_with_its_place_and_what_to_do(tmp_path, name, content, fragments):
    file = put(tmp_path, name, content)
    began = time.monotonic()
    with pytest.raises(DataError) as caught:
        read_pairs(data_config(path=str(file)))
    assert time.monotonic() - began < 10
    message = str(caught.value)
    for fragment in (str(file), *fragments):
        assert fragment in message
    assert len(message) < 1000
    assert "\n" not in message


def test_a_broken_file_of_held_out_pairs_is_told_by_its_own_name(tmp_path):
    train, held = put(tmp_path, "a.jsonl", GOOD), put(tmp_path, "held.jsonl", GOOD[:-1])
    with pytest.raises(DataError, match=r"held\.jsonl: broken JSON in line 1"):
        read_pairs(data_config(path=str(train), eval_path=str(held)))


def test_folders_and_files_that_are_not_there_are_told(tmp_path):
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(DataError, match=r"folder\.json is a folder; a file is needed \(\.json"):
        read_file(tmp_path / "folder.json")
    for name in ("none.json", "none/none.json", "n" * 300 + ".json"):
        with pytest.raises(DataError, match=r"there is no such file|File name too long"):
            read_file(tmp_path / name)
    with pytest.raises(DataError, match=r"No data: give data=file data\.path=FILE"):
        read_pairs(data_config())


def test_a_file_that_may_not_be_read_is_told(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", refuse)  # root may read everything
    with pytest.raises(DataError, match=r"a\.json: cannot be read \(Permission denied\)"):
        read_file(put(tmp_path, "a.json", "[]"))


# The hub


@pytest.fixture
def hub_elsewhere(tmp_path, monkeypatch):
    """A hub that refuses connections, and an empty cache."""
    import datasets
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_MODULES_CACHE", tmp_path / "modules")
    datasets.disable_progress_bars()
    yield datasets
    datasets.enable_progress_bars()


def test_an_unreachable_hub_is_told_within_seconds(hub_elsewhere):
    setting, began = hub_elsewhere.config.HF_HUB_OFFLINE, time.monotonic()
    with pytest.raises(
        DataError,
        match=r"nobody/nothing \(config None, split train\).*the hub does not answer.*data=file data\.path=FILE",
    ):
        read_hub(HubData(name="nobody/nothing", config=None, split="train"))
    assert time.monotonic() - began < 10
    assert hub_elsewhere.config.HF_HUB_OFFLINE is setting


def test_a_hub_that_says_no_is_a_hub_that_answers(monkeypatch):
    import huggingface_hub
    from huggingface_hub.errors import HFValidationError

    class Hub:
        def dataset_info(self, name, timeout):
            raise {"bad name": HFValidationError("no"), "down": ConnectionError("no")}[name]

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    assert sources._hub_answers("bad name")
    assert not sources._hub_answers("down")


def test_rows_come_from_a_dataset(hub_elsewhere, tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    rows = [{"prompt": "q", "chosen": [{"role": "assistant", "content": "a"}], "rejected": None}] * 3
    put(folder, "train.jsonl", "\n".join(map(json.dumps, rows)))
    hub = HubData(name=str(folder), config=None, split="train[:2]")
    assert read_hub(hub) == rows[:2]
    with pytest.raises(DataError, match="split trian.*Unknown split"):
        read_hub(HubData(name=str(folder), config=None, split="trian"))
