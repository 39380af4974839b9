"""Rows that are kept as they come, so that a command which was interrupted goes on where it was."""

import json
import os
import threading
from pathlib import Path
from typing import Any

from dpo_lab.runtime.files import write_error


class Ledger:
    """A JSON-lines file that grows by whole rows; threads may share it.

    Attributes:
        path: the file.
        rows: what it holds.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = []
        self._lock = threading.Lock()
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return
        except OSError as e:
            raise write_error(path, e) from e
        whole = self._read(content)
        if whole < len(content):  # a row was being written when the process died
            os.truncate(path, whole)

    def add(self, row: dict[str, Any]) -> None:
        """Keep a row.

        Raises:
            OutputError: it cannot be written.
        """
        # Halves of surrogate pairs, which a server's JSON may hold, stay escapes: they have no UTF-8.
        line = json.dumps(row, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"
        with self._lock:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with open(self.path, "ab") as handle:
                    handle.write(line)
            except OSError as e:
                raise write_error(self.path, e) from e
            self.rows.append(row)

    def _read(self, content: bytes) -> int:
        """Take the rows; returns how many bytes they are."""
        place = 0
        while (end := content.find(b"\n", place)) >= 0:  # not splitlines: texts hold other characters that it splits at
            try:
                row = json.loads(content[place:end])
            except ValueError:
                break
            if not isinstance(row, dict):
                break
            self.rows.append(row)
            place = end + 1
        return place
