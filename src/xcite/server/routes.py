"""What each address answers, and how a refusal is worded. Needs the extra 'serve'.

A request's way: `Guard` -> limits -> `read_uploads` -> `Service` -> JSON.
"""

import asyncio
import contextlib
import json
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

import xcite
from xcite.control_characters import writable_json
from xcite.runtime.predictor import Predictor
from xcite.server.answers import Answers, Problem
from xcite.server.batching import QueueFullError
from xcite.server.decoders import DecodingStoppedError
from xcite.server.limits import Limits
from xcite.server.metrics import Metrics
from xcite.server.pages import FILES, docs_page, page_file
from xcite.server.request_bodies import UploadError
from xcite.server.service import Service
from xcite.server.uploads import read_uploads

Result = TypeVar("Result")

REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"model": Problem, "description": text}
    for status, text in {
        400: "The form, the JSON or the compression of the body is malformed.",
        401: "The token is missing or wrong.",
        408: "The request did not arrive in time.",
        413: "Too many bytes, parts, files or pixels.",
        415: "Neither a picture nor a form nor JSON, or an unknown compression.",
        421: "The server does not answer under this name.",
        422: "No picture could be read; each entry says why.",
        429: "The queue is full, or that of heavy pictures; Retry-After says when to come back.",
        503: "No answer in time, or the server is stopping.",
    }.items()
}
_TEXT = {"type": "string", "description": "base64, or a data: URL"}
_ENTRY = {
    "type": "object",
    "properties": {"image": _TEXT, "name": {"type": "string"}},
    "required": ["image"],
}
_LIST = {"type": "array", "items": {"anyOf": [_TEXT, _ENTRY]}}
BODY = {
    "description": "Bodies with Content-Encoding gzip or deflate are understood.",
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["file"],
                "properties": {
                    "file": {"type": "array", "items": {"type": "string", "format": "binary"}}
                },
            }
        },
        "image/*": {"schema": {"type": "string", "format": "binary"}},
        "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
        "application/json": {
            "schema": {
                "anyOf": [
                    _ENTRY,
                    {"type": "object", "properties": {"images": _LIST}, "required": ["images"]},
                    _LIST,
                ]
            }
        },
    },
}


class Routes:
    """The addresses of one server; `app` is the FastAPI application that has them all.

    Args:
        others: says what is wrong with other processes of the same server; None where all is well.
    """

    def __init__(
        self,
        predictor: Predictor,
        limits: Limits,
        metrics: Metrics,
        others: Callable[[], str | None] = lambda: None,
    ) -> None:
        self.predictor = predictor
        self.limits = limits
        self.metrics = metrics
        self._others = others
        self.service = Service(predictor, limits, metrics)
        self._timers: set[asyncio.Timeout] = set()
        self._end = math.inf  # when the last request must be answered, in the loop's time
        self.app = FastAPI(
            title="Xcite",
            version=xcite.__version__,
            description="Names what is on a picture and shows where the model looked.",
            docs_url=None,  # FastAPI's pages load scripts from outside addresses
            redoc_url=None,
            lifespan=self._lifespan,
        )
        add = self.app.add_api_route
        add(
            "/predict",
            self.predict,
            methods=["POST"],
            summary="Name what is on one or several pictures",
            response_model=Answers,
            response_description="One entry per file.",
            responses=REFUSALS,
            openapi_extra={"requestBody": BODY},
        )
        stopped: dict[int | str, dict[str, Any]] = {503: {"model": Problem}}
        add("/health", self.health, summary="Sign of life", responses=stopped)
        add("/info", self.info, summary="The model and this server's limits")
        add(
            "/metrics",
            self.prometheus,
            summary="Prometheus metrics",
            response_class=PlainTextResponse,
        )
        add("/docs", self.docs, include_in_schema=False)
        for path, (name, media) in FILES.items():
            add(path, _page(name, media), include_in_schema=False)
        for kind, handler in _HANDLERS.items():
            self.app.add_exception_handler(kind, handler)

    @contextlib.asynccontextmanager
    async def _lifespan(self, _: FastAPI) -> AsyncIterator[None]:
        await asyncio.to_thread(self.service.warm_up)
        yield
        await asyncio.to_thread(self.service.close)

    def stop(self, seconds: float) -> None:
        """Give requests that are under way so many seconds at most."""
        self._end = asyncio.get_running_loop().time() + seconds
        for timer in (timer for timer in self._timers if not timer.expired()):
            timer.reschedule(min(timer.when() or self._end, self._end))

    @contextlib.asynccontextmanager
    async def _limited(self) -> AsyncIterator[contextlib.ExitStack]:
        """Raise TimeoutError when a request has taken its time; yields what it holds till then."""
        end = asyncio.get_running_loop().time() + self.limits.timeout
        async with asyncio.timeout_at(min(end, self._end)) as timer:
            with contextlib.ExitStack() as held:
                self._timers.add(timer)
                held.callback(self._timers.discard, timer)
                yield held

    async def predict(
        self,
        request: Request,
        top: int = Query(5, ge=1, le=100_000, description="classes per picture"),
        attention: bool = Query(False, description="add where the classifier looked"),
    ) -> Response:
        """Files of a multipart form (any field name), one picture as the body, or base64 in JSON.

        200 when at least one picture was answered; a picture that was not carries an error.
        """
        limits, service = self.limits, self.service
        reading = True
        try:
            async with self._limited() as held:
                with service.batcher.admit(1):
                    pass  # a full queue is told before the body is read
                uploads = await read_uploads(
                    request,
                    max_bytes=limits.max_bytes,
                    max_files=limits.max_files,
                    silence=limits.silence,
                    count=held.enter_context(service.hold()),
                )
                reading = False
                held.enter_context(service.batcher.admit(len(uploads)))
                answers = await _while_wanted(
                    request, service.answers(uploads, top=top, attention=attention)
                )
        except ClientDisconnect:
            return _problem(400, "the connection was closed before the request was answered")
        except TimeoutError:
            if reading:
                return _problem(408, f"the request did not arrive within {limits.timeout:g} s")
            message = f"no answer within {limits.timeout:g} s"
            if self._end < math.inf:
                message = "the server is stopping"
            return _problem(503, message, **{"Retry-After": "1"})
        good = any(answer.error is None for answer in answers)
        content: dict[str, Any] = {"pictures": [a.model_dump(exclude_none=True) for a in answers]}
        if not good:
            content["error"] = answers[0].error
        return _Answer(content, status_code=200 if good else 422)

    async def health(self) -> Response:
        if trouble := await self.service.trouble() or self._others():
            return _problem(503, trouble)
        return JSONResponse({"status": "ok"})

    async def info(self) -> dict[str, Any]:
        predictor, limits = self.predictor, self.limits
        classes = int(predictor.info.architecture["num_classes"])
        return {
            "version": xcite.__version__,
            "model": predictor.info.model_dump(
                mode="json", exclude={"class_names", "preprocessing", "provenance", "files"}
            ),
            "runtime": predictor.runtime,
            "preprocessing": predictor.preprocessing.model_dump(),
            "classes": [predictor.name(k) for k in range(classes)],
            "limits": {
                "max_bytes": limits.max_bytes,
                "max_pixels": limits.max_pixels,
                "max_files": limits.max_files,
            },
        }

    async def prometheus(self) -> Response:
        media = "text/plain; version=0.0.4; charset=utf-8"
        return Response(self.metrics.text(), media_type=media)

    async def docs(self) -> HTMLResponse:
        return HTMLResponse(docs_page(self.app.openapi()))


