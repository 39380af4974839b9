"""A page on which people say which of two answers is better, without knowing whose they are; and their votes."""

import base64
import gzip
import json
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dpo_lab.data.types import Message
from dpo_lab.runtime.files import atomic_write, digest, filled, write_json

HERE = Path(__file__).parent
PAGE, KEY = "blind.html", "blind_key.json"
CHOICES = ("left", "right", "tie")


@dataclass(frozen=True)
class Match:
    """Two answers to a prompt.

    Attributes:
        prompt: key of the prompt.
        conversation: what was answered.
        names: whose the answers are.
        answers: their texts, as they came.
    """

    prompt: str
    conversation: tuple[Message, ...]
    names: tuple[str, str]
    answers: tuple[str, str]

    @property
    def same(self) -> bool:
        """Nobody can prefer one to the other."""
        return self.answers[0] == self.answers[1]


@dataclass(frozen=True)
class Shown:
    """A match as the page has it; `turned` shows the second's answer on the left."""

    match: Match
    turned: bool

    @property
    def left_right(self) -> tuple[str, str]:
        """The texts as they stand."""
        first, second = self.match.answers
        return (second, first) if self.turned else (first, second)

    @property
    def id(self) -> str:
        """A function of what the rater sees, and so of nothing else."""
        return digest(json.dumps(_messages(self.match)), *self.left_right)[:12]


def arrange(matches: Sequence[Match], seed: int) -> list[Shown]:
    """The matches in a random order, each contestant as often left as right.

    Of two contestants each is left in half of their matches. Where their number is odd, the one over goes to whom it
    makes up for another one: in all matches together nobody's lefts and rights differ by more than one.
    """
    rng = random.Random(seed)
    of_pair: dict[tuple[str, str], list[Match]] = {}
    for match in matches:
        of_pair.setdefault(match.names, []).append(match)
    extra = _oriented([names for names, found in of_pair.items() if len(found) % 2], rng)
    shown = []
    for names, found in of_pair.items():
        turned = [False, True] * (len(found) // 2) + [extra.get(names, False)] * (len(found) % 2)
        rng.shuffle(turned)
        shown += [Shown(match, way) for match, way in zip(found, turned, strict=True)]
    rng.shuffle(shown)
    return shown


def _oriented(edges: Iterable[tuple[str, str]], rng: random.Random) -> dict[tuple[str, str], bool]:
    """For each edge whether it is turned, so that at no point more than one edge more goes out than comes in.

    Trails are followed to their ends, those that have to end somewhere first (Hierholzer 1873).
    """
    left = list(edges)
    rng.shuffle(left)
    turned: dict[tuple[str, str], bool] = {}
    while left:
        degree = Counter(name for edge in left for name in edge)
        at = rng.choice([name for name, n in degree.items() if n % 2] or [left[0][0]])
        while edge := next((e for e in left if at in e), None):
            left.remove(edge)
            turned[edge] = edge[1] == at
            at = edge[0] if turned[edge] else edge[1]
    return turned


def write_blind(folder: Path, shown: Sequence[Shown]) -> str:
    """Write the page and, in a file of its own, whose answers it shows; returns what the page is called in votes.

    No text of the data is read as HTML, and nothing in the page says who gave an answer.

    Raises:
        OutputError: they cannot be written.
    """
    items = {s.id: [s.id, _messages(s.match), *s.left_right] for s in shown}  # what looks alike is asked once
    page = digest(*items)
    data = gzip.compress(json.dumps({"page": page, "items": [*items.values()]}).encode(), mtime=0)
    parts = {
        "css": (HERE / "blind.css").read_text(encoding="utf-8"),
        "js": (HERE / "blind.js").read_text(encoding="utf-8"),
        "data": base64.b64encode(data).decode(),
    }
    key: dict[str, list[dict[str, str]]] = {}
    for s in shown:
        left, right = reversed(s.match.names) if s.turned else s.match.names
        key.setdefault(s.id, []).append({"prompt": s.match.prompt, "left": left, "right": right})
    write_json(folder / KEY, {"page": page, "items": key})
    atomic_write(folder / PAGE, filled((HERE / "blind.html").read_text(encoding="utf-8"), parts))
    return page


def _messages(match: Match) -> list[list[str]]:
    """Roles and texts; what an assistant called is shown as JSON."""
    said = []
    for message in match.conversation:
        calls = message.get("tool_calls")
        said.append([message["role"], message["content"] + (f"\n{json.dumps(calls)}" if calls else "")])
    return said
