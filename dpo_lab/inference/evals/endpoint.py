"""An OpenAI-compatible chat endpoint, asked through the standard library."""

import json
import os
import time
from dataclasses import dataclass, field
from functools import cached_property
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, OpenerDirector, ProxyHandler, Request, build_opener

from dpo_lab.config.door_schema import Judge
from dpo_lab.inference.talk.clean import printable
from dpo_lab.runtime.errors import ConfigError, LabError

LARGEST = 2**20  # bytes of a reply
QUOTED = 200  # characters of what a server says
STOP = (301, 302, 303, 307, 308, 401, 403, 404, 405)  # no other question would fare better
AGAIN = (408, 409, 425, 429)  # and all from 500 on


class JudgeError(LabError):
    """The endpoint cannot be asked, or nothing that it says is of use."""


class Failed(Exception):
    """A question got no reply.

    Attributes:
        again: whether it may help to ask once more.
        wait: seconds that the server wants to be left alone.
    """

    def __init__(self, reason: str, *, again: bool = True, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.again, self.wait = again, wait


@dataclass
class Endpoint:
    """Where questions go. The key is sent to this address alone, and is in no text that leaves this class."""

    base_url: str
    model: str
    key: str = field(repr=False)
    key_name: str  # the environment variable that it is from
    timeout: float
    tempered: bool = True  # until the server says that it takes no temperature

    @classmethod
    def of(cls, judge: Judge) -> "Endpoint":
        """The endpoint of the configuration, with the key from the environment.

        Raises:
            ConfigError: it is not one that can be asked.
        """
        assert judge.base_url is not None
        url = urlsplit(judge.base_url)
        if url.scheme not in ("http", "https") or not url.hostname:
            raise ConfigError(
                "judge.base_url must begin with http:// or https:// and a host, e.g. http://127.0.0.1:8000/v1."
            )
        if url.username is not None or url.query or url.fragment:
            raise ConfigError(
                "judge.base_url must be a plain address, without user, query or fragment. A key belongs into the "
                "environment variable that judge.api_key_env names."
            )
        if judge.model is None:
            raise ConfigError("judge.base_url needs judge.model: what the endpoint calls the judge.")
        key = os.environ.get(judge.api_key_env, "").strip()
        if not (key.isascii() and key.isprintable()) or " " in key:
            raise ConfigError(
                f"The key in the environment variable {judge.api_key_env} holds characters that no key has."
            )
        return cls(judge.base_url.rstrip("/"), judge.model, key, judge.api_key_env, judge.timeout)

    def ask(self, messages: list[dict[str, str]]) -> str:
        """What the model answers.

        Raises:
            Failed: this question got no reply.
            JudgeError: no question would.
        """
        body: dict[str, Any] = {"model": self.model, "messages": messages}
        if self.tempered:
            body["temperature"] = 0.0
        headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "dpo_lab"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        request = Request(f"{self.base_url}/chat/completions", json.dumps(body).encode(), headers, method="POST")
        deadline = time.monotonic() + self.timeout
        try:
            with self._opener.open(request, timeout=self.timeout) as response:
                raw = _read(response, deadline)
        except HTTPError as e:
            with e:
                return self._refused(e, messages)
        except TimeoutError as e:
            raise self._late() from e
        except (OSError, HTTPException, ValueError) as e:  # ValueError: an address that http.client refuses
            if isinstance(getattr(e, "reason", None), TimeoutError):
                raise self._late() from e
            raise Failed(self.clean(str(getattr(e, "reason", e)) or type(e).__name__)) from e
        return self.clean(_content(raw), whole=True)

    def clean(self, text: str, *, whole: bool = False) -> str:
        """The text without the key, which some servers repeat, and without what a terminal would obey.

        It is cut to a line's length unless it is wanted as a whole.
        """
        text = text.replace(self.key, "***") if len(self.key) > len("TIE") else text  # no key is that short
        return text if whole else " ".join(printable(text).split())[:QUOTED]

    def _refused(self, e: HTTPError, messages: list[dict[str, str]]) -> str:
        """What an error's status means for this question and the others."""
        try:
            said = self.clean(e.read(10_000).decode("utf-8", "replace"))
        except (OSError, HTTPException):
            said = ""
        if e.code == 400 and self.tempered and "temperature" in said:
            self.tempered = False
            return self.ask(messages)
        reason = f"HTTP {e.code}{f': {said}' if said else ''}"
        if e.code in STOP:
            raise JudgeError(
                f"{self.base_url} does not serve as a judge. {self._advice(e.code)} It says: {reason}"
            ) from e
        wait = e.headers.get("Retry-After", "") if e.headers else ""
        raise Failed(
            reason,
            again=e.code in AGAIN or e.code >= 500,
            wait=float(wait) if wait.isascii() and wait.isdigit() else 0.0,
        ) from e

    def _advice(self, status: int) -> str:
        if status in (401, 403):
            what = "is not accepted" if self.key else "is not set"
            return f"The key in the environment variable {self.key_name} (judge.api_key_env) {what}."
        if status in (404, 405):
            return f"There is no model {self.model} (judge.model), or no /chat/completions under judge.base_url."
        return "It sends questions on to another address; give that one as judge.base_url."

    def _late(self) -> Failed:
        return Failed(f"no answer within {self.timeout:g} s (judge.timeout)")

    @cached_property
    def _opener(self) -> OpenerDirector:
        """Without redirects, which would take the key along; to this machine without a proxy."""
        host = urlsplit(self.base_url).hostname or ""
        here = host in ("localhost", "::1") or host.startswith("127.")
        return build_opener(_Stay, *([ProxyHandler({})] if here else []))


class _Stay(HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        """None: the status is an error like others."""


def _read(response: Any, deadline: float) -> bytes:
    """The body, in time: a server that sends a byte now and then does not hold a question up."""
    parts, size = [], 0
    while part := response.read1(65536):
        parts.append(part)
        size += len(part)
        if time.monotonic() > deadline:
            raise TimeoutError
        if size > LARGEST:
            raise Failed("a reply of more than a megabyte")
    return b"".join(parts)


def _content(raw: bytes) -> str:
    """The message of a chat completion."""
    try:
        choice = json.loads(raw)["choices"][0]
        content = choice["message"]["content"]
    except (ValueError, LookupError, TypeError, RecursionError) as e:
        raise Failed("a reply that is no chat completion") from e
    if not isinstance(content, str):
        raise Failed("a chat completion without text")
    if choice.get("finish_reason") == "length":
        raise Failed("a reply that was cut before its end")
    return content
