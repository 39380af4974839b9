"""Write the demo files next to this module: `python -m dpo_lab.data.demo.write`."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from dpo_lab.data.demo import chinese, english
from dpo_lab.data.demo.task import Row

log = logging.getLogger(__name__)

FOLDER = Path(__file__).parent
FILES = {
    "demo_train.jsonl": english.train_rows,
    "demo_eval.jsonl": english.eval_rows,
    "demo_zh_train.jsonl": chinese.train_rows,
    "demo_zh_eval.jsonl": chinese.eval_rows,
}


def to_jsonl(rows: list[Row]) -> bytes:
    """One JSON object a line, readable as it is."""
    return "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows).encode()


def write(folder: Path = FOLDER) -> None:
    """Write every demo file; the same bytes on every machine."""
    for name, make in FILES.items():
        rows = make()
        (folder / name).write_bytes(to_jsonl(rows))
        log.info("%s: %d pairs", name, len(rows))


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    write()
