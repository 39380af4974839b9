"""Who may ask."""

import hmac
from collections.abc import Iterable
from typing import Any

from dpo_lab.inference.api.problems import Problem

OPEN = "/health"  # says nothing but that the server is there


class Guard:
    """An ASGI middleware that lets requests with the key through, and all of them where there is none."""

    def __init__(self, app: Any, key: str | None) -> None:
        self.app = app
        self._expected = None if key is None else key.encode()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Let the request through, or refuse it."""
        if scope["type"] != "http" or scope["path"] == OPEN or self._lets_in(scope["headers"]):
            await self.app(scope, receive, send)
            return
        from starlette.responses import JSONResponse

        problem = Problem(
            401, "The header Authorization: Bearer KEY is missing, or its key is wrong.", code="invalid_api_key"
        )
        refusal = JSONResponse(problem.body(), problem.status, headers={"www-authenticate": "Bearer"})
        await refusal(scope, receive, send)

    def _lets_in(self, headers: Iterable[tuple[bytes, bytes]]) -> bool:
        if self._expected is None:
            return True
        scheme, _, given = dict(headers).get(b"authorization", b"").partition(b" ")
        return scheme.lower() == b"bearer" and hmac.compare_digest(given.strip(), self._expected)
