"""Files as they come: what can be read is read alike from every type, a few rows at a time."""

import gzip
import io
import json
import os
import tracemalloc
from itertools import islice
from pathlib import Path

import pyarrow
import pyarrow.feather
import pyarrow.parquet
import pytest

from dpo_lab.data import arrow_rows, blocks, csv_rows, json_text
from dpo_lab.data.files import READERS, read_file
from dpo_lab.data.folders import TYPES
from dpo_lab.runtime.errors import DataError

ROWS = [
    {"prompt": "Why, so?", "chosen": 'a "good"\nanswer', "rejected": "bad\u2028one"},
    {"prompt": "为什么？ \x00\x85", "chosen": "é" * 200_000, "rejected": "[1, 2]"},
]
MESSAGES = [{"role": "user", "content": "It's why?"}]


def rows(path: Path) -> list[dict]:
    found = list(read_file(path))
    assert [number for number, _ in found] == list(range(1, len(found) + 1))
    return [row for _, row in found]


def dropped(path: Path) -> tuple[list[int], list[str]]:
    """The numbers of the rows that are kept, and what is said of the others."""
    faults: list[DataError] = []
    return [number for number, _ in read_file(path, on_bad=faults.append)], [str(fault) for fault in faults]


def put(folder: Path, name: str, content: bytes | str) -> Path:
    file = folder / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return file


def as_csv(rows) -> str:
    quoted = [",".join('"' + str(v).replace('"', '""') + '"' for v in row.values()) for row in rows]
    return "\r\n".join([",".join(rows[0]), *quoted, ""])


def zstd(content: bytes) -> bytes:
    return pyarrow.Codec("zstd").compress(content, asbytes=True)


def in_arrow(kind: str) -> bytes:
    table, sink = pyarrow.Table.from_pylist(ROWS), io.BytesIO()
    if kind == "parquet":
        pyarrow.parquet.write_table(table, sink)
    elif kind == "feather":
        pyarrow.feather.write_feather(table, sink)
    else:
        with {"file": pyarrow.ipc.new_file, "stream": pyarrow.ipc.new_stream}[kind](sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=1)
    return sink.getvalue()


LINES = "".join(json.dumps(r) + "\n" for r in ROWS).encode()
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
    "lines.ndjson": LINES,
    "one line.json": LINES.splitlines()[0] + b"\n\n \n" + LINES.splitlines()[1],
    "old mac.jsonl": LINES.replace(b"\n", b"\r"),
    "old mac.json": json.dumps(ROWS, indent=2).replace("\n", "\r").encode(),
    "appended.jsonl": b"\xef\xbb\xbf" + b"\xef\xbb\xbf".join(LINES.splitlines(keepends=True)),
    "named.json": json.dumps({"version": 1, "data": ROWS, "by": {"x": []}}).encode(),
    "alone.json": json.dumps({"pairs": ROWS}, indent=1).encode(),
    "packed.jsonl.gz": gzip.compress(LINES),
    "packed twice over.json.gz": gzip.compress(b"[" + json.dumps(ROWS[0]).encode() + b",")
    + gzip.compress(json.dumps(ROWS[1]).encode() + b"]")
    + b"\x00" * 100,
    "packed.jsonl.zst": zstd(LINES),
    "packed.csv.GZ": gzip.compress(as_csv(ROWS).encode()),
    "a.parquet": in_arrow("parquet"),
    "a.parquet.gz": gzip.compress(in_arrow("parquet")),
    "a.parquet.zst": zstd(in_arrow("parquet")),
    "file.arrow": in_arrow("file"),
    "stream.arrow": in_arrow("stream"),
    "a.feather": in_arrow("feather"),
    "stream.arrow.zst": zstd(in_arrow("stream")),
    "tabs.tsv": as_csv(ROWS).replace('","', '"\t"').replace("prompt,chosen,", "prompt\tchosen\t"),
    "windows.csv": b"\xef\xbb\xbf" + as_csv(ROWS).encode(),
}


