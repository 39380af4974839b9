"""Writes the files of this folder: python tests/data/broken/write.py. What each must give stands in manifest.yaml."""

import gzip
import io
import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

HERE = Path(__file__).parent
ROW = {"prompt": "Why?", "chosen": "So.", "rejected": "No."}
GOOD = json.dumps(ROW)
USER, BOT = {"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}
NO = {"role": "assistant", "content": "No."}
HEAD = "prompt,chosen,rejected\n"
CSV = f"{HEAD}Why?,So.,No.\n"


def lines(*rows: Any) -> str:
    """JSON lines; a text is a line as it is."""
    return "".join((row if isinstance(row, str) else json.dumps(row, ensure_ascii=False)) + "\n" for row in rows)


def between(*rows: Any) -> str:
    """Good rows around these."""
    return lines(ROW, *rows, ROW)


def without(column: str) -> dict[str, Any]:
    return {name: value for name, value in ROW.items() if name != column}


def parquet(columns: dict[str, Any], **options: Any) -> bytes:
    sink = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), sink, **options)
    return sink.getvalue()


def arrow(columns: dict[str, Any], *, stream: bool) -> bytes:
    table, sink = pyarrow.table(columns), io.BytesIO()
    with (pyarrow.ipc.new_stream if stream else pyarrow.ipc.new_file)(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=10)
    return sink.getvalue()


def zstd(content: bytes) -> bytes:
    return pyarrow.Codec("zstd").compress(content, asbytes=True)


def texts(count: int) -> dict[str, list[str]]:
    """Columns of texts that hardly pack."""
    return {name: [f"{name} {i * 7919 % 10007} {i}" for i in range(count)] for name in ROW}


def encoded(*values: bytes) -> Any:
    return pyarrow.array(values, pyarrow.binary()).view(pyarrow.string())


def llamafactory(**entry: Any) -> str:
    return json.dumps({"mine": {"file_name": "mine.jsonl", "ranking": True, **entry}}, indent=1)


MANY = "".join(json.dumps({name: f"{value} {i}" for name, value in ROW.items()}) + "\n" for i in range(3000)).encode()
TABLE = {name: [value] * 3 for name, value in ROW.items()}
BAD_UTF8 = {"prompt": encoded(b"Why?", b"caf\xe9", b"Why?"), "chosen": ["a"] * 3, "rejected": ["b"] * 3}
RANKED = {"prompt": "Why?", "answers": [{"answer": "a", "rank": 1}, {"answer": "b", "rank": 2}]}
SCORED = {"prompt": "Why?", "responses": ["a", "b"], "scores": [1.0, 2.0]}
HH = {"chosen": "\n\nHuman: Why?\n\nAssistant: So.", "rejected": "\n\nHuman: Why?\n\nAssistant: No."}
KTO = [{"prompt": "Why?", "completion": "So.", "label": True}, {"prompt": "Why?", "completion": "No.", "label": False}]
CHAT = {"chosen": [USER, BOT], "rejected": [USER, NO]}
SHAREGPT = {
    "conversations": [{"from": "human", "value": "Why?"}],
    "chosen": {"from": "gpt", "value": "So."},
    "rejected": {"from": "gpt", "value": "No."},
}

