"""`xcite serve`: a bundle over HTTP.

A request's way: limits -> decode (thread pool) -> predict (one worker, batches across requests)
-> encode. A picture keeps its place in the queue from before it is read until it is answered.
"""

import asyncio
import contextlib
import html
import json
import os
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel, Field
from xcite.deployment.batching import Batcher, QueueFullError
from xcite.deployment.guard import Application, Guard
from xcite.deployment.uploads import Upload, UploadError, declared_bytes, read_uploads

from xcite.errors import XciteError

if TYPE_CHECKING:
    from xcite.deployment.predictor import Predictor

WARM_UP = 5.0  # seconds


@dataclass(frozen=True)
class Limits:
    """What one server takes; everything beyond is refused with a 4xx.

    Attributes:
        max_bytes: of one request's body.
        max_pixels: of one picture, decoded.
        max_files: of one request.
        queue: pictures being read, decoded, waiting and predicted; more get 429.
        held_bytes: bodies held at the same time, all requests together; more get 429.
        batch: most pictures predicted together.
        wait: seconds a picture waits for company.
        timeout: seconds for one request, the reading of its body included.
    """

    max_bytes: int = 16 * 2**20
    max_pixels: int = 50_000_000
    max_files: int = 32
    queue: int = 256
    held_bytes: int = 256 * 2**20
    batch: int = 16
    wait: float = 0.002
    timeout: float = 30.0


class Prediction(BaseModel):
    """A class and its probability."""

    name: str
    probability: float


class Seen(BaseModel):
    """The part of the upright picture the model saw, as fractions of its width and height."""

    left: float
    top: float
    width: float
    height: float


class Attention(BaseModel):
    """Where the classifier looked: last class-attention layer, mean over its heads."""

    rows: int
    columns: int
    values: list[float] = Field(description="row-major, the largest is 1")
    seen: Seen


class PictureAnswer(BaseModel):
    """The answer to one file: predictions, the most probable first, or an error in words."""

    file: str
    predictions: list[Prediction] | None = None
    attention: Attention | None = None
    error: str | None = None


class Answers(BaseModel):
    """One entry per file, in the order sent."""

    pictures: list[PictureAnswer]


class Problem(BaseModel):
    """Why a request was refused, in words; with the files' own errors where there are any."""

    error: str
    pictures: list[PictureAnswer] | None = None


@dataclass(frozen=True)
class _Question:
    pixels: np.ndarray  # uint8 (size, size, C)
    attention: bool


class Metrics:
    """Counters in a registry of their own, so that several servers can live in one process."""

    PATHS = frozenset(
        {"/", "/page.css", "/page.js", "/docs", "/openapi.json"}
        | {"/predict", "/health", "/info", "/metrics"}
    )
    METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"})

    def __init__(self) -> None:
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

        self.registry: CollectorRegistry = CollectorRegistry()
        self.requests = Counter(
            "xcite_requests",
            "Requests answered",
            ["method", "path", "status"],
            registry=self.registry,
        )
        self.seconds = Histogram(
            "xcite_request_seconds",
            "Seconds from a request's headers to its answer",
            ["path"],
            buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
            registry=self.registry,
        )
        self.pictures = Counter(
            "xcite_pictures", "Pictures answered or refused", ["result"], registry=self.registry
        )
        self.batches = Histogram(
            "xcite_batch_pictures",
            "Pictures predicted together",
            buckets=(1, 2, 4, 8, 16, 32, 64),
            registry=self.registry,
        )
        self.waiting = Gauge(
            "xcite_queue_pictures", "Places of the queue in use", registry=self.registry
        )

    def request(self, method: str, path: str, status: int, seconds: float) -> None:
        """Count a request; strange paths and methods share a label, lest anyone grow our memory."""
        path = path if path in self.PATHS else "other"
        method = method if method in self.METHODS else "other"
        self.requests.labels(method, path, str(status)).inc()
        self.seconds.labels(path).observe(seconds)


