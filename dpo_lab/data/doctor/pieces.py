"""Token ids as readers see them: text where the bytes of one or several tokens make characters."""

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from dpo_lab.data.templates import Template

LONGEST = 8  # tokens that make one character, at most
JOINERS = "\u200c\u200d\ufe0e\ufe0f"  # invisible, but part of emoji and of Persian words


@dataclass(frozen=True)
class Piece:
    """Tokens that make whole characters together; nearly always one."""

    ids: tuple[int, ...]
    text: str
    special: bool


class Pieces:
    """The texts of a tokenizer's tokens."""

    def __init__(self, template: Template) -> None:
        tokenizer: Any = template.tokenizer
        self._tokenizer = tokenizer
        self._added = {i: token.content for i, token in tokenizer.added_tokens_decoder.items()}
        self._special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
        self._special |= set(tokenizer.all_special_ids)
        backend = getattr(tokenizer, "backend_tokenizer", None)
        self._byte_level = backend is not None and "ByteLevel" in repr(backend.decoder)

    def is_special(self, token: int) -> bool:
        """Whether a token stands for no text: bos, eos, the marks of turns."""
        return token in self._special

    def content(self, token: int) -> bytes:
        """What a token stands for; not always whole characters."""
        if token in self._added:
            return self._added[token].encode("utf-8", "surrogatepass")
        name = self._tokenizer.convert_ids_to_tokens(token)
        if isinstance(name, bytes):
            return name
        if name is None:
            return f"[{token}]".encode()
        if self._byte_level:
            known = _bytes_of()
            if all(c in known for c in name):
                return bytes(known[c] for c in name)
        elif len(name) == 6 and name.startswith("<0x") and name.endswith(">"):
            return bytes([int(name[3:5], 16)])
        return name.replace("\u2581", " ").encode("utf-8", "surrogatepass")

    def text(self, token: int) -> str | None:
        """The characters of one token; None where it holds a part of one."""
        return whole(self.content(token))

    def group(self, ids: Sequence[int]) -> Iterator[Piece]:
        """Pieces in order. Bytes that never become a character are shown as U+FFFD."""
        start = 0
        while start < len(ids):
            stop, content = start + 1, self.content(ids[start])
            text = whole(content)
            while text is None and stop < len(ids) and stop - start < LONGEST and not self.is_special(ids[stop]):
                content += self.content(ids[stop])
                text, stop = whole(content), stop + 1
            if text is None:
                text, stop = self.content(ids[start]).decode("utf-8", "replace"), start + 1
            yield Piece(tuple(ids[start:stop]), text, self.is_special(ids[start]))
            start = stop


def whole(content: bytes) -> str | None:
    """UTF-8 as text; None where it begins or ends within a character."""
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        return None


def visible(text: str, *, breaks: bool = True) -> str:
    """A text in which nothing acts on a terminal or hides: control characters are written as their escapes.

    Args:
        text: any.
        breaks: show a line break as a sign and a break; else as the sign alone.
    """
    if text.isascii() and text.isprintable():
        return text
    shown = []
    for c in text:
        if c == "\n":
            shown.append("⏎\n" if breaks else "⏎")
        elif c == "\t":
            shown.append("⇥   ")
        elif unicodedata.category(c) in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp") and c not in JOINERS:
            shown.append(c.encode("unicode_escape").decode())
        else:
            shown.append(c)
    return "".join(shown)


@cache
def _bytes_of() -> dict[str, int]:
    """The letters that byte-level vocabularies write bytes with: printable ones as they are, others from U+0100 on."""
    plain = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    moved = [b for b in range(256) if b not in plain]
    return {chr(b): b for b in plain} | {chr(0x100 + i): b for i, b in enumerate(moved)}
