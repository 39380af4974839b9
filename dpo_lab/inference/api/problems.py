"""What goes wrong with a request, in the form that clients of OpenAI's API understand."""

from collections.abc import Sequence
from typing import Any

SHOWN = 3  # errors of one body
UNKNOWN = "This server does not take it. Leave it out"


class Problem(Exception):
    """An error that the client gets to see.

    Args:
        status: of HTTP.
        message: what is wrong and what to do.
        param: the part of the body that is wrong.
        code: a word for programs, such as model_not_found.
    """

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code

    def body(self) -> dict[str, Any]:
        """As JSON."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def of_validation(errors: Sequence[Any]) -> Problem:
    """What pydantic found wrong with a body: the first few errors, and where the first of them is."""
    found = [_said(error) for error in errors]
    more = f" And {len(found) - SHOWN} more." if len(found) > SHOWN else ""
    return Problem(400, " ".join(text for _, text in found[:SHOWN]) + more, param=found[0][0] or None)


def _said(error: dict[str, Any]) -> tuple[str, str]:
    where = ".".join(str(part) for part in error["loc"] if part != "body")
    if error["type"] == "json_invalid":
        return "", f"The body is not JSON: {error.get('ctx', {}).get('error', error['msg'])}."
    if not where and error["type"] in ("missing", "model_attributes_type"):
        return "", "The body must be a JSON object, sent with the header content-type: application/json."
    text = UNKNOWN if error["type"] == "extra_forbidden" else error["msg"].removeprefix("Value error, ")
    return where, f"{where}: {text}." if where else f"{text}."