@pytest.mark.parametrize(("name", "content"), WHOLE.items(), ids=WHOLE)
def test_the_same_rows_come_from_every_type_of_file(tmp_path, name, content):
    assert rows(put(tmp_path, name, content)) == ROWS


def test_there_is_an_example_of_every_type_that_is_read():
    assert {blocks.kind_of(Path(name))[0] for name in WHOLE} == set(READERS) == set(TYPES)


def test_nulls_and_nested_columns_come_from_parquet_as_they_are(tmp_path):
    nested = [{"prompt": [{"role": "user", "content": "q"}], "chosen": None, "rejected": [[1.5], []]}] * 300
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(nested), tmp_path / "a.parquet", row_group_size=7)
    assert rows(tmp_path / "a.parquet") == nested


CELL = [{"role": "user", "content": "It's why?"}]


@pytest.mark.parametrize("cell", [json.dumps(CELL), repr(CELL), "[{'content': 'It\\'s why?', 'role': 'user'}]"])
def test_a_csv_cell_may_hold_messages(tmp_path, cell):
    row = {"prompt": cell, "chosen": "It's [so]", "rejected": '{"a": 1}'}
    assert rows(put(tmp_path, "a.csv", as_csv([row]))) == [row | {"prompt": CELL}]


# A few rows at a time


def many(count: int) -> list[dict]:
    return [{"prompt": f"{i} ", "chosen": "the chosen answer " * 30, "rejected": "é天" * 30} for i in range(count)]


@pytest.mark.parametrize("name", ["a.json", "wrapped.json", "a.jsonl", "a.csv", "a.parquet", "a.arrow", "a.jsonl.gz"])
def test_a_large_file_is_never_held_whole(tmp_path, name):
    found = many(30_000)  # 22 MB of JSON, more as objects
    file = tmp_path / name
    if name == "a.json":
        put(tmp_path, name, json.dumps(found))
    elif name == "wrapped.json":
        put(tmp_path, name, '{"version": 1,\n"data": ' + json.dumps(found) + "}")
    elif name.startswith("a.jsonl"):
        content = "".join(json.dumps(row) + "\n" for row in found).encode()
        put(tmp_path, name, gzip.compress(content, 1) if name.endswith("gz") else content)
    elif name == "a.csv":
        put(tmp_path, name, as_csv(found))
    elif name == "a.parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(found), file)
    else:
        pyarrow.feather.write_feather(pyarrow.Table.from_pylist(found), file, compression="uncompressed")
    arrow = pyarrow.total_allocated_bytes()
    tracemalloc.start()
    try:
        for number, row in read_file(file):  # noqa: B007 - the last is looked at below
            pass
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (number, row) == (30_000, found[-1])
    assert peak < 8_000_000
    assert pyarrow.total_allocated_bytes() - arrow < 8_000_000


@pytest.mark.parametrize("size", [*range(1, 90, 7), 200])
@pytest.mark.parametrize(
    "name", ["list.json", "named.json", "lines.jsonl", "old mac.jsonl", "quoted.csv", "windows.csv"]
)
def test_rows_are_the_same_wherever_a_block_ends(tmp_path, monkeypatch, name, size):
    short = [
        {"prompt": "é\u2028", "chosen": "a\r\nb", "rejected": "天"},
        {"prompt": "", "chosen": '\\"', "rejected": "c"},
    ]
    lines = "\r\n".join(json.dumps(r, ensure_ascii=False) for r in short)
    content = {
        "list.json": json.dumps([*short, short[0]], ensure_ascii=False)[:-1] + "\r\n ]",
        "named.json": json.dumps({"a": {"b": [1, 2]}, "data": [*short, short[0]], "z": -1.5e10}, ensure_ascii=False),
        "lines.jsonl": lines + "\r\n" + json.dumps(short[0]),
        "old mac.jsonl": "\r".join(json.dumps(r) for r in [*short, short[0]]),
        "quoted.csv": as_csv([*short, short[0]]),
        "windows.csv": "\ufeff" + as_csv([*short, short[0]]),
    }[name]
    monkeypatch.setattr(blocks, "BLOCK", size)
    assert rows(put(tmp_path, name, content)) == [*short, short[0]]


