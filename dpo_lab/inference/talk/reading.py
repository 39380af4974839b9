"""What the user types: lines that can be edited, text of several lines, and the keys that leave."""

import sys
import termios
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from dpo_lab.inference.talk.clean import whole

PROMPT, MORE = "> ", "... "
QUOTES = '"""'


class Reader:
    """Reads questions at a terminal, by readline where Python has it.

    Args:
        tell: shows a line to the user.
    """

    def __init__(self, tell: Callable[[str], None]) -> None:
        self.tell = tell
        self.warned = False  # by a first Ctrl-C
        with suppress(ImportError):
            import readline

            if "libedit" not in (readline.__doc__ or ""):
                # Python turns it off. With it, a paste of several lines is one text.
                readline.parse_and_bind("set enable-bracketed-paste on")

    def read(self) -> tuple[str, bool] | None:
        """A text, and whether it was put in quotes; None when the user leaves."""
        while True:
            try:
                text, quoted = self._text()
            except EOFError:
                sys.stdout.write("\n")
                return None
            except KeyboardInterrupt:
                sys.stdout.write("\n")
                if self.warned:
                    return None
                self.warned = True
                self.tell("Ctrl-C once more leaves.")
                continue
            except UnicodeDecodeError as e:
                self.tell(f"That is no text in {e.encoding}.")
                continue
            self.warned = False
            if text.strip():
                return whole(text), quoted

    def _text(self) -> tuple[str, bool]:
        line = input(PROMPT)
        if line.lstrip().startswith(QUOTES):
            return self._quoted(line.lstrip().removeprefix(QUOTES)), True
        lines = [line]
        while _goes_on(lines[-1]):
            lines[-1] = lines[-1][:-1]
            lines.append(input(MORE))
        return "\n".join(lines), False

    def _quoted(self, first: str) -> str:
        lines = [first]
        while not lines[-1].rstrip().endswith(QUOTES):
            lines.append(input(MORE))
        lines[-1] = lines[-1].rstrip().removesuffix(QUOTES)
        return "\n".join(lines).strip("\n")


def _goes_on(line: str) -> bool:
    """Whether a line ends with a backslash that is not itself escaped."""
    return (len(line) - len(line.rstrip("\\"))) % 2 == 1


@contextmanager
def silent_keys() -> Iterator[None]:
    """What is typed while an answer comes is not echoed into it; it waits for the next prompt."""
    try:
        before = termios.tcgetattr(sys.stdin.fileno())
    except (termios.error, OSError, ValueError):  # no terminal
        yield
        return
    changed = [*before]
    changed[3] &= ~(termios.ECHO | termios.ECHONL)
    termios.tcsetattr(sys.stdin.fileno(), termios.TCSADRAIN, changed)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin.fileno(), termios.TCSADRAIN, before)
