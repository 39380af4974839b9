"""`python -m dpo_lab.preview`: read, tokenise, examine, show."""

import json
import logging
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from dpo_lab.config.paths import expand
from dpo_lab.config.schema import Config, Data
from dpo_lab.data.doctor.findings import Report
from dpo_lab.data.doctor.gate import check_report, examine_data
from dpo_lab.data.doctor.page import PageItem, write_page
from dpo_lab.data.doctor.view import show_pairs, show_report
from dpo_lab.data.gather import heldout_sources, title, training_sources
from dpo_lab.data.prepare import Prepared, prepare, read_pairs
from dpo_lab.data.templates import Template, load_template
from dpo_lab.data.tokens import Tokenised
from dpo_lab.models.locate import locate
from dpo_lab.models.tokenizer import load_tokenizer
from dpo_lab.runtime.errors import DataError
from dpo_lab.runtime.files import short, write_json
from dpo_lab.runtime.terminal import Terminal

log = logging.getLogger(__name__)
Wanted = set[tuple[str, int]]  # a file and a row of it


def preview(config: Config, tree: dict[str, Any], folder: Path) -> dict[str, float]:
    """Show the pairs of a configuration and what is wrong with them.

    Args:
        config: the validated configuration, with its node preview.
        tree: the same as plain containers.
        folder: takes doctor.json and preview.html.

    Returns:
        How many findings there are of each severity.

    Raises:
        LabError: something the user can act on.
        Unfit: there are findings that doctor.fail_on does not let pass.
    """
    asked = config.preview
    assert asked is not None
    terminal = Terminal(quiet=asked.json_only)
    cache_dir = expand(config.cache_dir)
    split = read_pairs(config.data, cache_dir, terminal.progress)
    with terminal.working("loading the tokenizer") as say:
        located = locate(config.model, cache_dir, say, weights=False)
        template = load_template(load_tokenizer(located, config.model), config.template)
    data = prepare(split, config.data, template, cache_dir)
    with terminal.working("examining the pairs"):
        report = examine_data(data, config, template)
    write_json(folder / "doctor.json", report.to_json())
    if asked.json_only:
        sys.stdout.write(json.dumps(report.to_json(), ensure_ascii=False, indent=2) + "\n")
    else:
        _show(config, terminal, data, template, report, located.name)
    if asked.page:
        with terminal.working("writing the page"):
            items = page_items(data, config.data, asked.page_pairs)
            write_page(
                folder / "preview.html", title=f"Preference pairs: {title(config.data)}", report=report, items=items, template=template
            )  # fmt: skip
        total = sum(len(part.pairs) for part in data.looked.values())
        shown = min(total, asked.page_pairs or total)
        some = f" (the first {shown:,} of {total:,} pairs; preview.page_pairs=null for all)" if shown < total else ""
        terminal.facts(
            {"page": f"{short(folder / 'preview.html')}{some}", "report": f"{short(folder / 'doctor.json')}"}
        )
    check_report(report, config)
    return {severity: float(report.count(severity)) for severity in ("error", "warning", "info")}


def page_items(data: Prepared, config: Data, limit: int | None) -> Iterator[PageItem]:
    """The first pairs of both splits, kept or dropped, each with its row in the source."""
    total = sum(len(part.pairs) for part in data.looked.values())
    share = 1.0 if limit is None or limit >= total else limit / total
    sizes = {name: round(share * len(part.pairs)) for name, part in data.looked.items()}
    wanted = {(p.source, p.row) for name, part in data.looked.items() for p in part.pairs[: sizes[name]]}
    raw = raw_rows(config, wanted)
    for name, part in data.looked.items():
        yield from _items(name, part, sizes[name], raw)


def _items(split: str, part: Tokenised, n: int, raw: dict[tuple[str, int], str]) -> Iterator[PageItem]:
    kept = 0  # examples before this place
    for place in range(n):
        pair, dropped, example = part.pairs[place], part.dropped.get(place), None
        if dropped is None:
            example = part.examples[kept]
            kept += 1
        yield PageItem(
            split=split,
            source=pair.source,
            row=pair.row,
            raw=raw.get((pair.source, pair.row)),
            example=example,
            dropped=dropped,
            cut=place in part.cut,
        )


def raw_rows(config: Data, wanted: Wanted) -> dict[tuple[str, int], str]:
    """Rows of the source as JSON, by file and number."""
    found: dict[tuple[str, int], str] = {}
    for source in [*training_sources(config), *heldout_sources(config)]:
        for where, rows in source.parts(_ignored):
            last = max((row for file, row in wanted if file == where), default=0)
            for number, row in rows:
                if number > last:
                    break
                if (where, number) in wanted:
                    found[where, number] = json.dumps(row, ensure_ascii=False, indent=2, default=str)
    return found


def _ignored(e: DataError) -> None:
    pass


def _show(config: Config, terminal: Terminal, data: Prepared, template: Template, report: Report, model: str) -> None:
    asked = config.preview
    assert asked is not None
    terminal.header(
        f"preview of {title(config.data)}",
        {
            "format": data.format,
            "template": f"{config.template.name}, tokenizer of {model}",
            "training": str(data.train_counts),
            "held out": str(data.heldout_counts),
        },
    )
    examples: Sequence[Any] = data.train[asked.first - 1 : asked.first - 1 + asked.show]
    if asked.show:
        show_pairs(terminal.console, examples, template, ids=asked.ids, full=asked.full)
    show_report(terminal.console, report)
