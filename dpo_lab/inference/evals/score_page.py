"""One HTML file with the scores, their comparison and every pair; it needs nothing but a browser."""

import base64
import gzip
import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dpo_lab.inference.evals.pairs import Scored
from dpo_lab.inference.evals.standing import Standing
from dpo_lab.runtime.files import atomic_write, filled

HERE = Path(__file__).parent
MOST_PAIRS = 5000  # with their texts on the page, evenly spread


def write_page(path: Path, content: Mapping[str, Any], standings: Sequence[Standing], found: Scored) -> None:
    """Write the page, atomically. No text of the data is read as HTML.

    Args:
        path: the file.
        content: of scores.json.
        standings: the results in order.
        found: the pairs.

    Raises:
        OutputError: it cannot be written.
    """
    data = {**content, "rows": _rows(standings, found)}
    packed = gzip.compress(json.dumps(data, ensure_ascii=True, separators=(",", ":")).encode(), mtime=0)
    names = ", ".join(standing.name for standing in standings)
    page = filled(
        (HERE / "score.html").read_text(encoding="utf-8"),
        {
            "title": html.escape(f"Scores of {names}"),
            "css": (HERE / "score.css").read_text(encoding="utf-8"),
            "js": (HERE / "score.js").read_text(encoding="utf-8"),
            "data": base64.b64encode(packed).decode(),
        },
    )
    atomic_write(path, page.encode("utf-8", "replace"))


def _rows(standings: Sequence[Standing], found: Scored) -> list[dict[str, Any]]:
    """Texts and numbers of each pair that is shown."""
    n = len(found.examples)
    places = range(n) if n <= MOST_PAIRS else np.linspace(0, n - 1, MOST_PAIRS).round().astype(int).tolist()
    rows = []
    for i in places:
        pair = found.examples[i].pair
        rows.append(
            {
                "i": i,
                "row": pair.row,
                "source": pair.source,
                "prompt": [[str(m["role"]), str(m["content"])] for m in pair.prompt],
                "chosen": pair.chosen,
                "rejected": pair.rejected,
                "tokens": found.examples[i].lengths,
                "scores": [_numbers(standing, i) for standing in standings],
            }
        )
    return rows


def _numbers(standing: Standing, i: int) -> list[float | int]:
    """Whether the chosen answer is preferred, and the log-ratios of both answers in nats."""
    row = standing.records[i]
    ratios = [row[f"{side}_logps"] - row[f"ref_{side}_logps"] for side in ("chosen", "rejected")]
    return [int(row["correct"]), *(round(float(ratio), 4) for ratio in ratios)]
