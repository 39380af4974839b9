"""An OpenAI-compatible endpoint on this machine, which answers as a test wants it."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MARKED = ("conversation", "answer A", "answer B")


@dataclass
class Reply:
    """What the server sends, and how."""

    body: str | dict[str, Any] = ""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    dribble: float = 0.0  # seconds between bytes


Behaviour = Callable[["Asked"], str | Reply]


@dataclass(frozen=True)
class Asked:
    """A request as it came."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]

    @property
    def parts(self) -> dict[str, str]:
        """What stands between the marks of the first message of the user."""
        text = self.body["messages"][1]["content"]
        mark = text[1:].partition(" ")[0]
        found = {}
        for name in MARKED:
            _, _, rest = text.partition(f"[{mark} {name} begins]\n")
            found[name], end, _ = rest.partition(f"\n[{mark} {name} ends]")
            assert end
        return found


@dataclass
class Server:
    url: str
    asked: list[Asked] = field(default_factory=list)


@contextmanager
def serving(behave: Behaviour) -> Iterator[Server]:
    """Answer requests: a text is the message of a chat completion."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            asked = Asked(self.path, dict(self.headers), json.loads(content or "{}"))
            server.asked.append(asked)
            reply = behave(asked)
            if isinstance(reply, str):
                reply = Reply(completion(reply))
            body = (reply.body if isinstance(reply.body, str) else json.dumps(reply.body)).encode()
            try:
                self.send_response(reply.status)
                for name, value in ({"Content-Length": str(len(body))} | reply.headers).items():
                    self.send_header(name, value)
                self.end_headers()
                for piece in [bytes([b]) for b in body] if reply.dribble else [body]:
                    self.wfile.write(piece)
                    self.wfile.flush()
                    if reply.dribble and over.wait(reply.dribble):
                        return
            except OSError:  # who asked has gone
                pass

        do_POST = do_GET

        def log_message(self, *_: Any) -> None:
            pass

    over = threading.Event()
    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    server = Server(f"http://127.0.0.1:{http.server_address[1]}/v1")
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        over.set()
        http.shutdown()
        http.server_close()


def completion(text: str, **choice: Any) -> dict[str, Any]:
    """A chat completion with this message."""
    message = {"role": "assistant", "content": text}
    return {"id": "x", "object": "chat.completion", "choices": [{"index": 0, "message": message} | choice]}


def always(text: str) -> Behaviour:
    """Whatever it is asked."""
    return lambda asked: text


def longer(asked: Asked) -> str:
    """The answer with more characters is the better one."""
    a, b = (len(asked.parts[name]) for name in MARKED[1:])
    return f"A has {a} characters and B {b}.\n\n**Verdict: {'A' if a > b else 'B' if b > a else 'TIE'}**"
