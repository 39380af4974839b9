"""The numbers and answers of a prediction, in the terminal and as a page."""

import base64
import gzip
import html
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from dpo_lab.config.brought import REFERENCE
from dpo_lab.inference.evals.answering import Known
from dpo_lab.inference.evals.compare import Estimate
from dpo_lab.inference.evals.prompts import PromptRow
from dpo_lab.inference.evals.refusals import refuses
from dpo_lab.runtime.files import atomic_write, filled, short
from dpo_lab.runtime.terminal import Terminal

HERE = Path(__file__).parent
MOST_BESIDE = 2  # results that have a column of differences in the terminal; the page has all
BENEATH = f"Second lines: less the {REFERENCE}'s, in blue where the interval leaves out 0."
# Key -> (what it is called, a note on it, digits, whether it is a share).
NUMBERS = {
    "bleu4": ("BLEU-4", "of all answers against the chosen ones, 0 to 100", 2, False),
    "rouge1": ("ROUGE-1", "F1 against the chosen answer, 0 to 100", 2, False),
    "rouge2": ("ROUGE-2", "F1 against the chosen answer, 0 to 100", 2, False),
    "rougeL": ("ROUGE-L", "F1 against the chosen answer, 0 to 100", 2, False),
    "perplexity": ("perplexity of the chosen answers", "end of turn included", 3, False),
    "distinct1": ("distinct-1", "different words among all words of all answers", 3, False),
    "distinct2": ("distinct-2", "different pairs of words among all of all answers", 3, False),
    "repetition": ("repeated 4-grams", "share of an answer's 4-grams that it has had before", 1, True),
    "tokens": ("length in tokens", "mean, end of turn included", 1, False),
    "characters": ("length in characters", "mean", 1, False),
    "refusals": ("refusals", "answers that decline, by a list of patterns", 1, True),
    "truncated": ("cut answers", "answers that did not end by themselves", 1, True),
    "tokens_per_second": ("tokens/s", "as they were generated, in batches", 1, False),
}


def show(terminal: Terminal, result: Mapping[str, Any], folder: Path) -> None:
    """A table with a column for each model, and where there are few, one for what sets it apart from the reference."""
    metrics, apart = result["metrics"], result["differences"]
    beside = apart if len(apart) <= MOST_BESIDE else {}
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column(Text(f"{result['prompts']} prompts"))
    for name in metrics:
        table.add_column(Text(name), justify="right", overflow="fold")
        if name in beside:
            table.add_column(Text(f"less {REFERENCE}"), justify="right")
    for key, (title, *_) in _there(metrics).items():
        cells = []
        for name, found in metrics.items():
            cells.append(Text(value_text(key, found.get(key))))
            if name in beside:
                cells.append(Text(difference_text(key, beside[name].get(key))))
        table.add_row(Text(title), *cells)
    terminal.console.print(table)
    for line in notes(result):
        terminal.say(line)
    terminal.facts({"page": str(short(folder / "predict.html")), "answers": str(short(folder / "predictions.jsonl"))})


def notes(result: Mapping[str, Any]) -> list[str]:
    """What a reader has to know to trust the numbers."""
    found, n, chinese = [], result["with_chosen"], result["read_as_chinese"]
    if n:
        ways = []
        if n - chinese:
            ways.append(f"{n - chinese} by words (BLEU: sacrebleu's 13a)")
        if chinese:
            ways.append(f"{chinese} as Chinese (BLEU: sacrebleu's zh; ROUGE: jieba's words)")
        found.append(f"Compared with {n} chosen answers, {' and '.join(ways)}.")
    g = result["generation"]
    how = (
        "greedy"
        if g["temperature"] == 0
        else f"temperature {g['temperature']:g}, top_p {g['top_p']:g}, seed {g['seed']}"
    )
    found.append(f"Answers: {how}, at most {g['max_new_tokens']} tokens.")
    if result["differences"]:
        found.append(
            f"In brackets: the middle 95 % of {result['resamples']:,} draws of the prompts, "
            "the same ones for all models."
        )
    if result["turns_cut"]:
        found.append(f"{result['turns_cut']} prompts lost their oldest turns to fit into the context.")
    if result["left_out"]:
        first = result["left_out"][0]
        found.append(f"{len(result['left_out'])} prompts were left out. The first, {first['key']}: {first['why']}")
    return found