def test_a_file_is_read_no_further_than_it_is_asked_for(tmp_path):
    file = put(tmp_path, "a.jsonl", b'{"a": 1}\n{"a": 2}\n{broken')
    assert list(islice(read_file(file), 2)) == [(1, {"a": 1}), (2, {"a": 2})]


# What is left out, and what goes on after it

GOOD = b'{"a": 1}'


@pytest.mark.parametrize(
    ("name", "content", "kept", "said"),
    [
        ("a.jsonl", GOOD + b"\n{a}\n\n" + GOOD, [1, 3], ["line 2, column 2"]),
        ("a.jsonl", GOOD + b"\n\xff\n" + GOOD + b"\n3\n", [1, 3], ["line 2 is not UTF-8", "row 4 is a number"]),
        (
            "a.json",
            b"[" + GOOD + b',\n{"a": "\xe9"},\n' + GOOD + b"]",
            [1, 3],
            ["line 2 is not UTF-8 text (byte 0xe9)"],
        ),
        (
            "a.json",
            b"[" + GOOD + b', {"a": 1, "a": 2}, null, ' + GOOD + b"]",
            [1, 4],
            ["stands twice", "row 3 is null"],
        ),
        ("a.json", b"[" + GOOD + b", {b}, " + GOOD + b"]", [1], ["line 1, column 13"]),
        ("a.csv", b"a,b\n1,2\n1\n\n1,2,3\n1,2", [1, 4], ["in line 3 has fewer", "in line 5 has more"]),
        ("a.csv", b'a,b\n1,2\n"1"x,2\n\xff,2\n1,2', [1, 4], ["begins in line 3", "line 4 is not UTF-8"]),
        ("a.csv", b'a,b\n1,2\n"1,2\n1,2\n', [1], ["begins in line 3"]),
    ],
)
def test_rows_around_a_broken_one_are_kept_with_their_numbers(tmp_path, name, content, kept, said):
    file = put(tmp_path, name, content)
    numbers, faults = dropped(file)
    assert numbers == kept
    assert len(faults) == len(said)
    assert all(fragment in fault and str(file) in fault for fragment, fault in zip(said, faults, strict=True))
    with pytest.raises(DataError) as caught:
        list(read_file(file))
    assert str(caught.value) == faults[0]


def test_a_file_without_one_sound_row_is_an_error_whatever_is_left_out(tmp_path):
    for name, content in {"a.jsonl": b"{a\n{b\n", "a.json": b"[1, 2]", "a.csv": b"a,b\n1\n"}.items():
        with pytest.raises(DataError, match=r"line 1|row 1|line 2"):
            dropped(put(tmp_path, name, content))


def test_what_came_before_the_damage_of_a_packed_file_is_kept(tmp_path):
    content = b"".join(b'{"a": "%d"}\n' % (i * 7919 % 10007) for i in range(30_000))
    for file in (
        put(tmp_path, "a.jsonl.gz", gzip.compress(content)[:-50]),
        put(tmp_path, "a.jsonl.zst", zstd(content)[:-50]),
    ):
        numbers, [fault] = dropped(file)
        assert 5_000 < len(numbers) < 30_000
        assert f"{file}: damaged or no" in fault


# Limits


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv"])
def test_a_row_beyond_the_limit_is_told_before_it_fills_the_memory(tmp_path, monkeypatch, name):
    monkeypatch.setattr(blocks, "BLOCK", 1000)
    for module in (blocks, csv_rows, json_text):
        monkeypatch.setattr(module, "ROW_BYTES", 5000)
    long = "x" * 50_000
    content = {
        "a.jsonl": f'{{"a": 1}}\n{{"a": "{long}"}}\n{{"a": 3}}\n',
        "a.json": f'[{{"a": 1}},\n{{"a": "{long}"}},\n{{"a": 3}}]',
        "a.csv": f'a\n1\n"{long}"\n3\n',
    }[name]
    numbers, [fault] = dropped(put(tmp_path, name, content))
    assert numbers == ([1, 3] if name == "a.jsonl" else [1])
    assert "longer than" in fault or "field larger than field limit" in fault
    assert "line 2" in fault or "line 3" in fault


