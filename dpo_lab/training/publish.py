"""A sweep's report in W&B: one run beside those of the trials, in their group, with the leaderboard, the answer, the page.

Started by the sweep as `python -m dpo_lab.training.publish FOLDER` when its report is written. The settings are those of
the trials; offline, what is written lies in FOLDER/wandb. The run's id depends on the sweep alone, so that a sweep that is
extended and reported again has one such run, which shows the last report. Whatever goes wrong costs a warning.
"""

import csv
import html
import logging
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from dpo_lab.config.schema import Logger
from dpo_lab.runtime.files import digest, read_json
from dpo_lab.training.trackers import open_tracker

log = logging.getLogger(__name__)

PAGE_BYTES = 20 * 2**20  # a larger report.html stays at home
PICTURES = 20


def publish(folder: Path) -> str | None:
    """Show the report in a W&B run of its own.

    Args:
        folder: of the sweep, with its report.

    Returns:
        Where to look, or None where the trials had no W&B.
    """
    folder = folder.absolute()
    logger = _logger(folder)
    if logger is None or logger.name != "wandb":
        return None
    book = _book(folder)
    name = str(book.get("name") or folder.name)
    tracker = open_tracker(
        logger,
        run_id=digest(name, str(folder.resolve())),
        name=f"{name} report",
        group=name,
        tree={key: book[key] for key in ("axes", "fixed", "commit", "sweeper") if key in book},
        run_dir=folder,
        tags=["report"],
        job_type="report",
    )
    step = int(time.time())  # a later report's is higher: W&B leaves out what comes with a lower one
    columns, rows = _leaderboard(folder / "leaderboard.csv")
    if rows:
        tracker.table("leaderboard", columns, rows, step)
    page = folder / "report.html"
    if page.is_file() and page.stat().st_size <= PAGE_BYTES:
        tracker.media("report", page, step)
    for picture in sorted(folder.glob("*.png"))[:PICTURES]:
        tracker.media(picture.stem, picture, step)
    tracker.finish(0, _summary(folder, columns, rows))
    return tracker.note


def _logger(folder: Path) -> Logger | None:
    """conf/logger of the trial that started first."""
    trials = [(read_json(path), path.parent) for path in folder.glob("*/trial.json")]
    known = [(trial.get("number", 0), path) for trial, path in trials if isinstance(trial, dict)]
    for _, path in sorted(known, key=lambda pair: (_number(pair[0]), pair[1].name)):
        facts = read_json(path / "facts.json")
        config = facts.get("config") if isinstance(facts, dict) else None
        if isinstance(config, dict) and isinstance(config.get("logger"), dict):
            return Logger.model_validate(config["logger"])
    return None


def _book(folder: Path) -> dict[str, Any]:
    try:
        book = yaml.safe_load((folder / "sweep.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return book if isinstance(book, dict) else {}


def _leaderboard(path: Path) -> tuple[list[str], list[list[Any]]]:
    """Columns and rows; a column that holds nothing but numbers holds them as such."""
    try:
        with open(path, encoding="utf-8", newline="") as handle:
            columns, *lines = [*csv.reader(handle)] or [[]]
    except OSError:
        return [], []
    lines = [line for line in lines if len(line) == len(columns)]
    cells = [[_cell(text) for text in line] for line in lines]
    for i, _ in enumerate(columns):
        if any(isinstance(row[i], str) for row in cells):
            for row, line in zip(cells, lines, strict=True):
                row[i] = line[i]
    return columns, cells


def _cell(text: str) -> float | str | None:
    try:
        return float(text) if text else None
    except ValueError:
        return text


def _summary(folder: Path, columns: list[str], rows: list[list[Any]]) -> dict[str, Any]:
    """The answer in a sentence, the winner and how it did."""
    summary: dict[str, Any] = {"verdict": _sentence(folder / "report.md"), "trials": len(rows)}
    if winner := _winner(folder / "winner"):
        summary["winner"] = winner
        place = columns.index("trial") if "trial" in columns else None
        row = next((row for row in rows if place is not None and row[place] == winner), None)
        if row is not None:
            summary |= {f"winner/{key}": value for key, value in zip(columns, row, strict=True) if value is not None}
    return summary


def _sentence(path: Path) -> str:
    """The first paragraph of report.md below its title, without marks."""
    try:
        paragraphs = path.read_text(encoding="utf-8").split("\n\n")
    except OSError:
        return ""
    text = next((p.strip() for p in paragraphs if p.strip() and not p.lstrip().startswith("#")), "")
    plain = re.sub(r"\\([\\`*|])", r"\1", text.removeprefix("**").removesuffix("**"))
    return html.unescape(plain)


def _winner(path: Path) -> str | None:
    """The id of the winner: `winner` leads to its final/, as a link or, where links are impossible, in words."""
    try:
        target = path.readlink() if path.is_symlink() else Path(path.read_text(encoding="utf-8").strip())
    except OSError:
        return None
    return target.parent.name or None


def _number(value: Any) -> float:
    return value if isinstance(value, int) else float("inf")


def main(arguments: Sequence[str] | None = None) -> None:
    """`python -m dpo_lab.training.publish FOLDER`."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    log.setLevel(logging.INFO)
    (folder,) = sys.argv[1:] if arguments is None else arguments
    try:
        note = publish(Path(folder))
    except Exception as e:  # a third party's service, half-written folders: a report is no reason for a sweep to fail
        reason = (str(e).strip().splitlines() or [type(e).__name__])[0]
        log.warning("The report could not be shown in W&B: %s", reason)
        return
    if note:
        log.info("report: %s", note)


if __name__ == "__main__":
    main()