def value_text(key: str, value: float | None) -> str:
    """A number as the table has it."""
    if value is None or math.isnan(value):
        return "\u2013"
    _, _, digits, share = NUMBERS[key]
    return f"{100 * value:.{digits}f} %" if share else f"{value:,.{digits}f}"


def difference_text(key: str, found: Mapping[str, float | None] | None) -> str:
    """+1.2 [-0.3, 2.8], in the unit of the number; nothing where there is none."""
    if found is None or found["value"] is None or not math.isfinite(found["value"]):
        return ""
    return f"{found['value'] * _scale(key):+,.{NUMBERS[key][2]}f} {interval_text(key, found)}".rstrip()


def interval_text(key: str, found: Mapping[str, float | None] | None) -> str:
    """[low, high], in the unit of the number; nothing where there is none."""
    if found is None or found["low"] is None or found["high"] is None:
        return ""
    low, high = (f"{end * _scale(key):,.{NUMBERS[key][2]}f}" for end in (found["low"], found["high"]))
    return f"[{low}, {high}]"


def _scale(key: str) -> int:
    return 100 if NUMBERS[key][3] else 1


def write_page(path: Path, result: Mapping[str, Any], rows: Sequence[PromptRow], said: Known) -> None:
    """One file with every prompt and the answers side by side. No text of the data is read as HTML.

    Raises:
        OutputError: it cannot be written.
    """
    names = [*result["metrics"]]
    items = [
        {
            "k": row.key,
            "p": [[m["role"], _content(m)] for m in row.messages],
            "c": row.chosen,
            "a": [_answer(said[name, row.key]) for name in names],
        }
        for row in rows
    ]
    packed = gzip.compress(json.dumps({"names": names, "items": items}).encode(), mtime=0)
    parts = {
        "title": html.escape(f"Answers: {result['title']}"),
        "css": (HERE / "predict.css").read_text(encoding="utf-8"),
        "js": (HERE / "predict.js").read_text(encoding="utf-8"),
        "notes": "".join(
            f"<p>{html.escape(line)}</p>" for line in [*notes(result), *([BENEATH] if result["differences"] else [])]
        ),
        "table": _table(result),
        "data": base64.b64encode(packed).decode(),
    }
    page = filled((HERE / "predict.html").read_text(encoding="utf-8"), parts)
    atomic_write(path, page.encode("utf-8", "replace"))


def _content(message: Mapping[str, Any]) -> str:
    """What a turn says; calls of tools as JSON."""
    calls = message.get("tool_calls")
    return "\n".join([message["content"], *([json.dumps(calls, ensure_ascii=False)] if calls else [])])


def _answer(row: Mapping[str, Any]) -> list[Any]:
    """Text, tokens, whether it ended, whether it declines; or why there is none."""
    if row["answer"] is None:
        return [None, row["left_out"]]
    return [row["answer"], row["tokens"], int(row["ended"]), int(refuses(row["answer"]))]


def _there(metrics: Mapping[str, Mapping[str, float]]) -> dict[str, tuple[str, str, int, bool]]:
    """The numbers that some model has, in their order."""
    return {key: spec for key, spec in NUMBERS.items() if any(key in found for found in metrics.values())}


def _table(result: Mapping[str, Any]) -> str:
    """A row for each number, with its interval and what sets a model apart from the reference beneath."""
    metrics = result["metrics"]
    heads = "".join(f"<th scope='col'>{html.escape(name)}</th>" for name in metrics)
    body = ""
    for key, (title, note, *_) in _there(metrics).items():
        cells = "".join(f"<td>{_cell(result, name, key)}</td>" for name in metrics)
        body += f"<tr><th scope='row'>{html.escape(title)} <small>{html.escape(note)}</small></th>{cells}</tr>"
    return f"<div class='scroll'><table><thead><tr><th></th>{heads}</tr></thead><tbody>{body}</tbody></table></div>"


def _cell(result: Mapping[str, Any], name: str, key: str) -> str:
    lines = [value_text(key, result["metrics"][name].get(key))]
    alone = result["intervals"].get(name, {}).get(key)
    apart = result["differences"].get(name, {}).get(key)
    if said := interval_text(key, alone):
        lines[0] += f" <small>{said}</small>"
    if said := difference_text(key, apart):
        clear = " class='clear'" if Estimate(**apart).clear else ""
        lines.append(f"<small{clear} title='less {REFERENCE}'>{said}</small>")
    return "<br>".join(lines)
