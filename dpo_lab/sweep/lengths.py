"""How long the sampled answers of a trial are, in tokens."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dpo_lab.sweep.pairs import read_rows
from dpo_lab.sweep.results import Trial


class Lengths:
    """Counts the tokens of samples.jsonl with the tokenizer in final/; trials that share one load it once."""

    def __init__(self) -> None:
        self._tokenizers: dict[tuple[str, int], Any] = {}

    def of(self, trial: Trial) -> float | None:
        """Mean tokens of the policy's sampled answers; None where there are none, or no tokenizer."""
        rows = read_rows(trial.path / "samples.jsonl")
        answers = [row["policy"] for row in rows if isinstance(row.get("policy"), str)]
        if not answers or (tokenizer := self._tokenizer(trial)) is None:
            return None
        return sum(len(tokenizer.encode(text, add_special_tokens=False)) for text in answers) / len(answers)

    def _tokenizer(self, trial: Trial) -> Any:
        path = trial.path / "final" / "tokenizer.json"
        model = trial.facts.get("model")
        name = model.get("name") if isinstance(model, Mapping) else None
        try:
            key = str(name), path.stat().st_size
        except OSError:
            return None
        if key not in self._tokenizers:
            self._tokenizers[key] = _load(path)
        return self._tokenizers[key]


def _load(path: Path) -> Any:
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(str(path))
    except Exception:  # what the library raises has no class of its own; a torn file is one that is not there
        return None