async def _while_wanted(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """The result of ``work``, which is cancelled when nobody waits for it any more.

    Raises:
        ClientDisconnect: the connection was closed.
    """

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working, leaving = asyncio.create_task(work), asyncio.create_task(gone())
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()


def _page(name: str, media: str) -> Callable[[], Awaitable[Response]]:
    text = page_file(name)

    async def send() -> Response:
        return Response(text, media_type=media)

    return send


class _Answer(JSONResponse):
    """JSON with the names of files and classes as they are, even where they are no text."""

    def render(self, content: Any) -> bytes:
        text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        return writable_json(text).encode()


def _problem(status: int, message: str, **headers: str) -> JSONResponse:
    return JSONResponse({"error": message}, status_code=status, headers=headers)


async def _http(request: Request, error: HTTPException) -> JSONResponse:
    words = {404: "there is nothing at this address; see /docs"}
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "another method").replace("GET", "GET or HEAD")
        words[405] = f"{request.url.path} does not take {request.method[:20]}; use {allowed}"
    message = words.get(error.status_code, str(error.detail))
    return _problem(error.status_code, message, **(error.headers or {}))


async def _invalid(request: Request, error: RequestValidationError) -> JSONResponse:
    parts = [f"{'.'.join(map(str, e['loc'][1:]))}: {e['msg']}" for e in error.errors()[:5]]
    return _problem(422, "; ".join(parts))


async def _upload(request: Request, error: UploadError) -> JSONResponse:
    return _problem(error.status, error.message, **error.headers)


async def _full(request: Request, error: QueueFullError) -> JSONResponse:
    message = f"the server is busy; try again in {error.retry_after} s"
    return _problem(429, message, **{"Retry-After": str(error.retry_after)})


async def _stopped(request: Request, error: DecodingStoppedError) -> JSONResponse:
    return _problem(503, str(error), **{"Retry-After": "1"})


async def _unforeseen(request: Request, error: Exception) -> JSONResponse:
    number = request.scope["request_id"]
    return _problem(500, f"the server failed on request {number}; its log says why")


_HANDLERS: dict[type[Exception], Any] = {
    HTTPException: _http,
    RequestValidationError: _invalid,
    UploadError: _upload,
    QueueFullError: _full,
    DecodingStoppedError: _stopped,
    Exception: _unforeseen,
}
