"""Files of rows."""

from pathlib import Path

from dpo_lab.runtime.files import read_jsonl, write_jsonl


def test_rows_whose_texts_hold_line_separators_are_read_whole(tmp_path: Path) -> None:
    rows = [{"text": f"one{mark}two"} for mark in ("\u2028", "\u2029", "\x85", "\r", "\n", "\x0b")]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    assert read_jsonl(tmp_path / "rows.jsonl") == rows


def test_a_torn_last_row_is_left_out(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "rows.jsonl", [{"a": 1}, {"a": 2}])
    with open(tmp_path / "rows.jsonl", "a", encoding="utf-8") as file:
        file.write('{"a": ')
    assert read_jsonl(tmp_path / "rows.jsonl") == [{"a": 1}, {"a": 2}]
