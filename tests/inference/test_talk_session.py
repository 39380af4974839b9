import codecs
import os
import pty
import re
import select
import signal
import struct
import sys
import time
import traceback
from collections.abc import Iterator
from fcntl import ioctl
from pathlib import Path
from termios import TIOCSWINSZ
from typing import Any

import pytest
from doors import Results, door_of, run_words
from tiny import write_tiny_model

from dpo_lab.inference.talk.conversation import Conversation


def plain(output: str) -> str:
    return re.sub(r"\x1b\[[0-?]*[ -/]*[@-~]|\x01|\x02", "", output)


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose greedy answers go on and on."""
    return write_tiny_model(tmp_path_factory.mktemp("endless") / "model", max_position_embeddings=200_000)


class Session:
    """The chat in a child with a terminal of its own, and what it wrote there."""

    def __init__(self, lab: Results, *words: str, width: int = 100) -> None:
        job = door_of("chat", lab, *words)
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid, self.terminal = pty.fork()
        if self.pid == 0:
            _talk(job, width)
        ioctl(self.terminal, TIOCSWINSZ, struct.pack("HHHH", 30, width, 0, 0))
        self.seen, self.read = "", b""
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def until(self, pattern: str, seconds: float = 60.0) -> str:
        """What came since the last call, up to and with a pattern."""
        end = time.monotonic() + seconds
        while not (found := re.search(pattern, plain(self.seen), re.DOTALL)):
            ready, _, _ = select.select([self.terminal], [], [], max(0.0, end - time.monotonic()))
            try:
                data = os.read(self.terminal, 65536) if ready else b""
            except OSError:  # the other side is closed
                data = b""
            assert data, f"no {pattern!r} in:\n{plain(self.seen)}"
            self.read += data
            self.seen += self.decoder.decode(data)
        before, self.seen = self.seen, ""
        assert found
        return before

    def type(self, text: str) -> None:
        os.write(self.terminal, text.encode())

    def interrupt(self, text: str) -> None:
        """Ctrl-C after some text: Python overlooks one that comes before it waits for keys."""
        self.type(text)
        self.until(f"{text}$")
        time.sleep(0.2)
        self.type("\x03")

    def ask(self, text: str, pattern: str = "") -> str:
        """Type a line; what came up to the next prompt."""
        self.type(f"{text}\r")
        return self.until(pattern + r"(?s:.*)\n\r?> $")

    def end(self) -> int:
        """The exit code, once everything is read."""
        while select.select([self.terminal], [], [], 60)[0]:
            try:
                self.read += os.read(self.terminal, 65536)
            except OSError:
                break
        _, status = os.waitpid(self.pid, 0)
        os.close(self.terminal)
        return os.waitstatus_to_exitcode(status)


def _talk(job: tuple[Any, Any, list[str]], width: int) -> None:
    """In the child: what the door does, with the terminal as stdin and stdout."""
    code = 1
    try:
        import torch

        from dpo_lab.inference.chat import chat

        torch.set_num_threads(1)
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.environ |= {"TERM": "xterm-256color", "COLUMNS": str(width), "LINES": "30"}
        sys.stdin = sys.__stdin__ = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
        sys.stdout = sys.__stdout__ = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        sys.stderr = sys.__stderr__ = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        config, tree, given = job
        chat(config, tree, Path(), given=given)
        sys.stdout.flush()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


@pytest.fixture
def sessions(lab: Results) -> Iterator[list[Session]]:
    opened: list[Session] = []
    yield opened
    for session in opened:
        try:
            os.kill(session.pid, signal.SIGKILL)
            os.waitpid(session.pid, 0)
        except (ProcessLookupError, ChildProcessError):
            pass


def test_a_conversation_in_a_terminal(lab: Results, sessions: list[Session], tmp_path: Path) -> None:
    run = lab.runs[0]
    session = Session(lab, run_words(run), "generation=greedy", "generation.max_new_tokens=24")
    sessions.append(session)
    start = session.until(r"\n\r?> $")
    assert "reference and policy" in plain(start)
    assert "\x1b[?2004h" in start, "the terminal is asked to mark what is pasted"

    output = session.ask("Was ist 中文?", "tokens")
    assert any("reference" in line and f"policy ({run.name})" in line for line in plain(output).splitlines())
    assert "\x1b[?25l" in output, "it is drawn while it grows"
    assert "\x1b[?25h" in output, "and the cursor comes back"
    assert re.search(r"\d+ tokens, \d+ tokens/s", plain(output))

    session.type("\x1b[200~first line\nsecond 行\x1b[201~")
    session.ask("", "tokens")
    assert "Did you mean /temp?" in plain(session.ask("/tmp 3"))
    assert "policy" in plain(session.ask("/only policy"))
    session.type("a line \\\r")
    session.until(r"\.\.\. $")
    only = plain(session.ask("and one more", "tokens"))
    assert "reference" not in only
    session.type('"""/quit\r')
    session.until(r"\.\.\. $")
    session.ask('is no command here"""', "tokens")
    too_long = plain(session.ask("x" * 600, "room for"))
    assert "room for 488" in re.sub(r"\s+", " ", too_long)
    session.ask(f"/save {tmp_path / 't.json'}", "saved")
    session.type("/quit\r")
    assert session.end() == 0

    saved = Conversation.load(tmp_path / "t.json")
    assert [turn.user for turn in saved.turns] == [
        "Was ist 中文?", "first line\nsecond 行", "a line \nand one more", "/quit\nis no command here"
    ]  # fmt: skip
    assert [len(turn.answers) for turn in saved.turns] == [2, 2, 1, 1]


def test_ctrl_c_stops_an_answer_and_at_the_prompt_the_second_leaves(
    lab: Results, sessions: list[Session], endless: Path
) -> None:
    words = "model=hf", f"model.path={endless}", "generation=greedy", "generation.max_new_tokens=100000"
    session = Session(lab, *words, width=60)
    sessions.append(session)
    session.until(r"\n\r?> $")
    for _ in range(2):
        session.type("Go on.\r")
        session.until(r"reference\s+\S")
        session.type("not shown")
        session.type("\x03")
        output = session.until(r"stopped(?s:.*)\n\r?> $")
        assert "^C" not in plain(output)
    session.interrupt("half a quest")
    session.until(r"once more leaves(?s:.*)\n\r?> $")
    session.ask("/temp", "Temperature 0")
    session.interrupt("x")
    session.until(r"once more leaves(?s:.*)\n\r?> $")
    session.interrupt("y")
    assert session.end() == 0


def test_ctrl_d_leaves(lab: Results, sessions: list[Session]) -> None:
    session = Session(lab, "model=hf", f"model.path={lab.model}")
    sessions.append(session)
    session.until(r"\n\r?> $")
    session.type("\x04")
    assert session.end() == 0
    assert b"Traceback" not in session.read
