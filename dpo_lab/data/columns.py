"""The columns of a source under our names."""

from collections.abc import Iterable, Iterator, Mapping

from dpo_lab.data.types import Row
from dpo_lab.runtime.errors import DataError

MAP_HINT = "Map other names with data.columns, e.g. 'data.columns={prompt: question, chosen: good, rejected: bad}'."
OPTIONAL = ("system", "history", "query", "tools", "images", "videos", "audios")  # columns that rows may lack
SAME = {  # our name -> columns that mean the same, and give way to the one that is mapped
    "prompt": ("instruction", "conversations", "messages", "question"),
    "system": ("system_prompt", "system_message"),
    "query": ("input",),
    "answers": ("responses", "completions", "candidates", "candidates_completions", "outputs"),
    "scores": ("score", "ratings", "rating", "rewards"),
    "ranks": ("rank", "ranking"),
    "label": ("kto_tag",),
    "completion": ("response", "output"),
}


def renamed(row: Row, columns: Mapping[str, str]) -> Row:
    """The row by our names; a column that is mapped to an empty name is left out."""
    if not columns:
        return row
    given = {*columns, *columns.values(), *(same for ours in columns for same in SAME.get(ours, ()))}
    ours = {name: row[theirs] for name, theirs in columns.items() if theirs in row}
    return {name: value for name, value in row.items() if name not in given} | _as_input(ours)


def _as_input(row: Row) -> Row:
    """With the `query` that was mapped also as alpaca's `input`."""
    return {**row, "input": row["query"]} if "query" in row else row


def told(row: Row) -> str:
    """The columns that a row has, as a sentence."""
    return f"The columns there are {', '.join(map(str, row)) or '(none)'}."


def absent_columns(rows: list[Row], columns: Mapping[str, str], whole: bool, where: str) -> set[str]:
    """The mapped columns that no row had so far and a later one may have.

    Args:
        rows: the first ones.
        columns: our name -> the source's.
        whole: whether there are no other rows.
        where: the source, for messages.

    Raises:
        DataError: one is not there and no later row can have it, or it is one that all rows need.
    """
    absent = {ours: theirs for ours, theirs in columns.items() if theirs and not any(theirs in row for row in rows)}
    fatal = [theirs for ours, theirs in absent.items() if whole or ours not in OPTIONAL]
    if fatal and rows:
        several = "no row has" if whole else f"none of the first {len(rows)} rows has"
        raise DataError(f"{where}: {several} a column {', '.join(fatal)} (data.columns). {told(rows[0])}")
    return set(absent.values())


def watched(rows: Iterable[tuple[int, Row]], absent: set[str], where: str) -> Iterator[tuple[int, Row]]:
    """The rows, and an error after the last where none had a mapped column."""
    row: Row = {}
    for number, row in rows:
        if absent and isinstance(row, dict):
            absent = {name for name in absent if name not in row}
        yield number, row
    if absent:
        raise DataError(f"{where}: no row has a column {', '.join(sorted(absent))} (data.columns). {told(row)}")
