"""Text of a model or a stranger, made safe to show: nothing in it can move the cursor, colour or take over a terminal."""

import json
import re
from typing import Any

from rich.text import Text

STRINGS = r"(?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)"  # titles, links, clipboards
CONTROLS = r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"  # colours, cursor, screen, modes
SHORT = r"\x1b[ -/]*[0-~]"  # reset, character sets
ESCAPES = re.compile(f"{STRINGS}|{CONTROLS}|{SHORT}")
BREAKS = re.compile(r"\r\n|[\r\x0b\x0c\x85\u2028\u2029]")
# C0 and C1 but for tab and newline, and what turns the direction of the text around it.
UNSEEN = re.compile(r"[\x00-\x08\x0e-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff]")
LONE = re.compile(r"[\ud800-\udfff]")  # halves of a character: no file and no terminal takes them


def printable(text: str) -> str:
    """The text without escape sequences and control characters; newlines, tabs and brackets stay as they are.

    Give it a whole text, not pieces of one: a sequence may begin in one piece and end in the next. Where rich shows it,
    take `shown`: rich reads a bare string with brackets as its markup.
    """
    return whole(UNSEEN.sub("", BREAKS.sub("\n", ESCAPES.sub("", text))))


def shown(text: str, style: str = "") -> Text:
    """The same for rich's console, which takes no markup, links or emoji codes from it."""
    return Text(printable(text), style=style)


def whole(text: str) -> str:
    """The text with a mark in the place of each half of a character, as the shell hands over bytes that are not UTF-8."""
    return LONE.sub("\ufffd", text)


def safe_json(content: Any) -> str:
    """JSON that says the same to a parser and nothing to a terminal: what `printable` takes away stands there by number."""
    text = json.dumps(content, ensure_ascii=False, indent=2)
    return re.sub(f"{UNSEEN.pattern}|{LONE.pattern}", lambda match: f"\\u{ord(match.group()):04x}", text)