FILES: dict[str, str | bytes] = {
    # nothing there
    "empty.json": "",
    "empty.jsonl": "",
    "empty.csv": "",
    "empty.parquet": b"",
    "empty.arrow": b"",
    "empty.jsonl.gz": gzip.compress(b"", mtime=0),
    "blank.jsonl": " \n\r\n\t\n",
    "mark_alone.json": b"\xef\xbb\xbf",
    "empty_list.json": " [ ] ",
    "header_alone.csv": HEAD,
    "no_rows.parquet": parquet({name: pyarrow.array([], pyarrow.string()) for name in ROW}),
    # encodings
    "utf16.json": ("[" + GOOD + "]").encode("utf-16"),
    "utf16.csv": CSV.encode("utf-16"),
    "utf16_no_mark.jsonl": between().encode("utf-16-be"),
    "utf32.jsonl": between().encode("utf-32"),
    "latin1.jsonl": between({"prompt": "café", "chosen": "a", "rejected": "b"}).encode("latin-1"),
    "latin1_first.jsonl": lines({"prompt": "café", "chosen": "a", "rejected": "b"}, ROW).encode("latin-1"),
    "latin1.json": json.dumps(
        [ROW, {"prompt": "é", "chosen": "a", "rejected": "b"}, ROW], indent=1, ensure_ascii=False
    ).encode("latin-1"),
    "gbk.csv": (CSV + "天空,a,b\nWhy?,So.,No.\n").encode("gbk"),
    "mixed.jsonl": between({"prompt": "é", "chosen": "a", "rejected": "b"}).encode()
    + between({"prompt": "天", "chosen": "a", "rejected": "b"}).encode("gb18030"),
    "bad_utf8.parquet": parquet(BAD_UTF8),
    "bad_utf8.arrow": arrow(BAD_UTF8, stream=True),
    # JSON that breaks off, or never was
    "torn_list.json": "[" + GOOD + ",\n" + GOOD[:30],
    "torn_line.jsonl": lines(ROW) + GOOD[:30],
    "torn_object.json": '{\n"prompt": "Why?",\n"chosen"',
    "torn_wrapped.json": '{"data": [\n' + GOOD + ",\n" + GOOD[:20],
    "no_closing_bracket.json": "[" + GOOD + "," + GOOD + "\n",
    "trailing_comma.json": "[\n" + GOOD + ",\n]",
    "trailing_comma.jsonl": between(GOOD[:-1] + ",}"),
    "comma_after_line.jsonl": f"{GOOD},\n{GOOD},\n",
    "comment.json": "[\n// the pairs\n" + GOOD + "]",
    "comment.jsonl": between("# more of them"),
    "single_quotes.jsonl": between(str(ROW)),
    "single_quotes.json": str([ROW]),
    "no_quotes.jsonl": between("{prompt: Why?, chosen: So., rejected: No.}"),
    "missing_comma.json": '[\n {"prompt": "Why?"\n "chosen": "So.", "rejected": "No."}]',
    "missing_bracket.jsonl": between(GOOD[:-1]),
    "two_on_a_line.jsonl": between(GOOD + GOOD),
    "two_without_break.jsonl": GOOD + GOOD + GOOD,
    "two_lists.json": f"[{GOOD}]\n[{GOOD}]",
    "pretty_lines.jsonl": json.dumps(ROW, indent=1) + "\n" + json.dumps(ROW, indent=1),
    "raw_break.jsonl": between('{"prompt": "a\nb", "chosen": "a", "rejected": "b"}'),
    "raw_tab.jsonl": between('{"prompt": "a\tb", "chosen": "a", "rejected": "b"}'),
    "raw_nul.jsonl": between('{"prompt": "a\x00b", "chosen": "a", "rejected": "b"}'),
    "nul_bytes.json": b"\x00" * 64,
    "nul_line.jsonl": between("\x00" * 30),
    "bad_escape.jsonl": between(r'{"prompt": "C:\data", "chosen": "a", "rejected": "b"}'),
    "bad_unicode_escape.jsonl": between(r'{"prompt": "\u12", "chosen": "a", "rejected": "b"}'),
    "quote_in_text.jsonl": between('{"prompt": "say "hi"", "chosen": "a", "rejected": "b"}'),
    "deep.json": "[" * 20_000,
    "deep.jsonl": between("[" * 20_000),
    "long_number.jsonl": between('{"prompt": ' + "1" * 10_000 + ', "chosen": "a", "rejected": "b"}'),
    "long_number.json": "[" + GOOD + ', {"prompt": ' + "1" * 10_000 + "}, " + GOOD + "]",
    "key_twice.jsonl": between('{"prompt": "q", "chosen": "a", "chosen": "b", "rejected": "c"}'),
    "key_twice.json": "[" + GOOD + ',\n{"prompt": "q", "prompt": "r", "chosen": "a", "rejected": "b"}, ' + GOOD + "]",
    "yaml.json": "- prompt: Why?\n  chosen: So.\n  rejected: No.\n",
    "csv_named.jsonl": CSV,
    # JSON, but no rows
    "one_object.json": json.dumps({"version": 1, "pairs": [ROW]}),
    "one_row.json": GOOD,
    "two_splits.json": json.dumps({"train": [ROW], "test": [ROW]}),
    "text.json": '"hello"',
    "number.json": "3",
    "null.json": "null",
    "list_of_texts.json": '["Why?", "So.", "No."]',
    "list_of_lists.json": '[["Why?", "So.", "No."]]',
    "null_row.json": "[" + GOOD + ", null, " + GOOD + "]",
    "list_row.jsonl": between('["Why?", "So.", "No."]'),
    "columns.json": json.dumps(TABLE),
    # CSV
    "open_quote.csv": CSV + 'Why?,"So.,No.\nWhy?,So.,No.\n',
    "quote_within.csv": CSV + 'Why?,"So."!,No.\nWhy?,So.,No.\n',
    "too_few_fields.csv": CSV + "Why?,So.\nWhy?,So.,No.\n",
    "too_many_fields.csv": CSV + "Why?,So, it is.,No.\nWhy?,So.,No.\n",
    "header_twice.csv": "prompt,chosen,chosen\nWhy?,So.,No.\n",
    "semicolons.csv": CSV.replace(",", ";"),
    "tabs.csv": CSV.replace(",", "\t"),
    "no_header.csv": "Why?,So.,No.\nHow?,So.,No.\n",
    "python_list.csv": CSV + "\"[{'role': 'user', 'content': 'q'}\n {'role': 'user', 'content': 'r'}]\",a,b\n",
    "commas.tsv": CSV,
    # Parquet and Arrow
    "truncated.parquet": parquet(texts(300))[:-200],
    "damaged_page.parquet": parquet(texts(300), compression="none", use_dictionary=False).replace(
        b"chosen 7", b"\xff" * 8
    )[:40]
    + b"\xff" * 400
    + parquet(texts(300), compression="none", use_dictionary=False)[440:],
    "garbage.parquet": b"PAR1 nothing of the kind PAR1",
    "other_columns.parquet": parquet({"question": ["q"], "good": ["a"]}),
    "numbers.parquet": parquet({"prompt": [1], "chosen": [2.5], "rejected": [True]}),
    "bytes.parquet": parquet({name: [b"text"] for name in ROW}),
    "truncated_file.arrow": arrow(texts(300), stream=False)[:-500],
    "truncated_stream.arrow": arrow(texts(300), stream=True)[:-3000],
    "garbage.arrow": b"\xff\xff\xff\xff" + b"\x7f" * 100,
    "column_twice.arrow": b"",  # written below
    # names that do not say what is inside
    "parquet_named.json": parquet(TABLE),
    "json_named.parquet": f"[{GOOD}]",
    "json_named.arrow": f"[{GOOD}]",
    "arrow_named.parquet": arrow(TABLE, stream=False),
    "gzip_named.jsonl": gzip.compress(between().encode(), mtime=0),
    "zstd_named.json": zstd(between().encode()),
    "zip_named.csv": b"PK\x03\x04\x14\x00" + b"\x00" * 40,
    "pickle_named.json": b"\x80\x04\x95\x10\x00",
    "sqlite_named.csv": b"SQLite format 3\x00" + b"\x10\x00" * 20,
    "web_page.json": "<!DOCTYPE html>\n<html><body>404</body></html>",
    "lfs_pointer.jsonl": "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
    # types that are not read
    "pairs.zip": b"PK\x03\x04\x14\x00",
    "pairs.tar.gz": gzip.compress(b"\x00" * 512, mtime=0),
    "pairs.jsonl.bz2": b"BZh9",
    "pairs.jsonl.xz": b"\xfd7zXZ\x00",
    "pairs.xlsx": b"PK\x03\x04",
    "pairs.pkl": b"\x80\x04N.",
    "pairs.pt": b"PK\x03\x04",
    "pairs.txt": GOOD,
    "pairs": GOOD,
    "pairs.gz": gzip.compress(between().encode(), mtime=0),
    # packed
    "torn.jsonl.gz": gzip.compress(MANY, mtime=0)[:-4000],
    "torn.json.gz": gzip.compress(b"[" + b",".join(MANY.splitlines()) + b"]", mtime=0)[:-4000],
    "no_gzip.jsonl.gz": between(),
    "wrong_sum.jsonl.gz": gzip.compress(between().encode(), mtime=0)[:-8] + b"\x00" * 8,
    "torn.jsonl.zst": zstd(MANY)[:-2000],
    "no_zstd.jsonl.zst": between(),
    "bomb.jsonl.gz": gzip.compress(b'{"prompt": "' + b"a" * (80 * 2**20), mtime=0),
    "bomb.csv.zst": zstd(f'{CSV}"'.encode() + b"a" * (80 * 2**20)),
    "line_breaks.csv.zst": zstd(CSV.encode() + b"\n" * (80 * 2**20)),
    "spaces.json.gz": gzip.compress(b" " * (80 * 2**20), mtime=0),
    # rows that are no pairs
    "missing_answer.jsonl": between(without("rejected")),
    "missing_prompt.jsonl": between(without("prompt")),
    "other_columns.jsonl": lines({"question": "q", "good": "a"}),
    "capital_columns.jsonl": lines({name.upper(): value for name, value in ROW.items()}),
    "number_answer.jsonl": between(ROW | {"chosen": 42}),
    "bool_answer.jsonl": between(ROW | {"rejected": False}),
    "nan_prompt.jsonl": between('{"prompt": NaN, "chosen": "a", "rejected": "b"}'),
    "infinity.jsonl": between('{"prompt": Infinity, "chosen": "a", "rejected": -Infinity}'),
    "list_answer.jsonl": between(ROW | {"chosen": ["So."]}),
    "nested_lists.jsonl": between(ROW | {"chosen": [[["So."]]]}),
    "object_answer.jsonl": between(ROW | {"chosen": {"text": "So."}}),
    "empty_conversation.jsonl": between(ROW | {"prompt": []}),
    "wrong_role.jsonl": between(ROW | {"prompt": [{"role": "boss", "content": "Why?"}]}),
    "null_role.jsonl": between(ROW | {"prompt": [{"role": None, "content": "Why?"}]}),
    "list_role.jsonl": between(ROW | {"prompt": [{"role": ["user"], "content": "Why?"}]}),
    "no_content.jsonl": between(ROW | {"prompt": [{"role": "user"}]}),
    "number_content.jsonl": between(ROW | {"prompt": [{"role": "user", "content": 5}]}),
    "text_as_message.jsonl": between(ROW | {"prompt": ["Why?"]}),
    "ends_with_assistant.jsonl": between(ROW | {"prompt": [USER, BOT]}),
    "system_alone.jsonl": between(ROW | {"prompt": [{"role": "system", "content": "Be brief."}]}),
    "no_answer_turn.jsonl": lines(CHAT, {"chosen": [USER], "rejected": [USER]}, CHAT),
    "answer_of_user.jsonl": lines(CHAT, {"chosen": [USER, USER], "rejected": [USER, USER]}, CHAT),
    "other_prompts.jsonl": lines(
        CHAT, {"chosen": [USER, BOT], "rejected": [{"role": "user", "content": "How?"}, NO]}, CHAT
    ),
    "two_answers.jsonl": between(ROW | {"prompt": [USER], "chosen": [BOT, BOT]}),
    "swapped_columns.jsonl": between({"prompt": "So.", "chosen": [USER], "rejected": [USER]}),
    "tool_call_answer.jsonl": between(
        ROW | {"prompt": [USER], "chosen": [BOT | {"tool_calls": [{"function": {"name": "f", "arguments": {}}}]}]}
    ),
    "tools_no_json.jsonl": between(ROW | {"tools": "get_weather(city)"}),
    "images.jsonl": between(ROW | {"images": ["a.png"]}),
    "image_part.jsonl": between(ROW | {"prompt": [{"role": "user", "content": [{"type": "image", "image": "a.png"}]}]}),
    "sharegpt_role.jsonl": lines(SHAREGPT, SHAREGPT | {"conversations": [{"from": "bing", "value": "Why?"}]}, SHAREGPT),
    "sharegpt_no_value.jsonl": lines(SHAREGPT, SHAREGPT | {"chosen": {"from": "gpt"}}, SHAREGPT),
    "bad_history.jsonl": lines(
        *(
            {"instruction": "Why?", "input": "", "chosen": "a", "rejected": "b", "history": h}
            for h in ([], ["q", "a"], [])
        )
    ),
    "hh_no_assistant.jsonl": lines(HH, HH | {"chosen": "\n\nHuman: Why?"}, HH),
    "hh_no_human.jsonl": lines(HH, HH | {"rejected": "No."}, HH),
    "hh_other_question.jsonl": lines(HH, HH | {"rejected": "\n\nHuman: How?\n\nAssistant: No."}, HH),
    "answers_no_list.jsonl": lines(RANKED, RANKED | {"answers": "a, b"}, RANKED),
    "answers_of_numbers.jsonl": lines(RANKED, RANKED | {"answers": [1, 2]}, RANKED),
    "ranks_no_numbers.jsonl": lines(
        RANKED, RANKED | {"answers": [{"answer": "a", "rank": "first"}, {"answer": "b", "rank": "second"}]}, RANKED
    ),
    "scores_too_few.jsonl": lines(SCORED, SCORED | {"scores": [1.0]}, SCORED),
    "scores_no_numbers.jsonl": lines(SCORED, SCORED | {"scores": ["good", "bad"]}, SCORED),
    "scores_objects.jsonl": lines(SCORED, SCORED | {"scores": [{"x": 1}, {"x": 2}]}, SCORED),
    "label_no_boolean.jsonl": lines(*KTO, {"prompt": "How?", "completion": "So.", "label": "maybe"}),
    "label_null.jsonl": lines(*KTO, {"prompt": "How?", "completion": "So.", "label": None}),
    # dataset_info.json
    "info_no_json/dataset_info.json": '{"mine": {"file_name": "mine.jsonl",}}',
    "info_list/dataset_info.json": "[]",
    "info_entry_text/dataset_info.json": json.dumps({"mine": "mine.jsonl"}),
    "info_twice/dataset_info.json": '{"mine": {"file_name": "a.jsonl"}, "mine": {"file_name": "b.jsonl"}}',
    "info_utf16/dataset_info.json": llamafactory().encode("utf-16"),
    "info_other_name/dataset_info.json": json.dumps({"mime": {"file_name": "mine.jsonl", "ranking": True}}),
    "info_missing_file/dataset_info.json": llamafactory(),
    "info_parent/dataset_info.json": llamafactory(file_name="../latin1.jsonl"),
    "info_deep_parent/dataset_info.json": llamafactory(file_name="a/../../../../../../etc/passwd"),
    "info_absolute/dataset_info.json": llamafactory(file_name="/etc/passwd"),
    "info_windows/dataset_info.json": llamafactory(file_name="C:\\data\\mine.jsonl"),
    "info_number/dataset_info.json": llamafactory(file_name=5),
    "info_formatting/dataset_info.json": llamafactory(formatting="chatml"),
    "info_column/dataset_info.json": llamafactory(columns={"prompts": "question"}),
    "info_absent_column/dataset_info.json": llamafactory(
        columns={"prompt": "question", "chosen": "chosen", "rejected": "rejected"}
    ),
    "info_absent_column/mine.jsonl": between(),
    "info_no_ranking/dataset_info.json": llamafactory(ranking=False),
    "info_samples/dataset_info.json": llamafactory(num_samples=-5),
    "info_script/dataset_info.json": json.dumps({"mine": {"script_url": "mine.py", "ranking": True}}),
    "info_tags/dataset_info.json": llamafactory(formatting="sharegpt", tags={"role": "from"}),
    "info_broken_data/dataset_info.json": llamafactory(),
    "info_broken_data/mine.jsonl": lines({"instruction": "Why?", "input": "", "chosen": "So.", "rejected": "No."})
    + "{broken\n",
}


def column_twice() -> bytes:
    sink = io.BytesIO()
    batch = pyarrow.RecordBatch.from_arrays([pyarrow.array(["a"])] * 3, names=["prompt", "chosen", "chosen"])
    with pyarrow.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue()


def main() -> None:
    for name, content in (FILES | {"column_twice.arrow": column_twice()}).items():
        file = HERE / name
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(content.encode() if isinstance(content, str) else content)


if __name__ == "__main__":
    main()
