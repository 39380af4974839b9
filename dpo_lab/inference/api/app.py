"""The web application: OpenAI's chat API over the models of a stage."""

from collections.abc import AsyncIterator
from typing import Any

from dpo_lab.inference.api.front import Front, Taken
from dpo_lab.inference.api.guard import Guard
from dpo_lab.inference.api.orders import Ending
from dpo_lab.inference.api.problems import Problem, of_validation
from dpo_lab.inference.api.replies import DONE, Reply, event
from dpo_lab.inference.api.requests import ChatRequest

PATHS = "GET /v1/models, POST /v1/chat/completions and GET /health"


def make_app(front: Front, key: str | None) -> Any:
    """The application for an ASGI server.

    Args:
        front: answers.
        key: what clients must send; None lets everyone in.
    """
    from fastapi import FastAPI, Request
    from starlette.responses import JSONResponse, StreamingResponse

    app = FastAPI(title="dpo_lab", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(Guard, key=key)
    _add_handlers(app)

    @app.get("/health")
    async def health() -> dict[str, Any]:
        return {"status": "ok", **front.worker.load()}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": front.models()}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        return front.model(name)

    @app.post("/v1/chat/completions", response_model=None)
    async def chat(body: ChatRequest, request: Request) -> JSONResponse | StreamingResponse:
        taken = front.take(body)
        headers = {"x-dropped-messages": str(taken.dropped)} if taken.dropped else {}
        if not body.stream:
            return JSONResponse(await _whole(front, taken, request.receive), headers=headers)
        usage = body.stream_options is not None and body.stream_options.include_usage
        headers |= {"cache-control": "no-cache", "x-accel-buffering": "no"}  # proxies are not to collect the chunks
        events = _events(front, taken, request.receive, usage=usage)
        return StreamingResponse(events, media_type="text/event-stream", headers=headers)

    return app


async def _whole(front: Front, taken: Taken, receive: Any) -> dict[str, Any]:
    """All answers, once they have ended."""
    texts = [""] * len(taken.order.tickets)
    endings: dict[int, Ending] = {}
    async with front.answering(taken, receive) as order:
        async for place, news in order.news():
            if isinstance(news, Ending):
                endings[place] = news
            else:
                texts[place] += news
    return Reply(taken.model, taken.prompt_tokens).whole(texts, [endings[i] for i in range(len(texts))])


async def _events(front: Front, taken: Taken, receive: Any, *, usage: bool) -> AsyncIterator[str]:
    """The same as server-sent events. What goes wrong on the way is one of them, and the last."""
    reply, endings = Reply(taken.model, taken.prompt_tokens), []
    async with front.answering(taken, receive) as order:
        for i in range(len(order.tickets)):
            yield event(reply.chunk(i, "", first=True))
        try:
            async for place, news in order.news():
                if isinstance(news, Ending):
                    endings.append(news)
                yield event(reply.chunk(place, news))
        except Problem as e:
            yield event(e.body())
            return
    if usage:
        yield event(reply.last(endings))
    yield DONE


def _add_handlers(app: Any) -> None:
    """Errors in OpenAI's form, whoever raises them."""
    from fastapi import Request
    from fastapi.exceptions import RequestValidationError
    from starlette.exceptions import HTTPException
    from starlette.responses import JSONResponse

    def response(problem: Problem) -> JSONResponse:
        return JSONResponse(problem.body(), problem.status)

    @app.exception_handler(Problem)
    async def known(request: Request, error: Problem) -> JSONResponse:
        return response(error)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        return response(of_validation(error.errors()))

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> JSONResponse:
        there = f" There are {PATHS}." if error.status_code in (404, 405) else ""
        return response(Problem(error.status_code, f"{request.method} {request.url.path}: {error.detail}.{there}"))

    @app.exception_handler(Exception)
    async def unforeseen(request: Request, error: Exception) -> JSONResponse:
        return response(Problem(500, f"{type(error).__name__}: {error}"))