def test_a_large_row_of_parquet_is_left_out_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(arrow_rows, "ROW_BYTES", 5000)
    pyarrow.parquet.write_table(
        pyarrow.table({"a": ["x", "y" * 10_000, "z" * 3000, "z" * 3000]}), tmp_path / "a.parquet"
    )
    numbers, [fault] = dropped(tmp_path / "a.parquet")
    assert numbers == [1, 3, 4]
    assert "row 2 is larger than" in fault


def test_more_rows_than_a_file_can_hold_are_told(tmp_path):
    pyarrow.parquet.write_table(pyarrow.table({"a": pyarrow.nulls(30_000_000)}), tmp_path / "a.parquet")
    pyarrow.feather.write_feather(pyarrow.table({"a": pyarrow.nulls(2_000_000)}), tmp_path / "a.arrow")
    for name in ("a.parquet", "a.arrow"):
        with pytest.raises(DataError, match=r"says that it holds \d+ rows in \d+ bytes"):
            list(read_file(tmp_path / name))


def test_offsets_that_lead_out_of_an_arrow_file_are_told(tmp_path):
    sink = io.BytesIO()
    table = pyarrow.table({"a": ["first", "second"]})
    with pyarrow.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    offsets = (0).to_bytes(4, "little") + (5).to_bytes(4, "little") + (11).to_bytes(4, "little")
    assert sink.getvalue().count(offsets) == 1
    content = sink.getvalue().replace(offsets, offsets[:8] + (2**30).to_bytes(4, "little"))
    with pytest.raises(DataError, match="a.arrow"):
        list(read_file(put(tmp_path, "a.arrow", content)))


def test_messages_in_pythons_notation_are_read_up_to_a_size(tmp_path, monkeypatch):
    monkeypatch.setattr(csv_rows, "PYTHON_BYTES", 100)
    _, [fault] = dropped(put(tmp_path, "a.csv", as_csv([{"a": repr(CELL)}, {"a": repr(CELL * 10)}])))
    assert "line 3, a: messages in Python's notation longer than" in fault


# Paths


def test_what_is_no_file_is_told(tmp_path):
    (tmp_path / "folder.jsonl").mkdir()
    (tmp_path / "loop.json").symlink_to(tmp_path / "loop.json")
    os.mkfifo(tmp_path / "pipe.json")
    for name, said in {
        "folder.jsonl": "is a folder; a file is needed",
        "loop.json": "is a link that leads to no file",
        "pipe.json": "is no regular file but a device or a pipe",
        "none.json": "there is no such file",
        "none/none.json": "there is no such file",
        "n" * 300 + ".json": "File name too long",
    }.items():
        with pytest.raises(DataError, match=f"{name}.*{said}"):
            read_file(tmp_path / name)


def test_a_file_that_may_not_be_read_is_told(tmp_path, monkeypatch):
    def refuse(path, mode):
        raise PermissionError(13, "Permission denied", str(path))

    file = put(tmp_path, "a.json", "[]")
    monkeypatch.setattr(Path, "open", refuse)  # root may read everything
    with pytest.raises(DataError, match=r"a\.json: cannot be read \(Permission denied\)"):
        read_file(file)


def test_a_spreadsheets_empty_columns_and_spaces_in_its_header_are_no_columns(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("prompt , chosen,rejected,,\nq,good,bad,,\nq2,good,bad,,\n")
    assert [row for _, row in read_file(path)] == [
        {"prompt": "q", "chosen": "good", "rejected": "bad"},
        {"prompt": "q2", "chosen": "good", "rejected": "bad"},
    ]
    path.write_text("prompt,chosen,rejected,,\nq,good,bad,,something\n")
    with pytest.raises(DataError, match="line 2 has more fields than the header"):
        list(read_file(path))