class Service:
    """Pictures in, answers out; knows nothing of HTTP."""

    def __init__(self, predictor: "Predictor", limits: Limits, metrics: Metrics) -> None:
        self.predictor = predictor
        self.limits = limits
        self.metrics = metrics
        self._held = 0
        self._decoders = ThreadPoolExecutor(
            max_workers=max(2, os.cpu_count() or 1), thread_name_prefix="xcite-decode"
        )
        self.batcher: Batcher[_Question, tuple[np.ndarray, np.ndarray | None]] = Batcher(
            self._answer,
            batch=limits.batch,
            wait=limits.wait,
            places=limits.queue,
            observe=metrics.batches.observe,
        )
        metrics.waiting.set_function(lambda: self.batcher.taken)

    def warm_up(self) -> None:
        """Predict in batches of every size, as far as `WARM_UP` seconds go, the extremes first.

        A runtime prepares itself anew for each size; no request should pay for that.
        """
        preprocessing = self.predictor.preprocessing
        height, width = self.predictor.info.size or (preprocessing.size, preprocessing.size)
        end = time.monotonic() + WARM_UP
        for batch in (1, *range(self.limits.batch, 1, -1)):
            if time.monotonic() > end:
                break
            shape = (batch, preprocessing.channels, height, width)
            self.predictor.run(np.zeros(shape, np.float32))

    def close(self) -> None:
        """Answer what was accepted, then stop."""
        self._decoders.shutdown()
        self.batcher.close()

    @contextlib.contextmanager
    def hold(self, size: int) -> Iterator[None]:
        """Account for a body of ``size`` bytes while it is in memory.

        Raises:
            QueueFullError: too much is held already.
        """
        if self._held and self._held + size > self.limits.held_bytes:
            raise QueueFullError(1)
        self._held += size
        try:
            yield
        finally:
            self._held -= size

    async def answer(self, upload: Upload, *, top: int, attention: bool) -> PictureAnswer:
        """Name what is on one picture; a picture that cannot be read is an answer too."""
        loop = asyncio.get_running_loop()
        try:
            pixels, seen = await loop.run_in_executor(self._decoders, self._decode, upload)
        except XciteError as error:
            self.metrics.pictures.labels("refused").inc()
            # what follows the semicolon is advice to who runs Xcite, not to who sends pictures
            return PictureAnswer(file=upload.name, error=str(error).partition(";")[0])
        future = self.batcher.submit(_Question(pixels, attention))
        probabilities, looked = await asyncio.wrap_future(future)
        self.metrics.pictures.labels("answered").inc()
        order = np.argsort(-probabilities, kind="stable")[:top]
        return PictureAnswer(
            file=upload.name,
            predictions=[
                Prediction(name=self.predictor.name(int(k)), probability=float(probabilities[k]))
                for k in order
            ],
            attention=None if looked is None else _grid(looked, seen),
        )

    def _decode(self, upload: Upload) -> tuple[np.ndarray, Seen]:
        from xcite.data.decoding import decode

        preprocessing = self.predictor.preprocessing
        picture = decode(
            upload.data,
            channels=preprocessing.channels,
            max_pixels=self.limits.max_pixels,
            origin=upload.name,
        )
        pixels = self.predictor.pixels(picture)
        # The square of `size` comes from this many pixels of the picture; the input may be an
        # oblong from its middle.
        square = min(picture.shape[:2]) * preprocessing.crop_ratio
        height, width = (
            square * seen / preprocessing.size / whole
            for seen, whole in zip(pixels.shape[:2], picture.shape[:2], strict=True)
        )
        seen = Seen(left=(1 - width) / 2, top=(1 - height) / 2, width=width, height=height)
        return pixels, seen

    def _answer(self, questions: list[_Question]) -> list[tuple[np.ndarray, np.ndarray | None]]:
        from xcite.deployment.predictor import probabilities

        images = self.predictor.images(np.stack([q.pixels for q in questions]))  # (B, C, H, W)
        outputs = self.predictor.run(images)
        shares = probabilities(outputs["logits"])  # (B, K)
        looked: list[np.ndarray | None] = [None] * len(questions)
        if "class_attention" in outputs:  # (B, layers, heads, 1 + N)
            grid = self.predictor.info.grid(*images.shape[2:])
            # CLS looks at itself first; the last layer is what the classifier hears
            patches = outputs["class_attention"][:, -1, :, 1:].mean(axis=1).reshape(-1, *grid)
            looked = [
                row if question.attention else None
                for row, question in zip(patches, questions, strict=True)
            ]
        return list(zip(shares, looked, strict=True))


def _grid(looked: np.ndarray, seen: Seen) -> Attention:
    scale = max(float(looked.max()), 1e-12)
    values = [round(float(value) / scale, 4) for value in looked.ravel()]
    return Attention(rows=looked.shape[0], columns=looked.shape[1], values=values, seen=seen)


def create_app(
    predictor: "Predictor", limits: Limits | None = None, *, token: str | None = None
) -> Application:
    """The ASGI application: FastAPI behind a `Guard`.

    Raises:
        XciteError: the extra 'serve' is not installed.
    """
    try:
        from fastapi import FastAPI, Query, Request
        from fastapi.exceptions import RequestValidationError
        from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
        from prometheus_client import generate_latest
        from starlette.exceptions import HTTPException
        from starlette.requests import ClientDisconnect
    except ModuleNotFoundError as error:
        raise XciteError(
            f"serving needs {error.name}, which is not installed: pip install 'xcite[serve]'"
        ) from error

    import xcite

    limits = limits or Limits()
    classes = int(predictor.info.architecture["num_classes"])
    metrics = Metrics()
    service = Service(predictor, limits, metrics)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await asyncio.to_thread(service.warm_up)
        yield
        await asyncio.to_thread(service.close)

    app = FastAPI(
        title="Xcite",
        version=xcite.__version__,
        description="Names what is on a picture and shows where the model looked.",
        docs_url=None,  # FastAPI's pages load scripts from outside addresses
        redoc_url=None,
        lifespan=lifespan,
    )

    def problem(status: int, message: str, **headers: str) -> JSONResponse:
        return JSONResponse({"error": message}, status_code=status, headers=headers)

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> JSONResponse:
        words = {404: "there is nothing at this address; see /docs"}
        if error.status_code == 405:
            allowed = (error.headers or {}).get("Allow", "another method")
            words[405] = f"{request.url.path} does not take {request.method[:20]}; use {allowed}"
        message = words.get(error.status_code, str(error.detail))
        return problem(error.status_code, message, **(error.headers or {}))

    @app.exception_handler(RequestValidationError)
    async def _invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        parts = [f"{'.'.join(map(str, e['loc'][1:]))}: {e['msg']}" for e in error.errors()[:5]]
        return problem(422, "; ".join(parts))

    @app.exception_handler(UploadError)
    async def _upload(request: Request, error: UploadError) -> JSONResponse:
        return problem(error.status, error.message)

    @app.exception_handler(QueueFullError)
    async def _full(request: Request, error: QueueFullError) -> JSONResponse:
        message = f"the server is busy; try again in {error.retry_after} s"
        return problem(429, message, **{"Retry-After": str(error.retry_after)})

    @app.exception_handler(Exception)
    async def _unforeseen(request: Request, error: Exception) -> JSONResponse:
        return problem(500, "the server failed on this request; its log says why")

    refusals: dict[int | str, dict[str, Any]] = {
        status: {"model": Problem, "description": text}
        for status, text in {
            400: "The form is malformed.",
            401: "The token is missing or wrong.",
            408: "The request did not arrive in time.",
            413: "Too many bytes or files.",
            415: "Neither a form with files nor a picture.",
            422: "No picture could be read; each entry says why.",
            429: "The queue is full; Retry-After says when to come back.",
            503: "No answer in time.",
        }.items()
    }
    body = {
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
        },
    }

    @app.post(
        "/predict",
        summary="Name what is on one or several pictures",
        response_model=Answers,
        response_description="One entry per file.",
        responses=refusals,
        openapi_extra={"requestBody": body},
    )
    async def predict(
        request: Request,
        top: int = Query(5, ge=1, le=100_000, description="classes per picture"),
        attention: bool = Query(False, description="add where the classifier looked"),
    ) -> Response:
        """Files of a multipart form (any field name), or one picture as the body.

        200 when at least one picture was answered; a picture that was not carries an error.
        """
        reading = True
        try:
            async with asyncio.timeout(limits.timeout):
                size = declared_bytes(request, limits.max_bytes)
                with contextlib.ExitStack() as held:
                    held.enter_context(service.batcher.admit(1))
                    held.enter_context(service.hold(size))
                    uploads = await read_uploads(
                        request, max_bytes=limits.max_bytes, max_files=limits.max_files
                    )
                    reading = False
                    if len(uploads) > 1:
                        held.enter_context(service.batcher.admit(len(uploads) - 1))
                    answers = await asyncio.gather(
                        *(service.answer(u, top=top, attention=attention) for u in uploads)
                    )
        except ClientDisconnect:
            return problem(400, "the connection was closed before the request was complete")
        except TimeoutError:
            if reading:
                return problem(408, f"the request did not arrive within {limits.timeout:g} s")
            message = f"no answer within {limits.timeout:g} s"
            return problem(503, message, **{"Retry-After": "1"})
        good = any(answer.error is None for answer in answers)
        content: dict[str, Any] = {"pictures": [a.model_dump(exclude_none=True) for a in answers]}
        if not good:
            content["error"] = answers[0].error
        return JSONResponse(content, status_code=200 if good else 422)

    @app.get("/health", summary="Sign of life", responses={503: {"model": Problem}})
    async def health() -> Response:
        if not service.batcher.alive:
            return problem(503, "the prediction worker has stopped")
        return JSONResponse({"status": "ok"})

    @app.get("/info", summary="The model and this server's limits")
    async def info() -> dict[str, Any]:
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

    @app.get("/metrics", summary="Prometheus metrics", response_class=PlainTextResponse)
    async def prometheus() -> Response:
        media = "text/plain; version=0.0.4; charset=utf-8"
        return Response(generate_latest(metrics.registry), media_type=media)

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(_docs_page(app.openapi()))

    def page_file(name: str, media: str) -> Callable[[], Any]:
        text = resources.files("xcite.deployment").joinpath(name).read_text("utf-8")

        async def send() -> Response:
            return Response(text, media_type=media)

        return send

    for path, name, media in (
        ("/", "page.html", "text/html"),
        ("/page.css", "page.css", "text/css"),
        ("/page.js", "page.js", "text/javascript"),
    ):
        app.add_api_route(path, page_file(name, media), include_in_schema=False)

    return Guard(app, token=token, observe=metrics.request)


def _docs_page(schema: dict[str, Any]) -> str:
    """The OpenAPI description as one plain page without a script."""
    e = html.escape
    sections = []
    for path, methods in schema["paths"].items():
        for method, operation in methods.items():
            rows = "".join(
                f"<tr><td><code>?{e(p['name'])}</code></td><td>{e(p.get('description', ''))}, "
                f"default <code>{e(json.dumps(p['schema'].get('default')))}</code></td></tr>"
                for p in operation.get("parameters", [])
            ) + "".join(
                f"<tr><td><code>{e(status)}</code></td><td>{e(answer['description'])}</td></tr>"
                for status, answer in operation["responses"].items()
            )
            sections.append(
                f"<section class='card'><h2><code>{e(method.upper())} {e(path)}</code></h2>"
                f"<p>{e(operation['summary'])}. {e(operation.get('description', ''))}</p>"
                f"<table>{rows}</table></section>"
            )
    example = "curl -F file=@cat.jpg -F file=@dog.png 'http://127.0.0.1:8000/predict?top=3'"
    return (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{e(schema['info']['title'])} API</title>"
        "<link rel='stylesheet' href='/page.css'></head><body><main class='docs'>"
        f"<h1>{e(schema['info']['title'])} API {e(schema['info']['version'])}</h1>"
        f"<p>{e(schema['info']['description'])} Machine-readable: "
        "<a href='/openapi.json'>openapi.json</a>. <a href='/'>Back to the page</a>.</p>"
        f"<pre><code>{e(example)}</code></pre>{''.join(sections)}</main></body></html>"
    )


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes any free one.

    Raises:
        XciteError: unknown host, or the port is taken or not allowed.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(512)
    except OSError as error:
        raise XciteError(
            f"cannot listen on {host} port {port}: {error.strerror or error}; "
            "choose another with --host and --port"
        ) from error
    return listener


def serve(
    bundle: str | Path,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    token: str | None = None,
    limits: Limits | None = None,
    mode: str = "latency",
) -> None:
    """Serve a bundle until SIGTERM or SIGINT; accepted requests are answered before it returns.

    Raises:
        XciteError: unreadable bundle, taken port, missing extra.
    """
    import signal

    try:
        import uvicorn
    except ModuleNotFoundError as error:
        raise XciteError("serving needs uvicorn: pip install 'xcite[serve]'") from error

    from xcite.deployment.predictor import Predictor

    limits = limits or Limits()
    app = create_app(Predictor(bundle, mode=mode), limits, token=token)
    listener = listen(host, port)
    shown = f"[{host}]" if ":" in host else host
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            server_header=False,
            # twice the queue, so that a full queue is told (429) and not just a shut door
            limit_concurrency=2 * limits.queue + 64,
            timeout_keep_alive=10,
            timeout_graceful_shutdown=int(limits.timeout) + 5,
        )
    )

    # Before uvicorn listens to signals, and after its graceful stop, when it raises them once more.
    def stop(*_: object) -> None:
        server.should_exit = True

    previous = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    print(f"serving {bundle} at http://{shown}:{listener.getsockname()[1]}", flush=True)
    if token is None and host not in ("127.0.0.1", "::1", "localhost"):
        print(
            "xcite: anyone who reaches this address can use it; set --token to ask for one",
            file=sys.stderr,
        )
    try:
        server.run(sockets=[listener])
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        listener.close()
